"""The background queue: order, bounds, faults, draining, and what a hand-over costs."""

from __future__ import annotations

import asyncio
import logging
import statistics
import time
from collections.abc import AsyncGenerator, Callable, Coroutine
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

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
            background.spawn(None, lambda i=i: seen.append(i))  # type: ignore[misc]
        assert seen == []  # nothing runs inside spawn
        assert await background.drain(30) == 0
        assert seen == list(range(5000))
        assert (background.done, background.failed, background.depth) == (5000, 0, 0)

    run(test)


def test_jobs_before_start_wait_for_it() -> None:
    async def test() -> None:
        background = Background(10, 1)
        seen: list[int] = []
        background.spawn(None, lambda: seen.append(1))
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
            background.spawn(None, job)
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
            background.spawn(None, gate.wait)
        assert background.room()
        background.spawn(None, gate.wait)
        assert not background.room()
        await asyncio.sleep(0.01)  # one runs now: it still counts
        assert background.depth == 3
        assert not background.room()
        background.spawn(None, gate.wait)
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
        background.spawn(None, gate.wait)
        await asyncio.sleep(0.05)
        background.spawn(None, lambda: None)
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
        background.spawn(None, at_once)
        background.spawn(None, later)
        background.spawn(None, lambda: seen.append(1))
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
                background.spawn(None, lambda: chain(left - 1))

        background.spawn(None, lambda: chain(5))
        assert await background.drain(10) == 0
        assert seen == [5, 4, 3, 2, 1, 0]

    run(test)


def test_drain_runs_what_is_queued_when_the_workers_were_cancelled() -> None:
    """asyncio.run cancels every task before it closes async generators, where a drain may be."""
    ran: list[int] = []

    async def drained_by_the_end_of_the_loop() -> AsyncGenerator[Background, None]:
        background = Background(10, 2)
        background.start()
        try:
            yield background
        finally:
            ran.append(await background.drain(5.0))

    kept: list[object] = []

    async def call(background: Background) -> None:
        try:
            await asyncio.Event().wait()
        finally:  # a stream that is cut by the end still has its reply analysed
            background.spawn(None, lambda: ran.append(1))

    async def main() -> None:
        keeper = drained_by_the_end_of_the_loop()
        kept.append(keeper)
        kept.append(asyncio.create_task(call(await anext(keeper))))
        await asyncio.sleep(0)

    asyncio.run(main())
    assert ran == [1, 0]


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
            background.spawn(None, hangs)
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


_JOBS = st.lists(
    st.tuples(
        st.sampled_from([None, "a", "b", "c"]),  # session
        st.integers(0, 3),  # turns of the loop that it awaits; 0: it is over at once
        st.booleans(),  # it raises at its end
        st.booleans(),  # the loop gets a turn before the next one is handed over
    ),
    max_size=40,
)


@given(_JOBS, st.integers(1, 4))
@settings(max_examples=150, deadline=None)
def test_every_job_runs_once_and_a_session_keeps_its_order(
    jobs: list[tuple[str | None, int, bool, bool]], workers: int
) -> None:
    async def test() -> None:
        background = Background(1, workers)
        background.start()
        started: list[int] = []
        ended: list[int] = []
        running: list[str | None] = []

        def end(number: int, session: str | None, raises: bool) -> None:
            running.remove(session)
            ended.append(number)
            if raises:
                raise ValueError(number)

        def job(number: int, session: str | None, turns: int, raises: bool) -> Any:
            assert session is None or session not in running
            started.append(number)
            running.append(session)
            assert len(running) <= workers
            if not turns:
                return end(number, session, raises)

            async def rest() -> None:
                for _ in range(turns):
                    await asyncio.sleep(0)
                end(number, session, raises)

            return rest()

        for number, (session, turns, raises, pause) in enumerate(jobs):
            background.spawn(session, job, number, session, turns, raises)
            assert background.depth == number + 1 - len(ended)
            assert background.room() is (background.depth == 0)
            assert (background.oldest_age > 0) is (background.depth > 0)
            if pause:
                await asyncio.sleep(0)
        assert await background.drain(30) == 0
        assert sorted(started) == sorted(ended) == list(range(len(jobs)))
        for one in ("a", "b", "c"):
            own = [number for number in started if jobs[number][0] == one]
            assert own == sorted(own)
            assert own == [number for number in ended if jobs[number][0] == one]
        raised = sum(raises for _, _, raises, _ in jobs)
        assert (background.done, background.failed) == (len(jobs) - raised, raised)
        assert (background.depth, background.oldest_age) == (0, 0.0)

    logging.disable(logging.CRITICAL)
    try:
        run(test)
    finally:
        logging.disable(logging.NOTSET)


def test_a_session_that_waits_holds_up_nobody_else() -> None:
    async def test() -> None:
        background = Background(10, 2)
        background.start()
        gate = asyncio.Event()
        seen: list[str] = []

        async def first() -> None:
            await gate.wait()
            seen.append("slow 1")

        background.spawn("slow", first)
        background.spawn("slow", seen.append, "slow 2")
        background.spawn("quick", seen.append, "quick")
        background.spawn(None, seen.append, "none")
        await asyncio.sleep(0.01)
        assert seen == ["quick", "none"]
        assert background.depth == 2
        gate.set()
        assert await background.drain(5) == 0
        assert seen == ["quick", "none", "slow 1", "slow 2"]

    run(test)


def test_after_draining_a_job_is_refused_not_lost() -> None:
    async def test() -> None:
        background = Background(10, 1)
        background.start()
        assert await background.drain(5) == 0
        with pytest.raises(RuntimeError, match="closed"):
            background.spawn(None, lambda: None)
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
            background.spawn(None, busy)
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
                background.spawn(None, job)
                costs.append(time.perf_counter_ns() - started)
            await asyncio.sleep(0)
        assert await background.drain(10) == 0
        assert statistics.median(costs) < 5_000

    run(test)
