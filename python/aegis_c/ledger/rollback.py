"""Accepting that a log was rolled back: explicit, recorded, and nothing is thrown away.

A log that is shorter than its last signed checkpoint, or differs from it, does not open: receipts
were perhaps given for what is missing. When there is no newer copy to restore, its operator may go
on from what is there. What was signed before is moved to `private/<shard>/rolled-back-<n>/`, and
the next entry, `admin` with event `rollback`, carries its size and root: whoever holds an older
checkpoint or receipt can still show that the log broke, and the log itself says when.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import time
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from aegis_c import Ledger, LedgerError

from . import layout, verify
from .layout import Shard
from .tiles import ENTRIES, levels_of, parse_path, read_file, tiles_of

_REFUSALS = (
    "older than its signed checkpoint",
    "differs from what was signed",
    "older than the log's own mark",
)
"""How aegis_c.Ledger says that it would be a rollback to open this log."""


class NothingToAccept(Exception):
    """The log opens as it is, or something else is wrong with it. str() says which."""


@dataclass(frozen=True)
class Accepted:
    """What was done: the tree that was given up, the log as it goes on, where the rest lies."""

    shard: str
    lost_size: int
    lost_root: str
    size: int
    entry: int
    kept: str


def accept(shard: Shard) -> Accepted:
    """Goes on from what is there. NothingToAccept, LedgerError, VerificationError, OSError."""
    refusal = _refusal(shard)
    lost = _signed(shard)
    kept = _keep(shard)
    with Ledger(shard.published, private=shard.private, accept_rollback=True) as ledger:
        index = ledger.submit(_entry(lost, refusal))
        ledger.wait(index, "published", 60)
        _move_stale_tiles(shard, ledger.published_size, kept)
        size = len(ledger)
    return Accepted(shard.name, lost.size, lost.root.hex(), size, index, str(kept))


def _refusal(shard: Shard) -> str:
    """Why the log does not open; NothingToAccept unless that is a rollback."""
    if not (shard.private / "identity").exists():
        raise NothingToAccept(f"{shard.private} is not the private folder of a log")
    try:
        Ledger(shard.published, private=shard.private).close()
    except LedgerError as error:
        for words in _REFUSALS:
            if words in str(error):
                return words
        raise NothingToAccept(f"{shard.name} was not rolled back: {error}") from error
    raise NothingToAccept(f"{shard.name} opens as it is: nothing was rolled back")


def _signed(shard: Shard) -> verify.Checkpoint:
    """The newest checkpoint that was signed before."""
    key = verify.load_vkey(str(shard.vkey))
    found = []
    for path in (layout.checkpoint_copy(shard.published), shard.checkpoint):
        try:
            found.append(verify.open_checkpoint(read_file(path), key, str(path)))
        except FileNotFoundError:
            continue
    if not found:
        return verify.Checkpoint(key.name, 0, verify.EMPTY_ROOT)
    return max(found, key=lambda one: one.size)


def _keep(shard: Shard) -> Path:
    """Makes the folder for what is given up, and copies both signed checkpoints there."""
    number = 1
    while (folder := shard.private / f"rolled-back-{number}").exists():
        number += 1
    folder.mkdir(mode=0o700)
    for path, name in ((shard.checkpoint, "published"), (shard.private / "checkpoint", "copy")):
        if path.exists():
            shutil.copy2(path, folder / f"checkpoint.{name}")
    return folder


def _entry(lost: verify.Checkpoint, refusal: str) -> bytes:
    milliseconds, random = time.time_ns() // 1_000_000, int.from_bytes(os.urandom(10), "big")
    bits = milliseconds << 80 | 0x7 << 76 | (random & ((1 << 76) - 1))
    identity = uuid.UUID(int=bits & ~(0x3 << 62) | 0x2 << 62)
    now = datetime.now(UTC)
    members = {
        "v": 1,
        "kind": "admin",
        "id": str(identity),
        "event": "rollback",
        "time": now.strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        "size": lost.size,
        "root": base64.b64encode(lost.root).decode(),
        "refusal": refusal,
    }
    return json.dumps(members, separators=(",", ":")).encode()


def _move_stale_tiles(shard: Shard, size: int, kept: Path) -> None:
    """Moves away the tiles that are not of the present tree: nobody may take them for it."""
    levels = (ENTRIES, *range(levels_of(size)))
    own = {tile.path for level in levels for tile in tiles_of(size, level)}
    for path in sorted((shard.published / layout.TILES).rglob("*")):
        name = path.relative_to(shard.published).as_posix()
        if path.is_file() and parse_path(name) is not None and name not in own:
            target = kept / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.move(path, target)
