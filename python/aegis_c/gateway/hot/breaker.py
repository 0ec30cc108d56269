"""A circuit breaker: a target that fails is left alone for a while, then tried with one call.

Closed: calls pass and their outcomes are counted over a sliding window; at ``failure_rate`` of at
least ``min_calls`` it opens. Open: nothing passes for a while that doubles each time in a row.
Half-open: one call passes; its outcome closes or opens the breaker, and the rest waits for it.

Outcomes belong to the period in which their call began, so that a straggler from before the
breaker opened cannot close it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from aegis_c.gateway.upstream_settings import Breaker as Settings

SLOTS: Final = 10  # parts of the window; it slides by one of them

CLOSED: Final = "closed"
HALF_OPEN: Final = "half-open"
OPEN: Final = "open"


class Breaker:
    """The breaker of one target; every method takes the time, in seconds of one clock."""

    __slots__ = (
        "_calls",
        "_enabled",
        "_failures",
        "_in_row",
        "_min_calls",
        "_open_for",
        "_open_max",
        "_period",
        "_rate",
        "_slot",
        "_slot_seconds",
        "_until",
        "opened",
        "trying",
    )

    def __init__(self, settings: Settings) -> None:
        self._enabled = settings.enabled
        self._min_calls = settings.min_calls
        self._rate = settings.failure_rate
        self._open_for = settings.open_for
        self._open_max = settings.open_max
        self._slot_seconds = settings.window / SLOTS
        self._slot = 0
        self._calls = [0] * SLOTS
        self._failures = [0] * SLOTS
        self._period = 0  # grows with every change between closed, open and half-open
        self._until: float | None = None  # when an open breaker may be tried; None: closed
        self.trying = False  # half-open, and its one call is under way
        self._in_row = 0  # times that it opened without closing in between
        self.opened = 0  # times that it opened

    def state(self, now: float) -> str:
        """One of closed, half-open, open."""
        if self._until is None:
            return CLOSED
        return HALF_OPEN if self.trying or now >= self._until else OPEN

    def ready(self, now: float) -> bool:
        """True when a call may pass."""
        return self._until is None or (not self.trying and now >= self._until)

    def wait(self, now: float) -> float:
        """Seconds until a call may pass, as far as the clock decides that."""
        return 0.0 if self._until is None else max(0.0, self._until - now)

    def enter(self) -> int:
        """A call passes, which ready() allowed. Returns its period, for what comes after."""
        if self._until is not None:
            self.trying = True
        return self._period

    def leave(self, period: int) -> None:
        """A call ended that says nothing of its target: its caller left, say."""
        if period == self._period:
            self.trying = False

    def succeeded(self, period: int, now: float) -> None:
        """The target answered a call."""
        if period != self._period or not self._enabled:
            return
        if self._until is not None:
            self._change(None)
            self._in_row = 0
            self._calls = [0] * SLOTS
            self._failures = [0] * SLOTS
        self._calls[self._now(now)] += 1

    def failed(self, period: int, now: float) -> None:
        """The target failed a call."""
        if period != self._period or not self._enabled:
            return
        if self._until is not None:
            self._open(now)
            return
        slot = self._now(now)
        self._calls[slot] += 1
        self._failures[slot] += 1
        calls = sum(self._calls)
        if calls >= self._min_calls and sum(self._failures) >= self._rate * calls:
            self._open(now)

    def _open(self, now: float) -> None:
        self._change(now + min(self._open_max, self._open_for * 2.0 ** min(self._in_row, 30)))
        self._in_row += 1
        self.opened += 1

    def _change(self, until: float | None) -> None:
        self._until = until
        self.trying = False
        self._period += 1

    def _now(self, now: float) -> int:
        """The place of the present slot; those that the window has left are emptied."""
        slot = int(now / self._slot_seconds)
        if slot != self._slot:
            for gone in range(self._slot + 1, min(slot, self._slot + SLOTS) + 1):
                self._calls[gone % SLOTS] = self._failures[gone % SLOTS] = 0
            self._slot = slot
        return slot % SLOTS
