"""The first stage of a request: the raw guard on heads, the strict scan on bodies.

`python -m pytest benchmarks/test_http.py`. The guard beside the parser that reads the same bytes
behind it, and beside a pure-Python twin; the scan beside parsers that only ask whether it is JSON.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from typing import Any

import httptools
import msgspec
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from aegis_c import JsonScanner, RequestGuard
from aegis_c.gateway.hot.strictjson import GOVERNED, StrictJson
from benchmarks import twin_http

pytest.importorskip("pytest_benchmark")

#: What the official Python client sends with a short question.
HEAD = b"\r\n".join(
    [
        b"POST /v1/chat/completions HTTP/1.1",
        b"Host: 127.0.0.1:8080",
        b"Accept-Encoding: gzip, deflate, zstd",
        b"Connection: keep-alive",
        b"Accept: application/json",
        b"Content-Type: application/json",
        b"User-Agent: OpenAI/Python 2.3.0",
        b"X-Stainless-Lang: python",
        b"X-Stainless-Package-Version: 2.3.0",
        b"X-Stainless-OS: Linux",
        b"X-Stainless-Arch: x64",
        b"X-Stainless-Runtime: CPython",
        b"X-Stainless-Runtime-Version: 3.11.7",
        b"X-Stainless-Async: false",
        b"x-stainless-retry-count: 0",
        b"x-stainless-read-timeout: 600",
        b"Authorization: Bearer sk-0123456789abcdef0123456789abcdef0123456789abcdef",
        b"Content-Length: 2",
        b"",
        b"{}",
    ]
)
CALLS = 200


class Quiet:
    """The parser's callbacks, of the least that a server has."""

    def on_header(self, name: bytes, value: bytes) -> None:
        pass


def parse() -> Callable[[], object]:
    parser = httptools.HttpRequestParser(Quiet())
    return lambda: parser.feed_data(HEAD)


def guard() -> Callable[[], object]:
    feed = RequestGuard().feed
    return lambda: feed(HEAD)


def twin_guard() -> Callable[[], object]:
    return lambda: twin_http.check_head(HEAD)


HEADS: dict[str, Callable[[], Callable[[], object]]] = {
    "aegis-c RequestGuard": guard,
    "pure Python": twin_guard,
    "httptools, which parses behind it": parse,
}


@pytest.mark.parametrize("row", HEADS)
def test_heads(benchmark: BenchmarkFixture, row: str) -> None:
    benchmark.group = f"guard: one request, head of {len(HEAD) - 2} bytes and 17 fields"
    benchmark.extra_info |= {"row": row, "calls": CALLS, "baseline": row == "pure Python"}
    call = HEADS[row]()

    def many() -> None:
        for _ in range(CALLS):
            call()

    benchmark(many)


TEXT = "The quick brown fox jumps over the lazy dog, and nobody asks why. "


def chat(size: int) -> bytes:
    messages = [{"role": "user", "content": TEXT * 8}] * max(1, size // 560)
    return json.dumps({"model": "m", "messages": messages, "temperature": 0.7}).encode()


def tools(size: int) -> bytes:
    parameters = {
        "type": "object",
        "properties": {"a": {"type": "string"}, "b": {"type": "number"}},
    }
    tool = {"type": "function", "function": {"name": "look_up", "parameters": parameters}}
    return json.dumps({"model": "m", "messages": [], "tools": [tool] * (size // 165)}).encode()


def script(size: int) -> bytes:
    messages = [{"role": "user", "content": "素早い茶色の狐がのろまな犬を飛び越える。" * 10}] * (
        size // 640
    )
    return json.dumps({"model": "m", "messages": messages}, ensure_ascii=False).encode()


BODIES = {
    "chat 2 kB": chat(2_000),
    "chat 32 kB": chat(32_000),
    "chat 1 MB": chat(1_000_000),
    "chat 16 MB": chat(16_000_000),
    "tool schemas 8 kB": tools(8_000),
    "Japanese 32 kB": script(32_000),
}


def readers() -> dict[str, Callable[[bytes], Any]]:
    found: dict[str, Callable[[bytes], Any]] = {
        "aegis-c JsonScanner": JsonScanner(GOVERNED).scan,
        "aegis-c scan, then decode": StrictJson(64).read,
        "pure Python": twin_http.strict_json,
        "msgspec, is it JSON": msgspec.json.Decoder(msgspec.Raw).decode,
        "msgspec, decode": msgspec.json.Decoder().decode,
        "json, decode": json.loads,
    }
    if importlib.util.find_spec("orjson") is not None:
        import orjson

        found["orjson, decode"] = orjson.loads
    return found


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("row", readers())
def test_bodies(benchmark: BenchmarkFixture, row: str, body: str) -> None:
    octets = BODIES[body]
    calls = max(1, 200_000 // len(octets))
    benchmark.group = "strict JSON"
    read = readers()[row]

    def many() -> None:
        for _ in range(calls):
            read(octets)

    benchmark.extra_info |= {
        "row": f"{body}: {row}",
        "calls": calls,
        "against": body,
        "baseline": row == "pure Python",
    }
    benchmark(many)
    if benchmark.stats is not None:
        seconds = benchmark.stats.stats.median / calls
        benchmark.extra_info["GB/s"] = round(len(octets) / seconds / 1e9, 3)
