"""What a reload reads again although the settings' text is the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import upstream
from gateway_rig import ONCE, gateway, run, settings


@pytest.mark.parametrize("targets", [False, True], ids=["upstream", "target"])
def test_a_key_file_is_read_again(tmp_path: Path, targets: bool) -> None:
    file = tmp_path / "key"
    file.write_text("first\n")

    def tables(url: str) -> dict[str, Any]:
        one = {"url": url, "api_key_file": file}
        return {"targets": [one | {"name": "east"}], **ONCE} if targets else one

    async def main() -> None:
        async with upstream.running() as up:
            given = {"upstream": tables(up.url)}
            url = None if targets else up.url
            async with gateway(tmp_path / "data", url, **given) as rig:
                await rig.ask()
                file.write_text("second\n")
                await rig.ask()
                rig.runtime.reload(settings(tmp_path / "data", url, **given))
                await rig.ask()
                sent = [exchange.headers["authorization"] for exchange in up.exchanges]
                assert sent == ["Bearer first", "Bearer first", "Bearer second"]

    run(main())
