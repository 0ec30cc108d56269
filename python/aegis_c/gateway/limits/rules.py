"""Which limits hold for a caller, as one native plan: all of them pass, or nothing is charged."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from aegis_c.gateway.limits import fields
from aegis_c.gateway.limits_settings import LimitSet

if TYPE_CHECKING:
    from aegis_c import Plan, RateLimiter
    from aegis_c.gateway.hot.auth import Principal
    from aegis_c.gateway.settings import Limits as Settings

#: What a limit counts by, in the order of the names that a call is known by.
SCOPES: Final = ("key", "tenant", "model", "ip", "total")
KINDS: Final = ("requests", "tokens", "budget")
MODEL: Final = SCOPES.index("model")
Names = tuple[str, str, str, str, str]
LimitsFor = Callable[["Principal | None"], Mapping[str, LimitSet]]

_CALLERS_MAX: Final = 4096  # callers and models whose rules are kept at hand


def limits_for(principal: Principal | None, limits: Settings) -> Mapping[str, LimitSet]:
    """The limits of a caller by scope; None: one whom nobody knows. Models have their own."""
    if principal is None:
        return {"ip": limits.ip, "total": limits.total}
    return {
        "key": limits.keys.get(principal.key, limits.key),
        "tenant": limits.tenants.get(principal.tenant, limits.tenant),
        "ip": limits.ip,
        "total": limits.total,
    }


class Part(NamedTuple):
    """One rate: its name in headers, entries and metrics, and what its units are."""

    name: str
    kind: str
    scope: str
    period: str
    burst: int
    window: int  # seconds in which a whole burst comes back


class Cap(NamedTuple):
    """One bound of calls at a time."""

    name: str
    scope: str
    place: int  # of the scope in SCOPES
    limit: int


class Rules:
    """The limits of one caller and model, compiled."""

    __slots__ = (
        "budgets",
        "by_name",
        "caps",
        "costs",
        "keys",
        "kinds",
        "parts",
        "plan",
        "policy",
        "weighs",
    )

    def __init__(self, limiter: RateLimiter, sets: Mapping[str, LimitSet]) -> None:
        parts: list[Part] = []
        native = []
        caps: list[Cap] = []
        for place, scope in enumerate(SCOPES):
            limits = sets.get(scope)
            if limits is None:
                continue
            for kind in KINDS:
                for one in getattr(limits, kind):
                    rate, seconds, burst = one.bucket()
                    name = f"{scope}-{kind}-{one.per}"
                    window = -(-burst * seconds // rate)
                    parts.append(Part(name, kind, scope, one.per, burst, window))
                    native.append(limiter.limit(name, rate=rate, per=float(seconds), burst=burst))
            if limits.concurrency is not None:
                caps.append(Cap(f"{scope}-concurrency", scope, place, limits.concurrency))
        self.plan: Plan | None = limiter.plan(*native) if native else None
        self.parts = tuple(parts)
        self.caps = tuple(caps)
        self.by_name = {part.name: part for part in parts}
        #: From a call's names, in the order of SCOPES, the key of each part.
        self.keys = _pick([SCOPES.index(part.scope) for part in parts])
        #: From units in the order of KINDS, those of each part.
        self.costs = _pick([KINDS.index(part.kind) for part in parts])
        kinds = {part.kind for part in parts}
        self.weighs = not kinds <= {"requests"}
        self.budgets = "budget" in kinds
        self.policy = fields.policy(self.parts, self.caps)
        self.kinds = tuple(
            fields.Kind(kind, [i for i, part in enumerate(parts) if part.kind == kind], parts)
            for kind in ("requests", "tokens")
            if kind in kinds
        )


def _pick(places: list[int]) -> Callable[[tuple[Any, ...]], tuple[Any, ...]]:
    """What takes those places of a tuple, as a tuple."""
    if len(places) == 1:
        only = places[0]
        return itemgetter(slice(only, only + 1))
    return itemgetter(*places) if places else tuple


class RuleBook:
    """Finds the rules of a call; compiles those of a caller and model once."""

    __slots__ = ("_known", "_limiter", "_limits_for", "_model", "_models")

    def __init__(self, limiter: RateLimiter, settings: Settings, limits_for: LimitsFor) -> None:
        self._limiter = limiter
        self._limits_for = limits_for
        self._model = settings.model
        self._models: dict[str, LimitSet] = {
            name: model for name, model in settings.models.items() if model.limits_something()
        }
        self._known: dict[tuple[Principal | None, str | None], Rules | None] = {}

    def of(self, principal: Principal | None, model: str | None) -> Rules | None:
        """The rules of a caller who asks for ``model``; None when nothing limits it."""
        if model is not None and model not in self._models:
            model = ""
        try:
            return self._known[principal, model]
        except KeyError:
            return self._compile(principal, model)

    def _compile(self, principal: Principal | None, model: str | None) -> Rules | None:
        sets = dict(self._limits_for(principal))
        if model is not None:
            sets["model"] = self._models.get(model, self._model)
        some = any(one.limits_something() for one in sets.values())
        rules = Rules(self._limiter, sets) if some else None
        if len(self._known) >= _CALLERS_MAX:
            self._known.clear()
        self._known[principal, model] = rules
        return rules
