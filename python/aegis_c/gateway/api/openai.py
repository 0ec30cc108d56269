"""OpenAI's routes beside the governed ones: the list of models is the upstreams' own."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request, Response

from aegis_c.gateway.hot.adapters.openai import read_reply
from aegis_c.gateway.hot.faults import upstream_garbage, upstream_refusal
from aegis_c.gateway.hot.pool import Pool, UpstreamError

if TYPE_CHECKING:
    from aegis_c.gateway.app import Runtime
    from aegis_c.gateway.hot.targets import Target

log = logging.getLogger("aegis_c.gateway.api.openai")


def router(runtime: Runtime) -> APIRouter:
    """Routes over ``runtime``."""
    routes = APIRouter(prefix="/v1", tags=["openai"])

    @routes.get("/models", response_class=Response)
    async def models(request: Request) -> Response:
        """The models that the upstream offers, as it lists them; of several, all that they serve.

        A target that cannot be asked is left out while another one can.
        """
        runtime.identify(request)
        targets = runtime.targets.all
        found = await asyncio.gather(*(_ask(t.pool) for t in targets), return_exceptions=True)
        answers: list[tuple[Target, int, bytes]] = []
        for target, answer in zip(targets, found, strict=True):
            if isinstance(answer, UpstreamError):
                log.warning("models: %s: %s", target.name, answer)
            elif isinstance(answer, BaseException):
                raise answer
            else:
                answers.append((target, *answer))
        if not answers:
            assert isinstance(found[0], UpstreamError)
            raise upstream_refusal(found[0])
        if len(targets) > 1:
            return Response(_together(answers), media_type="application/json")
        _, status, body = answers[0]
        try:
            _, _, is_error = read_reply(body)
        except ValueError:
            raise upstream_garbage("with a body that is not a JSON object") from None
        if status != 200 and not is_error:
            raise upstream_garbage(f"with status {status}")
        return Response(body, status, media_type="application/json")

    return routes


async def _ask(pool: Pool) -> tuple[int, bytes]:
    head = pool.request_head(b"GET", b"/models") + b"\r\n"
    connection = await pool.open(head, b"")
    try:
        connection = await pool.answered(connection, head, b"")
        return connection.status, await connection.body()
    finally:
        connection.release()


def _together(answers: list[tuple[Target, int, bytes]]) -> bytes:
    """One list of what the targets list and are meant to serve; the first to name one wins."""
    models: dict[str, dict[str, Any]] = {}
    for target, status, body in answers:
        try:
            listed = json.loads(body)["data"] if status == 200 else []
            for model in listed:
                if target.serves(model["id"]):
                    models.setdefault(model["id"], model)
        except (ValueError, KeyError, TypeError):
            log.warning("models: %s: not a list of models", target.name)
    return json.dumps({"object": "list", "data": list(models.values())}).encode()
