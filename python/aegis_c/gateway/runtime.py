"""Every part of one running gateway, and their life: start, drain, stop."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Protocol

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from aegis_c import AegisError
from aegis_c.gateway.background.alerts import Alerts
from aegis_c.gateway.background.analyser import ResponseAnalyser
from aegis_c.gateway.background.analysis_metrics import AnalysisMetrics
from aegis_c.gateway.background.analyst import Analyst
from aegis_c.gateway.background.spawn import Background
from aegis_c.gateway.background.webhook import Webhook
from aegis_c.gateway.deep_health import DeepHealth
from aegis_c.gateway.errors import method_not_allowed
from aegis_c.gateway.evidence import Call, Evidence
from aegis_c.gateway.hot.adapters.openai import examine_chat
from aegis_c.gateway.hot.admission import Admission
from aegis_c.gateway.hot.auth import Auth, Principal
from aegis_c.gateway.hot.breaker import CLOSED, HALF_OPEN, OPEN
from aegis_c.gateway.hot.dispatch import Dispatcher
from aegis_c.gateway.hot.firewall import Firewall
from aegis_c.gateway.hot.forwarder import Forwarder
from aegis_c.gateway.hot.guard import Guard, Head
from aegis_c.gateway.hot.guard_protocol import (
    GuardedProtocol,
    Headers,
    Violation,
    guarded,
    refuse_alone,
)
from aegis_c.gateway.hot.limits import Limits
from aegis_c.gateway.hot.pipeline import CALL, Governed, Refuser
from aegis_c.gateway.hot.recording import MODES
from aegis_c.gateway.hot.relay import Relay
from aegis_c.gateway.hot.retry import Retries
from aegis_c.gateway.hot.source import Source
from aegis_c.gateway.hot.targets import Targets
from aegis_c.gateway.hot.wire import send_reply
from aegis_c.gateway.limits.metrics import add_metrics
from aegis_c.gateway.limits.rules import limits_for
from aegis_c.gateway.limits.tables import Tables
from aegis_c.gateway.logs import CallLog
from aegis_c.gateway.loop_health import LoopHealth
from aegis_c.gateway.metrics import Metrics
from aegis_c.gateway.process.siblings import Siblings
from aegis_c.gateway.runtime_metrics import add_gauges
from aegis_c.gateway.settings import PROCESS, Settings, SettingsError
from aegis_c.gateway.shards import Place, close_others, open_shard, remember, ring_bytes
from aegis_c.gateway.spans import Spans
from aegis_c.ledger import AsyncLedger
from aegis_c.ledger.layout import DataDir, Shard

log = logging.getLogger("aegis_c.gateway")

Hot = Callable[[Scope, Receive, Send], Awaitable[None]]

CHAT = "/v1/chat/completions"


class _Stoppable(Protocol):
    def stop(self) -> None: ...


class Runtime:
    """Every part of one gateway. Parts other than the first four exist while it is running."""

    settings: Settings
    metrics: Metrics
    auth: Auth
    protocol: type[GuardedProtocol]  # for uvicorn's `http`: the first line, with these settings
    running: bool
    ledger: AsyncLedger
    background: Background
    analyst: Analyst
    alerts: Alerts
    webhook: Webhook
    firewall: Firewall
    targets: Targets
    retries: Retries
    admission: Admission
    limits: Limits | None
    source: Source
    evidence: Evidence
    refuser: Refuser
    hot: dict[str, Hot]

    def __init__(
        self,
        settings: Settings,
        place: Place | None = None,
        siblings: Siblings | None = None,
    ) -> None:
        """Without a ``place`` this is the directory's only worker, and sees to every shard."""
        self.settings = settings
        self.place = place
        self.siblings = siblings
        self.auth = Auth(settings.keys)
        self.source = Source(settings.trusted_proxies, settings.forwarded_header)
        self.limits = None
        self.metrics = Metrics()
        self.analyses = AnalysisMetrics()
        self.loop_health = LoopHealth()
        for part in (self.analyses, self.loop_health):
            self.metrics.registry.register(part)
        self.deep_health = DeepHealth(self)
        self.calls = CallLog()
        self.spans: Spans | None = None
        self.running = False
        self.hot = {}
        self._policy = settings.policy()
        self._lock: asyncio.Lock | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._keeper: AsyncGenerator[None, None] | None = None
        self._model: _Stoppable | None = None
        self._tables: Tables | None = None
        self._fault: str | None = None
        self._lock_fd: int | None = None
        self._retiring: set[asyncio.Task[None]] = set()
        self.protocol = guarded(on_refusal=self.refused)
        self._set_deadlines()
        add_gauges(self)
        add_metrics(self.metrics, lambda: self.limits if self.running else None)

    # -- the first line ----------------------------------------------------------------------

    def _set_deadlines(self) -> None:
        limits = self.settings.limits
        self.protocol.head_timeout = limits.head_timeout
        # Later than the second line's, which refuses a governed body by its endpoint.
        self.protocol.body_timeout = limits.body_timeout + 5.0

    def refused(self, violation: Violation) -> tuple[bytes, Headers]:
        """Record what the first line refused; the body and headers of the reply.

        A call whose body broke has one entry: this one, or that of a refusal before it.
        """
        refusal, scope = violation.refusal, violation.scope
        call: Call | None = None if scope is None else scope.get(CALL)
        if not self.running or (call is not None and (call.refused or call.recorded)):
            return refuse_alone(refusal)
        if call is None:
            call = Call("", self.source.of({"client": violation.client}))
        body = refusal.body()
        self.refuser.record(call, refusal, body if violation.answered else None)
        return body, self.refuser.headers(call, refusal, body)

    # -- life --------------------------------------------------------------------------------

    async def start(self) -> None:
        """Open the ledger and start every part; nothing when running already.

        Raises AegisError or OSError naming what cannot be used; the next call tries again.
        """
        async with self._turn():
            if self.running:
                return
            try:
                await self._start()
            except BaseException as error:
                self._fault = str(error) or type(error).__name__
                raise
            self._fault = None
            self.loop_health.start(self.settings.logs.slow_loop)
            self._keeper = self._until_the_loop_ends()
            await anext(self._keeper)
            self.running = True

    async def stop(self) -> None:
        """Let running calls finish within the deadline, publish the ledger, close everything."""
        async with self._turn():
            if not self.running:
                return
            deadline = time.monotonic() + self.settings.shutdown_deadline
            self.admission.close()
            await self._calls_end(deadline)
            self.targets.close()  # streams that are still under way end with an error event
            for task in list(self._retiring):
                task.cancel()
            await self._calls_end(time.monotonic() + 1.0)
            self.running = False
            self.loop_health.stop()
            await self._stop_parts(max(1.0, deadline - time.monotonic()))
            keeper, self._keeper = self._keeper, None
        if keeper is not None:
            await keeper.aclose()

    def _turn(self) -> asyncio.Lock:
        """Starting and stopping take turns; the lock belongs to the loop that is running."""
        loop = asyncio.get_running_loop()
        if self._lock is None or self._loop is not loop:
            self._lock, self._loop = asyncio.Lock(), loop
        return self._lock

    def lifespan(self, _: object = None) -> Any:
        """For a lifespan of one's own: ``async with app.state.aegis.lifespan(): ...``"""
        return self._lifespan()

    @asynccontextmanager
    async def _lifespan(self) -> AsyncIterator[None]:
        await self.start()
        try:
            yield
        finally:
            await self.stop()

    async def _until_the_loop_ends(self) -> AsyncGenerator[None, None]:
        """Suspended while running; a loop that ends closes it (loop.shutdown_asyncgens).

        That drains a mounted gateway whose parent runs no lifespan for it.
        """
        try:
            yield
        finally:
            if self._keeper is not None:
                self._keeper = None
                await self.stop()

    async def _start(self) -> None:
        settings = self.settings
        directory = DataDir(settings.data)
        place = self.place
        try:
            directory.create()
            if place is None:
                settings = settings.model_copy(update={"workers": 1})
                self._lock_fd = directory.lock()
                place = Place(changed=await close_others(settings))
            shard = directory.shard(place.shard)
            self.ledger = open_shard(settings, shard, ring_bytes(settings))
        except BaseException:
            self._unlock()
            raise
        try:
            upstream = settings.upstream
            if not upstream.configured:
                upstream = upstream.model_copy(update=await self._start_model())
            limits = settings.limits
            self.background = Background(limits.background_queue, limits.background_workers)
            self.background.start()
            try:
                self.targets = Targets.of(upstream)
            except ValueError as error:  # a key's file or a proxy variable, changed meanwhile
                raise SettingsError(f"upstream: {error}") from None
            await asyncio.to_thread(self._open_tables, settings)
            self._open(shard)
            self._assemble()
            abandoned = await self.evidence.recover()
            if abandoned:
                log.warning("%d streams of an earlier run are settled as abandoned", abandoned)
            if place.changed is not None:
                recorded = self.evidence.admin("shards", shards=place.changed)
                if recorded is not None:
                    await self.ledger.durable(recorded)
                    remember(directory, place.changed)
        except BaseException:
            await self._stop_parts(1.0)
            raise

    def _open(self, shard: Shard) -> None:
        """Make what lives as long as the ledger is open; a reload changes it in place.

        Raises SettingsError.
        """
        settings, limits = self.settings, self.settings.limits
        native, background = self.ledger.native, self.background
        refuse = settings.evidence.on_failure == "refuse"
        self.admission = Admission(
            max_in_flight=limits.max_in_flight,
            deadline=limits.admission_deadline,
            room=native.room,
            poisoned=lambda: native.poisoned,
            refuse_on_failure=refuse,
            background_room=lambda: self.analyst.room(),
            background_depth=lambda: background.depth,
        )
        self.evidence = Evidence(
            self.ledger,
            policy=self._policy,
            refuse_on_failure=refuse,
            rejections_per_source=settings.evidence.rejections_per_source,
            rejections_total=settings.evidence.rejections_total,
            reserved=self.admission.reserved,
        )
        self.alerts = self.analyses.alerts = Alerts(shard.private)
        try:
            self.webhook = self.analyses.webhook = Webhook(settings.alerts.webhook)
        except (OSError, ValueError) as error:  # a file of it, changed meanwhile
            raise SettingsError(f"alerts.webhook: {error}") from None
        self.analyst = Analyst(
            background,
            self.evidence,
            ResponseAnalyser(),
            self.analyses,
            self.alerts,
            self.webhook,
            kept=settings.evidence.analysis,
        )
        self.retries = Retries(settings.upstream.retry)
        if settings.otel:
            self.spans = Spans(background, native.origin)
        self.refuser = Refuser(self.evidence, self.metrics)

    def _assemble(self) -> None:
        """Build the stages: at the start, and anew with reloaded settings."""
        settings, limits = self.settings, self.settings.limits
        recording = MODES[settings.evidence.mode](self.evidence, self.ledger, self.admission)
        self.analyst.use(kept=settings.evidence.analysis)
        relay = Relay(
            ledger=self.ledger, recording=recording, analyst=self.analyst, metrics=self.metrics
        )
        before, self.limits = self.limits, None
        if self._tables is not None and limits.any():
            self._tables.keep(limits.lasting())
            who = partial(limits_for, limits=limits)
            self.limits = Limits(limits, self._tables, who, before=before)
        self.refuser.limits = self.limits
        self.source = Source(settings.trusted_proxies, settings.forwarded_header)
        dispatcher = Dispatcher(self.targets, self.retries, asyncio.get_running_loop().time)
        self.firewall = Firewall()
        guard = self._guard = Guard(
            limits.max_body_bytes, limits.max_json_depth, limits.body_timeout
        )
        self.hot = {
            "/health": self._health,
            CHAT: Governed(
                CHAT,
                source=self.source,
                guard=guard,
                auth=self.auth,
                firewall=self.firewall,
                limits=self.limits,
                admission=self.admission,
                examine=examine_chat,
                recording=recording,
                forwarder=Forwarder(
                    b"/chat/completions",
                    dispatcher=dispatcher,
                    recording=recording,
                    relay=relay,
                    analyst=self.analyst,
                ),
                refuser=self.refuser,
                metrics=self.metrics,
                calls=self.calls if settings.logs.calls else None,
                spans=self.spans,
            ),
        }

    def _open_tables(self, settings: Settings) -> None:
        """The limiters' shared memory; none until something is limited. Raises LimitError."""
        limits = settings.limits
        if self._tables is None and limits.any():
            self._tables = Tables(settings.data, directory=limits.directory, slots=limits.slots)

    async def _start_model(self) -> dict[str, object]:
        """Start the built-in model; returns the upstream settings that reach it."""
        from aegis_c.demo.model_server import start_model_server

        model = await asyncio.to_thread(start_model_server)
        self._model = model
        log.warning(
            "no upstream is configured: the built-in demonstration model answers, at %s "
            "(set upstream.url for a real one)",
            model.base_url,
        )
        return {"url": model.base_url, "name": "builtin"}

    async def _calls_end(self, deadline: float) -> None:
        while self.admission.in_flight and time.monotonic() < deadline:  # noqa: ASYNC110
            await asyncio.sleep(0.02)

    async def _stop_parts(self, seconds: float) -> None:
        """Close what was opened, in reverse order; a part that never started is skipped."""
        if hasattr(self, "targets"):
            self.targets.close()
        if hasattr(self, "background"):
            await self.background.drain(seconds)
        if hasattr(self, "analyst"):
            await asyncio.gather(self.webhook.close(seconds), self.alerts.close(seconds))
        if self.spans is not None:
            await self.spans.close(seconds)
            self.spans = None
        if hasattr(self, "evidence"):
            self.evidence.flush()
        if self._tables is not None:
            await self._tables.close()
            self._tables = self.limits = None
        await self.calls.close()
        try:
            await self.ledger.close()
        except AegisError as error:
            log.error("the ledger did not close cleanly: %s", error)
        if self._model is not None:
            await asyncio.to_thread(self._model.stop)
            self._model = None
        self._unlock()

    def _unlock(self) -> None:
        if self._lock_fd is not None:
            os.close(self._lock_fd)
            self._lock_fd = None

    # -- other settings ----------------------------------------------------------------------

    def reload(self, settings: Settings) -> None:
        """Use ``settings`` from the next request on; calls under way end with what they began.

        Raises SettingsError when they cannot be used without a restart: nothing has changed then.
        """
        check_reload(self.settings, settings)
        targets = self.targets
        if settings.upstream != self.settings.upstream or settings.upstream.has_key_files:
            try:
                targets = Targets.of(settings.upstream)
            except (OSError, ValueError) as error:
                raise SettingsError(f"upstream: {error}") from None
        if settings.alerts != self.settings.alerts or settings.alerts.webhook.secret_file:
            try:
                self.webhook.use(settings.alerts.webhook)
            except (OSError, ValueError) as error:
                raise SettingsError(f"alerts.webhook: {error}") from None
        try:
            self._open_tables(settings)
        except (AegisError, OSError) as error:
            raise SettingsError(f"limits: {error}") from None
        if settings.logs.slow_loop != self.settings.logs.slow_loop:
            self.loop_health.stop()
            self.loop_health.start(settings.logs.slow_loop)
        self.settings, self._policy = settings, settings.policy()
        self.auth = Auth(settings.keys)
        self._set_deadlines()
        refuse = settings.evidence.on_failure == "refuse"
        self.admission.use(
            settings.limits.max_in_flight, settings.limits.admission_deadline, refuse
        )
        self.background.use(settings.limits.background_queue)
        self.evidence.use(
            policy=self._policy,
            refuse_on_failure=refuse,
            rejections_per_source=settings.evidence.rejections_per_source,
            rejections_total=settings.evidence.rejections_total,
        )
        if targets is not self.targets:
            retired, self.targets = self.targets, targets
            self.retries = Retries(settings.upstream.retry)
            task = asyncio.get_running_loop().create_task(self._retire(retired))
            self._retiring.add(task)
            task.add_done_callback(self._retiring.discard)
        self._assemble()

    async def _retire(self, targets: Targets) -> None:
        """Close targets once their last exchange is over, or at shutdown."""
        try:
            while targets.stats()["busy"] or targets.stats()["waiting"]:  # noqa: ASYNC110
                await asyncio.sleep(0.1)
        finally:
            targets.close()

    # -- what routes ask ---------------------------------------------------------------------

    def missing(self) -> list[str]:
        """What keeps this gateway from serving and recording a call; empty when ready."""
        if not self.running:
            return [f"not started: {self._fault}" if self._fault else "not started"]
        missing = []
        poisoned = self.ledger.native.poisoned
        if poisoned is not None:
            missing.append(f"ledger: {poisoned}")
        if not self.analyst.room():
            missing.append("background queue: full")
        if self.admission.closed:
            missing.append("shutting down")
        return missing

    def read(self, body: bytes) -> dict[str, Any]:
        """A JSON body as the guard reads it."""
        return self._guard.document(Head(), body)

    async def _health(self, scope: Scope, receive: Receive, send: Send) -> None:
        """/health while running: constant, so that it measures nothing but the server.

        With `?deep=1` the stages and the ledger are checked (deep_health.py).
        """
        if scope["method"] != "GET":
            refusal = method_not_allowed(scope["method"], "/health", "GET")
            response = Response(
                refusal.body(), refusal.status, {"allow": "GET"}, "application/json"
            )
            await response(scope, receive, send)
        elif scope["query_string"] == b"deep=1":
            status, body = await self.deep_health.check()
            await send_reply(
                send,
                status,
                [
                    (b"content-type", b"application/json"),
                    (b"content-length", str(len(body)).encode()),
                ],
                body,
            )
        else:
            await send_reply(send, 200, _HEALTH_HEADERS, _HEALTH_BODY)

    def breaker_states(self) -> dict[str, float]:
        """Of every target: 0 closed, 1 half-open, 2 open."""
        now = asyncio.get_running_loop().time()
        values = {CLOSED: 0.0, HALF_OPEN: 1.0, OPEN: 2.0}
        return {t.name: values[t.breaker.state(now)] for t in self.targets.all}

    def identify(self, request: Request) -> Principal:
        """The caller of a route outside the hot path. Raises Refusal (401, 403)."""
        authorization = request.headers.get("authorization")
        return self.auth.identify(
            None if authorization is None else authorization.encode("latin-1"), request.scope
        )


def check_reload(old: Settings, new: Settings) -> None:
    """Raises SettingsError when ``new`` cannot replace ``old`` without a restart."""
    for name in PROCESS:
        if getattr(old, name) != getattr(new, name):
            raise SettingsError(f"{name} changed; that takes a restart")
    for name in ("origin", "key_file", "key_pem", "ring_bytes"):
        if getattr(old.ledger, name) != getattr(new.ledger, name):
            raise SettingsError(f"ledger.{name} changed; that takes a restart")
    for name in ("background_workers", "slots", "directory"):
        if getattr(old.limits, name) != getattr(new.limits, name):
            raise SettingsError(f"limits.{name} changed; that takes a restart")
    if old.upstream.configured and not new.upstream.configured:
        raise SettingsError(
            "upstream.url is gone; going over to the built-in model takes a restart"
        )
    if not new.keys and not new.loopback_only():
        raise SettingsError(f"no API key is left, and {new.host} is not this machine alone")


_HEALTH_BODY = b'{"status":"ok"}'
_HEALTH_HEADERS = [
    (b"content-type", b"application/json"),
    (b"content-length", str(len(_HEALTH_BODY)).encode()),
]
