"""The background queue: handing a job over costs well under a microsecond, and none is dropped.

`spawn` (native: `aegis_c/bind/handover_type.c`) appends to a deque; only while a worker sleeps it
also asks the loop to wake it in its next turn. Long-lived workers on the same loop take the jobs
in order. All of them together start jobs for `_SLICE` seconds in one turn of the loop, then
everything else on the loop gets its turn. The bound of the queue is kept by the caller's side: a
call is only admitted while `room()` is true. Depth and age are computed when somebody asks.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Hashable
from contextvars import copy_context
from itertools import islice
from time import CLOCK_MONOTONIC, clock_gettime, monotonic
from typing import Any, Final

from aegis_c import HandOver

log = logging.getLogger("aegis_c.gateway.background")

Job = Callable[..., Awaitable[object] | None]
"""Called once, on the event loop, with the arguments it was handed over with; what it returns is
awaited."""

_SLICE: Final = 50e-6  # seconds of jobs before the loop gets its turn

_Item = tuple[float, Hashable, Job, tuple[Any, ...]]  # handed over at, session, job, its arguments


class Background:
    """A queue of jobs and the workers that run them; made and used on one event loop.

    Jobs start in the order in which they were handed over; one that awaits lets those behind it
    start on other workers, but for jobs of its own session, which wait for its end. A job that
    raises is logged and counted in `failed`.
    """

    spawn: Callable[..., None]
    """spawn(session, job, *arguments): hand a job over; no await, no refusal.

    From the loop's own thread only. Jobs of one session run in their order, one at a time; None is
    no session. Raises RuntimeError after `drain` has ended, when nothing would run it.
    """

    def __init__(self, max_queue: int, workers: int) -> None:
        """`max_queue`: jobs at which `room()` ends. `workers`: jobs that may await at a time."""
        if max_queue < 1 or workers < 1:
            raise ValueError("max_queue and workers must be at least 1")
        self.done = 0
        self.failed = 0
        self._max_queue = max_queue
        self._count = workers
        self._queue: deque[_Item] = deque()
        self._behind: dict[Hashable, deque[_Item]] = {}  # session of a job that awaits -> the next
        self._parked = 0  # jobs in there
        self._running: dict[int, float] = {}  # worker -> when its job was handed over
        self._idle: deque[asyncio.Future[None]] = deque()  # of workers that sleep
        call_soon = asyncio.get_running_loop().call_soon
        self._entrance = HandOver(self._queue, call_soon, self._wake, copy_context())
        self.spawn = self._entrance.spawn
        self._tasks: list[asyncio.Task[None]] = []
        self._slice_end = 0.0  # of this turn of the loop; 0.0 before its first job
        self._closing = False
        self._quiet = asyncio.Event()  # while closing: no job is left

    def use(self, max_queue: int) -> None:
        """Another bound from now on."""
        self._max_queue = max_queue

    def start(self) -> None:
        """Start the workers."""
        if self._tasks or self._closing:
            raise RuntimeError("the background queue was already started")
        self._start_workers()

    def _start_workers(self) -> None:
        loop = asyncio.get_running_loop()
        self._tasks = [
            loop.create_task(self._work(i), name=f"aegis-background-{i}")
            for i in range(self._count)
        ]

    @property
    def depth(self) -> int:
        """Jobs handed over and not finished."""
        return len(self._queue) + self._parked + len(self._running)

    @property
    def oldest_age(self) -> float:
        """Seconds since the oldest unfinished job was handed over; 0.0 without any."""
        # A parked job is younger than the running one that it waits for.
        since = [*self._running.values(), *(item[0] for item in islice(self._queue, 1))]
        return clock_gettime(CLOCK_MONOTONIC) - min(since) if since else 0.0

    def room(self) -> bool:
        """Whether another call may be admitted."""
        return len(self._queue) + self._parked + len(self._running) < self._max_queue

    async def drain(self, seconds: float) -> int:
        """Finish all jobs, those that they spawn too, then end the workers. Repeatable.

        After `seconds` what runs is cancelled and what waits is given up; how many that were is
        logged. Returns how many jobs were not finished: 0 when all went well.
        """
        self._closing = True
        if self._queue and all(task.done() for task in self._tasks):
            self._start_workers()  # a loop that ends cancels them before anybody drains
        try:
            async with asyncio.timeout(seconds):
                while self._tasks and self.depth:
                    self._quiet.clear()
                    await self._quiet.wait()
        except TimeoutError:
            pass
        left = self.depth
        self._entrance.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks = []
        self._queue.clear()
        self._behind.clear()
        self._parked = 0
        if left:
            log.error("%d background jobs were not finished within %.1f s", left, seconds)
        return left

    async def _work(self, worker: int) -> None:
        queue, loop = self._queue, asyncio.get_running_loop()
        while True:
            if not queue:
                self._entrance.sleeps()
                idle = loop.create_future()
                self._idle.append(idle)
                await idle
                continue
            if not self._slice_end:
                self._slice_end = monotonic() + _SLICE
                loop.call_soon(self._end_slice)  # in the next turn, before the workers
            while queue and monotonic() < self._slice_end:
                item = queue.popleft()
                behind = self._behind.get(item[1])
                if behind is not None:
                    behind.append(item)
                    self._parked += 1
                elif (result := self._start(item[2], item[3])) is not None:
                    await self._finish(worker, item, result)
                if self._closing and not self.depth:
                    self._quiet.set()
            if queue:
                await asyncio.sleep(0)

    def _wake(self) -> None:
        """Wake one worker; it wakes the next one when its job awaits."""
        while self._idle:
            idle = self._idle.popleft()
            if not idle.done():
                idle.set_result(None)
                return

    def _start(self, job: Job, arguments: tuple[Any, ...]) -> Awaitable[object] | None:
        """Run one job as far as it goes; what it awaits then, if it does."""
        try:
            result = job(*arguments)
        except (Exception, asyncio.CancelledError):
            self._failure(job)
            return None
        if result is None:
            self.done += 1
        return result

    async def _finish(self, worker: int, item: _Item, result: Awaitable[object]) -> None:
        """Await the rest of a job; those that it has held up come next."""
        self._running[worker], session, job, _ = item
        if session is not None:
            self._behind[session] = deque()
        if self._queue:
            self._wake()
        else:
            self._entrance.sleeps()
        try:
            await result
            self.done += 1
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise  # it is the worker that is cancelled, not the job
            self._failure(job)
        except Exception:
            self._failure(job)
        finally:
            if session is not None:
                behind = self._behind.pop(session)
                self._parked -= len(behind)
                self._queue.extendleft(reversed(behind))
            del self._running[worker]

    def _end_slice(self) -> None:
        self._slice_end = 0.0

    def _failure(self, job: Job) -> None:
        self.failed += 1
        log.exception("a background job failed: %r", job)
