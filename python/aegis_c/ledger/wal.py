"""The asyncio face of the write-ahead log.

`append` copies into shared memory and returns; what is awaited is durability. The native
writer thread knows nothing of Python: it moves `durable_seq` and writes to one eventfd, at most
once until it is read. The loop watches that descriptor, and each wake-up resolves the whole range
of waiters that became durable.
"""

from __future__ import annotations

import asyncio
import heapq
import os
from collections import deque
from types import TracebackType
from typing import Any, Self

from aegis_c import WalError, WalPoisoned, WalWriter

_BATCH = 1024
"""Waiters resolved before other callbacks of the loop get their turn."""

_CROWD = 128
"""Waiters of one turn of the loop for which the disk is asked before the turn ends: while it
writes their records, the loop goes on."""

_ENTRY = 16
"""Octets that the ring adds to a payload, which it pads to 8."""


def ring_bytes(n: int) -> int:
    """Octets of the ring that a payload of `n` octets takes."""
    return _ENTRY + (n + 7 & ~7)


class Wal:
    """A write-ahead log on one event loop: made inside it, used from its thread only.

    Opening reads the disk (recovery) and blocks; it belongs before the server listens.
    Attribute: native (aegis_c.WalWriter, thread-safe).
    """

    def __init__(self, path: str | os.PathLike[str], **options: Any) -> None:
        """Opens or creates the log in directory `path`; `options` go to WalWriter."""
        self._loop = asyncio.get_running_loop()
        self.native = WalWriter(path, **options)
        # Waiters in ascending order, which is the order in which most are added; the few that
        # are not go into the heap, with a number that keeps futures out of comparisons.
        self._queue: deque[tuple[int, asyncio.Future[None]]] = deque()
        self._heap: list[tuple[int, int, asyncio.Future[None]]] = []
        self._count = 0
        self._crowded = False  # the last wake-up resolved several waiters
        self._wanted = 0  # the highest sequence number that the native side is to be asked for
        self._asking = 0  # waiters of this turn
        self._rooms: deque[tuple[int, asyncio.Future[None]]] = deque()
        self._promised = 0  # octets granted to tasks that have not run yet
        self._closing: asyncio.Task[None] | None = None
        self._fd = self.native.fileno()
        self._capacity: int = self.native.stats()["ring_capacity"]
        self._append = self.native.append
        self._want = self.native.want
        try:
            self._loop.add_reader(self._fd, self._on_ready)
        except BaseException:
            self.native.close()
            raise

    # -- appending

    def append(self, payload: bytes) -> int:
        """Appends 1 octet to 1 MiB and returns the sequence number; memory only, never waits.

        Raises WalFull (nothing was appended; see room), WalPoisoned, WalError (closed),
        ValueError (size).
        """
        if self._closing is not None:
            raise WalError("the log is closed")
        return self._append(payload)

    # -- waiting

    def durable(self, seq: int) -> asyncio.Future[None]:
        """A future that resolves when record `seq` survives power loss: `await wal.durable(seq)`.

        Fails with WalPoisoned when its outcome is unknown, WalError when the log is closed
        first. Cancelling it does not take the record back.
        """
        future = self._loop.create_future()
        if self._closing is not None:
            future.set_exception(WalError("the log is closed"))
            return future
        queue = self._queue
        if not queue or queue[-1][0] <= seq:
            queue.append((seq, future))
        else:
            self._count += 1
            heapq.heappush(self._heap, (seq, self._count, future))
        if self._crowded:
            self._ask_later(seq)
        else:
            self._want(seq)  # signals the loop when it is durable already, or never will be
        return future

    def _ask_later(self, seq: int) -> None:
        """Asks for all waiters of this turn at once: the first of a crowd that comes back would
        send the disk away with its record alone, and the others would wait for two writes."""
        self._wanted = max(self._wanted, seq)
        self._asking += 1
        if self._asking == 1:
            self._loop.call_soon(self._ask)
        elif self._asking % _CROWD == 0:
            self._want(self._wanted)

    def _ask(self) -> None:
        self._asking = 0
        if self._closing is None:
            self._want(self._wanted)

    async def room(self, n: int) -> None:
        """Waits until a payload of `n` octets fits the ring, first come, first served.

        What fits, fits as long as the caller appends before it awaits anything else. Raises
        ValueError when it never can, WalPoisoned, WalError (closed).
        """
        need = ring_bytes(n)
        if n < 0 or need > self._capacity:
            raise ValueError(f"a payload of {n} bytes does not fit the ring")
        if self._closing is not None:
            raise WalError("the log is closed")
        if (reason := self.native.poisoned) is not None:
            raise WalPoisoned(reason)
        if not self._rooms and self.native.room() - self._promised >= need:
            return
        future: asyncio.Future[None] = self._loop.create_future()
        waiter = (need, future)
        self._rooms.append(waiter)
        self._ask_for_room()
        try:
            await future
        finally:
            if waiter in self._rooms:  # cancelled: whoever stood behind it may fit
                self._rooms.remove(waiter)
                self._grant_room_if_open()
            elif not future.cancelled() and future.exception() is None:
                self._promised -= need

    def waiting(self) -> int:
        """Number of waiters for durability that are not resolved yet."""
        return sum(not w[1].done() for w in self._queue) + sum(not w[2].done() for w in self._heap)

    # -- news from the native thread

    def _on_ready(self) -> None:
        self._resolve(self.native.drain())
        if (reason := self.native.poisoned) is not None:
            error = f"outcome unknown: {reason}"
            for future in self._take_all():
                future.set_exception(WalPoisoned(error))
        elif self._rooms:
            self._grant_room()

    def _resolve(self, durable: int) -> None:
        left = _BATCH
        queue = self._queue
        self._crowded = len(queue) > 1 and queue[1][0] <= durable
        while queue and queue[0][0] <= durable:
            future = queue.popleft()[1]
            if not future.done():
                future.set_result(None)
            left -= 1
            if left == 0:
                self._loop.call_soon(self._resolve, durable)
                return
        heap = self._heap
        while heap and heap[0][0] <= durable:
            future = heapq.heappop(heap)[2]
            if not future.done():
                future.set_result(None)

    def _grant_room(self) -> None:
        free = self.native.room() - self._promised
        while self._rooms and self._rooms[0][0] <= free:
            need, future = self._rooms.popleft()
            if not future.done():
                free -= need
                self._promised += need
                future.set_result(None)
        self._ask_for_room()

    def _ask_for_room(self) -> None:
        if not self._rooms:
            return
        need = min(self._rooms[0][0] + self._promised, self._capacity)
        if self.native.want_room(need):
            self._loop.call_soon(self._grant_room_if_open)

    def _grant_room_if_open(self) -> None:
        if not self.native.closed and self._rooms:
            self._grant_room()

    def _take_all(self) -> list[asyncio.Future[None]]:
        """Removes and returns every waiter that is not done."""
        futures = [w[1] for w in self._queue] + [w[2] for w in self._heap]
        futures += [w[1] for w in self._rooms]
        self._queue.clear()
        self._heap.clear()
        self._rooms.clear()
        return [future for future in futures if not future.done()]

    # -- mending and closing

    async def reopen(self) -> None:
        """After WalPoisoned: recovers on a new segment, in a thread; the loop goes on."""
        await self._loop.run_in_executor(None, self.native.reopen)

    @property
    def closed(self) -> bool:
        return self._closing is not None

    async def close(self) -> None:
        """Makes everything durable, then closes; what still waits then gets WalError.

        The disk is waited for in a thread. May be called again, and from several tasks;
        cancelling a caller does not stop the closing.
        """
        if self._closing is None:
            self._closing = self._loop.create_task(self._close())
        await asyncio.shield(self._closing)

    async def _close(self) -> None:
        try:
            await self._loop.run_in_executor(None, self._sync)
            self._resolve(self.native.drain())
        finally:
            self._loop.remove_reader(self._fd)
            try:
                await self._loop.run_in_executor(None, self.native.close)
            finally:
                for future in self._take_all():
                    future.set_exception(WalError("the log is closed"))

    def _sync(self) -> None:
        try:
            self.native.sync()
        except WalError:
            pass  # the native close says what is wrong

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()
