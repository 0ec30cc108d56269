"""How long a ledger takes to start after a clean stop, and whether it grows slower or heavier.

    python -m benchmarks.start [ENTRIES] [--dir DIRECTORY] [--rounds N] [--calls N]

times single calls of `submit` in a new ledger, writes ENTRIES (default 10 million) entries of 200
bytes, times `submit` again, closes the ledger, and opens it in fresh processes: `Ledger` with and
without its files in the page cache, `AsyncLedger`, and the gateway as far as its `/ready`. Prints
one JSON object. It needs about 330 bytes of disk an entry and removes what it made, whatever
happens.
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
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aegis_c
from benchmarks.entries import BODY, SECRET, meta, request_id
from benchmarks.machine import describe, quantile, resident_bytes

ENTRY_BYTES = 200
DISK_PER_ENTRY = 330
_RING_LOW = 1 << 20
_TIMED = 1 << 40  # request ids of the entries whose submit is timed begin here
_READY_SECONDS = 60
_REPLAYED = 4096  # so few entries behind the last low-water mark are left to the next start

# What opens the ledger sys.argv[2], in a process of its own; it stays open a moment, since a
# process that ends within milliseconds leaves no spare segment for the next one.
_OPEN = """
import asyncio, json, sys, time
import aegis_c
from aegis_c.ledger import AsyncLedger
async def opened():
    started = time.perf_counter()
    ledger = {"native": aegis_c.Ledger, "asyncio": AsyncLedger}[sys.argv[1]](sys.argv[2])
    took = time.perf_counter() - started
    native = getattr(ledger, "native", ledger)
    started = time.perf_counter()
    found = native.find(sys.argv[3])
    looked = time.perf_counter() - started
    print(json.dumps([took * 1e3, looked * 1e3, found, len(native), native.stats()["replayed"],
                      native.open_intents()]))
    await asyncio.sleep(0.2)
    closing = ledger.close()
    if closing is not None:
        await closing
asyncio.run(opened())
"""


def entry(number: int) -> bytes:
    """A call of 200 bytes."""
    head = f'{{"v":1,"kind":"call","id":"{request_id(number)}","time":"2026-01-02T03:04:05.123456Z"'
    return (head + ',"tenant":"').encode().ljust(ENTRY_BYTES - 2, b"x") + b'"}'


# ---- submit ------------------------------------------------------------------------------


def _bodies(_: str) -> tuple[Any, Any]:
    return BODY, BODY


def _finished(name: str) -> tuple[Any, Any]:
    made = [aegis_c.Commitment(SECRET, name, role) for role in ("request", "response")]
    for commitment in made:
        commitment.update(BODY)
    return made[0], made[1]


def _timed(
    ledger: aegis_c.Ledger, make: Callable[[str], tuple[Any, Any]], calls: int, pause: float
) -> dict[str, float]:
    """Quantiles of single calls; their arguments are made outside the time."""
    samples = []
    for _ in range(calls):
        name = request_id(_TIMED + len(ledger))
        arguments = (meta(_TIMED + len(ledger)), *make(name))
        if pause:
            time.sleep(pause)
        started = time.perf_counter()
        ledger.submit(*arguments)
        samples.append((time.perf_counter() - started) * 1e6)
    ledger.wait(len(ledger) - 1, "published", 60)
    return {f"p{round(f * 100)}_us": round(quantile(samples, f), 2) for f in (0.5, 0.99)}


def submits(ledger: aegis_c.Ledger, calls: int) -> dict[str, dict[str, float]]:
    """``calls`` of each kind back to back, and a tenth as many at gaps of 1 ms."""
    return {
        f"{what}, {pace}": _timed(ledger, make, max(1, count), pause)
        for what, make in (("2 KiB + 2 KiB", _bodies), ("finished commitments", _finished))
        for pace, count, pause in (("back to back", calls, 0), ("1 ms gaps", calls // 10, 0.001))
    }


def write(path: Path, entries: int, calls: int) -> dict[str, Any]:
    """Fill a new ledger; its rate, this process's memory on the way, submit before and after."""
    resident = {}
    waits = 0.0
    with aegis_c.Ledger(path) as ledger:
        early = submits(ledger, calls)
        first = len(ledger)
        started = time.perf_counter()
        for number in range(entries):
            if ledger.room() < _RING_LOW:
                before = time.perf_counter()
                ledger.wait(first + number - 1, "durable", 60)
                waits += time.perf_counter() - before
            ledger.submit(entry(number))
            if (number + 1) % max(entries // 10, 1) == 0:
                ledger.wait(first + number, "integrated", 600)
                resident[number + 1] = round(resident_bytes() / 2**20, 1)
        submitted = time.perf_counter() - started
        ledger.wait(len(ledger) - 1, "published", 600)
        late = submits(ledger, calls)
        return {
            "entries": len(ledger),
            "wanted": first + entries // 3,
            "entries_per_s": round(entries / submitted),
            "waited_for_ring_s": round(waits, 1),
            "resident_mib": resident,
            "submit_early": early,
            "submit_late": late,
        }


# ---- opening -----------------------------------------------------------------------------


def forget_cached(directory: Path) -> None:
    """Drop the clean cached pages of every file."""
    os.sync()
    for path in directory.rglob("*"):
        if path.is_file():
            fd = os.open(path, os.O_RDONLY)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(fd)


def opened(path: Path, face: str, name: str, wanted: int, entries: int) -> tuple[float, float]:
    """Milliseconds of opening and of one look-up of the id ``name``, in a process of its own."""
    command = [sys.executable, "-c", _OPEN, face, str(path), name]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    open_ms, find_ms, found, size, replayed, intents = json.loads(done.stdout)
    assert (found, size, intents) == ([wanted], entries, []), done.stdout
    assert replayed < _REPLAYED, done.stdout
    return open_ms, find_ms


def gateway_ready_ms(data: Path) -> float:
    """From the start of the process to the first 200 of `/ready`."""
    command = [sys.executable, "-m", "aegis_c.cli", "serve", "--port", "0", "--data", str(data)]
    started = time.monotonic()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                _, found, rest = line.partition("listening on http://127.0.0.1:")
                if found:
                    url = f"http://127.0.0.1:{int(rest.partition(';')[0])}/ready"
                    break
            else:
                raise RuntimeError("the gateway ended before it listened")
            while time.monotonic() - started < _READY_SECONDS:
                try:
                    urllib.request.urlopen(url, timeout=10).close()
                    return (time.monotonic() - started) * 1e3
                except urllib.error.URLError:
                    time.sleep(0.001)
            raise RuntimeError("the gateway was not ready within a minute")
        finally:
            process.terminate()
            process.stdout.read()


def measure(entries: int, directory: Path, rounds: int, calls: int) -> dict[str, Any]:
    """All figures for one size."""
    need = entries * DISK_PER_ENTRY + (1 << 30)
    free = shutil.disk_usage(directory).free
    if free < need:
        sys.exit(f"{directory} has {free >> 20} MiB free; {need >> 20} MiB are needed")
    result = {"machine": describe(directory)}
    with tempfile.TemporaryDirectory(prefix="aegis-start-", dir=directory) as made:
        path = Path(made) / "ledger" / "w0"
        result |= write(path, entries, calls)
        look = (request_id(entries // 3), result.pop("wanted"), result["entries"])
        warm = sorted(opened(path, "native", *look) for _ in range(rounds))
        cold = []
        for _ in range(min(rounds, 3)):
            forget_cached(Path(made))
            cold.append(opened(path, "native", *look)[0])
        asyncio_ms = [opened(path, "asyncio", *look)[0] for _ in range(rounds)]
        ready = [gateway_ready_ms(Path(made)) for _ in range(min(rounds, 3))]
    result["open_ms"] = [round(ms, 1) for ms, _ in warm]
    result["find_ms"] = [round(ms, 2) for _, ms in warm]
    result["open_cold_ms"] = [round(ms, 1) for ms in sorted(cold)]
    result["open_asyncio_ms"] = [round(ms, 1) for ms in sorted(asyncio_ms)]
    result["gateway_ready_ms"] = [round(ms) for ms in sorted(ready)]
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("entries", nargs="?", type=int, default=10_000_000)
    parser.add_argument("--dir", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--calls", type=int, default=10_000)
    given = parser.parse_args()
    print(json.dumps(measure(given.entries, given.dir, given.rounds, given.calls)))


if __name__ == "__main__":
    main()
