"""The gateway benchmark: CPU per governed call, requests a second, added latency, streams.

Starts a mock upstream and the servers in turn, drives each, and prints tables (and JSON with
--json FILE). Ends by itself: about a minute in its short form, five with --full.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.gateway.harness import Bench, Target
from benchmarks.machine import describe
from benchmarks.report import gateway_tables

CONNECTIONS = (1, 8, 64)
HEALTH_CONNECTIONS = (4, 16, 64, 128)
STREAM_SECONDS = 0.64  # how long one stream takes: 32 events, one every 20 ms
CLIENTS = ("pool", "aiohttp", "httpx")
NAMES = ("bare", "passthrough", "aiohttp", "governed", "naive")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gateway", description=__doc__)
    parser.add_argument("--full", action="store_true", help="the long form: steady figures")
    parser.add_argument("--calls", type=int, default=0, help="only so many per run: a smoke test")
    parser.add_argument("--json", type=Path, help="write the results there")
    parser.add_argument("--keep", type=Path, help="keep logs and data in this new directory")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="aegis-bench-") as temporary:
        folder = options.keep or Path(temporary)
        folder.mkdir(exist_ok=True)
        results = measure(folder, full=options.full, calls=options.calls)
    print(gateway_tables(results))
    if options.json is not None:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(results, indent=1) + "\n")
    return 0


def measure(folder: Path, *, full: bool = False, calls: int = 0) -> dict[str, Any]:
    """All measurements; ``calls`` > 0 bounds each of them (a smoke test)."""
    seconds, rounds = (4.0, 3) if full else (1.0, 2)
    if calls:
        seconds, rounds = 5.0, 1
    results: dict[str, Any] = {"machine": describe(folder), "form": "full" if full else "short"}
    with Bench(folder) as bench:
        direct = bench.upstream()
        targets = [direct]
        results["clients"] = [
            {
                "client": name,
                "connections": c,
                **_client(bench, name, direct, c, 0.1 if calls else seconds / 2, rounds),
            }
            for name in CLIENTS
            for c in ((8,) if calls else CONNECTIONS)
        ]
        for name in NAMES:
            start: Callable[[str, Target], Target] = bench.server
            targets.append(bench.governed(direct) if name == "governed" else start(name, direct))
        for target in targets:
            _say(f"{target.name}: warming up")
            bench.load(target, 8, seconds / 4, requests=calls)
        results["calls"] = [
            row
            for c in CONNECTIONS
            for row in _rows(bench, targets, rounds, connections=c, seconds=seconds, requests=calls)
        ]
        slow = [t for t in targets if t.name in ("direct", "passthrough", "governed")]
        results["delayed"] = _rows(
            bench,
            [t for t in targets if t.name not in ("bare", "naive")],
            rounds,
            connections=64,
            seconds=seconds,
            requests=calls,
            model="mock-20ms",
        )
        counts = (64,) if calls else (64, 256, 1000)
        for name, rounds_each, ramp in (("streams", 1, 0.0), ("spread", 2, STREAM_SECONDS)):
            results[name] = [
                row
                for c in counts
                for row in _rows(
                    bench,
                    slow + [t for t in targets if t.name == "naive" and c <= 64],
                    rounds,
                    connections=c,
                    seconds=60,
                    requests=c * rounds_each,
                    stream=True,
                    ramp=ramp,
                )
            ]
        results["health"] = [
            row
            for c in HEALTH_CONNECTIONS
            for row in _rows(
                bench,
                [t for t in targets if t.name in ("bare", "governed")],
                1,
                connections=c,
                seconds=seconds,
                requests=calls,
                path="/health",
            )
        ]
        results["memory"] = [
            {
                "target": target.name,
                "idle_mib": round(target.idle_mib, 1),
                "after_mib": round(target.process.resident_mib(), 1),
                "ready_ms": target.ready_ms and round(target.ready_ms),
            }
            for target in targets[1:]
        ]
    return results


def _rows(
    bench: Bench, targets: list[Target], rounds: int, *, connections: int, **load: Any
) -> list[dict[str, Any]]:
    """One row per target: the median of every figure over ``rounds`` interleaved rounds."""
    what = "streams" if load.get("stream") else load.get("model", load.get("path", "calls"))
    found: dict[str, list[dict[str, Any]]] = {target.name: [] for target in targets}
    for _ in range(rounds):
        for target in targets:
            found[target.name].append(bench.load(target, connections, **load))
    rows = []
    for name, runs in found.items():
        row = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
        _say(f"{name}: {what}, c={connections}: {row['rps']:,.0f}/s, {row['cpu_us']:.0f} us CPU")
        rows.append({"target": name, "connections": connections, **row})
    return rows


def _client(
    bench: Bench, name: str, direct: Target, connections: int, seconds: float, rounds: int
) -> dict[str, Any]:
    """The median of every figure of an upstream client by itself."""
    runs = [bench.client(name, direct, connections, seconds) for _ in range(rounds)]
    row = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
    _say(f"client {name}, c={connections}: {row['rps']:,.0f}/s, {row['cpu_us']:.0f} us CPU")
    return row


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
