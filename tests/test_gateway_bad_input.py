"""Requests that must be refused: a clear error, an entry, and nothing sent upstream."""

from __future__ import annotations

import asyncio
import base64
import gzip
import hashlib
import hmac
import json
from pathlib import Path
from typing import Any, Literal

import pytest

import upstream
from gateway_rig import ASK, CHAT, KEY, Client, Reply, Rig, gateway, request, run, until

LIMITS = {"max_body_bytes": 4096, "max_json_depth": 8, "body_timeout": 0.3}


async def check_refused(
    rig: Rig, reply: Reply, status: int, code: str, stage: str, body: bytes | None
) -> dict[str, Any]:
    """The reply has the right error, and the last entry tells the same story."""
    assert reply.status == status, reply.body
    error = reply.error
    assert error["code"] == code
    assert error["message"].endswith((".", ")"))
    entry = (await rig.entries())[-1]
    assert entry["kind"] == "rejection"
    assert entry["id"] == reply.headers["x-request-id"]
    assert (entry["status"], entry["reason"], entry["stage"]) == (status, code, stage)
    native = rig.runtime.ledger.native
    octets_of: dict[Literal["request", "response"], bytes | None]
    octets_of = {"request": body, "response": reply.body}
    for role, octets in octets_of.items():
        if octets is None:
            assert role not in entry
        else:
            digest = hmac.digest(native.salt(entry["id"], role), octets, hashlib.sha256)
            assert entry[role]["bytes"] == len(octets)
            assert entry[role]["commitment"] == base64.b64encode(digest).decode()
    return error


def ask(**members: Any) -> bytes:
    return json.dumps({**ASK, **members}).encode()


BODIES: list[tuple[bytes, str, str | None]] = [
    # not JSON, or JSON on which parsers disagree
    (b"", "invalid_json", None),
    (b"hello", "invalid_json", None),
    (b'{"model":"m"', "invalid_json", "model"),
    (b'{"model":"m",}', "invalid_json", "model"),
    (b"{'model':'m'}", "invalid_json", None),
    (ask() + b"x", "invalid_json", None),
    (ask() + ask(), "invalid_json", None),
    (b"[]", "invalid_json", None),
    (b'"text"', "invalid_json", None),
    (b"null", "invalid_json", None),
    (b"\xef\xbb\xbf" + ask(), "invalid_json", None),
    (ask(temperature=float("nan")), "invalid_json", "temperature"),
    (ask(temperature=float("-inf")), "invalid_json", "temperature"),
    (b'{"model":"a\nb"}', "invalid_json", "model"),
    (b'{"seed":' + b"9" * 300 + b"}", "missing_required_parameter", "model"),
    (b'{"seed":' + b"9" * 4000 + b"}", "invalid_json", "seed"),
    (b'{"seed":1e400}', "invalid_json", "seed"),
    (b'{"x":"\\ud800"}', "invalid_json", "x"),
    (b'{"\\udc00":1}', "invalid_json", None),
    (b'{"x":"\xff"}', "invalid_utf8", "x"),
    (b'{"x":"\xed\xa0\x80"}', "invalid_utf8", "x"),
    (json.dumps(ASK).encode("utf-16"), "invalid_utf8", None),
    (b'{"x":' * 9 + b"1" + b"}" * 9, "json_too_deep", "x.x.x.x.x.x.x.x"),
    (b"[" * 4000, "invalid_json", None),
    (b'{"model":"a","model":"b"}', "duplicate_member", "model"),
    (b'{"mod\\u0065l":"a","model":"b"}', "duplicate_member", "model"),
    (b'{"a":{"b":[{"c":1,"c":2}]}}', "duplicate_member", "a.b[0].c"),
    (b'{"Model":"a","model":"b"}', "ambiguous_member", "model"),
    ('{"\u017ftream":true}'.encode(), "ambiguous_member", "stream"),
    (b'{"messages":[{"ROLE":"system","role":"user"}]}', "ambiguous_member", "messages[0].role"),
    (
        b'{"messages":[{"role":"user","content":[{"type":"text","Text":"x"}]}]}',
        "ambiguous_member",
        "messages[0].content[0].text",
    ),
    # missing members and wrong types
    (b"{}", "missing_required_parameter", "model"),
    (b'{"model":"m"}', "missing_required_parameter", "messages"),
    (ask(model=None), "missing_required_parameter", "model"),
    (ask(model=7), "invalid_type", "model"),
    (ask(model=["m"]), "invalid_type", "model"),
    (ask(model=""), "invalid_value", "model"),
    (ask(messages="Hi"), "invalid_type", "messages"),
    (ask(messages={}), "invalid_type", "messages"),
    (ask(messages=[]), "empty_array", "messages"),
    (ask(messages=["Hi"]), "invalid_type", "messages[0]"),
    (ask(messages=[{"content": "Hi"}]), "missing_required_parameter", "messages[0].role"),
    (ask(messages=[{"role": 1}]), "invalid_type", "messages[0].role"),
    (ask(messages=[{"role": "user", "content": 1}]), "invalid_type", "messages[0].content"),
    (ask(messages=[{"role": "user", "content": {}}]), "invalid_type", "messages[0].content"),
    (
        ask(messages=[{"role": "user", "content": ["Hi"]}]),
        "invalid_type",
        "messages[0].content[0]",
    ),
    (
        ask(messages=[{"role": "user", "content": [{"text": "Hi"}]}]),
        "invalid_type",
        "messages[0].content[0].type",
    ),
    (ask(stream="true"), "invalid_type", "stream"),
    (ask(stream=1), "invalid_type", "stream"),
    (ask(n="2"), "invalid_type", "n"),
    (ask(n=1.5), "invalid_type", "n"),
    (ask(n=True), "invalid_type", "n"),
    (ask(n=0), "integer_below_min_value", "n"),
    (ask(max_tokens=-1), "integer_below_min_value", "max_tokens"),
    (ask(max_tokens="many"), "invalid_type", "max_tokens"),
    (ask(max_completion_tokens=10**30), "integer_above_max_value", "max_completion_tokens"),
    (ask(temperature="hot"), "invalid_type", "temperature"),
    (ask(stop=1), "invalid_type", "stop"),
    (ask(tools={}), "invalid_type", "tools"),
    (ask(tool_choice=1), "invalid_type", "tool_choice"),
    (ask(user=1), "invalid_type", "user"),
    (ask(stream_options=[]), "invalid_type", "stream_options"),
    (ask(logprobs=2), "invalid_type", "logprobs"),
    (ask(top_logprobs=True), "invalid_type", "top_logprobs"),
]


def test_bodies_that_are_refused(tmp_path: Path) -> None:
    async def main() -> None:
        async with upstream.running() as up, gateway(tmp_path, up.url, limits=LIMITS) as rig:
            async with rig.client() as client:  # one connection: a refusal does not cost it
                for body, code, param in BODIES:
                    await client.write(request(body, content_type="application/json"))
                    reply = await client.reply()
                    if not body:
                        assert reply.status == 415  # no content type either
                        continue
                    error = await check_refused(rig, reply, 400, code, "body", body)
                    assert error["param"] == param, body
                    assert error["type"] == "invalid_request_error"
                await client.write(request())
                assert (await client.reply()).status == 200
            assert len(up.exchanges) == 1
            assert rig.runtime.admission.in_flight == 0

    run(main())


def test_null_counts_as_absent_and_unknown_members_pass(tmp_path: Path) -> None:
    bodies = [
        ask(stream=None, n=None, max_tokens=None, tools=None, stop=None, temperature=None),
        ask(stop=["a", "b"], tool_choice={"type": "function"}, seed=-1, x_vendor={"Model": 1}),
        ask(messages=[{"role": "assistant", "content": None, "tool_calls": []}]),
        ask(messages=[{"role": "user", "content": [{"type": "text", "text": "[[[[[[[[[[[["}]}]),
        ask(tools=[{"type": "function", "function": {"name": "f", "parameters": {"Name": 1}}}]),
        b'{"model":"m","messages":[{"role":"user","content":"\\ud83d\\ude00 \\\\ud800"}]}',
    ]

    async def main() -> None:
        async with upstream.running() as up, gateway(tmp_path, up.url, limits=LIMITS) as rig:
            for body in bodies:
                assert (await rig.ask(body)).status == 200, body
            assert [exchange.body for exchange in up.exchanges] == bodies

    run(main())


def test_keys(tmp_path: Path) -> None:
    async def main() -> None:
        async with upstream.running() as up, gateway(tmp_path, up.url) as rig:
            cases: list[tuple[str | None, tuple[str, ...]]] = [
                (None, ()),
                ("wrong", ()),
                (KEY + "x", ()),
                (KEY.upper(), ()),
                (None, ("Authorization: Basic Zm9vOmJhcg==",)),
                (None, ("Authorization: Bearer",)),
                (None, ("Authorization: Bearer  ",)),
                (None, (f"Authorization: {KEY}",)),
                (None, ("Authorization: Bearer \xff\xfe",)),
            ]
            for secret, headers in cases:
                reply = await rig.ask(secret=secret, headers=headers)
                error = await check_refused(rig, reply, 401, "invalid_api_key", "auth", None)
                assert reply.headers["www-authenticate"] == "Bearer"
                assert error["type"] == "invalid_request_error"
                entry = (await rig.entries())[-1]
                assert "tenant" not in entry and "key" not in entry
            twice = await rig.ask(headers=(f"Authorization: Bearer {KEY}",))
            await check_refused(rig, twice, 400, "duplicate_header", "guard", None)
            assert (
                await rig.ask(secret=None, headers=(f"authorization: bearer   {KEY} ",))
            ).status == 200
            assert len(up.exchanges) == 1

    run(main())


def test_headers_of_the_body(tmp_path: Path) -> None:
    async def main() -> None:
        async with upstream.running() as up, gateway(tmp_path, up.url) as rig:
            for media in (
                None,
                "text/plain",
                "application/json; charset=utf-16",
                "application/jsonx",
            ):
                reply = await rig.ask(content_type=media)
                await check_refused(rig, reply, 415, "unsupported_media_type", "guard", None)
            for coding in ("br", "gzip, gzip", "x"):
                reply = await rig.ask(headers=(f"Content-Encoding: {coding}",))
                await check_refused(rig, reply, 415, "unsupported_content_encoding", "guard", None)
            for header in (
                "Content-Type: application/json",
                "aegis-session: a\r\naegis-session: b",
            ):
                reply = await rig.ask(headers=(header,))
                await check_refused(rig, reply, 400, "duplicate_header", "guard", None)
            reply = await rig.ask(headers=("Connection: close, Authorization",))
            await check_refused(rig, reply, 400, "invalid_header", "guard", None)
            assert not up.exchanges
            for media in ("application/json; charset=utf-8", 'Application/JSON;charset="UTF-8"'):
                assert (await rig.ask(content_type=media)).status == 200
                assert up.exchanges[-1].headers["content-type"] == media

    run(main())


def test_gzip_bodies(tmp_path: Path) -> None:
    """The commitment and the upstream get the compressed bytes; the checks see the plain ones."""
    plain = ask()
    packed = gzip.compress(plain)

    async def main() -> None:
        async with upstream.running() as up, gateway(tmp_path, up.url, limits=LIMITS) as rig:

            async def script(exchange: upstream.Exchange) -> None:
                await exchange.answer()

            up.script = script
            coded = ("Content-Encoding: gzip",)
            assert (await rig.ask(packed, headers=coded)).status == 200
            assert up.exchanges[0].body == packed
            assert up.exchanges[0].headers["content-encoding"] == "gzip"
            assert (await rig.entries("call"))[0]["request"]["bytes"] == len(packed)
            bomb = gzip.compress(b" " * (50 << 20))
            assert len(bomb) > 4096
            small_bomb = gzip.compress(b" " * (1 << 20))
            assert len(small_bomb) < 4096
            for body, status, code, stage in (
                (small_bomb, 413, "request_too_large", "guard"),
                (packed[:-9], 400, "invalid_gzip", "body"),
                (packed + packed, 400, "invalid_gzip", "body"),
                (b"\x1f\x8b" + plain, 400, "invalid_gzip", "body"),
                (plain, 400, "invalid_gzip", "body"),
                (gzip.compress(b"[]"), 400, "invalid_json", "body"),
            ):
                reply = await rig.ask(body, headers=coded)
                await check_refused(rig, reply, status, code, stage, body)
            reply = await rig.ask(bomb, headers=coded)
            await check_refused(rig, reply, 413, "request_too_large", "guard", None)
            assert len(up.exchanges) == 1

    run(main())


def test_a_body_over_the_limit_is_refused_before_it_is_read(tmp_path: Path) -> None:
    async def main() -> None:
        async with upstream.running() as up, gateway(tmp_path, up.url, limits=LIMITS) as rig:
            async with rig.client() as client, asyncio.timeout(10):
                declared = request(length=False, headers=("Content-Length: 9000000000",))
                await client.write(declared)
                status, headers = await client.head()  # nine gigabytes are still to come
                assert (status, headers["connection"]) == (413, "close")
            async with rig.client() as client, asyncio.timeout(10):
                chunked = request(b"", length=False, headers=("Transfer-Encoding: chunked",))
                chunked = chunked.replace(b"Host:", b"Content-Type: application/json\r\nHost:")
                await client.write(chunked)
                for _ in range(5):
                    await client.write(b"400\r\n" + b" " * 1024 + b"\r\n")
                status, headers = await client.head()  # the end was never sent
                assert (status, headers["connection"]) == (413, "close")
            exact = ask(user="x" * (4096 - len(ask(user=""))))
            assert len(exact) == 4096
            assert (await rig.ask(exact)).status == 200
            reply = await rig.ask(exact + b" ")
            await check_refused(rig, reply, 413, "request_too_large", "guard", None)
            assert [e["reason"] for e in await rig.entries("rejection")] == [
                "request_too_large"
            ] * 3
            assert len(up.exchanges) == 1

    run(main())


def test_a_refusal_of_an_unread_body_can_be_read_by_a_client_that_sends_on(tmp_path: Path) -> None:
    """A plain client sends its whole body before it reads: the 413 must survive that."""

    async def main() -> None:
        async with upstream.running() as up, gateway(tmp_path, up.url, limits=LIMITS) as rig:
            reply = await rig.ask(b" " * (8 << 20))
            await check_refused(rig, reply, 413, "request_too_large", "guard", None)
            assert reply.closed

    run(main())


def test_a_caller_that_asks_before_it_sends(tmp_path: Path) -> None:
    """Expect: 100-continue saves the body of a request that is refused."""

    async def main() -> None:
        async with upstream.running() as up, gateway(tmp_path, up.url, limits=LIMITS) as rig:
            for secret, length, status in (("wrong", 100, 401), (KEY, 1 << 40, 413)):
                async with rig.client() as client, asyncio.timeout(10):
                    headers = ("Expect: 100-continue", f"Content-Length: {length}")
                    raw = request(secret=secret, length=False, headers=headers)
                    await client.write(raw.partition(b"{")[0])
                    assert (await client.head())[0] == status
            body = ask()
            raw = request(body, headers=("Expect: 100-continue",))
            async with rig.client() as client, asyncio.timeout(10):
                await client.write(raw[: -len(body)])
                assert (await client.head())[0] == 100
                await client.write(body)
                assert (await client.reply()).status == 200

    run(main())


@pytest.mark.parametrize("framing", ["length", "chunked"])
def test_half_a_body(tmp_path: Path, framing: str) -> None:
    """The caller goes away inside its body, or stops sending."""
    body = ask()

    async def half(client: Client) -> None:
        if framing == "length":
            await client.write(request(body)[: -len(body) // 2])
        else:
            head = request(b"", length=False, headers=("Transfer-Encoding: chunked",))
            head = head.replace(b"Host:", b"Content-Type: application/json\r\nHost:")
            await client.write(head + b"%x\r\n%s\r\n" % (10, body[:10]))

    async def main() -> None:
        async with upstream.running() as up, gateway(tmp_path, up.url, limits=LIMITS) as rig:
            async with rig.client() as client:
                await half(client)
                await asyncio.sleep(0.05)
            entry = (await rig.wait_for("rejection"))[0]
            assert (entry["status"], entry["reason"], entry["stage"]) == (
                499,
                "client_gone",
                "body",
            )
            assert "request" not in entry and "response" not in entry
            async with rig.client() as client, asyncio.timeout(10):
                await half(client)
                status, headers = await client.head()
                assert (status, headers["connection"]) == (408, "close")
            entry = (await rig.entries("rejection"))[1]
            assert (entry["status"], entry["reason"]) == (408, "request_timeout")
            assert not up.exchanges

    run(main())


def test_routes_and_methods(tmp_path: Path) -> None:
    async def main() -> None:
        async with upstream.running() as up, gateway(tmp_path, up.url) as rig:
            reply = await rig.ask(method="PUT")
            await check_refused(rig, reply, 405, "method_not_supported", "route", None)
            assert reply.headers["allow"] == "POST"
            reply = await rig.ask(b"", method="GET")
            await check_refused(rig, reply, 405, "method_not_supported", "route", None)
            reply = await rig.ask(path="/v1/models")
            await check_refused(rig, reply, 405, "method_not_supported", "route", None)
            assert reply.headers["allow"] == "GET"
            for path in (
                "/v1/nothing",
                "/v1/chat/completions/",
                "/v1//chat/completions",
                "/v1/%00",
            ):
                reply = await rig.ask(path=path)
                await check_refused(rig, reply, 404, "unknown_url", "route", None)
            size = len(await rig.entries())
            for path in ("/nothing", "/v2/models", "/"):
                reply = await rig.ask(path=path)
                assert (reply.status, reply.error["code"]) == (404, "unknown_url")
            assert len(await rig.entries()) == size  # not a call of any kind
            assert not up.exchanges

    run(main())


def test_ambiguous_framing(tmp_path: Path) -> None:
    """The second line: what a lenient server lets through is refused on the ASGI level."""
    from aegis_c.gateway.errors import Refusal
    from aegis_c.gateway.hot.guard import Guard

    guard = Guard(1000, 8, 1.0)

    def head(*headers: tuple[bytes, bytes], version: str = "1.1") -> str | None:
        """The code of the refusal, or None."""
        refusal: Refusal | None = None
        try:
            guard.head({"type": "http", "http_version": version, "headers": list(headers)})
        except Refusal as error:
            refusal = error
        if refusal is None:
            return None
        assert (refusal.status, refusal.stage) == (400, "guard")
        assert (b"connection", b"close") in refusal.headers
        return refusal.code

    length, coding, host = b"content-length", b"transfer-encoding", b"host"
    assert head((length, b"5"), (host, b"a")) is None
    assert head((coding, b"Chunked")) is None
    assert head((length, b"5"), (length, b"5")) == "duplicate_header"
    assert head((host, b"a"), (host, b"a")) == "duplicate_header"
    for value in (b"+5", b"-1", b"0x5", b"05", b"5 ", b"5,5", b"1_0", b"", b"9" * 20, b"\xb2"):
        assert head((length, value)) == "invalid_header", value
    for value in (b"gzip", b"chunked, chunked", b"gzip, chunked", b"identity", b"xchunked"):
        assert head((coding, value)) == "invalid_header", value
    assert head((coding, b"chunked"), (coding, b"chunked")) == "invalid_header"
    assert head((coding, b"chunked"), (length, b"5")) == "invalid_header"
    for value in (b"Content-Length", b"keep-alive, AUTHORIZATION", b"x ,host"):
        assert head((b"connection", value)) == "invalid_header", value
    assert head((b"connection", b"keep-alive, te")) is None
    assert head((length, b"5"), (b"x", b"y"), version="2") is None
    for name, text in (
        (coding, b"chunked"),
        (b"connection", b"close"),
        (b"X", b"y"),
        (b"a b", b"y"),
        (b"x:y", b"z"),
        (b"x", b"y\r\nhost: b"),
        (b"x", b"\0"),
    ):
        assert head((name, text), version="2") == "invalid_header", name


def test_the_first_line_leaves_entries(tmp_path: Path) -> None:
    """What is refused before it is a request: OpenAI's error, an entry, and the connection ends."""
    cases = [
        (request(headers=("Content-Length: 5",)), 400, "duplicate_header"),
        (request(headers=("X: a\rb",)), 400, "malformed_request"),
        (request(method="TRACE"), 400, "method_not_supported"),
        (b"GET /health HTTP/1.1\r\nHost: a\r\nX: " + b"x" * 16384, 431, "request_head_too_large"),
    ]

    async def main() -> None:
        limits = {**LIMITS, "head_timeout": 0.2}
        async with upstream.running() as up, gateway(tmp_path, up.url, limits=limits) as rig:
            for raw, status, code in cases:
                reply = await rig.send(raw)
                assert reply.closed
                await check_refused(rig, reply, status, code, "guard", None)
                assert "byte" in reply.error["message"]
            reply = await rig.send(request()[:40])  # and then nothing more
            await check_refused(rig, reply, 408, "request_timeout", "guard", None)
            assert not up.exchanges
            assert (await rig.ask()).status == 200

    run(main())


def test_a_body_that_breaks_leaves_one_entry(tmp_path: Path) -> None:
    """Its call is under way by then: the entry is the call's, and says what the caller was told."""
    head = request(b"", length=False, headers=("Transfer-Encoding: chunked",))
    head = head.replace(b"Host:", b"Content-Type: application/json\r\nHost:")

    async def main() -> None:
        async with upstream.running() as up, gateway(tmp_path, up.url, limits=LIMITS) as rig:

            async def begun() -> bool:
                return bool(rig.server.server_state.tasks)

            async with rig.client() as client, asyncio.timeout(10):
                await client.write(head + b"1\r\n{\r\n")
                await until(begun)
                await client.write(b"1;x\r\n")
                reply = await client.reply()
            assert reply.closed
            await check_refused(rig, reply, 400, "invalid_body", "guard", None)
            (entry,) = await rig.entries("rejection")
            assert (entry["key"], entry["endpoint"]) == ("k1", CHAT)
            # refused before its body broke: that is the one truth about it
            async with rig.client() as client, asyncio.timeout(10):
                await client.write(head.replace(KEY.encode(), b"sk-unknown") + b"1\r\n{\r\n")
                assert (await client.head())[0] == 401
                await client.write(b"1;x\r\n")
                await client.reader.read()
            async with rig.client() as client, asyncio.timeout(10):  # of another route
                await client.write(head.replace(CHAT.encode(), b"/v1/nothing") + b"1\r\n{\r\n")
                assert (await client.head())[0] == 404
                await client.write(b"1;x\r\n")
                await client.reader.read()
            await rig.settled()
            assert [e["status"] for e in await rig.entries("rejection")] == [400, 401, 404]
            shown = rig.runtime.metrics.text().decode()
            for status in (400, 401):
                assert f'aegis_requests_total{{endpoint="{CHAT}",status="{status}"}} 1.0' in shown
            assert 'status="499"' not in shown

    run(main())


def test_a_body_that_disagrees_with_its_length(tmp_path: Path) -> None:
    """No server should let this through; under one that does, it is refused."""
    from aegis_c.gateway.errors import Refusal
    from aegis_c.gateway.hot.guard import Guard

    async def main() -> None:
        guard = Guard(1000, 8, 1.0)
        head = guard.head({"type": "http", "headers": [(b"content-length", b"5")]})

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": b"{}"}

        with pytest.raises(Refusal, match="says 5 bytes, but 2") as caught:
            await guard.body(head, receive)
        assert caught.value.code == "invalid_body"

    run(main())


def test_errors_of_other_paths_have_the_same_shape(tmp_path: Path) -> None:
    async def main() -> None:
        async with upstream.running() as up, gateway(tmp_path, up.url) as rig:
            for path in ("/health", "/metrics", "/ready"):
                reply = await rig.ask(b"", method="DELETE", path=path)
                assert (reply.status, reply.error["code"]) == (405, "method_not_supported")
                assert reply.headers["allow"] == "GET"
            assert not await rig.entries("rejection")

    run(main())
