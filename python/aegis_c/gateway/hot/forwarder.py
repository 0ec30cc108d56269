"""One governed call: send it upstream, hand the answer to the caller, leave the evidence.

The order is fixed: the upstream answers, the entry is made (``hot/recording.py`` says what waits
for it), the reply goes out, the analyser is started in the background. Streams are the business
of ``hot/relay.py``.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

from starlette.types import Receive, Send

from aegis_c.gateway.errors import Refusal
from aegis_c.gateway.hot.adapters.openai import read_reply
from aegis_c.gateway.hot.faults import in_openais_shape, upstream_garbage, upstream_refusal
from aegis_c.gateway.hot.guard import ClientGone, Head
from aegis_c.gateway.hot.phases import EVIDENCE, FIRST_BYTE, UPSTREAM
from aegis_c.gateway.hot.pool import UpstreamError, header_line
from aegis_c.gateway.hot.reply import EVENTS, JSON, reply_headers
from aegis_c.gateway.hot.watch import Watch
from aegis_c.gateway.hot.wire import send_reply

if TYPE_CHECKING:
    from aegis_c.gateway.background.analyst import Analyst
    from aegis_c.gateway.evidence import Call
    from aegis_c.gateway.hot.dispatch import Dispatcher, Exchange
    from aegis_c.gateway.hot.recording import Recording
    from aegis_c.gateway.hot.relay import Relay

log = logging.getLogger("aegis_c.gateway.forwarder")


class Forwarder:
    """Forwards calls of one endpoint; built once, used for every call."""

    def __init__(
        self,
        upstream_path: bytes,
        *,
        dispatcher: Dispatcher,
        recording: Recording,
        relay: Relay,
        analyst: Analyst,
    ) -> None:
        self._dispatcher = dispatcher
        self._recording = recording
        self._relay = relay
        self._analyst = analyst
        self._path = upstream_path

    async def run(
        self, call: Call, stream: bool, head: Head, body: bytes, receive: Receive, send: Send
    ) -> int:
        """Serve one admitted call to its end; returns the status of the reply.

        Raises Refusal while nothing has been sent to the caller, ClientGone when it left.
        """
        fields = self._fields(call, head, body)
        call.provider = self._dispatcher.sole
        phases = call.phases
        watch = Watch(receive)
        exchange: Exchange | None = None
        try:
            if self._recording.writes_ahead:
                watch.start()
            await self._recording.before(call)
            phases.end(EVIDENCE)
            if watch.left:
                raise ClientGone
            sent = time.perf_counter_ns()
            exchange = await self._dispatcher.ask(
                call, self._path, fields, body, watch, self._recording.asked
            )
            phases.end(FIRST_BYTE)
            connection = exchange.connection
            status = connection.status
            media = connection.headers.get(b"content-type", b"")
            if stream and status == 200 and (not media or media.lower().startswith(EVENTS)):
                call.upstream_ns = time.perf_counter_ns() - sent
                return await self._relay.run(call, connection, watch, send)
            reply = await connection.body()
            phases.end(UPSTREAM)
            call.upstream_ns = time.perf_counter_ns() - sent
            watch.stop()
            headers = connection.headers
            exchange.close()
        except UpstreamError as error:
            log.warning("call %s: upstream %s: %s", call.id, call.provider, error)
            raise upstream_refusal(error) from None
        finally:
            watch.stop()
            if exchange is not None:
                exchange.close()
        return await self._plain(call, status, media, headers, reply, send)

    def _fields(self, call: Call, head: Head, body: bytes) -> bytes:
        """The call's own part of the request's head: rebuilt, never copied, with a length of ours.

        Of the caller's headers only those of the body, `openai-beta` and `idempotency-key` go
        upstream. Whose account pays (authorization, organization, project) is the settings' say.
        """
        lines = [
            b"content-type: ",
            JSON if head.content_type is None else head.content_type,
            b"\r\ncontent-length: ",
            str(len(body)).encode(),
            b"\r\nx-client-request-id: ",
            call.id.encode(),
            b"\r\n",
        ]
        if head.gzip:
            lines.append(b"content-encoding: gzip\r\n")
        for name, value in (
            (b"openai-beta", head.beta),
            (b"idempotency-key", head.idempotency_key),
        ):
            if value is not None:
                try:
                    lines.append(header_line(name, value))
                except ValueError as error:
                    raise Refusal(
                        400, "invalid_header", f"Header refused: {error}.", stage="guard"
                    ) from None
        lines.append(b"\r\n")
        return b"".join(lines)

    async def _plain(
        self,
        call: Call,
        status: int,
        media: bytes,
        headers: dict[bytes, bytes],
        reply: bytes,
        send: Send,
    ) -> int:
        model = usage = None
        try:
            model, usage, is_error = read_reply(reply)
        except ValueError as error:
            if status < 400:
                log.warning("call %s: upstream: status %d, no JSON: %s", call.id, status, error)
                raise upstream_garbage("with a body that is not a JSON object") from None
            is_error = False
        if not 200 <= status < 300 and not 400 <= status < 600:
            log.warning("call %s: upstream: unusable status %d", call.id, status)
            raise upstream_garbage(f"with status {status}")
        if status >= 400 and not is_error:
            reply = in_openais_shape(status, reply)
            media = JSON
        if call.held is not None:
            call.held.answered(status, usage, reply)
        index = await self._recording.answer(call, status, reply, model, usage)
        call.phases.end(EVIDENCE)
        call.replied = True
        await send_reply(
            send, status, reply_headers(call, media or JSON, headers, len(reply)), reply
        )
        if index is not None and status < 400:
            self._analyst.look_at(call, index, reply)
        return status
