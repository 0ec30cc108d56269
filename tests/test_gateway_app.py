"""The application: standalone, mounted, its life, its routes beside the calls, the examples."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import openai
import pytest
from fastapi import FastAPI, Request, Response
from prometheus_client.parser import text_string_to_metric_families
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.testclient import TestClient

import upstream
from aegis_c.gateway import create_app
from aegis_c.gateway.settings import SettingsError
from aegis_c.ledger.layout import LayoutError
from gateway_rig import ADMIN, ASK, CHAT, KEY, KEYS, gateway, request, run, serving, settings

STREAM = {**ASK, "stream": True}
EXAMPLES = Path(__file__).parent.parent / "examples"


def mounted(child: FastAPI, **options: Any) -> FastAPI:
    """A foreign application with ``child`` at /ai and a route of its own."""
    parent = FastAPI(**options)

    @parent.get("/mine")
    async def mine() -> dict[str, str]:
        return {"mine": "yes"}

    parent.mount("/ai", child)
    return parent


def checkpoint_size(data: Path) -> int:
    """Entries covered by the published checkpoint: a drained ledger has them all there."""
    return int((data / "ledger" / "w0" / "checkpoint").read_text().splitlines()[1])


def bearer(key: str = KEY) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


# -- mounted -----------------------------------------------------------------------------------


@pytest.mark.parametrize("middleware", [False, True])
def test_mounted_without_a_lifespan_it_starts_and_drains(tmp_path: Path, middleware: bool) -> None:
    """The parent knows nothing of the gateway: the first request starts it, the loop's end
    drains it. Also behind a BaseHTTPMiddleware of the parent."""
    data = tmp_path / "data"

    async def main() -> None:
        async with upstream.running() as up:
            child = create_app(settings(data, up.url))
            parent = mounted(child)
            if middleware:

                async def dispatch(request: Request, call_next: Any) -> Response:
                    response: Response = await call_next(request)
                    return response

                parent.add_middleware(BaseHTTPMiddleware, dispatch=dispatch)
            runtime = child.state.aegis
            async with serving(parent, runtime) as rig:
                assert not runtime.running
                assert not data.exists()
                async with openai.AsyncOpenAI(
                    api_key=KEY, base_url=f"http://127.0.0.1:{rig.port}/ai/v1"
                ) as client:
                    answer = await client.chat.completions.create(**ASK)
                    assert answer.choices[0].message.content == "Hello."
                    stream = await client.chat.completions.create(**STREAM)
                    text = [c.choices[0].delta.content async for c in stream if c.choices]
                    assert "".join(filter(None, text)) == "Hello."
                assert runtime.running
                reply = await rig.ask(b"", method="GET", path="/mine", secret=None)
                assert json.loads(reply.body) == {"mine": "yes"}
                assert (await rig.ask(path=CHAT)).status == 404  # the parent's own 404
                reply = await rig.ask(path="/ai/v1/none")
                assert reply.error["code"] == "unknown_url"
                await rig.settled()
                entries = await rig.entries()
                assert entries[1]["endpoint"] == CHAT  # below the mount point
                assert entries[-1]["endpoint"] == "/v1/none"
                assert len(entries) == 5
            assert runtime.running  # the server has ended and told nobody

    run(main())
    assert checkpoint_size(data) == 5
    assert not list((data / "private" / "w0").glob("*.tmp"))


def test_mounted_with_the_parents_lifespan(tmp_path: Path) -> None:
    data = tmp_path / "data"

    async def main() -> None:
        async with upstream.running() as up:
            child = create_app(settings(data, up.url))
            runtime = child.state.aegis

            @asynccontextmanager
            async def lifespan(_: FastAPI) -> AsyncIterator[None]:
                async with runtime.lifespan():
                    yield

            async with serving(mounted(child, lifespan=lifespan), runtime) as rig:
                assert runtime.running
                assert (await rig.ask(path="/ai" + CHAT)).status == 200
            assert not runtime.running
            assert checkpoint_size(data) == 2

    run(main())


def test_start_and_stop_by_hand_and_again(tmp_path: Path) -> None:
    async def main() -> None:
        async with upstream.running() as up:
            app = create_app(settings(tmp_path, up.url))
            runtime = app.state.aegis
            await runtime.stop()  # nothing to stop
            for life in range(3):
                await asyncio.gather(*(runtime.start() for _ in range(3)))
                async with (
                    httpx.AsyncClient(transport=httpx.ASGITransport(app)) as client,
                ):
                    url = f"http://gateway{CHAT}"
                    assert (await client.post(url, json=ASK, headers=bearer())).status_code == 200
                await asyncio.gather(runtime.stop(), runtime.stop())
                assert not runtime.running
                assert checkpoint_size(tmp_path) == life + 2

    run(main())


def test_the_first_requests_may_come_together(tmp_path: Path) -> None:
    async def main() -> None:
        async with upstream.running() as up:
            app = create_app(settings(tmp_path, up.url))
            async with httpx.AsyncClient(transport=httpx.ASGITransport(app)) as client:
                calls = [
                    client.post(f"http://gateway{CHAT}", json=ASK, headers=bearer())
                    for _ in range(10)
                ]
                assert {r.status_code for r in await asyncio.gather(*calls)} == {200}
            await app.state.aegis.stop()
            assert checkpoint_size(tmp_path) == 11

    run(main())


def test_a_loop_for_each_request(tmp_path: Path) -> None:
    """Starlette's TestClient without a context runs each request on a loop of its own."""
    app = create_app(settings(tmp_path, "http://127.0.0.1:9/v1"))
    client = TestClient(app)
    for i in range(3):
        reply = client.post(CHAT, json={}, headers=bearer())
        assert reply.status_code == 400
        assert reply.json()["error"]["param"] == "model"
        assert checkpoint_size(tmp_path) == i + 2


def test_an_app_that_cannot_start_says_why_and_recovers(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.write_text("a file where the directory should be")

    async def main() -> None:
        async with upstream.running() as up:
            app = create_app(settings(data, up.url))
            parent = mounted(app)
            async with serving(parent, app.state.aegis) as rig:
                for _ in range(2):
                    reply = await rig.ask(path="/ai" + CHAT)
                    assert (reply.status, reply.error["code"]) == (503, "not_ready")
                reply = await rig.ask(b"", method="GET", path="/ai/ready", secret=None)
                assert reply.status == 503
                assert "data" in json.loads(reply.body)["missing"][0]
                reply = await rig.ask(b"", method="GET", path="/ai/health", secret=None)
                assert reply.status == 200
                data.unlink()
                assert (await rig.ask(path="/ai" + CHAT)).status == 200
                reply = await rig.ask(b"", method="GET", path="/ai/ready", secret=None)
                assert (reply.status, json.loads(reply.body)) == (
                    200,
                    {"ready": True, "missing": [], "ring": "tmpfs"},
                )
                await app.state.aegis.stop()

    run(main())


def test_two_gateways_cannot_share_a_ledger(tmp_path: Path) -> None:
    async def main() -> None:
        async with upstream.running() as up, gateway(tmp_path, up.url) as rig:
            second = create_app(settings(tmp_path, up.url))
            before = len(os.listdir("/proc/self/fd"))
            for _ in range(3):
                with pytest.raises(LayoutError, match=str(tmp_path)):
                    await second.state.aegis.start()
            assert len(os.listdir("/proc/self/fd")) == before
            assert (await rig.ask()).status == 200

    run(main())


def test_settings_are_read_when_the_app_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AEGIS_DATA", str(tmp_path / "elsewhere"))
    assert create_app().state.aegis.settings.data == tmp_path / "elsewhere"
    monkeypatch.setenv("AEGIS_DATTA", "x")
    with pytest.raises(SettingsError, match="AEGIS_DATTA"):
        create_app()


# -- routes beside the calls -------------------------------------------------------------------


def test_health_ready_and_metrics_need_no_key(tmp_path: Path) -> None:
    async def main() -> None:
        async with upstream.running() as up, gateway(tmp_path, up.url) as rig:
            await rig.ask()
            await rig.ask(STREAM)
            await rig.ask(secret="wrong")
            await rig.settled()
            for path, body in (
                ("/health", {"status": "ok"}),
                ("/ready", {"ready": True, "missing": [], "ring": "tmpfs"}),
            ):
                reply = await rig.ask(b"", method="GET", path=path, secret=None)
                assert (reply.status, json.loads(reply.body)) == (200, body)
            reply = await rig.ask(b"", method="GET", path="/metrics", secret=None)
            assert reply.headers["content-type"].startswith("text/plain")
            samples = {
                (s.name, *sorted(s.labels.items())): s.value
                for family in text_string_to_metric_families(reply.body.decode())
                for s in family.samples
            }
            chat = ("endpoint", CHAT)
            assert samples["aegis_requests_total", chat, ("status", "200")] == 2
            assert samples["aegis_requests_total", chat, ("status", "401")] == 1
            refused = ("reason", "invalid_api_key"), ("stage", "auth")
            assert samples["aegis_rejections_total", *refused] == 1
            assert samples["aegis_streams_total", ("ending", "done")] == 1
            assert samples["aegis_entries_total", ("kind", "call")] == 1
            assert samples["aegis_ledger_entries", ("state", "submitted")] == 5
            operation = ("gen_ai_operation_name", "chat")
            duration = "gen_ai_server_request_duration_seconds"
            assert samples[f"{duration}_count", operation] == 3
            assert samples[f"{duration}_bucket", operation, ("le", "+Inf")] == 3
            assert samples["aegis_calls_in_flight",] == 0
            assert samples["aegis_upstream_connections", ("state", "idle")] == 1

    run(main())


def test_the_schema_lists_the_governed_endpoint(tmp_path: Path) -> None:
    app = create_app(settings(tmp_path, "http://127.0.0.1:9/v1"))
    paths = app.openapi()["paths"]
    assert "post" in paths[CHAT]
    assert {"/v1/models", "/v1/receipts/{request_id}", "/ready", "/metrics"} <= set(paths)
    assert app.openapi() is app.openapi()


def test_a_fault_of_our_own_is_a_clear_500_with_an_entry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A bug in a stage must not look like anything else, nor cost the admission slot."""

    async def main() -> None:
        async with upstream.running() as up, gateway(tmp_path, up.url) as rig:
            hot = rig.runtime.hot[CHAT]
            forwarder = hot._forwarder  # type: ignore[attr-defined]

            def broken(*_: object) -> bytes:
                raise ZeroDivisionError("a bug")

            monkeypatch.setattr(type(forwarder), "_fields", broken)
            reply = await rig.ask()
            assert (reply.status, reply.error["code"]) == (500, "internal_error")
            assert "bug" not in reply.body.decode()
            assert "ZeroDivisionError" in caplog.text
            entry = (await rig.entries())[-1]
            assert (entry["kind"], entry["stage"], entry["status"]) == (
                "rejection",
                "internal",
                500,
            )
            monkeypatch.undo()
            assert (await rig.ask()).status == 200
            assert rig.runtime.admission.in_flight == 0

    run(main())


# -- without a key -----------------------------------------------------------------------------


def test_without_a_key_the_local_machine_is_tenant_local(tmp_path: Path) -> None:
    async def main() -> None:
        async with upstream.running() as up, gateway(tmp_path, up.url, keys=[]) as rig:
            assert (await rig.ask(secret="anything")).status == 200
            call = (await rig.entries("call"))[0]
            assert (call["tenant"], call["key"]) == ("local", "local")
            assert (await rig.ask(secret=None)).status == 401
            reply = await rig.ask(b"", method="GET", path="/ledger/", secret="x")  # every role
            assert reply.status == 200
            receipt = f"/v1/receipts/{call['id']}"
            assert (await rig.ask(b"", method="GET", path=receipt, secret="y")).status == 200

    run(main())


@pytest.mark.parametrize(
    ("address", "status"),
    [("127.0.0.1", 200), ("::1", 200), ("::ffff:127.0.0.1", 200), ("192.0.2.1", 403), ("::2", 403)],
)
def test_without_a_key_other_machines_are_refused(
    tmp_path: Path, address: str, status: int
) -> None:
    """Whatever address the application is served on: a parent may listen anywhere."""

    async def main() -> None:
        async with upstream.running() as up:
            app = create_app(settings(tmp_path, up.url, keys=[]))
            transport = httpx.ASGITransport(app, client=(address, 1))
            async with httpx.AsyncClient(transport=transport) as client:
                for method, path in (("POST", CHAT), ("GET", "/ledger/")):
                    reply = await client.request(
                        method,
                        f"http://gateway{path}",
                        json=ASK if method == "POST" else None,
                        headers=bearer("x"),
                    )
                    assert reply.status_code == status, path
                    if status == 403:
                        assert reply.json()["error"]["code"] == "no_key_configured"
            await app.state.aegis.stop()

    run(main())


def test_roles(tmp_path: Path) -> None:
    async def main() -> None:
        async with upstream.running() as up, gateway(tmp_path, up.url) as rig:
            for key, status in ((KEY, 403), (ADMIN, 200), ("sk-auditor", 200), ("x", 401)):
                reply = await rig.ask(b"", method="GET", path="/ledger/", secret=key)
                assert reply.status == status
            assert [e["reason"] for e in await rig.entries("rejection")] == [
                "role_required",
                "invalid_api_key",
            ]

    run(main())


# -- the examples ------------------------------------------------------------------------------


def example(name: str) -> ModuleType:
    """Load an example from its file: the folder is no package."""
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(("name", "prefix"), [("standalone", ""), ("mounted", "/ai")])
def test_examples_of_the_gateway(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, prefix: str
) -> None:
    async def main() -> None:
        async with upstream.running() as up:
            monkeypatch.setenv("AEGIS_UPSTREAM__URL", up.url)
            monkeypatch.setenv("AEGIS_DATA", str(tmp_path))
            monkeypatch.setenv("AEGIS_KEYS", json.dumps([{**KEYS[0], "roles": ["caller"]}]))
            app = example(name).app()
            child = app
            for route in app.routes:
                child = (
                    getattr(route, "app", child) if getattr(route, "path", "") == "/ai" else child
                )
            async with serving(app, child.state.aegis) as rig:
                async with openai.AsyncOpenAI(
                    api_key=KEY, base_url=f"http://127.0.0.1:{rig.port}{prefix}/v1"
                ) as client:
                    answer = await client.chat.completions.create(**ASK)
                assert answer.choices[0].message.content == "Hello."
                if prefix:
                    reply = await rig.ask(b"", method="GET", path="/hello", secret=None)
                    assert json.loads(reply.body) == {"hello": "world"}
            assert checkpoint_size(tmp_path) == 2

    run(main())


def test_example_of_the_types_in_foreign_routes() -> None:
    with TestClient(example("types_in_routes").app()) as client:
        texts = [f"guest {i}" for i in range(11)]
        for i, text in enumerate(texts):
            signed = client.post("/entries", json={"text": text}).json()
            assert (signed["index"], signed["size"]) == (i, i + 1)
        for i, text in enumerate(texts):
            proof = client.get(f"/entries/{i}/proof").json()
            assert proof["root"] == signed["root"]
            claim = {"text": text, "index": i, **proof}
            assert client.post("/check", json=claim).json() == {"verified": True}
            other = {**claim, "text": text + "!"}
            assert client.post("/check", json=other).json()["verified"] is False
        assert client.get("/entries/11/proof").status_code == 404
        assert client.get("/consistency/4").json()["size"] == 11
        assert client.get("/consistency/12").status_code == 404


def test_requests_of_one_connection_are_answered_in_order(tmp_path: Path) -> None:
    """Pipelined calls, refusals and plain routes on one connection."""

    async def main() -> None:
        async with (
            upstream.running() as up,
            gateway(tmp_path, up.url) as rig,
            rig.client() as client,
            asyncio.timeout(10),
        ):
            await client.write(
                request()
                + request(secret="wrong")
                + request(b"", method="GET", path="/health")
                + request(STREAM)
                + request({"model": 1})
            )
            assert [(await client.reply()).status for _ in range(5)] == [
                200,
                401,
                200,
                200,
                400,
            ]

    run(main())
