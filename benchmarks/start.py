"""How long a ledger takes to start after a clean stop, and what it weighs as it grows.

    python -m benchmarks.start [ENTRIES] [--dir DIRECTORY] [--rounds N]

writes ENTRIES (default 10 million) entries of 200 bytes, closes the ledger, and opens it again in
fresh processes, with and without its files in the page cache. Prints one JSON object. It needs
about 330 bytes of disk an entry and removes what it made, whatever happens.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import aegis_c
from benchmarks.entries import request_id
from benchmarks.machine import resident_bytes

ENTRY_BYTES = 200
DISK_PER_ENTRY = 330
_RING_LOW = 1 << 20

_OPEN = """
import json, sys, time, aegis_c
started = time.perf_counter()
ledger = aegis_c.Ledger(sys.argv[1])
opened = time.perf_counter() - started
started = time.perf_counter()
found = ledger.find(sys.argv[2])
looked = time.perf_counter() - started
stats = ledger.stats()
print(json.dumps([opened * 1e3, looked * 1e3, found, len(ledger), stats["replayed"],
                  ledger.open_intents()]))
ledger.close()
"""


def entry(number: int) -> bytes:
    """A call of 200 bytes."""
    head = f'{{"v":1,"kind":"call","id":"{request_id(number)}","time":"2026-01-02T03:04:05.123456Z"'
    return (head + ',"tenant":"').encode().ljust(ENTRY_BYTES - 2, b"x") + b'"}'


def write(path: Path, entries: int) -> dict[str, Any]:
    """Fill a new ledger; its rate, and the memory of this process on the way."""
    resident = {}
    waits = 0.0
    slowest = 0.0
    started = time.perf_counter()
    with aegis_c.Ledger(path) as ledger:
        for number in range(entries):
            if ledger.room() < _RING_LOW:
                before = time.perf_counter()
                ledger.wait(number - 1, "durable", 60)
                waits += time.perf_counter() - before
            meta = entry(number)
            before = time.perf_counter()
            ledger.submit(meta)
            slowest = max(slowest, time.perf_counter() - before)
            if (number + 1) % max(entries // 10, 1) == 0:
                ledger.wait(number, "integrated", 600)
                resident[number + 1] = round(resident_bytes() / 2**20, 1)
        submitted = time.perf_counter() - started
        ledger.wait(entries - 1, "published", 600)
    return {
        "entries": entries,
        "entries_per_s": round(entries / submitted),
        "slowest_submit_us": round(slowest * 1e6, 1),
        "waited_for_ring_s": round(waits, 1),
        "resident_mib": resident,
    }


def forget_cached(directory: Path) -> None:
    """Drop the clean cached pages of every file."""
    os.sync()
    for path in directory.rglob("*"):
        if path.is_file():
            fd = os.open(path, os.O_RDONLY)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(fd)


def opened(path: Path, entries: int) -> tuple[float, float]:
    """Milliseconds of opening and of one look-up, in a process of its own."""
    wanted = entries // 3
    command = [sys.executable, "-c", _OPEN, str(path), request_id(wanted)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    open_ms, find_ms, found, size, replayed, intents = json.loads(done.stdout)
    assert (found, size, replayed, intents) == ([wanted], entries, 0, []), done.stdout
    return open_ms, find_ms


def measure(entries: int, directory: Path, rounds: int) -> dict[str, Any]:
    """All figures for one size."""
    need = entries * DISK_PER_ENTRY + (1 << 30)
    free = shutil.disk_usage(directory).free
    if free < need:
        sys.exit(f"{directory} has {free >> 20} MiB free; {need >> 20} MiB are needed")
    with tempfile.TemporaryDirectory(prefix="aegis-start-", dir=directory) as made:
        path = Path(made) / "ledger" / "w0"
        result = write(path, entries)
        warm = sorted(opened(path, entries) for _ in range(rounds))
        cold = []
        for _ in range(min(rounds, 3)):
            forget_cached(Path(made))
            cold.append(opened(path, entries))
        result["open_ms"] = [round(ms, 1) for ms, _ in warm]
        result["find_ms"] = [round(ms, 2) for _, ms in warm]
        result["open_cold_ms"] = [round(ms, 1) for ms, _ in sorted(cold)]
        return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("entries", nargs="?", type=int, default=10_000_000)
    parser.add_argument("--dir", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--rounds", type=int, default=7)
    given = parser.parse_args()
    print(json.dumps(measure(given.entries, given.dir, given.rounds)))


if __name__ == "__main__":
    main()
