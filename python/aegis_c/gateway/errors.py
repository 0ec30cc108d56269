"""The one shape of every error this gateway answers, and the refusal that carries it.

Every error body is OpenAI's ``{"error": {"message", "type", "param", "code"}}``. A stage that
refuses a request raises :class:`Refusal`; whoever catches it writes the entry and the reply.
"""

from __future__ import annotations

import math

import msgspec

_encode = msgspec.json.Encoder().encode

INVALID_REQUEST = "invalid_request_error"
SERVER_ERROR = "server_error"
UPSTREAM_ERROR = "upstream_error"


class _Error(msgspec.Struct):
    message: str
    type: str
    param: str | None
    code: str | None


class _Body(msgspec.Struct):
    error: _Error


def error_body(message: str, type: str, code: str | None, param: str | None = None) -> bytes:
    """The JSON text of one error in OpenAI's shape, UTF-8."""
    return _encode(_Body(_Error(message, type, param, code)))


class Refusal(Exception):
    """A request is refused: what the caller is told, and what the entry says.

    ``stage`` names the stage that refused (guard, auth, firewall, limits, body, route, upstream,
    internal), ``code`` is both the error's code and the entry's ``reason``; ``headers`` are extra
    reply headers.
    """

    __slots__ = ("code", "headers", "message", "param", "stage", "status", "type")

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        stage: str,
        type: str = INVALID_REQUEST,
        param: str | None = None,
        headers: tuple[tuple[bytes, bytes], ...] = (),
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.stage = stage
        self.type = type
        self.param = param
        self.headers = headers

    def body(self) -> bytes:
        """The error body, UTF-8 JSON."""
        return error_body(self.message, self.type, self.code, self.param)


def unknown_route(method: str, path: str) -> Refusal:
    """404 for a path that this gateway does not serve."""
    return Refusal(
        404, "unknown_url", f"Unknown request URL: {method} {path[:256]}.", stage="route"
    )


def method_not_allowed(method: str, path: str, allow: str) -> Refusal:
    """405 for a known path asked with another method; ``allow`` lists the methods it has."""
    return Refusal(
        405,
        "method_not_supported",
        f"Not allowed to {method} on {path[:256]}; use {allow}.",
        stage="route",
        headers=((b"allow", allow.encode("latin-1")),),
    )


def overloaded(message: str, *, retry_after: int = 1, code: str = "overloaded") -> Refusal:
    """503 with ``retry-after`` in seconds; nothing was sent upstream."""
    return Refusal(
        503,
        code,
        message,
        stage="limits",
        type=SERVER_ERROR,
        headers=((b"retry-after", str(retry_after).encode()),),
    )


def unavailable(seconds: float) -> Refusal:
    """503: every model server that could be asked has failed too often; nothing was sent."""
    return Refusal(
        503,
        "upstream_unavailable",
        "The model server has failed repeatedly and is left alone for a while.",
        stage="upstream",
        type=UPSTREAM_ERROR,
        headers=(
            (b"retry-after", str(max(1, math.ceil(round(seconds, 3)))).encode()),
        ),  # (t + 30) - t may exceed 30
    )


def unknown_model(model: str | None) -> Refusal:
    """404: the settings name no model server for this model."""
    return Refusal(
        404,
        "model_not_found",
        f"The model {(model or '')[:256]!r} does not exist or is not served here.",
        stage="upstream",
        param="model",
    )


def shutting_down() -> Refusal:
    """503: this process takes no more calls."""
    return overloaded("The gateway is shutting down.", code="shutting_down")


def ledger_unavailable(stage: str = "limits") -> Refusal:
    """503: the ledger cannot record, and the settings say to refuse rather than to serve."""
    return Refusal(
        503,
        "ledger_unavailable",
        "The audit ledger cannot record this call, so it is refused. Try again later; "
        "the operator finds the reason in the log and at /ready.",
        stage=stage,
        type=SERVER_ERROR,
        headers=((b"retry-after", b"5"),),
    )


def ledger_uncertain() -> Refusal:
    """503: the log failed while the reply waited for its entry; the settings withhold it then."""
    return Refusal(
        503,
        "ledger_unavailable",
        "The model has answered, but the audit ledger could not confirm its record of this call, "
        "so the reply is withheld. Whether the entry was kept is shown at /v1/receipts/ under "
        "this request id.",
        stage="evidence",
        type=SERVER_ERROR,
        headers=((b"retry-after", b"5"),),
    )


def internal_error() -> Refusal:
    """500 for a fault of our own; the details are in the log only."""
    return Refusal(
        500,
        "internal_error",
        "The gateway met an unexpected fault; the call was not completed. "
        "The log has the details under this request id.",
        stage="internal",
        type=SERVER_ERROR,
    )
