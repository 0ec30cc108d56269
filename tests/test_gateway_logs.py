"""What the gateway says on standard error: one JSON object a line, never a body or a key."""

from __future__ import annotations

import asyncio
import json
import logging
import os
from pathlib import Path
from typing import Any

import upstream
from aegis_c.gateway.evidence import Call
from aegis_c.gateway.hot.phases import PHASES
from aegis_c.gateway.logs import CallLog, JsonLines, Repeats
from gateway_process import serving
from gateway_rig import KEY, Client, request, run
from upstream import Exchange, delta

PROMPT = "the-words-of-a-prompt"
ANSWER = "the-words-of-an-answer"
WRONG = "sk-a-key-that-is-wrong"


async def script(exchange: Exchange) -> None:
    if not json.loads(exchange.body).get("stream"):
        await exchange.answer({"choices": [], "note": ANSWER})
        return
    await exchange.begin_stream()
    await exchange.chunk(delta(ANSWER) + upstream.DONE)
    await exchange.chunk(b"")


def test_one_line_a_call_and_no_secret_under_load(tmp_path: Path) -> None:
    log = tmp_path / "log"
    ask = {"model": "m-1", "messages": [{"role": "user", "content": PROMPT}]}
    statuses: dict[str, int] = {}

    async def caller(client: Client) -> None:
        for n in range(15):
            body: Any = [
                ask,
                {**ask, "stream": True},
                ask,
                {"model": PROMPT},
                b"{" + PROMPT.encode(),
            ][n % 5]
            secret = WRONG if n % 5 == 2 else KEY
            await client.write(request(body, secret=secret))
            reply = await client.reply()
            statuses[reply.headers["x-request-id"]] = reply.status

    async def main() -> None:
        with log.open("wb") as written:
            async with (
                upstream.running(script) as up,
                serving(tmp_path / "data", up.url, log=written) as server,
            ):
                async with asyncio.TaskGroup() as group:
                    for _ in range(8):
                        await asyncio.sleep(0)
                        group.create_task(with_client(server))
                assert await server.end() == 0

    async def with_client(server: Any) -> None:
        async with server.client() as client:
            await caller(client)

    run(main())
    text = log.read_text()
    for secret in (PROMPT, ANSWER, WRONG, KEY):
        assert secret not in text
    lines = [json.loads(line) for line in text.splitlines()]
    calls = [line for line in lines if line["logger"] == "aegis_c.gateway.calls"]
    assert {line["id"]: line["status"] for line in calls} == statuses
    assert len(calls) == len(statuses) == 120
    assert set(statuses.values()) == {200, 400, 401}
    for line in calls:
        assert line["timing"]["total_us"] > 0
        assert set(line["phases_ns"]) <= set(PHASES)
        assert sum(line["phases_ns"].values()) <= (line["timing"]["total_us"] + 1) * 1000
        if line["status"] == 200:
            assert {"guard", "auth", "body", "first_byte", "evidence"} <= set(line["phases_ns"])
            assert line["outcome"] in (None, "done")
        else:
            assert line["outcome"] in (
                "invalid_api_key",
                "invalid_json",
                "missing_required_parameter",
            )
        if line["status"] == 200:
            assert (line["tenant"], line["key"], line["model"]) == ("acme", "k1", "m-1")
            assert line["timing"]["upstream_us"] > 0


def record(message: str, *arguments: object, level: int = logging.ERROR) -> logging.LogRecord:
    return logging.LogRecord("aegis", level, "f", 1, message, arguments, None)


def test_repeated_warnings_are_counted() -> None:
    now = [0.0]
    repeats = Repeats(lambda: now[0])
    passed = [repeats.filter(record("disk %d", n)) for n in range(25)]
    assert passed == [True] * 10 + [False] * 15
    assert repeats.filter(record("another"))
    assert all(repeats.filter(record("disk", level=logging.INFO)) for _ in range(50))
    now[0] = 11.0
    last = record("disk %d", 25)
    assert repeats.filter(last)
    line = json.loads(JsonLines().format(last))
    assert (line["message"], line["repeated"], line["level"]) == ("disk 25", 15, "error")


def test_a_line_stays_a_line() -> None:
    line = JsonLines().format(record("two\nlines and %s", "\x00\u2028"))
    assert "\n" not in line
    assert json.loads(line)["message"] == "two\nlines and \x00\u2028"


def test_a_reader_that_stops_does_not_hold_calls_up(tmp_path: Path) -> None:
    read, write = os.pipe()
    os.set_blocking(read, False)

    def drain() -> bytes:
        parts = []
        try:
            while part := os.read(read, 1 << 16):
                parts.append(part)
        except BlockingIOError:
            pass
        return b"".join(parts)

    async def main() -> None:
        calls = CallLog(write)
        call = Call("/v1/chat/completions", "127.0.0.1")
        call.model = "m" * 250
        made = 0
        while not calls.dropped:  # nobody reads the pipe
            calls.write(call, 200, 1000)
            made += 1
            if made % 1000 == 0:
                await asyncio.sleep(0.01)
        dropped = calls.dropped
        closing = asyncio.create_task(calls.close())
        data = b""
        while not closing.done():
            data += drain()
            await asyncio.sleep(0.001)
        data += drain()
        lines = [json.loads(line) for line in data.splitlines()]
        lost = sum(line.get("calls_not_logged", 0) for line in lines)
        assert lost == dropped
        assert sum("id" in line for line in lines) == made - dropped

    try:
        run(main())
    finally:
        os.close(read)
        os.close(write)
