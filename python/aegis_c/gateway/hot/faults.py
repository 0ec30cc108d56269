"""An upstream that fails: what the caller is told, and what a stream's settle says."""

from __future__ import annotations

import json
from typing import Final

from aegis_c.gateway.errors import UPSTREAM_ERROR, Refusal, error_body, overloaded, shutting_down
from aegis_c.gateway.hot.pool import PoolBusy, PoolClosed, UpstreamError, UpstreamTimeout

_MESSAGE_MAX: Final = 1000  # characters of an upstream's own error text that are passed on


def upstream_refusal(error: UpstreamError) -> Refusal:
    """What the caller is told of an upstream's failure; the details are in the log."""
    if isinstance(error, PoolBusy):
        return overloaded("Every connection to the model server is in use.")
    if isinstance(error, PoolClosed):
        return shutting_down()
    if isinstance(error, UpstreamTimeout):
        return Refusal(
            504,
            "upstream_timeout",
            "The model server did not answer in time.",
            stage="upstream",
            type=UPSTREAM_ERROR,
        )
    return Refusal(
        502,
        "upstream_error",
        "The model server could not be reached or broke off its answer.",
        stage="upstream",
        type=UPSTREAM_ERROR,
    )


def upstream_garbage(how: str) -> Refusal:
    """502: the upstream answered, but with nothing that can be passed on."""
    return Refusal(
        502,
        "upstream_error",
        f"The model server answered {how}.",
        stage="upstream",
        type=UPSTREAM_ERROR,
    )


def ending(error: UpstreamError) -> str:
    """The status of the settle entry of a stream that ``error`` ended."""
    if isinstance(error, UpstreamTimeout):
        return "timeout"
    return "shutdown" if isinstance(error, PoolClosed) else "upstream_error"


def in_openais_shape(status: int, reply: bytes) -> bytes:
    """The body of an upstream's error that has another shape, as far as it has a text."""
    text = None
    try:
        document = json.loads(reply)
    except ValueError:
        document = None
    if isinstance(document, dict):
        text = document.get("message") or document.get("detail") or document.get("error")
    message = f"The model server answered with status {status}"
    if isinstance(text, str):
        message += f": {text[:_MESSAGE_MAX]}"
    else:
        message += "."
    return error_body(message, UPSTREAM_ERROR, UPSTREAM_ERROR)
