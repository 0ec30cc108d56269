"""One, two and four workers: throughput, tails, health sweeps, start, drain, memory.

    python -m benchmarks.gateway.workers [--seconds S] [--rounds R] [--json FILE] [--png FOLDER]

The mock upstream, the load generator and the workers share all cores, so the figures say how more
workers compare with fewer on this machine, not what a core can do (python -m benchmarks.gateway
does). Health sweeps run beside bare uvicorn with as many workers, whose own ratio is the
yardstick: at each c from 4 on, throughput / best must be at least that ratio - 0.05. They take
turns for several rounds, and the median of each place counts; one worker has a core of its own,
and the load the other. With --png both are drawn, as health.png and workers.png (extra `bench`).
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from benchmarks.gateway.harness import CHAT, Bench, Process, Target, _request, _url, cores, keys
from benchmarks.machine import describe, resident_bytes

WORKERS = (1, 2, 4)
SWEPT = (1, 4)  # of them, where health is swept
CALLS = (8, 64, 256)
SWEEP = (1, 4, 8, 16, 32, 64, 128)
FLAT = 0.05  # that throughput / best may be below bare uvicorn's


class Everywhere(Process):
    """A process on all cores."""

    def __init__(self, command: list[str], log: Path) -> None:
        mine = os.sched_getaffinity(0)
        super().__init__(command, min(mine), log)
        os.sched_setaffinity(self.pid, mine)


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


def plain(bench: Bench, workers: int) -> Target:
    """Bare uvicorn with so many workers, on all cores."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "uvicorn", "--factory", "benchmarks.gateway.servers:bare_app"]
    command += ["--workers", str(workers), "--port", str(port), "--no-access-log"]
    command += ["--http", "httptools", "--loop", "uvloop", "--backlog", "2048"]
    process = Everywhere(command, bench.folder / f"bare-{workers}.log")
    bench._processes.append(process)
    target = Target(f"bare, {workers} workers", process, port)
    while process.log.read_text().count("Application startup complete") < workers:
        time.sleep(0.01)
    return target


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


Rows = dict[int, dict[str, float]]  # by concurrency


def sweep(bench: Bench, asked: dict[str, tuple[int, str]], seconds: float, rounds: int) -> Any:
    """Medians of `load` at each concurrency, for each name's port and path, which take turns.

    `ratio` is throughput over the best from c = 4 on.
    """
    found: dict[str, dict[int, list[float]]] = {name: {c: [] for c in SWEEP} for name in asked}
    for turn in range(rounds):
        for c in SWEEP:
            for name in sorted(asked, reverse=turn % 2 == 1):
                port, path = asked[name]
                found[name][c].append(load(bench, port, c, seconds, path)["rps"])
    rows: dict[str, Rows] = {}
    for name, measured in found.items():
        medians = {c: statistics.median(values) for c, values in measured.items()}
        best = max(rps for c, rps in medians.items() if c >= 4)
        rows[name] = {c: {"rps": rps, "ratio": rps / best} for c, rps in medians.items()}
    return rows


def pin(pid: int, cores: set[int]) -> None:
    """Keep all threads of a process on these cores."""
    for task in Path(f"/proc/{pid}/task").iterdir():
        os.sched_setaffinity(int(task.name), cores)


def children(pid: int) -> list[int]:
    return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def swept(bench: Bench, target: Target, workers: int, seconds: float, rounds: int) -> Any:
    """The sweeps of one target beside bare uvicorn's."""
    bare = plain(bench, workers)
    server, rest = cores()
    everywhere = os.sched_getaffinity(0)
    if workers == 1:
        for process in (target.process, bare.process):
            pin(process.pid, {server})
        os.sched_setaffinity(0, {rest})  # the load inherits it
    asked = {
        "bare": (bare.port, "/health"),
        "health": (target.port, "/health"),
        "deep": (target.port, "/health?deep=1"),
    }
    try:
        return sweep(bench, asked, seconds, rounds)
    finally:
        os.sched_setaffinity(0, everywhere)
        bench.stop(bare)


def measure(folder: Path, seconds: float, rounds: int) -> dict[str, Any]:
    results: dict[str, Any] = {"machine": describe(folder), "workers": {}, "bare": {}}
    with Bench(folder) as bench:
        upstream = bench.upstream()
        os.sched_setaffinity(upstream.process.pid, os.sched_getaffinity(0))
        for workers in WORKERS:
            target, ready = start(bench, upstream, workers)
            row: dict[str, Any] = {"ready_s": ready}
            row["calls"] = {c: load(bench, target.port, c, seconds, CHAT) for c in CALLS}
            if workers in SWEPT:
                found = swept(bench, target, workers, seconds, rounds)
                results["bare"][workers] = found.pop("bare")
                row |= found
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

    print()
    for name, rows in sweeps(results).items():
        if "uvicorn" in name:
            continue
        worst = min(
            (row["ratio"] - results["bare"][int(name.split()[0])][c]["ratio"], c)
            for c, row in rows.items()
            if c >= 4
        )
        word = "flat" if worst[0] >= -FLAT else "NOT flat"
        print(
            f"{name}: {word}: at its worst {worst[0]:+.2f} of bare uvicorn's ratio, at c={worst[1]}"
        )


def sweeps(results: dict[str, Any]) -> dict[str, Rows]:
    found = {f"{n} workers, bare uvicorn": rows for n, rows in results["bare"].items()}
    for workers, row in results["workers"].items():
        for kind in ("health", "deep"):
            if kind in row:
                found[f"{workers} workers, {kind}"] = row[kind]
    return found


def draw(results: dict[str, Any], folder: Path) -> None:
    """The sweeps as health.png; calls a second and their p99 as workers.png."""
    from matplotlib import pyplot

    folder.mkdir(parents=True, exist_ok=True)
    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    for name, rows in sweeps(results).items():
        axes.plot(list(rows), [row["rps"] for row in rows.values()], marker="o", label=name)
    axes.set(xlabel="connections", ylabel="answers a second", ylim=(0, None))
    axes.set_xscale("log", base=2)
    axes.set_xticks(SWEEP, map(str, SWEEP))
    axes.legend(fontsize="small")
    figure.savefig(folder / "health.png", dpi=80)
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(7, 3.5), layout="constrained")
    for place, (workers, row) in enumerate(results["workers"].items()):
        at = [index + 0.25 * place for index in range(len(CALLS))]
        found = row["calls"].values()
        left.bar(at, [one["rps"] for one in found], 0.25, label=f"{workers} workers")
        right.bar(at, [one["p99_ms"] for one in found], 0.25)
    for axes, label in ((left, "calls a second"), (right, "p99, ms")):
        axes.set(xlabel="connections", ylabel=label)
        axes.set_xticks([index + 0.25 for index in range(len(CALLS))], map(str, CALLS))
    left.legend(fontsize="small")
    figure.savefig(folder / "workers.png", dpi=80)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gateway.workers")
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--rounds", type=int, default=5, help="of the sweeps of health")
    parser.add_argument("--json", type=Path, help="write the results there")
    parser.add_argument("--png", type=Path, help="draw the sweeps into this folder")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="aegis-bench-") as folder:
        results = measure(Path(folder), options.seconds, options.rounds)
    show(results)
    if options.json is not None:
        options.json.write_text(json.dumps(results, indent=1) + "\n")
    if options.png is not None:
        draw(results, options.png)
    return 0


if __name__ == "__main__":
    sys.exit(main())
