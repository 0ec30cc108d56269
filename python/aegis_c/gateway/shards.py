"""The shards of a data directory: who serves which, and what becomes of the others.

Worker K writes shard wK and no other. Before anybody listens, each shard that exists and that no
worker will serve is recovered, published and closed (`close_others`), so that fewer workers than
last time lose nothing. A change of the set is recorded in w0, with the final size and root of the
shards that were closed: nobody can drop one of them unseen.
"""

from __future__ import annotations

import base64
import json
import logging
import os
import shutil
from dataclasses import dataclass, field
from typing import Any, Final

from aegis_c.gateway.evidence import Evidence
from aegis_c.gateway.settings import Settings
from aegis_c.ledger import AsyncLedger
from aegis_c.ledger.layout import DataDir, Shard

log = logging.getLogger("aegis_c.gateway.shards")

_STATE: Final = "shards.json"
_SHARED_MEMORY: Final = "/dev/shm"
_RING_LEAST: Final = 1 << 18
_RING_SHARE: Final = 2  # rings take at most one part in this many of the free shared memory


@dataclass(frozen=True)
class Place:
    """Where one worker stands among the workers of a data directory."""

    number: int = 0
    workers: int = 1
    changed: dict[str, Any] | None = field(default=None)  # for w0: the shard set is a new one

    @property
    def shard(self) -> str:
        """The name of the shard that this worker writes."""
        return f"w{self.number}"


def served(workers: int) -> list[str]:
    """The shards that so many workers write."""
    return [f"w{number}" for number in range(workers)]


def open_shard(settings: Settings, shard: Shard, ring_bytes: int) -> AsyncLedger:
    """Open or create one shard. Raises AegisError, OSError."""
    origin = settings.ledger.origin
    if origin is not None and shard.name != "w0":
        origin = f"{origin}/{shard.name}"  # each log has a name of its own
    pem = settings.ledger.key_pem
    return AsyncLedger(
        shard.published,
        private=shard.private,
        origin=origin,
        key=settings.ledger.key_file,
        key_pem=None if pem is None else pem.get_secret_value(),
        ring_bytes=ring_bytes,
    )


async def close_others(settings: Settings) -> dict[str, Any] | None:
    """Recover, publish and close every shard that no worker will serve.

    Returns what is to be recorded when the set differs from the last recorded one, else None.
    Raises AegisError or OSError naming the shard that cannot be used.
    """
    directory = DataDir(settings.data)
    serve = served(settings.workers)
    closed = []
    for shard in directory.shards():
        if shard.name in serve:
            continue
        ledger = open_shard(settings, shard, _RING_LEAST)
        try:
            abandoned = await _recover(ledger, settings)
            size = len(ledger.native)
            if size:
                await ledger.published(size - 1)
            root = base64.b64encode(ledger.native.root()).decode()
        finally:
            await ledger.close()
        if abandoned:
            log.warning("%s: %d streams are settled as abandoned", shard.name, abandoned)
        closed.append({"name": shard.name, "size": size, "root": root})
    now = {"served": serve, "closed": closed}
    return None if now == _recorded(directory) else now


async def _recover(ledger: AsyncLedger, settings: Settings) -> int:
    evidence = Evidence(
        ledger,
        policy=settings.policy(),
        refuse_on_failure=True,
        rejections_per_source=settings.evidence.rejections_per_source,
        rejections_total=settings.evidence.rejections_total,
        reserved=lambda: 0,
    )
    return await evidence.recover()


def _recorded(directory: DataDir) -> Any:
    """The set as it was last recorded. A directory from before there was a choice: w0 alone."""
    try:
        return json.loads((directory.private / _STATE).read_bytes())
    except (FileNotFoundError, ValueError):
        return {"served": ["w0"], "closed": []}


def remember(directory: DataDir, recorded: dict[str, Any]) -> None:
    """Note that the set was recorded, once its entry is durable."""
    path = directory.private / _STATE
    new = path.with_suffix(".new")
    new.write_text(json.dumps(recorded))
    os.replace(new, path)


def ring_bytes(settings: Settings) -> int:
    """The ring of each worker: as set, or what this machine's shared memory has room for.

    Half of what is free is left to others. Sized down, it holds fewer calls at a time: they wait
    for room as they do when the disk is slow.
    """
    wanted = settings.ledger.ring_bytes
    try:
        free = shutil.disk_usage(_SHARED_MEMORY).free
    except OSError:
        return wanted  # opening the ring says what is missing
    size = wanted
    while size > _RING_LEAST and size * settings.workers * _RING_SHARE > free:
        size //= 2
    if size < wanted:
        log.warning(
            "%s has %d bytes free: each of %d rings takes %d bytes instead of %d; for more, "
            "enlarge it (docker: --shm-size) or use fewer workers",
            _SHARED_MEMORY,
            free,
            settings.workers,
            size,
            wanted,
        )
    return max(size, min(wanted, _RING_LEAST))
