"""What recording a call costs the event loop that serves it, in three ways.

    python -m benchmarks.contention [--seconds S] [--png FILE] [--json FILE] [--into FILE]

1. Scheduling: handing work over, one call at a time: create_task with a set and a gauge, a deque
   with an Event, ours.
2. A sweep: c callers at a time, each in turn waits 5 ms (the model), does 50 us of Python of the
   gateway's own and leaves its record. The record is the same work each way: two commitments to
   2 KiB, the entry, a leaf of the tree, the entry on disk, a look at the words of the reply.
     none       no record: what the loop can do
     threads    two Python threads that take records from a queue and hold the GIL for them
     to_thread  `asyncio.to_thread` for each record
     ours       the gateway's evidence and background path
   Every way bounds its backlog, so what is served is recorded. A kernel timer of a millisecond says
   how late the loop is: what that is above the loop without records is taken for its wait for the
   GIL. That holds only while the loop has idle time; where it is busy, lag is its own work.
3. What comes of it, beside what is often claimed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import queue
import sys
import tempfile
import threading
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final, Protocol

from prometheus_client import CollectorRegistry, Gauge

from aegis_c.gateway.background.spawn import Background
from benchmarks import loops, parts, twins
from benchmarks.entries import SECRET, meta
from benchmarks.machine import describe, quantile
from benchmarks.report import fill_block, machine_line, table

COUNTS: Final = (1, 2, 4, 8, 16, 32, 64, 128)
WAYS: Final = ("none", "threads", "to_thread", "ours")
MODEL: Final = 0.005  # seconds that the model takes
OWN: Final = 50e-6  # seconds of Python a call, beside its record
BACKLOG: Final = 256  # records that may wait
REPLY: Final = parts.reply(2048)
CLAIMS: Final = {"throughput lost": "30 %", "latency added": "25-50 %", "GIL wait removed": "90 %"}


# ---- scheduling ---------------------------------------------------------------------------


def scheduling(loop: str, calls: int) -> list[dict[str, Any]]:
    """Nanoseconds of one hand-over, p50 and p99, the clock's own cost taken off."""
    return [
        {
            "loop": loop,
            "way": name,
            "burst": burst,
            **loops.run(loop, _hand_over(name, burst, calls)),
        }
        for burst in (1, 20)
        for name in ("create_task + set + gauge", "deque + Event", "ours")
    ]


async def _nothing() -> None:
    pass


def _job(number: int, reply: bytes) -> None:
    pass


async def _hand_over(name: str, burst: int, calls: int) -> dict[str, float]:
    """``burst`` hand-overs in one turn of the loop; with 1 the workers sleep before each."""
    clock = time.perf_counter_ns
    empty = sorted(-(clock() - clock()) for _ in range(1000))[500]
    background = Background(1 << 20, 2)
    background.start()
    tasks: set[asyncio.Task[None]] = set()
    gauge = Gauge("jobs", "Jobs.", registry=CollectorRegistry())
    items: deque[tuple[int, bytes]] = deque()
    event = asyncio.Event()
    loop = asyncio.get_running_loop()

    async def take() -> None:
        while True:
            await event.wait()
            event.clear()
            items.clear()

    def plain(number: int, reply: bytes) -> None:
        task = loop.create_task(_nothing())
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        gauge.set(len(tasks))

    def bare(number: int, reply: bytes) -> None:
        items.append((number, reply))
        event.set()

    def ours(number: int, reply: bytes) -> None:
        background.spawn("session", _job, number, reply)

    ways = {"create_task + set + gauge": plain, "deque + Event": bare}
    taker = loop.create_task(take())
    spent = []
    if name == "ours":  # called as the gateway calls it, not through a function of this file
        spawn = background.spawn
        for _ in range(calls // burst):
            for number in range(burst):
                started = clock()
                spawn("session", _job, number, REPLY)
                spent.append(clock() - started)
            while background.depth:  # noqa: ASYNC110
                await asyncio.sleep(0)
            await asyncio.sleep(0)
    else:
        way = ways[name]
        for _ in range(calls // burst):
            for number in range(burst):
                started = clock()
                way(number, REPLY)
                spent.append(clock() - started)
            await asyncio.sleep(0)
            await asyncio.sleep(0)
    taker.cancel()
    await background.drain(5)
    own = [float(ns - empty) for ns in spent]
    return {
        "p50_ns": quantile(own, 0.5),
        "p99_ns": quantile(own, 0.99),
        "mean_ns": sum(own) / len(own),
    }


# ---- the sweep ----------------------------------------------------------------------------


class Way(Protocol):
    """Takes records; ``room`` is awaited before a call is served."""

    async def room(self) -> None: ...
    def record(self, number: int) -> None: ...
    async def drained(self) -> None: ...


def word_entropy(reply: bytes) -> float:
    """Shannon entropy of a reply's words, in bits: the least that an analyser does."""
    words = Counter(json.loads(reply)["choices"][0]["message"]["content"].split())
    total = sum(words.values())
    return -sum(n / total * math.log2(n / total) for n in words.values())


class _Python:
    """The record in plain Python; shared by the ways that use threads."""

    def __init__(self, folder: Path) -> None:
        self._ledger, self._tree = twins.TwinLedger(SECRET), twins.TwinTree()
        self._lock = threading.Lock()
        self._file = (folder / "entries.jsonl").open("ab")
        self._waiting = 0
        self._loop = asyncio.get_running_loop()

    async def room(self) -> None:
        while self._waiting >= BACKLOG:  # noqa: ASYNC110
            await asyncio.sleep(0.001)

    async def drained(self) -> None:
        while self._waiting:  # noqa: ASYNC110
            await asyncio.sleep(0.001)

    def work(self, batch: list[int]) -> None:
        """One thread's: the records of a batch, on disk with one sync."""
        entries = []
        for number in batch:
            with self._lock:
                index = self._ledger.submit(meta(number), parts.REQUEST, REPLY)
                entry = self._ledger.entries[index]
                self._tree.append(entry)
            entries.append(entry)
            word_entropy(REPLY)
        twins.append_durable(self._file, b"\n".join([*entries, b""]))


class _Threads(_Python):
    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._queue: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        self._threads = [threading.Thread(target=self._run, daemon=True) for _ in range(2)]
        for thread in self._threads:
            thread.start()

    def record(self, number: int) -> None:
        self._waiting += 1
        self._queue.put(number)

    def _run(self) -> None:
        while (number := self._queue.get()) is not None:
            batch = [number]
            try:
                while len(batch) < 64:
                    found = self._queue.get_nowait()
                    if found is None:
                        self._queue.put(None)
                        break
                    batch.append(found)
            except queue.Empty:
                pass
            self.work(batch)
            self._loop.call_soon_threadsafe(self._done, len(batch))

    def _done(self, count: int) -> None:
        self._waiting -= count

    async def drained(self) -> None:
        await super().drained()
        for _ in self._threads:
            self._queue.put(None)


class _ToThread(_Python):
    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._tasks: set[asyncio.Task[None]] = set()

    def record(self, number: int) -> None:
        self._waiting += 1
        task = self._loop.create_task(self._one(number))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _one(self, number: int) -> None:
        await asyncio.to_thread(self.work, [number])
        self._waiting -= 1


class _Ours:
    def __init__(self, gateway: parts.Parts) -> None:
        self._gateway = gateway

    async def room(self) -> None:
        admission = self._gateway.runtime.admission
        await admission.enter(1)
        admission.leave(1)

    def record(self, number: int) -> None:
        self._gateway.record(REPLY)

    async def drained(self) -> None:
        runtime = self._gateway.runtime
        while runtime.background.depth:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        await runtime.ledger.durable(len(runtime.ledger.native) - 1)


class _None:
    async def room(self) -> None:
        pass

    def record(self, number: int) -> None:
        pass

    async def drained(self) -> None:
        pass


@asynccontextmanager
async def _way(name: str, folder: Path) -> AsyncIterator[Way]:
    if name == "ours":
        async with parts.running(folder, limits={"max_in_flight": 256}) as gateway:
            yield _Ours(gateway)
    else:
        kinds: dict[str, Callable[[], Way]] = {
            "none": _None,
            "threads": lambda: _Threads(folder),
            "to_thread": lambda: _ToThread(folder),
        }
        yield kinds[name]()


async def _sweep(name: str, folder: Path, seconds: float) -> list[dict[str, Any]]:
    async with _way(name, folder) as way:
        found = [await _serve(way, c, seconds) for c in COUNTS]
        await way.drained()
    return [{"way": name, **row} for row in found]


async def _serve(way: Way, callers: int, seconds: float) -> dict[str, Any]:
    """``callers`` in a closed loop for so long."""
    latencies: list[float] = []
    stop = time.perf_counter() + seconds

    async def call() -> None:
        while True:  # once at least
            started = time.perf_counter()
            await way.room()
            await asyncio.sleep(MODEL)
            until = time.perf_counter() + OWN
            while time.perf_counter() < until:
                pass
            way.record(len(latencies))
            ended = time.perf_counter()
            latencies.append(ended - started)
            if ended >= stop:
                return

    ticker = loops.Ticker(lambda: None)
    try:
        await asyncio.gather(ticker.run(seconds), *(call() for _ in range(callers)))
    finally:
        ticker.close()
    lags = [float(ns) for ns in ticker.lags]
    return {
        "callers": callers,
        "calls_per_second": len(latencies) / seconds,
        "p50_us": quantile(latencies, 0.5) * 1e6,
        "p99_us": quantile(latencies, 0.99) * 1e6,
        "lag_mean_us": sum(lags) / len(lags) / 1000,
        "lag_p99_us": quantile(lags, 0.99) / 1000,
    }


def sweep(folder: Path, seconds: float, rounds: int) -> list[dict[str, Any]]:
    """All ways in turn, ``rounds`` times; the median of every figure."""
    runs: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for number in range(rounds):
        for name in WAYS:
            place = folder / f"{name}-{number}"
            place.mkdir()
            for row in loops.run("uvloop", _sweep(name, place, seconds)):
                runs.setdefault((name, row["callers"]), []).append(row)
    return [
        {"way": name, "callers": callers}
        | {
            key: quantile([row[key] for row in rows], 0.5)
            for key in rows[0]
            if key.endswith(("us", "second"))
        }
        for (name, callers), rows in runs.items()
    ]


# ---- what comes of it ---------------------------------------------------------------------


def verdict(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each way and each number of callers: per cent lost, added and removed."""
    by = {(row["way"], row["callers"]): row for row in rows}
    found = []
    for way in WAYS[1:]:
        for callers in COUNTS:
            none, here, naive = by["none", callers], by[way, callers], by["threads", callers]
            wait = here["lag_mean_us"] - none["lag_mean_us"]
            naive_wait = naive["lag_mean_us"] - none["lag_mean_us"]
            found.append(
                {
                    "way": way,
                    "callers": callers,
                    "throughput lost": 100
                    * (1 - here["calls_per_second"] / none["calls_per_second"]),
                    "latency added": 100 * (here["p50_us"] / none["p50_us"] - 1),
                    "GIL wait removed": 100 * (1 - wait / naive_wait) if naive_wait > 0 else 0.0,
                }
            )
    return found


def show(results: dict[str, Any]) -> str:
    """The three tables."""
    found = {(row["way"], row["callers"]): row for row in results["sweep"]}
    schedule = [
        [
            f"{row['way']}, {row['loop']}, "
            + ("worker asleep" if row["burst"] == 1 else "20 in a row"),
            *(f"{row[f'{name}_ns']:,.0f}" for name in ("p50", "p99", "mean")),
        ]
        for row in results["scheduling"]
    ]
    names = {
        "calls_per_second": "calls/s",
        "p50_us": "latency p50, us",
        "p99_us": "latency p99, us",
        "lag_mean_us": "lag of the loop, mean us",
        "lag_p99_us": "lag of the loop, p99 us",
    }
    swept = [
        [f"{title}: {way}", *(f"{found[way, c][name]:,.0f}" for c in COUNTS)]
        for name, title in names.items()
        for way in WAYS
    ]
    claims = []
    for what, claimed in CLAIMS.items():
        for way in WAYS[1:] if what != "GIL wait removed" else WAYS[2:]:
            each = [row[what] for row in results["verdict"] if row["way"] == way]
            claims.append([f"{what}: {way}", claimed, *(f"{value:.0f}" for value in each)])
    callers = [f"c={c}" for c in COUNTS]
    return "\n".join(
        [
            machine_line(results["machine"]),
            table("Handing over one call", ["ns", "p50", "p99", "mean"], schedule),
            table("Serving and recording, 5 ms of model", ["", *callers], swept),
            table("Per cent, beside what is often claimed", ["", "claimed", *callers], claims),
        ]
    )


def draw(results: dict[str, Any], file: Path) -> None:
    """The sweep as one picture."""
    import matplotlib  # type: ignore[import-not-found]

    matplotlib.use("Agg")
    from matplotlib import pyplot  # type: ignore[import-not-found]

    figure, axes = pyplot.subplots(1, 3, figsize=(13, 4))
    shown = (
        ("calls_per_second", "calls a second"),
        ("p99_us", "latency p99, us"),
        ("lag_mean_us", "mean lag of the loop, us"),
    )
    labels = {"none": "no record", "threads": "Python threads", "to_thread": "asyncio.to_thread"}
    for axis, (name, title) in zip(axes, shown, strict=True):
        for way in WAYS:
            rows = [row for row in results["sweep"] if row["way"] == way]
            label = labels.get(way, "Aegis")
            axis.plot(
                [r["callers"] for r in rows], [r[name] for r in rows], marker="o", label=label
            )
        axis.set_xscale("log", base=2)
        axis.set_yscale("log")
        axis.set_xticks(COUNTS, [str(c) for c in COUNTS])
        axis.set_xlabel("callers at a time")
        axis.set_title(title)
        axis.grid(alpha=0.3)
    axes[0].legend()
    figure.tight_layout()
    figure.savefig(file, dpi=100)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.contention", description=__doc__)
    parser.add_argument("--seconds", type=float, default=0.6, help="of each step of the sweep")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--png", type=Path, metavar="FILE", help="draw the sweep (matplotlib)")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--into", type=Path, metavar="FILE")
    options = parser.parse_args(arguments)
    calls = max(200, min(40_000, round(50_000 * options.seconds)))
    with tempfile.TemporaryDirectory(prefix="aegis-contention-") as temporary:
        folder = Path(temporary)
        rows = sweep(folder, options.seconds, options.rounds)
        results: dict[str, Any] = {
            "machine": describe(folder),
            "scheduling": [row for loop in loops.LOOPS for row in scheduling(loop, calls)],
            "sweep": rows,
            "verdict": verdict(rows),
        }
    text = show(results)
    print(text)
    if options.json is not None:
        options.json.write_text(json.dumps(results, indent=1) + "\n")
    if options.png is not None:
        draw(results, options.png)
    if options.into is not None:
        fill_block(options.into, "contention", text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
