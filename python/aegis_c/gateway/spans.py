"""OpenTelemetry spans of governed calls (extra `otel`), made after the reply, in the background.

One span a call, kind server, under the caller's `traceparent` when it sends one; names and
attributes are those of the GenAI conventions, with Aegis' own beside them: the receipt's request
id, entry index and origin, tenant and key id. No attribute holds anything that was said: the stop
sequences of a request are left out too. The SDK reads its own environment: where to
(OTEL_EXPORTER_OTLP_ENDPOINT), the service's name, sampling, batches. Its thread exports; what it
cannot get rid of, it drops.
"""

from __future__ import annotations

import asyncio
import logging
import time
from threading import Thread
from typing import TYPE_CHECKING, Any, Final

from aegis_c import __version__
from aegis_c.gateway.evidence import CAP
from aegis_c.gateway.genai_metrics import operation

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace.export import SpanExporter
    from starlette.types import Scope

    from aegis_c.gateway.background.spawn import Background
    from aegis_c.gateway.evidence import Call

log = logging.getLogger("aegis_c.gateway.spans")

#: Members of a request and of its attribute; numbers only.
_REQUEST: Final = {
    "max_tokens": "gen_ai.request.max_tokens",
    "max_completion_tokens": "gen_ai.request.max_tokens",
    "temperature": "gen_ai.request.temperature",
    "top_p": "gen_ai.request.top_p",
    "seed": "gen_ai.request.seed",
    "frequency_penalty": "gen_ai.request.frequency_penalty",
    "presence_penalty": "gen_ai.request.presence_penalty",
    "n": "gen_ai.request.choice.count",
}
_USAGE: Final = {
    "prompt_tokens": "gen_ai.usage.input_tokens",
    "completion_tokens": "gen_ai.usage.output_tokens",
    "input_tokens": "gen_ai.usage.input_tokens",
    "output_tokens": "gen_ai.usage.output_tokens",
}
_CLOSE_SECONDS: Final = 2.0  # for the last export; a collector that is down must not hold us up
_CARRIED: Final = (b"traceparent", b"tracestate")


class Spans:
    """The tracer of one worker; used from its event loop alone."""

    def __init__(
        self, background: Background, origin: str, *, exporter: SpanExporter | None = None
    ) -> None:
        """``origin`` is the log's name; ``exporter``: instead of OTLP over HTTP."""
        from opentelemetry.sdk.resources import SERVICE_NAME, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        if exporter is None:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

            exporter = OTLPSpanExporter()
        self._background = background
        self._origin = origin
        resource = Resource.create()
        if str(resource.attributes.get(SERVICE_NAME, "")).startswith("unknown_service"):
            resource = resource.merge(Resource({SERVICE_NAME: "aegis-c"}))
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("aegis_c.gateway", __version__)

    def over(
        self, call: Call, status: int, took: int, scope: Scope, document: dict[str, Any] | None
    ) -> None:
        """A governed request was answered with ``status``, ``took`` nanoseconds after it came."""
        asked = {} if document is None else _numbers(document)
        headers = scope["headers"]
        try:
            self._background.spawn(
                None, self._make, call, status, time.time_ns(), took, headers, asked
            )
        except RuntimeError:  # a straggler: the queue has been drained for the shutdown
            log.debug("call %s: no span: the gateway is shutting down", call.id)

    async def close(self, seconds: float) -> None:
        """Export what is left, for so long and no longer than _CLOSE_SECONDS."""
        seconds = min(seconds, _CLOSE_SECONDS)
        # Of its own: the loop's executor would wait for it at the end, whatever it waits for.
        thread = Thread(target=self._provider.shutdown, daemon=True)
        thread.start()
        until = time.monotonic() + seconds
        while thread.is_alive():
            if time.monotonic() > until:
                log.warning("the last spans were not exported within %.1f s", seconds)
                return
            await asyncio.sleep(0.005)

    def _make(
        self,
        call: Call,
        status: int,
        end: int,
        took: int,
        headers: list[tuple[bytes, bytes]],
        asked: dict[str, float],
    ) -> None:
        """A background job."""
        from opentelemetry.trace import SpanKind, Status, StatusCode

        name = operation(call.endpoint)
        model = None if call.model is None else call.model[:CAP]
        attributes = {**asked, **self._attributes(call, status), "gen_ai.operation.name": name}
        span = self._tracer.start_span(
            name if model is None else f"{name} {model}",
            _parent(headers),
            SpanKind.SERVER,
            attributes={k: v for k, v in attributes.items() if v is not None},
            start_time=end - took,
        )
        if status >= 500 or (status == 200 and call.outcome not in (None, "done", "client_gone")):
            span.set_status(Status(StatusCode.ERROR))
        span.end(end)

    def _attributes(self, call: Call, status: int) -> dict[str, Any]:
        principal = call.principal
        found: dict[str, Any] = {
            "gen_ai.provider.name": call.provider,
            "gen_ai.request.model": None if call.model is None else call.model[:CAP],
            "gen_ai.response.model": None if call.answered is None else call.answered[:CAP],
            "gen_ai.conversation.id": _text(call.session),
            "http.request.method": "POST",
            "http.response.status_code": status,
            "url.path": call.endpoint,
            "aegis.tenant": None if principal is None else principal.tenant,
            "aegis.key": None if principal is None else principal.key,
            "aegis.receipt.request_id": call.id,
            "aegis.receipt.origin": self._origin,
            "aegis.receipt.entry_index": call.index,
            "aegis.receipt.intent_index": call.intent,
        }
        if call.outcome not in (None, "done"):
            found["error.type"] = call.outcome
        elif status >= 400:
            found["error.type"] = str(status)
        if call.first_ns:
            found["gen_ai.response.time_to_first_chunk"] = call.first_ns * 1e-9
        for member, count in (call.usage or {}).items():
            if member in _USAGE:
                found[_USAGE[member]] = count
        return found


def _numbers(document: dict[str, Any]) -> dict[str, float]:
    """What a span says of a request's members."""
    found: dict[str, float] = {}
    for member, attribute in _REQUEST.items():
        value = document.get(member)
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            found[attribute] = value
    if document.get("stream") is True:
        found["gen_ai.request.stream"] = True
    return found


def _parent(headers: list[tuple[bytes, bytes]]) -> Context | None:
    """The caller's span (W3C trace context), when there is one and only one."""
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    carried = [(name, value) for name, value in headers if name in _CARRIED]
    names = [name for name, _ in carried]
    if names.count(b"traceparent") != 1:
        return None
    carrier: dict[str, str] = {}
    for name, value in carried:  # several tracestate fields are one list (RFC 9110 5.3)
        key, text = name.decode(), value.decode("latin-1")
        carrier[key] = f"{carrier[key]},{text}" if key in carrier else text
    return TraceContextTextMapPropagator().extract(carrier)


def _text(value: bytes | None) -> str | None:
    return None if value is None else value.decode("latin-1")[:CAP]
