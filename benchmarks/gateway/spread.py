"""How 128 connections spread over four workers, for three ways of sharing one port.

    python -m benchmarks.gateway.spread [--json FILE] [--png FOLDER]

`reuseport`: a listening socket each, the kernel picks by a hash of the addresses. `shared`: one
socket, whoever is woken first accepts. `fair`: the same socket, and who holds more connections
than another leaves the next one to it (what `aegis-c serve --workers` does).
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import uvloop
from fastapi import FastAPI
from starlette.types import Receive, Scope, Send

from aegis_c.gateway.hot.guard_protocol import GuardedProtocol
from aegis_c.gateway.process.acceptor import Board
from aegis_c.gateway.process.worker import Server
from aegis_c.gateway.settings import Settings
from benchmarks.gateway.harness import build

WORKERS = 4
CONNECTIONS = 128
WAYS = ("reuseport", "shared", "fair")
_BODY = b'{"status":"ok"}'
_START = {
    "type": "http.response.start",
    "status": 200,
    "headers": [(b"content-length", b"%d" % len(_BODY))],
}


def measure(program: Path, way: str, seconds: float) -> dict[str, Any]:
    """One run: connections and answers of each worker."""
    counts = memoryview(mmap.mmap(-1, 16 * WORKERS)).cast("q")
    with _serving(way, counts) as port:
        done = subprocess.run(
            [str(program), "load", str(port), str(CONNECTIONS), str(seconds), "0"],
            input=b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n",
            capture_output=True,
            check=True,
            timeout=seconds + 60,
        )
        load = json.loads(done.stdout)
    if load["errors"] or not load["requests"]:
        raise RuntimeError(f"{way}: {load}")
    return {
        "connections": list(counts[:WORKERS]),
        "answers": list(counts[WORKERS:]),
        "rps": load["requests"] / load["seconds"],
        "p99_us": load["total_p99"],
    }


@contextmanager
def _serving(way: str, counts: memoryview) -> Iterator[int]:
    listeners = [_listener(0, way)]
    port = listeners[0].getsockname()[1]
    while len(listeners) < WORKERS:
        listeners.append(_listener(port, way) if way == "reuseport" else listeners[0])
    board = Board(WORKERS) if way == "fair" else None
    children = []
    for number, listener in enumerate(listeners):
        pid = os.fork()
        if pid == 0:
            cores = sorted(os.sched_getaffinity(0))
            os.sched_setaffinity(0, {cores[number % len(cores)]})
            uvloop.run(_serve(listener, board, number, counts))
            os._exit(0)
        children.append(pid)
    time.sleep(0.5)
    try:
        yield port
    finally:
        for pid in children:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        for listener in set(listeners):
            listener.close()


def _listener(port: int, way: str) -> socket.socket:
    listener = socket.socket()
    if way == "reuseport":
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    listener.bind(("127.0.0.1", port))
    listener.listen(2048)
    return listener


async def _serve(
    listener: socket.socket, board: Board | None, number: int, counts: memoryview
) -> None:
    seen: set[tuple[str, int]] = set()

    class _Served(FastAPI):
        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            await answer(scope, receive, send)

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            for stage in ("startup", "shutdown"):
                await receive()
                await send({"type": f"lifespan.{stage}.complete"})
            return
        seen.add(scope["client"])
        counts[number] = len(seen)
        counts[WORKERS + number] += 1
        await send(_START)
        await send({"type": "http.response.body", "body": _BODY})

    served = _Served()
    served.state.aegis = SimpleNamespace(protocol=GuardedProtocol)
    await Server(served, Settings(), listener, board, number).serve()


def draw(results: dict[str, list[dict[str, Any]]], folder: Path) -> None:
    """Connections of each worker, fewest first, as spread.png: the median over the runs."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 3.5), layout="constrained")
    for place, (way, runs) in enumerate(results.items()):
        ordered = zip(*(sorted(run["connections"]) for run in runs), strict=True)
        heights = [statistics.median(each) for each in ordered]
        axes.bar([n + 0.25 * place for n in range(WORKERS)], heights, 0.25, label=way)
    axes.axhline(CONNECTIONS / WORKERS, color="black", linewidth=0.8)
    axes.set(xlabel="worker, by its connections", ylabel=f"of {CONNECTIONS} connections")
    axes.set_xticks([n + 0.25 for n in range(WORKERS)], [str(n + 1) for n in range(WORKERS)])
    axes.legend()
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / "spread.png", dpi=80)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gateway.spread")
    parser.add_argument("--json", type=Path, help="write the results there")
    parser.add_argument("--png", type=Path, help="draw the spread into this folder")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0)
    options = parser.parse_args()
    results: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory(prefix="aegis-bench-") as folder:
        program = build(Path(folder))
        for _ in range(options.rounds):
            for way in WAYS:
                results[way].append(measure(program, way, options.seconds))
    for way, runs in results.items():
        least = statistics.median(min(run["connections"]) for run in runs)
        most = statistics.median(max(run["connections"]) for run in runs)
        rps = statistics.median(run["rps"] for run in runs)
        p99 = statistics.median(run["p99_us"] for run in runs)
        print(
            f"{way:9}: {least:.0f} to {most:.0f} of {CONNECTIONS} connections a worker, "
            f"{rps:,.0f} answers/s, p99 {p99 / 1e3:.1f} ms; runs "
            + " ".join("/".join(map(str, sorted(run["connections"]))) for run in runs)
        )
    if options.json is not None:
        options.json.write_text(json.dumps(results, indent=1) + "\n")
    if options.png is not None:
        draw(results, options.png)
    return 0


if __name__ == "__main__":
    sys.exit(main())
