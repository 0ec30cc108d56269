"""Upstreams that misbehave, callers that leave: a clean end, the right entry, nothing leaked."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import socket
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import openai
import pytest

import upstream
from aegis_c.gateway.hot.adapters.openai import EventReader
from certificates import make_certificates
from gateway_rig import ASK, KEY, Client, Rig, gateway, request, run, until
from upstream import Exchange, Script, delta

QUICK = {
    "first_byte_timeout": 0.3,
    "idle_timeout": 0.3,
    "total_timeout": 1.0,
    "max_reply_bytes": 100_000,
}
STREAM = {**ASK, "stream": True}


Left = tuple[int, int]


def held(up: upstream.Upstream) -> Left:
    """Tasks and descriptors of this process beside those of idle upstream connections."""
    gc.collect()
    files = len(os.listdir("/proc/self/fd"))
    return len(asyncio.all_tasks()) - up.open, files - 2 * up.open


async def before(rig: Rig, up: upstream.Upstream) -> Left:
    """What a gateway that has served holds at rest."""
    assert (await rig.ask()).status == 200
    await check_nothing_left(rig, up, (1000, 1000))
    return held(up)


async def check_nothing_left(rig: Rig, up: upstream.Upstream, rest: Left) -> None:
    """After the calls: no call, busy connection, waiter, task or descriptor remains of them."""
    await rig.settled()
    assert rig.runtime.admission.reserved() == 0
    for _ in range(250):
        now = held(up)
        idle = rig.runtime.targets.stats()
        if now[0] <= rest[0] and now[1] <= rest[1] and idle == {**idle, "idle": up.open}:
            return
        await asyncio.sleep(0.02)
    raise AssertionError(f"{rest} tasks and descriptors before, {held(up)} now; {idle}, {up.open}")


def raw(data: bytes, *, close: bool = True) -> Script:
    """A script that answers with exactly these bytes."""

    async def script(exchange: Exchange) -> None:
        await exchange.write(data)
        if close:
            exchange.close()
        else:
            await exchange.gone()

    return script


async def hang(exchange: Exchange) -> None:
    await exchange.gone()


async def reset(exchange: Exchange) -> None:
    exchange.reset()


async def reset_inside(exchange: Exchange) -> None:
    await exchange.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{")
    await asyncio.sleep(0.05)
    exchange.reset()


async def endless_head(exchange: Exchange) -> None:
    await exchange.write(b"HTTP/1.1 200 OK\r\n")
    for _ in range(100):
        await exchange.write(b"X: " + b"a" * 1000 + b"\r\n")
    await exchange.gone()


async def drip(exchange: Exchange) -> None:
    """A byte now and then: each wait is short, the whole is not."""
    await exchange.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
    for _ in range(1000):
        await exchange.write(b" ")
        await asyncio.sleep(0.05)


OK = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
BROKEN: dict[str, tuple[Script, int, str]] = {
    "closes at once": (raw(b""), 502, "upstream_error"),
    "resets": (reset, 502, "upstream_error"),
    "resets inside": (reset_inside, 502, "upstream_error"),
    "garbage": (raw(b"\x00\xff garbage\r\n\r\n"), 502, "upstream_error"),
    "TLS instead of HTTP": (raw(b"\x15\x03\x01\x00\x02\x02\x46"), 502, "upstream_error"),
    "another protocol": (raw(b"SSH-2.0-OpenSSH_9.6\r\n"), 502, "upstream_error"),
    "half a head": (raw(b"HTTP/1.1 200 OK\r\nContent-"), 502, "upstream_error"),
    "half a body": (raw(OK + b"Content-Length: 50\r\n\r\n{}"), 502, "upstream_error"),
    "half a chunk": (raw(OK + b"Transfer-Encoding: chunked\r\n\r\n9\r\n{}"), 502, "upstream_error"),
    "no last chunk": (
        raw(OK + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n"),
        502,
        "upstream_error",
    ),
    "bad chunk size": (
        raw(OK + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n"),
        502,
        "upstream_error",
    ),
    "two lengths": (
        raw(OK + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{} "),
        502,
        "upstream_error",
    ),
    "length and chunked": (
        raw(OK + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n"),
        502,
        "upstream_error",
    ),
    "negative length": (raw(OK + b"Content-Length: -2\r\n\r\n{}"), 502, "upstream_error"),
    "not JSON": (raw(OK + b"Content-Length: 5\r\n\r\nhello"), 502, "upstream_error"),
    "no object": (raw(OK + b"Content-Length: 2\r\n\r\n[]"), 502, "upstream_error"),
    "empty": (raw(OK + b"Content-Length: 0\r\n\r\n"), 502, "upstream_error"),
    "no content": (raw(b"HTTP/1.1 204 No Content\r\n\r\n"), 502, "upstream_error"),
    "redirect": (
        raw(b"HTTP/1.1 302 Found\r\nLocation: http://x/\r\nContent-Length: 2\r\n\r\n{}"),
        502,
        "upstream_error",
    ),
    "switches protocols": (
        raw(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n"),
        502,
        "upstream_error",
    ),
    "status 999": (raw(b"HTTP/1.1 999 What\r\nContent-Length: 2\r\n\r\n{}"), 502, "upstream_error"),
    "head without end": (endless_head, 502, "upstream_error"),
    "one huge field": (
        raw(OK + b"X: " + b"y" * 400_000 + b"\r\nContent-Length: 2\r\n\r\n{}"),
        502,
        "upstream_error",
    ),
    "field with a NUL": (
        raw(OK + b"X: a\0b\r\nContent-Length: 2\r\n\r\n{}"),
        502,
        "upstream_error",
    ),
    "field with a CR": (
        raw(OK + b"X: a\rSet-Cookie: b\r\nContent-Length: 2\r\n\r\n{}"),
        502,
        "upstream_error",
    ),
    "endless interim replies": (
        raw(b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" * 9000),
        502,
        "upstream_error",
    ),
    "endless trailers": (
        raw(OK + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n" + b"T: 1\r\n" * 300),
        502,
        "upstream_error",
    ),
    "too many fields": (
        raw(OK + b"X: 1\r\n" * 300 + b"Content-Length: 2\r\n\r\n{}"),
        502,
        "upstream_error",
    ),
    "too large": (
        raw(OK + b"Content-Length: 200000\r\n\r\n" + b" " * 200_000),
        502,
        "upstream_error",
    ),
    "too large, chunked": (
        raw(OK + b"Transfer-Encoding: chunked\r\n\r\n" + b"8000\r\n%s\r\n" % (b" " * 32768) * 7),
        502,
        "upstream_error",
    ),
    "hangs": (hang, 504, "upstream_timeout"),
    "hangs inside": (
        raw(OK + b"Content-Length: 50\r\n\r\n{", close=False),
        504,
        "upstream_timeout",
    ),
    "drips": (drip, 504, "upstream_timeout"),
}


def test_every_broken_answer_is_a_clear_error_and_leaks_nothing(tmp_path: Path) -> None:
    async def one(rig: Rig, up: upstream.Upstream, name: str, body: dict[str, Any]) -> None:
        up.script, status, code = BROKEN[name]
        sent = len(up.exchanges)
        reply = await rig.ask(body)
        assert (reply.status, reply.error["code"]) == (status, code), name
        assert reply.error["type"] == "upstream_error"
        entry = (await rig.entries())[-1]
        assert (entry["kind"], entry["stage"]) == ("rejection", "upstream"), name
        assert (entry["status"], entry["reason"]) == (status, code)
        assert entry["id"] == reply.headers["x-request-id"]
        assert entry["model"] == {"asked": "scripted-1"}
        assert entry["request"]["bytes"] == len(json.dumps(body))
        assert entry["response"]["bytes"] == len(reply.body)
        assert len(up.exchanges) == sent + 1, f"{name}: sent again"

    async def main() -> None:
        async with upstream.running() as up, gateway(tmp_path, up.url, upstream=QUICK) as rig:
            rest = await before(rig, up)
            for name in ("garbage", *BROKEN):  # from then on no kept connection is left
                await one(rig, up, name, ASK)
            for name in ("closes at once", "half a body", "garbage", "hangs", "not JSON"):
                await one(rig, up, name, STREAM)
            await check_nothing_left(rig, up, rest)
            up.script = upstream.answer
            assert (await rig.ask()).status == 200

    run(main())


def test_informational_replies_and_closed_bodies_are_legal(tmp_path: Path) -> None:
    body = json.dumps(upstream.REPLY).encode()
    legal = [
        b"HTTP/1.1 100 Continue\r\n\r\n" + OK + b"Content-Length: %d\r\n\r\n" % len(body) + body,
        b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" * 2
        + OK
        + b"Content-Length: %d\r\n\r\n" % len(body)
        + body,
        OK + b"Connection: close\r\n\r\n" + body,
        b"HTTP/1.0 200 OK\r\n\r\n" + body,
        OK
        + b"Transfer-Encoding: chunked\r\n\r\n1;x=y\r\n{\r\n%x\r\n%s\r\n0\r\nT: 1\r\n\r\n"
        % (len(body) - 1, body[1:]),
    ]

    async def main() -> None:
        async with upstream.running() as up, gateway(tmp_path, up.url, upstream=QUICK) as rig:
            for data in legal:
                up.script = raw(data)
                reply = await rig.ask()
                assert (reply.status, reply.body) == (200, body), data
                assert reply.headers["content-type"] == "application/json"
            await rig.settled()

    run(main())


async def none_is_kept(rig: Rig) -> bool:
    return rig.runtime.targets.stats()["idle"] == 0


def test_bytes_that_nobody_asked_for_end_the_connection(tmp_path: Path) -> None:
    """A second reply could be taken for the answer to the next request: it never is."""
    body = json.dumps(upstream.REPLY).encode()
    reply = OK + b"Content-Length: %d\r\n\r\n" % len(body) + body
    forged = reply.replace(b"Hello.", b"Forged")

    async def together(exchange: Exchange) -> None:
        await exchange.write(reply + forged)

    async def later(exchange: Exchange) -> None:
        await exchange.write(reply)
        await asyncio.sleep(0.02)
        await exchange.write(forged)

    async def main() -> None:
        async with upstream.running() as up, gateway(tmp_path, up.url, upstream=QUICK) as rig:
            for script in (together, later):
                up.script = script
                accepted = up.accepted
                for i in range(3):
                    assert (await rig.ask()).body == body
                    await until(partial(none_is_kept, rig))
                    assert up.accepted == accepted + i + 1

    run(main())


def test_no_request_can_choose_a_host(tmp_path: Path) -> None:
    """Whatever a request says of hosts, the upstream that the settings name is asked, or nobody."""
    body = json.dumps({**ASK, "base_url": "http://evil.example", "api_base": "http://evil.example"})

    def asks(target: str, *headers: str) -> bytes:
        lines = [f"POST {target} HTTP/1.1", f"Authorization: Bearer {KEY}", *headers]
        lines += ["Content-Type: application/json", f"Content-Length: {len(body)}", "", body]
        return "\r\n".join(lines).encode()

    chat = "/v1/chat/completions"
    tries = [
        asks(chat, "Host: evil.example"),
        asks(
            chat, "Host: gateway", "X-Forwarded-Host: evil.example", "Forwarded: host=evil.example"
        ),
        asks(chat, "Host: gateway", "X-Base-Url: http://evil.example", "Location: http://evil"),
        asks(f"{chat}?url=http://evil.example", "Host: gateway"),
        asks(f"http://evil.example{chat}", "Host: evil.example"),
        asks(f"//evil.example{chat}", "Host: gateway"),
        asks(f"@evil.example{chat}", "Host: gateway"),
        asks(f"/v1/chat/completions/../../http://evil.example{chat}", "Host: gateway"),
    ]

    async def main() -> None:
        async with upstream.running() as up, gateway(tmp_path, up.url) as rig:
            answered = [(await rig.send(data)).status for data in tries]
            assert answered[:4] == [200] * 4
            assert set(answered) <= {200, 400, 404}
            assert len(up.exchanges) == answered.count(200)
            for exchange in up.exchanges:
                assert exchange.request_line == "POST /v1/chat/completions HTTP/1.1"
                assert exchange.headers["host"] == f"127.0.0.1:{up.port}"
                assert b"evil" not in exchange.head

    run(main())


def test_an_answer_before_the_request_was_read(tmp_path: Path) -> None:
    """It is passed on and recorded as it is; its connection, with half a request on it, ends."""
    large = {**ASK, "messages": [{"role": "user", "content": "x" * (12 << 20)}]}

    async def refuses(exchange: Exchange) -> None:
        await exchange.answer({"error": {"message": "too much"}}, "413 Content Too Large")
        await exchange.gone()

    async def agrees(exchange: Exchange) -> None:
        await exchange.answer()
        await exchange.gone()

    async def main() -> None:
        async with upstream.running() as up, gateway(tmp_path, up.url) as rig:
            for script, status in ((refuses, 413), (agrees, 200)):
                up.script, up.early = script, True
                reply = await rig.ask(large)
                assert reply.status == status
                entry = (await rig.entries())[-1]
                assert (entry["kind"], entry["status"]) == ("call", status)
                assert entry["request"]["bytes"] == len(json.dumps(large))
                await until(partial(none_is_kept, rig))
                up.script, up.early = upstream.answer, False
                accepted = up.accepted
                assert (await rig.ask()).status == 200  # and not the rest of the other body
                assert up.accepted == accepted + 1

    run(main())


def test_a_flood_without_end_is_bounded_in_time_and_memory(tmp_path: Path) -> None:
    """A stream that never ends and never pauses: the caller sets the pace, the clock the end."""
    piece = delta("flood" * 2000)

    async def flood(exchange: Exchange) -> None:
        await exchange.begin_stream()
        try:
            while True:
                await exchange.chunk(piece)
        except ConnectionError:
            pass

    async def main() -> None:
        async with upstream.running(flood) as up, gateway(tmp_path, up.url, upstream=QUICK) as rig:
            async with rig.client() as client, asyncio.timeout(20):
                await client.write(request(STREAM))
                await client.head()
                got = bytearray()
                while chunk := await client.chunk():
                    got += chunk
                    await asyncio.sleep(0.001)
            await rig.settled()
            settle = (await rig.entries("settle"))[0]
            assert settle["status"] == "timeout"
            assert settle["response"]["bytes"] == len(got)
            assert got.endswith(b"\n\n") and b"upstream_timeout" in got[-400:]

    run(main())


def test_an_upstream_that_is_down(tmp_path: Path) -> None:
    async def main() -> None:
        with socket.socket() as closed:
            closed.bind(("127.0.0.1", 0))  # bound and not listening: connections are refused
            url = f"http://127.0.0.1:{closed.getsockname()[1]}/v1"
            async with gateway(tmp_path, url) as rig:
                for body in (ASK, STREAM):
                    reply = await rig.ask(body)
                    assert (reply.status, reply.error["code"]) == (502, "upstream_error")
                reply = await rig.ask(b"", method="GET", path="/v1/models")
                assert (reply.status, reply.error["code"]) == (502, "upstream_error")
                entries = await rig.entries("rejection")
                assert [e["stage"] for e in entries] == ["upstream"] * 3
                async with openai.AsyncOpenAI(
                    api_key=KEY, base_url=rig.base_url, max_retries=0
                ) as client:
                    with pytest.raises(openai.InternalServerError, match="could not be reached"):
                        await client.chat.completions.create(**ASK)

    run(main())


def test_an_upstream_that_never_accepts(tmp_path: Path) -> None:
    """A full backlog: the connection is never made."""

    async def main() -> None:
        with socket.socket() as full:
            full.bind(("127.0.0.1", 0))
            full.listen(0)
            fillers = [socket.socket() for _ in range(3)]
            for filler in fillers:
                filler.setblocking(False)
                filler.connect_ex(full.getsockname())
            url = f"http://127.0.0.1:{full.getsockname()[1]}/v1"
            async with gateway(tmp_path, url, upstream={"connect_timeout": 0.3}) as rig:
                reply = await rig.ask()
                assert (reply.status, reply.error["code"]) == (504, "upstream_timeout")
            for filler in fillers:
                filler.close()

    run(main())


def test_a_pool_that_is_full_says_so(tmp_path: Path) -> None:
    async def main() -> None:
        tight = {"max_connections": 1, "connect_timeout": 0.2}
        async with upstream.running(hang) as up, gateway(tmp_path, up.url, upstream=tight) as rig:
            async with rig.client() as first:
                await first.write(request())
                await up.asked(1)
                reply = await rig.ask()
                assert (reply.status, reply.error["code"]) == (503, "overloaded")
                assert reply.headers["retry-after"] == "1"
                assert len(up.exchanges) == 1
            await rig.settled()  # the first caller left: its slot is free again
            up.script = upstream.answer
            assert (await rig.ask()).status == 200

    run(main())


# -- streams that end badly --------------------------------------------------------------------

Ending = Callable[[Exchange], Awaitable[None]]


async def cut_in_event(exchange: Exchange) -> None:
    await exchange.chunk(b'data: {"half')
    exchange.close()


async def bad_chunk(exchange: Exchange) -> None:
    await exchange.write(b"zz\r\n")
    await exchange.gone()


async def silence(exchange: Exchange) -> None:
    await exchange.gone()


async def endless(exchange: Exchange) -> None:
    try:
        while True:
            await exchange.chunk(delta("more"))
            await asyncio.sleep(0.05)
    except ConnectionError:
        pass


@pytest.mark.parametrize(
    ("ending", "status", "code"),
    [
        (reset, "upstream_error", "upstream_error"),
        (cut_in_event, "upstream_error", "upstream_error"),
        (bad_chunk, "upstream_error", "upstream_error"),
        (silence, "timeout", "upstream_timeout"),
        (endless, "timeout", "upstream_timeout"),
    ],
)
def test_an_upstream_that_dies_inside_its_stream(
    tmp_path: Path, ending: Ending, status: str, code: str
) -> None:
    """The events before are delivered, then one error event, then the stream ends in order."""

    async def script(exchange: Exchange) -> None:
        await exchange.begin_stream()
        await exchange.chunk(delta("one"))
        await exchange.chunk(delta("two"))
        await asyncio.sleep(0.05)
        await ending(exchange)

    async def main() -> None:
        async with upstream.running() as up, gateway(tmp_path, up.url, upstream=QUICK) as rig:
            rest = await before(rig, up)
            up.script = script
            reply = await rig.ask(STREAM)
            events = reply.body.split(b"\n\n")
            assert events[:2] == [delta("one").strip(), delta("two").strip()]
            assert events[-1] == b""
            error = json.loads(events[-2].removeprefix(b"data: "))["error"]
            assert (error["code"], error["type"]) == (code, "upstream_error")
            assert b"half" not in reply.body  # an unfinished event is not delivered
            settle = (await rig.entries("settle"))[0]
            assert settle["status"] == status
            assert settle["response"]["bytes"] == len(reply.body)
            await check_nothing_left(rig, up, rest)

            async with openai.AsyncOpenAI(
                api_key=KEY, base_url=rig.base_url, max_retries=0
            ) as client:
                stream = await client.chat.completions.create(**STREAM)
                with pytest.raises(openai.APIError, match="model server"):
                    async for _ in stream:
                        pass

    run(main())


def test_a_stream_that_breaks_after_its_last_event_is_done(tmp_path: Path) -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.begin_stream()
        await exchange.chunk(delta("all") + upstream.DONE)
        exchange.close()

    async def main() -> None:
        async with upstream.running(script) as up, gateway(tmp_path, up.url) as rig:
            reply = await rig.ask(STREAM)
            assert reply.body == delta("all") + upstream.DONE
            assert (await rig.entries("settle"))[0]["status"] == "done"

    run(main())


def test_a_plain_answer_to_a_stream_request_is_a_call(tmp_path: Path) -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.answer()

    async def main() -> None:
        async with upstream.running(script) as up, gateway(tmp_path, up.url) as rig:
            assert json.loads((await rig.ask(STREAM)).body) == upstream.REPLY
            assert [e["kind"] for e in await rig.entries()] == ["admin", "call"]
            assert rig.runtime.admission.reserved() == 0

    run(main())


def test_a_fault_of_our_own_inside_a_stream_is_settled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bug must not leave an intent without its settle, nor a reply that looks complete."""

    def broken(*_: object) -> bytes:
        raise ZeroDivisionError("a bug")

    async def main() -> None:
        async with upstream.running() as up, gateway(tmp_path, up.url) as rig:
            rest = await before(rig, up)
            with monkeypatch.context() as patch:
                patch.setattr(EventReader, "feed", broken)
                with pytest.raises(asyncio.IncompleteReadError):
                    await rig.ask(STREAM)
                await check_nothing_left(rig, up, rest)
            settle = (await rig.entries("settle"))[0]
            assert (settle["status"], settle["events"]) == ("internal_error", 0)
            assert not await rig.entries("rejection")

    run(main())


# -- callers that leave ------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["close", "reset"])
def test_a_caller_that_leaves_inside_a_stream(tmp_path: Path, how: str) -> None:
    """The upstream is cancelled, the settle says what was delivered, nothing remains."""
    left = asyncio.Event()

    async def script(exchange: Exchange) -> None:
        await exchange.begin_stream()
        await exchange.chunk(delta("one"))
        await exchange.gone()
        left.set()

    async def leave(client: Client) -> None:
        if how == "close":
            client.writer.close()
        else:
            client.writer.transport.abort()

    async def main() -> None:
        async with upstream.running() as up, gateway(tmp_path, up.url) as rig:
            rest = await before(rig, up)
            up.script = script
            async with rig.client() as client, asyncio.timeout(10):
                await client.write(request(STREAM))
                await client.head()
                assert await client.chunk() == delta("one")
                await leave(client)
                await left.wait()
            await check_nothing_left(rig, up, rest)
            settle = (await rig.entries("settle"))[0]
            assert (settle["status"], settle["events"]) == ("client_gone", 1)
            assert settle["response"]["bytes"] == len(delta("one"))
            assert settle["of"] == (await rig.entries()).index((await rig.entries("intent"))[0])

    run(main())


@pytest.mark.parametrize("when", ["before the head", "inside the body"])
def test_a_caller_that_leaves_while_the_model_works(tmp_path: Path, when: str) -> None:
    left = asyncio.Event()

    async def script(exchange: Exchange) -> None:
        if when == "inside the body":
            await exchange.write(OK + b"Content-Length: 50\r\n\r\n{")
        await exchange.gone()
        left.set()

    async def main() -> None:
        async with upstream.running() as up, gateway(tmp_path, up.url) as rig:
            rest = await before(rig, up)
            up.script = script
            for body in (ASK, STREAM):
                left.clear()
                sent = len(up.exchanges)
                async with rig.client() as client, asyncio.timeout(10):
                    await client.write(request(body))
                    await up.asked(sent + 1)
                    client.writer.close()
                    await left.wait()
                await check_nothing_left(rig, up, rest)
                entry = (await rig.entries())[-1]
                assert (entry["kind"], entry["status"]) == ("rejection", 499)
                assert (entry["reason"], entry["stage"]) == ("client_gone", "upstream")
                assert entry["request"]["bytes"] == len(json.dumps(body))

    run(main())


def test_a_caller_that_stops_reading(tmp_path: Path) -> None:
    """Back-pressure reaches the upstream; after the idle time the call is ended and recorded."""
    piece = delta("x" * 60_000)
    sent = 0

    async def script(exchange: Exchange) -> None:
        nonlocal sent
        await exchange.begin_stream()
        try:
            while True:
                await exchange.chunk(piece)
                sent += len(piece)
        except ConnectionError:
            pass

    async def main() -> None:
        patient = {**QUICK, "total_timeout": 60.0}
        async with (
            upstream.running(script) as up,
            gateway(tmp_path, up.url, upstream=patient) as rig,
        ):
            async with rig.client() as client, asyncio.timeout(20):
                await client.write(request(STREAM))
                await client.head()
                settle = (await rig.wait_for("settle"))[0]
                assert settle["status"] == "timeout"
                assert settle["response"]["bytes"] < sent < 40 << 20
                client.writer.transport.abort()
            await rig.settled()

    run(main())


def test_a_slow_reader_gets_everything(tmp_path: Path) -> None:
    """Reading is paused and resumed many times; no byte is lost or changed."""
    pieces = [delta(chr(97 + i % 26) * 50_000) for i in range(200)]

    async def script(exchange: Exchange) -> None:
        await exchange.begin_stream()
        for piece in pieces:
            await exchange.chunk(piece)
        await exchange.chunk(b"")

    async def main() -> None:
        async with upstream.running(script) as up, gateway(tmp_path, up.url) as rig:
            async with rig.client() as client, asyncio.timeout(30):
                await client.write(request(STREAM))
                await client.head()
                received = []
                while chunk := await client.chunk():
                    received.append(chunk)
                    if len(received) % 10 == 0:
                        await asyncio.sleep(0.01)
                assert b"".join(received) == b"".join(pieces)
            await rig.settled()
            settle = (await rig.entries("settle"))[0]
            assert (settle["status"], settle["events"]) == ("done", 200)

    run(main())


def test_many_callers_leave_at_every_point(tmp_path: Path) -> None:
    """Each of many calls is cut off somewhere else; every one leaves its entries."""

    async def script(exchange: Exchange) -> None:
        await asyncio.sleep(0.01)
        if json.loads(exchange.body).get("stream"):
            await exchange.begin_stream()
            for i in range(10):
                await exchange.chunk(delta(str(i)))
                await asyncio.sleep(0.005)
            await exchange.chunk(upstream.DONE)
            await exchange.chunk(b"")
        else:
            await exchange.answer()

    async def one(rig: Rig, i: int) -> None:
        async with rig.client() as client:
            data = request(STREAM if i % 2 else ASK)
            await client.write(data if i % 5 else data[: len(data) - i % 40 - 1])
            await asyncio.sleep(i * 0.0007)
            client.writer.transport.abort()

    async def main() -> None:
        generous = {"rejections_per_source": 1000.0, "rejections_total": 1000.0}
        async with (
            upstream.running() as up,
            gateway(tmp_path, up.url, evidence=generous) as rig,
        ):
            rest = await before(rig, up)
            up.script = script
            await asyncio.gather(*(one(rig, i) for i in range(100)))
            await check_nothing_left(rig, up, rest)
            entries = await rig.entries()
            begun = {e["id"] for e in entries if e["kind"] == "intent"}
            assert begun == {e["id"] for e in entries if e["kind"] == "settle"}
            forwarded = len(up.exchanges) - 1
            plain = [e for e in entries if e["kind"] == "call"]
            upstream_left = [e for e in entries if e.get("stage") == "upstream"]
            assert len(begun) + len(plain) - 1 + len(upstream_left) >= forwarded

    run(main())


def test_https_is_verified(tmp_path: Path) -> None:
    """A certificate of a named authority passes; an unknown one, or another name, does not."""
    ca, certificate, private = make_certificates(tmp_path)

    async def main() -> None:
        import ssl

        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, private)
        up = upstream.Upstream()
        server = await asyncio.start_server(up.serve, "127.0.0.1", 0, ssl=context)
        port = server.sockets[0].getsockname()[1]
        try:
            for host, authority, status in (
                ("localhost", ca, 200),
                ("127.0.0.1", ca, 502),  # not a name of the certificate
                ("localhost", None, 502),
            ):
                url = f"https://{host}:{port}/v1"
                data = tmp_path / f"{host}-{authority is None}"
                trust = {"ca_file": authority} if authority else {}
                async with gateway(data, url, upstream=trust) as rig:
                    for body in (ASK, STREAM):
                        assert (await rig.ask(body)).status == status
        finally:
            server.close()
            await server.wait_closed()

    run(main())
