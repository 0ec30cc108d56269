"""The baseline: FastAPI, httpx, and a record made with json and hmac that is kept in memory."""

from __future__ import annotations

import json
import time
import uuid
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import StreamingResponse

from benchmarks.entries import SECRET
from benchmarks.twins import TwinLedger

# httpx2 is its successor, which newer clients bring along.
httpx: Any = import_module("httpx" if find_spec("httpx") else "httpx2")


def create_app(url: str) -> FastAPI:
    """A gateway before the OpenAI-compatible server at ``url``."""
    limits = httpx.Limits(max_connections=2048, max_keepalive_connections=2048)
    client = httpx.AsyncClient(limits=limits, timeout=60)
    ledger = TwinLedger(SECRET)
    app = FastAPI()

    def record(request: bytes, response: bytes, document: dict[str, Any]) -> None:
        meta = {
            "v": 1,
            "kind": "call",
            "id": str(uuid.uuid4()),
            "time": time.time(),
            "model": document["model"],
        }
        ledger.submit(json.dumps(meta).encode(), request, response)

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        body = await request.body()
        document = json.loads(body)
        headers = {"content-type": "application/json"}
        ask = client.build_request("POST", f"{url}/chat/completions", content=body, headers=headers)
        reply = await client.send(ask, stream=True)
        if document.get("stream"):
            return StreamingResponse(reply.aiter_raw(), media_type="text/event-stream")
        content = await reply.aread()
        record(body, content, document)
        return Response(content, reply.status_code, media_type="application/json")

    return app
