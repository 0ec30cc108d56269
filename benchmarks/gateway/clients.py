"""The upstream client alone, beside aiohttp and httpx: CPU of one process that only asks.

    python -m benchmarks.gateway.clients pool|aiohttp|httpx URL CONNECTIONS SECONDS

Prints one JSON object. Each is set up as its own documentation advises for many calls to one host:
one session, kept connections, as many as there are tasks. Each task sends the request of the
gateway benchmark, reads the whole reply, and checks its length.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import uvloop

from benchmarks.gateway.harness import chat_body

Ask = Callable[[bytes], Awaitable[bytes]]
_WARM = 200  # calls before the clock starts


@asynccontextmanager
async def pool(url: str, connections: int) -> AsyncIterator[Ask]:
    """The gateway's own."""
    from aegis_c.gateway.hot.pool import Pool
    from aegis_c.gateway.settings import Upstream

    one = Pool(Upstream(url=url, max_connections=connections))
    start = one.request_head(b"POST", b"/chat/completions") + b"content-type: application/json\r\n"

    async def ask(body: bytes) -> bytes:
        head = start + b"content-length: %d\r\n\r\n" % len(body)
        connection = await one.open(head, body)
        try:
            connection = await one.answered(connection, head, body)
            return await connection.body()
        finally:
            connection.release()

    yield ask
    one.close()


@asynccontextmanager
async def aiohttp(url: str, connections: int) -> AsyncIterator[Ask]:
    """aiohttp's client session."""
    library: Any = import_module("aiohttp")
    headers = {"content-type": "application/json"}
    connector = library.TCPConnector(limit=connections)
    async with library.ClientSession(connector=connector, headers=headers) as session:

        async def ask(body: bytes) -> bytes:
            async with session.post(f"{url}/chat/completions", data=body) as reply:
                content: bytes = await reply.read()
                return content

        yield ask


@asynccontextmanager
async def httpx(url: str, connections: int) -> AsyncIterator[Ask]:
    """httpx's asynchronous client, or its successor's where that is the one installed."""
    library: Any = import_module("httpx" if find_spec("httpx") else "httpx2")
    limits = library.Limits(max_connections=connections, max_keepalive_connections=connections)
    headers = {"content-type": "application/json"}
    async with library.AsyncClient(limits=limits, headers=headers, timeout=60) as client:

        async def ask(body: bytes) -> bytes:
            reply = await client.post(f"{url}/chat/completions", content=body)
            content: bytes = reply.content
            return content

        yield ask


CLIENTS = {"pool": pool, "aiohttp": aiohttp, "httpx": httpx}


async def measure(name: str, url: str, connections: int, seconds: float) -> dict[str, Any]:
    """CPU and calls of ``connections`` tasks that ask again and again."""
    body = chat_body("mock-1", stream=False)
    async with CLIENTS[name](url, connections) as ask:
        size = len(await ask(body))
        calls = 0

        async def caller(until: Callable[[], bool]) -> None:
            nonlocal calls
            while until():
                if len(await ask(body)) != size:
                    raise RuntimeError("a reply has another length")
                calls += 1

        async def run(until: Callable[[], bool]) -> None:
            async with asyncio.TaskGroup() as group:
                for _ in range(connections):
                    group.create_task(caller(until))

        await run(lambda: calls < _WARM)
        calls = 0
        cpu, start = time.process_time(), time.monotonic()
        await run(lambda: time.monotonic() - start < seconds)
        cpu = time.process_time() - cpu
        took = time.monotonic() - start
    return {"calls": calls, "rps": calls / took, "cpu_us": cpu / calls * 1e6}


def main(name: str, url: str, connections: str, seconds: str) -> None:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        print(json.dumps(runner.run(measure(name, url, int(connections), float(seconds)))))


if __name__ == "__main__":
    main(*sys.argv[1:])
