"""Event loops under measurement: which kind, and how late one runs."""

from __future__ import annotations

import asyncio
import ctypes
import os
import struct
import time
from collections.abc import Callable, Coroutine
from typing import Any

import uvloop

LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "asyncio": asyncio.new_event_loop,
    "uvloop": uvloop.new_event_loop,
}
TICK_NS = 1_000_000

_libc = ctypes.CDLL(None, use_errno=True)


def run(loop: str, work: Coroutine[Any, Any, Any]) -> Any:
    """Run ``work`` to its end on a new loop of that kind."""
    with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
        return runner.run(work)


class Ticker:
    """Calls ``work`` on the running loop every ``tick_ns`` and records how late it came.

    The kernel's own timer (timerfd_create(2)) fires at fixed times and wakes the loop through a
    descriptor, so the lag of one tick, in nanoseconds, is all that lies between the interrupt and
    Python: the loop's rounding of its timers (1 ms) is not in it. ``work`` runs after the lag of
    its tick was taken; a tick that it makes late is not counted, since that is its own doing.
    """

    def __init__(self, work: Callable[[], None], tick_ns: int = TICK_NS) -> None:
        self.lags: list[int] = []
        self._work = work
        self._tick_ns = tick_ns
        self._free = 0  # when the last work ended
        self._fd = _libc.timerfd_create(time.CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC)
        if self._fd < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create")

    async def run(self, seconds: float) -> None:
        """Tick for that long; may be called again."""
        loop = asyncio.get_running_loop()
        self._due = time.clock_gettime_ns(time.CLOCK_MONOTONIC) + self._tick_ns
        self._set(self._tick_ns, self._due)
        loop.add_reader(self._fd, self._tick)
        try:
            await asyncio.sleep(seconds)
        finally:
            loop.remove_reader(self._fd)
            self._set(0, 0)

    def close(self) -> None:
        os.close(self._fd)

    def _tick(self) -> None:
        now = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
        expired = int.from_bytes(os.read(self._fd, 8), "little")
        if self._due >= self._free:
            self.lags.append(now - self._due)
        self._due += expired * self._tick_ns
        self._work()
        self._free = time.clock_gettime_ns(time.CLOCK_MONOTONIC)

    def _set(self, interval: int, first: int) -> None:
        times = (*divmod(interval, 10**9), *divmod(first, 10**9))  # struct itimerspec
        if _libc.timerfd_settime(self._fd, 1, struct.pack("@4l", *times), None) != 0:
            raise OSError(ctypes.get_errno(), "timerfd_settime")
