"""The upstream pool by itself: how connections come about, are used again, and are bounded."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

import upstream
from aegis_c.gateway.hot.pool import (
    ConnectFailed,
    Connection,
    ConnectTimeout,
    Pool,
    PoolBusy,
    UpstreamError,
    header_line,
)
from aegis_c.gateway.hot.pool.dial import Address, Dialer, first_to_connect, interleave
from aegis_c.gateway.hot.pool.proxy import Proxy, proxy_from
from aegis_c.gateway.settings import Upstream
from certificates import make_certificates
from gateway_rig import LOOPS, run
from upstream import Exchange

OK = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
REPLY = OK + b"Content-Length: 2\r\n\r\n{}"


@asynccontextmanager
async def pool_of(url: str, dialer: Dialer | None = None, **options: Any) -> AsyncIterator[Pool]:
    options.setdefault("connect_timeout", 2.0)
    pool = Pool(Upstream(url=url, **options), dialer)
    try:
        yield pool
    finally:
        pool.close()


async def ask(pool: Pool, body: bytes = b"{}") -> tuple[int, bytes]:
    """One exchange; its connection is released whatever happens."""
    head = pool.request_head(b"POST", b"/chat") + b"content-length: %d\r\n\r\n" % len(body)
    connection: Connection | None = None
    async with asyncio.timeout(10):
        try:
            connection = await pool.open(head, body)
            connection = await pool.answered(connection, head, body)
            return connection.status, await connection.body()
        finally:
            if connection is not None:
                connection.release()


async def answer(exchange: Exchange) -> None:
    await exchange.write(REPLY)


def both_loops(test: Any) -> Any:
    return pytest.mark.parametrize("loop", LOOPS)(test)


# -- TLS ---------------------------------------------------------------------------------------


def server_context(certificate: Path, private: Path, version: ssl.TLSVersion) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = context.maximum_version = version
    context.load_cert_chain(certificate, private)
    return context


@both_loops
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_tls_sessions_are_resumed(tmp_path: Path, loop: str, version: ssl.TLSVersion) -> None:
    """The server itself says which connections resumed a session; each session serves once."""
    ca, certificate, private = make_certificates(tmp_path)
    context = server_context(certificate, private, version)
    resumed: list[bool] = []

    async def closing(exchange: Exchange) -> None:
        resumed.append(exchange.tls.session_reused)
        await exchange.write(REPLY)
        exchange.close()

    async def main() -> None:
        async with upstream.running(closing, tls=context) as up:
            url = f"https://localhost:{up.port}/v1"
            async with pool_of(url, ca_file=ca) as pool:
                for _ in range(4):
                    assert await ask(pool) == (200, b"{}")
                    await asyncio.sleep(0.02)
                assert resumed == [False, True, True, True]
                assert (pool.created, pool.resumed) == (4, 3)
                resumed.clear()
                up.script = answer  # kept connections need none
                for _ in range(3):
                    await ask(pool)
                assert pool.created == 5
            async with pool_of(url) as stranger:  # and no session goes round the checks
                with pytest.raises(ConnectFailed, match="certificate verify failed"):
                    await ask(stranger)

    run(main(), loop)


@both_loops
def test_a_session_the_server_has_forgotten_is_no_failure(tmp_path: Path, loop: str) -> None:
    ca, certificate, private = make_certificates(tmp_path)
    one = server_context(certificate, private, ssl.TLSVersion.TLSv1_3)
    other = server_context(certificate, private, ssl.TLSVersion.TLSv1_3)

    async def main() -> None:
        async with upstream.running(answer, tls=one) as first:
            dialer = Dialer(Upstream(url=f"https://localhost:{first.port}", ca_file=ca))
            async with pool_of("http://unused", dialer) as pool:
                assert (await ask(pool))[0] == 200
        async with upstream.running(answer, tls=other) as second:
            dialer._port = second.port  # the same name, after a restart
            async with pool_of("http://unused", dialer) as pool:
                assert (await ask(pool))[0] == 200
                assert pool.resumed == 0

    run(main(), loop)


@both_loops
def test_an_early_answer_over_tls_ends_the_connection(tmp_path: Path, loop: str) -> None:
    ca, certificate, private = make_certificates(tmp_path)
    context = server_context(certificate, private, ssl.TLSVersion.TLSv1_3)
    run(early_answer(context, ca), loop)


# -- early answers, stale connections ----------------------------------------------------------


@both_loops
def test_an_early_answer_ends_the_connection(loop: str) -> None:
    run(early_answer(None, None), loop)


async def early_answer(context: ssl.SSLContext | None, ca: Path | None) -> None:
    """A reply before the request was read: the rest of the body is nobody's next request."""
    accepted = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal accepted
        accepted += 1
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.split(b"content-length: ")[1].split(b"\r\n")[0])
                if length > 100:
                    writer.write(REPLY)
                    await writer.drain()
                    while await reader.read(1 << 16):
                        pass
                    return
                await reader.readexactly(length)
                writer.write(REPLY)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    port = server.sockets[0].getsockname()[1]
    url = f"http://127.0.0.1:{port}" if context is None else f"https://localhost:{port}"
    async with server, pool_of(url, ca_file=ca) as pool:
        for _ in range(2):
            assert (await ask(pool))[0] == 200
        assert (accepted, pool.stats()["idle"]) == (1, 1)
        assert (await ask(pool, b"x" * (32 << 20)))[0] == 200  # far more than sockets hold
        assert pool.stats() == {"busy": 0, "idle": 0, "waiting": 0}
        assert (await ask(pool))[0] == 200
        assert accepted == 2


@both_loops
def test_a_close_that_crosses_a_request_is_retried_once(loop: str) -> None:
    """The upstream closes a kept connection at the very moment a request arrives on it."""
    requests = 0

    async def closes_instead(exchange: Exchange) -> None:
        nonlocal requests
        requests += 1
        exchange.close()

    async def second_time(exchange: Exchange) -> None:
        nonlocal requests
        requests += 1
        if requests % 2:
            exchange.reset()
        else:
            await exchange.write(REPLY)

    async def main() -> None:
        nonlocal requests
        async with upstream.running(answer) as up, pool_of(up.url) as pool:
            await ask(pool)
            up.script = second_time
            assert await ask(pool) == (200, b"{}")
            assert (requests, pool.retries, pool.created) == (2, 1, 2)
            up.script, requests = closes_instead, 0  # the second one is on a fresh connection
            with pytest.raises(UpstreamError, match="without a reply") as caught:
                await ask(pool)
            assert (requests, caught.value.unsent) == (2, False)
            with pytest.raises(UpstreamError, match="without a reply"):
                await ask(pool)
            assert requests == 3, "a fresh connection that closes is not tried again"

    run(main(), loop)


def test_a_request_that_an_upstream_died_of_is_not_repeated(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A kept connection that closes a good while after the request: the upstream had it."""
    from aegis_c.gateway.hot.pool import connection

    monkeypatch.setattr(connection, "STALE_WITHIN", 0.05)

    async def dies_later(exchange: Exchange) -> None:
        await asyncio.sleep(0.15)
        exchange.reset()

    async def main() -> None:
        async with upstream.running(answer) as up, pool_of(up.url) as pool:
            await ask(pool)
            up.script = dies_later
            with pytest.raises(UpstreamError, match="without a reply"):
                await ask(pool)
            assert (len(up.exchanges), pool.retries) == (2, 0)

    run(main())


def test_a_race_does_not_cost_the_other_kept_connections() -> None:
    async def main() -> None:
        async with upstream.running(answer) as up, pool_of(up.url) as pool:
            await asyncio.gather(*(ask(pool) for _ in range(5)))
            assert pool.stats()["idle"] == up.open == 5

            async def once(exchange: Exchange) -> None:
                up.script = answer
                exchange.reset()

            up.script = once
            assert (await ask(pool))[0] == 200
            assert pool.stats()["idle"] == 5 and pool.created == 6

    run(main())


def test_a_connection_is_left_before_the_upstream_leaves_it() -> None:
    """`Keep-Alive: timeout=1`: not used again, since the upstream may close it at any moment."""

    async def script(exchange: Exchange) -> None:
        await exchange.write(OK + b"Keep-Alive: timeout=1, max=9\r\nContent-Length: 2\r\n\r\n{}")

    async def main() -> None:
        async with upstream.running(script) as up, pool_of(up.url) as pool:
            for i in range(3):
                assert (await ask(pool))[0] == 200
                assert pool.created == i + 1
                await asyncio.sleep(0.01)
            up.script = answer
            for _ in range(3):
                await ask(pool)
            assert pool.created == 4 and not pool._keep

    run(main())


# -- Unix sockets, addresses, proxies ----------------------------------------------------------


@both_loops
def test_a_unix_socket(tmp_path: Path, loop: str) -> None:
    path = tmp_path / "model.sock"

    async def main() -> None:
        async with (
            upstream.running(answer, path=path) as up,
            pool_of(f"unix:{path}:/base/v1/") as pool,
        ):
            for _ in range(2):
                assert await ask(pool) == (200, b"{}")
            assert up.exchanges[0].request_line == "POST /base/v1/chat HTTP/1.1"
            assert up.exchanges[0].headers["host"] == "localhost"
            assert pool.created == 1
        async with pool_of(f"unix:{tmp_path}/absent") as pool:
            with pytest.raises(ConnectFailed, match="No such file"):
                await ask(pool)

    run(main(), loop)


@asynccontextmanager
async def full_backlog() -> AsyncIterator[Address]:
    """An address whose connections never come about."""
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        fillers = [socket.socket() for _ in range(3)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(full.getsockname())
        try:
            yield socket.AF_INET, full.getsockname()
        finally:
            for filler in fillers:
                filler.close()


def refused() -> Address:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return socket.AF_INET, sock.getsockname()


@both_loops
def test_an_address_that_does_not_answer_holds_nothing_up(loop: str) -> None:
    """Happy Eyeballs: the next address is tried beside a silent one, and at once after a no."""

    async def main() -> None:
        async with upstream.running(answer) as up, full_backlog() as silent:
            good = (socket.AF_INET, ("127.0.0.1", up.port))
            for addresses in (
                [silent, good],
                [refused(), silent, refused(), good],
                [good, silent],
                [silent, silent, good],
            ):

                async def resolve(
                    host: str, port: int, found: list[Address] = addresses
                ) -> list[Address]:
                    assert (host, port) == ("model.example", 80)
                    return found

                settings = Upstream(url="http://model.example/v1", proxy="none")
                async with pool_of("http://unused", Dialer(settings, resolve)) as pool:
                    files = len(os.listdir("/proc/self/fd"))
                    assert await ask(pool) == (200, b"{}")
                    assert len(os.listdir("/proc/self/fd")) - files <= 2, "an attempt leaked"
                    assert len(asyncio.all_tasks()) == 1 + up.open
                await asyncio.sleep(0.02)

            with pytest.raises(OSError, match=r"Errno 111.*Errno 111"):
                await first_to_connect([refused(), refused()])
            with pytest.raises(OSError, match="no address"):
                await first_to_connect([])
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.1):
                    await first_to_connect([silent, silent], 0.01)
            assert len(asyncio.all_tasks()) == 1 + up.open

    run(main(), loop)


def test_families_take_turns() -> None:
    v6, v4 = socket.AF_INET6, socket.AF_INET
    given = [(v6, 1), (v6, 2), (v6, 3), (v4, 4), (v4, 5)]
    assert interleave(given) == [(v6, 1), (v4, 4), (v6, 2), (v4, 5), (v6, 3)]
    assert interleave(given[3:] + given[:1]) == [(v4, 4), (v6, 1), (v4, 5)]
    assert interleave([]) == []


class ForwardProxy:
    """A forward proxy that knows CONNECT, and answers as told."""

    def __init__(self) -> None:
        self.heads: list[bytes] = []
        self.answer = b"HTTP/1.1 200 Connection established\r\nVia: x\r\n\r\n"
        self.target = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.heads.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(self.answer)
        try:
            if b" 200 " in self.answer:
                await self.relay(reader, writer)
        finally:
            writer.close()

    async def relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        back = await asyncio.open_connection("127.0.0.1", self.target)
        await asyncio.wait(
            [
                asyncio.ensure_future(self.copy(reader, back[1])),
                asyncio.ensure_future(self.copy(back[0], writer)),
            ],
            return_when=asyncio.FIRST_COMPLETED,
        )
        back[1].close()

    async def copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(1 << 16):
                writer.write(data)
        except ConnectionError:
            pass


@both_loops
def test_a_forward_proxy_makes_a_tunnel(tmp_path: Path, loop: str) -> None:
    """The TLS is the upstream's own: the proxy sees a name and bytes."""
    ca, certificate, private = make_certificates(tmp_path)
    context = server_context(certificate, private, ssl.TLSVersion.TLSv1_3)

    async def main() -> None:
        proxy = ForwardProxy()
        server = await asyncio.start_server(proxy.serve, "127.0.0.1", 0)
        where = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        async with server:
            for tls, scheme in ((context, "https"), (None, "http")):
                async with upstream.running(answer, tls=tls) as up:
                    proxy.target = up.port
                    proxy.heads.clear()
                    async with pool_of(
                        f"{scheme}://localhost:4711/v1",
                        ca_file=ca,
                        proxy=where,
                        proxy_login="me:se:cret",
                    ) as pool:
                        for _ in range(2):
                            assert await ask(pool) == (200, b"{}")
                        assert proxy.heads == [
                            b"CONNECT localhost:4711 HTTP/1.1\r\nHost: localhost:4711\r\n"
                            b"Proxy-Authorization: Basic bWU6c2U6Y3JldA==\r\n\r\n"
                        ]
                        assert up.exchanges[0].request_line == "POST /v1/chat HTTP/1.1"
                        assert "proxy-authorization" not in up.exchanges[0].headers
            for said, complaint in (
                (b"HTTP/1.1 407 Who\r\n\r\n", "status 407; set upstream.proxy_login"),
                (b"HTTP/1.1 502 No\r\nContent-Length: 0\r\n\r\n", "status 502"),
                (b"garbage\r\n\r\n", "does not answer in HTTP"),
                (b"HTTP/1.1 200 OK\r\n\r\nHTTP/1.1 200 OK\r\n\r\n", "bytes of its own"),
                (b"", "closed the connection"),
                (b"HTTP/1.1 199 OK\r\n" + b"x: y\r\n" * 4000, "exceeds 16384 bytes"),
            ):
                proxy.answer = said
                async with pool_of("http://localhost:1/v1", proxy=where) as pool:
                    with pytest.raises(ConnectFailed, match=complaint) as caught:
                        await ask(pool)
                    assert caught.value.unsent
                    assert pool.stats() == {"busy": 0, "idle": 0, "waiting": 0}

    run(main(), loop)


@pytest.mark.parametrize(
    ("environment", "url", "expected"),
    [
        ({}, "https://api.example", None),
        ({"https_proxy": "http://p:1"}, "https://api.example", Proxy("p", 1)),
        ({"HTTPS_PROXY": "p:1"}, "https://api.example", Proxy("p", 1)),
        ({"https_proxy": "http://p"}, "http://api.example", None),
        ({"http_proxy": "http://p/"}, "http://api.example", Proxy("p", 80)),
        ({"HTTP_PROXY": "http://p"}, "http://api.example", None),
        ({"all_proxy": "http://p"}, "http://api.example", Proxy("p", 80)),
        ({"ALL_PROXY": "http://a:b%40@p"}, "https://x", Proxy("p", 80, "Basic YTpiQA==")),
        ({"all_proxy": "p", "https_proxy": "q"}, "https://x", Proxy("q", 80)),
        ({"all_proxy": "p", "no_proxy": "*"}, "https://x", None),
        ({"all_proxy": "p", "no_proxy": "example"}, "https://api.example", None),
        ({"all_proxy": "p", "NO_PROXY": " a , .example"}, "https://api.example", None),
        ({"all_proxy": "p", "no_proxy": "ample"}, "https://api.example", Proxy("p", 80)),
        ({"all_proxy": "p", "no_proxy": "api.example:444"}, "https://api.example", Proxy("p", 80)),
        ({"all_proxy": "p", "no_proxy": "api.example:443"}, "https://API.example", None),
        ({"all_proxy": "p", "no_proxy": "10.0.0.0/8"}, "http://10.1.2.3", None),
        ({"all_proxy": "p", "no_proxy": "10.0.0.0/8"}, "http://11.1.2.3", Proxy("p", 80)),
        ({"all_proxy": "p", "no_proxy": "fd00::/8,[fe80::1]"}, "http://[fd00::1]", None),
        ({"all_proxy": "p", "no_proxy": "fd00::/8,[fe80::1]"}, "http://[fe80::1]", None),
        ({"all_proxy": "p", "no_proxy": "[fe80::1]:81"}, "http://[fe80::1]", Proxy("p", 80)),
        ({"all_proxy": "p"}, "http://localhost:8000", None),
        ({"all_proxy": "p"}, "http://127.0.0.9", None),
        ({"all_proxy": "p"}, "http://[::1]", None),
    ],
)
def test_which_proxy_the_environment_names(
    environment: dict[str, str], url: str, expected: Proxy | None
) -> None:
    from urllib.parse import urlsplit

    parts = urlsplit(url)
    assert parts.hostname is not None
    port = parts.port or (443 if parts.scheme == "https" else 80)
    assert proxy_from(environment, parts.scheme, parts.hostname, port) == expected


def test_a_bad_proxy_variable_is_named() -> None:
    for value in ("socks5://p", "https://p", "http://", "http://p/path", "http://p q"):
        with pytest.raises(ValueError, match="the variable https_proxy must"):
            proxy_from({"https_proxy": value}, "https", "api.example", 443)


# -- bounds and framing ------------------------------------------------------------------------


def test_connections_are_bounded_and_handed_on_in_order() -> None:
    order: list[bytes] = []

    async def slow(exchange: Exchange) -> None:
        order.append(exchange.body)
        await asyncio.sleep(0.02)
        await exchange.write(REPLY)

    async def main() -> None:
        async with (
            upstream.running(slow) as up,
            pool_of(up.url, max_connections=3, connect_timeout=5.0) as pool,
        ):
            bodies = [b"%03d" % i for i in range(30)]
            replies = await asyncio.gather(*(ask(pool, body) for body in bodies))
            assert replies == [(200, b"{}")] * 30
            assert up.accepted == pool.created == 3
            assert all(abs(int(body) - i) < 3 for i, body in enumerate(order))
        release = asyncio.Event()

        async def held(exchange: Exchange) -> None:
            await release.wait()
            await exchange.write(REPLY)

        async with (
            upstream.running(held) as up,
            pool_of(up.url, max_connections=1, connect_timeout=0.3) as pool,
        ):
            first = asyncio.ensure_future(ask(pool))
            await up.asked(1)
            with pytest.raises(PoolBusy) as caught:
                await ask(pool)
            release.set()
            assert caught.value.unsent and (await first)[0] == 200

    run(main())


def test_a_connection_that_never_comes_about_was_not_sent() -> None:
    async def main() -> None:
        async with (
            full_backlog() as (_, (host, port)),
            pool_of(f"http://{host}:{port}", connect_timeout=0.1) as pool,
        ):
            with pytest.raises(ConnectTimeout) as caught:
                await ask(pool)
            assert caught.value.unsent

    run(main())


UNSAFE = {
    "CR in a value": OK + b"X: a\rb\r\nContent-Length: 2\r\n\r\n{}",
    "NUL in a value": OK + b"X: a\0b\r\nContent-Length: 2\r\n\r\n{}",
    "folded value": OK + b"X: a\r\n b\r\nContent-Length: 2\r\n\r\n{}",
    "CR in a name": OK + b"X\r: a\r\nContent-Length: 2\r\n\r\n{}",
    "NUL in a name": OK + b"X\0: a\r\nContent-Length: 2\r\n\r\n{}",
    "LF in a name": OK + b"X\n: a\r\nContent-Length: 2\r\n\r\n{}",
    "space before the colon": OK + b"X : a\r\nContent-Length: 2\r\n\r\n{}",
    "CR in the status line": b"HTTP/1.1 200 O\rK\r\nContent-Length: 2\r\n\r\n{}",
    "signed length": OK + b"Content-Length: +2\r\n\r\n{}",
    "length in hexadecimal": OK + b"Content-Length: 0x2\r\n\r\n{}",
    "list of lengths": OK + b"Content-Length: 2, 2\r\n\r\n{}",
    "chunk size with sign": OK + b"Transfer-Encoding: chunked\r\n\r\n+2\r\n{}\r\n0\r\n\r\n",
    "chunk without its end": OK + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}0\r\n\r\n",
    "chunk size overflow": OK
    + b"Transfer-Encoding: chunked\r\n\r\n%s2\r\n{}\r\n0\r\n\r\n" % (b"1" + b"0" * 16),
    "endless chunk extension": OK + b"Transfer-Encoding: chunked\r\n\r\n2;x=" + b"y" * 400_000,
    "endless trailers": OK
    + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n"
    + b"T: 1\r\n" * 300,
    "one endless trailer": OK
    + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\nT: "
    + b"y" * 400_000,
    "endless hints": b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" * 9000,
}


@pytest.mark.parametrize("name", UNSAFE)
def test_a_reply_that_could_be_read_in_two_ways_is_refused(name: str) -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.write(UNSAFE[name])
        await exchange.gone()

    async def main() -> None:
        async with upstream.running(script) as up, pool_of(up.url) as pool:
            with pytest.raises(UpstreamError):
                await ask(pool)
            assert pool.stats() == {"busy": 0, "idle": 0, "waiting": 0}

    run(main())


def test_trailers_are_thrown_away() -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.write(
            OK + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\nRetry-After: 9\r\n\r\n"
        )

    async def main() -> None:
        async with upstream.running(script) as up, pool_of(up.url) as pool:
            head = pool.request_head(b"POST", b"/chat") + b"content-length: 0\r\n\r\n"
            connection = await pool.answered(await pool.open(head, b""), head, b"")
            assert await connection.body() == b"{}"
            assert sorted(connection.headers) == [b"content-type", b"transfer-encoding"]
            connection.release()
            assert pool.stats()["idle"] == 1

    run(main())


def test_lines_of_a_request_cannot_be_broken() -> None:
    assert header_line(b"x-a", b"b \xff") == b"x-a: b \xff\r\n"
    for value in (b"a\rb", b"a\nb", b"a\0b", b"a\r\nHost: b"):
        with pytest.raises(ValueError, match="CR, LF or NUL"):
            header_line(b"x-a", value)
    for name in (b"", b"a b", b"a:", b"a\r", b"a\n", b"a\0", b"\xff"):
        with pytest.raises(ValueError, match="not a name"):
            header_line(name, b"a")


@both_loops
def test_every_piece_arrives_however_the_bytes_are_cut(loop: str) -> None:
    """A reply in every split into two and into single bytes reads the same."""
    body = b"data: {}\n\n" * 3
    reply = b"HTTP/1.1 100 Continue\r\n\r\n" + OK + b"Transfer-Encoding: chunked\r\n\r\n"
    reply += b"a\r\n%s\r\n14\r\n%s\r\n0\r\n\r\n" % (body[:10], body[10:])
    cuts = [*([i] for i in range(1, len(reply))), list(range(1, len(reply)))]
    at = iter(cuts)

    async def script(exchange: Exchange) -> None:
        last = 0
        for cut in [*next(at), len(reply)]:
            await exchange.write(reply[last:cut])
            await asyncio.sleep(0)
            last = cut

    async def main() -> None:
        async with upstream.running(script) as up, pool_of(up.url) as pool:
            for _ in cuts:
                assert await ask(pool) == (200, body)
            assert pool.created == 1

    run(main(), loop)
