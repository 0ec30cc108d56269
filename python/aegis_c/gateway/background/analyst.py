"""After the reply: hands what the model said to the analyser, and sees to what it finds.

Everything runs on the event loop, within the slices of the background queue. A long reply is fed
in pieces, one in a turn of the loop, and one reply at a time: a thread would have to take the GIL
for each, and a thread that steps back for the loop may lose the processor while it holds it. The
replies of one session are looked at in their order.

A finding becomes an `analysis` entry that names the call's, an alert, and a message to the webhook
if there is one.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, Final, Literal

import msgspec

from aegis_c.gateway.background.alerts import Alert
from aegis_c.gateway.evidence import timestamp, uuid7

if TYPE_CHECKING:
    from aegis_c.gateway.background.alerts import Alerts
    from aegis_c.gateway.background.analyser import ReplyStream, ResponseAnalyser
    from aegis_c.gateway.background.analysis_metrics import AnalysisMetrics
    from aegis_c.gateway.background.spawn import Background
    from aegis_c.gateway.background.webhook import Webhook
    from aegis_c.gateway.evidence import Call, Evidence

log = logging.getLogger("aegis_c.gateway.analyst")

PIECE: Final = 8192  # octets of a reply that are looked at in one turn of the loop: about 35 us
HELD_MAX: Final = 64 << 20  # octets of replies that wait; above it no call is admitted
STREAM: Final = 64 << 10  # octets that what follows a stream counts for: about its size
ANALYSIS_MAX: Final = 1536  # octets of JSON that an entry has room for

Kept = Literal["off", "findings", "all"]

_encode = msgspec.json.Encoder().encode


class Analyst:
    """One gateway's; made on its event loop, used from there."""

    def __init__(
        self,
        background: Background,
        evidence: Evidence,
        analyser: ResponseAnalyser,
        metrics: AnalysisMetrics,
        alerts: Alerts,
        webhook: Webhook,
        *,
        kept: Kept,
    ) -> None:
        """``kept``: which analyses get an entry; "off" leaves replies unread, "all" asks for one
        also when nothing was found."""
        self._background = background
        self._evidence = evidence
        self._analyser = analyser
        self._metrics = metrics
        self._alerts = alerts
        self._webhook = webhook
        self._kept = kept
        self._held = 0  # octets of replies that wait or are looked at
        self._turn = asyncio.Lock()  # of long replies

    def use(self, *, kept: Kept) -> None:
        """Other settings from now on."""
        self._kept = kept

    def room(self) -> bool:
        """Whether another call may be admitted: its reply will have to wait here."""
        return self._held <= HELD_MAX and self._background.room()

    # -- what the forwarder and the relay call -------------------------------------------------

    def look_at(self, call: Call, index: int, reply: bytes) -> None:
        """Queue the plain reply that entry ``index`` recorded."""
        if self._kept != "off":
            self._spawn(call, len(reply), self._reply, index, reply)

    def stream(self, call: Call) -> ReplyStream | None:
        """What follows a stream: it is fed as the events go out. None: nothing does."""
        if self._kept == "off":
            return None
        return self._analyser.stream(model=call.model or "", session=_session(call))

    def look_at_stream(self, call: Call, index: int, stream: ReplyStream | None) -> None:
        """Queue a stream that is over, and that entry ``index`` settled."""
        if stream is not None:
            self._spawn(call, STREAM, self._stream, index, stream)

    def _spawn(self, call: Call, size: int, job: Any, index: int, reply: object) -> None:
        try:
            self._background.spawn(_session(call), job, call, index, reply)
        except RuntimeError:  # a straggler: the queue has been drained for the shutdown
            log.warning("call %s: not analysed: the gateway is shutting down", call.id)
        else:
            self._held += size

    # -- background jobs -----------------------------------------------------------------------

    def _reply(self, call: Call, index: int, reply: bytes) -> Any:
        if len(reply) > PIECE:
            return self._long_reply(call, index, reply)
        self._held -= len(reply)
        analysis = self._analyser.analyse(reply, model=call.model or "", session=_session(call))
        self._found(call, index, analysis)
        return None

    async def _long_reply(self, call: Call, index: int, reply: bytes) -> None:
        try:
            async with self._turn:
                pieces = self._analyser.reply(model=call.model or "", session=_session(call))
                for at in range(0, len(reply), PIECE):
                    pieces.feed(reply[at : at + PIECE])
                    await asyncio.sleep(0)
        finally:
            self._held -= len(reply)
        self._found(call, index, pieces.finish())

    def _stream(self, call: Call, index: int, stream: ReplyStream) -> None:
        self._held -= STREAM
        self._found(call, index, stream.finish())

    # -- what comes of it ----------------------------------------------------------------------

    def _found(self, call: Call, index: int, analysis: dict[str, Any]) -> None:
        self._metrics.seen(analysis)
        findings = analysis["findings"]
        if not findings and self._kept != "all":
            return
        kept = bounded(analysis)
        made = self._evidence.analysis(call, index, kept)
        if findings:
            principal = call.principal
            alert = Alert(
                id=uuid7(),
                time=timestamp(),
                request_id=call.id,
                shard=self._alerts.shard,
                of=index,
                index=made,
                tenant=None if principal is None else principal.tenant,
                key=None if principal is None else principal.key,
                model=None if call.model is None else call.model[:256],
                findings=kept["findings"],
            )
            self._alerts.add(alert)
            self._webhook.send(alert)


def bounded(analysis: dict[str, Any]) -> dict[str, Any]:
    """An analysis that an entry has room for: findings that are too many give way to their count.

    What is left out stands in `omitted`.
    """
    if len(_encode(analysis)) <= ANALYSIS_MAX:
        return analysis
    kept = {name: value for name, value in analysis.items() if type(value) in (bool, int, float)}
    kept |= {"findings": [], "omitted": len(analysis["findings"])}
    for finding in analysis["findings"]:
        kept["findings"].append(finding)
        if len(_encode(kept)) > ANALYSIS_MAX:
            kept["findings"].pop()
            break
        kept["omitted"] -= 1
    return kept


def _session(call: Call) -> str | None:
    """A caller's session is its own: two keys may use one name."""
    if call.session is None or call.principal is None:
        return None
    return f"{call.principal.key}/{call.session.decode('latin-1')}"
