"""One, two and four workers: throughput, tails, health sweeps, start, drain, memory.

    python -m benchmarks.gateway.workers [--seconds S] [--json FILE] [--png FOLDER]

The mock upstream, the load generator and the workers share all cores, so the figures say how more
workers compare with fewer on this machine, not what a core can do (python -m benchmarks.gateway
does). Health sweeps run beside bare uvicorn, whose own ratio is the yardstick. With --png the
sweeps are drawn (needs matplotlib).
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from benchmarks.gateway.harness import CHAT, Bench, Process, Target, _request, _url, keys
from benchmarks.machine import describe, resident_bytes

WORKERS = (1, 2, 4)
CALLS = (8, 64, 256)
SWEEP = (1, 4, 16, 64, 128)


class Everywhere(Process):
    """A process on all cores."""

    def __init__(self, command: list[str], log: Path) -> None:
        cores = os.sched_getaffinity(0)
        super().__init__(command, min(cores), log)
        os.sched_setaffinity(self.pid, cores)


def start(bench: Bench, upstream: Target, workers: int) -> tuple[Target, float]:
    """`aegis-c serve` with so many workers; seconds from the start to /ready."""
    folder = bench.folder / f"workers-{workers}"
    folder.mkdir()
    config = folder / "aegis.toml"
    config.write_text(
        f'port = 0\ndata = "{folder / "data"}"\nworkers = {workers}\n'
        f'[upstream]\nurl = "{_url(upstream)}"\n[limits]\nmax_in_flight = 1024\n'
        f"{keys()}"
    )
    command = [sys.executable, "-m", "aegis_c.cli", "serve", "--config", str(config)]
    process = Everywhere(command, folder / "log")
    bench._processes.append(process)
    port = int(
        process.wait_for("listening on http://127.0.0.1:").partition(";")[0].partition('"')[0]
    )
    target = Target(f"{workers} workers", process, port)
    while True:
        try:
            target.get("/ready")
            break
        except urllib.error.URLError:
            time.sleep(0.002)
    return target, time.monotonic() - process.started


def load(bench: Bench, port: int, connections: int, seconds: float, path: str) -> dict[str, float]:
    """Answers a second and p99; raises RuntimeError when a reply was wrong."""
    done = subprocess.run(
        [str(bench.program), "load", str(port), str(connections), str(seconds), "0"],
        input=_request(path, "mock-1", False),
        capture_output=True,
        timeout=seconds + 90,
    )
    found = json.loads(done.stdout) if done.returncode == 0 else {"errors": 1}
    if found["errors"]:
        raise RuntimeError(f"the load failed: {done.stderr.decode()} {found}")
    return {"rps": found["requests"] / found["seconds"], "p99_ms": found["total_p99"] / 1e3}


def sweep(bench: Bench, port: int, seconds: float, path: str) -> dict[int, dict[str, float]]:
    """`load` at each concurrency; `ratio` is throughput over the best from c = 4 on."""
    rows = {c: load(bench, port, c, seconds, path) for c in SWEEP}
    best = max(row["rps"] for c, row in rows.items() if c >= 4)
    for row in rows.values():
        row["ratio"] = row["rps"] / best
    return rows


def children(pid: int) -> list[int]:
    return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def measure(folder: Path, seconds: float) -> dict[str, Any]:
    results: dict[str, Any] = {"machine": describe(folder), "workers": {}}
    with Bench(folder) as bench:
        upstream = bench.upstream()
        os.sched_setaffinity(upstream.process.pid, os.sched_getaffinity(0))
        bare = bench.server("bare", upstream)
        results["bare"] = sweep(bench, bare.port, seconds, "/health")
        for workers in WORKERS:
            target, ready = start(bench, upstream, workers)
            row: dict[str, Any] = {"ready_s": ready}
            row["calls"] = {c: load(bench, target.port, c, seconds, CHAT) for c in CALLS}
            if workers != 2:
                row["health"] = sweep(bench, target.port, seconds, "/health")
                row["deep"] = sweep(bench, target.port, seconds, "/health?deep=1")
            pids = [target.process.pid] if workers == 1 else children(target.process.pid)
            row["rss_mib"] = [resident_bytes(pid) / 2**20 for pid in pids]
            began = time.monotonic()
            target.process.process.send_signal(signal.SIGTERM)
            status = target.process.process.wait(60)
            row["drain_s"], row["exit"] = time.monotonic() - began, status
            results["workers"][workers] = row
    return results


def show(results: dict[str, Any]) -> None:
    print(
        "| workers | ready s | drain s | RSS MiB a worker | "
        + " | ".join(f"calls/s, p99 ms at c={c}" for c in CALLS)
        + " |"
    )
    print("|--:" * (4 + len(CALLS)) + "|")
    for workers, row in results["workers"].items():
        rss = max(row["rss_mib"])
        calls = " | ".join(f"{r['rps']:,.0f}, {r['p99_ms']:.1f}" for r in row["calls"].values())
        print(f"| {workers} | {row['ready_s']:.2f} | {row['drain_s']:.2f} | {rss:.0f} | {calls} |")
    print("\n| sweep, throughput / best | " + " | ".join(f"c={c}" for c in SWEEP) + " |")
    print("|---" + "|--:" * len(SWEEP) + "|")
    for name, rows in sweeps(results).items():
        cells = " | ".join(f"{r['rps']:,.0f} ({r['ratio']:.2f})" for r in rows.values())
        print(f"| {name} | {cells} |")


def sweeps(results: dict[str, Any]) -> dict[str, dict[int, dict[str, float]]]:
    found = {"bare uvicorn, /health": results["bare"]}
    for workers, row in results["workers"].items():
        for kind in ("health", "deep"):
            if kind in row:
                found[f"{workers} workers, {kind}"] = row[kind]
    return found


def draw(results: dict[str, Any], folder: Path) -> None:
    """The sweeps as health.png."""
    from matplotlib import pyplot  # type: ignore[import-not-found]

    figure, axes = pyplot.subplots(figsize=(8, 5))
    for name, rows in sweeps(results).items():
        axes.plot(list(rows), [row["rps"] for row in rows.values()], marker="o", label=name)
    axes.set(xscale="log", xlabel="connections", ylabel="answers a second", ylim=(0, None))
    axes.legend()
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / "health.png", dpi=120)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gateway.workers")
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--json", type=Path, help="write the results there")
    parser.add_argument("--png", type=Path, help="draw the sweeps into this folder")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="aegis-bench-") as folder:
        results = measure(Path(folder), options.seconds)
    show(results)
    if options.json is not None:
        options.json.write_text(json.dumps(results, indent=1) + "\n")
    if options.png is not None:
        draw(results, options.png)
    return 0


if __name__ == "__main__":
    sys.exit(main())
