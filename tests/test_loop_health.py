"""How late the event loop is, and what keeps it: measured from outside, named by stage."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import upstream
from aegis_c import AegisError, LoopWatch
from aegis_c.gateway.hot.firewall import Firewall
from aegis_c.gateway.loop_health import OTHER, STAGES, LoopHealth
from gateway_rig import CHAT, LOOPS, gateway, run, until


def holds_the_interpreter(seconds: float) -> None:
    """One call into C after the other, without a pause for anybody."""
    end = time.monotonic() + seconds
    numbers = list(range(200_000))
    while time.monotonic() < end:
        sum(numbers)


@pytest.mark.parametrize("loop", LOOPS)
def test_lags_are_those_of_the_loop(loop: str) -> None:
    async def main() -> None:
        watch = LoopWatch(every=0.002, slow=60)
        asyncio.get_running_loop().add_reader(watch.fileno(), watch.answer)
        try:
            await asyncio.sleep(0.1)
            calm = watch.stats()
            assert sum(calm["lags_us"]) >= 3
            time.sleep(0.05)  # noqa: ASYNC251
            await asyncio.sleep(0.02)
            after = watch.stats()
        finally:
            asyncio.get_running_loop().remove_reader(watch.fileno())
            watch.close()
        assert after["max_ns"] >= 40_000_000 and after["stalls"] == 0
        long = [b - a for a, b in zip(calm["lags_us"], after["lags_us"], strict=True)][16:]
        assert sum(long) >= 1  # 32.8 ms and above
        assert after["sum_ns"] >= calm["sum_ns"] + 40_000_000

    run(main(), loop)


def test_a_watch_refuses_nonsense_and_belongs_to_its_process() -> None:
    for members in ({"every": 0}, {"slow": 0}, {"every": float("nan")}, {"slow": 1e9}):
        with pytest.raises(ValueError, match=r"from 0\.0001 to 3600"):
            LoopWatch(**members)  # type: ignore[arg-type]
    watch = LoopWatch()
    watch.close()
    watch.close()
    assert (watch.wait(), watch.wait(end=True)) == (0, 0)
    assert watch.stats()["stalls"] == 0


@pytest.mark.forks
def test_a_forked_child_cannot_use_the_watch() -> None:
    watch = LoopWatch(every=0.001)
    child = os.fork()
    if child == 0:
        status = 1
        try:
            watch.answer()
        except AegisError as error:
            status = 0 if "parent" in str(error) else 2
        del watch
        os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    watch.close()


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
        assert sum(health.stalls.values()) == health.stalls.get(OTHER, 0) >= 1
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
