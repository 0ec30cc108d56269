"""Who calls: a bearer key known by its SHA-256, or, with no key configured, the local machine."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from hashlib import sha256

from starlette.types import Scope

from aegis_c.gateway.errors import Refusal
from aegis_c.gateway.settings import ApiKey


class Principal:
    """A known caller: ``tenant`` and ``key`` (an id, never the key) go into entries."""

    __slots__ = ("key", "roles", "tenant")

    def __init__(self, tenant: str, key: str, roles: frozenset[str]) -> None:
        self.tenant = tenant
        self.key = key
        self.roles = roles

    def has(self, role: str) -> bool:
        """True when the caller holds ``role``; an admin holds every role."""
        return role in self.roles or "admin" in self.roles


#: The one principal while no key is configured.
LOCAL = Principal("local", "local", frozenset({"caller", "auditor", "admin"}))


class Auth:
    """Finds the principal of a request; built once from the keys."""

    __slots__ = ("_keys",)

    def __init__(self, keys: Iterable[ApiKey]) -> None:
        self._keys = {
            bytes.fromhex(key.sha256): Principal(key.tenant, key.id, frozenset(key.roles))
            for key in keys
        }

    @property
    def open(self) -> bool:
        """True while no key is configured: any bearer from this machine is ``local``."""
        return not self._keys

    def identify(self, authorization: bytes | None, scope: Scope) -> Principal:
        """The principal of an ``Authorization`` value. Raises Refusal (401, 403).

        Keys are compared by digest in one table look-up, so timing tells nothing about a key.
        """
        if authorization is None:
            raise _unauthorized(
                "You didn't provide an API key. Send it as 'Authorization: Bearer YOUR_KEY'."
            )
        scheme, _, key = authorization.partition(b" ")
        key = key.strip()
        if scheme.lower() != b"bearer" or not key:
            raise _unauthorized(
                "The Authorization header must be 'Bearer YOUR_KEY' with a non-empty key."
            )
        if not self._keys:
            if not _is_local(scope):
                raise Refusal(
                    403,
                    "no_key_configured",
                    "This gateway has no API key configured and therefore answers callers on its "
                    "own machine only.",
                    stage="auth",
                )
            return LOCAL
        principal = self._keys.get(sha256(key).digest())
        if principal is None:
            raise _unauthorized("Incorrect API key provided.")
        return principal


def _is_local(scope: Scope) -> bool:
    """True for a peer on this machine: loopback, or a Unix socket (no address)."""
    client = scope.get("client")
    if client is None or client[0] in ("127.0.0.1", "::1"):
        return True
    try:
        address = ipaddress.ip_address(client[0].partition("%")[0])
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return bool((mapped or address).is_loopback)


def _unauthorized(message: str) -> Refusal:
    return Refusal(
        401,
        "invalid_api_key",
        message,
        stage="auth",
        headers=((b"www-authenticate", b"Bearer"),),
    )
