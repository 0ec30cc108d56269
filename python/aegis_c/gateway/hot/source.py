"""Where a request comes from: the peer, or the caller that trusted proxies vouch for.

The right-most address that is not a trusted proxy's counts: everything left of it was written by
somebody who is not trusted. What cannot be read ends the search at the proxy that sent it.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Sequence

from starlette.types import Scope

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Address = ipaddress.IPv4Address | ipaddress.IPv6Address

#: One parameter of the Forwarded header (RFC 7239 section 4), with its separator.
_PARAMETER = re.compile(r'[ \t]*([!#$%&\'*+.^_`|~0-9A-Za-z-]+)=("(?:[^"\\]|\\.)*"|[^",;]*)[ \t]*')


class Source:
    """Tells a request's source; built once from the settings."""

    __slots__ = ("_header", "_read", "_trusted", "_unix")

    def __init__(self, trusted: Iterable[Network | str], header: str) -> None:
        networks = list(trusted)
        self._trusted = tuple(n for n in networks if not isinstance(n, str))
        self._unix = "unix" in networks
        self._header = header.encode()
        self._read = _forwarded if header == "forwarded" else _listed

    def of(self, scope: Scope) -> str:
        """An address in plain form, an IPv6 one as its /64; ``local`` for a Unix socket."""
        client = scope.get("client")
        host = "local" if client is None else client[0]
        if self._unix if client is None else self._trusted and self._trusts(parse(host)):
            return self._vouched(scope, host)
        return named(host)

    def _vouched(self, scope: Scope, peer: str) -> str:
        texts = [
            value.decode("latin-1")
            for name, value in scope.get("headers", ())
            if name == self._header
        ]
        nearest = peer
        for text in reversed(self._read(",".join(texts))):
            address = parse(text)
            if address is None:
                break
            nearest = str(address)
            if not self._trusts(address):
                break
        return named(nearest)

    def _trusts(self, address: Address | None) -> bool:
        return address is not None and any(address in network for network in self._trusted)


def named(host: str) -> str:
    """A host as a source is named: an IPv6 address as its /64, one in disguise as IPv4."""
    if ":" not in host:
        return host
    address = parse(host)
    if not isinstance(address, ipaddress.IPv6Address):
        return host if address is None else str(address)
    return str(ipaddress.IPv6Network((int(address) >> 64 << 64, 64)))


def parse(text: str) -> Address | None:
    """An address with or without a port, an IPv6 one in brackets or not; None for other text."""
    text = text.strip().partition("%")[0]
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    mapped = getattr(address, "ipv4_mapped", None)
    return mapped or address


def _listed(text: str) -> Sequence[str]:
    """The addresses of an X-Forwarded-For header."""
    return [part for part in text.split(",") if part.strip()]


def _forwarded(text: str) -> Sequence[str]:
    """The ``for`` parameter of each element of a Forwarded header; "" or "?" where none is."""
    found: list[str] = []
    at, element = 0, ""
    while at < len(text):
        match = _PARAMETER.match(text, at)
        if match is None:
            at += 1
            if text[at - 1] == ",":
                found.append(element)
                element = ""
            elif text[at - 1] not in "; \t":
                element = "?"
            continue
        if match[1].lower() == "for":
            value = match[2]
            element = re.sub(r"\\(.)", r"\1", value[1:-1]) if value.startswith('"') else value
        at = match.end()
    found.append(element)
    return found
