"""What an operator asks: the alerts."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
from fastapi import APIRouter, Query, Request

from aegis_c.gateway.background.alerts import newest
from aegis_c.gateway.errors import Refusal
from aegis_c.ledger.layout import DataDir

if TYPE_CHECKING:
    from aegis_c.gateway.runtime import Runtime

LIMIT_MAX = 1000
_FLUSH_SECONDS = 1.0


def router(runtime: Runtime) -> APIRouter:
    """Routes over `runtime`."""
    routes = APIRouter(prefix="/admin", tags=["admin"])
    directory = DataDir(runtime.settings.data)

    @routes.get("/alerts")
    async def alerts(
        request: Request,
        since: Annotated[str, Query(description="RFC 3339 time of the oldest one wanted.")] = "",
        limit: Annotated[int, Query(ge=1, le=LIMIT_MAX)] = 100,
    ) -> dict[str, Any]:
        """What the analyser found in replies, newest first, of every shard; for admins."""
        if not runtime.identify(request).has("admin"):
            raise Refusal(
                403, "role_required", "Alerts need a key with the role admin.", stage="auth"
            )
        oldest = _oldest(since)
        try:
            await asyncio.wait_for(runtime.alerts.flush(), _FLUSH_SECONDS)
        except TimeoutError:
            pass  # the disk does not answer; what waits for it is in memory
        found, more = await asyncio.to_thread(
            newest,
            [shard.private for shard in directory.shards()],
            runtime.alerts.pending(),
            since=oldest,
            limit=limit,
        )
        return {"object": "list", "data": msgspec.to_builtins(found), "has_more": more}

    return routes


def _oldest(since: str) -> str:
    """The time as alerts write it. Raises Refusal."""
    if not since:
        return ""
    try:
        # A plus sign that was not escaped arrives as a space.
        time = datetime.fromisoformat(since.replace(" ", "+"))
        if time.tzinfo is None:
            raise ValueError("no offset from UTC")
        return time.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    except (ValueError, OverflowError) as error:
        raise Refusal(
            400,
            "invalid_value",
            f"Invalid 'since': {str(error)[:100]}; expected a time such as 2026-01-02T03:04:05Z.",
            stage="body",
            param="since",
        ) from None
