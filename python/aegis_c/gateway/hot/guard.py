"""The first stage: nothing ambiguous, oversize or half-sent gets past this point.

Two lines. Under uvicorn, ``GuardedProtocol`` (``hot/guard_protocol.py``) reads a connection before
the HTTP parser does. ``Guard`` works on the ASGI message level, so it holds under any server; what
the first line or a strict parser has refused does not come here. It checks framing headers (RFC
9112 section 6), the media type and coding of the body, its size before it is read, and then the
JSON itself (``hot/strictjson.py``).
"""

from __future__ import annotations

import asyncio
import re
import zlib
from collections.abc import Iterable
from typing import Any

from starlette.types import Receive, Scope

from aegis_c import JsonError
from aegis_c.gateway.errors import Refusal
from aegis_c.gateway.hot.guard_protocol import GuardedProtocol, guarded
from aegis_c.gateway.hot.strictjson import StrictJson
from aegis_c.gateway.hot.wire import whole_body

__all__ = ["ClientGone", "Guard", "GuardedProtocol", "Head", "guarded"]

_LENGTH = re.compile(rb"0|[1-9][0-9]{0,18}")
_JSON_TYPE = re.compile(
    rb'application/json[ \t]*(?:;[ \t]*charset=(?:utf-8|"utf-8")[ \t]*)?', re.IGNORECASE
)
_BINARY_NAME = re.compile(rb":?[!#$%&'*+.^_`|~0-9a-z-]+")
_BINARY_VALUE = re.compile(rb"[\r\n\0]")
#: End-to-end names that a Connection header must not turn into hop-by-hop ones (RFC 9110 7.6.1).
_PROTECTED = frozenset(
    {b"authorization", b"content-length", b"content-type", b"content-encoding", b"host"}
)


class ClientGone(Exception):
    """The caller closed its connection."""


class Head:
    """What the stages need of one request's headers, from one pass over them."""

    # Defaults of the class: most requests have few of these.
    authorization: bytes | None = None
    beta: bytes | None = None
    chunked = False
    client_id: bytes | None = None
    content_encoding: bytes | None = None
    content_length: int | None = None
    content_type: bytes | None = None
    gzip = False
    idempotency_key: bytes | None = None
    request_id: bytes | None = None
    session: bytes | None = None


#: Headers kept in a Head as they are, at most once each.
_KEPT = {
    b"authorization": "authorization",
    b"openai-beta": "beta",
    b"x-client-request-id": "client_id",
    b"content-encoding": "content_encoding",
    b"content-type": "content_type",
    b"idempotency-key": "idempotency_key",
    b"x-request-id": "request_id",
    b"aegis-session": "session",
}
_FRAMING = frozenset({b"content-length", b"transfer-encoding", b"connection", b"host"})


def _bad(code: str, message: str) -> Refusal:
    """A request whose framing or headers cannot be trusted: the connection is not used again."""
    return Refusal(400, code, message, stage="guard", headers=((b"connection", b"close"),))


def _check_binary(headers: Iterable[tuple[bytes, bytes]]) -> None:
    """Fields of HTTP/2 and later, which an upstream's HTTP/1 would read as others."""
    for name, value in headers:
        if _BINARY_NAME.fullmatch(name) is None or _BINARY_VALUE.search(value) is not None:
            raise _bad("invalid_header", "A header field's name or value is not valid.")
        if name in (b"transfer-encoding", b"connection"):
            raise _bad("invalid_header", f"HTTP/2 has no header field {name.decode()}.")


class Guard:
    """Checks one request; built once from the limits."""

    __slots__ = ("_body_timeout", "_json", "_max_body")

    def __init__(self, max_body_bytes: int, max_json_depth: int, body_timeout: float) -> None:
        self._max_body = max_body_bytes
        self._json = StrictJson(max_json_depth)
        self._body_timeout = body_timeout

    def head(self, scope: Scope) -> Head:
        """Read and check the headers. Raises Refusal (400)."""
        head = Head()
        hosts = 0
        for name, value in scope["headers"]:
            member = _KEPT.get(name)
            if member is not None:
                if getattr(head, member) is not None:
                    raise _bad("duplicate_header", f"The header {name.decode()} is given twice.")
                setattr(head, member, value)
            elif name in _FRAMING:
                if name == b"content-length":
                    if head.content_length is not None:
                        raise _bad("duplicate_header", "Content-Length is given twice.")
                    if _LENGTH.fullmatch(value) is None:
                        raise _bad("invalid_header", "Content-Length is not a plain number.")
                    head.content_length = int(value)
                elif name == b"host":
                    hosts += 1
                elif name == b"transfer-encoding":
                    if head.chunked or value.strip().lower() != b"chunked":
                        raise _bad(
                            "invalid_header", "Transfer-Encoding must be exactly one 'chunked'."
                        )
                    head.chunked = True
                else:
                    for token in value.lower().split(b","):
                        if token.strip() in _PROTECTED:
                            raise _bad(
                                "invalid_header",
                                f"Connection must not list {token.strip().decode()}.",
                            )
        if head.chunked and head.content_length is not None:
            raise _bad("invalid_header", "Content-Length and Transfer-Encoding are both given.")
        if hosts > 1:
            raise _bad("duplicate_header", "Host is given twice.")
        if scope.get("http_version", "1.1")[:1] != "1":
            _check_binary(scope["headers"])
        return head

    def body_headers(self, head: Head) -> None:
        """Check type, coding and declared length of a governed body. Raises Refusal."""
        content_type = head.content_type
        if content_type != b"application/json" and (
            content_type is None or _JSON_TYPE.fullmatch(content_type) is None
        ):
            raise Refusal(
                415,
                "unsupported_media_type",
                "The body must be sent with 'Content-Type: application/json' (UTF-8).",
                stage="guard",
            )
        if head.content_encoding is not None:
            coding = head.content_encoding.strip().lower()
            if coding not in (b"identity", b"gzip"):
                raise Refusal(
                    415,
                    "unsupported_content_encoding",
                    "The body's Content-Encoding must be 'gzip' or absent.",
                    stage="guard",
                )
            head.gzip = coding == b"gzip"
        if head.content_length is not None and head.content_length > self._max_body:
            raise self._too_large(f"Content-Length is {head.content_length} bytes")

    async def body(self, head: Head, receive: Receive) -> bytes:
        """Read the whole body, after transfer-decoding and before content-decoding.

        Raises Refusal (400, 408, 413) or ClientGone.
        """
        body = whole_body(receive)
        if body is None:
            try:
                async with asyncio.timeout(self._body_timeout):
                    body = await self._read(receive)
            except TimeoutError:
                raise Refusal(
                    408,
                    "request_timeout",
                    f"The body did not arrive within {self._body_timeout:g} seconds.",
                    stage="body",
                    headers=((b"connection", b"close"),),
                ) from None
        if len(body) > self._max_body:
            raise self._too_large(f"it has {len(body)} bytes")
        if head.content_length is not None and len(body) != head.content_length:
            raise _bad(
                "invalid_body",
                f"Content-Length says {head.content_length} bytes, but {len(body)} were sent.",
            )
        return body

    async def _read(self, receive: Receive) -> bytes:
        parts: list[bytes] = []
        size = 0
        while True:
            message = await receive()
            if message["type"] != "http.request":
                raise ClientGone
            part = message.get("body", b"")
            size += len(part)
            if size > self._max_body:
                raise self._too_large("more than that was sent")
            parts.append(part)
            if not message.get("more_body", False):
                return b"".join(parts)

    def document(self, head: Head, body: bytes) -> dict[str, Any]:
        """The JSON object in ``body``. Raises Refusal (400, 413)."""
        if head.gzip:
            body = self._gunzip(body)
        try:
            return self._json.read(body)
        except JsonError as error:
            raise Refusal(400, error.code, str(error), stage="body", param=error.member) from None

    def _gunzip(self, body: bytes) -> bytes:
        """Decode one gzip member (RFC 1952), never producing more than the body limit."""
        decoder = zlib.decompressobj(wbits=31)
        try:
            plain = decoder.decompress(body, self._max_body + 1)
        except zlib.error:
            raise Refusal(
                400, "invalid_gzip", "The body is not valid gzip data.", stage="body"
            ) from None
        if len(plain) > self._max_body:
            raise self._too_large("it is larger once decompressed")
        if not decoder.eof:
            raise Refusal(400, "invalid_gzip", "The gzip body ends too early.", stage="body")
        if decoder.unused_data:
            raise Refusal(
                400,
                "invalid_gzip",
                "The gzip body holds more than one member.",
                stage="body",
            )
        return plain

    def _too_large(self, what: str) -> Refusal:
        return Refusal(
            413,
            "request_too_large",
            f"The body may have at most {self._max_body} bytes; {what}.",
            stage="guard",
        )
