"""Slow, clear twins of the limiter, in rational arithmetic. Times are integers of nanoseconds.

``Gcra`` is the algorithm as the native core promises it (increments rounded up to a nanosecond);
``Bucket`` is the ideal leaky bucket without any rounding, which the promise is judged by.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from math import ceil

LEVEL_MAX = 1 << 62


@dataclass
class Gcra:
    """One key of one limit: ``rate`` units per ``per`` ns, ``burst`` units at once."""

    rate: int
    per: int
    burst: int
    tat: int = 0

    @property
    def tolerance(self) -> int:
        return self.increment(self.burst)

    def increment(self, cost: int) -> int:
        return min(ceil(Fraction(cost * self.per, self.rate)), LEVEL_MAX)

    def level(self, now: int) -> int:
        return max(0, self.tat - now)

    def remaining(self, now: int) -> int:
        """Units that fit within as many ns from now as rounding may have cost."""
        if self.level(now) >= self.tolerance:
            return 0
        room = self.tolerance - self.level(now) + min(self.burst, self.increment(1) // 2)
        return min(int(Fraction(room * self.rate, self.per)), self.burst)

    def wait(self, cost: int, now: int) -> int:
        """Nanoseconds until the cost fits; 0 when it fits now."""
        return max(0, self.level(now) + self.increment(max(cost, 1)) - self.tolerance)

    def acquire(self, cost: int, now: int) -> int:
        """The answer of Limit.acquire: units that remain, or minus the wait."""
        if wait := self.wait(cost, now):
            return -wait
        if cost:
            self.tat = now + self.level(now) + self.increment(cost)
        return self.remaining(now)

    def settle(self, cost: int, used: int, then: int, now: int, *, naive: bool = False) -> None:
        """Corrects a charge of ``cost`` at ``then``; ``naive``: all that is unused comes back."""
        charged, due = self.increment(cost), self.increment(used)
        if due > charged:
            level = min(self.level(now) + due - charged, LEVEL_MAX)
            self.tat = now + level
            return
        left = charged if naive else max(0, charged - (now - then))
        self.tat -= min(charged - due, left)


@dataclass
class Bucket:
    """An ideal bucket that drains ``rate`` units per ``per`` ns; what it held is kept."""

    rate: int
    per: int
    charges: list[tuple[int, Fraction]] = field(default_factory=list)

    def charge(self, now: int, units: Fraction | int) -> None:
        self.charges.append((now, Fraction(units)))

    def highest(self) -> Fraction:
        """The highest level that the charges, in order of time, ever reached."""
        level, highest, last = Fraction(0), Fraction(0), 0
        for now, units in sorted(self.charges):
            level = max(Fraction(0), level - Fraction((now - last) * self.rate, self.per))
            level += units
            highest, last = max(highest, level), now
        return highest


def most_admitted(rate: int, per: int, burst: int, passed: int) -> int:
    """Units that any window of ``passed`` ns may admit: the bound that Limit promises."""
    return burst + int(Fraction((passed + 1) * rate, per))


def plan(gcras: Sequence[Gcra], costs: Sequence[int], now: int) -> bool:
    """All or nothing over several limits."""
    if any(g.wait(cost, now) for g, cost in zip(gcras, costs, strict=True)):
        return False
    for g, cost in zip(gcras, costs, strict=True):
        g.acquire(cost, now)
    return True
