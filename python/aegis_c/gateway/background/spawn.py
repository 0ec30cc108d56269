"""The background queue: handing a job over costs well under a microsecond, and none is dropped.

`spawn` appends to a deque and sets an event; long-lived workers on the same event loop take the
jobs in order. All of them together start jobs for `_SLICE` seconds in one turn of the loop, then
everything else on the loop gets its turn. The bound of the queue is kept by the caller's side: a
call is only admitted while `room()` is true.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable
from itertools import islice
from typing import Final

log = logging.getLogger("aegis_c.gateway.background")

Job = Callable[[], Awaitable[object] | None]
"""Called once, on the event loop, without arguments; what it returns is awaited."""

_SLICE: Final = 0.001  # seconds of jobs before the loop gets its turn


class Background:
    """A queue of jobs and the workers that run them; used from one event loop.

    Jobs start in the order in which they were handed over; one that awaits lets those behind it
    start on other workers. A job that raises is logged and counted in `failed`.
    """

    def __init__(self, max_queue: int, workers: int) -> None:
        """`max_queue`: jobs at which `room()` ends. `workers`: jobs that may await at a time."""
        if max_queue < 1 or workers < 1:
            raise ValueError("max_queue and workers must be at least 1")
        self.done = 0
        self.failed = 0
        self._max_queue = max_queue
        self._count = workers
        self._queue: deque[tuple[float, Job]] = deque()
        self._wake = asyncio.Event()
        self._running: dict[int, float] = {}  # worker -> when its job was handed over
        self._tasks: list[asyncio.Task[None]] = []
        self._slice_end = 0.0  # of this turn of the loop; 0.0 before its first job
        self._closing = False

    def use(self, max_queue: int) -> None:
        """Another bound from now on."""
        self._max_queue = max_queue

    def start(self) -> None:
        """Start the workers on the running loop."""
        if self._tasks or self._closing:
            raise RuntimeError("the background queue was already started")
        self._start_workers()

    def _start_workers(self) -> None:
        loop = asyncio.get_running_loop()
        self._tasks = [
            loop.create_task(self._work(i), name=f"aegis-background-{i}")
            for i in range(self._count)
        ]

    def spawn(self, job: Job) -> None:
        """Hand a job over: no await, no refusal. From the loop's own thread only.

        Raises RuntimeError after `drain` has ended, when nothing would run it.
        """
        if self._closing and not self._tasks:
            raise RuntimeError("the background queue is closed; the job was not taken")
        self._queue.append((time.monotonic(), job))
        self._wake.set()

    @property
    def depth(self) -> int:
        """Jobs handed over and not finished."""
        return len(self._queue) + len(self._running)

    @property
    def oldest_age(self) -> float:
        """Seconds since the oldest unfinished job was handed over; 0.0 without any."""
        since = [*self._running.values(), *(queued for queued, _ in islice(self._queue, 1))]
        return time.monotonic() - min(since) if since else 0.0

    def room(self) -> bool:
        """Whether another call may be admitted."""
        return len(self._queue) + len(self._running) < self._max_queue

    async def drain(self, seconds: float) -> int:
        """Finish all jobs, those that they spawn too, then end the workers. Repeatable.

        After `seconds` what runs is cancelled and what waits is given up; both are
        logged. Returns how many jobs were not finished: 0 when all went well.
        """
        self._closing = True
        self._wake.set()
        if self._queue and all(task.done() for task in self._tasks):
            self._start_workers()  # a loop that ends cancels them before anybody drains
        tasks, left = self._tasks, 0
        if tasks:
            _, pending = await asyncio.wait(tasks, timeout=seconds)
            left = self.depth if pending else 0
            for task in pending:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        left = max(left, len(self._queue))
        self._tasks = []
        self._queue.clear()
        if left:
            log.error("%d background jobs were not finished within %.1f s", left, seconds)
        return left

    async def _work(self, worker: int) -> None:
        queue, running = self._queue, self._running
        loop = asyncio.get_running_loop()
        while True:
            if not queue:
                if self._closing and not running:
                    return
                self._wake.clear()
                await self._wake.wait()
                continue
            if not self._slice_end:
                self._slice_end = time.monotonic() + _SLICE
                loop.call_soon(self._end_slice)  # in the next turn, before the workers
            while queue and time.monotonic() < self._slice_end:
                running[worker], job = queue.popleft()
                try:
                    result = job()
                    if result is not None:
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
                    del running[worker]
                    if self._closing and not running:
                        self._wake.set()  # the others wait for this to end
            await asyncio.sleep(0)

    def _end_slice(self) -> None:
        self._slice_end = 0.0

    def _failure(self, job: Job) -> None:
        self.failed += 1
        log.exception("a background job failed: %r", job)
