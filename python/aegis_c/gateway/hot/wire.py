"""A whole request or plain reply in one step, where the server allows it: no ASGI messages.

A body that has come with its head is taken as it is; a reply's head and body go out in one write
and a stream's piece in another, as uvicorn would write them. ASGI messages cost a call several
microseconds, most of them for a general look at headers that were made here. Anything but a
connection under the guard's protocol (another server, a middleware in between), or one that is to
be closed or is slow, gets them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from aegis_c.gateway.hot.guard_protocol import GuardedProtocol
from aegis_c.gateway.hot.server_parts import STATUS_LINE, RequestResponseCycle

if TYPE_CHECKING:
    from starlette.types import Receive, Send


async def send_reply(
    send: Send, status: int, headers: list[tuple[bytes, bytes]], body: bytes
) -> None:
    """Send one complete reply; ``headers`` are in lower case and hold its content-length."""
    cycle = getattr(send, "__self__", None)
    if isinstance(cycle, RequestResponseCycle) and _is_simple(cycle):
        parts = [STATUS_LINE[status]]
        for name, value in cycle.default_headers:
            parts += (name, b": ", value, b"\r\n")
        for name, value in headers:
            parts += (name, b": ", value, b"\r\n")
        parts.append(b"\r\n")
        head = b"".join(parts)
        lines = len(cycle.default_headers) + len(headers) + 2
        if head.count(b"\n") != lines or head.count(b"\r") != lines or b"\0" in head:
            raise ValueError("a header of the reply holds CR, LF or NUL")
        cycle.response_started = True
        cycle.waiting_for_100_continue = False
        cycle.transport.write(head + body)
        cycle.response_complete = True
        cycle.message_event.set()
        cycle.on_response()
        return
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def whole_body(receive: Receive) -> bytes | None:
    """The request's body when all of it is there already: what ``receive`` would say, at once."""
    cycle = getattr(receive, "__self__", None)
    if (
        not isinstance(cycle, RequestResponseCycle)
        or cycle.more_body
        or cycle.disconnected
        or cycle.response_complete
        or cycle.waiting_for_100_continue
    ):
        return None
    body = bytes(cycle.body)
    cycle.body = bytearray()
    cycle.message_event.clear()
    cycle.flow.resume_reading()
    return body


class Pieces:
    """A chunked reply under way: its pieces go out at once, without a message for each."""

    __slots__ = ("_cycle",)

    def __init__(self, send: Send) -> None:
        cycle = getattr(send, "__self__", None)
        self._cycle = cycle if isinstance(cycle, RequestResponseCycle) else None

    def write(self, data: bytes) -> bool:
        """Write a piece, which is not empty; False: it takes an ASGI message, or its time."""
        cycle = self._cycle
        if (
            cycle is None
            or not cycle.chunked_encoding
            or cycle.flow.write_paused
            or cycle.disconnected
            or cycle.response_complete
        ):
            return False
        cycle.transport.write(b"%x\r\n%b\r\n" % (len(data), data))
        return True


def _is_simple(cycle: RequestResponseCycle) -> bool:
    return (
        not cycle.response_started
        and not cycle.disconnected
        and not cycle.flow.write_paused
        and not cycle.access_log
        and cycle.keep_alive
        and cycle.scope["method"] != "HEAD"
        and isinstance(getattr(cycle.on_response, "__self__", None), GuardedProtocol)
    )
