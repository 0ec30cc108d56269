"""Routes that say how the gateway is: /health is constant, /ready names what is missing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastapi import APIRouter, Response

if TYPE_CHECKING:
    from aegis_c.gateway.app import Runtime


def router(runtime: Runtime) -> APIRouter:
    """Routes over ``runtime``."""
    routes = APIRouter(tags=["health"])

    @routes.get("/health")
    async def health() -> dict[str, str]:
        """The process answers. Says nothing about its parts: that is /ready."""
        return {"status": "ok"}

    @routes.get("/ready")
    async def ready(response: Response) -> dict[str, object]:
        """200 when calls can be served and recorded; else 503 with what is missing."""
        missing = runtime.missing()
        if missing:
            response.status_code = 503
        return {"ready": not missing, "missing": missing}

    @routes.get("/metrics", response_class=Response)
    async def metrics() -> Response:
        """Counters and gauges in Prometheus' text format."""
        return Response(runtime.metrics.text(), media_type="text/plain; version=0.0.4")

    return routes
