"""Streams whose upstream misbehaves, is silent or slow: what callers get, and the settle entry."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import openai
import pytest

import upstream
from aegis_c.gateway.hot.adapters.openai import HOLD_LIMIT, EventReader
from gateway_rig import ASK, KEY, Reply, Rig, gateway, request, run
from test_gateway_calls import commitment
from upstream import DONE, Exchange, Script, delta

STREAM = {**ASK, "stream": True}
BEAT = b": keep-alive\n\n"
SSE = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
TWO = delta("one") + delta("two")


def sends(data: bytes, how: str = "close", pause: float = 0.0) -> Script:
    """A script that sends exactly these bytes, then closes, resets or holds the connection."""

    async def script(exchange: Exchange) -> None:
        await exchange.write(data)
        await asyncio.sleep(pause)
        if how == "close":
            exchange.close()
        elif how == "reset":
            exchange.reset()
        elif how == "hold":
            await exchange.gone()

    return script


def chunked(*pieces: bytes) -> bytes:
    return b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces)


async def drip(exchange: Exchange) -> None:
    """One octet at a time, cut inside UTF-8 and inside the line ends."""
    await exchange.begin_stream()
    for octet in delta("é€😀") + DONE:
        await exchange.chunk(bytes([octet]))
        await asyncio.sleep(0)
    await exchange.chunk(b"")


async def endless(exchange: Exchange) -> None:
    await exchange.begin_stream()
    try:
        while True:
            await exchange.chunk(delta("more"))
            await asyncio.sleep(0.05)
    except ConnectionError:
        pass


async def hints(exchange: Exchange) -> None:
    """An informational reply comes first."""
    await exchange.write(b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n")
    await exchange.write(SSE + b"Transfer-Encoding: chunked\r\n\r\n" + chunked(TWO, DONE, b""))


async def limited(exchange: Exchange) -> None:
    error = {"message": "slow down", "type": "requests", "param": None, "code": "rate_limited"}
    await exchange.answer({"error": error}, "429 Too Many Requests", ["Retry-After: 7"])


async def broken(exchange: Exchange) -> None:
    await exchange.answer(b"<h1>Internal Server Error</h1>", "500 Internal Server Error")


CHUNKED = SSE + b"Transfer-Encoding: chunked\r\n\r\n"
#: name: (script, status of the reply, status of the settle, code of the error that the caller sees)
ENDINGS: dict[str, tuple[Script, int, str, str | None]] = {
    "chunked": (sends(CHUNKED + chunked(TWO, DONE, b""), "keep"), 200, "done", None),
    "by length": (
        sends(SSE + b"Content-Length: %d\r\n\r\n" % len(TWO) + TWO, "keep"),
        200,
        "done",
        None,
    ),
    "by close": (sends(SSE + b"Connection: close\r\n\r\n" + TWO + DONE), 200, "done", None),
    "no media type": (
        sends(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + TWO + DONE),
        200,
        "done",
        None,
    ),
    "other case": (
        sends(CHUNKED.replace(b"text/event", b"Text/Event") + chunked(TWO, DONE, b""), "keep"),
        200,
        "done",
        None,
    ),
    "without a last line end": (sends(CHUNKED + chunked(TWO, b"data: x", b"")), 200, "done", None),
    "no event": (sends(CHUNKED + chunked(b"")), 200, "done", None),
    "octet by octet": (drip, 200, "done", None),
    "early hints": (hints, 200, "done", None),
    "no events but garbage": (sends(CHUNKED + chunked(b"\x00\xff\r\x00", b"")), 200, "done", None),
    "resets": (
        sends(CHUNKED + chunked(TWO), "reset", 0.05),
        200,
        "upstream_error",
        "upstream_error",
    ),
    "closes": (sends(CHUNKED + chunked(TWO)), 200, "upstream_error", "upstream_error"),
    "half an event": (
        sends(CHUNKED + chunked(TWO, b'data: {"half')),
        200,
        "upstream_error",
        "upstream_error",
    ),
    "half a chunk": (
        sends(CHUNKED + chunked(TWO) + b"ff\r\ndata: {"),
        200,
        "upstream_error",
        "upstream_error",
    ),
    "too short": (
        sends(SSE + b"Content-Length: 9999\r\n\r\n" + TWO),
        200,
        "upstream_error",
        "upstream_error",
    ),
    "too long": (
        sends(SSE + b"Content-Length: %d\r\n\r\n" % len(TWO) + TWO + DONE),
        200,
        "done",
        None,
    ),
    "bad chunk size": (
        sends(CHUNKED + chunked(TWO) + b"zz\r\n", "hold"),
        200,
        "upstream_error",
        "upstream_error",
    ),
    "after the last event": (sends(CHUNKED + chunked(TWO, DONE), "reset", 0.05), 200, "done", None),
    "silent": (sends(CHUNKED + chunked(TWO), "hold"), 200, "timeout", "upstream_timeout"),
    "endless": (endless, 200, "timeout", "upstream_timeout"),
    "huge headers": (
        sends(SSE + b"X-Filler: " + b"x" * 200_000 + b"\r\n\r\n", "hold"),
        502,
        "upstream_error",
        "upstream_error",
    ),
    "many headers": (
        sends(SSE + b"X-Filler: x\r\n" * 500 + b"\r\n", "hold"),
        502,
        "upstream_error",
        "upstream_error",
    ),
    "never": (sends(b"", "hold"), 504, "upstream_timeout", "upstream_timeout"),
    "at once": (sends(b""), 502, "upstream_error", "upstream_error"),
    "not HTTP": (sends(b"\x00\xff garbage\r\n\r\n"), 502, "upstream_error", "upstream_error"),
    "a page": (
        sends(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 4\r\n\r\n<p/>", "keep"
        ),
        502,
        "upstream_error",
        "upstream_error",
    ),
    "429": (limited, 429, "", "rate_limited"),
    "500": (broken, 500, "", "upstream_error"),
    "plain": (upstream.Exchange.answer, 200, "", None),
}
QUICK = {
    "first_byte_timeout": 0.4,
    "idle_timeout": 0.4,
    "total_timeout": 1.0,
    "heartbeat": 0.15,
}


@pytest.mark.parametrize("mode", ["background", "durable", "write-ahead"])
def test_every_way_a_stream_can_end(tmp_path: Path, mode: str) -> None:
    """All of them at a time: the reply, its error, its entries, and that nothing is left over."""

    async def script(exchange: Exchange) -> None:
        await ENDINGS[json.loads(exchange.body)["model"]][0](exchange)

    def check(rig: Rig, name: str, reply: Reply, entries: list[dict[str, Any]]) -> None:
        _, status, ending, code = ENDINGS[name]
        mine = [e for e in entries if e["id"] == reply.headers["x-request-id"]]
        kinds = [entry["kind"] for entry in mine]
        last = mine[-1]
        assert reply.status == status
        assert last["response"] == commitment(rig, last["id"], "response", reply.body)
        streamed = reply.headers["content-type"] != "application/json"
        if streamed:
            assert kinds == ["intent", "settle"]
            assert last["status"] == ending
            events = reply.body.replace(BEAT, b"")
            errors = [e for e in events.split(b"\n\n") if e.startswith(b'data: {"error"')]
            assert len(errors) == (1 if code else 0)
            if code:
                assert events.endswith(errors[0] + b"\n\n")
                assert json.loads(errors[0][6:])["error"]["code"] == code
                assert b"half" not in events
            if name not in ("no event", "no events but garbage", "octet by octet", "endless"):
                assert events.startswith(TWO)
                assert last["events"] >= 2
        else:
            error = json.loads(reply.body).get("error")
            assert (error and error["code"]) == code
            if mode == "write-ahead":
                assert kinds == ["intent", "settle"]
            else:
                refused = ending != ""
                assert kinds == ["rejection" if refused else "call"]
            assert last["status"] == status
            if name == "429":
                assert reply.headers["retry-after"] == "7"
        assert ("aegis-entry" in reply.headers) == (mode != "background")

    async def main() -> None:
        evidence = {"mode": mode}
        async with (
            upstream.running(script) as up,
            gateway(tmp_path, up.url, upstream=QUICK, evidence=evidence) as rig,
        ):
            await rig.runtime.ledger.durable(0)
            asks = (rig.ask({**STREAM, "model": name}) for name in ENDINGS)
            replies = await asyncio.gather(*asks)
            await rig.settled()
            assert rig.runtime.admission.reserved() == 0
            entries = await rig.entries()
            for name, reply in zip(ENDINGS, replies, strict=True):
                check(rig, name, reply, entries)
            intents = {i for i, e in enumerate(entries) if e["kind"] == "intent"}
            settled = [e["of"] for e in entries if e["kind"] == "settle"]
            assert sorted(settled) == sorted(intents)

    run(main())


# -- silence -----------------------------------------------------------------------------------


@pytest.mark.parametrize("held", [b"", b'data: {"half'], ids=["between events", "inside one"])
def test_a_silent_upstream_gets_a_comment_for_the_caller(tmp_path: Path, held: bytes) -> None:
    """Comments stand between events, are committed to, and are no events."""

    async def main() -> None:
        release = asyncio.Event()

        async def script(exchange: Exchange) -> None:
            await exchange.begin_stream()
            await exchange.chunk(delta("one"))
            if held:
                await exchange.chunk(held)
            await release.wait()
            await exchange.chunk(delta("two")[len(held) :] if held else delta("two"))
            await exchange.chunk(DONE)
            await exchange.chunk(b"")

        beat = {"heartbeat": 0.05}
        async with (
            upstream.running(script) as up,
            gateway(tmp_path, up.url, upstream=beat) as rig,
            rig.client() as client,
            asyncio.timeout(10),
        ):
            await client.write(request(STREAM))
            await client.head()
            body = await client.chunk()
            assert body == delta("one")
            for _ in range(3):
                part = await client.chunk()
                assert part == BEAT
                body += part
            release.set()
            while part := await client.chunk():
                body += part
            assert body.endswith(DONE)
            settle = (await rig.wait_for("settle"))[0]
            assert settle["events"] == 3
            assert settle["response"] == commitment(rig, settle["id"], "response", body)

    run(main())


def test_comments_do_not_keep_a_dead_upstream_alive(tmp_path: Path) -> None:
    async def main() -> None:
        quick = {"heartbeat": 0.05, "idle_timeout": 0.4}
        script = sends(CHUNKED + chunked(delta("one")), "hold")
        async with upstream.running(script) as up, gateway(tmp_path, up.url, upstream=quick) as rig:
            reply = await rig.ask(STREAM)
            assert reply.body.startswith(delta("one") + BEAT * 2)
            assert b"upstream_timeout" in reply.body
            assert (await rig.entries("settle"))[0]["status"] == "timeout"

    run(main())


def test_no_comment_unless_asked_for(tmp_path: Path) -> None:
    async def main() -> None:
        quick = {"heartbeat": 0, "idle_timeout": 0.3}
        script = sends(CHUNKED + chunked(delta("one")), "hold")
        async with upstream.running(script) as up, gateway(tmp_path, up.url, upstream=quick) as rig:
            assert BEAT not in (await rig.ask(STREAM)).body

    run(main())


def test_an_event_too_large_to_hold_is_never_broken_into(tmp_path: Path) -> None:
    """Part of it is passed on early: no comment inside it, and an error stands apart from it."""
    huge = b"data: " + b"x" * (HOLD_LIMIT + 100_000)

    async def main() -> None:
        quick = {"heartbeat": 0.05, "idle_timeout": 0.4}
        script = sends(CHUNKED + chunked(huge), "hold")
        async with upstream.running(script) as up, gateway(tmp_path, up.url, upstream=quick) as rig:
            reply = await rig.ask(STREAM)
            before, _, error = reply.body.partition(b"\n\n")
            assert before == huge
            assert json.loads(error[6:])["error"]["code"] == "upstream_timeout"
            settle = (await rig.entries("settle"))[0]
            assert settle["response"]["bytes"] == len(reply.body)

    run(main())


def test_the_reader_knows_where_an_event_ends() -> None:
    reader = EventReader()
    assert reader.between
    assert reader.feed(b"data: x") == b"" and reader.between
    assert reader.feed(b"\n\nda") == b"data: x\n\n" and reader.between
    assert reader.feed(b"y" * (HOLD_LIMIT + 1)) and not reader.between
    assert reader.close() == b"\n\n"
    assert reader.feed(b"tail") == b"" and not reader.between
    assert reader.feed(b"\n\n") == b"tail\n\n" and reader.between
    assert reader.close() == b""


def test_the_official_client_reads_through_comments(tmp_path: Path) -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.begin_stream()
        for word in ("Hel", "lo", "."):
            await exchange.chunk(delta(word))
            await asyncio.sleep(0.15)
        await exchange.chunk(DONE)
        await exchange.chunk(b"")

    async def main() -> None:
        beat = {"heartbeat": 0.03}
        async with upstream.running(script) as up, gateway(tmp_path, up.url, upstream=beat) as rig:
            async with openai.AsyncOpenAI(api_key=KEY, base_url=rig.base_url) as client:
                stream = await client.chat.completions.create(**STREAM)
                text = "".join([c.choices[0].delta.content or "" async for c in stream])
            assert text == "Hello."
            settle = (await rig.wait_for("settle"))[0]
            words = len(delta("Hel") + delta("lo") + delta(".") + DONE)
            assert settle["response"]["bytes"] >= words + 3 * len(BEAT)

    run(main())
