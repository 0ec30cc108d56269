"""The first line against request smuggling: before a byte reaches the HTTP parser.

A uvicorn protocol that reads each connection with the native guard
(``aegis_c/core/http/request_guard.c``) and feeds the parser one checked message at a time. It
works before any ASGI application::

    uvicorn --http aegis_c.gateway.hot.guard:GuardedProtocol app:app

Whatever it refuses is answered with 400 (431 a head too large, 408 one that does not come), and the
connection is closed; a refusal never goes out inside another response.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, ClassVar, Final, NamedTuple, cast

import httptools
from starlette.types import Scope

from aegis_c import RequestGuard
from aegis_c.gateway.errors import Refusal
from aegis_c.gateway.hot.server_parts import (
    STATUS_LINE,
    FlowControl,
    HttpToolsProtocol,
    RequestResponseCycle,
)

_PIPELINE_DEPTH: Final = 16  # requests of one connection that are not answered yet
_BODY_RATE: Final = 1024  # bytes a second that a body has to bring, over one body timeout
_LINGER: Final = 1.0  # seconds in which a refused caller can read why before the connection ends

Headers = list[tuple[bytes, bytes]]


class Violation(NamedTuple):
    """What the first line refuses."""

    client: tuple[str, int] | None  # the caller's address
    refusal: Refusal
    #: The request's, when an application has it already: what broke is then its body.
    scope: Scope | None
    answered: bool  # the refusal goes out; else a response is in the way


#: Given a violation; returns the body and headers of the reply.
OnRefusal = Callable[[Violation], tuple[bytes, Headers]]


def refuse_alone(refusal: Refusal) -> tuple[bytes, Headers]:
    """The reply to a refused request where nobody keeps a record of it."""
    body = refusal.body()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        *refusal.headers,
    ]
    return body, headers


class _Flow(FlowControl):
    """Flow control that knows for how long we have not been reading."""

    def __init__(self, transport: asyncio.Transport, clock: Callable[[], float]) -> None:
        super().__init__(transport)
        self._clock = clock
        self._since = 0.0
        self._paused = 0.0
        self.held = False  # nothing is read from here on

    def pause_reading(self) -> None:
        if not self.read_paused:
            self._since = self._clock()
            super().pause_reading()

    def resume_reading(self) -> None:
        if self.read_paused and not self.held:
            self._paused += self._clock() - self._since
            super().resume_reading()

    def paused(self) -> float:
        """Seconds so far."""
        return self._paused + (self._clock() - self._since if self.read_paused else 0.0)


class GuardedProtocol(HttpToolsProtocol):
    """One connection: guard, then parser, then application."""

    #: Seconds for a head, from its first byte, and for a new connection to send one.
    head_timeout: ClassVar[float] = 10.0
    #: Seconds in which a body has to end or bring 1 KiB/s; those in which we do not read are free.
    body_timeout: ClassVar[float] = 30.0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._guard = RequestGuard(keep_websocket=self.ws_protocol_class is not None)
        self._in_message = False  # the parser has a part of a message
        self._current: RequestResponseCycle | None = None  # of that message, once its head is in
        self._completed = False  # the parser said so of the message it is in
        self._active: RequestResponseCycle | None = None  # whose response comes next
        self._refused = False
        self._idle_timer: asyncio.TimerHandle | None = None
        self._idle_since: float | None = None  # None: something is under way
        self._deadline: asyncio.TimerHandle | None = None
        self._deadline_of: tuple[str, int] = ("", 0)
        self._messages = 0  # passed on completely
        self._body_bytes = 0
        self._body_mark = (0, 0.0)  # bytes, and seconds paused, when the deadline was set

    # -- the connection ----------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.flow = _Flow(transport, self.loop.time)
        self._deadline = self.loop.call_later(self.head_timeout, self._silent)

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget_deadline()
        if self._idle_timer is not None:
            self._idle_timer.cancel()
            self._idle_timer = None
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        pieces = self._guard.feed(data)
        if len(pieces) == 1 and pieces[0][0] is data and pieces[0][1]:
            # The usual case: one request, whole, in one packet.
            self._idle_since = None
            if self._deadline is not None:
                self._forget_deadline()
            self._pass_on(data, True)
            return
        state = self._guard.state
        if pieces or state != "idle":  # not for an empty line alone
            self._idle_since = None
        for piece, last in pieces:
            if not self._pass_on(piece, last):
                return
        if state == "refused":
            violation = self._guard.violation
            assert violation is not None
            self._refuse(*violation)
        elif state != "idle":
            if state == "body":
                self._body_bytes += len(data)
            self._set_deadline(state)
        elif self._deadline is not None:
            self._forget_deadline()

    def _pass_on(self, piece: bytes, last: bool) -> bool:
        """Feed one piece of a message to the parser; False when that was the end."""
        if not self._in_message:
            waiting = self._active is not None and not self._active.response_complete
            if waiting and len(self.pipeline) + 1 >= _PIPELINE_DEPTH:
                self._refuse(400, "too_many_requests", "Too many requests wait for an answer.")
                return False
        self._in_message = True
        self._completed = False
        try:
            self.parser.feed_data(piece)
        except httptools.HttpParserUpgrade:
            if self._should_upgrade():
                self._forget_deadline()
                self.handle_websocket_upgrade()
                return False
        except httptools.HttpParserError:
            self._refuse(400, "malformed_request", "The HTTP parser refuses this request.")
            return False
        if self._completed is not last:
            self._refuse(400, "malformed_request", "Where this request ends is not certain.")
            return False
        self._in_message = not last
        self._messages += last
        return True

    # -- what the parser and the responses say -----------------------------------------------

    def on_message_begin(self) -> None:
        self._completed = False
        self._current = None
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        super().on_headers_complete()
        self._current = self.cycle
        # Of "Connection: close" older releases of uvicorn learn while it writes the head.
        if self.cycle is not None:  # it is, unless a WebSocket is asked for
            self.cycle.keep_alive = self.cycle.keep_alive and self.parser.should_keep_alive()
        if not self.pipeline:
            self._active = self.cycle

    def on_message_complete(self) -> None:
        self._completed = True
        super().on_message_complete()

    def on_response_complete(self) -> None:
        self._active = self.pipeline[-1][0] if self.pipeline else None
        self._guard.answered()
        if self.pipeline or self.transport.is_closing():
            super().on_response_complete()
        else:
            self.server_state.total_requests += 1
            self.flow.resume_reading()
            self._begin_idling()
        if self._refused and self._active is None and not self.transport.is_closing():
            self.transport.close()

    # -- between two requests ----------------------------------------------------------------

    def _begin_idling(self) -> None:
        """Close the connection when it stays idle: one timer for all its requests."""
        self._idle_since = self.loop.time()
        if self._idle_timer is None:
            self._idle_timer = self.loop.call_later(self.timeout_keep_alive, self._on_idle)

    def _on_idle(self) -> None:
        self._idle_timer = None
        if self._idle_since is None:
            return  # the end of its response comes back here
        left = self._idle_since + self.timeout_keep_alive - self.loop.time()
        if left > 0.0:
            self._idle_timer = self.loop.call_later(left, self._on_idle)
        elif not self.transport.is_closing():
            self.transport.close()

    # -- deadlines ---------------------------------------------------------------------------

    def _set_deadline(self, state: str) -> None:
        """Start the clock of the head or body that is under way, once each."""
        of = (state, self._messages)
        if self._deadline is not None:
            if self._deadline_of == of:
                return
            self._deadline.cancel()
        self._deadline_of = of
        if state == "head":
            self._deadline = self.loop.call_later(self.head_timeout, self._late_head)
        else:
            self._start_body(self.body_timeout)

    def _start_body(self, seconds: float) -> None:
        assert isinstance(self.flow, _Flow)
        self._body_mark = (self._body_bytes, self.flow.paused())
        self._deadline = self.loop.call_later(seconds, self._late_body)

    def _forget_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _silent(self) -> None:
        """A new connection has sent nothing."""
        self._deadline = None
        if not self.transport.is_closing():
            self.transport.close()

    def _late_head(self) -> None:
        self._deadline = None
        text = f"The request's head did not arrive within {self.head_timeout:g} seconds."
        self._refuse(408, "request_timeout", text)

    def _late_body(self) -> None:
        assert isinstance(self.flow, _Flow)
        self._deadline = None
        received, paused = self._body_mark
        pause = self.flow.paused() - paused
        if pause > 0.0:
            self._body_mark = (received, self.flow.paused())
            self._deadline = self.loop.call_later(max(pause, 0.05), self._late_body)
        elif self._body_bytes - received >= _BODY_RATE * self.body_timeout:
            self._start_body(self.body_timeout)
        else:
            text = f"The request's body came too slowly for {self.body_timeout:g} seconds."
            self._refuse(408, "request_timeout", text)

    # -- refusals ----------------------------------------------------------------------------

    def refused(self, violation: Violation) -> tuple[bytes, Headers]:
        """Body and headers of the reply; for a subclass that keeps a record."""
        return refuse_alone(violation.refusal)

    def _refuse(self, status: int, code: str, text: str, offset: int | None = None) -> None:
        """Take nothing more from this connection; answer 400 unless that would mix with another."""
        if self._refused or self.transport.is_closing():
            return
        self._refused = True
        self._forget_deadline()
        where = "" if offset is None else f" (byte {offset} of the request)"
        refusal = Refusal(
            status, code, text + where, stage="guard", headers=((b"connection", b"close"),)
        )
        assert isinstance(self.flow, _Flow)
        broken = self._current if self._in_message else None
        scope: Scope | None = None
        if broken is not None:
            if not (self.pipeline and self.pipeline[0][0] is broken):
                scope = cast("Scope", broken.scope)
            if self._drop(broken):
                self.refused(Violation(self.client, refusal, scope, answered=False))
                return
        active = self._active
        answered = active is None or active.response_complete
        body, headers = self.refused(Violation(self.client, refusal, scope, answered))
        if active is None or answered:
            self._answer(status, body, headers)
        else:  # the responses before it go out, then the connection ends
            last = self.pipeline[0][0] if self.pipeline else active
            last.keep_alive = False
            self.flow.pause_reading()
            self.flow.held = True

    def _drop(self, broken: RequestResponseCycle) -> bool:
        """Give up a request whose body cannot be read to its end; True: the connection as well."""
        if self.pipeline and self.pipeline[0][0] is broken:
            self.pipeline.popleft()  # its application has not seen it
            return False
        if broken.response_started:
            self.transport.abort()  # half a response, or one whose reader still sends
            return True
        broken.disconnected = True
        broken.message_event.set()
        self._active = None
        return False

    def _answer(self, status: int, body: bytes, headers: Headers) -> None:
        lines = [STATUS_LINE[status]]
        for name, value in (*self.server_state.default_headers, *headers):
            lines += [name, b": ", value, b"\r\n"]
        self.transport.write(b"".join([*lines, b"\r\n", body]))
        if self.transport.can_write_eof():  # closing at once would reset what was just written
            self.transport.write_eof()
            self.flow.resume_reading()
            self.loop.call_later(_LINGER, self.transport.close)
        else:
            self.transport.close()


def guarded(
    *,
    head_timeout: float = GuardedProtocol.head_timeout,
    body_timeout: float = GuardedProtocol.body_timeout,
    on_refusal: OnRefusal | None = None,
) -> type[GuardedProtocol]:
    """A protocol with these limits, for uvicorn's ``http``; ``on_refusal`` may keep a record."""

    class Guarded(GuardedProtocol):
        def refused(self, violation: Violation) -> tuple[bytes, Headers]:
            if on_refusal is None:
                return refuse_alone(violation.refusal)
            return on_refusal(violation)

    Guarded.head_timeout = head_timeout
    Guarded.body_timeout = body_timeout
    return Guarded
