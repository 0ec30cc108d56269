"""The gateway inside an application that exists already.

    uvicorn --factory examples.mounted:app

The governed API is then at /ai/v1/..., the application's own routes stay as they are. A mounted
application gets no lifespan of its own: here the parent's opens and drains the gateway. Without
that line it would start with its first request and drain when the event loop ends.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI

from aegis_c.gateway import create_app


def app() -> FastAPI:
    """A small application with the gateway mounted at /ai."""
    gateway = create_app()

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with gateway.state.aegis.lifespan():
            yield

    parent = FastAPI(title="An application of mine", lifespan=lifespan)

    @parent.get("/hello")
    async def hello() -> dict[str, str]:
        return {"hello": "world"}

    parent.mount("/ai", gateway)
    return parent
