"""Replies that no model should give: the caller gets them as they are, and what could not be
analysed of them is reported in the log. A plain one that is no JSON is not passed on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import upstream
from gateway_rig import ASK, gateway, run
from upstream import REPLY, Exchange


def reply(content: str | None, tokens: Any = None) -> bytes:
    choice: dict[str, Any] = {**REPLY["choices"][0], "message": {"role": "assistant"}}
    if content is not None:
        choice["message"]["content"] = content
    if tokens is not None:
        choice["logprobs"] = {"content": tokens}
    return json.dumps({**REPLY, "choices": [choice]}).encode()  # NaN and -Infinity as they are


def token(logprob: Any, top: list[Any] | None = None, **members: Any) -> dict[str, Any]:
    listed = [{"token": f"t{i}", "logprob": x} for i, x in enumerate(top or [])]
    return {"token": "t0", "logprob": logprob, "top_logprobs": listed, **members}


NAN, INFINITE = float("nan"), float("-inf")
#: name: (the body, members that its analysis must have)
REPLIES: dict[str, tuple[bytes, dict[str, Any]]] = {
    "NaN": (reply("sea", [token(NAN, [NAN, -1.0])] * 4), {"available": True, "skipped": 4}),
    "minus infinity": (
        reply("sea", [token(-0.5, [-0.5, INFINITE])] * 4),
        {"available": True, "method": "top_logprobs", "count": 4},
    ),
    "missing": (reply("sea", [{"token": "t0"}, {}, token(None, [None])]), {"available": True}),
    "above zero": (
        reply("sea", [token(3.0, [3.0, 0.1])] * 3),
        {"available": True, "skipped": 3, "impossible": 3},
    ),
    "thousands": (
        reply("sea", [token(-1.0, [-9.0 - i / 50 for i in range(5000)])] * 2),
        {"available": True, "method": "top_logprobs", "count": 2},
    ),
    "no lists": (reply("sea", {"not": "a list"}), {"available": True, "method": "text"}),
    "tokens that are no UTF-8": (
        reply("sea", [token(-1.0, [-1.0], bytes=[255, 254, 300, -1])] * 3),
        {"available": True},
    ),
    "damaged text": (
        reply("sea").replace(b"sea", b"s\xff\xfea"),
        {"available": True, "method": "text"},
    ),
    "lone surrogate": (reply("sea").replace(b"sea", rb"\ud83d sea"), {"available": True}),
    "no text": (reply(""), {"available": False, "reason": "neither text nor logprobs"}),
    "no message": (reply(None), {"available": False, "reason": "neither text nor logprobs"}),
    "ten megabytes": (reply("sea and sky " * 900_000), {"available": True, "method": "text"}),
}

NO_JSON = ("NaN", "minus infinity", "lone surrogate")


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
def test_odd_replies_are_passed_on_and_reported(tmp_path: Path, stream: bool) -> None:
    bodies = [body for body, _ in REPLIES.values()]

    async def script(exchange: Exchange) -> None:
        body = bodies[len(up.exchanges) - 1]
        if not stream:
            await exchange.answer(body)
            return
        await exchange.begin_stream()
        event = body.replace(b'"message"', b'"delta"').replace(b"chat.completion", b"chunk")
        await exchange.chunk(b"data: " + event + b"\n\n")
        await exchange.chunk(upstream.DONE)
        await exchange.chunk(b"")

    async def main() -> None:
        nonlocal up
        async with (
            upstream.running(script) as up,
            gateway(tmp_path, up.url, evidence={"analysis": "all"}) as rig,
        ):
            refused = 0
            for number, (name, (body, expected)) in enumerate(REPLIES.items(), 1):
                got = await rig.ask({**ASK, "stream": stream})
                await rig.settled()
                entries = await rig.entries()
                if not stream and name in NO_JSON:
                    assert (got.status, entries[-1]["kind"]) == (502, "rejection"), name
                    refused += 1
                    continue
                assert got.status == 200, name
                assert stream or got.body == body, name
                analysed = [entry for entry in entries if entry["kind"] == "analysis"]
                assert len(analysed) == number - refused, name
                found, call = analysed[-1]["analysis"], entries[analysed[-1]["of"]]
                assert call["kind"] == ("settle" if stream else "call"), name
                for member, value in expected.items():
                    assert found.get(member) == value, (name, member, found)

    up: Any = None
    run(main())
