"""OpenAI's routes beside the governed ones: the list of models is the upstream's own."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from fastapi import APIRouter, Request, Response

from aegis_c.gateway.hot.adapters.openai import read_reply
from aegis_c.gateway.hot.faults import upstream_garbage, upstream_refusal
from aegis_c.gateway.hot.pool import UpstreamError

if TYPE_CHECKING:
    from aegis_c.gateway.app import Runtime

log = logging.getLogger("aegis_c.gateway.api.openai")


def router(runtime: Runtime) -> APIRouter:
    """Routes over ``runtime``."""
    routes = APIRouter(prefix="/v1", tags=["openai"])

    @routes.get("/models", response_class=Response)
    async def models(request: Request) -> Response:
        """The models that the upstream offers, as it lists them."""
        runtime.identify(request)
        pool = runtime.pool
        head = pool.request_head(b"GET", b"/models") + b"\r\n"
        connection = None
        try:
            connection = await pool.open(head, b"")
            connection = await pool.answered(connection, head, b"")
            body = await connection.body()
            status = connection.status
        except UpstreamError as error:
            log.warning("models: upstream: %s", error)
            raise upstream_refusal(error) from None
        finally:
            if connection is not None:
                connection.release()
        try:
            _, _, is_error = read_reply(body)
        except ValueError:
            raise upstream_garbage("with a body that is not a JSON object") from None
        if status != 200 and not is_error:
            raise upstream_garbage(f"with status {status}")
        return Response(body, status, media_type="application/json")

    return routes
