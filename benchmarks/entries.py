"""The work that the ledger's benchmarks do, and one child process that grows a ledger.

An entry is what the gateway writes for a plain call: about 380 bytes before the commitments to a
request and a response of 2 KiB each are added.

    python -m benchmarks.entries native|asyncio|python DIRECTORY ENTRIES

submits that many entries and prints one JSON object: bytes of resident memory and of disk per
entry, measured in a process of its own so that nothing else is counted.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import uuid
from collections.abc import Callable
from pathlib import Path

import aegis_c
from aegis_c.ledger import AsyncLedger
from benchmarks.machine import resident_bytes
from benchmarks.twins import TwinLedger, TwinTree

SECRET = bytes(range(32))
BODY = bytes(range(256)) * 8
_META = (
    b'{"v":1,"kind":"call","id":"%s","time":"2026-01-02T03:04:05.123456Z","tenant":"acme",'
    b'"key":"k1","endpoint":"/v1/chat/completions","model":{"asked":"gpt-x","answered":"gpt-x-1"},'
    b'"provider":"upstream","status":200,"usage":{"prompt_tokens":120,"completion_tokens":240,'
    b'"total_tokens":360},"policy":"' + b"0123456789abcdef" * 4 + b'",'
    b'"timing":{"upstream_us":1234,"total_us":1300}}'
)
_RING_LOW = 1 << 20  # bytes of free ring below which filling waits for the disk


def request_id(number: int) -> str:
    """A UUIDv7 that depends on ``number`` alone."""
    return str(uuid.UUID(int=0x0192_0000_0000_7000_8000_0000_0000_0000 | number))


def meta(number: int) -> bytes:
    """The entry of call ``number``, before its commitments."""
    return _META % request_id(number).encode()


def fill(ledger: aegis_c.Ledger, first: int, count: int) -> None:
    """Submit entries as fast as the ring drains, and wait until all are durable."""
    index = 0
    for number in range(first, first + count):
        if ledger.room() < _RING_LOW:
            ledger.wait(index, "durable", 60)
        index = ledger.submit(meta(number), BODY, BODY)
    ledger.wait(index, "durable", 60)


def fill_asyncio(ledger: AsyncLedger, first: int, count: int) -> None:
    """The same through the asyncio face."""
    index = 0
    for number in range(first, first + count):
        if ledger.native.room() < _RING_LOW:
            ledger.native.wait(index, "durable", 60)
        index = ledger.submit(meta(number), BODY, BODY)
    ledger.native.wait(index, "durable", 60)


def disk_bytes(directory: Path) -> tuple[int, int]:
    """Bytes allocated and number of files below ``directory``."""
    stats = [path.stat() for path in directory.rglob("*") if path.is_file()]
    return sum(stat.st_blocks * 512 for stat in stats), len(stats)


def fill_python(ledger: TwinLedger, tree: TwinTree, path: Path, first: int, count: int) -> None:
    """The twin: entries and every node of the tree in lists, and one JSON line on disk."""
    with path.open("ab") as file:
        for number in range(first, first + count):
            index = ledger.submit(meta(number), BODY, BODY)
            tree.append(ledger.entries[index])
            file.write(ledger.entries[index] + b"\n")
        file.flush()
        os.fdatasync(file.fileno())


def grow(fill_some: Callable[[int, int], None], directory: Path, entries: int) -> dict[str, float]:
    """Growth per entry, after a first part that fills what has a fixed size (the ring)."""
    first = max(entries // 5, min(entries // 2, 50_000))
    fill_some(0, first)
    before, disk_before = resident_bytes(), disk_bytes(directory)[0]
    fill_some(first, entries - first)
    count = entries - first
    disk, files = disk_bytes(directory)
    return {
        "rss_per_entry": (resident_bytes() - before) / count,
        "disk_per_entry": (disk - disk_before) / count,
        "files": files,
    }


async def _grow_asyncio(directory: Path, entries: int) -> dict[str, float]:
    async with AsyncLedger(directory / "ledger" / "w0") as ledger:
        return grow(lambda first, n: fill_asyncio(ledger, first, n), directory, entries)


def main(kind: str, directory: Path, entries: int) -> dict[str, float]:
    """One measurement, in this process."""
    if kind == "asyncio":
        return asyncio.run(_grow_asyncio(directory, entries))
    if kind == "python":
        twin, tree, path = TwinLedger(SECRET), TwinTree(), directory / "entries.jsonl"
        return grow(lambda first, n: fill_python(twin, tree, path, first, n), directory, entries)
    with aegis_c.Ledger(directory / "ledger" / "w0") as ledger:
        return grow(lambda first, n: fill(ledger, first, n), directory, entries)


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))))
