"""The upstreams behind one gateway: which one serves a call.

Targets of the lowest tier serve, in proportion to their weights and evenly spread (smooth weighted
round robin); those of the next tier serve while none before them can. A target can serve a call
when it has the model and its breaker lets the call pass.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from fnmatch import translate
from typing import TYPE_CHECKING

from aegis_c.gateway.hot.breaker import Breaker
from aegis_c.gateway.hot.pool import Pool

if TYPE_CHECKING:
    from aegis_c.gateway.upstream_settings import Upstream


class Target:
    """One upstream: its connections, its breaker, its share."""

    def __init__(
        self, name: str, pool: Pool, breaker: Breaker, weight: int, tier: int, models: Sequence[str]
    ) -> None:
        self.name = name
        self.pool = pool
        self.breaker = breaker
        self.weight = weight
        self.tier = tier
        self.credit = 0
        self._models = None if "*" in models else re.compile("|".join(translate(m) for m in models))
        self._heads: dict[bytes, bytes] = {}

    def serves(self, model: str | None) -> bool:
        """True when the target has the model; None is a call that names none."""
        return self._models is None or model is None or self._models.match(model) is not None

    def head(self, path: bytes) -> bytes:
        """The unchanging part of a POST to one of the program's own paths."""
        head = self._heads.get(path)
        if head is None:
            head = self._heads[path] = self.pool.request_head(b"POST", path)
        return head


class Targets:
    """All targets; made inside a running loop, used from that loop alone."""

    def __init__(self, targets: Sequence[Target]) -> None:
        self.all = tuple(targets)
        self.pausing = 0  # calls between two attempts
        tiers = sorted({target.tier for target in targets})
        self._tiers = [[t for t in targets if t.tier == tier] for tier in tiers]
        self._only = targets[0] if len(targets) == 1 and targets[0].serves("") else None

    @classmethod
    def of(cls, settings: Upstream) -> Targets:
        """The targets that the settings name. Raises ValueError, OSError."""
        if not settings.targets:
            return cls(
                [Target(settings.name, Pool(settings), Breaker(settings.breaker), 1, 0, ("*",))]
            )
        return cls(
            [
                Target(
                    target.name,
                    Pool(settings.of(target)),
                    Breaker(settings.breaker),
                    target.weight,
                    target.tier,
                    target.models,
                )
                for target in settings.targets
            ]
        )

    def choose(
        self, model: str | None, now: float, tried: Collection[Target] = ()
    ) -> Target | None:
        """The target whose turn it is, or None when nobody but those ``tried`` can serve."""
        only = self._only
        if only is not None:
            return only if only not in tried and only.breaker.ready(now) else None
        for tier in self._tiers:
            ready = [t for t in tier if t not in tried and t.serves(model) and t.breaker.ready(now)]
            if ready:
                return take_turn(ready)
        return None

    def serves(self, model: str | None) -> bool:
        """True when any target has the model."""
        return any(target.serves(model) for target in self.all)

    def wait(self, model: str | None, now: float) -> float:
        """Seconds until a target that has the model may be asked again."""
        return min(t.breaker.wait(now) for t in self.all if t.serves(model))

    def stats(self) -> dict[str, int]:
        """Connections of all pools in use, idle, and calls that wait for one or to ask again."""
        total = {"busy": 0, "idle": 0, "waiting": self.pausing}
        for target in self.all:
            for state, count in target.pool.stats().items():
                total[state] += count
        return total

    def resent(self) -> int:
        """Requests sent a second time because a kept connection was closed."""
        return sum(target.pool.retries for target in self.all)

    def close(self) -> None:
        """Close every connection; running exchanges end with an error."""
        for target in self.all:
            target.pool.close()


def take_turn(ready: Sequence[Target]) -> Target:
    """Smooth weighted round robin: each earns its weight, whoever has most serves and pays all."""
    best = ready[0]
    earned = 0
    for target in ready:
        target.credit += target.weight
        earned += target.weight
        if target.credit > best.credit:
            best = target
    best.credit -= earned
    return best
