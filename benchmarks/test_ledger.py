"""The ledger from Python: what a call pays for its evidence, and what becomes of it.

Baselines are in `benchmarks/twins.py`. Every file lies in pytest's temporary directory; choose the
disk with --basetemp.
"""

# mypy: allow-untyped-calls

from __future__ import annotations

import asyncio
import hmac
import itertools
import json
import os
import subprocess
import sys
import threading
import time
from base64 import b64encode
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

import aegis_c
from aegis_c.ledger import AsyncLedger
from benchmarks import loops, twins
from benchmarks.conftest import Scale
from benchmarks.entries import BODY, SECRET, fill, meta, request_id
from benchmarks.machine import quantile

RING = 32 << 20  # the timed rounds fit without waiting for the disk

# ---- submit ------------------------------------------------------------------------------

CASES = {
    "raw": "2 KiB + 2 KiB of raw bytes",
    "finished": "with finished commitments",
    "meta": "without bodies",
}


def _pause() -> None:
    time.sleep(0.001)


def _submit_row(
    benchmark: BenchmarkFixture,
    scale: Scale,
    case: str,
    row: str,
    submit: Callable[..., object],
    make: Callable[[], tuple[Any, ...]] | None,
    *,
    gaps: bool = False,
    baseline: bool = False,
) -> None:
    """Time ``submit(meta, ...)`` call by call; ``make`` makes fresh arguments outside the time."""
    benchmark.group = f"submit, {CASES[case]}"
    pace = "at 1 ms gaps" if gaps else "back to back"
    benchmark.extra_info |= {"row": f"{row}, {pace}", "against": pace, "baseline": baseline}
    bodies = (meta(0), BODY, BODY) if case == "raw" else (meta(0),)

    def setup() -> tuple[tuple[Any, ...], dict[str, Any]]:
        arguments = bodies if make is None else (meta(0), *make())
        if gaps:
            _pause()
        return arguments, {}

    rounds = scale.gaps if gaps else scale.rounds
    benchmark.pedantic(submit, setup=setup, rounds=rounds, warmup_rounds=min(rounds, 100))


def _commitments() -> tuple[aegis_c.Commitment, aegis_c.Commitment]:
    request = aegis_c.Commitment(SECRET, request_id(0), "request")
    response = aegis_c.Commitment(SECRET, request_id(0), "response")
    request.update(BODY)
    response.update(BODY)
    return request, response


def _hmacs() -> tuple[hmac.HMAC, hmac.HMAC]:
    request, response = (
        hmac.new(twins.salt(SECRET, request_id(0), role), BODY, "sha256")
        for role in ("request", "response")
    )
    return request, response


@pytest.mark.parametrize("gaps", [False, True], ids=["back-to-back", "gaps"])
@pytest.mark.parametrize("case", CASES)
def test_submit(
    benchmark: BenchmarkFixture, scale: Scale, tmp_path: Path, case: str, gaps: bool
) -> None:
    make = _commitments if case == "finished" else None
    with aegis_c.Ledger(tmp_path / "ledger" / "w0", ring_bytes=RING) as ledger:
        _submit_row(benchmark, scale, case, "Ledger", ledger.submit, make, gaps=gaps)


@pytest.mark.parametrize("gaps", [False, True], ids=["back-to-back", "gaps"])
@pytest.mark.parametrize("case", CASES)
def test_submit_python(benchmark: BenchmarkFixture, scale: Scale, case: str, gaps: bool) -> None:
    twin = twins.TwinLedger(SECRET)
    submit = twin.submit_finished if case == "finished" else twin.submit
    make = _hmacs if case == "finished" else None
    _submit_row(benchmark, scale, case, "Python", submit, make, gaps=gaps, baseline=True)


def test_submit_late(benchmark: BenchmarkFixture, scale: Scale, tmp_path: Path) -> None:
    """The same behind many entries: flat."""
    with aegis_c.Ledger(tmp_path / "ledger" / "w0", ring_bytes=RING) as ledger:
        fill(ledger, 0, scale.entries)
        row = f"Ledger after {scale.entries:,} entries"
        _submit_row(benchmark, scale, "raw", row, ledger.submit, None)


def test_submit_asyncio(benchmark: BenchmarkFixture, scale: Scale, tmp_path: Path) -> None:
    """Through the asyncio face."""

    async def work() -> None:
        async with AsyncLedger(tmp_path / "ledger" / "w0", ring_bytes=RING) as ledger:
            _submit_row(benchmark, scale, "raw", "AsyncLedger", ledger.submit, None)

    asyncio.run(work())


# ---- commitments -------------------------------------------------------------------------

PIECES = [(1, 2048), (1, 65536), (32, 192)]


def _commitment_row(benchmark: BenchmarkFixture, pieces: int, size: int, row: str) -> bytes:
    unit = "32 events of 192 bytes" if pieces > 1 else f"{size // 1024} KiB"
    benchmark.group = f"commitment to {unit}"
    benchmark.extra_info |= {"row": row, "baseline": row != "Commitment"}
    return b"x" * size


@pytest.mark.parametrize(("pieces", "size"), PIECES)
def test_commitment(benchmark: BenchmarkFixture, pieces: int, size: int) -> None:
    data = _commitment_row(benchmark, pieces, size, "Commitment")
    name = request_id(7)

    def commit() -> tuple[int, bytes]:
        commitment = aegis_c.Commitment(SECRET, name, "response")
        for _ in range(pieces):
            commitment.update(data)
        return commitment.finish()

    assert benchmark(commit)[1] == twins.commitment(SECRET, name, "response", data * pieces)


@pytest.mark.parametrize(("pieces", "size"), PIECES)
def test_commitment_python(benchmark: BenchmarkFixture, pieces: int, size: int) -> None:
    data = _commitment_row(benchmark, pieces, size, "hmac")
    name = request_id(7)

    def commit() -> bytes:
        if pieces == 1:
            return twins.commitment(SECRET, name, "response", data)
        mac = hmac.new(twins.salt(SECRET, name, "response"), digestmod="sha256")
        for _ in range(pieces):
            mac.update(data)
        return mac.digest()

    benchmark(commit)


# ---- durable -----------------------------------------------------------------------------

OUTSTANDING = [1, 64, 256]


class _Waits:
    """How long each entry took to become durable, in seconds."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    async def timed(self, durable: Awaitable[object]) -> None:
        start = time.perf_counter()
        await durable
        self.seconds.append(time.perf_counter() - start)


def _durable_row(
    benchmark: BenchmarkFixture,
    row: str,
    outstanding: int,
    count: int,
    loop: str,
    open_: Callable[[asyncio.Runner], tuple[Any, Callable[[int], Awaitable[None]]]],
    waits: _Waits,
) -> None:
    """Make ``count`` entries durable, that many at a time; opening and closing are not timed.

    ``open_(runner)`` gives what is to be closed, and makes entry ``number`` durable.
    """
    benchmark.group = f"durable through asyncio, {outstanding} outstanding"
    benchmark.extra_info |= {"row": row, "baseline": row.startswith("Python"), "calls": count}

    opened: list[tuple[asyncio.Runner, Any]] = []

    def close() -> None:
        while opened:
            runner, what = opened.pop()
            closing = what.close()
            if closing is not None:
                runner.run(closing)
            runner.close()

    def setup() -> tuple[tuple[Any, ...], dict[str, Any]]:
        close()
        runner = asyncio.Runner(loop_factory=loops.LOOPS[loop])
        what, one = open_(runner)
        opened.append((runner, what))
        return (runner, one), {}

    def work(runner: asyncio.Runner, one: Callable[[int], Awaitable[None]]) -> None:
        runner.run(_outstanding(count, outstanding, one))

    benchmark.pedantic(work, setup=setup, rounds=3)
    close()
    benchmark.extra_info["wait_p50_us"] = round(quantile(waits.seconds, 0.5) * 1e6, 1)
    benchmark.extra_info["wait_p99_us"] = round(quantile(waits.seconds, 0.99) * 1e6, 1)


async def _outstanding(count: int, tasks: int, one: Callable[[int], Awaitable[None]]) -> None:
    """``one(number)`` for every number below ``count``, that many at a time."""
    numbers = iter(range(count))

    async def worker() -> None:
        for number in numbers:
            await one(number)

    async with asyncio.TaskGroup() as group:
        for _ in range(tasks):
            group.create_task(worker())


@pytest.mark.parametrize("loop", loops.LOOPS)
@pytest.mark.parametrize("outstanding", OUTSTANDING)
def test_durable(
    benchmark: BenchmarkFixture, scale: Scale, tmp_path: Path, outstanding: int, loop: str
) -> None:
    count = min(scale.entries // 4, 500 * outstanding)
    metas = [meta(number) for number in range(count)]
    paths = (tmp_path / str(n) / "ledger" / "w0" for n in itertools.count())
    waits = _Waits()

    def open_(runner: asyncio.Runner) -> tuple[Any, Callable[[int], Awaitable[None]]]:
        async def made() -> AsyncLedger:
            return AsyncLedger(next(paths))

        ledger = runner.run(made())

        async def one(number: int) -> None:
            index = ledger.submit(metas[number], BODY, BODY)
            await waits.timed(ledger.durable(index))

        return ledger, one

    _durable_row(benchmark, f"AsyncLedger, {loop}", outstanding, count, loop, open_, waits)


@pytest.mark.parametrize("outstanding", OUTSTANDING)
def test_durable_python(
    benchmark: BenchmarkFixture, scale: Scale, tmp_path: Path, outstanding: int
) -> None:
    count = min(scale.entries // 4, 300 + 20 * outstanding)
    metas = [meta(number) for number in range(count)]
    waits = _Waits()

    def open_(_: asyncio.Runner) -> tuple[Any, Callable[[int], Awaitable[None]]]:
        twin = twins.TwinLedger(SECRET)
        file = (tmp_path / "entries.jsonl").open("ab", buffering=0)

        async def one(number: int) -> None:
            line = twin.entries[twin.submit(metas[number], BODY, BODY)] + b"\n"
            await waits.timed(asyncio.to_thread(twins.append_durable, file, line))

        return file, one

    row = "Python: to_thread(write, fdatasync), uvloop"
    _durable_row(benchmark, row, outstanding, count, "uvloop", open_, waits)


def test_durable_disk(benchmark: BenchmarkFixture, scale: Scale, tmp_path: Path) -> None:
    """What the disk itself can: one block into a file that was written before, then a sync."""
    count = min(scale.entries // 4, 500)
    benchmark.group = "durable through asyncio, 1 outstanding"
    benchmark.extra_info |= {"row": "the disk: pwrite + fdatasync", "calls": count}
    file = os.open(tmp_path / "disk", os.O_RDWR | os.O_CREAT)
    try:
        os.write(file, bytes(4096 * count))
        os.fsync(file)

        def write_all() -> None:
            for block in range(count):
                os.pwrite(file, BODY * 2, 4096 * block)
                os.fdatasync(file)

        benchmark.pedantic(write_all, rounds=3)
    finally:
        os.close(file)


# ---- reading back ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def long_ledger(tmp_path_factory: pytest.TempPathFactory, scale: Scale) -> Path:
    """A published ledger of many entries, closed."""
    path: Path = tmp_path_factory.mktemp("long") / "ledger" / "w0"
    with aegis_c.Ledger(path) as ledger:
        fill(ledger, 0, scale.entries)
        ledger.wait(len(ledger) - 1, "published", 60)
    return path


@pytest.fixture(scope="module")
def twin(long_ledger: Path, scale: Scale) -> tuple[twins.TwinLedger, twins.TwinTree]:
    """The same entries in Python's lists."""
    ledger, tree = twins.TwinLedger(SECRET), twins.TwinTree()
    for number in range(scale.entries):
        tree.append(ledger.entries[ledger.submit(meta(number))])
    return ledger, tree


def _read_row(
    benchmark: BenchmarkFixture,
    scale: Scale,
    what: str,
    row: str,
    read: Callable[[int], object],
) -> None:
    """Time ``read(index)`` for indices all over the log."""
    benchmark.group = f"{what}, of {scale.entries:,} entries"
    benchmark.extra_info |= {"row": row, "baseline": row.startswith("Python")}
    indices = itertools.cycle([n * 7919 % scale.entries for n in range(4096)])

    def setup() -> tuple[tuple[int], dict[str, Any]]:
        return (next(indices),), {}

    rounds = max(1, scale.rounds // 10)
    benchmark.pedantic(read, setup=setup, rounds=rounds, warmup_rounds=min(100, rounds))


@pytest.mark.parametrize("what", ["entry", "inclusion_proof", "receipt"])
def test_read(benchmark: BenchmarkFixture, scale: Scale, long_ledger: Path, what: str) -> None:
    with aegis_c.Ledger(long_ledger) as ledger:
        _read_row(benchmark, scale, what, "Ledger", getattr(ledger, what))


@pytest.mark.parametrize("what", ["entry", "inclusion_proof", "receipt"])
def test_read_python(
    benchmark: BenchmarkFixture,
    scale: Scale,
    twin: tuple[twins.TwinLedger, twins.TwinTree],
    what: str,
) -> None:
    ledger, tree = twin
    checkpoint = b"origin\n1\nroot\n\nsignature\n"

    def receipt(index: int) -> bytes:
        hashes = b"".join(b64encode(node) + b"\n" for node in tree.inclusion_proof(index))
        return b"c2sp.org/tlog-proof@v1\nindex %d\n%s\n%s" % (index, hashes, checkpoint)

    reads: dict[str, Callable[[int], object]] = {
        "entry": ledger.entries.__getitem__,
        "inclusion_proof": tree.inclusion_proof,
        "receipt": receipt,
    }
    _read_row(benchmark, scale, what, "Python, all in memory", reads[what])


# ---- opening, memory, disk ---------------------------------------------------------------


def _open_row(
    benchmark: BenchmarkFixture, scale: Scale, row: str, open_: Callable[[], Any]
) -> None:
    benchmark.group = f"open a log of {scale.entries:,} entries"
    benchmark.extra_info |= {"row": row, "baseline": row.startswith("Python")}
    opened: list[Any] = []

    def setup() -> None:
        while opened:
            opened.pop().close()

    benchmark.pedantic(lambda: opened.append(open_()), setup=setup, rounds=3)
    setup()


def test_open(benchmark: BenchmarkFixture, scale: Scale, long_ledger: Path) -> None:
    _open_row(benchmark, scale, "Ledger", lambda: aegis_c.Ledger(long_ledger))


def test_open_asyncio(benchmark: BenchmarkFixture, scale: Scale, long_ledger: Path) -> None:
    class Opened:
        def __init__(self) -> None:
            self.runner = asyncio.Runner()
            self.ledger = self.runner.run(self.open())

        async def open(self) -> AsyncLedger:
            return AsyncLedger(long_ledger)

        def close(self) -> None:
            self.runner.run(self.ledger.close())
            self.runner.close()

    _open_row(benchmark, scale, "AsyncLedger", Opened)


def test_open_python(
    benchmark: BenchmarkFixture,
    scale: Scale,
    tmp_path: Path,
    twin: tuple[twins.TwinLedger, twins.TwinTree],
) -> None:
    path = tmp_path / "entries.jsonl"
    path.write_bytes(b"".join(entry + b"\n" for entry in twin[0].entries))

    class Replayed:
        def __init__(self) -> None:
            self.tree = twins.replay(path)

        def close(self) -> None:
            self.tree.levels.clear()

    _open_row(benchmark, scale, "Python: replay of JSON lines", Replayed)


@pytest.mark.parametrize(
    ("kind", "row"),
    [
        ("native", "Ledger"),
        ("asyncio", "AsyncLedger"),
        ("python", "Python: lists and JSON lines"),
    ],
)
def test_growth(
    benchmark: BenchmarkFixture, scale: Scale, tmp_path: Path, kind: str, row: str
) -> None:
    """Memory and disk per entry, and how fast a log grows, in a process of its own."""
    benchmark.group = f"growth over {scale.entries:,} entries"
    benchmark.extra_info |= {"row": row, "figures_only": True}
    command = [sys.executable, "-m", "benchmarks.entries", kind, str(tmp_path), str(scale.entries)]

    def grow() -> None:
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout)
        benchmark.extra_info["rss_mib_per_million"] = round(found["rss_per_entry"] * 1e6 / 2**20, 1)
        benchmark.extra_info["disk_bytes_per_entry"] = round(found["disk_per_entry"], 1)

    benchmark.pedantic(grow, rounds=1)


# ---- event-loop lag ----------------------------------------------------------------------

SLICE = 0.5  # seconds of idle and of busy loop in turn
BUSY = 0.0004  # seconds of submitting in one tick of a millisecond


class _Native:
    """Submits through the asyncio face; somebody waits for the last entry of every tick."""

    row = "ledger, native threads"

    def __init__(self, path: Path) -> None:
        self._ledger = AsyncLedger(path / "ledger" / "w0")
        self._waits: set[asyncio.Task[None]] = set()
        self.count = 0

    def submit(self) -> None:
        until = time.perf_counter() + BUSY
        index = -1
        while time.perf_counter() < until and self._ledger.native.room() > 65536:
            index = self._ledger.submit(meta(self.count), BODY, BODY)
            self.count += 1
        if index >= 0:
            wait = asyncio.get_running_loop().create_task(self._ledger.durable(index))
            self._waits.add(wait)
            wait.add_done_callback(self._waits.discard)

    async def close(self) -> None:
        await self._ledger.close()


class _Python:
    """Submits to the twin, and one Python thread hashes, writes and syncs what was submitted."""

    row = "Python, one thread that hashes and syncs"

    def __init__(self, path: Path) -> None:
        self._twin, self._tree = twins.TwinLedger(SECRET), twins.TwinTree()
        self._file = (path / "entries.jsonl").open("ab")
        self._ended = False
        self._thread = threading.Thread(target=self._write)
        self._thread.start()

    @property
    def count(self) -> int:
        return len(self._twin.entries)

    def submit(self) -> None:
        until = time.perf_counter() + BUSY
        while time.perf_counter() < until:
            self._twin.submit(meta(self.count), BODY, BODY)

    def _write(self) -> None:
        entries, done = self._twin.entries, 0
        while not self._ended:
            batch = entries[done:]
            for entry in batch:
                self._tree.append(entry)
            twins.append_durable(self._file, b"\n".join(batch))
            done += len(batch)
            if not batch:
                time.sleep(0.001)

    async def close(self) -> None:
        self._ended = True
        await asyncio.to_thread(self._thread.join)
        self._file.close()


@pytest.mark.parametrize("kind", [_Native, _Python])
def test_lag(
    benchmark: BenchmarkFixture, scale: Scale, tmp_path: Path, kind: type[_Native] | type[_Python]
) -> None:
    """The loop's lag while the ledger works at full speed, beside the same loop without it."""
    benchmark.group = "event-loop lag, uvloop"
    benchmark.extra_info |= {"row": kind.row, "figures_only": True}
    benchmark.pedantic(
        lambda: loops.run("uvloop", _lag(benchmark, scale, tmp_path, kind)), rounds=1
    )


async def _lag(
    benchmark: BenchmarkFixture,
    scale: Scale,
    path: Path,
    kind: type[_Native] | type[_Python],
) -> None:
    load = kind(path)
    idle, busy = loops.Ticker(lambda: None), loops.Ticker(load.submit)
    try:
        for _ in range(max(1, round(scale.seconds / SLICE))):
            await idle.run(min(SLICE, scale.seconds))
            await busy.run(min(SLICE, scale.seconds))
            await asyncio.sleep(0.05)  # what was submitted is written: the next slice is idle
    finally:
        count = load.count
        idle.close()
        busy.close()
        await load.close()
    benchmark.extra_info["entries_per_second"] = round(count / scale.seconds)
    for name, ticker in (("idle", idle), ("busy", busy)):
        assert ticker.lags
        for label, fraction in (("p50", 0.5), ("p99", 0.99), ("max", 1.0)):
            lag = quantile([float(ns) for ns in ticker.lags], fraction) / 1000
            benchmark.extra_info[f"{name}_{label}_us"] = round(lag, 1)
