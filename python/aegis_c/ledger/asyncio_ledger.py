"""The asyncio face of the native ledger.

The native threads know nothing of Python: they move sizes (durable, integrated, published)
and write to one eventfd, at most once until it is read. The loop watches that descriptor;
each wake-up resolves all waiters below the new sizes at once. Nothing here waits for a disk
on the event loop, except opening.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import os
from types import TracebackType
from typing import Any, Literal, Self

from aegis_c import Commitment, Ledger, LedgerError

from . import ids

State = Literal["durable", "integrated", "published"]
_STATES: tuple[State, State, State] = ("durable", "integrated", "published")
_BATCH = 1024
"""Waiters resolved before other callbacks of the loop get their turn."""

_FOR_NOBODY = 64
"""Wake-ups in a row that nobody waited for, after which the descriptor is left readable."""

_CLOSE_SECONDS = 10.0
"""How long closing waits for the last checkpoint before it leaves that to the next open."""


class _Waiters:
    """Futures by entry index. A cancelled one stays until it is passed or swept away."""

    def __init__(self) -> None:
        self._heap: list[tuple[int, int, asyncio.Future[None]]] = []
        self._order = itertools.count()
        self._cancelled = 0

    def add(self, index: int, future: asyncio.Future[None]) -> None:
        heapq.heappush(self._heap, (index, next(self._order), future))

    def pop(self, size: int) -> asyncio.Future[None] | None:
        """A waiter for an entry below `size`, in order of the entries; None: no more."""
        while self._heap and self._heap[0][0] < size:
            future = heapq.heappop(self._heap)[2]
            if not future.done():
                return future
        return None

    def cancelled(self) -> None:
        """Counts a waiter that gave up; keeps what is held in proportion to what waits."""
        self._cancelled += 1
        if self._cancelled > 64 and self._cancelled * 2 > len(self._heap):
            self._heap = [waiter for waiter in self._heap if not waiter[2].done()]
            heapq.heapify(self._heap)
            self._cancelled = 0

    def take_from(self, index: int) -> list[asyncio.Future[None]]:
        """Removes and returns the waiters for entries from `index` on."""
        taken = [w[2] for w in self._heap if w[0] >= index and not w[2].done()]
        self._heap = [w for w in self._heap if w[0] < index and not w[2].done()]
        heapq.heapify(self._heap)
        return taken

    def any(self) -> bool:
        """Whether it holds one, maybe one that gave up."""
        return bool(self._heap)

    def __len__(self) -> int:
        return sum(not waiter[2].done() for waiter in self._heap)


class AsyncLedger:
    """One shard of the ledger on one event loop.

    Made inside a running loop, used from that loop's thread only. Opening reads the disk
    (recovery of the log's tail); it belongs before the server listens.

    Attributes: native (aegis_c.Ledger, thread-safe).
    """

    def __init__(self, path: str | os.PathLike[str], **options: Any) -> None:
        """Opens or creates the ledger at `path`; `options` go to aegis_c.Ledger."""
        self._loop = asyncio.get_running_loop()
        self.native = Ledger(path, **options)
        try:
            self._fd = self.native.fileno()
            self._waiters = {state: _Waiters() for state in _STATES}
            self._closing: asyncio.Task[None] | None = None
            self._loop.add_reader(self._fd, self._on_ready)
            self._watching = True
            self._for_nobody = 0
        except BaseException:
            self.native.close()
            raise

    # -- submitting

    def submit(
        self,
        meta: bytes,
        request: Commitment | bytes | None = None,
        response: Commitment | bytes | None = None,
        *,
        secret: bytes | None = None,
    ) -> int:
        """Appends an entry and returns its index; memory only, never waits.

        Raises LedgerFull (no room, nothing appended), LedgerError (poisoned, closed),
        ValueError (meta).
        """
        if self._closing is not None:
            raise LedgerError("ledger is closed")
        return self.native.submit(meta, request, response, secret=secret)

    # -- looking up

    async def find(self, request_id: str) -> list[int]:
        """Indices of the entries of a request, ascending, submitted ones included; empty for
        an unknown id. Files are read in a thread."""
        key = ids.parse(request_id)
        return [] if key is None else await asyncio.to_thread(self.native.find, key)

    # -- waiting

    async def durable(self, index: int) -> None:
        """Waits until entry `index` survives power loss."""
        await self._wait(index, "durable")

    async def integrated(self, index: int) -> None:
        """Waits until entry `index` is in the Merkle tree and can be read back."""
        await self._wait(index, "integrated")

    async def published(self, index: int) -> None:
        """Waits until a signed checkpoint covers entry `index`."""
        await self._wait(index, "published")

    async def _wait(self, index: int, state: State) -> None:
        """Raises IndexError for an entry that does not exist, LedgerError when it will not
        get there: the ledger is poisoned or closed."""
        if index < 0:
            raise IndexError(f"entry {index} does not exist")
        if index < getattr(self.native, f"{state}_size"):
            return
        self.native.want(index, state)
        future: asyncio.Future[None] = self._loop.create_future()
        waiters = self._waiters[state]
        waiters.add(index, future)
        self._for_nobody = 0
        if not self._watching:  # it is readable if anything has moved since
            self._loop.add_reader(self._fd, self._on_ready)
            self._watching = True
        if self.native.poisoned is not None:
            self._fail_lost()
        try:
            await future
        except asyncio.CancelledError:
            waiters.cancelled()
            raise

    def waiting(self) -> int:
        """Number of waiters that are not resolved yet."""
        return sum(len(waiters) for waiters in self._waiters.values())

    def _on_ready(self) -> None:
        if not any(waiters.any() for waiters in self._waiters.values()):
            self._for_nobody += 1
            if self._for_nobody > _FOR_NOBODY:  # until it is read, the threads leave it alone
                self._loop.remove_reader(self._fd)
                self._watching = False
                return
        self._resolve(self.native.drain())
        if self.native.poisoned is not None:
            self._fail_lost()

    def _resolve(self, sizes: tuple[int, int, int]) -> None:
        left = _BATCH
        for state, size in zip(_STATES, sizes, strict=True):
            waiters = self._waiters[state]
            while (future := waiters.pop(size)) is not None:
                future.set_result(None)
                left -= 1
                if left == 0:
                    self._loop.call_soon(self._resolve, sizes)
                    return

    def _fail_lost(self) -> None:
        """In a poisoned ledger what is durable still gets published; the rest is lost."""
        error = f"ledger is poisoned: {self.native.poisoned}"
        durable = self.native.durable_size
        for waiters in self._waiters.values():
            for future in waiters.take_from(durable):
                future.set_exception(LedgerError(error))

    # -- closing

    @property
    def closed(self) -> bool:
        return self._closing is not None

    async def close(self) -> None:
        """Publishes everything, then closes; what still waits then gets LedgerError.

        The disk is waited for in a thread, so the loop goes on. May be called again, and
        from several tasks; cancelling a caller does not stop the closing.
        """
        if self._closing is None:
            self._closing = self._loop.create_task(self._close())
        await asyncio.shield(self._closing)

    async def _close(self) -> None:
        size = len(self.native)
        try:
            if size:
                await asyncio.wait_for(self.published(size - 1), _CLOSE_SECONDS)
        except (LedgerError, TimeoutError):
            pass  # poisoned, or a disk that does not answer: the native close says so
        self._loop.remove_reader(self._fd)
        self._resolve(self.native.drain())
        try:
            await self._loop.run_in_executor(None, self.native.close)
        finally:
            for waiters in self._waiters.values():
                for future in waiters.take_from(0):
                    future.set_exception(LedgerError("ledger was closed"))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()
