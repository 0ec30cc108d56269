"""`aegis-c ledger fsck` of a whole published log: entries a second, on one core and on all.

The log is made beside the measurement, from the entries that a gateway writes (some 610 bytes)
and from short ones of 200 bytes. The Python row does everything in Python, tile by tile: it is
the code that explains what the native pass flags.
"""

# mypy: allow-untyped-calls

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from aegis_c import MmrAccumulator, leaf_hash
from aegis_c.ledger import fsck, rebuild
from aegis_c.ledger.tiles import ENTRIES, WIDTH, Tile, fold
from benchmarks.conftest import Scale
from benchmarks.entries import meta, request_id
from reference import ed25519, note

GROUP = "fsck: every byte of a published log"
ORIGIN = "aegis.example/bench/w0"
SEED = bytes(range(32))
_SHORT = (
    b'{"v":1,"kind":"call","id":"%s","time":"2026-01-02T03:04:05.123456Z","tenant":"acme",'
    b'"key":"k1","endpoint":"/v1/chat/completions","status":200,"timing":{"total_us":1300}}'
)
_TAIL = (
    b',"request":{"bytes":2048,"commitment":"%s="},"response":{"bytes":2048,"commitment":"%s="}}'
)


def short_entry(number: int) -> bytes:
    return _SHORT % request_id(number).encode()


def gateway_entry(number: int) -> bytes:
    return meta(number)[:-1] + _TAIL % (b"A" * 43, b"B" * 43)


KINDS = {"200 bytes": short_entry, "as the gateway writes": gateway_entry}


def write_log(folder: Path, kind: str, count: int) -> None:
    """A published log of `count` entries, made tile by tile."""
    levels: list[list[bytes]] = [[]]
    tree = MmrAccumulator(proofs=False)

    def put(tile: Tile, data: bytes) -> None:
        path = folder / tile.path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)

    for start in range(0, count, WIDTH):
        entries = [KINDS[kind](number) for number in range(start, min(start + WIDTH, count))]
        records = [len(entry).to_bytes(2, "big") + entry for entry in entries]
        put(Tile(ENTRIES, start // WIDTH, len(entries)), b"".join(records))
        tree.extend(entries)
        levels[0] += [leaf_hash(entry) for entry in entries]
    for level, hashes in enumerate(levels):
        above = []
        for start in range(0, len(hashes), WIDTH):
            some = hashes[start : start + WIDTH]
            put(Tile(level, start // WIDTH, len(some)), b"".join(some))
            above += [fold(some)] if len(some) == WIDTH else []
        if above:
            levels.append(above)
    (folder / "checkpoint").write_bytes(note.checkpoint(ORIGIN, count, tree.root(), SEED))
    (folder / "log.vkey").write_text(note.vkey(ORIGIN, ed25519.public_key(SEED)) + "\n")


@pytest.fixture(scope="module", params=KINDS)
def log(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, scale: Scale
) -> tuple[str, Path]:
    folder = tmp_path_factory.mktemp("fsck") / "w0"
    write_log(folder, request.param, scale.entries)
    return request.param, folder


@pytest.fixture
def one_core() -> Iterator[None]:
    if not hasattr(os, "sched_setaffinity"):
        pytest.skip("this system cannot keep a process on one core")
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    yield
    os.sched_setaffinity(0, allowed)


def check(benchmark: BenchmarkFixture, log: tuple[str, Path], row: str, scale: Scale) -> None:
    kind, folder = log
    benchmark.group = GROUP
    baseline = row == "in Python"
    benchmark.extra_info |= {
        "row": f"entries of {kind}, {row}",
        "against": f"{GROUP} {kind}",
        "baseline": baseline,
        "calls": scale.entries,
    }
    rounds = 1 if baseline or scale.rounds == 1 else 5
    report = benchmark.pedantic(fsck.check_shard, args=(folder,), rounds=rounds)
    assert report.ok
    assert report.entries == scale.entries


def test_one_core(
    benchmark: BenchmarkFixture, log: tuple[str, Path], scale: Scale, one_core: None
) -> None:
    check(benchmark, log, "one core", scale)


def test_all_cores(benchmark: BenchmarkFixture, log: tuple[str, Path], scale: Scale) -> None:
    cores = len(os.sched_getaffinity(0))
    check(benchmark, log, f"{cores} cores", scale)


def test_in_python(
    benchmark: BenchmarkFixture,
    log: tuple[str, Path],
    scale: Scale,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def flag_all(folder: Path, first: int, count: int) -> tuple[bytes, bytes, int]:
        return b"\7" * count, bytes(32 * count), 0

    monkeypatch.setattr(rebuild, "_audit_tiles", flag_all)
    check(benchmark, log, "in Python", scale)
