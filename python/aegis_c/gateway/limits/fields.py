"""Header fields that tell a caller its limits.

``RateLimit`` and ``RateLimit-Policy`` are structured fields (RFC 9651) in the form of the IETF's
draft-ietf-httpapi-ratelimit-headers; the ``x-ratelimit-*`` ones are those that OpenAI sends.
"""

from __future__ import annotations

from math import ceil
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aegis_c import Decision
    from aegis_c.gateway.limits.rules import Cap, Part, Rules

Field = tuple[bytes, bytes]

_UNITS: Final = {"requests": "", "tokens": ';qu="tokens"', "budget": ';qu="micro-money"'}
_MICRO: Final = 1000  # billionths


def duration(seconds: float) -> str:
    """As OpenAI writes it, rounded up: ``0s``, ``20ms``, ``7.66s``, ``6m0s``, ``26h3m10s``."""
    milliseconds = ceil(seconds * 1000 - 1e-6)
    if milliseconds <= 0:
        return "0s"
    if milliseconds < 1000:
        return f"{milliseconds}ms"
    if milliseconds < 60_000:
        return f"{milliseconds / 1000:g}s"
    whole = -(-milliseconds // 1000)
    if whole < 3600:
        return f"{whole // 60}m{whole % 60}s"
    return f"{whole // 3600}h{whole // 60 % 60}m{whole % 60}s"


def policy(parts: tuple[Part, ...], caps: tuple[Cap, ...]) -> Field:
    """The ``RateLimit-Policy`` field: a quota of ``q`` units that comes back within ``w`` s."""
    items = [
        f'"{part.name}";q={shown(part, part.burst)}{_UNITS[part.kind]};w={part.window}'
        for part in parts
    ]
    items += [f'"{cap.name}";q={cap.limit};qu="concurrent-requests"' for cap in caps]
    return b"ratelimit-policy", ", ".join(items).encode()


class Kind:
    """OpenAI's three fields for what is counted in one unit, requests or tokens."""

    __slots__ = ("_limits", "_remaining", "_reset", "first", "others")

    def __init__(self, kind: str, places: list[int], parts: Sequence[Part]) -> None:
        """``places`` are those of its parts among all ``parts``."""
        name = f"x-ratelimit-limit-{kind}".encode()
        self._limits = {i: (name, b"%d" % parts[i].burst) for i in places}
        self._remaining = f"x-ratelimit-remaining-{kind}".encode()
        self._reset = f"x-ratelimit-reset-{kind}".encode()
        self.first, *self.others = places

    def fields(self, each: tuple[Decision, ...]) -> tuple[Field, Field, Field]:
        """Those of the part with the smallest share left."""
        place = self.first
        one = each[place]
        for i in self.others:
            other = each[i]
            if other.remaining * one.limit < one.remaining * other.limit:
                place, one = i, other
        return (
            self._limits[place],
            (self._remaining, b"%d" % one.remaining),
            (self._reset, duration(one.reset_after).encode()),
        )


def state(rules: Rules, decision: Decision) -> list[Field]:
    """The fields of a reply: ``RateLimit`` of the most binding limit, OpenAI's of each kind."""
    part = rules.by_name[decision.name]
    left = shown(part, decision.remaining)
    binding = f'"{part.name}";r={left};t={ceil(decision.reset_after)}'
    fields = [rules.policy, (b"ratelimit", binding.encode())]
    each = decision.each
    for kind in rules.kinds:
        fields += kind.fields(each)
    return fields


def free(cap: Cap, places: int) -> Field:
    """The ``RateLimit`` field of a bound of calls at a time."""
    return b"ratelimit", f'"{cap.name}";r={places}'.encode()


def retry(seconds: float) -> tuple[Field, ...]:
    """When to try again, as a refusal says it."""
    milliseconds = max(1, ceil(seconds * 1000 - 1e-6))
    return (
        (b"retry-after", b"%d" % -(-milliseconds // 1000)),
        (b"retry-after-ms", b"%d" % milliseconds),
    )


def shown(part: Part, units: int) -> int:
    """Units as callers see them: money in millionths, for a field has only 15 digits."""
    return units // _MICRO if part.kind == "budget" else units
