"""The background queue: order, bounds, faults, draining, and what a hand-over costs."""

from __future__ import annotations

import asyncio
import logging
import statistics
import time
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from aegis_c.gateway.background.spawn import Background


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(test(), 60))


@pytest.mark.parametrize("workers", [1, 4])
def test_jobs_run_in_order_and_none_is_lost(workers: int) -> None:
    async def test() -> None:
        background = Background(10, workers)
        background.start()
        seen: list[int] = []
        for i in range(5000):
            background.spawn(lambda i=i: seen.append(i))  # type: ignore[misc]
        assert seen == []  # nothing runs inside spawn
        assert await background.drain(30) == 0
        assert seen == list(range(5000))
        assert (background.done, background.failed, background.depth) == (5000, 0, 0)

    run(test)


def test_jobs_before_start_wait_for_it() -> None:
    async def test() -> None:
        background = Background(10, 1)
        seen: list[int] = []
        background.spawn(lambda: seen.append(1))
        await asyncio.sleep(0.01)
        assert seen == []
        background.start()
        assert await background.drain(5) == 0
        assert seen == [1]

    run(test)


def test_jobs_that_await_run_side_by_side_up_to_the_workers() -> None:
    async def test() -> None:
        background = Background(100, 3)
        background.start()
        running = most = 0

        async def job() -> None:
            nonlocal running, most
            running += 1
            most = max(most, running)
            await asyncio.sleep(0.002)
            running -= 1

        for _ in range(20):
            background.spawn(job)
        assert await background.drain(10) == 0
        assert most == 3
        assert background.done == 20

    run(test)


def test_room_ends_at_the_bound_and_nothing_is_dropped_beyond_it() -> None:
    async def test() -> None:
        background = Background(3, 1)
        background.start()
        gate = asyncio.Event()
        assert background.room()
        for _ in range(2):
            background.spawn(gate.wait)
        assert background.room()
        background.spawn(gate.wait)
        assert not background.room()
        await asyncio.sleep(0.01)  # one runs now: it still counts
        assert background.depth == 3
        assert not background.room()
        background.spawn(gate.wait)
        assert background.depth == 4
        gate.set()
        assert await background.drain(5) == 0
        assert background.done == 4
        assert background.room()

    run(test)


def test_age_is_that_of_the_oldest() -> None:
    async def test() -> None:
        background = Background(10, 1)
        assert background.oldest_age == 0.0
        background.start()
        gate = asyncio.Event()
        background.spawn(gate.wait)
        await asyncio.sleep(0.05)
        background.spawn(lambda: None)
        assert background.oldest_age >= 0.05  # the running one's
        gate.set()
        await background.drain(5)
        assert background.oldest_age == 0.0

    run(test)


@pytest.mark.parametrize("error", [ValueError("no"), asyncio.CancelledError(), RecursionError()])
def test_a_failing_job_is_logged_and_counted_and_kills_no_worker(
    error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    async def test() -> None:
        background = Background(10, 1)
        background.start()

        def at_once() -> None:
            raise error

        async def later() -> None:
            await asyncio.sleep(0)
            raise error

        seen: list[int] = []
        background.spawn(at_once)
        background.spawn(later)
        background.spawn(lambda: seen.append(1))
        assert await background.drain(5) == 0
        assert seen == [1]
        assert (background.done, background.failed) == (1, 2)

    with caplog.at_level(logging.ERROR):
        run(test)
    assert len(caplog.records) == 2
    assert all(record.exc_info is not None for record in caplog.records)


def test_drain_runs_what_jobs_spawn() -> None:
    async def test() -> None:
        background = Background(10, 3)
        background.start()
        seen: list[int] = []

        async def chain(left: int) -> None:
            await asyncio.sleep(0.001)
            seen.append(left)
            if left:
                background.spawn(lambda: chain(left - 1))

        background.spawn(lambda: chain(5))
        assert await background.drain(10) == 0
        assert seen == [5, 4, 3, 2, 1, 0]

    run(test)


def test_drain_gives_up_at_its_deadline_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        background = Background(10, 2)
        background.start()
        cancelled: list[bool] = []

        async def hangs() -> None:
            try:
                await asyncio.sleep(1000)
            except asyncio.CancelledError:
                cancelled.append(True)
                raise

        for _ in range(5):
            background.spawn(hangs)
        await asyncio.sleep(0.01)
        started = time.monotonic()
        assert await background.drain(0.1) == 5
        assert time.monotonic() - started < 5
        assert cancelled == [True, True]
        assert background.depth == 0
        assert await background.drain(0.1) == 0

    with caplog.at_level(logging.ERROR):
        run(test)
    assert "5 background jobs were not finished" in caplog.text


def test_after_draining_a_job_is_refused_not_lost() -> None:
    async def test() -> None:
        background = Background(10, 1)
        background.start()
        assert await background.drain(5) == 0
        with pytest.raises(RuntimeError, match="closed"):
            background.spawn(lambda: None)
        with pytest.raises(RuntimeError, match="already"):
            background.start()

    run(test)


def test_useless_bounds_are_refused() -> None:
    for bounds in ((0, 1), (1, 0)):
        with pytest.raises(ValueError, match="at least 1"):
            Background(*bounds)


@pytest.mark.parametrize("workers", [1, 32])
def test_the_loop_gets_its_turn_between_slices(workers: int) -> None:
    """A flood of jobs of 0.2 ms each must not keep the loop, however many workers there are."""

    async def test() -> None:
        background = Background(10, workers)
        background.start()

        def busy() -> None:
            until = time.perf_counter() + 0.0002
            while time.perf_counter() < until:
                pass

        for _ in range(2000):
            background.spawn(busy)
        turns = 0
        while background.depth:
            await asyncio.sleep(0)
            turns += 1
        assert turns >= 100  # 2,000 jobs are at most 400 slices of 1 ms
        assert background.done == 2000

    run(test)


def test_hand_over_is_cheap() -> None:
    """Far from the target's scale on purpose: it catches a change of kind, not of machine."""

    async def test() -> None:
        background = Background(1_000_000, 2)
        background.start()
        costs = []

        def job() -> None:
            pass

        for _ in range(200):
            for _ in range(20):
                started = time.perf_counter_ns()
                background.spawn(job)
                costs.append(time.perf_counter_ns() - started)
            await asyncio.sleep(0)
        assert await background.drain(10) == 0
        assert statistics.median(costs) < 5_000

    run(test)
