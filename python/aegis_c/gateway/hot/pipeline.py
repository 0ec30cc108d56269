"""The hot path of one endpoint: its stages, in the order of the picture.

guard -> auth -> firewall -> limits -> adapter -> forwarder. A plain ASGI callable, built once; a
stage that refuses raises Refusal, which becomes the entry and the reply here and nowhere else.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from starlette.types import Receive, Scope, Send

from aegis_c.gateway.errors import (
    Refusal,
    internal_error,
    ledger_uncertain,
    method_not_allowed,
    shutting_down,
)
from aegis_c.gateway.evidence import Call
from aegis_c.gateway.hot.auth import Auth
from aegis_c.gateway.hot.firewall import Firewall
from aegis_c.gateway.hot.guard import ClientGone, Guard
from aegis_c.gateway.hot.phases import AUTH, BODY, FIREWALL, GUARD, LIMITS, QUEUE
from aegis_c.gateway.hot.reply import add_timing
from aegis_c.gateway.hot.wire import send_reply

if TYPE_CHECKING:
    from aegis_c.gateway.evidence import Evidence
    from aegis_c.gateway.hot.admission import Admission
    from aegis_c.gateway.hot.forwarder import Forwarder
    from aegis_c.gateway.hot.limits import Limits
    from aegis_c.gateway.hot.recording import Recording
    from aegis_c.gateway.hot.source import Source
    from aegis_c.gateway.logs import CallLog
    from aegis_c.gateway.metrics import Metrics
    from aegis_c.gateway.spans import Spans

log = logging.getLogger("aegis_c.gateway.pipeline")

CALL: Final = "aegis.call"  # where a scope holds the Call that it became
CLIENT_CLOSED_REQUEST: Final = 499  # the status in entries of callers that left before an answer
_UNREAD_KEEP: Final = 1 << 20  # bytes of an unread body for which the connection is kept
_LINGER_BYTES: Final = 32 << 20  # bytes of an unread body that are thrown away before closing
_LINGER_SECONDS: Final = 2.0

Examine = Callable[[dict[str, Any]], tuple[str, bool]]


class Refuser:
    """Turns a refusal into its entry, its reply and its count: the one place that does."""

    def __init__(self, evidence: Evidence, metrics: Metrics) -> None:
        self._evidence = evidence
        self._metrics = metrics
        self.limits: Limits | None = None

    def record(self, call: Call, refusal: Refusal, body: bytes | None) -> int | None:
        """Count it and leave its entry; ``body`` is the reply, if there is to be one."""
        call.refused = refusal.status
        self._metrics.rejected(refusal.stage, refusal.code)
        return self._evidence.rejection(
            call,
            status=refusal.status,
            reason=refusal.code,
            stage=refusal.stage,
            response=body,
        )

    def headers(self, call: Call, refusal: Refusal, body: bytes) -> list[tuple[bytes, bytes]]:
        """The reply's headers."""
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            (b"x-request-id", call.id.encode()),
            *refusal.headers,
        ]
        if self.limits is not None:
            headers += self.limits.headers(call)
        if call.entry is not None:
            headers.append((b"aegis-entry", call.entry))
        add_timing(headers, call)
        return headers

    def record_gone(self, call: Call, stage: str) -> None:
        """The caller left before it had an answer."""
        self._evidence.rejection(
            call, status=CLIENT_CLOSED_REQUEST, reason="client_gone", stage=stage, response=None
        )
        self._metrics.rejected(stage, "client_gone")


class Governed:
    """One governed endpoint."""

    def __init__(
        self,
        endpoint: str,
        *,
        source: Source,
        guard: Guard,
        auth: Auth,
        firewall: Firewall,
        limits: Limits | None,
        admission: Admission,
        examine: Examine,
        recording: Recording,
        forwarder: Forwarder,
        refuser: Refuser,
        metrics: Metrics,
        calls: CallLog | None = None,
        spans: Spans | None = None,
    ) -> None:
        self._calls = calls
        self._spans = spans
        self._endpoint = endpoint
        self._source = source
        self._guard = guard
        self._auth = auth
        self._firewall = firewall
        self._limits = limits
        self._admission = admission
        self._examine = examine
        self._recording = recording
        self._forwarder = forwarder
        self._refuser = refuser
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        call = scope[CALL] = Call(self._endpoint, self._source.of(scope))
        phases = call.phases
        head = body = document = None
        status = CLIENT_CLOSED_REQUEST
        try:
            if scope["method"] != "POST":
                raise method_not_allowed(scope["method"], self._endpoint, "POST")
            guard = self._guard
            head = guard.head(scope)
            call.client_id = head.client_id or head.request_id
            call.session = head.session
            phases.end(GUARD)
            call.principal = self._auth.identify(head.authorization, scope)
            phases.end(AUTH)
            guard.body_headers(head)
            body = await guard.body(head, receive)
            phases.end(BODY)
            call.request = body
            document = guard.document(head, body)
            call.model, stream = self._examine(document)
            phases.end(GUARD)
            if self._firewall.active:
                self._judge(call, document)
                phases.end(FIREWALL)
            if self._limits is not None:
                self._limits.enter(call, document)
            phases.end(LIMITS)
            entries = self._recording.entries(stream)
            await self._admission.enter(entries)
            phases.end(QUEUE)
            call.owed = entries
            call.admitted = True
            status = await self._forwarder.run(call, stream, head, body, receive, send)
        except Refusal as refusal:
            status = refusal.status
            unread = 0
            if body is None and head is not None:
                unread = -1 if head.chunked else head.content_length or 0
            await self._refuse(call, refusal, unread, receive, send)
        except (ClientGone, OSError):
            if call.held is not None:
                call.held.standing = call.admitted
            if call.refused:  # its body broke, and the first line said so
                status = call.refused
            elif not call.recorded:
                self._refuser.record_gone(call, "upstream" if call.admitted else "body")
        except asyncio.CancelledError:
            if not call.replied:
                status = await self._cut_off(call, send)
            raise
        except Exception:
            log.exception("call %s: unexpected fault", call.id)
            status = 500
            if call.replied:
                raise  # the server must close the connection
            await self._refuse(call, internal_error(), 0, receive, send)
        finally:
            if call.held is not None:
                call.held.release()
            if call.admitted:
                self._admission.leave(call.owed)
            took = time.perf_counter_ns() - call.started
            self._metrics.over(call, status, took)
            if self._calls is not None:
                self._calls.write(call, status, took)
            if self._spans is not None:
                self._spans.over(call, status, took, scope, document)

    def _judge(self, call: Call, document: dict[str, Any]) -> None:
        """Ask the firewall; the caller never learns which rule refused, the log does."""
        rule = self._firewall.judge(document)
        if rule is not None:
            log.warning("call %s: refused by firewall rule %s", call.id, rule)
            raise Refusal(
                400,
                "content_policy_violation",
                "The request was refused by this gateway's policy.",
                stage="firewall",
                headers=((b"x-should-retry", b"false"),),
            )

    async def _refuse(
        self, call: Call, refusal: Refusal, unread: int, receive: Receive, send: Send
    ) -> None:
        """Record and answer; ``unread`` bytes of the body may still come (-1: nobody knows).

        With many bytes still to come the connection is closed, but only after the reply had a
        chance to be read: closing at once would reset the connection and destroy the reply.
        """
        body = refusal.body()
        index = self._refuser.record(call, refusal, body)
        if call.admitted:
            await self._recording.refused(call, index)
        headers = self._refuser.headers(call, refusal, body)
        call.replied = True
        closing = any(name == b"connection" for name, _ in refusal.headers)
        linger = unread != 0 and (closing or not 0 <= unread <= _UNREAD_KEEP)
        if linger and not closing:
            headers.append((b"connection", b"close"))
        try:
            await send(
                {"type": "http.response.start", "status": refusal.status, "headers": headers}
            )
            await send({"type": "http.response.body", "body": body, "more_body": linger})
            if linger:
                await _throw_away(receive)
                await send({"type": "http.response.body", "body": b"", "more_body": False})
        except OSError:
            log.debug("call %s: the caller left before its refusal", call.id)

    async def _cut_off(self, call: Call, send: Send) -> int:
        """The server ends, and this call had no reply yet: it gets one now, and waits for no disk.

        A reply that waited for its own entry is withheld like one whose entry is uncertain.
        """
        call.replied = True
        refusal = ledger_uncertain() if call.recorded else shutting_down()
        body = refusal.body()
        self._refuser.record(call, refusal, body)
        headers = [*self._refuser.headers(call, refusal, body), (b"connection", b"close")]
        try:
            await send_reply(send, refusal.status, headers, body)
        except OSError:
            log.debug("call %s: the caller left before its refusal", call.id)
        return refusal.status


async def _throw_away(receive: Receive) -> None:
    """Read and forget what is left of a request's body, within bounds."""
    left = _LINGER_BYTES
    try:
        async with asyncio.timeout(_LINGER_SECONDS):
            while left > 0:
                message = await receive()
                if message["type"] != "http.request" or not message.get("more_body", False):
                    return
                left -= len(message.get("body", b""))
    except TimeoutError:
        return
