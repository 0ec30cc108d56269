"""A gateway on a real server and a raw HTTP client, for the gateway's tests."""

from __future__ import annotations

import asyncio
import hashlib
import json
import resource
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import uvicorn
import uvloop
from jsonschema import Draft202012Validator  # type: ignore[import-untyped]
from starlette.types import ASGIApp

from aegis_c.gateway.app import create_app
from aegis_c.gateway.runtime import Runtime
from aegis_c.gateway.serve import server_config
from aegis_c.gateway.settings import Settings, Upstream

_SCHEMA_FILE = Path(__file__).parent.parent / "docs" / "entry.schema.json"
SCHEMA = Draft202012Validator(json.loads(_SCHEMA_FILE.read_text()))
KEY = "sk-caller"
AUDITOR = "sk-auditor"
ADMIN = "sk-admin"
CHAT = "/v1/chat/completions"
ASK: dict[str, Any] = {"model": "scripted-1", "messages": [{"role": "user", "content": "Hi"}]}


LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "uvloop": uvloop.new_event_loop,
    "asyncio": asyncio.new_event_loop,
}


def run(main: Coroutine[Any, Any, None], loop: str = "uvloop") -> None:
    """Run a test on a new event loop: the one that `aegis-c serve` uses, or asyncio's own."""
    with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
        runner.run(main)


def key(secret: str, name: str, tenant: str, *roles: str) -> dict[str, Any]:
    """One entry of the settings' keys."""
    digest = hashlib.sha256(secret.encode()).hexdigest()
    return {"id": name, "sha256": digest, "tenant": tenant, "roles": roles or ("caller",)}


KEYS = [
    key(KEY, "k1", "acme"),
    key(AUDITOR, "k2", "watch", "auditor"),
    key(ADMIN, "k3", "home", "admin"),
]


def settings(data: Path, url: str | None, **tables: Any) -> Settings:
    """Settings for a test; ``tables`` are merged over quick time limits.

    A call is asked once, whatever comes back: tests of retries and breakers turn them on.
    """
    upstream = {"url": url, "connect_timeout": 2.0, **ONCE, **tables.pop("upstream", {})}
    tables.setdefault("keys", KEYS)
    tables.setdefault("shutdown_deadline", 5.0)
    return Settings(data=data, upstream=Upstream(**upstream), **tables)


ONCE: dict[str, Any] = {"retry": {"attempts": 0}, "breaker": {"enabled": False}}


class Reply:
    """One HTTP reply, read to its end."""

    def __init__(self, status: int, headers: dict[str, str], body: bytes, closed: bool) -> None:
        self.status = status
        self.headers = headers
        self.body = body
        self.closed = closed  # the server closed the connection behind it

    @property
    def error(self) -> dict[str, Any]:
        """The error object; checks OpenAI's shape."""
        document = json.loads(self.body)
        assert list(document) == ["error"]
        assert set(document["error"]) == {"message", "type", "param", "code"}
        assert self.headers["content-type"] == "application/json"
        error: dict[str, Any] = document["error"]
        return error


class Client:
    """A raw HTTP/1.1 connection: what is written is what was given."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def write(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def head(self) -> tuple[int, dict[str, str]]:
        raw = await self.reader.readuntil(b"\r\n\r\n")
        lines = raw.decode("latin-1").split("\r\n")
        headers: dict[str, str] = {}
        for line in lines[1:-2]:
            name, _, value = line.partition(":")
            assert name not in headers, f"{name} is sent twice"
            headers[name] = value.strip()
        return int(lines[0].split(" ")[1]), headers

    async def chunk(self) -> bytes:
        """The next chunk of a chunked body; empty at its end."""
        size = int(await self.reader.readuntil(b"\r\n"), 16)
        data = await self.reader.readexactly(size)
        assert await self.reader.readexactly(2) == b"\r\n"
        return data

    async def reply(self) -> Reply:
        status, headers = await self.head()
        if headers.get("transfer-encoding") == "chunked":
            parts = []
            while part := await self.chunk():
                parts.append(part)
            body = b"".join(parts)
        else:
            body = await self.reader.readexactly(int(headers["content-length"]))
        closed = headers.get("connection") == "close"
        if closed:
            assert await self.reader.read() == b""
        return Reply(status, headers, body, closed)

    async def close(self) -> None:
        self.writer.close()
        try:
            await self.writer.wait_closed()
        except ConnectionError:
            pass


def request(
    body: bytes | dict[str, Any] = ASK,
    *,
    path: str = CHAT,
    method: str = "POST",
    secret: str | None = KEY,
    headers: tuple[str, ...] = (),
    content_type: str | None = "application/json",
    length: bool = True,
) -> bytes:
    """The bytes of one request."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [f"{method} {path} HTTP/1.1", "Host: gateway"]
    if secret is not None:
        lines.append(f"Authorization: Bearer {secret}")
    if content_type is not None and data:
        lines.append(f"Content-Type: {content_type}")
    if length and (data or method == "POST"):
        lines.append(f"Content-Length: {len(data)}")
    return "\r\n".join([*lines, *headers, "", ""]).encode("latin-1") + data


class Rig:
    """A running gateway."""

    def __init__(self, port: int, runtime: Runtime, server: uvicorn.Server) -> None:
        self.port = port
        self.runtime = runtime
        self.server = server

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    @asynccontextmanager
    async def client(self) -> AsyncIterator[Client]:
        client = Client(*await asyncio.open_connection("127.0.0.1", self.port))
        try:
            yield client
        finally:
            await client.close()

    async def send(self, raw: bytes) -> Reply:
        """Send bytes on a connection of their own and read one reply."""
        async with self.client() as client:
            await client.write(raw)
            async with asyncio.timeout(10):
                return await client.reply()

    async def ask(self, body: bytes | dict[str, Any] = ASK, **options: Any) -> Reply:
        return await self.send(request(body, **options))

    async def entries(self, kind: str | None = None) -> list[dict[str, Any]]:
        """Every entry of the ledger, or those of one kind, decoded; all fit the schema."""
        ledger = self.runtime.ledger
        size = len(ledger.native)
        if size:
            await ledger.integrated(size - 1)
        found = [json.loads(ledger.native.entry(i)) for i in range(size)]
        for entry in found:
            SCHEMA.validate(entry)
        return [e for e in found if kind is None or e["kind"] == kind]

    async def wait_for(self, kind: str, count: int = 1) -> list[dict[str, Any]]:
        """The entries of a kind, once there are that many."""

        async def enough() -> bool:
            return len(await self.entries(kind)) >= count

        await until(enough)
        return await self.entries(kind)

    async def settled(self) -> None:
        """Wait until no call is in flight, no upstream connection busy, nothing to be analysed."""

        async def quiet() -> bool:
            runtime = self.runtime
            busy = runtime.targets.stats()["busy"]
            return not (runtime.admission.in_flight or busy or runtime.background.depth)

        await until(quiet)


async def until(condition: Callable[[], Awaitable[bool]], seconds: float = 10.0) -> None:
    """Wait until a condition holds that nothing signals. Fails after ``seconds``."""
    async with asyncio.timeout(seconds):
        while not await condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


@asynccontextmanager
async def serving(app: ASGIApp, runtime: Runtime) -> AsyncIterator[Rig]:
    """Serve ``app`` on a free port, with the options of `aegis-c serve`."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(128)
    server = uvicorn.Server(
        server_config(app, runtime.settings.shutdown_deadline, runtime.protocol)
    )
    task = asyncio.get_running_loop().create_task(server.serve(sockets=[listener]))
    try:

        async def started() -> bool:
            assert not task.done(), "the server did not start"
            return server.started

        await until(started)
        yield Rig(listener.getsockname()[1], runtime, server)
    finally:
        server.should_exit = True
        await task
        listener.close()


@asynccontextmanager
async def gateway(data: Path, url: str | None, **tables: Any) -> AsyncIterator[Rig]:
    """A standalone gateway before the upstream at ``url``."""
    app = create_app(settings(data, url, **tables))
    async with serving(app, app.state.aegis) as rig:
        yield rig


@contextmanager
def no_file_may_grow() -> Iterator[None]:
    """Every write to a file beyond its first byte fails (EFBIG), as on a disk that is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
