"""Room before work: a call is admitted only when it can surely be recorded.

Admission holds three bounds: calls in flight, space in the ledger's ring for every entry that
admitted calls may still make, and the depth of the background queue. A call that finds no room
waits in order of arrival up to a deadline; then it is refused, and nothing has gone upstream.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from aegis_c.gateway.errors import ledger_unavailable, overloaded, shutting_down
from aegis_c.gateway.settings import ENTRY_MAX

_POLL = 0.01  # seconds between looks at the ring while calls wait: its space is freed elsewhere


class Admission:
    """The bounds of one worker; used from its event loop alone."""

    def __init__(
        self,
        *,
        max_in_flight: int,
        deadline: float,
        room: Callable[[], int],
        poisoned: Callable[[], str | None],
        refuse_on_failure: bool,
        background_room: Callable[[], bool],
        background_depth: Callable[[], int],
    ) -> None:
        """``room()`` is the free ring space in bytes, ``poisoned()`` why the ledger is stuck."""
        self._max = max_in_flight
        self._deadline = deadline
        self._room = room
        self._poisoned = poisoned
        self._refuse = refuse_on_failure
        self._background_room = background_room
        self._background_depth = background_depth
        self._owed = 0  # entries that admitted calls may still make
        self._waiting: deque[tuple[asyncio.Future[None], int]] = deque()
        self._poll: asyncio.TimerHandle | None = None
        self.in_flight = 0
        self.closed = False

    def use(self, max_in_flight: int, deadline: float, refuse_on_failure: bool) -> None:
        """Other bounds from now on; calls that are admitted stay so."""
        self._max = max_in_flight
        self._deadline = deadline
        self._refuse = refuse_on_failure
        self._pump()

    def reserved(self) -> int:
        """Bytes of ring that admitted calls and queued analyses may still need."""
        return (self._owed + self._background_depth()) * ENTRY_MAX

    @property
    def waiting(self) -> int:
        """Calls that wait for room."""
        return len(self._waiting)

    async def enter(self, entries: int) -> None:
        """Admit a call that makes up to ``entries`` entries. Raises Refusal (503).

        Every admitted call must leave() with the entries it has not made.
        """
        if not self._waiting and self._fits(entries):
            self._take(entries)
            return
        if self._refuse and self._poisoned() is not None:
            raise ledger_unavailable()
        if self.closed:
            raise shutting_down()
        if self._deadline == 0 or len(self._waiting) >= self._max:
            raise self._refusal()
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((future, entries))
        self._poll_later()
        try:
            async with asyncio.timeout(self._deadline):
                await future
        except BaseException as error:
            if future.done() and not future.cancelled() and future.exception() is None:
                self.leave(entries)  # admitted at the very moment of the timeout
            else:
                self._waiting = deque(item for item in self._waiting if item[0] is not future)
                self._pump()
            if isinstance(error, TimeoutError):
                raise self._refusal() from None
            raise

    def made(self) -> None:
        """An admitted call has made one of its entries."""
        self._owed -= 1

    def leave(self, entries: int) -> None:
        """An admitted call is over and will not make the ``entries`` it still owed."""
        self.in_flight -= 1
        self._owed -= entries
        if self._waiting:
            self._pump()

    def close(self) -> None:
        """Admit nothing any more; who waits is refused."""
        self.closed = True
        for future, _ in self._waiting:
            if not future.done():
                future.set_exception(shutting_down())
        self._waiting.clear()
        if self._poll is not None:
            self._poll.cancel()
            self._poll = None

    def _fits(self, entries: int) -> bool:
        if self.in_flight >= self._max or self.closed or not self._background_room():
            return False
        if self._poisoned() is not None:
            return not self._refuse  # serving with a gap needs no room
        return self._room() >= self.reserved() + entries * ENTRY_MAX

    def _take(self, entries: int) -> None:
        self.in_flight += 1
        self._owed += entries

    def _pump(self) -> None:
        while self._waiting:
            future, entries = self._waiting[0]
            if future.done():
                self._waiting.popleft()
            elif self._fits(entries):
                self._waiting.popleft()
                self._take(entries)
                future.set_result(None)
            else:
                return

    def _poll_later(self) -> None:
        if self._poll is None:
            self._poll = asyncio.get_running_loop().call_later(_POLL, self._on_poll)

    def _on_poll(self) -> None:
        self._poll = None
        self._pump()
        if self._waiting:
            self._poll_later()

    def _refusal(self) -> Exception:
        if self._refuse and self._poisoned() is not None:
            return ledger_unavailable()
        return overloaded(
            f"The gateway has no room for another call; it waited {self._deadline:g} s. "
            "Nothing was sent to the model. Try again later."
        )
