"""One new connection to an upstream: an address, a Unix socket or a proxy's tunnel, then TLS.

A name's addresses are tried as RFC 8305 says (Happy Eyeballs): families in turn, the next one
after 250 ms or as soon as one fails, and whichever connects first is used.
"""

from __future__ import annotations

import asyncio
import ipaddress
import os
import socket
import ssl
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, TypeVar
from urllib.parse import urlsplit

from aegis_c.gateway.hot.pool.errors import ConnectFailed
from aegis_c.gateway.hot.pool.proxy import Proxy, parse_proxy, proxy_from, tunnel
from aegis_c.gateway.hot.pool.tls import ClientContext, client_context

if TYPE_CHECKING:
    from aegis_c.gateway.upstream_settings import Upstream

NEXT_AFTER: Final = (
    0.25  # seconds after which the next address is tried beside (RFC 8305 section 5)
)

#: Family and address of one endpoint.
Address = tuple[socket.AddressFamily, Any]
Resolve = Callable[[str, int], Awaitable[list[Address]]]
P = TypeVar("P", bound=asyncio.Protocol)


class Dialer:
    """Where the connections of one pool go; made once from the settings, so no request can choose.

    ``host_header`` and ``path`` are what requests are written with.
    """

    def __init__(self, settings: Upstream, resolve: Resolve | None = None) -> None:
        assert settings.url is not None
        self._resolve = resolve or _resolve
        self._proxy: Proxy | None = None
        self._unix: str | None = None
        self._server_name: str | None = None
        self.tls: ClientContext | None = None
        if settings.url.startswith("unix:"):
            self._unix, _, path = settings.url.removeprefix("unix:").partition(":")
            self.host_header = b"localhost"
            self.path = path.encode("ascii")
            return
        parts = urlsplit(settings.url)
        assert parts.hostname is not None
        if parts.scheme == "https":
            self.tls = client_context(settings.ca_file)
            self._server_name = parts.hostname
        self._host = parts.hostname
        self._port = parts.port or (443 if self.tls is not None else 80)
        self.host_header = parts.netloc.encode("ascii")
        self.path = parts.path.encode("ascii")
        if settings.proxy == "env":
            self._proxy = proxy_from(os.environ, parts.scheme, self._host, self._port)
        elif settings.proxy != "none":
            login = settings.proxy_login
            self._proxy = parse_proxy(
                settings.proxy, None if login is None else login.get_secret_value()
            )

    async def dial(self, factory: Callable[[], P]) -> P:
        """A connected protocol. Raises ConnectFailed; the caller sets the time limit."""
        loop = asyncio.get_running_loop()
        try:
            if self._unix is not None:
                _, protocol = await loop.create_unix_connection(factory, self._unix)
                return protocol
            sock = await self._socket()
            if self._proxy is not None:
                try:
                    await tunnel(sock, self._proxy, self._host, self._port)
                except BaseException:
                    sock.close()
                    raise
            _, protocol = await loop.create_connection(  # owns the socket from here on
                factory, sock=sock, ssl=self.tls, server_hostname=self._server_name
            )
            return protocol
        except (OSError, ssl.CertificateError) as error:
            raise ConnectFailed(f"cannot connect: {error}") from error

    async def _socket(self) -> socket.socket:
        proxy = self._proxy
        host, port = (self._host, self._port) if proxy is None else (proxy.host, proxy.port)
        try:
            literal = ipaddress.ip_address(host)
        except ValueError:
            return await first_to_connect(await self._resolve(host, port))
        family = socket.AF_INET if literal.version == 4 else socket.AF_INET6
        return await _connect((family, (host, port)))


async def first_to_connect(
    addresses: list[Address], next_after: float = NEXT_AFTER
) -> socket.socket:
    """A socket connected to one of ``addresses``. Raises OSError naming why each failed."""
    waiting = interleave(addresses)
    attempts: set[asyncio.Task[socket.socket]] = set()
    faults: list[str] = []
    won: socket.socket | None = None
    try:
        while won is None:
            if waiting:
                attempts.add(asyncio.ensure_future(_connect(waiting.pop(0))))
            elif not attempts:
                raise OSError("; ".join(faults) or "the name has no address")
            done, _ = await asyncio.wait(
                attempts,
                timeout=next_after if waiting else None,
                return_when=asyncio.FIRST_COMPLETED,
            )
            for attempt in done:
                error = attempt.exception()
                if error is None and won is None:
                    won = attempt.result()
                    attempts.discard(attempt)
                elif error is not None:
                    faults.append(str(error))
                    attempts.discard(attempt)
        return won
    finally:
        for attempt in attempts:
            attempt.cancel()
        for attempt in attempts:
            with suppress(OSError, asyncio.CancelledError):
                (await attempt).close()


def interleave(addresses: list[Address]) -> list[Address]:
    """The system's order (RFC 6724), but families in turn (RFC 8305 section 4)."""
    families: dict[int, list[Address]] = {}
    for address in addresses:
        families.setdefault(address[0], []).append(address)
    queues = list(families.values())
    longest = max(map(len, queues), default=0)
    return [queue[i] for i in range(longest) for queue in queues if i < len(queue)]


async def _connect(address: Address) -> socket.socket:
    family, where = address
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, where)
    except BaseException:
        sock.close()
        raise
    return sock


async def _resolve(host: str, port: int) -> list[Address]:
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [(socket.AddressFamily(family), where) for family, _, _, _, where in found]
