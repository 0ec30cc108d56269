"""A stream on its way to the caller: every event at once, byte for byte, and its settle entry.

Events go out as they come and are committed to as they pass; while the upstream is silent, a
comment keeps the connection alive (and is committed to like everything else). A caller that is
slow holds back the upstream; one that leaves ends it. An upstream that fails inside its stream
becomes one error event. Whatever ends the stream, the settle says what was really handed over.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING, Final

from aegis_c.gateway.hot.adapters.openai import EventReader
from aegis_c.gateway.hot.faults import ending, upstream_refusal
from aegis_c.gateway.hot.guard import ClientGone
from aegis_c.gateway.hot.phases import EVIDENCE, UPSTREAM
from aegis_c.gateway.hot.pool import UpstreamError
from aegis_c.gateway.hot.reply import EVENTS, reply_headers
from aegis_c.gateway.hot.wire import Pieces

if TYPE_CHECKING:
    from starlette.types import Send

    from aegis_c import Commitment
    from aegis_c.gateway.background.analyser import ReplyStream
    from aegis_c.gateway.background.analyst import Analyst
    from aegis_c.gateway.evidence import Call
    from aegis_c.gateway.hot.pool import Connection
    from aegis_c.gateway.hot.recording import Recording
    from aegis_c.gateway.hot.watch import Watch
    from aegis_c.gateway.metrics import Metrics
    from aegis_c.ledger import AsyncLedger

log = logging.getLogger("aegis_c.gateway.relay")

KEEP_ALIVE: Final = b": keep-alive\n\n"


class Relay:
    """Passes streams on; built once, used for every stream."""

    def __init__(
        self, *, ledger: AsyncLedger, recording: Recording, analyst: Analyst, metrics: Metrics
    ) -> None:
        self._ledger = ledger
        self._recording = recording
        self._analyst = analyst
        self._metrics = metrics
        self._time = asyncio.get_running_loop().time

    async def run(self, call: Call, connection: Connection, watch: Watch, send: Send) -> int:
        """Serve one stream to its end. Raises Refusal while nothing has been sent."""
        await self._recording.begin(call)
        call.phases.end(EVIDENCE)
        response = self._ledger.native.commitment(call.id, "response")
        events = EventReader()
        analysis = self._analyst.stream(call)
        how = "done"
        settled = False
        watch.owner = asyncio.current_task()
        connection.on_stall = watch.stall
        watch.start()
        media = connection.headers.get(b"content-type") or EVENTS
        call.replied = True
        try:
            await send(
                {
                    "type": "http.response.start",
                    "status": 200,
                    "headers": reply_headers(call, media, connection.headers, None),
                }
            )
            try:
                await self._pass_on(call, connection, events, response, analysis, send)
            except UpstreamError as error:
                if not events.finished:
                    how = ending(error)
                    log.warning("call %s: upstream, inside its stream: %s", call.id, error)
                    event = b"data: " + upstream_refusal(error).body() + b"\n\n"
                    event = events.close() + event
                    await self._hand_over(event, call, connection, response, analysis, send)
            watch.stop()
            settled = True
            index = self._settle(call, how, response, analysis, events)
            orderly = await self._recording.ended(call, index)
            call.phases.end(EVIDENCE)
            if orderly:
                await send({"type": "http.response.body", "body": b"", "more_body": False})
            # Else it must not look complete: the server closes a connection whose reply is not.
        except (ClientGone, OSError):
            how = "done" if events.finished else "client_gone"
        except asyncio.CancelledError:
            if not watch.stalled:
                how = "shutdown"
                raise
            how = "timeout"
            task = asyncio.current_task()
            if task is not None:
                task.uncancel()
        except BaseException:
            how = "internal_error"
            raise
        finally:
            watch.stop()
            if not settled:
                self._settle(call, how, response, analysis, events)
        return 200

    async def _pass_on(
        self,
        call: Call,
        connection: Connection,
        events: EventReader,
        response: Commitment,
        analysis: ReplyStream | None,
        send: Send,
    ) -> None:
        """Hand over event after event. Raises UpstreamError, ClientGone, OSError."""
        pieces = Pieces(send)
        while True:
            data = await connection.chunk()
            if data is None:
                out = events.rest()
            elif data:
                out = events.feed(data)
            else:  # silence
                out = KEEP_ALIVE if events.between else b""
            if out:
                if pieces.write(out):
                    self._handed(out, call, response, analysis)
                else:
                    await self._hand_over(out, call, connection, response, analysis, send)
                if not call.first_ns and data:
                    call.first_ns = time.perf_counter_ns() - call.started
            if data is None:
                return

    async def _hand_over(
        self,
        out: bytes,
        call: Call,
        connection: Connection,
        response: Commitment,
        analysis: ReplyStream | None,
        send: Send,
    ) -> None:
        connection.handing = self._time()
        await send({"type": "http.response.body", "body": out, "more_body": True})
        connection.handing = 0.0
        self._handed(out, call, response, analysis)

    @staticmethod
    def _handed(out: bytes, call: Call, response: Commitment, analysis: ReplyStream | None) -> None:
        """What was handed over is committed to, analysed, and charged."""
        response.update(out)
        if analysis is not None:
            analysis.feed(out)
        if call.held is not None:
            call.held.handed(out)

    def _settle(
        self,
        call: Call,
        how: str,
        response: Commitment,
        analysis: ReplyStream | None,
        events: EventReader,
    ) -> int | None:
        call.phases.end(UPSTREAM)
        if call.held is not None:
            call.held.ended(how, events.usage)
        index = self._recording.end(call, how, response, events)
        self._metrics.stream_ended(how)
        if index is not None:
            self._analyst.look_at_stream(call, index, analysis)
        call.phases.end(EVIDENCE)
        return index
