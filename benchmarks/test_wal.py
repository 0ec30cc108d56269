"""The write-ahead log beside what else a Python user has, in one run on one disk.

    ./dev bench benchmarks/test_wal.py [--full]

Durable records: K tasks each append a record of 2 KiB and wait until it is durable, over and over.
`rate` is the best round; `p50`, `p99` its times from append to durable. Right before every round
the disk itself is asked: pwrite + fdatasync of a file that is written already, one block of 4 KiB
and one of K records. So `of the disk` (records a second against syncs of 4 KiB a second), `p99 in
syncs` and `p99 in batch syncs` (p99 against the median sync of 4 KiB, of K records) compare what
happened within a second of each other; they are medians of the rounds. K tasks that do nothing
else wait K / rate on average, whatever the log: p99 cannot be less.
AEGIS_BENCH_DIR chooses the disk (default: build/bench below the project).
"""

from __future__ import annotations

import asyncio
import gc
import mmap
import os
import resource
import shutil
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from aegis_c import WalFull, WalReader, WalWriter
from aegis_c.ledger.wal import Wal
from benchmarks import loops
from benchmarks.conftest import Scale
from benchmarks.machine import quantile
from benchmarks.twin_wal import TwinWal

ROUNDS = 7
PAYLOAD = os.urandom(2048)
SYNCS = 150  # of the disk alone before each round; of K records: 60
Round = tuple[list[float], float]  # times of the commits, and of the whole


@pytest.fixture
def disk() -> Iterator[Path]:
    base = Path(os.environ.get("AEGIS_BENCH_DIR", Path(__file__).parents[1] / "build" / "bench"))
    path = base / f"wal-{os.getpid()}"
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)
    yield path
    shutil.rmtree(path, ignore_errors=True)


class Bare:
    """The disk's own limit: pwrite + fdatasync of a block in a file that is written already."""

    def __init__(self, path: Path, octets: int = 4096, count: int = SYNCS) -> None:
        self._fd = os.open(path / f"bare-{octets}", os.O_CREAT | os.O_RDWR)
        self._block = os.urandom(octets)
        self._count = count
        for k in range(count):
            os.pwrite(self._fd, bytes(octets), k * octets)
        os.fsync(self._fd)

    def round(self) -> Round:
        times, begun, size = [], time.perf_counter(), len(self._block)
        for k in range(self._count):
            started = time.perf_counter()
            os.pwrite(self._fd, self._block, k * size)
            os.fdatasync(self._fd)
            times.append(time.perf_counter() - started)
        return times, time.perf_counter() - begun

    def close(self) -> None:
        os.close(self._fd)


def bare_batch(path: Path, k: int) -> Bare:
    """Of a block that holds K records."""
    return Bare(path, k * len(PAYLOAD), 60) if k > 1 else Bare(path)


def measure(
    benchmark: BenchmarkFixture,
    scale: Scale,
    disk: Path,
    row: str,
    k: int,
    run: Callable[[], Round],
) -> None:
    """One row of the table for K outstanding records."""
    benchmark.group = f"log: durable records of 2 KiB, {k} outstanding"
    found: list[tuple[float, list[float], float, float, float]] = []
    bare, batch = Bare(disk), bare_batch(disk, k)

    def once() -> None:
        syncs, syncs_took = bare.round()
        batches, _ = batch.round()
        times, took = run()
        sync, batch_sync = quantile(syncs, 0.5), quantile(batches, 0.5)
        found.append((len(times) / took, times, len(syncs) / syncs_took, sync, batch_sync))

    benchmark.pedantic(once, rounds=1 if scale.rounds == 1 else ROUNDS, iterations=1)
    bare.close()
    batch.close()
    rate, times, *_ = max(found, key=lambda one: one[0])

    def p99_in(which: int) -> float:
        return round(statistics.median(quantile(one[1], 0.99) / one[which] for one in found), 1)

    benchmark.extra_info |= {
        "row": row,
        "figures_only": True,
        "rate": round(rate),
        "p50_us": round(quantile(times, 0.5) * 1e6, 1),
        "p99_us": round(quantile(times, 0.99) * 1e6, 1),
        "of_the_disk": round(statistics.median(one[0] / one[2] for one in found), 2),
        "p99_in_syncs": p99_in(3),
        "p99_in_batch_syncs": p99_in(4),
        "disk's_syncs_a_second": round(statistics.median(one[2] for one in found)),
    }


async def outstanding(k: int, total: int, commit: Callable[[], Awaitable[Any]]) -> Round:
    """`total` commits with k of them outstanding."""
    times: list[float] = []
    clock = time.perf_counter

    async def one() -> None:
        for _ in range(max(1, total // k)):
            started = clock()
            await commit()
            times.append(clock() - started)

    begun = clock()
    await asyncio.gather(*(one() for _ in range(k)))
    return times, clock() - begun


# -- durable records through asyncio

OUTSTANDING = (1, 64, 256)


def commits(scale: Scale, k: int, one: int, many: int) -> int:
    """How many in a round: `one` with one outstanding, else `many`; few where nothing is timed."""
    return k if scale.rounds == 1 else one if k == 1 else many


@pytest.mark.parametrize("k", OUTSTANDING)
def test_durable_disk(benchmark: BenchmarkFixture, scale: Scale, disk: Path, k: int) -> None:
    bare = Bare(disk)
    measure(benchmark, scale, disk, "the disk: pwrite + fdatasync of 4 KiB", k, bare.round)
    bare.close()


@pytest.mark.parametrize("k", OUTSTANDING[1:])
def test_durable_disk_batch(benchmark: BenchmarkFixture, scale: Scale, disk: Path, k: int) -> None:
    """The same bytes as the log's at its best: all K records in every write."""
    bare = bare_batch(disk, k)

    def run() -> Round:
        times, took = bare.round()
        return [one for one in times for _ in range(k)], took

    measure(benchmark, scale, disk, f"the disk: pwrite + fdatasync of {k} records", k, run)
    bare.close()


@pytest.mark.parametrize("loop", loops.LOOPS)
@pytest.mark.parametrize("k", OUTSTANDING)
def test_durable_aegis(
    benchmark: BenchmarkFixture, scale: Scale, disk: Path, k: int, loop: str
) -> None:
    async def main() -> Round:
        async with Wal(disk / "wal") as wal:
            return await outstanding(
                k,
                commits(scale, k, 1500, 128_000),
                lambda: wal.durable(wal.append(PAYLOAD)),
            )

    def run() -> Round:
        shutil.rmtree(disk / "wal", ignore_errors=True)
        result: Round = loops.run(loop, main())
        return result

    measure(benchmark, scale, disk, f"aegis_c.ledger.wal.Wal, {loop}", k, run)


@pytest.mark.parametrize("k", OUTSTANDING)
def test_durable_python_twin(benchmark: BenchmarkFixture, scale: Scale, disk: Path, k: int) -> None:
    async def main() -> Round:
        wal = TwinWal(disk / "twin")
        result = await outstanding(
            k, commits(scale, k, 1000, 32_000), lambda: wal.durable(wal.append(PAYLOAD))
        )
        await wal.close()
        return result

    row = "Python twin: struct, crc32, a thread that writes and syncs; uvloop"
    measure(benchmark, scale, disk, row, k, lambda: loops.run("uvloop", main()))


@pytest.mark.parametrize("k", OUTSTANDING)
def test_durable_to_thread(benchmark: BenchmarkFixture, scale: Scale, disk: Path, k: int) -> None:
    fd = os.open(disk / "plain", os.O_CREAT | os.O_WRONLY | os.O_APPEND)

    def write() -> None:
        os.write(fd, PAYLOAD)
        os.fdatasync(fd)

    async def main() -> Round:
        return await outstanding(k, commits(scale, k, 500, 3000), lambda: asyncio.to_thread(write))

    row = "asyncio.to_thread(write + fdatasync), uvloop"
    measure(benchmark, scale, disk, row, k, lambda: loops.run("uvloop", main()))
    os.close(fd)


@pytest.mark.parametrize("row", ["write + fdatasync, no loop", "sqlite3 WAL FULL, no loop"])
def test_durable_blocking(benchmark: BenchmarkFixture, scale: Scale, disk: Path, row: str) -> None:
    """One record after the other."""
    fd = os.open(disk / "plain", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    base = sqlite3.connect(disk / "base.db", isolation_level=None)
    base.executescript("PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; CREATE TABLE t(b BLOB)")

    def write() -> None:
        os.write(fd, PAYLOAD)
        os.fdatasync(fd)

    def insert() -> None:
        base.execute("INSERT INTO t VALUES (?)", (PAYLOAD,))

    commit = write if row.startswith("write") else insert

    def run() -> Round:
        times, begun = [], time.perf_counter()
        for _ in range(commits(scale, 1, 700, 0)):
            started = time.perf_counter()
            commit()
            times.append(time.perf_counter() - started)
        return times, time.perf_counter() - begun

    measure(benchmark, scale, disk, row, 1, run)
    base.close()
    os.close(fd)


@pytest.mark.parametrize("rate", [100_000, 200_000])
def test_durable_at_a_fixed_rate(
    benchmark: BenchmarkFixture, scale: Scale, disk: Path, rate: int
) -> None:
    """Open loop on uvloop: every 0.2 ms those records come that were due since; each is timed from
    the moment it was due. Python's garbage collector is off: its pauses are not the log's."""
    benchmark.group = "log: durable records of 2 KiB at a fixed rate, uvloop"
    found: list[tuple[list[float], float, float, float]] = []
    clock = time.perf_counter
    bare = Bare(disk)
    seconds = 0.01 if scale.rounds == 1 else 1.0

    async def main() -> tuple[list[float], float, float]:
        times: list[float] = []
        count, begun = 0, clock()

        def come() -> None:
            nonlocal count
            now = clock()
            while (due := begun + count / rate) <= now and wal.native.room() > 2 * len(PAYLOAD):
                future = wal.durable(wal.append(PAYLOAD))
                future.add_done_callback(lambda _, due=due: times.append(clock() - due))  # type: ignore[misc]
                count += 1

        async with Wal(disk / "wal") as wal:
            ticker = loops.Ticker(come, 200_000)
            begun = clock()
            await ticker.run(seconds)
            ticker.close()
            await wal.durable(wal.append(PAYLOAD))
            await asyncio.sleep(0)  # the callbacks of all before it
            stats = wal.native.stats()
            return times, clock() - begun, stats["records"] / stats["batches"]

    def once() -> None:
        shutil.rmtree(disk / "wal", ignore_errors=True)
        sync = quantile(bare.round()[0], 0.5)
        gc.disable()
        try:
            times, took, records = loops.run("uvloop", main())
        finally:
            gc.enable()
        found.append((times, len(times) / took, sync, records))

    benchmark.pedantic(once, rounds=1 if scale.rounds == 1 else 5, iterations=1)
    bare.close()
    p99 = [quantile(times, 0.99) for times, *_ in found]
    benchmark.extra_info |= {
        "row": f"{rate:,} a second",
        "figures_only": True,
        "reached": round(statistics.median(one[1] for one in found)),
        "p50_us": round(statistics.median(quantile(one[0], 0.5) for one in found) * 1e6, 1),
        "p99_us": round(statistics.median(p99) * 1e6, 1),
        "p99_in_syncs": round(
            statistics.median(p / one[2] for p, one in zip(p99, found, strict=True)), 1
        ),
        "records_in_a_batch": round(statistics.median(one[3] for one in found), 1),
    }


# -- append alone


@pytest.mark.parametrize("gap", [0.0, 0.001])
def test_append(benchmark: BenchmarkFixture, scale: Scale, disk: Path, gap: float) -> None:
    """256 B; single calls timed one by one (a pair of looks at the clock is taken off)."""
    benchmark.group = "log: append of 256 bytes, waking the writer included"
    clock = time.perf_counter_ns
    payload = bytes(256)
    empty = min(-(clock() - clock()) for _ in range(2000))
    best: list[float] = []

    def once() -> None:
        nonlocal best
        times, append = [], wal.append
        for _ in range(scale.gaps if gap else scale.rounds):
            if gap:
                time.sleep(gap)
            started = clock()
            append(payload)
            times.append(float(clock() - started - empty))
        wal.sync()
        if not best or quantile(times, 0.5) < quantile(best, 0.5):
            best = times

    with WalWriter(disk / "wal") as wal:
        benchmark.pedantic(once, rounds=1 if scale.rounds == 1 else 3, iterations=1)
        wakes = wal.stats()["wakes"]
    benchmark.extra_info |= {
        "row": "at gaps of 1 ms" if gap else "back to back",
        "figures_only": True,
        "p50_ns": round(quantile(best, 0.5)),
        "p99_ns": round(quantile(best, 0.99)),
        "wakes": wakes,
    }


# -- what it costs beside the rest


def test_open_loop(benchmark: BenchmarkFixture, scale: Scale, disk: Path) -> None:
    """CPU of 5,000 appends a second of 2 KiB, nobody waiting; the empty loop is taken off."""
    benchmark.group = "log: CPU of 5,000 appends of 2 KiB a second, all threads"

    def busy(act: Callable[[], Any], seconds: float) -> float:
        before = resource.getrusage(resource.RUSAGE_SELF)
        begun = due = time.perf_counter()
        while (now := time.perf_counter()) - begun < seconds:
            while due <= now:
                act()
                due += 0.0002
            time.sleep(0.001)
        after = resource.getrusage(resource.RUSAGE_SELF)
        used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        return used / (time.perf_counter() - begun)

    shares: list[float] = []
    seconds = min(4.0, scale.seconds)

    def once() -> None:
        shares.append(busy(lambda: wal.append(PAYLOAD), seconds) - busy(lambda: None, seconds))

    with WalWriter(disk / "wal") as wal:
        benchmark.pedantic(once, rounds=1 if scale.rounds == 1 else 3, iterations=1)
    benchmark.extra_info |= {
        "row": "WalWriter",
        "figures_only": True,
        "percent_of_a_core": round(statistics.median(shares) * 100, 1),
    }


class _Native:
    row = "WalWriter"

    def __init__(self, path: Path) -> None:
        self.count = 0
        self._wal = WalWriter(path)

    def work(self) -> None:
        """What 40,000 records a second of 2 KiB, all awaited, give a millisecond."""
        try:
            for _ in range(40):
                last = self._wal.append(PAYLOAD)
                self.count += 1
            self._wal.want(last)
        except WalFull:
            pass

    async def close(self) -> None:
        await asyncio.to_thread(self._wal.close)


class _Twin:
    row = "Python twin"

    def __init__(self, path: Path) -> None:
        self.count = 0
        self._wal = TwinWal(path)

    def work(self) -> None:
        for _ in range(40):
            self._wal.append(PAYLOAD)
            self.count += 1

    async def close(self) -> None:
        await self._wal.close()


@pytest.mark.parametrize("kind", [_Native, _Twin])
def test_event_loop_lag(
    benchmark: BenchmarkFixture, scale: Scale, disk: Path, kind: type[_Native] | type[_Twin]
) -> None:
    """How late uvloop's timer runs, without and with the log at 80 MB/s, in turns."""

    async def main() -> None:
        load = kind(disk / "wal")
        idle, busy = loops.Ticker(lambda: None), loops.Ticker(load.work)
        try:
            for _ in range(max(1, round(scale.seconds))):
                await idle.run(min(1.0, scale.seconds))
                await busy.run(min(1.0, scale.seconds))
                await asyncio.sleep(0.05)  # what was appended is written: the next turn is idle
        finally:
            idle.close()
            busy.close()
            await load.close()
        benchmark.extra_info["records_a_second"] = round(load.count / scale.seconds)
        for name, ticker in (("idle", idle), ("busy", busy)):
            for label, fraction in (("p50", 0.5), ("p99", 0.99), ("max", 1.0)):
                lag = quantile([float(ns) for ns in ticker.lags], fraction) / 1000
                benchmark.extra_info[f"{name}_{label}_us"] = round(lag, 1)

    benchmark.group = "log: event-loop lag, uvloop"
    benchmark.extra_info |= {"row": kind.row, "figures_only": True}
    benchmark.pedantic(lambda: loops.run("uvloop", main()), rounds=1)


@pytest.mark.parametrize("where", ["the disk", "memory"])
def test_recovery(benchmark: BenchmarkFixture, scale: Scale, disk: Path, where: str) -> None:
    """verify() of 256 MiB, past the cache, in turns with plain reads of the same files."""
    benchmark.group = "log: recovery"
    records = 20 if scale.rounds == 1 else 2200
    with tempfile.TemporaryDirectory(dir="/dev/shm" if where == "memory" else disk) as folder:
        path = Path(folder) / "wal"
        with WalWriter(path) as wal:
            for _ in range(records):
                if wal.room() < 1 << 20:
                    wal.sync()
                wal.append(bytes(120_000))
        files = sorted(path.glob("*.seg"))
        buffer = mmap.mmap(-1, 16 << 20)
        direct = os.O_DIRECT if where == "the disk" else 0
        rates: list[tuple[float, float]] = []

        def raw() -> float:
            started = time.perf_counter()
            for file in files:
                fd = os.open(file, os.O_RDONLY | direct)
                assert os.readv(fd, [buffer]) == file.stat().st_size
                os.close(fd)
            return len(files) * (16 << 20) / (time.perf_counter() - started)

        def once() -> None:
            limit = raw()
            started = time.perf_counter()
            found = WalReader.verify(path)
            rates.append((found["bytes"] / (time.perf_counter() - started), limit))

        benchmark.pedantic(once, rounds=1 if scale.rounds == 1 else ROUNDS, iterations=1)
    benchmark.extra_info |= {
        "row": f"256 MiB from {where}",
        "figures_only": True,
        "recovery_mb_s": round(max(rates)[0] / 1e6),
        "plain_reads_mb_s": round(max(limit for _, limit in rates) / 1e6),
        "of_plain_reads": round(statistics.median(mine / limit for mine, limit in rates), 2),
    }
