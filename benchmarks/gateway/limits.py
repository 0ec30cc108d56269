"""What limits cost: the same load with none, and with some on every call.

python -m benchmarks.gateway.limits [--json FILE]

Nothing is refused. The stage by itself, without HTTP, is in `benchmarks/test_limits.py`.
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
from benchmarks.report import limits_table

CONNECTIONS = (1, 8, 64)
FIGURES = ("rps", "cpu_us", "total_p50", "total_p99")
SCOPES = ("key", "tenant", "model", "ip", "total")
MUCH = 10**9  # a minute


def settings(directory: str) -> dict[str, str]:
    """TOML below ``[limits]``, by the name of its row."""
    requests = f"requests = {{ rate = {MUCH} }}\n"
    tokens = f"tokens = {{ rate = {MUCH * 1000} }}\nconcurrency = 60000\n"
    five = "".join(f"[limits.{scope}]\n{requests}" for scope in SCOPES)
    where = f'directory = "{directory}"\n'
    more = "".join(f"[limits.{scope}]\n{requests}{tokens}" for scope in ("key", "total"))
    return {
        "no limits": "",
        "requests by key, tenant, model, address, total": where + five,
        "requests, tokens, calls at a time, by key and total": where + more,
    }


def measure(folder: Path, rounds: int, seconds: float) -> list[dict[str, Any]]:
    """The median of every figure over interleaved rounds, for each row and concurrency."""
    rows = []
    with (
        tempfile.TemporaryDirectory(prefix="aegis-bench-", dir="/dev/shm") as shared,
        Bench(folder) as bench,
    ):
        direct = bench.upstream()
        targets = {
            row: bench.governed(direct, name=f"limits{number}", limits=limits)
            for number, (row, limits) in enumerate(settings(shared).items())
        }
        for target in targets.values():
            bench.load(target, 8, seconds)
        for connections in CONNECTIONS:
            runs: dict[str, list[dict[str, Any]]] = {row: [] for row in targets}
            for _ in range(rounds):
                for row, target in targets.items():
                    runs[row].append(bench.load(target, connections, seconds))
            for row, found in runs.items():
                figures = {key: statistics.median(run[key] for run in found) for key in FIGURES}
                rows.append({"row": row, "connections": connections, **figures})
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gateway.limits")
    parser.add_argument("--json", type=Path, help="write the results there")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="aegis-bench-") as folder:
        results = {"machine": describe(Path(folder)), "limits": []}
        results["limits"] = measure(Path(folder), options.rounds, options.seconds)
    print(limits_table(results["limits"]))
    if options.json is not None:
        options.json.write_text(json.dumps(results, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
