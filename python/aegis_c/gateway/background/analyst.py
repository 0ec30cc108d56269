"""After the reply: hands what the model said to the analyser, and sees to what it finds.

A short reply is looked at on the event loop, within the slices of the background queue. A long one
would hold the loop up: it goes to a thread of its own, which steps back for the loop (nice 10) and
needs no GIL for most of its work. The replies of one session are looked at in their order.

A finding becomes an `analysis` entry that names the call's, an alert, and a message to the webhook
if there is one.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Final

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

INLINE_MAX: Final = 4096  # octets of a reply that is looked at on the event loop
HELD_MAX: Final = 64 << 20  # octets of replies that wait; above it no call is admitted
ANALYSIS_MAX: Final = 1536  # octets of JSON that an entry has room for

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
        all: bool,
    ) -> None:
        """``all`` asks for an entry also when nothing was found."""
        self._background = background
        self._evidence = evidence
        self._analyser = analyser
        self._metrics = metrics
        self._alerts = alerts
        self._webhook = webhook
        self._all = all
        self._held = 0  # octets of replies that wait or are looked at
        self._loop = asyncio.get_running_loop()
        self._thread = ThreadPoolExecutor(1, "aegis-analyst", _step_back)
        # Now, because a thread runs on the cores that its maker may use at that time.
        self._thread.submit(_step_back)

    def use(self, *, all: bool) -> None:
        """Other settings from now on."""
        self._all = all

    def room(self) -> bool:
        """Whether another call may be admitted: its reply will have to wait here."""
        return self._held <= HELD_MAX and self._background.room()

    def close(self) -> None:
        """The queue has been drained: end the thread."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    # -- what the forwarder and the relay call -------------------------------------------------

    def look_at(self, call: Call, index: int, reply: bytes) -> None:
        """Queue the plain reply that entry ``index`` recorded."""
        self._held += len(reply)
        self._spawn(call, self._reply, index, reply)

    def stream(self, call: Call) -> ReplyStream:
        """What follows a stream: it is fed as the events go out."""
        return self._analyser.stream(model=call.model or "", session=_session(call))

    def look_at_stream(self, call: Call, index: int, stream: ReplyStream) -> None:
        """Queue a stream that is over, and that entry ``index`` settled."""
        self._spawn(call, self._stream, index, stream)

    def _spawn(self, call: Call, job: Any, index: int, reply: object) -> None:
        try:
            self._background.spawn(_session(call), job, call, index, reply)
        except RuntimeError:  # a straggler: the queue has been drained for the shutdown
            log.warning("call %s: not analysed: the gateway is shutting down", call.id)

    # -- background jobs -----------------------------------------------------------------------

    def _reply(self, call: Call, index: int, reply: bytes) -> Any:
        if len(reply) > INLINE_MAX:
            return self._long_reply(call, index, reply)
        self._held -= len(reply)
        self._found(call, index, self._analyse(call, reply))
        return None

    async def _long_reply(self, call: Call, index: int, reply: bytes) -> None:
        try:
            run = self._loop.run_in_executor
            analysis = await run(self._thread, self._analyse, call, reply)
        finally:
            self._held -= len(reply)
        self._found(call, index, analysis)

    def _analyse(self, call: Call, reply: bytes) -> dict[str, Any]:
        return self._analyser.analyse(reply, model=call.model or "", session=_session(call))

    async def _stream(self, call: Call, index: int, stream: ReplyStream) -> None:
        self._found(call, index, await self._loop.run_in_executor(self._thread, stream.finish))

    # -- what comes of it ----------------------------------------------------------------------

    def _found(self, call: Call, index: int, analysis: dict[str, Any]) -> None:
        self._metrics.seen(analysis)
        findings = analysis["findings"]
        if not findings and not self._all:
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


def _step_back() -> None:
    """A busy thread on the event loop's core costs it 4 ms of lag at nice 0, 0.09 at nice 10."""
    try:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 10)
    except OSError as error:
        log.warning("the analyser's thread keeps its priority: %s", error)
