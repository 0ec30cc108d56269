"""What is used of uvicorn beyond its documented surface: in one place, and checked when imported.

The first line against smuggling (``guard_protocol.py``) and the reply in one write (``wire.py``)
work inside uvicorn's HTTP protocol. A release that has other insides must not be served with.
"""

from __future__ import annotations

from typing import Any, Final

import uvicorn
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import (
    STATUS_LINE,
    HttpToolsProtocol,
    RequestResponseCycle,
)

__all__ = ["STATUS_LINE", "FlowControl", "HttpToolsProtocol", "RequestResponseCycle"]

_METHODS: Final = (
    "_should_upgrade",
    "_unset_keepalive_if_required",
    "connection_lost",
    "connection_made",
    "data_received",
    "handle_websocket_upgrade",
    "on_headers_complete",
    "on_message_begin",
    "on_message_complete",
    "on_response_complete",
)
#: Members that a protocol has from its beginning.
_MEMBERS: Final = (
    "app_state",
    "client",
    "config",
    "cycle",
    "flow",
    "loop",
    "parser",
    "pipeline",
    "server_state",
    "timeout_keep_alive",
    "timeout_keep_alive_task",
    "transport",
    "ws_protocol_class",
)
#: What a cycle is made with, and has.
_MADE_WITH: Final = (
    "scope",
    "transport",
    "flow",
    "logger",
    "access_logger",
    "access_log",
    "default_headers",
    "message_event",
    "expect_100_continue",
    "keep_alive",
    "on_response",
)
_HAS: Final = (
    "access_log",
    "body",
    "chunked_encoding",
    "default_headers",
    "disconnected",
    "flow",
    "keep_alive",
    "message_event",
    "more_body",
    "on_response",
    "response_complete",
    "response_started",
    "scope",
    "transport",
    "waiting_for_100_continue",
)


def missing(protocol: type[Any], cycle: type[Any]) -> list[str]:
    """Names of what ``protocol`` and ``cycle`` lack; empty when they can be worked with."""
    names = [name for name in _METHODS if not callable(getattr(protocol, name, None))]
    begun = getattr(getattr(protocol, "__init__", None), "__code__", None)
    if begun is not None:
        names += [name for name in _MEMBERS if name not in begun.co_names]
    try:
        made = cycle(**dict.fromkeys(_MADE_WITH))
    except TypeError as error:
        return [*names, f"{cycle.__name__}: {error}"]
    return names + [name for name in _HAS if not hasattr(made, name)]


def check(protocol: type[Any], cycle: type[Any]) -> None:
    """Raises ImportError saying what this uvicorn does not have."""
    lacking = missing(protocol, cycle)
    if lacking:
        raise ImportError(
            f"aegis-c cannot work with uvicorn {uvicorn.__version__}: it has no "
            f"{', '.join(lacking)}. Install a release that the tests pass with (pyproject.toml)."
        )


check(HttpToolsProtocol, RequestResponseCycle)
