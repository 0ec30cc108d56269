"""Request smuggling on a real server: what is refused, and what the application behind it saw.

One table, every line of it sent as it is on a connection of its own. The application records each
request that reaches it: a request hidden in another one would be there.
"""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import uvicorn
from starlette.types import Receive, Scope, Send

from aegis_c.gateway.errors import Refusal
from aegis_c.gateway.hot.guard import GuardedProtocol, guarded
from aegis_c.gateway.hot.guard_protocol import Violation
from aegis_c.gateway.serve import server_config
from gateway_rig import Client, run, until
from smuggling_cases import CHUNKED, END, HIDDEN, REFUSED, SAW_END, SEQUENCES, Saw, request


class App:
    """Answers every request with its path, and remembers it; some paths answer in a way of their
    own."""

    def __init__(self) -> None:
        self.saw: list[Saw] = []
        self.gone: list[str] = []
        self.go = asyncio.Event()  # what /slow and /half wait for

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"]
        start = {
            "type": "http.response.start",
            "status": 200,
            "headers": [(b"content-length", b"%d" % len(path))],
        }
        if path == "/early":  # before the body
            await send(start)
            await send({"type": "http.response.body", "body": path.encode()})
            self.saw.append((scope["method"], path, b""))
            return
        if path == "/half":
            await send(start)
            await send({"type": "http.response.body", "body": b"/ha", "more_body": True})
            await self.go.wait()
            await send({"type": "http.response.body", "body": b"lf"})
            self.saw.append((scope["method"], path, b""))
            return
        body = b""
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                self.gone.append(path)
                return
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        self.saw.append((scope["method"], path, body))
        if path == "/slow":
            await self.go.wait()
        await send(start)
        await send({"type": "http.response.body", "body": path.encode()})


class Site:
    def __init__(self, app: App, port: int, server: uvicorn.Server) -> None:
        self.app = app
        self.port = port
        self.server = server
        self.refusals: list[Refusal] = []

    @asynccontextmanager
    async def client(self) -> AsyncIterator[Client]:
        client = Client(*await asyncio.open_connection("127.0.0.1", self.port))
        try:
            yield client
        finally:
            await client.close()

    async def talk(self, *pieces: bytes) -> tuple[list[int], bytes]:
        """Send the pieces apart, read until the server closes: the statuses, and everything."""
        async with self.client() as client, asyncio.timeout(10):
            for piece in pieces:
                try:
                    await client.write(piece)
                except ConnectionError:
                    break
                await asyncio.sleep(0.002)
            data = await client.reader.read(-1)
        return statuses(data), data


def statuses(data: bytes) -> list[int]:
    """Of each response in ``data``, which must be whole and nothing else."""
    found = []
    while data:
        head, mark, data = data.partition(b"\r\n\r\n")
        assert mark, head
        lines = head.decode("latin-1").split("\r\n")
        assert lines[0].startswith("HTTP/1.1 ")
        found.append(int(lines[0].split()[1]))
        fields = dict(line.split(": ", 1) for line in lines[1:])
        size = int(fields.get("content-length", "0"))
        assert len(data) >= size
        if found[-1] >= 400:
            assert fields["connection"] == "close"
            error = json.loads(data[:size])["error"]
            assert set(error) == {"message", "type", "param", "code"}
            assert data[size:] == b""
        data = data[size:]
    return found


@asynccontextmanager
async def site(**options: Any) -> AsyncIterator[Site]:
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(2048)
    app = App()
    refusals: list[Refusal] = []

    def on_refusal(violation: Violation) -> tuple[bytes, list[tuple[bytes, bytes]]]:
        client, refusal = violation.client, violation.refusal
        assert client is not None and client[0] == "127.0.0.1"
        refusals.append(refusal)
        body = refusal.body()
        return body, [(b"content-length", b"%d" % len(body)), *refusal.headers]

    config = server_config(app, 1.0, guarded(on_refusal=on_refusal, **options))
    config.lifespan = "off"
    server = uvicorn.Server(config)
    task = asyncio.get_running_loop().create_task(server.serve(sockets=[listener]))
    try:

        async def started() -> bool:
            return server.started

        await until(started)
        rig = Site(app, listener.getsockname()[1], server)
        rig.refusals = refusals
        yield rig
    finally:
        app.go.set()
        server.should_exit = True
        await task
        listener.close()


def test_what_is_refused() -> None:
    async def main() -> None:
        async with site() as rig:
            for what, raw, code in REFUSED:
                found, _ = await rig.talk(raw)
                expected = 431 if code == "request_head_too_large" else 400
                assert (what, found) == (what, [expected])
                assert (what, rig.app.saw) == (what, [])
                assert (what, rig.refusals.pop().code) == (what, code)
                assert rig.refusals == []

    run(main())


def test_sequences() -> None:
    async def main() -> None:
        async with site() as rig:
            for what, pieces, saw, expected in SEQUENCES:
                rig.app.saw.clear()
                found, _ = await rig.talk(*pieces)
                assert (what, found) == (what, expected)
                assert (what, rig.app.saw) == (what, saw)

    run(main())


def test_a_refusal_waits_for_the_responses_before_it() -> None:
    """And nothing of it goes into them; the request behind it is not served."""

    async def main() -> None:
        async with site() as rig:
            for path in ("/half", "/slow"):
                rig.app.saw.clear()
                rig.app.go.clear()
                async with rig.client() as client:
                    await client.write(request(f"GET {path}"))
                    if path == "/half":
                        await client.reader.readuntil(b"/ha")
                    await client.write(request("GET /next") + b"BAD\r\n\r\n" + HIDDEN)

                    async def refused() -> bool:
                        return len(rig.refusals) == 1

                    await until(refused)
                    rig.app.go.set()
                    rest = await client.reader.read()
                assert rest.count(b"HTTP/1.1 ") == (1 if path == "/half" else 2)
                assert b"400" not in rest
                assert rest.endswith(b"/next")
                assert [path for _, path, _ in rig.app.saw] == [path, "/next"]
                rig.refusals.clear()

    run(main())


def test_a_body_that_breaks_inside_a_response_ends_the_connection() -> None:
    async def main() -> None:
        async with site() as rig:
            async with rig.client() as client:
                await client.write(request("POST /half", CHUNKED, body=b"1\r\nx\r\n"))
                await client.reader.readuntil(b"/ha")
                await client.write(b"x;")
                with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
                    await client.reader.readexactly(1)

            async def refused() -> bool:
                return len(rig.refusals) == 1

            await until(refused)

    run(main())


def test_an_early_answer_does_not_lose_the_place() -> None:
    """The application answers before the body: the rest of the body is no request (0.CL)."""

    async def main() -> None:
        async with site() as rig:
            raw = request("POST /early", f"Content-Length: {len(HIDDEN)}")
            found, _ = await rig.talk(raw, HIDDEN[:10], HIDDEN[10:] + END)
            assert found == [200, 200]
            assert [path for _, path, _ in rig.app.saw] == ["/early", "/end"]

    run(main())


def test_at_most_sixteen_wait() -> None:
    async def main() -> None:
        async with site() as rig:
            raw = request("GET /slow") + b"".join(request(f"GET /{i}") for i in range(40))
            async with rig.client() as client:
                await client.write(raw)

                async def refused() -> bool:
                    return len(rig.refusals) == 1

                await until(refused)
                rig.app.go.set()
                data = await client.reader.read()
            assert statuses(data) == [200] * 16
            assert [path for _, path, _ in rig.app.saw] == ["/slow", *(f"/{i}" for i in range(15))]
            assert rig.refusals[0].code == "too_many_requests"

    run(main())


def test_slow_heads_and_bodies() -> None:
    async def slowly(client: Client, data: bytes) -> None:
        for octet in data:
            await client.write(bytes([octet]))
            await asyncio.sleep(0.02)

    async def main() -> None:
        async with site(head_timeout=0.3, body_timeout=0.3) as rig:
            slow_bodies = (
                request("POST /b", "Content-Length: 1000"),
                request("POST /b", CHUNKED),
            )
            bodies = (b"x" * 1000, b"1\r\nx\r\n" * 200)
            for head, rest in (
                (b"", request("GET /" + "x" * 900)),
                *zip(slow_bodies, bodies, strict=True),
            ):
                async with rig.client() as client:
                    await client.write(head)
                    task = asyncio.create_task(slowly(client, rest))
                    async with asyncio.timeout(10):
                        data = await client.reader.read()
                    task.cancel()
                    await asyncio.gather(task, return_exceptions=True)
                assert statuses(data) == [408]
            async with rig.client() as client:  # nothing at all: closed without a word
                async with asyncio.timeout(10):
                    assert await client.reader.read() == b""
            assert [refusal.code for refusal in rig.refusals] == ["request_timeout"] * 3
            assert rig.app.saw == []
            assert rig.app.gone == ["/b", "/b"]
            # a response may take longer than either, and the connection stays in use
            async with rig.client() as client:
                await client.write(request("GET /slow"))
                await asyncio.sleep(0.7)
                rig.app.go.set()
                assert (await client.reply()).status == 200
                await client.write(END)
                assert (await client.reply()).status == 200

    run(main())


def test_time_in_which_we_do_not_read_is_free() -> None:
    """A body larger than what the application has taken: the caller cannot send more."""

    async def main() -> None:
        async with site(head_timeout=5.0, body_timeout=0.2) as rig:
            taken = asyncio.Event()

            async def app(scope: Scope, receive: Receive, send: Send) -> None:
                await taken.wait()
                await rig.app(scope, receive, send)

            rig.server.config.loaded_app = app
            body = b"x" * 8_000_000
            async with rig.client() as client:
                await client.write(
                    request("POST /big", f"Content-Length: {len(body)}", "Connection: close")
                )
                task = asyncio.create_task(client.write(body))
                await asyncio.sleep(0.8)
                assert rig.refusals == []
                taken.set()
                await task
                assert (await client.reply()).status == 200
            assert rig.app.saw == [("POST", "/big", body)]

    run(main())


def test_many_idle_connections() -> None:
    """The short form; each costs the server a timer and a few hundred bytes."""

    async def main() -> None:
        async with site(head_timeout=1.5) as rig:
            idle = [await asyncio.open_connection("127.0.0.1", rig.port) for _ in range(500)]
            assert (await rig.talk(END))[0] == [200]
            ended = await asyncio.gather(*(reader.read() for reader, _ in idle))
            assert ended == [b""] * 500
            for _, writer in idle:
                writer.close()
            assert (await rig.talk(END))[0] == [200]
            assert rig.refusals == []

            async def closed() -> bool:
                return not rig.server.server_state.connections

            await until(closed)

    run(main())


def test_the_parser_has_the_last_word(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where guard and parser disagree on the end of a message, nothing more is read."""

    class Lenient:
        """A guard that calls everything one message."""

        state = "idle"
        violation = None

        def __init__(self, **_: object) -> None:
            pass

        def feed(self, data: bytes) -> list[tuple[bytes, bool]]:
            return [(data, True)]

        def answered(self) -> None:
            pass

    monkeypatch.setattr("aegis_c.gateway.hot.guard_protocol.RequestGuard", Lenient)

    async def main() -> None:
        async with site() as rig:
            for raw in (
                request("POST /", "Content-Length: 50", body=b"x"),  # not complete
                b"BAD\r\n\r\n",
            ):
                assert (await rig.talk(raw))[0] == [400]
                assert rig.app.saw == []
                assert rig.refusals.pop().code == "malformed_request"

    run(main())


def test_it_works_alone_before_any_application() -> None:
    """`uvicorn --http aegis_c.gateway.hot.guard:GuardedProtocol app:app`"""

    async def main() -> None:
        listener = socket.socket()
        listener.bind(("127.0.0.1", 0))
        app = App()
        config = uvicorn.Config(
            app,
            http="aegis_c.gateway.hot.guard:GuardedProtocol",
            lifespan="off",
            log_config=None,  # type: ignore[arg-type]
        )
        server = uvicorn.Server(config)
        task = asyncio.create_task(server.serve(sockets=[listener]))

        async def started() -> bool:
            return server.started

        await until(started)
        assert config.http_protocol_class is GuardedProtocol
        rig = Site(app, listener.getsockname()[1], server)
        assert (await rig.talk(END))[0] == [200]
        assert (await rig.talk(REFUSED[0][1]))[0] == [400]
        assert app.saw == [SAW_END]
        server.should_exit = True
        await task
        listener.close()

    run(main())
