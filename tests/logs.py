"""Logs made by the reference implementation, for tests of everything that reads a log."""

import json
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path

from reference import tiles

ORIGIN = "aegis.example/test/w0"
SEED = bytes(range(32))


def request_id(number: int) -> str:
    """A UUIDv7 that depends on `number` alone."""
    return str(uuid.UUID(int=(0x0192_0000_0000 + number) << 80 | 0x7 << 76 | 0x2 << 62 | number))


def entry(number: int, **members: object) -> bytes:
    """A small valid entry."""
    body = {
        "v": 1,
        "kind": "call",
        "id": request_id(number),
        "time": "2026-01-02T03:04:05.123456Z",
        "tenant": "acme",
        "status": 200,
        **members,
    }
    return json.dumps(body, separators=(",", ":")).encode()


def entries(count: int) -> list[bytes]:
    return [entry(number) for number in range(count)]


def write_log(folder: Path, count: int, *, seed: bytes = SEED) -> Path:
    """A signed log of `count` entries in `folder`."""
    tiles.write_files(folder, tiles.signed_log(entries(count), ORIGIN, seed))
    return folder


def damaged_copy(log: Path, to: Path, name: str, change: Callable[[bytes], bytes]) -> Path:
    """A copy of a log in which one file was changed."""
    shutil.copytree(log, to)
    (to / name).write_bytes(change((to / name).read_bytes()))
    return to
