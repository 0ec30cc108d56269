"""What the ledger is told: one entry for every call, refusal and stream.

An entry's members and their order are in ``docs/formats.md``; this file builds the JSON text
without ``request`` and ``response``, which the native ledger appends. Every string from outside is
capped, so that no input can make an entry larger than ``ENTRY_MAX`` bytes: the hot path admits a
call only while the ring has room for that much.
"""

from __future__ import annotations

import base64
import hashlib
import json
import logging
import os
import time
from collections import deque
from typing import TYPE_CHECKING, Any, Final, Literal

import msgspec

from aegis_c import AegisError
from aegis_c.gateway.hot.phases import Phases
from aegis_c.gateway.settings import ENTRY_MAX

if TYPE_CHECKING:
    from collections.abc import Callable

    from aegis_c import Commitment
    from aegis_c.gateway.hot.auth import Principal
    from aegis_c.gateway.hot.limits import Held
    from aegis_c.ledger import AsyncLedger

log = logging.getLogger("aegis_c.gateway.evidence")

CAP: Final = 256  # bytes of UTF-8 of one string from outside
CAP_ESCAPED: Final = 384  # bytes that it may take in JSON
_SOURCES_MAX: Final = 4096  # source addresses whose rejection rate is followed one by one
_BURST: Final = 5.0  # seconds' worth of rejections that may come at once
_LATE_MAX: Final = 4096  # entries that wait for a ledger that cannot take them
_LOG_EVERY: Final = 5.0  # seconds between two lines about entries that could not be recorded

_VARIANT: Final = {digit: "89ab"[i % 4] for i, digit in enumerate("0123456789abcdef")}

_encode = msgspec.json.Encoder().encode


class Entry(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One entry's members in their published order; absent ones are left out."""

    v: int
    kind: str
    id: str
    client_id: str | None = None
    client_id_sha256: str | None = None
    of: int | None = None
    event: str | None = None
    session: str | None = None
    session_sha256: str | None = None
    time: str
    tenant: str | None = None
    key: str | None = None
    endpoint: str | None = None
    endpoint_sha256: str | None = None
    model: dict[str, str] | None = None
    provider: str | None = None
    status: int | str | None = None
    usage: dict[str, int] | None = None
    policy: str | None = None
    limits: dict[str, Any] | None = None
    timing: dict[str, int] | None = None
    events: int | None = None
    reason: str | None = None
    stage: str | None = None
    suppressed: int | None = None
    size: int | None = None
    root: str | None = None
    shards: dict[str, Any] | None = None
    analysis: dict[str, Any] | None = None


class Call:
    """What one request is known by while it is served; the stages fill it in."""

    # Defaults of the class: a call sets what it comes to.
    client_id: bytes | None = None
    session: bytes | None = None
    principal: Principal | None = None
    model: str | None = None
    provider: str | None = None  # the target that was asked last
    request: Commitment | bytes | None = None  # the body, once it has been read
    admitted = False  # from here on there is room for its entries
    owed = 0  # entries it may still make
    intent: int | None = None  # index of its intent, once there is one
    recorded = False  # the entry of its outcome was made: no rejection need follow
    replied = False  # the head of its reply may have gone: it gets no other
    refused = 0  # the status of its rejection
    entry: bytes | None = None  # `<origin>/<index>` of an entry known to be durable
    upstream_ns = 0
    first_ns = 0  # from its start until the first event of its stream was handed over
    answered: str | None = None  # the model that the provider names
    usage: dict[str, int] | None = None  # what the provider reported
    index: int | None = None  # of the entry of its outcome
    outcome: str | None = None  # how its stream ended, or why it was refused
    held: Held | None = None  # of its limits
    limits: dict[str, Any] | None = None  # what its entries say of them

    def __init__(self, endpoint: str, source: str) -> None:
        self.id = uuid7()
        self.endpoint = endpoint
        self.source = source
        self.started = time.perf_counter_ns()
        self.phases = Phases(self.started)


class Evidence:
    """Builds and submits entries; used from the event loop alone.

    Methods return the entry's index, or None when it could not be recorded: the gap is logged and
    counted, and with ``refuses`` a reply that can still be withheld must be. What happened all the
    same is recorded as soon as the ledger is back.
    """

    def __init__(
        self,
        ledger: AsyncLedger,
        *,
        policy: str,
        refuse_on_failure: bool,
        rejections_per_source: float,
        rejections_total: float,
        reserved: Callable[[], int],
    ) -> None:
        """``reserved()`` is the ring space, in bytes, that admitted calls may still need."""
        self._ledger = ledger
        self._reserved = reserved
        self.use(
            policy=policy,
            refuse_on_failure=refuse_on_failure,
            rejections_per_source=rejections_per_source,
            rejections_total=rejections_total,
        )
        self._sources: dict[str, float] = {}
        self._total_at = 0.0
        self._suppressed = 0
        self._next_log = 0.0
        self._late: deque[tuple[Entry, Commitment | None, Commitment | None]] = deque()
        self.gaps = 0  # entries that could not be recorded when they were made
        self.late = 0  # those of them that were recorded later
        self.suppressed_total = 0  # rejections counted instead of recorded
        self.submitted: dict[str, int] = {}  # entries by kind

    def use(
        self,
        *,
        policy: str,
        refuse_on_failure: bool,
        rejections_per_source: float,
        rejections_total: float,
    ) -> None:
        """Entries from now on are made under these settings."""
        self._policy = policy
        self.refuses = refuse_on_failure
        self._per_source = 1.0 / rejections_per_source
        self._total = 1.0 / rejections_total

    # -- the kinds ---------------------------------------------------------------------------

    def call(
        self,
        call: Call,
        status: int,
        response: bytes,
        *,
        answered: str | None = None,
        usage: dict[str, int] | None = None,
    ) -> int | None:
        """A plain call that the upstream answered with ``status``; ``response`` goes out."""
        entry = self._entry("call", call)
        entry.status = status
        entry.usage = call.usage = usage
        call.answered = answered
        entry.provider = call.provider
        entry.timing = _timing(call)
        _set_model(entry, call.model, answered)
        call.index = self._submit(entry, call.request, response, keep=not self.refuses)
        return call.index

    def intent(self, call: Call, status: int | None) -> int | None:
        """A stream is about to begin, or (in write-ahead mode, no ``status`` yet) any call."""
        entry = self._entry("intent", call)
        entry.status = status
        entry.provider = call.provider
        entry.timing = _timing(call)
        _set_model(entry, call.model, None)
        return self._submit(entry, call.request, None, keep=not self.refuses)

    def settle(
        self,
        call: Call,
        status: str | int,
        response: Commitment | bytes | None,
        *,
        events: int | None = None,
        answered: str | None = None,
        usage: dict[str, int] | None = None,
    ) -> int | None:
        """What an intent led to: a stream that ended somehow, or one reply with its status.

        ``response`` is what was really delivered, or the plain reply that goes out.
        """
        entry = self._entry("settle", call)
        entry.of = call.intent
        entry.status = status
        entry.usage = call.usage = usage
        call.answered = answered
        entry.events = events
        entry.provider = call.provider
        entry.timing = _timing(call)
        _set_model(entry, call.model, answered)
        withheld = self.refuses and isinstance(response, bytes)
        if isinstance(status, str):
            call.outcome = status
        call.index = self._submit(entry, None, response, keep=not withheld)
        return call.index

    def rejection(
        self, call: Call, *, status: int, reason: str, stage: str, response: bytes | None
    ) -> int | None:
        """A request was refused, or could not be answered; a call with an intent is settled.

        A flood is counted instead of recorded (the next entry carries the count), and so is a
        rejection that would take ring space from admitted calls. An admitted call, which may have
        gone upstream, has room of its own.
        """
        call.outcome = reason
        if not call.owed and not self._may_reject(call):
            self._count()
            return None
        entry = self._entry("rejection" if call.intent is None else "settle", call)
        entry.of = call.intent
        entry.status = status
        entry.reason = reason
        entry.stage = stage
        entry.timing = _timing(call)
        entry.provider = call.provider
        _set_model(entry, call.model, None)
        request = call.request if call.intent is None else None
        call.index = self._submit(entry, request, response, keep=True)
        return call.index

    def analysis(self, call: Call, of: int, analysis: dict[str, Any]) -> int | None:
        """What the background analyser found about the call or settle at index ``of``."""
        entry = self._entry("analysis", call)
        entry.of = of
        entry.analysis = analysis
        return self._submit(entry, None, None, keep=False)

    def admin(
        self,
        event: str,
        *,
        size: int | None = None,
        root: bytes | None = None,
        shards: dict[str, Any] | None = None,
    ) -> int | None:
        """Something happened to the log itself; ``size`` and ``root`` are its tree then.

        ``shards``: the set of shards from now on (event ``shards``). Raises AegisError when it
        cannot be recorded and ``refuses`` is set.
        """
        entry = Entry(
            v=1, kind="admin", id=uuid7(), event=event, time=timestamp(), policy=self._policy
        )
        entry.size = size
        entry.root = None if root is None else base64.b64encode(root).decode()
        entry.shards = shards
        return self._must(entry)

    # -- start and end -----------------------------------------------------------------------

    async def recover(self) -> int:
        """At start: genesis for an empty log, and a settle for every stream left open.

        When what the last run had submitted could not be replayed (power loss, another boot),
        ``restart`` comes first: entries that were never durable may be missing from here on.
        Returns the number of streams that were settled as abandoned. Raises AegisError when that
        cannot be recorded and ``refuses`` is set.
        """
        native = self._ledger.native
        if len(native) == 0:
            self.admin("genesis")
            return 0
        if native.stats()["ring_lost"]:
            size = len(native)
            await self._ledger.integrated(size - 1)
            self.admin("restart", size=size, root=native.root(size))
        abandoned = 0
        for index in native.open_intents():
            await self._ledger.integrated(index)
            intent = json.loads(self._ledger.native.entry(index))
            entry = Entry(
                v=1,
                kind="settle",
                id=intent["id"],
                of=index,
                time=timestamp(),
                tenant=intent.get("tenant"),
                key=intent.get("key"),
                endpoint=intent.get("endpoint"),
                model=intent.get("model"),
                provider=intent.get("provider"),
                status="abandoned",
                policy=self._policy,
            )
            for name in ("client_id", "client_id_sha256", "session", "session_sha256"):
                setattr(entry, name, intent.get(name))
            abandoned += 1
            made = self._must(entry)
            if made is not None and self._ledger.native.room() < 2 * ENTRY_MAX:
                await self._ledger.integrated(made)
        return abandoned

    def flush(self) -> None:
        """At the end: what was kept, and how many rejections were only counted."""
        self._catch_up()
        if self._suppressed:
            try:
                self.admin("suppressed")
            except AegisError as error:
                self._gap("admin", error)

    # -- inside ------------------------------------------------------------------------------

    def _entry(self, kind: str, call: Call) -> Entry:
        entry = Entry(
            v=1,
            kind=kind,
            id=call.id,
            time=timestamp(),
            policy=self._policy,
        )
        entry.endpoint, entry.endpoint_sha256 = cap(call.endpoint)
        if call.client_id is not None:
            entry.client_id, entry.client_id_sha256 = cap(call.client_id.decode("latin-1"))
        if call.session is not None:
            entry.session, entry.session_sha256 = cap(call.session.decode("latin-1"))
        principal = call.principal
        if principal is not None:
            entry.tenant = principal.tenant
            entry.key = principal.key
        if kind != "analysis":
            entry.limits = call.limits
        return entry

    def _submit(
        self,
        entry: Entry,
        request: Commitment | bytes | None,
        response: Commitment | bytes | None,
        *,
        keep: bool,
    ) -> int | None:
        """None when the ledger cannot take it; ``keep``: it happened, so it is recorded later."""
        try:
            return self._append(entry, request, response)
        except AegisError as error:
            self._gap(entry.kind, error)
            if keep:
                self._keep(entry, request, response)
            return None

    def _must(self, entry: Entry) -> int | None:
        """Submit what the log should not go on without."""
        if self.refuses:
            return self._append(entry, None, None)
        return self._submit(entry, None, None, keep=True)

    def _append(
        self,
        entry: Entry,
        request: Commitment | bytes | None,
        response: Commitment | bytes | None,
    ) -> int:
        if self._late:
            self._catch_up()
        suppressed = self._suppressed
        entry.suppressed = suppressed or None
        index = self._ledger.submit(_encode(entry), request, response)
        self._suppressed -= suppressed
        self.submitted[entry.kind] = self.submitted.get(entry.kind, 0) + 1
        return index

    def _keep(
        self,
        entry: Entry,
        request: Commitment | bytes | None,
        response: Commitment | bytes | None,
    ) -> None:
        """Hold an entry, without bodies, until the ledger is back; bounded."""
        entry.suppressed = None
        try:
            kept = (
                entry,
                self._commitment(entry.id, "request", request),
                self._commitment(entry.id, "response", response),
            )
        except AegisError:  # the ledger is closed: nothing can be recorded any more
            return
        if len(self._late) < _LATE_MAX:
            self._late.append(kept)
        elif entry.kind == "rejection":
            self._count()

    def _commitment(
        self, name: str, role: Literal["request", "response"], body: Commitment | bytes | None
    ) -> Commitment | None:
        if not isinstance(body, bytes):
            return body
        commitment = self._ledger.native.commitment(name, role)
        commitment.update(body)
        return commitment

    def _catch_up(self) -> None:
        """Record what was kept, oldest first, as far as it takes no room from calls."""
        native = self._ledger.native
        try:
            while (
                self._late
                and native.poisoned is None
                and native.room() >= self._reserved() + 2 * ENTRY_MAX
            ):
                entry, request, response = self._late[0]
                self._ledger.submit(_encode(entry), request, response)
                self._late.popleft()
                self.late += 1
                self.submitted[entry.kind] = self.submitted.get(entry.kind, 0) + 1
        except AegisError:  # not yet, or (closed) never
            return

    def _count(self) -> None:
        self._suppressed += 1
        self.suppressed_total += 1

    def _gap(self, kind: str, error: AegisError) -> None:
        self.gaps += 1
        now = time.monotonic()
        if now >= self._next_log:  # one line in a while: a dead ledger must not fill the log
            self._next_log = now + _LOG_EVERY
            log.error(
                "the ledger could not record an entry of kind %r (%d so far): %s",
                kind,
                self.gaps,
                error,
            )

    def _may_reject(self, call: Call) -> bool:
        """Two rates (GCRA: one theoretical arrival time each), and room beyond what calls need."""
        source = call.source
        now = time.monotonic()
        total_at = max(self._total_at, now)
        if total_at - now > _BURST:
            return False
        source_at = max(self._sources.get(source, 0.0), now)
        if source_at - now > _BURST:
            return False
        if source not in self._sources and len(self._sources) >= _SOURCES_MAX:
            self._sources = {s: at for s, at in self._sources.items() if at > now}
            if len(self._sources) >= _SOURCES_MAX:
                return False
        if self._ledger.native.room() < self._reserved() + ENTRY_MAX:
            return False
        self._sources[source] = source_at + self._per_source
        self._total_at = total_at + self._total
        return True


def cap(text: str) -> tuple[str, str | None]:
    """``text`` cut to CAP bytes of UTF-8, and, when it was cut, the SHA-256 of the whole (hex).

    A text of many characters that JSON must escape is cut further, so that the result never takes
    more than CAP_ESCAPED bytes of an entry, quotes not counted.
    """
    if len(text) <= CAP_ESCAPED // 2 and text.isascii() and text.isprintable():
        return text, None
    whole = text.encode("utf-8", "replace")
    kept = whole[:CAP].decode("utf-8", "ignore")
    while (size := len(_encode(kept)) - 2) > CAP_ESCAPED:
        kept = kept[: len(kept) * CAP_ESCAPED // size]
    if len(kept.encode("utf-8")) == len(whole):
        return kept, None
    return kept, hashlib.sha256(whole).hexdigest()


def _set_model(entry: Entry, asked: str | None, answered: str | None) -> None:
    model = {}
    if asked is not None:
        model["asked"], digest = cap(asked)
        if digest is not None:
            model["asked_sha256"] = digest
    if answered is not None:
        model["answered"], digest = cap(answered)
        if digest is not None:
            model["answered_sha256"] = digest
    entry.model = model or None


def _timing(call: Call) -> dict[str, int]:
    total = (time.perf_counter_ns() - call.started) // 1000
    if call.upstream_ns:
        return {"upstream_us": call.upstream_ns // 1000, "total_us": total}
    return {"total_us": total}


_BATCH: Final = 256  # ids whose random digits are drawn at a time
_digits: deque[str] = deque()  # 19 hex digits each: popleft() is one step, whatever thread asks
os.register_at_fork(after_in_child=_digits.clear)
_millisecond = (0, "")


def uuid7() -> str:
    """A new UUIDv7 (RFC 9562 section 5.7): 48 bits of Unix milliseconds, 74 random bits."""
    global _millisecond
    now = time.time_ns() // 1_000_000
    known, head = _millisecond
    if now != known:
        digits = f"{now:012x}"
        head = f"{digits[:8]}-{digits[8:]}-7"
        _millisecond = (now, head)
    try:
        r = _digits.popleft()
    except IndexError:
        drawn = os.urandom(10 * _BATCH).hex()
        _digits.extend(drawn[i : i + 19] for i in range(20, len(drawn), 20))
        r = drawn[:19]
    return f"{head}{r[:3]}-{_VARIANT[r[3]]}{r[4:7]}-{r[7:]}"


_second = 0
_second_text = ""


def timestamp() -> str:
    """Now, UTC, as ISO 8601 with microseconds: ``2026-01-02T03:04:05.123456Z``."""
    global _second, _second_text
    second, nanoseconds = divmod(time.time_ns(), 1_000_000_000)
    if second != _second:
        _second_text = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
        _second = second
    return f"{_second_text}.{nanoseconds // 1000:06d}Z"
