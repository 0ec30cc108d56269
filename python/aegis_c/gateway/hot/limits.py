"""The limits stage: how much a caller may use, charged before the call and corrected after it.

Every limit of a call is charged at once, or none is. Tokens and money are reserved by estimate and
settled by what the upstream reports, or, when it reports nothing, by what was handed over. What is
never settled, because the process died, drains by itself; a place among the calls at a time comes
back when the process ends, for the kernel says so (``core/limit/concurrency.h``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from aegis_c import LimitError
from aegis_c.gateway.errors import Refusal, overloaded
from aegis_c.gateway.limits import costs, fields
from aegis_c.gateway.limits.rules import MODEL, RuleBook

if TYPE_CHECKING:
    from collections.abc import Mapping

    from aegis_c import Decision, Reservation
    from aegis_c.gateway.evidence import Call
    from aegis_c.gateway.limits.fields import Field
    from aegis_c.gateway.limits.rules import Cap, LimitsFor, Names, Part, Rules
    from aegis_c.gateway.limits.tables import Tables
    from aegis_c.gateway.settings import Limits as Settings

_KEY_MAX: Final = 256  # characters of a model's name that tell it from others here
#: Output tokens that one answer is expected to have while nothing is known of its model.
FIRST_GUESS: Final = 256
_MOST: Final = 2**63 - 1  # units that an entry and the table can hold
_PATIENCE: Final = 60.0  # seconds to wait, above which clients need not try by themselves
_WHOSE: Final = {
    "key": "this API key",
    "tenant": "this tenant",
    "model": "this model",
    "ip": "this address",
    "total": "this gateway",
}
_NOT_AGAIN: Final = ((b"x-should-retry", b"false"),)


class Held:
    """What one call holds: places, a reservation, and what has become of it."""

    __slots__ = (
        "_answers",
        "_limits",
        "_model",
        "_prices",
        "_prompt",
        "_record",
        "_written",
        "cap",
        "decision",
        "leases",
        "names",
        "reservation",
        "rules",
        "standing",
    )

    def __init__(self, limits: Limits, rules: Rules, names: Names) -> None:
        self.rules = rules
        self.names = names
        self.cap: Cap | None = None  # that refused it
        self.leases: list[int] = []
        self.reservation: Reservation | None = None  # to be settled
        self.decision: Decision | None = None
        self.standing = False  # nobody will ever know what was used: it stays as reserved
        self._limits = limits
        self._model = names[MODEL]
        self._prompt = 0
        self._answers = 1
        self._prices: tuple[int, int] | None = None
        self._written = 0
        self._record: dict[str, Any] = {}

    def headers(self) -> list[Field]:
        """The fields of the reply that tell the caller its limits."""
        if self.decision is not None:
            return fields.state(self.rules, self.decision)
        if self.cap is not None:
            return [self.rules.policy, fields.free(self.cap, 0)]
        return self._limits.peek(self.rules, self.names)

    def weigh(self, document: dict[str, Any]) -> tuple[int, int]:
        """(tokens, money) to reserve for a request. Raises Refusal when money cannot be told."""
        limits = self._limits
        self._prompt = prompt = costs.prompt_tokens(document)
        self._answers = answers = costs.answers(document)
        asked = costs.output_maximum(document)
        most = asked or limits.longest(self._model)
        likely = most
        if not limits.reserve_all:
            likely = min(most, limits.expected.tokens(self._model) or FIRST_GUESS)
        money = 0
        if self.rules.budgets:
            self._prices = limits.prices.of(self._model)
            if self._prices is None:
                raise Refusal(
                    403,
                    "model_not_priced",
                    "A budget limits this call, but no price is known for this model. Ask for "
                    "another model, or ask the operator for its price.",
                    stage="limits",
                    param="model",
                    headers=_NOT_AGAIN,
                )
            money = costs.price(self._prices, prompt, most * answers)
        return prompt + likely * answers, money

    # -- what becomes of it ------------------------------------------------------------------

    def handed(self, piece: bytes) -> None:
        """A piece of a stream has been handed to the caller."""
        if self.rules.weighs:
            self._written += costs.written_octets(piece)

    def answered(self, status: int, usage: Mapping[str, int] | None, reply: bytes) -> None:
        """The upstream has answered in one piece.

        A failure of the upstream's own (5xx) costs nothing; another error costs the request.
        """
        used = costs.reported(usage)
        if used is None and status < 400 and self.rules.weighs:
            used = self._prompt, costs.written_tokens(costs.written_octets(reply))
        self._settle(0 if status >= 500 and used is None else 1, used, whole=status < 400)

    def ended(self, how: str, usage: Mapping[str, int] | None) -> None:
        """A stream has ended as its settle entry says; charged is what was delivered."""
        delivered = costs.written_tokens(self._written)
        used = costs.reported(usage)
        if used is None:
            used = self._prompt, delivered
        elif how != "done":  # the upstream's last word may be older than the last event
            used = used[0], max(used[1], delivered)
        if how not in ("done", "client_gone") and not self._written and usage is None:
            self._settle(0, None, whole=False)
        else:
            self._settle(1, used, whole=how == "done")

    def release(self) -> None:
        """The call is over: places back; what was reserved and not settled too, unless standing."""
        for lease in self.leases:
            self._limits.calls.leave(lease)
        self.leases.clear()
        if not self.standing:
            self._settle(0, None, whole=False)

    def _settle(self, requests: int, used: tuple[int, int] | None, *, whole: bool) -> None:
        reservation, self.reservation = self.reservation, None
        if reservation is None:
            return
        rules = self.rules
        if requests == 1 and not rules.weighs:
            return  # as reserved
        prompt, output = used or (0, 0)
        tokens = min(prompt + output, _MOST)
        money = 0
        if self._prices is not None:
            money = min(costs.price(self._prices, prompt, output), _MOST)
        assert rules.plan is not None
        rules.plan.settle(reservation, rules.costs((requests, tokens, money)))
        if rules.weighs:
            self._record["used_tokens"] = tokens
            if self._prices is not None:
                self._record["used_nano"] = money
            if whole and used is not None:
                self._limits.expected.observe(self._model, output // self._answers)
            self._limits.count(reserved=0, used=tokens)

    def record(self, decision: Decision, tokens: int, money: int) -> dict[str, Any]:
        """The ``limits`` member of the call's entries; settling adds to it."""
        record = self._record
        record["limit"] = decision.name
        record["remaining"] = decision.remaining
        if self.rules.weighs:
            record["reserved_tokens"] = tokens
            if self._prices is not None:
                record["reserved_nano"] = money
        return record


class Limits:
    """The stage; built once, used from one event loop."""

    def __init__(
        self,
        settings: Settings,
        tables: Tables,
        limits_for: LimitsFor,
        *,
        before: Limits | None = None,
    ) -> None:
        """``before`` is what this one replaces: what it has learnt and counted goes on."""
        self.tables = tables
        self.calls = tables.calls
        self.prices = costs.Prices(settings)
        self.reserve_all = settings.reserve == "max"
        self.expected = costs.Expected()
        self.refused: dict[str, int] = {}  # calls by the limit that refused them
        self.tokens: dict[str, int] = {"reserved": 0, "used": 0}
        self.not_charged: int = 0  # calls that passed because the table was full
        if before is not None:
            self.expected, self.refused = before.expected, before.refused
            self.tokens = before.tokens
            self.not_charged = before.not_charged
        self._rules = RuleBook(tables.rates, settings, limits_for)
        self._allow_when_full = settings.when_full == "allow"
        self._max_output = settings.max_output
        self._longest = {
            name: model.max_output
            for name, model in settings.models.items()
            if model.max_output is not None
        }

    def longest(self, model: str) -> int:
        """Tokens that an answer of ``model`` has at most when its caller sets no maximum."""
        return self._longest.get(model, self._max_output)

    def count(self, *, reserved: int, used: int) -> None:
        """For the metrics."""
        self.tokens["reserved"] += reserved
        self.tokens["used"] += used

    def enter(self, call: Call, document: dict[str, Any]) -> None:
        """Charge every limit of ``call``, or none. Raises Refusal (403, 429, 503).

        From here on ``call.held`` is to be released, whatever becomes of the call.
        """
        rules = self._rules.of(call.principal, call.model)
        if rules is None:
            return
        names = _names(call)
        held = call.held = Held(self, rules, names)
        for cap in rules.caps:
            lease = self.calls.enter(_place(cap, names), cap.limit)
            if not lease:
                held.cap = cap
                raise self._busy(call, cap)
            held.leases.append(lease)
        if rules.plan is not None:
            tokens, money = held.weigh(document) if rules.weighs else (0, 0)
            units = rules.costs((1, tokens, money))
            try:
                reservation = rules.plan.reserve(rules.keys(names), units)
            except LimitError:
                held.decision = rules.plan.acquire(rules.keys(names), 0)
                raise self._never(call, rules, units) from None
            decision = reservation.decision
            held.decision = decision
            if decision.allowed:
                held.reservation = reservation
                call.limits = held.record(decision, tokens, money)
                if rules.weighs:
                    self.count(reserved=tokens, used=0)
            elif any(one.full for one in decision.each):
                self._full()
            else:
                raise self._exhausted(call, rules, decision, units)

    def headers(self, call: Call) -> list[Field]:
        """The fields of a reply; of one refused before this stage, they tell and charge nothing."""
        if call.held is not None:
            return call.held.headers()
        rules = self._rules.of(call.principal, call.model)
        if rules is None:
            return []
        return self.peek(rules, _names(call))

    def peek(self, rules: Rules, names: Names) -> list[Field]:
        """The fields of a call that was not charged."""
        if rules.plan is not None:
            return fields.state(rules, rules.plan.acquire(rules.keys(names), 0))
        left = [cap.limit - self.calls.count(_place(cap, names)) for cap in rules.caps]
        least = min(range(len(left)), key=left.__getitem__)
        return [rules.policy, fields.free(rules.caps[least], max(0, left[least]))]

    # -- refusals ----------------------------------------------------------------------------

    def _refuse(self, call: Call, name: str, **more: int) -> None:
        self.refused[name] = self.refused.get(name, 0) + 1
        call.limits = {"limit": name, **more}

    def _busy(self, call: Call, cap: Cap) -> Refusal:
        self._refuse(call, cap.name, remaining=0)
        return Refusal(
            429,
            "concurrency_limit_exceeded",
            f"Too many calls at a time: {_WHOSE[cap.scope]} may have {cap.limit} under way. "
            "Try again when one has ended.",
            stage="limits",
            type="requests",
            headers=fields.retry(1.0),
        )

    def _exhausted(
        self, call: Call, rules: Rules, decision: Decision, units: tuple[int, ...]
    ) -> Refusal:
        part = rules.by_name[decision.name]
        wait = decision.retry_after
        self._refuse(call, part.name, remaining=decision.remaining, retry_after_ms=int(wait * 1000))
        asked = units[rules.parts.index(part)]
        return Refusal(
            429,
            _code(part),
            f"Limit reached for {_what(part)}: at most {fields.shown(part, part.burst)} at once, "
            f"{fields.shown(part, decision.remaining)} remaining, this call needs "
            f"{fields.shown(part, asked)}. Try again in {fields.duration(wait)}.",
            stage="limits",
            type=_type(part),
            headers=fields.retry(wait) + (_NOT_AGAIN if wait > _PATIENCE else ()),
        )

    def _never(self, call: Call, rules: Rules, units: tuple[int, ...]) -> Refusal:
        part, asked = next(
            (part, unit) for part, unit in zip(rules.parts, units, strict=True) if unit > part.burst
        )
        self._refuse(call, part.name)
        return Refusal(
            429,
            _code(part),
            f"This call can never pass the limit for {_what(part)}: it needs "
            f"{fields.shown(part, asked)}, and at most {fields.shown(part, part.burst)} fit at "
            "once. Shorten the prompt, or set a smaller maximum of output tokens.",
            stage="limits",
            type=_type(part),
            headers=_NOT_AGAIN,
        )

    def _full(self) -> None:
        """The table has no slot for a key of this call."""
        if self._allow_when_full:
            self.not_charged += 1
            return
        raise overloaded(
            "The gateway's table of limits is full; the call was not charged and not forwarded. "
            "Try again later.",
            code="limits_full",
        )


def _place(cap: Cap, names: Names) -> str:
    """The key of a bound of calls at a time."""
    return f"{cap.scope}\0{names[cap.place]}"


def _names(call: Call) -> Names:
    """What a call's buckets are named by, in the order of SCOPES."""
    model = call.model or ""
    if len(model) > _KEY_MAX:
        model = model[:_KEY_MAX]
    principal = call.principal
    if principal is None:
        return "", "", model, call.source, ""
    return principal.key, principal.tenant, model, call.source, ""


def _what(part: Part) -> str:
    money = " (in millionths)" if part.kind == "budget" else ""
    return f"{part.kind}{money} per {part.period} of {_WHOSE[part.scope]}"


def _code(part: Part) -> str:
    return "insufficient_quota" if part.kind == "budget" else "rate_limit_exceeded"


def _type(part: Part) -> str:
    return "insufficient_quota" if part.kind == "budget" else part.kind
