"""A whole plain reply in one step: head and body in one write, where the server allows it.

Two ASGI messages cost a call several microseconds, most of them for a general look at headers that
were made here. Under the guard's protocol the reply is written as uvicorn would write it; anything
else (another server, a middleware in between, a connection that is to be closed or is slow) gets
the two messages.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from aegis_c.gateway.hot.guard_protocol import GuardedProtocol
from aegis_c.gateway.hot.server_parts import STATUS_LINE, RequestResponseCycle

if TYPE_CHECKING:
    from starlette.types import Send


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
