"""One governed call: send it upstream, hand the answer to the caller, leave the evidence.

The order is fixed. Plain: the upstream answers, the `call` entry is submitted, the reply goes out,
the analyser is started in the background. Stream: the `intent` is submitted before the headers go
out, events are committed to as they pass, the `settle` is submitted with what was really
delivered, whatever ended it.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import time
from functools import partial
from typing import TYPE_CHECKING, Final

from starlette.types import Receive, Send

from aegis_c import AegisError
from aegis_c.gateway.background.analyser import analyse
from aegis_c.gateway.errors import (
    UPSTREAM_ERROR,
    Refusal,
    error_body,
    ledger_unavailable,
    overloaded,
    shutting_down,
)
from aegis_c.gateway.hot.adapters.openai import EventReader, read_reply
from aegis_c.gateway.hot.guard import ClientGone, Head
from aegis_c.gateway.hot.pool import (
    Connection,
    Pool,
    PoolBusy,
    PoolClosed,
    UpstreamError,
    UpstreamTimeout,
    header_line,
)

if TYPE_CHECKING:
    from aegis_c import Commitment
    from aegis_c.gateway.background.spawn import Background
    from aegis_c.gateway.evidence import Call, Evidence
    from aegis_c.gateway.hot.admission import Admission
    from aegis_c.gateway.metrics import Metrics
    from aegis_c.ledger import AsyncLedger

log = logging.getLogger("aegis_c.gateway.forwarder")

#: Reply headers that are passed on beside the content type; never framing or hop-by-hop ones.
_PASSED: Final = (b"retry-after", b"retry-after-ms", b"x-should-retry")
_UNSAFE: Final = re.compile(rb"[\r\n\0]")
_JSON: Final = b"application/json"
_MESSAGE_MAX: Final = 1000  # characters of an upstream's own error text that are passed on


class _Watch:
    """Notices that the caller leaves (or stops reading) while its call is under way."""

    __slots__ = ("_receive", "_task", "connection", "owner", "stalled")

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._task: asyncio.Task[None] | None = None
        self.connection: Connection | None = None
        self.owner: asyncio.Task[object] | None = None
        self.stalled = False

    def start(self) -> None:
        """Begin to listen for the caller's disconnect."""
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._listen())

    def stall(self) -> None:
        """The caller has not taken anything for too long: its call is ended."""
        self.stalled = True
        if self.owner is not None:
            self.owner.cancel()

    def stop(self) -> None:
        """The call is over."""
        self.connection = None
        if self._task is not None:
            self._task.cancel()

    async def _listen(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        if self.connection is not None:
            self.connection.fail(ClientGone())


class Forwarder:
    """Forwards calls of one endpoint; built once, used for every call."""

    def __init__(
        self,
        upstream_path: bytes,
        *,
        pool: Pool,
        ledger: AsyncLedger,
        evidence: Evidence,
        admission: Admission,
        background: Background,
        metrics: Metrics,
        analyse_all: bool,
    ) -> None:
        self._pool = pool
        self._ledger = ledger
        self._evidence = evidence
        self._admission = admission
        self._background = background
        self._metrics = metrics
        self._analyse_all = analyse_all
        self._head = pool.request_head(b"POST", upstream_path)

    async def run(
        self, call: Call, stream: bool, head: Head, body: bytes, receive: Receive, send: Send
    ) -> int:
        """Serve one admitted call to its end; returns the status of the reply.

        Raises Refusal while nothing has been sent to the caller, ClientGone when it left.
        """
        request = self._request(call, head, body)
        watch = _Watch(receive)
        pool = self._pool
        connection: Connection | None = None
        try:
            sent = time.perf_counter_ns()
            connection = await pool.open(request, body)
            watch.connection = connection
            connection.on_slow = watch.start
            commitment = self._ledger.native.commitment(call.id, "request")
            commitment.update(body)
            call.request = commitment
            connection = watch.connection = await pool.answered(connection, request, body)
            status = connection.status
            media = connection.headers.get(b"content-type", b"")
            if stream and status == 200 and not media.startswith(_JSON):
                call.upstream_ns = time.perf_counter_ns() - sent
                return await self._stream(call, connection, watch, send)
            reply = await connection.body()
            call.upstream_ns = time.perf_counter_ns() - sent
            watch.stop()
            headers = connection.headers
            connection.release()
        except UpstreamError as error:
            log.warning("call %s: upstream: %s", call.id, error)
            raise upstream_refusal(error) from None
        finally:
            watch.stop()
            if connection is not None:
                connection.release()
        return await self._plain(call, status, media, headers, reply, send)

    def _request(self, call: Call, head: Head, body: bytes) -> bytes:
        """The request's head: rebuilt, never copied; the length is that of the body we read.

        Of the caller's headers only those of the body, `openai-beta` and `idempotency-key` go
        upstream. Whose account pays (authorization, organization, project) is the settings' say.
        """
        lines = [
            self._head,
            b"content-type: ",
            _JSON if head.content_type is None else head.content_type,
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

    # -- plain -------------------------------------------------------------------------------

    async def _plain(
        self,
        call: Call,
        status: int,
        media: bytes,
        passed: dict[bytes, bytes],
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
            reply = error_body(_message_of(status, reply), UPSTREAM_ERROR, UPSTREAM_ERROR)
            media = _JSON
        if call.held is not None:
            call.held.answered(status, usage, reply)
        try:
            index = self._evidence.call(call, status, reply, answered=model, usage=usage)
        except AegisError as error:
            log.error("call %s: the ledger refused its entry: %s", call.id, error)
            raise ledger_unavailable("evidence") from None
        call.recorded = True
        await send(
            {
                "type": "http.response.start",
                "status": status,
                "headers": self._reply_headers(call, media or _JSON, passed, len(reply)),
            }
        )
        await send({"type": "http.response.body", "body": reply})
        if index is not None and status < 400:
            self._analyse(call, index, reply)
        return status

    def _reply_headers(
        self, call: Call, media: bytes, passed: dict[bytes, bytes], length: int | None
    ) -> list[tuple[bytes, bytes]]:
        if _UNSAFE.search(media) is not None:
            media = _JSON
        elapsed = (time.perf_counter_ns() - call.started) // 1_000_000
        headers = [
            (b"content-type", media),
            (b"x-request-id", call.id.encode()),
            (b"openai-processing-ms", str(elapsed).encode()),
        ]
        if length is not None:
            headers.append((b"content-length", str(length).encode()))
        if call.held is not None:
            headers += call.held.headers()
        for name in _PASSED:
            value = passed.get(name)
            if value is not None and _UNSAFE.search(value) is None:
                headers.append((name, value))
        return headers

    # -- stream ------------------------------------------------------------------------------

    async def _stream(self, call: Call, connection: Connection, watch: _Watch, send: Send) -> int:
        try:
            intent = self._evidence.intent(call, 200)
        except AegisError as error:
            log.error("call %s: the ledger refused its intent: %s", call.id, error)
            raise ledger_unavailable("evidence") from None
        call.recorded = True
        call.owed -= 1
        self._admission.made()
        response = self._ledger.native.commitment(call.id, "response")
        events = EventReader()
        ending = "done"
        settled = False
        loop = self._pool.loop
        watch.owner = asyncio.current_task()
        connection.on_stall = watch.stall
        watch.start()
        media = connection.headers.get(b"content-type") or b"text/event-stream"
        try:
            try:
                await send(
                    {
                        "type": "http.response.start",
                        "status": 200,
                        "headers": self._reply_headers(call, media, connection.headers, None),
                    }
                )
                while True:
                    data = await connection.chunk()
                    out = events.rest() if data is None else events.feed(data)
                    if out:
                        connection.handing = loop.time()
                        await send({"type": "http.response.body", "body": out, "more_body": True})
                        connection.handing = 0.0
                        response.update(out)
                        if call.held is not None:
                            call.held.handed(out)
                    if data is None:
                        break
            except UpstreamError as error:
                if not events.finished:
                    ending = _ending(error)
                    log.warning("call %s: upstream, inside its stream: %s", call.id, error)
                    refusal = upstream_refusal(error)
                    out = b"data: " + refusal.body() + b"\n\n"
                    connection.handing = loop.time()
                    await send({"type": "http.response.body", "body": out, "more_body": True})
                    connection.handing = 0.0
                    response.update(out)
            watch.stop()
            settled = True
            self._settle(call, intent, ending, response, events)
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        except (ClientGone, OSError):
            ending = "done" if events.finished else "client_gone"
        except asyncio.CancelledError:
            if not watch.stalled:
                ending = "shutdown"
                raise
            ending = "timeout"
            task = asyncio.current_task()
            if task is not None:
                task.uncancel()
        except BaseException:
            ending = "internal_error"
            raise
        finally:
            watch.stop()
            if not settled:
                self._settle(call, intent, ending, response, events)
        return 200

    def _settle(
        self,
        call: Call,
        intent: int | None,
        ending: str,
        response: Commitment,
        events: EventReader,
    ) -> None:
        if call.held is not None:
            call.held.ended(ending, events.usage)
        index = self._evidence.settle(
            call,
            intent,
            ending,
            response,
            events=events.count,
            answered=events.model,
            usage=events.usage,
        )
        self._metrics.stream_ended(ending)
        if index is not None:
            self._analyse(call, index, events.analysed())

    # -- background --------------------------------------------------------------------------

    def _analyse(self, call: Call, index: int, reply: bytes | list[bytes]) -> None:
        """Hand a reply to the analyser; one without per-token probabilities has nothing to say."""
        if isinstance(reply, bytes):
            telling = b'"top_logprobs"' in reply
        else:
            telling = bool(reply)
        if telling or self._analyse_all:
            try:
                self._background.spawn(partial(self._run_analysis, call, index, reply))
            except RuntimeError:  # a straggler: the queue has been drained for the shutdown
                log.warning("call %s: not analysed: the gateway is shutting down", call.id)

    async def _run_analysis(self, call: Call, index: int, reply: bytes | list[bytes]) -> None:
        """A background job: an analysis with nothing found is recorded only when asked for."""
        analysis = analyse(reply)
        if self._analyse_all or analysis.get("available"):
            self._evidence.analysis(call, index, analysis)


def upstream_refusal(error: UpstreamError) -> Refusal:
    """What the caller is told of an upstream's failure; the details are in the log."""
    if isinstance(error, PoolBusy):
        return overloaded("Every connection to the model server is in use.")
    if isinstance(error, PoolClosed):
        return shutting_down()
    if isinstance(error, UpstreamTimeout):
        return Refusal(
            504,
            "upstream_timeout",
            "The model server did not answer in time.",
            stage="upstream",
            type=UPSTREAM_ERROR,
        )
    return Refusal(
        502,
        "upstream_error",
        "The model server could not be reached or broke off its answer.",
        stage="upstream",
        type=UPSTREAM_ERROR,
    )


def _ending(error: UpstreamError) -> str:
    """The status of the settle entry of a stream that ``error`` ended."""
    if isinstance(error, UpstreamTimeout):
        return "timeout"
    return "shutdown" if isinstance(error, PoolClosed) else "upstream_error"


def upstream_garbage(how: str) -> Refusal:
    """502: the upstream answered, but with nothing that can be passed on."""
    return Refusal(
        502,
        "upstream_error",
        f"The model server answered {how}.",
        stage="upstream",
        type=UPSTREAM_ERROR,
    )


def _message_of(status: int, reply: bytes) -> str:
    """The text of an upstream error that is not in OpenAI's shape, as far as it has one."""
    text = None
    try:
        document = json.loads(reply)
    except ValueError:
        document = None
    if isinstance(document, dict):
        text = document.get("message") or document.get("detail") or document.get("error")
    if isinstance(text, str):
        return f"The model server answered with status {status}: {text[:_MESSAGE_MAX]}"
    return f"The model server answered with status {status}."
