"""Calls that go well: the official client, plain and streamed, and what is left of them."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import re
from pathlib import Path
from typing import Any, Literal

import openai
import pytest

import upstream
from gateway_rig import ASK, CHAT, KEY, LOOPS, Rig, gateway, request, run
from upstream import Exchange

pytestmark = pytest.mark.parametrize("loop", list(LOOPS))
Role = Literal["request", "response"]
UUID7 = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z")
ORDER = [
    "v",
    "kind",
    "id",
    "client_id",
    "client_id_sha256",
    "of",
    "event",
    "session",
    "session_sha256",
    "time",
    "tenant",
    "key",
    "endpoint",
    "endpoint_sha256",
    "model",
    "provider",
    "status",
    "usage",
    "policy",
    "timing",
    "events",
    "reason",
    "stage",
    "suppressed",
    "analysis",
    "request",
    "response",
]


def commitment(rig: Rig, request_id: str, role: Role, octets: bytes) -> dict[str, Any]:
    """The commitment member that an entry must have, computed here from the definition."""
    salt = rig.runtime.ledger.native.salt(request_id, role)
    digest = hmac.digest(salt, octets, hashlib.sha256)
    return {"bytes": len(octets), "commitment": base64.b64encode(digest).decode()}


def check_common(entry: dict[str, Any]) -> None:
    """What holds for every entry of a known caller."""
    assert [name for name in ORDER if name in entry] == list(entry)
    assert entry["v"] == 1
    assert UUID7.fullmatch(entry["id"])
    assert TIME.fullmatch(entry["time"])
    assert re.fullmatch(r"[0-9a-f]{64}", entry["policy"])
    assert (entry["tenant"], entry["key"]) == ("acme", "k1")
    assert entry["endpoint"] == CHAT


def test_plain_call_with_the_official_client(tmp_path: Path, loop: str) -> None:
    async def main() -> None:
        async with upstream.running() as up, gateway(tmp_path, up.url) as rig:
            async with openai.AsyncOpenAI(api_key=KEY, base_url=rig.base_url) as client:
                raw = await client.chat.completions.with_raw_response.create(
                    **ASK, extra_headers={"X-Client-Request-Id": "mine", "aegis-session": "s-1"}
                )
            assert raw.parse().choices[0].message.content == "Hello."
            request_id = raw.headers["x-request-id"]
            assert UUID7.fullmatch(request_id)
            assert int(raw.headers["openai-processing-ms"]) >= 0
            assert raw.headers["content-type"] == "application/json"
            assert "server" not in raw.headers

            genesis, call = await rig.entries()
            assert (genesis["kind"], genesis["event"]) == ("admin", "genesis")
            check_common(call)
            assert call["kind"] == "call"
            assert call["id"] == request_id
            assert call["client_id"] == "mine"
            assert call["session"] == "s-1"
            assert call["model"] == {"asked": "scripted-1", "answered": "scripted-1"}
            assert call["provider"] == "upstream"
            assert call["status"] == 200
            assert call["usage"] == upstream.REPLY["usage"]
            assert 0 <= call["timing"]["upstream_us"] <= call["timing"]["total_us"]
            sent = up.exchanges[0].body
            assert call["request"] == commitment(rig, request_id, "request", sent)
            assert call["response"] == commitment(rig, request_id, "response", raw.content)

    run(main(), loop)


def test_streamed_call_with_the_official_client(tmp_path: Path, loop: str) -> None:
    async def main() -> None:
        async with upstream.running() as up, gateway(tmp_path, up.url) as rig:
            async with openai.AsyncOpenAI(api_key=KEY, base_url=rig.base_url) as client:
                stream = await client.chat.completions.create(
                    **ASK, stream=True, stream_options={"include_usage": True}
                )
                chunks = [chunk async for chunk in stream]
            text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
            assert text == "Hello."
            assert chunks[-1].usage is not None and chunks[-1].usage.total_tokens == 5
            await rig.settled()

            _, intent, settle = await rig.entries()
            check_common(intent)
            check_common(settle)
            assert (intent["kind"], intent["status"]) == ("intent", 200)
            assert (settle["kind"], settle["status"]) == ("settle", "done")
            assert settle["id"] == intent["id"] == stream.response.headers["x-request-id"]
            assert settle["of"] == 1
            assert settle["events"] == 5
            assert settle["usage"] == upstream.REPLY["usage"]
            assert settle["model"] == {"asked": "scripted-1", "answered": "scripted-1"}
            assert "response" not in intent and "request" not in settle
            sent = up.exchanges[0].body
            assert intent["request"] == commitment(rig, intent["id"], "request", sent)

    run(main(), loop)


def test_stream_commitment_is_over_the_exact_event_bytes(tmp_path: Path, loop: str) -> None:
    async def main() -> None:
        async with upstream.running() as up, gateway(tmp_path, up.url) as rig:
            reply = await rig.ask({**ASK, "stream": True})
            assert reply.headers["content-type"] == "text/event-stream; charset=utf-8"
            assert reply.body.endswith(upstream.DONE)
            await rig.settled()
            settle = (await rig.entries("settle"))[0]
            expected = commitment(rig, settle["id"], "response", reply.body)
            assert settle["response"] == expected

    run(main(), loop)


def test_each_event_is_passed_on_as_it_arrives(tmp_path: Path, loop: str) -> None:
    """No clock: the upstream sends an event only after the caller has the one before."""

    async def main() -> None:
        seen = asyncio.Semaphore(0)

        async def script(exchange: Exchange) -> None:
            await exchange.begin_stream()
            for i in range(5):
                await exchange.chunk(upstream.delta(str(i)))
                await seen.acquire()
            await exchange.chunk(upstream.DONE)
            await exchange.chunk(b"")

        async with (
            upstream.running(script) as up,
            gateway(tmp_path, up.url) as rig,
            rig.client() as client,
            asyncio.timeout(10),
        ):
            await client.write(request({**ASK, "stream": True}))
            status, _ = await client.head()
            assert status == 200
            assert len(await rig.entries()) == 2
            for i in range(5):
                assert await client.chunk() == upstream.delta(str(i))
                assert len(await rig.entries("intent")) == 1
                assert not await rig.entries("settle")
                seen.release()
            assert await client.chunk() == upstream.DONE
            assert await client.chunk() == b""

    run(main(), loop)


def test_events_keep_their_bytes_however_they_are_cut(tmp_path: Path, loop: str) -> None:
    """Cuts inside UTF-8, inside an event, inside CRLF, comments, and no newline at the end."""
    text = (
        ": heartbeat\n\n" + upstream.delta("héllo wörld €").decode() + "data: x\r\n\r\n"
        'data: {"a":1}\ndata: {"b":2}\n\n' + "data: [DONE]\n\ndata: tail"
    ).encode()

    async def main() -> None:
        sizes = [1, 2, 3, 7, 1000]
        left = list(sizes)

        async def script(exchange: Exchange) -> None:
            step = left.pop(0)
            await exchange.begin_stream()
            for i in range(0, len(text), step):
                await exchange.chunk(text[i : i + step])
            await exchange.chunk(b"")

        async with upstream.running(script) as up, gateway(tmp_path, up.url) as rig:
            for _ in sizes:
                reply = await rig.ask({**ASK, "stream": True})
                assert reply.body == text
                await rig.settled()
                settle = (await rig.entries("settle"))[-1]
                assert settle["events"] == 6
                assert settle["status"] == "done"
                assert settle["response"]["bytes"] == len(text)

    run(main(), loop)


def test_the_callers_bytes_go_upstream_unchanged(tmp_path: Path, loop: str) -> None:
    """Odd spacing, escapes and order survive; framing and identity are rebuilt, not copied."""
    body = (
        b' {"messages" :[ {"content":"a\\u00e9  b\\n\\t\xc3\xa9","role":"user"}],\r\n'
        b'"temperature":1.0e0 ,"x-unknown":[1,2.50],"model":"m"}\n'
    )

    async def main() -> None:
        secret = {"api_key": "upstream-secret"}
        async with upstream.running() as up, gateway(tmp_path, up.url, upstream=secret) as rig:
            reply = await rig.ask(
                body,
                headers=("Connection: keep-alive, x-hop", "X-Hop: 1", "OpenAI-Beta: b", "TE: gzip"),
            )
            assert reply.status == 200
            exchange = up.exchanges[0]
            assert exchange.body == body
            assert exchange.request_line == "POST /v1/chat/completions HTTP/1.1"
            assert exchange.headers == {
                "host": f"127.0.0.1:{up.port}",
                "authorization": "Bearer upstream-secret",
                "accept-encoding": "identity",
                "user-agent": "aegis-c",
                "content-type": "application/json",
                "content-length": str(len(body)),
                "x-client-request-id": reply.headers["x-request-id"],
                "openai-beta": "b",
            }

    run(main(), loop)


def test_without_an_upstream_key_nobodys_bearer_goes_upstream(tmp_path: Path, loop: str) -> None:
    async def main() -> None:
        async with upstream.running() as up, gateway(tmp_path, up.url) as rig:
            assert (await rig.ask()).status == 200
            assert "authorization" not in up.exchanges[0].headers
            assert KEY.encode() not in up.exchanges[0].head

    run(main(), loop)


def test_upstream_errors_pass_through_and_are_calls(tmp_path: Path, loop: str) -> None:
    error = {
        "error": {
            "message": "The model 'x' does not exist.",
            "type": "invalid_request_error",
            "param": "model",
            "code": "model_not_found",
        }
    }

    async def main() -> None:
        async def script(exchange: Exchange) -> None:
            await exchange.answer(error, "404 Not Found", ["Retry-After: 7", "X-Other: 1"])

        async with upstream.running(script) as up, gateway(tmp_path, up.url) as rig:
            for stream in (False, True):
                reply = await rig.ask({**ASK, "stream": stream})
                assert reply.status == 404
                assert json.loads(reply.body) == error
                assert reply.headers["retry-after"] == "7"
                assert "x-other" not in reply.headers
            calls = await rig.entries("call")
            assert [c["status"] for c in calls] == [404, 404]
            assert not await rig.entries("intent")

    run(main(), loop)


def test_upstream_errors_in_another_shape_become_openais(tmp_path: Path, loop: str) -> None:
    async def main() -> None:
        answers = [
            (b'{"detail":"quota spent"}', "429 Too Many Requests", "quota spent"),
            (b"<html>Bad Gateway</html>", "502 Bad Gateway", "status 502"),
            (b"[]", "400 Bad Request", "status 400"),
        ]

        async def script(exchange: Exchange) -> None:
            body, status, _ = answers[len(up.exchanges) - 1]
            await exchange.answer(body, status)

        async with upstream.running(script) as up, gateway(tmp_path, up.url) as rig:
            for _, status, words in answers:
                reply = await rig.ask()
                assert reply.status == int(status[:3])
                assert reply.error["code"] == "upstream_error"
                assert words in reply.error["message"]
                call = (await rig.entries("call"))[-1]
                assert call["status"] == reply.status
                assert call["response"] == commitment(rig, call["id"], "response", reply.body)

    run(main(), loop)


def test_the_callers_own_id_is_recorded(tmp_path: Path, loop: str) -> None:
    """OpenAI's header first, else the usual one; the id of the call is always our own."""

    async def main() -> None:
        async with upstream.running() as up, gateway(tmp_path, up.url) as rig:
            openais, usual = "X-Client-Request-Id: a", "X-Request-Id: b"
            for headers in ((openais, usual), (openais,), (usual,), ()):
                reply = await rig.ask(headers=headers)
                assert UUID7.fullmatch(reply.headers["x-request-id"])
            ids = [call.get("client_id") for call in await rig.entries("call")]
            assert ids == ["a", "a", "b", None]

    run(main(), loop)


def test_models_are_the_upstreams(tmp_path: Path, loop: str) -> None:
    listing = {"object": "list", "data": [{"id": "scripted-1", "object": "model"}]}

    async def main() -> None:
        async def script(exchange: Exchange) -> None:
            assert exchange.request_line == "GET /v1/models HTTP/1.1"
            await exchange.answer(listing)

        async with upstream.running(script) as up, gateway(tmp_path, up.url) as rig:
            async with openai.AsyncOpenAI(api_key=KEY, base_url=rig.base_url) as client:
                assert [model.id async for model in client.models.list()] == ["scripted-1"]
            reply = await rig.ask(b"", method="GET", path="/v1/models", secret="wrong")
            assert reply.status == 401
            assert [e["stage"] for e in await rig.entries("rejection")] == ["auth"]

    run(main(), loop)


def test_kept_connections_are_used_again(tmp_path: Path, loop: str) -> None:
    async def main() -> None:
        async with upstream.running() as up, gateway(tmp_path, up.url) as rig:
            for _ in range(20):
                assert (await rig.ask()).status == 200
                assert (await rig.ask({**ASK, "stream": True})).status == 200
            await rig.settled()
            assert up.accepted == 1
            assert rig.runtime.targets.stats() == {"busy": 0, "idle": 1, "waiting": 0}

    run(main(), loop)


def test_a_kept_connection_that_was_closed_is_replaced_once(tmp_path: Path, loop: str) -> None:
    """The upstream closes while idle, or right after it took the next request."""

    async def main() -> None:
        async def close_after(exchange: Exchange) -> None:
            await exchange.answer()
            exchange.close()

        async def only_first_of_connection(exchange: Exchange) -> None:
            if len(up.exchanges) % 2:
                await exchange.answer()
            else:
                exchange.reset()

        async with upstream.running(close_after) as up, gateway(tmp_path, up.url) as rig:
            for _ in range(5):
                assert (await rig.ask()).status == 200
            up.exchanges.clear()
            up.script = only_first_of_connection
            assert (await rig.ask()).status == 200
            retries = rig.runtime.targets.resent()
            assert (await rig.ask()).status == 200  # reset without a byte: sent again
            assert rig.runtime.targets.resent() == retries + 1
            bodies = [exchange.body for exchange in up.exchanges]
            assert bodies[1] == bodies[2]

    run(main(), loop)


def test_a_fresh_connection_that_is_closed_is_not_tried_again(tmp_path: Path, loop: str) -> None:
    async def main() -> None:
        async def script(exchange: Exchange) -> None:
            exchange.reset()

        async with upstream.running(script) as up, gateway(tmp_path, up.url) as rig:
            assert (await rig.ask()).status == 502
            assert len(up.exchanges) == 1

    run(main(), loop)


def test_concurrent_calls_keep_their_answers_apart(tmp_path: Path, loop: str) -> None:
    async def main() -> None:
        async def script(exchange: Exchange) -> None:
            asked = json.loads(exchange.body)["messages"][0]["content"]
            await asyncio.sleep(0.001 * (hash(asked) % 7))
            message = {"role": "assistant", "content": asked}
            await exchange.answer({**upstream.REPLY, "choices": [{"index": 0, "message": message}]})

        async def one(rig: Rig, i: int) -> None:
            ask = {**ASK, "messages": [{"role": "user", "content": f"q{i}"}]}
            reply = await rig.ask(ask)
            assert json.loads(reply.body)["choices"][0]["message"]["content"] == f"q{i}"

        limits = {"max_connections": 7}
        async with (
            upstream.running(script) as up,
            gateway(tmp_path, up.url, upstream=limits) as rig,
        ):
            await asyncio.gather(*(one(rig, i) for i in range(60)))
            assert up.accepted <= 7
            assert len(await rig.entries("call")) == 60
            assert len({e["id"] for e in await rig.entries("call")}) == 60

    run(main(), loop)


def test_analysis_follows_when_the_reply_has_top_logprobs(tmp_path: Path, loop: str) -> None:
    token = {
        "token": "Hi",
        "logprob": -0.1,
        "bytes": None,
        "top_logprobs": [
            {"token": "Hi", "logprob": -0.1, "bytes": None},
            {"token": "Ho", "logprob": -3.0, "bytes": None},
        ],
    }
    choice = {**upstream.REPLY["choices"][0], "logprobs": {"content": [token], "refusal": None}}

    async def main() -> None:
        async def script(exchange: Exchange) -> None:
            if json.loads(exchange.body).get("stream"):
                await exchange.begin_stream()
                part = {"index": 0, "delta": {"content": "Hi"}, "logprobs": choice["logprobs"]}
                await exchange.chunk(upstream.delta("", choices=[part]))
                await exchange.chunk(upstream.DONE)
                await exchange.chunk(b"")
            else:
                await exchange.answer({**upstream.REPLY, "choices": [choice]})

        every = {"analysis": "all"}
        async with (
            upstream.running(script) as up,
            gateway(tmp_path, up.url, evidence=every) as rig,
        ):
            for stream in (False, True):
                assert (await rig.ask({**ASK, "stream": stream})).status == 200
            await rig.wait_for("analysis", 2)
            _, call, *rest = await rig.entries()
            by_kind = {e["kind"]: i + 2 for i, e in enumerate(rest) if e["kind"] != "analysis"}
            analyses = [e for e in rest if e["kind"] == "analysis"]
            assert [a["of"] for a in analyses] == [1, by_kind["settle"]]
            assert analyses[0]["id"] == call["id"]
            for analysis in analyses:
                assert analysis["analysis"]["available"] is True
                assert (analysis["tenant"], analysis["key"]) == ("acme", "k1")

    run(main(), loop)


def test_analyses_without_a_finding_are_recorded_only_when_asked_for(
    tmp_path: Path, loop: str
) -> None:
    async def main() -> None:
        async with upstream.running() as up:
            async with gateway(tmp_path / "a", up.url) as rig:
                await rig.ask()
                await asyncio.sleep(0.05)
                assert not await rig.entries("analysis")
            every = {"analysis": "all"}
            async with gateway(tmp_path / "b", up.url, evidence=every) as rig:
                await rig.ask()
                analysis = (await rig.wait_for("analysis"))[0]["analysis"]
                assert (analysis["method"], analysis["findings"]) == ("text", [])

    run(main(), loop)


def test_no_reply_is_analysed_when_that_is_off(tmp_path: Path, loop: str) -> None:
    """A reply that repeats itself has a finding, and none with that setting."""
    message = {"role": "assistant", "content": "so it goes on " * 300}
    choice = {**upstream.REPLY["choices"][0], "message": message}

    async def script(exchange: Exchange) -> None:
        if json.loads(exchange.body).get("stream"):
            await upstream.answer(exchange)
        else:
            await exchange.answer({**upstream.REPLY, "choices": [choice]})

    async def main() -> None:
        async with upstream.running(script) as up:
            async with gateway(tmp_path / "on", up.url) as rig:
                await rig.ask()
                assert (await rig.wait_for("analysis"))[0]["analysis"]["findings"]
            async with gateway(tmp_path / "off", up.url, evidence={"analysis": "off"}) as rig:
                for stream in (False, True):
                    assert (await rig.ask({**ASK, "stream": stream})).status == 200
                await rig.wait_for("settle")
                await asyncio.sleep(0.05)
                assert not await rig.entries("analysis")
                metrics = await rig.ask(b"", method="GET", path="/metrics", secret=None)
                assert b'aegis_analyses_total{result="available"} 0.0' in metrics.body

    run(main(), loop)
