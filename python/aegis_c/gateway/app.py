"""The application: a FastAPI around one Runtime (``gateway/runtime.py``) with every part.

``create_app`` is assembly only. The app is a FastAPI whose plain ``__call__`` hands governed
endpoints straight to their hot coroutine and everything else to FastAPI. It works as it is and
mounted in another application: parts start with the lifespan, or with the first request where a
parent does not run it, and drain with the lifespan, with ``app.state.aegis.stop()``, or when the
event loop ends.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Callable
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from aegis_c import __version__
from aegis_c.gateway.api import admin, health, ledger, openai, receipts
from aegis_c.gateway.errors import (
    SERVER_ERROR,
    Refusal,
    error_body,
    internal_error,
    method_not_allowed,
    unknown_route,
)
from aegis_c.gateway.evidence import Call
from aegis_c.gateway.hot.pipeline import CALL
from aegis_c.gateway.process.siblings import Siblings
from aegis_c.gateway.runtime import CHAT, Runtime
from aegis_c.gateway.settings import Settings, load_settings
from aegis_c.gateway.shards import Place

__all__ = ["Gateway", "Runtime", "create_app"]

log = logging.getLogger("aegis_c.gateway")


def _mark_coroutine_function(function: Callable[..., Any]) -> None:
    """Servers ask whether ``__call__`` is a coroutine function to tell ASGI 3 from ASGI 2."""
    mark = getattr(inspect, "markcoroutinefunction", None)
    if mark is not None:
        mark(function)
    else:  # Python 3.11: what asyncio.iscoroutinefunction() looks for
        function._is_coroutine = asyncio.coroutines._is_coroutine  # type: ignore[attr-defined]


class Gateway(FastAPI):
    """FastAPI, except that hot endpoints are answered without passing through it."""

    runtime: Runtime

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Any:
        """The coroutine that answers; a plain function, so that the hot path costs one look-up."""
        if scope["type"] == "http":
            if not self.runtime.running:
                return self._start_first(scope, receive, send)
            hot = self.runtime.hot.get(_route_path(scope))
            if hot is not None:
                return hot(scope, receive, send)
        return super().__call__(scope, receive, send)

    _mark_coroutine_function(__call__)

    async def _start_first(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The first request starts the parts where no lifespan has (a mounted application)."""
        try:
            await self.runtime.start()
        except Exception as error:
            log.error("the gateway cannot start: %s", error)
            if _route_path(scope) in ("/health", "/ready"):
                await super().__call__(scope, receive, send)
                return
            body = error_body(
                "The gateway cannot start; the operator finds the reason at /ready.",
                SERVER_ERROR,
                "not_ready",
            )
            response = Response(body, 503, {"retry-after": "5"}, media_type="application/json")
            await response(scope, receive, send)
            return
        await self(scope, receive, send)

    def openapi(self) -> dict[str, Any]:
        """FastAPI's schema with the hot endpoints, which are no routes of it, and our errors."""
        if self.openapi_schema is None:
            schema = super().openapi()
            schema["paths"][CHAT] = {"post": _CHAT_SCHEMA}
            schema.setdefault("components", {})["schemas"] = {"Error": _ERROR_SCHEMA}
            for methods in schema["paths"].values():
                for operation in methods.values():
                    operation["responses"].pop("422", None)  # FastAPI's own, never answered
                    operation["responses"]["default"] = _ERRORS
        return super().openapi()


def create_app(
    settings: Settings | None = None,
    *,
    place: Place | None = None,
    siblings: Siblings | None = None,
) -> FastAPI:
    """The gateway as an application; without ``settings`` they come from the environment.

    ``place`` and ``siblings`` are for a supervisor of several workers. Raises
    SettingsError. ``app.state.aegis`` is the Runtime.
    """
    runtime = Runtime(settings if settings is not None else load_settings(), place, siblings)
    app = Gateway(
        title="Aegis-C",
        version=__version__,
        summary="A governance gateway for LLM traffic with receipts that anyone can verify.",
        lifespan=runtime.lifespan,
        redoc_url=None,
    )
    app.runtime = app.state.aegis = runtime
    for module in (openai, receipts, ledger, admin, health):
        app.include_router(module.router(runtime))
    _add_error_handlers(app, runtime)
    return app


def _route_path(scope: Scope) -> str:
    """The path below where the application is mounted."""
    path: str = scope["path"]
    root: str = scope.get("root_path", "")
    return path[len(root) :] if root and path.startswith(root) else path


def _add_error_handlers(app: FastAPI, runtime: Runtime) -> None:
    """Every error in OpenAI's shape; refusals under /v1 leave an entry like any other."""

    def refuse(request: Request, refusal: Refusal) -> Response:
        call = Call(_route_path(request.scope), runtime.source.of(request.scope))
        request.scope[CALL] = call
        body = refusal.body()
        runtime.refuser.record(call, refusal, body)
        response = Response(body, refusal.status)
        response.raw_headers = runtime.refuser.headers(call, refusal, body)
        return response

    async def on_refusal(request: Request, error: Exception) -> Response:
        assert isinstance(error, Refusal)
        return refuse(request, error)

    async def on_http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        path = _route_path(request.scope)
        if error.status_code == 405:
            allow = (error.headers or {}).get("Allow", "GET")
            refusal = method_not_allowed(request.method, path, allow)
        elif error.status_code == 404 and request.scope.get("endpoint") in (None, app):
            refusal = unknown_route(request.method, path)
        else:
            body = error_body(str(error.detail), "invalid_request_error", None)
            return Response(body, error.status_code, error.headers, media_type="application/json")
        if path.startswith("/v1/"):
            return refuse(request, refusal)
        return Response(
            refusal.body(),
            refusal.status,
            {name.decode(): value.decode() for name, value in refusal.headers},
            media_type="application/json",
        )

    async def on_validation(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        first = error.errors()[0]
        param = ".".join(str(part) for part in first["loc"][1:])
        body = error_body(f"{param}: {first['msg']}", "invalid_request_error", None, param)
        return Response(body, 400, media_type="application/json")

    async def on_fault(request: Request, error: Exception) -> Response:
        log.error("%s %s: unexpected fault", request.method, request.url.path, exc_info=error)
        return Response(internal_error().body(), 500, media_type="application/json")

    app.add_exception_handler(Refusal, on_refusal)
    app.add_exception_handler(HTTPException, on_http)
    app.add_exception_handler(RequestValidationError, on_validation)
    app.add_exception_handler(Exception, on_fault)


_ERROR_SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["error"],
    "additionalProperties": False,
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "additionalProperties": False,
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}
_ERRORS: dict[str, Any] = {
    "description": "An error in OpenAI's shape.",
    "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}},
}
_CHAT_SCHEMA: dict[str, Any] = {
    "tags": ["openai"],
    "summary": "Chat completion",
    "description": "A governed call: checked, forwarded to the upstream as it is, recorded. "
    "With `stream: true` each event is passed on as it arrives.",
    "operationId": "create_chat_completion",
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "required": ["model", "messages"],
                    "properties": {
                        "model": {"type": "string"},
                        "messages": {
                            "type": "array",
                            "minItems": 1,
                            "items": {
                                "type": "object",
                                "required": ["role"],
                                "properties": {"role": {"type": "string"}, "content": {}},
                            },
                        },
                        "stream": {"type": "boolean"},
                    },
                }
            }
        },
    },
    "responses": {
        "200": {"description": "The upstream's answer; its receipt is at /v1/receipts/{id}."},
    },
}
