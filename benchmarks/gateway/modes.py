"""What the evidence modes cost: the same load with each of them.

python -m benchmarks.gateway.modes [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.gateway.harness import Bench
from benchmarks.machine import describe

MODES = ("background", "durable", "write-ahead")
CONNECTIONS = (1, 8, 64)
FIGURES = ("rps", "cpu_us", "total_p50", "total_p99")


def measure(folder: Path, rounds: int, seconds: float) -> list[dict[str, Any]]:
    """The median of every figure over interleaved rounds, for each mode and concurrency."""
    rows = []
    with Bench(folder) as bench:
        direct = bench.upstream()
        targets = [direct, *(bench.governed(direct, mode=mode) for mode in MODES)]
        for target in targets:
            bench.load(target, 8, seconds / 2)
        for connections in CONNECTIONS:
            runs: dict[str, list[dict[str, Any]]] = {target.name: [] for target in targets}
            for _ in range(rounds):
                for target in targets:
                    runs[target.name].append(bench.load(target, connections, seconds))
            for name, found in runs.items():
                figures = {key: statistics.median(run[key] for run in found) for key in FIGURES}
                rows.append({"target": name, "connections": connections, **figures})
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gateway.modes")
    parser.add_argument("--json", type=Path, help="write the results there")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--data", type=Path, help="measure in a new directory on this disk")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="aegis-bench-", dir=options.data) as folder:
        results = {"machine": describe(Path(folder))}
        results["rows"] = measure(Path(folder), options.rounds, options.seconds)
    print("| mode | connections | requests/s | CPU us a call | p50 us | p99 us |")
    print("|---|--:|--:|--:|--:|--:|")
    for row in results["rows"]:
        values = (row[key] for key in FIGURES)
        print(f"| {row['target']} | {row['connections']} |", end="")
        print("|".join(f" {value:,.0f} " for value in values) + "|")
    if options.json is not None:
        options.json.write_text(json.dumps(results, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
