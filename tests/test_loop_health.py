"""How late the event loop is, and what keeps it: measured from outside, named by stage."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import upstream
from aegis_c.gateway.hot.firewall import Firewall
from aegis_c.gateway.loop_health import OTHER, STAGES, LoopHealth
from gateway_rig import CHAT, gateway, run, until


def holds_the_interpreter(seconds: float) -> None:
    """One call into C after the other, without a pause for anybody."""
    end = time.monotonic() + seconds
    numbers = list(range(200_000))
    while time.monotonic() < end:
        sum(numbers)


@pytest.mark.parametrize("block", [time.sleep, holds_the_interpreter], ids=["sleep", "GIL"])
def test_a_stage_that_keeps_the_loop_is_named(
    tmp_path: Path,
    block: Callable[[float], None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A rule of the firewall that takes 0.3 s to judge, in code that is not ours."""

    class Slow:
        name = "slow"

        def judge(self, document: dict[str, Any]) -> bool:
            block(0.3)
            return False

    async def main() -> None:
        async with upstream.running() as up, gateway(tmp_path, up.url) as rig:
            rig.runtime.hot[CHAT]._firewall = Firewall([Slow()])  # type: ignore[attr-defined]
            assert (await rig.ask()).status == 200

            async def ended() -> bool:
                return "answers again" in caplog.text

            await until(ended)
            text = (await rig.ask(b"", method="GET", path="/metrics")).body.decode()
            assert 'aegis_loop_stalls_total{stage="firewall"} 1.0' in text
            lags = [line for line in text.split("\n") if "aegis_loop_lag_seconds_count" in line]
            assert float(lags[0].split()[1]) >= 1
            assert "aegis_loop_lag_max_seconds 0." in text

    with caplog.at_level("WARNING", "aegis_c.gateway.loop"):
        run(main())
    assert "it is in stage firewall: gateway/hot/firewall.py:" in caplog.text


def test_code_that_is_not_ours_is_named_by_its_place(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        health = LoopHealth()
        health.start(0.05)
        await asyncio.sleep(0.01)
        holds_the_interpreter(0.3)
        await asyncio.sleep(0.01)
        health.stop()
        assert sum(health.stalls.values()) == health.stalls[OTHER] >= 1
        assert list(health.collect()) == []

    with caplog.at_level("WARNING"):
        run(main())
    assert "test_loop_health.py" in caplog.text


def test_every_stage_has_its_files() -> None:
    import aegis_c

    root = Path(aegis_c.__file__).parent
    for beginning in STAGES:
        folder, _, name = beginning.rpartition("/")
        assert list((root / folder).glob(f"{name}*")), beginning
