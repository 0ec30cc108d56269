"""Receipts: what a caller keeps to prove a call (forms in docs/formats.md)."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from fastapi import APIRouter, HTTPException, Query, Request, Response

from aegis_c import LedgerError
from aegis_c.ledger import shards
from aegis_c.ledger.layout import DataDir
from aegis_c.ledger.receipts import Source, build_receipt

if TYPE_CHECKING:
    from aegis_c.gateway.hot.auth import Principal
    from aegis_c.gateway.runtime import Runtime

log = logging.getLogger("aegis_c.gateway")

_WAIT_SECONDS = 20.0
"""How long `?wait=1` waits for a checkpoint; one is made within 10 s even when nobody asks."""
_REFUSAL_STEP = 0.02
"""Seconds: a 404 goes out at the next multiple of this after the request came in, so that its
time does not tell an id that exists from one that does not."""

_HEADERS = {"cache-control": "no-store", "vary": "authorization, accept"}

Kind = Literal["call", "intent", "settle", "rejection", "analysis", "admin"]


def router(runtime: Runtime) -> APIRouter:
    """Routes over `runtime`."""
    routes = APIRouter(prefix="/v1", tags=["receipts"])

    @routes.get("/receipts/{request_id}", response_class=Response)
    async def receipt(
        request: Request,
        request_id: str,
        wait: Annotated[bool, Query(description="Wait until a checkpoint covers it.")] = False,
        kind: Annotated[Kind | None, Query(description="Only entries of this kind.")] = None,
    ) -> Response:
        """All entries of one request with their proofs, as JSON; or, for `Accept: text/plain`,
        the tlog-proof of its first entry. For the key or tenant that made the call."""
        arrived = asyncio.get_running_loop().time()
        principal = runtime.identify(request)
        with _readable():
            found = await _own(runtime, request_id, kind)
        if found is None or not _may_read(principal, found.first):
            elsewhere = await _ask_siblings(runtime, request)
            if elsewhere is not None:
                return elsewhere
            with _readable():
                found = await _read_only(runtime, request, request_id, kind)
        if found is None or not _may_read(principal, found.first):
            if not _is_from_sibling(runtime, request):  # which waits itself
                await _until_next_step(arrived)
            raise HTTPException(404, "There is no receipt of that id for this key.", _HEADERS)
        if wait and found.source is runtime.ledger.native:
            try:
                published = runtime.ledger.published(found.indices[-1])
                await asyncio.wait_for(published, _WAIT_SECONDS)
            except (LedgerError, TimeoutError):
                pass  # the receipt says of each entry how far it got
        if _wants_text(request.headers.get("accept", "")):
            return await _proof(found.source, found.indices[0])
        with _readable():
            body = await asyncio.to_thread(build_receipt, found.source, request_id, found.indices)
        of_somebody = found.first.get("tenant") is not None  # else it had no valid key
        if of_somebody and not _is_caller(principal, found.first):
            body["salts"] = {}  # they open bodies: who only oversees a call does not get them
        return Response(json.dumps(body), 200, _HEADERS, media_type="application/json")

    return routes


@dataclass(frozen=True)
class _Found:
    """The entries of a request: where they lie, which, and what the first one says."""

    source: Source
    indices: list[int]
    first: dict[str, Any]


@contextmanager
def _readable() -> Iterator[None]:
    """Around what reads a shard: a file that is damaged or gone is no reason to say 404."""
    try:
        yield
    except LedgerError as error:
        log.error("a receipt was asked for: %s", error)
        message = "A shard of the ledger cannot be read just now."
        raise HTTPException(503, message, {**_HEADERS, "retry-after": "10"}) from None


def _select(source: Source, indices: Sequence[int], kind: Kind | None) -> _Found | None:
    entries = [(index, json.loads(source.entry(index))) for index in indices]
    wanted = [index for index, entry in entries if kind in (None, entry["kind"])]
    return _Found(source, wanted, entries[0][1]) if wanted else None


async def _own(runtime: Runtime, request_id: str, kind: Kind | None) -> _Found | None:
    """What this worker's shard has of a request."""
    ledger, native = runtime.ledger, runtime.ledger.native
    try:
        # For every id alike: all that was submitted until now becomes readable.
        if len(native):
            await ledger.integrated(len(native) - 1)
    except LedgerError:
        pass  # poisoned: what was integrated before can still be proven
    readable = native.integrated_size
    indices = [i for i in await ledger.find(request_id) if i < readable]
    return await asyncio.to_thread(_select, native, indices, kind)


async def _read_only(
    runtime: Runtime, request: Request, request_id: str, kind: Kind | None
) -> _Found | None:
    """What the files of the other shards have: those that nobody serves any more, and those
    whose worker does not answer."""
    if _is_from_sibling(runtime, request):
        return None  # who asks looks for itself

    def look() -> _Found | None:
        directory = DataDir(runtime.settings.data)
        own = "w0" if runtime.place is None else runtime.place.shard
        found = shards.find(directory, request_id, but=own)
        return _select(*found[0], kind) if found else None

    return await asyncio.to_thread(look)


async def _ask_siblings(runtime: Runtime, request: Request) -> Response | None:
    """The answer of the worker that served the call, when it was another one."""
    siblings = runtime.siblings
    if siblings is None or _is_from_sibling(runtime, request):
        return None
    target = request.url.path + (f"?{request.url.query}" if request.url.query else "")
    names = ("authorization", "accept")
    headers = {name: request.headers[name] for name in names if name in request.headers}
    answers = await siblings.ask(target, headers, _WAIT_SECONDS + 5.0)
    for answer in answers.values():
        if answer is not None and answer.status != 404:
            return Response(
                answer.body, answer.status, _HEADERS, media_type=answer.media_type or None
            )
    return None


def _is_from_sibling(runtime: Runtime, request: Request) -> bool:
    return runtime.siblings is not None and runtime.siblings.is_from_sibling(request.scope)


def _may_read(principal: Principal, entry: dict[str, Any]) -> bool:
    return principal.has("admin") or _is_caller(principal, entry)


def _is_caller(principal: Principal, entry: dict[str, Any]) -> bool:
    """`entry` is the request's first; all entries of a request are of one key."""
    return entry.get("tenant") == principal.tenant or entry.get("key") == principal.key


async def _until_next_step(arrived: float) -> None:
    passed = asyncio.get_running_loop().time() - arrived
    await asyncio.sleep(_REFUSAL_STEP - passed % _REFUSAL_STEP)


def _wants_text(accept: str) -> bool:
    """Whether `text/plain` stands before any media type that JSON would satisfy."""
    for item in accept.split(","):
        name = item.partition(";")[0].strip().lower()
        if name in ("application/json", "application/*", "*/*"):
            return False
        if name in ("text/plain", "text/*"):
            return True
    return False


async def _proof(source: Source, index: int) -> Response:
    try:
        text = await asyncio.to_thread(source.receipt, index)
    except LedgerError:
        raise HTTPException(
            409,
            "No signed checkpoint covers this entry yet. Ask again with ?wait=1.",
            {**_HEADERS, "retry-after": "1"},
        ) from None
    return Response(text, 200, _HEADERS, media_type="text/plain; charset=utf-8")
