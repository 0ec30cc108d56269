"""Forward proxies: which one, if any, stands before an upstream, and the tunnel through it.

Every upstream, https or http, is reached with CONNECT, so that the proxy passes bytes on and never
takes part in the HTTP of a call. Which proxy is the settings' say, or the environment's under
curl's names: `https_proxy`, `http_proxy` (lower case only: HTTP_PROXY can come from a request's
Proxy header in a CGI), `all_proxy`, `no_proxy`. The environment never sends loopback to a proxy.
"""

from __future__ import annotations

import asyncio
import base64
import ipaddress
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final
from urllib.parse import unquote, urlsplit

from aegis_c.gateway.hot.pool.errors import ConnectFailed

_HEAD_LIMIT: Final = 16 << 10  # bytes of a proxy's answer
_STATUS_LINE: Final = re.compile(rb"HTTP/1\.[01] ([1-5][0-9]{2})(?: [^\r\n\0]*)?\r\n")


@dataclass(frozen=True)
class Proxy:
    """A forward proxy, and what it is told of who we are."""

    host: str
    port: int
    authorization: str | None = None  # the value of Proxy-Authorization

    def __repr__(self) -> str:
        return f"proxy {self.host}:{self.port}"


def parse_proxy(url: str, login: str | None = None) -> Proxy:
    """`http://[user:password@]host[:port]`. Raises ValueError saying what is wrong."""
    if re.search(r"[\x00-\x20\x7f-\uffff]", url):
        raise ValueError("must be printable ASCII without spaces")
    parts = urlsplit(url if "://" in url else f"http://{url}")
    if parts.scheme != "http" or not parts.hostname:
        raise ValueError("must be http://host[:port]; TLS to the proxy and SOCKS are not supported")
    if parts.path.strip("/") or parts.query or parts.fragment:
        raise ValueError("must not carry a path or a query")
    if login is None and parts.username is not None:
        login = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
    authorization = None
    if login is not None:
        authorization = "Basic " + base64.b64encode(login.encode()).decode()
    return Proxy(parts.hostname, parts.port or 80, authorization)


def proxy_from(environment: Mapping[str, str], scheme: str, host: str, port: int) -> Proxy | None:
    """The proxy that the environment names for an upstream. Raises ValueError naming a bad one."""
    if is_loopback(host) or _excepted(environment, host, port):
        return None
    names = ["all_proxy", "ALL_PROXY"]
    names = ["http_proxy", *names] if scheme == "http" else ["https_proxy", "HTTPS_PROXY", *names]
    for name in names:
        if environment.get(name):
            try:
                return parse_proxy(environment[name])
            except ValueError as error:
                raise ValueError(f"the variable {name} {error}") from None
    return None


def is_loopback(host: str) -> bool:
    """True for an address of this machine alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost" or host.lower().endswith(".localhost")


def _excepted(environment: Mapping[str, str], host: str, port: int) -> bool:
    """`no_proxy`: names with all below them, addresses, networks; `:port` narrows; `*` is all."""
    host = host.lower().rstrip(".")
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        address = None
    for item in (environment.get("no_proxy") or environment.get("NO_PROXY") or "").split(","):
        item = item.strip().lower()
        if item == "*":
            return True
        name, colon, number = item.rpartition(":")
        if colon and number.isdigit() and (":" not in name or name.endswith("]")):
            if int(number) != port:
                continue
            item = name
        item = item.strip("[]").lstrip(".").rstrip(".")
        if not item:
            continue
        if host == item or (address is None and host.endswith("." + item)):
            return True
        if address is not None:
            try:
                if address in ipaddress.ip_network(item, strict=False):
                    return True
            except ValueError:
                continue
    return False


async def tunnel(sock: socket.socket, proxy: Proxy, host: str, port: int) -> None:
    """Ask the proxy at the other end of ``sock`` for a tunnel. Raises ConnectFailed."""
    loop = asyncio.get_running_loop()
    authority = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    lines = [f"CONNECT {authority} HTTP/1.1", f"Host: {authority}"]
    if proxy.authorization is not None:
        lines.append(f"Proxy-Authorization: {proxy.authorization}")
    await loop.sock_sendall(sock, "\r\n".join([*lines, "", ""]).encode())
    head = bytearray()
    while True:
        end = head.find(b"\r\n\r\n")
        if end >= 0:
            break
        data = await loop.sock_recv(sock, 4096)
        if not data:
            raise ConnectFailed(f"{proxy} closed the connection instead of making a tunnel")
        head += data
        if len(head) > _HEAD_LIMIT:
            raise ConnectFailed(f"the answer of {proxy} exceeds {_HEAD_LIMIT} bytes")
    line = _STATUS_LINE.match(head)
    if line is None:
        raise ConnectFailed(f"{proxy} does not answer in HTTP")
    status = int(line[1])
    if not 200 <= status < 300:
        hint = "; set upstream.proxy_login" if status == 407 else ""
        raise ConnectFailed(f"{proxy} refused the tunnel to {authority} with status {status}{hint}")
    if end + 4 != len(head):  # the upstream speaks second: these bytes are somebody else's
        raise ConnectFailed(f"{proxy} sent bytes of its own into the tunnel")
