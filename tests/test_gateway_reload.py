"""What a reload reads again although the settings' text is the same."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

import upstream
from gateway_rig import ASK, ONCE, gateway, request, run, settings
from upstream import DONE, Exchange, delta


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


def test_analysis_is_switched_while_a_stream_flows(tmp_path: Path) -> None:
    """What was set when a stream began decides; those after it follow the new setting."""
    on = asyncio.Event()

    async def script(exchange: Exchange) -> None:
        await exchange.begin_stream()
        for part in range(2):
            for _ in range(200):
                await exchange.chunk(delta("so it goes on "))
            if part == 0:
                await on.wait()
        await exchange.chunk(DONE)
        await exchange.chunk(b"")

    async def main() -> None:
        async with upstream.running(script) as up, gateway(tmp_path, up.url) as rig:

            def analysis(kept: str) -> Any:
                return settings(tmp_path, up.url, evidence={"analysis": kept})

            for before, after, found in (("findings", "off", 1), ("off", "findings", 1)):
                rig.runtime.reload(analysis(before))
                on.clear()
                async with rig.client() as client:
                    await client.write(request({**ASK, "stream": True}))
                    await client.head()
                    await client.chunk()
                    rig.runtime.reload(analysis(after))
                    on.set()
                    while await client.chunk():
                        pass
                await rig.settled()
                settle = (await rig.entries("settle"))[-1]
                assert settle["status"] == "done"
                assert len(await rig.entries("analysis")) == found
            assert (await rig.ask({**ASK, "stream": True})).status == 200
            assert len(await rig.wait_for("analysis", 2)) == 2

    run(main())
