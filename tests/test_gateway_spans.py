"""OpenTelemetry spans: what they say of a call, whose trace they continue, and that they arrive."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

import upstream
from aegis_c.gateway import runtime
from aegis_c.gateway.spans import Spans
from gateway_process import entries, environment, serving
from gateway_rig import KEY, gateway, request, run
from upstream import Exchange, delta

PROMPT = "the-words-of-a-prompt"
ANSWER = "the-words-of-an-answer"
ASK: dict[str, Any] = {
    "model": "m-1",
    "messages": [{"role": "user", "content": PROMPT}],
    "max_tokens": 7,
    "temperature": 0.5,
    "stop": [PROMPT],
    "user": PROMPT,
}
TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = "b7ad6b7169203331"


async def script(exchange: Exchange) -> None:
    if b'"stream"' not in exchange.body:
        reply = {**upstream.REPLY, "model": "m-1-exact", "note": ANSWER}
        await exchange.answer(reply)
        return
    await exchange.begin_stream()
    await exchange.chunk(delta(ANSWER) + upstream.DONE)
    await exchange.chunk(b"")


def test_a_span_says_what_the_entry_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exporter = InMemorySpanExporter()
    monkeypatch.setattr(runtime, "Spans", partial(Spans, exporter=exporter))
    traced = (f"traceparent: 00-{TRACE}-{PARENT}-01", "tracestate: a=1")
    requests = {
        "plain": request(ASK, headers=("aegis-session: talk-7",)),
        "traced": request(ASK, headers=traced),
        "twice": request(ASK, headers=(*traced, traced[0].replace("b7", "b8"))),
        "broken": request(ASK, headers=("traceparent: 00-xyz",)),
        "stream": request({**ASK, "stream": True}),
        "refused": request(ASK, secret="wrong"),
        "invalid": request({**ASK, "messages": PROMPT}),
    }
    ids: dict[str, str] = {}
    found: dict[str, dict[str, Any]] = {}
    origins: list[str] = []

    async def main() -> None:
        async with (
            upstream.running(script) as up,
            gateway(tmp_path, up.url, otel=True) as rig,
        ):
            for name, raw in requests.items():
                ids[name] = (await rig.send(raw)).headers["x-request-id"]
            await rig.settled()
            for index, entry in enumerate(await rig.entries()):
                if entry["kind"] in ("call", "settle", "rejection"):
                    found[entry["id"]] = entry | {"index": index}
            origins.append(rig.runtime.ledger.native.origin)

    began = time.time_ns()
    run(main())
    by_id: dict[str, ReadableSpan] = {}
    for span in exporter.get_finished_spans():
        assert span.attributes is not None
        by_id[str(span.attributes["aegis.receipt.request_id"])] = span
    assert set(by_id) == set(ids.values())
    spans = {name: by_id[one] for name, one in ids.items()}
    for name, span in spans.items():
        entry, said = found[ids[name]], dict(span.attributes or {})
        assert said["aegis.receipt.entry_index"] == entry["index"]
        assert said["aegis.receipt.origin"] == origins[0]
        assert said.get("aegis.key") == entry.get("key")
        assert span.start_time is not None and span.end_time is not None
        assert began < span.start_time < span.end_time < time.time_ns()
        assert span.end_time - span.start_time >= entry["timing"]["total_us"] * 1000
        everything = repr((span.name, said, span.events, span.status.description))
        for secret in (PROMPT, ANSWER, KEY, "wrong"):
            assert secret not in everything
    plain = dict(spans["plain"].attributes or {})
    assert spans["plain"].name == "chat m-1"
    assert plain["gen_ai.operation.name"] == "chat"
    assert plain["gen_ai.provider.name"] == "upstream"
    assert (plain["gen_ai.request.model"], plain["gen_ai.response.model"]) == ("m-1", "m-1-exact")
    assert (plain["gen_ai.request.max_tokens"], plain["gen_ai.request.temperature"]) == (7, 0.5)
    assert (plain["gen_ai.usage.input_tokens"], plain["gen_ai.usage.output_tokens"]) == (3, 2)
    assert plain["gen_ai.conversation.id"] == "talk-7"
    assert "error.type" not in plain and spans["plain"].parent is None
    stream = dict(spans["stream"].attributes or {})
    assert stream["gen_ai.request.stream"] is True
    assert 0 < stream["gen_ai.response.time_to_first_chunk"] < 10
    assert stream["aegis.receipt.intent_index"] == found[ids["stream"]]["of"]
    refusal = dict(spans["refused"].attributes or {})
    assert (refusal["http.response.status_code"], refusal["error.type"]) == (
        401,
        found[ids["refused"]]["reason"],
    )
    continued = spans["traced"]
    assert continued.context is not None and continued.parent is not None
    assert f"{continued.context.trace_id:032x}" == TRACE
    assert f"{continued.parent.span_id:016x}" == PARENT
    assert continued.context.trace_state.get("a") == "1"
    for name in ("twice", "broken"):
        assert spans[name].parent is None


@contextmanager
def receiver() -> Iterator[tuple[str, list[ExportTraceServiceRequest]]]:
    """An OTLP collector on loopback: its endpoint, and what it was sent."""
    got: list[ExportTraceServiceRequest] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assert self.path == "/v1/traces"
            body = self.rfile.read(int(self.headers["content-length"]))
            got.append(ExportTraceServiceRequest.FromString(body))
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", got
        finally:
            server.shutdown()
            thread.join()


def test_spans_of_all_workers_reach_a_collector(tmp_path: Path) -> None:
    ids = []

    async def main(endpoint: str) -> None:
        variables = {
            "AEGIS_OTEL": True,
            "AEGIS_WORKERS": 2,
            "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint,
        }
        async with (
            upstream.running(script) as up,
            serving(tmp_path, up.url, **variables) as server,
        ):
            for _ in range(6):
                async with server.client() as client:
                    await client.write(request(ASK))
                    ids.append((await client.reply()).headers["x-request-id"])
            assert await server.end() == 0

    with receiver() as (endpoint, got):
        run(main(endpoint))
    said = []
    for batch in got:
        assert PROMPT.encode() not in batch.SerializeToString()
        for resource in batch.resource_spans:
            names = {a.key: a.value.string_value for a in resource.resource.attributes}
            assert names["service.name"] == "aegis-c"
            for scope in resource.scope_spans:
                for span in scope.spans:
                    members = {a.key: a.value.string_value for a in span.attributes}
                    said.append(members["aegis.receipt.request_id"])
    assert sorted(said) == sorted(ids)


def test_a_collector_that_is_down_costs_nobody_anything(tmp_path: Path) -> None:
    async def main() -> None:
        with socket.socket() as nobody:
            nobody.bind(("127.0.0.1", 0))  # and does not listen
            variables = {
                "AEGIS_OTEL": True,
                "AEGIS_SHUTDOWN_DEADLINE": 2,
                "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{nobody.getsockname()[1]}",
            }
            async with (
                upstream.running(script) as up,
                serving(tmp_path, up.url, **variables) as server,
                server.client() as client,
            ):
                await client.write(request(ASK))
                assert (await client.reply()).status == 200
                async with asyncio.timeout(8):
                    assert await server.end() == 0
        assert [e["kind"] for e in await entries(tmp_path)] == ["admin", "call"]

    run(main())


#: FastAPI may bring the API along; the extra is the SDK and the exporter.
_WITHOUT = """
import sys

class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.startswith(("opentelemetry.sdk", "opentelemetry.exporter")):
            raise ModuleNotFoundError(f"No module named {name!r}")

sys.meta_path.insert(0, Hidden())
"""


def test_without_the_extra_it_says_so_and_does_not_start(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(_WITHOUT)
    data = tmp_path / "data"
    variables = environment(data, None, AEGIS_OTEL=True, PYTHONPATH=tmp_path)
    for command in (("serve",), ("config", "check")):
        done = subprocess.run(
            [sys.executable, "-m", "aegis_c.cli", *command],
            env=variables, capture_output=True, text=True, timeout=30,
        )  # fmt: skip
        assert done.returncode == 2
        said = "AEGIS_OTEL: otel: needs OpenTelemetry: pip install 'aegis-c[otel]'"
        assert said in " ".join(done.stderr.split())
        assert "Traceback" not in done.stderr
    assert not data.exists()
