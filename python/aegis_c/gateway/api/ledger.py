"""The ledger for auditors and witnesses: the read interface of c2sp.org/tlog-tiles.

Checkpoints and hash tiles say nothing about any call and may be public (`ledger.public`);
entry bundles carry metadata of every tenant and are for auditors.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, HTTPException, Request, Response

from aegis_c.gateway.errors import Refusal
from aegis_c.ledger.layout import CHECKPOINT, DataDir, Shard
from aegis_c.ledger.tiles import ENTRIES, parse_path

if TYPE_CHECKING:
    from aegis_c.gateway.runtime import Runtime

_TEXT = "text/plain; charset=utf-8"
_OCTETS = "application/octet-stream"
_YEAR = 31_536_000


def router(runtime: Runtime) -> APIRouter:
    """Routes over `runtime`."""
    routes = APIRouter(prefix="/ledger", tags=["ledger"])
    directory = DataDir(runtime.settings.data)

    @routes.get("/")
    async def shards(request: Request) -> dict[str, Any]:
        """The shards of the ledger, with the verifier key of each."""
        _authorize(request)
        return {"shards": await asyncio.to_thread(_describe, directory)}

    @routes.get("/{shard}/checkpoint", response_class=Response)
    async def checkpoint(request: Request, shard: str) -> Response:
        """The latest signed tree head."""
        _authorize(request)
        if not _ends_with(request, CHECKPOINT):
            raise _nothing()
        content = await _read(_shard(shard).checkpoint)
        return Response(content, 200, {"cache-control": "no-cache"}, media_type=_TEXT)

    @routes.get("/{shard}/{path:path}", response_class=Response)
    async def tile(request: Request, shard: str, path: str) -> Response:
        """A hash tile, or, for auditors, an entry bundle. Both never change."""
        name = parse_path(path) if _ends_with(request, path) else None
        _authorize(request, secret=name is None or name.level == ENTRIES)
        if name is None:
            raise _nothing()
        content = await _read(_shard(shard).published / name.path)
        public = runtime.settings.ledger.public and name.level != ENTRIES
        scope = "public" if public else "private"
        caching = f"{scope}, max-age={_YEAR}, immutable"
        return Response(content, 200, {"cache-control": caching}, media_type=_OCTETS)

    def _authorize(request: Request, *, secret: bool = False) -> None:
        if runtime.settings.ledger.public and not secret:
            return
        if not runtime.identify(request).has("auditor"):
            raise Refusal(
                403,
                "role_required",
                "Reading the ledger needs a key with the role auditor.",
                stage="auth",
            )

    def _shard(name: str) -> Shard:
        try:
            return directory.shard(name)
        except ValueError:
            raise _nothing() from None

    return routes


def _ends_with(request: Request, path: str) -> bool:
    """False for a path with a newline at its end, which the router's patterns let through."""
    whole: str = request.scope["path"]
    return whole.endswith(path)


def _nothing() -> HTTPException:
    return HTTPException(404, "The ledger has no such file.")


async def _read(path: Path) -> bytes:
    try:
        return await asyncio.to_thread(path.read_bytes)
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        raise _nothing() from None


def _describe(directory: DataDir) -> list[dict[str, str]]:
    """Name, origin, verifier key and checkpoint of each shard that has a key already."""
    described = []
    for shard in directory.shards():
        try:
            vkey = shard.vkey.read_text().strip()
        except OSError:
            continue
        described.append(
            {
                "name": shard.name,
                "origin": vkey.split("+")[0],
                "vkey": vkey,
                "checkpoint": f"{shard.name}/{CHECKPOINT}",
            }
        )
    return described
