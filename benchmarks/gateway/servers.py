"""What the governed gateway is compared with: four servers that govern nothing, or naively.

    python -m benchmarks.gateway.servers bare|passthrough|aiohttp|naive UPSTREAM-URL

Each prints ``listening on http://127.0.0.1:PORT`` and serves until SIGTERM, with the same server
options as `aegis-c serve` (uvicorn, httptools, uvloop).
"""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import Awaitable, Callable
from urllib.parse import urlsplit

import uvicorn
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from aegis_c.gateway.hot.pool import Pool
from aegis_c.gateway.serve import server_config
from aegis_c.gateway.settings import Upstream

REPLY_BYTES = 1370  # what bench_http's upstream answers
MAX_CONNECTIONS = 2048

Answer = Callable[[bytes, Send], Awaitable[None]]


async def _body(receive: Receive) -> bytes:
    parts = []
    while True:
        message = await receive()
        parts.append(message.get("body", b""))
        if not message.get("more_body", False):
            return b"".join(parts)


def _start(status: int, headers: list[tuple[bytes, bytes]]) -> Message:
    return {"type": "http.response.start", "status": status, "headers": headers}


async def _send_json(send: Send, body: bytes) -> None:
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
    ]
    await send(_start(200, headers))
    await send({"type": "http.response.body", "body": body})


def _app(answer: Answer) -> ASGIApp:
    """An ASGI application that reads the body and answers, and nothing else."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            while True:
                message = await receive()
                await send({"type": message["type"] + ".complete"})
                if message["type"] == "lifespan.shutdown":
                    return
        await answer(await _body(receive), send)

    return app


def bare(_: str) -> ASGIApp:
    """The floor of the server: a constant answer, no upstream."""
    reply = b'{"x":"' + b"x" * (REPLY_BYTES - 8) + b'"}'

    async def answer(body: bytes, send: Send) -> None:
        await _send_json(send, reply if body else b'{"status":"ok"}')

    return _app(answer)


def passthrough(url: str) -> ASGIApp:
    """The floor of a proxy: the gateway's own upstream pool and not one check or record."""
    pool: Pool | None = None

    async def answer(body: bytes, send: Send) -> None:
        nonlocal pool
        if pool is None:
            pool = Pool(Upstream(url=url, max_connections=MAX_CONNECTIONS))
        head = pool.request_head(b"POST", b"/chat/completions")
        head += b"content-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body)
        connection = await pool.open(head, body)
        try:
            connection = await pool.answered(connection, head, body)
            if b"content-length" in connection.headers:
                await _send_json(send, await connection.body())
                return
            await send(_start(200, [(b"content-type", connection.headers[b"content-type"])]))
            while (piece := await connection.chunk()) is not None:
                await send({"type": "http.response.body", "body": piece, "more_body": True})
            await send({"type": "http.response.body", "body": b""})
        finally:
            connection.release()

    return _app(answer)


def with_aiohttp(url: str) -> ASGIApp:
    """The usual proxy: the same server, aiohttp for the upstream, and not one check or record."""
    from aiohttp import ClientSession, TCPConnector

    session: ClientSession | None = None

    async def answer(body: bytes, send: Send) -> None:
        nonlocal session
        if session is None:
            session = ClientSession(connector=TCPConnector(limit=MAX_CONNECTIONS))
        headers = {"content-type": "application/json"}
        async with session.post(f"{url}/chat/completions", data=body, headers=headers) as reply:
            if reply.content_type == "application/json":
                await _send_json(send, await reply.read())
                return
            await send(_start(200, [(b"content-type", reply.headers["content-type"].encode())]))
            async for piece in reply.content.iter_any():
                await send({"type": "http.response.body", "body": piece, "more_body": True})
            await send({"type": "http.response.body", "body": b""})

    return _app(answer)


def naive(url: str) -> ASGIApp:
    """How it is usually written; imported here, so that the floors stay as small as they are."""
    from benchmarks.gateway.naive import create_app

    return create_app(url)


APPS: dict[str, Callable[[str], ASGIApp]] = {
    "bare": bare,
    "passthrough": passthrough,
    "aiohttp": with_aiohttp,
    "naive": naive,
}


def main(name: str, url: str) -> None:
    """Serve one of APPS before the upstream at ``url``."""
    assert urlsplit(url).hostname == "127.0.0.1"
    config = server_config(APPS[name](url), 1.0)
    config.http = "httptools"  # floors and rivals have no guard before their parser
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(MAX_CONNECTIONS)
        print(f"listening on http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
        with asyncio.Runner(loop_factory=config.get_loop_factory()) as runner:
            runner.run(uvicorn.Server(config).serve(sockets=[listener]))


if __name__ == "__main__":
    main(*sys.argv[1:])
