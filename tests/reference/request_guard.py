"""The request guard, slow and clear: a whole connection's bytes at once, regular expressions."""

from __future__ import annotations

import re
from typing import NamedTuple

METHODS_WITHOUT_BODY = {b"GET", b"HEAD", b"DELETE", b"OPTIONS"}
METHODS = METHODS_WITHOUT_BODY | {b"POST", b"PUT", b"PATCH"}
TOKEN = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
LENGTH = re.compile(rb"0|[1-9][0-9]{0,18}")
AUTHORITY = re.compile(rb"(?:\[[0-9A-Fa-f:.]{2,}\]|[0-9A-Za-z._~%!$&'()*+;=-]+)(?::[0-9]{0,5})?")
ABSOLUTE = re.compile(rb"https?://([^/?]*)/[^ ]*", re.IGNORECASE)
IMITATED = {
    b"content-length",
    b"transfer-encoding",
    b"content-type",
    b"content-encoding",
    b"keep-alive",
    b"http2-settings",
    b"proxy-connection",
}
END_TO_END = {
    b"authorization",
    b"content-encoding",
    b"content-length",
    b"content-type",
    b"cookie",
    b"expect",
    b"host",
    b"transfer-encoding",
}


class Violation(Exception):
    def __init__(self, code: str, offset: int, status: int = 400) -> None:
        super().__init__(code)
        self.found = (status, code, offset)


class Head(NamedTuple):
    passed: bytes  # what goes to the parser
    length: int
    chunked: bool
    closing: bool
    offered: bool


class Incomplete(Exception):
    """More bytes may come."""


def read(data: bytes) -> tuple[list[bytes], tuple[int, str, int] | None]:
    """The complete messages on a connection, and the violation that ends it, if one does."""
    messages: list[bytes] = []
    closing = offered = False
    try:
        while data:
            if data[:1] == b"\r":
                if data[1:2] not in (b"", b"\n"):
                    raise Violation("malformed_request", 0)
                data = data[2:]
            if not data:
                break
            if closing:
                raise Violation("malformed_request", 0)
            if offered:
                raise Violation("invalid_header", 0)
            if not re.match(rb"[A-Za-z]", data):
                raise Violation("malformed_request", 0)
            size = head_size(data)
            head = read_head(data[:size])
            end = size + body_size(data[size:], head, size)
            messages.append(head.passed + data[size:end])
            closing, offered = head.closing, head.offered
            data = data[end:]
    except Incomplete:
        pass
    except Violation as violation:
        return messages, violation.found
    return messages, None


def head_size(data: bytes) -> int:
    for found in re.finditer(rb"\n", data[:16384]):
        if data[: found.start()][-1:] != b"\r":
            raise Violation("malformed_request", found.start())
        if data[: found.end()].endswith(b"\r\n\r\n"):
            return found.end()
    if len(data) >= 16384:
        raise Violation("request_head_too_large", 16384, 431)
    raise Incomplete


def read_head(head: bytes) -> Head:
    bad = re.search(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]|\r(?!\n)", head)
    if bad is not None:
        raise Violation("malformed_request", bad.start())
    request_line, *lines = head[:-4].split(b"\r\n")
    method, old, authority = read_request_line(request_line)
    at = len(request_line) + 2
    fields: list[tuple[bytes, bytes]] = []
    for line in lines:
        if len(fields) == 100:
            raise Violation("request_head_too_large", at, 431)
        fields.append(read_field(line, at, fields))
        at += len(line) + 2

    def values(name: bytes) -> list[bytes]:
        return [value for given, value in fields if given == name]

    length = int((values(b"content-length") or [b"0"])[0])
    chunked = bool(values(b"transfer-encoding"))
    has_body = chunked or length > 0
    host = values(b"host")
    if (chunked and (values(b"content-length") or old)) or (not host and not old):
        raise Violation("invalid_header", len(head))
    if authority is not None and host and host[0].lower() != authority.lower():
        raise Violation("invalid_header", len(head))
    if has_body and method in METHODS_WITHOUT_BODY:
        raise Violation("invalid_body", len(head))
    if values(b"expect") and (not has_body or old):
        raise Violation("invalid_header", len(head))
    offered = bool(values(b"upgrade") or values(b"http2-settings"))
    return Head(
        without_offer(request_line, lines) if offered else head,
        length,
        chunked,
        old or any(token == b"close" for v in values(b"connection") for token in tokens(v)),
        offered,
    )


def tokens(value: bytes) -> list[bytes]:
    return [token.strip(b" \t").lower() for token in value.split(b",")]


def read_request_line(line: bytes) -> tuple[bytes, bool, bytes | None]:
    method, space, rest = line.partition(b" ")
    if not space or method not in METHODS:
        raise Violation("method_not_supported", 0)
    target, space, version = rest.partition(b" ")
    at = len(method) + 1
    absolute = ABSOLUTE.fullmatch(target)
    valid = re.fullmatch(rb"[^\x00-\x20\x7f-\xff#\\]+", target) and (
        target.startswith(b"/")
        or (target == b"*" and method == b"OPTIONS")
        or (absolute is not None and AUTHORITY.fullmatch(absolute[1]))
    )
    if not space or not valid:
        raise Violation("malformed_request", at)
    if version not in (b"HTTP/1.1", b"HTTP/1.0"):
        raise Violation("malformed_request", at + len(target) + 1)
    return method, version == b"HTTP/1.0", absolute[1] if absolute else None


def read_field(line: bytes, at: int, before: list[tuple[bytes, bytes]]) -> tuple[bytes, bytes]:
    if line[:1] in (b" ", b"\t"):
        raise Violation("invalid_header", at)
    token = TOKEN.match(line)
    end = token.end() if token else 0
    if not token or line[end : end + 1] != b":":
        raise Violation("invalid_header", at + end)
    name, value = token[0].lower(), line[end + 1 :].strip(b" \t")
    again = any(name == given for given, _ in before)
    if b"_" in name and name.replace(b"_", b"-") in IMITATED:
        raise Violation("invalid_header", at)
    if name in (b"host", b"content-length", b"transfer-encoding") and again:
        raise Violation("duplicate_header", at)
    if (
        (name == b"host" and not AUTHORITY.fullmatch(value))
        or (name == b"content-length" and not LENGTH.fullmatch(value))
        or (name == b"transfer-encoding" and value.lower() != b"chunked")
        or (name == b"expect" and (again or value.lower() != b"100-continue"))
        or (
            name == b"connection"
            and {token.replace(b"_", b"-") for token in tokens(value)} & END_TO_END
        )
    ):
        raise Violation("invalid_header", at)
    return name, value


def without_offer(request_line: bytes, lines: list[bytes]) -> bytes:
    kept = [request_line]
    for line in lines:
        name, _, value = line.partition(b":")
        if name.lower() in (b"upgrade", b"http2-settings"):
            continue
        if name.lower() == b"connection":
            stay = [
                token.strip(b" \t")
                for token in value.split(b",")
                if token.strip(b" \t").lower() not in (b"", b"upgrade", b"http2-settings")
            ]
            if stay:
                kept.append(name + b":" + b",".join(stay))
            continue
        kept.append(line)
    return b"\r\n".join([*kept, b"", b""])


def body_size(data: bytes, head: Head, at: int) -> int:
    """``at``: where the body begins in its message, for offsets."""
    if not head.chunked:
        if len(data) < head.length:
            raise Incomplete
        return head.length
    here = 0
    while True:
        size, line = read_chunk_size(data[here:], at + here)
        here += line
        if size == 0:
            expect(data, here, b"\r\n", at)
            return here + 2
        if len(data) < here + size:
            raise Incomplete
        here += size
        expect(data, here, b"\r\n", at)
        here += 2


def read_chunk_size(data: bytes, at: int) -> tuple[int, int]:
    digits = re.match(rb"[0-9A-Fa-f]*", data)
    assert digits is not None
    for n in range(1, len(digits[0]) + 1):
        if n > 16 or int(digits[0][:n], 16) >= 1 << 63:
            raise Violation("invalid_body", at + n - 1)
    end = digits.end()
    if end == len(data):
        raise Incomplete
    if end == 0:
        raise Violation("invalid_body", at)
    expect(data, end, b"\r\n", at)
    return int(digits[0], 16), end + 2


def expect(data: bytes, here: int, wanted: bytes, at: int) -> None:
    for i, octet in enumerate(wanted):
        if len(data) <= here + i:
            raise Incomplete
        if data[here + i] != octet:
            raise Violation("invalid_body", at + here + i)
