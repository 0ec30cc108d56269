"""Routes that say how the gateway is: /health is constant, /ready names what is missing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec
from fastapi import APIRouter, Request, Response

from aegis_c.gateway.all_metrics import families, merged

if TYPE_CHECKING:
    from aegis_c.gateway.app import Runtime


_PROMETHEUS: Final = "text/plain; version=0.0.4"
_SIBLING_SECONDS: Final = 2.0  # that /metrics waits for a worker; then it counts as down


def router(runtime: Runtime) -> APIRouter:
    """Routes over ``runtime``."""
    routes = APIRouter(tags=["health"])

    @routes.get("/health")
    async def health() -> dict[str, str]:
        """The process answers. Says nothing about its parts: that is /ready."""
        return {"status": "ok"}

    @routes.get("/ready")
    async def ready(response: Response) -> dict[str, object]:
        """200 when calls can be served and recorded; else 503 with what is missing.

        `ring`: where entries lie on their way to the disk, `tmpfs` or `disk`.
        """
        missing = runtime.missing()
        if missing:
            response.status_code = 503
        ring = runtime.ledger.native.stats()["ring_mode"] if runtime.running else None
        return {"ready": not missing, "missing": missing, "ring": ring}

    @routes.get("/metrics", response_class=Response)
    async def metrics(request: Request) -> Response:
        """Counters and gauges of all workers, in Prometheus' text format."""
        siblings = runtime.siblings
        if siblings is None:
            return Response(runtime.metrics.text(), media_type=_PROMETHEUS)
        own = msgspec.json.encode(families(runtime.metrics.registry))
        if siblings.is_from_sibling(request.scope):
            return Response(own, media_type="application/json")
        found = {siblings.number: own}
        for number, answer in (await siblings.ask("/metrics", {}, _SIBLING_SECONDS)).items():
            found[number] = b"" if answer is None or answer.status != 200 else answer.body
        return Response(merged(found), media_type=_PROMETHEUS)

    return routes
