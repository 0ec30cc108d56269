"""A scripted upstream: a raw asyncio server that answers, or misbehaves, exactly as told.

It speaks bytes, not HTTP, so that it can break every rule. A script is an async function of one
Exchange; whatever it writes goes out as it is. When it returns, the connection is kept for the
next request unless the script closed it.
"""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

Script = Callable[["Exchange"], Awaitable[None]]

REPLY: dict[str, Any] = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "created": 1,
    "model": "scripted-1",
    "choices": [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "Hello."},
            "finish_reason": "stop",
        }
    ],
    "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5},
}


class Exchange:
    """One request as it arrived, and the connection to answer on."""

    def __init__(
        self, head: bytes, body: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.head = head
        self.body = body
        self._reader = reader
        self._writer = writer

    @property
    def request_line(self) -> str:
        return self.head.split(b"\r\n", 1)[0].decode()

    @property
    def headers(self) -> dict[str, str]:
        """Header fields by lower-case name; a repeated one is an error of the gateway."""
        fields: dict[str, str] = {}
        for line in self.head.decode("latin-1").split("\r\n")[1:]:
            if line:
                name, _, value = line.partition(":")
                assert name.lower() not in fields, f"{name} is sent twice"
                fields[name.lower()] = value.strip()
        return fields

    @property
    def tls(self) -> ssl.SSLObject:
        """The TLS of the connection, as the server sees it."""
        found: ssl.SSLObject = self._writer.get_extra_info("ssl_object")
        return found

    async def write(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    async def answer(
        self, document: Any = REPLY, status: str = "200 OK", headers: Iterable[str] = ()
    ) -> None:
        """A well-formed JSON answer."""
        body = document if isinstance(document, bytes) else json.dumps(document).encode()
        lines = [
            f"HTTP/1.1 {status}",
            "Content-Type: application/json",
            f"Content-Length: {len(body)}",
            *headers,
        ]
        await self.write("\r\n".join(lines).encode() + b"\r\n\r\n" + body)

    async def begin_stream(self) -> None:
        await self.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n"
        )

    async def chunk(self, data: bytes) -> None:
        """One chunk of a chunked body; an empty one ends it."""
        await self.write(b"%x\r\n%s\r\n" % (len(data), data))

    async def gone(self) -> None:
        """Wait until the gateway has closed its end."""
        while await self._reader.read(65536):
            pass

    def close(self) -> None:
        """Close in order."""
        self._writer.close()

    def reset(self) -> None:
        """Tear the connection down without a word."""
        self._writer.transport.abort()


def delta(text: str, **members: Any) -> bytes:
    """One event of a streamed answer."""
    event = {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": "scripted-1",
        "choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}],
        **members,
    }
    return b"data: " + json.dumps(event).encode() + b"\n\n"


DONE = b"data: [DONE]\n\n"


async def answer(exchange: Exchange) -> None:
    """The well-behaved script: a stream when one is asked for, else a plain answer."""
    asked = json.loads(exchange.body) if exchange.body else {}
    if asked.get("stream"):
        await exchange.begin_stream()
        for word in ("Hel", "lo", "."):
            await exchange.chunk(delta(word))
        await exchange.chunk(delta("", choices=[], usage=REPLY["usage"]))
        await exchange.chunk(DONE)
        await exchange.chunk(b"")
    else:
        await exchange.answer()


async def endless(exchange: Exchange) -> None:
    """As above, but a stream never ends by itself."""
    if not json.loads(exchange.body).get("stream"):
        await exchange.answer()
        return
    try:
        await exchange.begin_stream()
        while True:
            await exchange.chunk(delta("more"))
            await asyncio.sleep(0.02)
    except ConnectionError:
        pass


class Upstream:
    """The server. ``script`` may be replaced at any time; it serves the requests after that.

    ``early``: the script is run before the body of a request is read, with an empty one.
    """

    def __init__(self, script: Script = answer) -> None:
        self.script = script
        self.early = False
        self.exchanges: list[Exchange] = []
        self.accepted = 0
        self.open = 0
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    async def asked(self, count: int) -> None:
        """Wait until that many requests have arrived."""
        async with asyncio.timeout(10):
            while len(self.exchanges) < count:  # noqa: ASYNC110
                await asyncio.sleep(0.01)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        self.open += 1
        try:
            while not writer.is_closing():
                head = await reader.readuntil(b"\r\n\r\n")
                exchange = Exchange(head, b"", reader, writer)
                length = int(exchange.headers.get("content-length", "0"))
                if not self.early:
                    exchange.body = await reader.readexactly(length)
                self.exchanges.append(exchange)
                await self.script(exchange)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self.open -= 1
            writer.close()


@asynccontextmanager
async def running(
    script: Script = answer,
    *,
    port: int = 0,
    tls: ssl.SSLContext | None = None,
    path: Path | None = None,
) -> AsyncIterator[Upstream]:
    """An upstream on a port or a Unix socket; at the end every connection is torn down."""
    upstream = Upstream(script)
    tasks: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            await upstream.serve(reader, writer)
        except asyncio.CancelledError:
            pass
        finally:
            tasks.discard(task)

    if path is not None:
        server = await asyncio.start_unix_server(serve, path)
    else:
        server = await asyncio.start_server(serve, "127.0.0.1", port, ssl=tls)
        upstream.port = server.sockets[0].getsockname()[1]
    try:
        yield upstream
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        await server.wait_closed()
