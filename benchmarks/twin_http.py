"""What one would write in Python in place of the guard and the scan: their baseline."""

from __future__ import annotations

import json
import re
from typing import Any

_REQUEST = re.compile(rb"(GET|HEAD|POST|PUT|PATCH|DELETE|OPTIONS) (/[!-\"$-~]*) HTTP/1\.[01]")
_FIELD = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([\t -~\x80-\xff]*)")
_LENGTH = re.compile(rb"0|[1-9][0-9]{0,18}")


def check_head(data: bytes) -> int:
    """Where the request in ``data`` ends. Raises ValueError."""
    head, mark, _ = data.partition(b"\r\n\r\n")
    line, *fields = head.split(b"\r\n")
    if not mark or _REQUEST.fullmatch(line) is None or len(fields) > 100:
        raise ValueError("request")
    known: dict[bytes, bytes] = {}
    for field in fields:
        match = _FIELD.fullmatch(field)
        if match is None:
            raise ValueError("field")
        name = match[1].lower()
        if name in (b"host", b"content-length", b"transfer-encoding", b"expect"):
            if name in known:
                raise ValueError("twice")
            known[name] = match[2]
    length = known.get(b"content-length", b"0")
    if _LENGTH.fullmatch(length) is None or b"host" not in known:
        raise ValueError("framing")
    if b"transfer-encoding" in known:
        raise ValueError("not measured here")
    return len(head) + 4 + int(length)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("twice")
    return members


_decode = json.JSONDecoder(object_pairs_hook=_unique).decode


def strict_json(body: bytes) -> Any:
    """The document in ``body``, no member twice. Raises ValueError."""
    return _decode(body.decode())
