"""Headers of a reply to the caller: made here, never copied, but for a short list."""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING, Final

from aegis_c.gateway.hot.auth import LOCAL

if TYPE_CHECKING:
    from aegis_c.gateway.evidence import Call

JSON: Final = b"application/json"
EVENTS: Final = b"text/event-stream"
#: Reply headers that are passed on beside the content type; never framing or hop-by-hop ones.
_PASSED: Final = (b"retry-after", b"retry-after-ms", b"x-should-retry")
_UNSAFE: Final = re.compile(rb"[\r\n\0]")


def add_timing(headers: list[tuple[bytes, bytes]], call: Call) -> None:
    """Tell an admin, and nobody else, where the time went so far."""
    principal = call.principal
    if principal is not None and "admin" in principal.roles and principal is not LOCAL:
        headers.append((b"server-timing", call.phases.server_timing()))


def reply_headers(
    call: Call, media: bytes, upstream: dict[bytes, bytes], length: int | None
) -> list[tuple[bytes, bytes]]:
    """The headers of the reply to an answered call; ``upstream`` are those that it came with."""
    if _UNSAFE.search(media) is not None:
        media = JSON
    elapsed = (time.perf_counter_ns() - call.started) // 1_000_000
    headers = [
        (b"content-type", media),
        (b"x-request-id", call.id.encode()),
        (b"openai-processing-ms", str(elapsed).encode()),
    ]
    if length is not None:
        headers.append((b"content-length", str(length).encode()))
    add_timing(headers, call)
    if call.entry is not None:
        headers.append((b"aegis-entry", call.entry))
    if call.held is not None:
        headers += call.held.headers()
    for name in _PASSED:
        value = upstream.get(name)
        if value is not None and _UNSAFE.search(value) is None:
            headers.append((name, value))
    return headers
