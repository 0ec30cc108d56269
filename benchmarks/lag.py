"""Proof that nothing of ours blocks the event loop: its lag under load beside the idle loop's.

    python -m benchmarks.lag [LOAD ...] [--seconds S] [--json FILE] [--into FILE]

A process with the parts of a gateway (everything but HTTP) on a disk that can be told to stall (the
build of tests/io_faults.py). Idle and loaded slices take turns in one run; a kernel timer fires
every millisecond, and the lag is the time from there to Python. Loads:

ledger    as many calls as 0.4 ms of each millisecond can record, 2 KiB + 2 KiB
stalled   5 calls a millisecond, while every write and sync of the disk hangs for 2 s
analyser  replies of 1 MB with 20 logprobs a token, as many as the analyser takes
all       the three at once, 2 calls a millisecond

Ticks that the load's own submitting made late do not count. The bound is 1.1 x idle p99 + 0.1 ms.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final

from benchmarks import loops
from benchmarks.machine import describe, quantile
from benchmarks.parts import Parts, reply, running
from benchmarks.report import fill_block, machine_line, table

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from io_faults import Faults

LOADS: Final = ("ledger", "stalled", "analyser", "all")
SLICE: Final = 2.5  # seconds of idle and of loaded loop in turn
STALL: Final = 2.0  # seconds that the disk hangs in a slice
SMALL: Final = reply(2048)
LARGE: Final = reply(1_000_000, logprobs=True)
QUEUED: Final = 4  # large replies that wait at a time


class Load:
    """What one kind of load does in each tick of a millisecond."""

    def __init__(self, kind: str, parts: Parts) -> None:
        self._parts = parts
        self._each = {"ledger": 1 << 30, "stalled": 5, "analyser": 0, "all": 2}[kind]
        self._stalls = kind in ("stalled", "all")
        self._analyses = kind in ("analyser", "all")
        self._waits: set[asyncio.Task[None]] = set()
        self.stalled = 0

    def tick(self) -> None:
        """Record calls, and hand large replies over."""
        parts, index = self._parts, None
        until = time.perf_counter() + 0.0004
        for _ in range(self._each):
            if time.perf_counter() >= until or not parts.room():
                break
            index = parts.record(SMALL)
        if self._analyses and parts.runtime.background.depth < QUEUED and parts.room():
            parts.record(LARGE)
        if index is not None and not self._waits:
            wait = asyncio.get_running_loop().create_task(parts.runtime.ledger.durable(index))
            self._waits.add(wait)
            wait.add_done_callback(self._waits.discard)

    async def run(self, ticker: loops.Ticker, seconds: float) -> None:
        """One slice under load."""
        if not self._stalls:
            await ticker.run(seconds)
            return
        faults = Faults.inherited()
        slice_ = asyncio.ensure_future(ticker.run(seconds))
        await asyncio.sleep(min(0.2, seconds / 10))
        with faults.stall("fdatasync") as syncs, faults.stall("pwrite") as writes:
            await asyncio.sleep(min(STALL, seconds * 0.8))
            self.stalled += syncs.waiting + writes.waiting
        await slice_


async def measure(kind: str, folder: Path, seconds: float) -> dict[str, Any]:
    """Quantiles of the lag in microseconds, idle and loaded."""
    limits = {"max_in_flight": 64}
    async with running(folder, limits=limits) as parts:
        load = Load(kind, parts)
        idle, busy = loops.Ticker(lambda: None), loops.Ticker(load.tick)
        size = min(SLICE, seconds)
        analysed = 0
        try:
            for _ in range(max(1, round(seconds / size))):
                await idle.run(size)
                before = parts.runtime.background.done
                await load.run(busy, size)
                analysed += parts.runtime.background.done - before
                await quiet(parts)
        finally:
            idle.close()
            busy.close()
        stats = parts.runtime.loop_health.stats()
    found: dict[str, Any] = {
        "load": kind,
        "seconds": seconds,
        "calls_per_second": round(parts.calls / seconds),
        "analyses_per_second": round(analysed / seconds),
        "stalled": load.stalled,
        "stalls_of_the_loop": stats["stalls"],
    }
    for name, ticker in (("idle", idle), ("loaded", busy)):
        assert ticker.lags, name
        for label, fraction in (("p50", 0.5), ("p99", 0.99), ("p999", 0.999), ("max", 1.0)):
            lag = quantile([float(ns) for ns in ticker.lags], fraction) / 1000
            found[f"{name}_{label}_us"] = round(lag, 1)
        found[f"{name}_ticks"] = len(ticker.lags)
    found["bound_us"] = round(1.1 * found["idle_p99_us"] + 100, 1)
    return found


async def quiet(parts: Parts) -> None:
    """What was handed over is done and durable: the next slice is idle."""
    runtime = parts.runtime
    while runtime.background.depth:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    size = len(runtime.ledger.native)
    if size:
        await runtime.ledger.durable(size - 1)
        await runtime.ledger.integrated(size - 1)
    await asyncio.sleep(0.05)


def child(kind: str, folder: Path, seconds: float) -> dict[str, Any]:
    """Measure in a process of its own, with the disk that can stall."""
    environment = Faults(folder / "rules").environment()
    environment["PYTHONPATH"] += f":{Path(__file__).parents[1]}"
    command = [sys.executable, "-m", "benchmarks.lag", kind, "--seconds", str(seconds)]
    done = subprocess.run(
        [*command, "--child", str(folder / "data")],
        env=environment, capture_output=True, text=True, timeout=60 + 6 * seconds,
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(done.stdout + done.stderr)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def show(results: dict[str, Any]) -> str:
    """The table."""
    header = ["us", "idle p50", "p99", "max", "loaded p50", "p99", "p99.9", "max", "bound of p99"]
    header += ["calls/s", "analyses/s"]
    rows = []
    for row in results["rows"]:
        names = ("idle_p50", "idle_p99", "idle_max", "loaded_p50", "loaded_p99", "loaded_p999")
        line = [f"{row[f'{name}_us']:,.0f}" for name in (*names, "loaded_max", "bound")]
        line += [f"{row['calls_per_second']:,}", f"{row['analyses_per_second']:,}"]
        rows.append([f"{row['load']}, {row['seconds']:g} s of each", *line])
    title = "Lag of the event loop, idle and loaded in turn"
    return machine_line(results["machine"]) + "\n" + table(title, header, rows)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.lag", description=__doc__)
    parser.add_argument("loads", nargs="*", metavar="LOAD", help=" | ".join(LOADS))
    parser.add_argument("--seconds", type=float, default=30.0, help="idle, and as many loaded")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--into", type=Path, metavar="FILE")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    loads = options.loads or LOADS
    if unknown := set(loads) - set(LOADS):
        parser.error(f"no such load: {', '.join(sorted(unknown))}")
    if options.child is not None:
        work = measure(loads[0], options.child, options.seconds)
        print(json.dumps(loops.run("uvloop", work)))
        return 0
    with tempfile.TemporaryDirectory(prefix="aegis-lag-") as temporary:
        results: dict[str, Any] = {"machine": describe(Path(temporary)), "rows": []}
        for kind in loads:
            folder = Path(temporary) / kind
            folder.mkdir()
            results["rows"].append(child(kind, folder, options.seconds))
    text = show(results)
    print(text)
    if options.json is not None:
        options.json.write_text(json.dumps(results, indent=1) + "\n")
    if options.into is not None:
        fill_block(options.into, "lag", text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
