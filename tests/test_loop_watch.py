"""LoopWatch: how late an event loop answers, measured by a native thread."""

from __future__ import annotations

import asyncio
import os
import time

import pytest
import uvloop

from aegis_c import AegisError, LoopWatch

pytestmark = pytest.mark.native
LOOPS = {"uvloop": uvloop.new_event_loop, "asyncio": asyncio.new_event_loop}


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

    with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
        runner.run(main())


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
