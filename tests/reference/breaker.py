"""Slow twins of the choice of an upstream: a circuit breaker, and turns by weight.

They keep every event and every turn ever taken and count again each time.
"""

from __future__ import annotations

from fractions import Fraction
from math import floor

SLOTS = 10


class SlowBreaker:
    """States by name; a list of all outcomes since the last change."""

    def __init__(
        self, window: float, min_calls: int, rate: float, open_for: float, open_max: float
    ) -> None:
        self.slot = window / SLOTS
        self.min_calls = min_calls
        self.rate = rate
        self.open_for = open_for
        self.open_max = open_max
        self.name = "closed"
        self.until = 0.0
        self.row = 0
        self.trial: object | None = None
        self.period = 0
        self.outcomes: list[tuple[int, bool]] = []

    def ready(self, now: float) -> bool:
        if self.name == "closed":
            return True
        return self.trial is None and now >= self.until

    def enter(self) -> tuple[int, object]:
        ticket = (self.period, object())
        if self.name == "open":
            self.trial = ticket
        return ticket

    def outcome(self, ticket: tuple[int, object], ok: bool | None, now: float) -> None:
        if ticket[0] != self.period:
            return
        if ok is None:
            self.trial = None
        elif self.name == "open":
            if ok:
                self.change("closed")
                self.row = 0
                self.outcomes = [(floor(now / self.slot), True)]
            else:
                self.open(now)
        else:
            self.outcomes.append((floor(now / self.slot), ok))
            if not ok:
                seen = [o for at, o in self.outcomes if at > floor(now / self.slot) - SLOTS]
                bad = seen.count(False)
                if len(seen) >= self.min_calls and bad >= self.rate * len(seen):
                    self.open(now)

    def open(self, now: float) -> None:
        self.change("open")
        wait = self.open_for
        for _ in range(self.row):
            wait = min(self.open_max, wait * 2)
        self.until = now + min(self.open_max, wait)
        self.row += 1

    def change(self, name: str) -> None:
        self.name = name
        self.trial = None
        self.period += 1
        self.outcomes = []


def slow_turns(weights: list[int], count: int) -> list[int]:
    """Who serves: whoever is furthest behind its share of the turns up to and with this one."""
    served = [0] * len(weights)
    turns = []
    for turn in range(1, count + 1):
        behind = [
            Fraction(turn * w, sum(weights)) - s for w, s in zip(weights, served, strict=True)
        ]
        best = behind.index(max(behind))
        served[best] += 1
        turns.append(best)
    return turns
