"""The tree in memory from Python: leaves, roots, proofs, verification, and the kernels under them.

Entries are 32 random bytes. The Python rows are `benchmarks/twins.py` with hashlib, which keeps
every node as `MmrAccumulator` does, and the offline verifier. Rows of a million leaves run with
--full.
"""

# mypy: allow-untyped-calls

from __future__ import annotations

import hashlib
import random
import sys
import time
import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

import aegis_c
from aegis_c import MmrAccumulator, compat
from aegis_c._native import _kernel_run
from aegis_c.ledger import verify as offline
from benchmarks.conftest import Scale
from benchmarks.twins import TwinTree
from reference import tree as reference

SIZES = [100, 1_000, 10_000, 100_000, 1_000_000]
KERNEL_COUNT = 100_000


@pytest.fixture(scope="module")
def entries() -> list[bytes]:
    source = random.Random(6962)
    return [source.randbytes(32) for _ in range(max(SIZES))]


def fitting(size: int, scale: Scale) -> int:
    """The size, or less of it when nothing is measured."""
    if size > scale.entries and scale.rounds > 1:
        pytest.skip(f"{size:,} leaves are measured with --full")
    return min(size, scale.entries)


def measure(
    benchmark: BenchmarkFixture,
    group: str,
    row: str,
    size: int,
    make: Callable[[], Any],
    work: Callable[..., object],
    *,
    baseline: bool = False,
    seconds_each: float = 1e-6,
) -> None:
    """Times ``work(make())`` of ``size`` steps, as often as fits into about two seconds."""
    benchmark.group = group
    benchmark.extra_info |= {
        "row": f"{size:,} leaves: {row}",
        "against": f"{group} {size}",
        "baseline": baseline,
        "calls": size,
    }
    rounds = max(1 if baseline else 3, min(200, int(2 / (size * seconds_each))))
    benchmark.pedantic(work, setup=lambda: ((make(),), {}), rounds=rounds, warmup_rounds=1)


# ---- append ------------------------------------------------------------------------------

APPEND = "tree: append, one call each"
ROOT = "tree: append, and the new root each time"
BATCH = "tree: all leaves in one call"

TREES: dict[str, Callable[[], Any]] = {
    "Python twin": TwinTree,
    "MmrAccumulator": MmrAccumulator,
    "MmrAccumulator(proofs=False)": lambda: MmrAccumulator(proofs=False),
}


@pytest.mark.parametrize("name", TREES)
@pytest.mark.parametrize("size", SIZES)
def test_append(
    benchmark: BenchmarkFixture, scale: Scale, entries: list[bytes], size: int, name: str
) -> None:
    some = entries[: fitting(size, scale)]

    def work(tree: Any) -> None:
        append = tree.append
        for entry in some:
            append(entry)

    baseline = name == "Python twin"
    cost = 2e-6 if baseline else 2e-7
    args = (benchmark, APPEND, name, len(some), TREES[name], work)
    measure(*args, baseline=baseline, seconds_each=cost)


@pytest.mark.parametrize("name", TREES)
@pytest.mark.parametrize("size", SIZES)
def test_append_and_root(
    benchmark: BenchmarkFixture, scale: Scale, entries: list[bytes], size: int, name: str
) -> None:
    some = entries[: fitting(size, scale)]

    def work(tree: Any) -> None:
        append, root = tree.append, tree.root
        for entry in some:
            append(entry)
            root()

    baseline = name == "Python twin"
    cost = 1e-5 if baseline else 1e-6
    args = (benchmark, ROOT, name, len(some), TREES[name], work)
    measure(*args, baseline=baseline, seconds_each=cost)


def extend_twin(tree: TwinTree, some: list[bytes]) -> None:
    append = tree.append
    for entry in some:
        append(entry)


BATCHES: dict[str, tuple[Callable[[], Any], Callable[[Any, list[bytes], bytes], object]]] = {
    "Python twin": (TwinTree, lambda tree, some, flat: extend_twin(tree, some)),
    "list of bytes": (MmrAccumulator, lambda tree, some, flat: tree.extend(some)),
    "one buffer": (MmrAccumulator, lambda tree, some, flat: tree.extend(flat, entry_size=32)),
    "one buffer, proofs=False": (
        lambda: MmrAccumulator(proofs=False),
        lambda tree, some, flat: tree.extend(flat, entry_size=32),
    ),
}


@pytest.mark.parametrize("name", BATCHES)
@pytest.mark.parametrize("size", SIZES)
def test_batch(
    benchmark: BenchmarkFixture, scale: Scale, entries: list[bytes], size: int, name: str
) -> None:
    some = entries[: fitting(size, scale)]
    flat = b"".join(some)
    make, extend = BATCHES[name]
    baseline = name == "Python twin"
    cost = 2e-6 if baseline else 1e-7
    args = (benchmark, BATCH, name, len(some), make, lambda tree: extend(tree, some, flat))
    measure(*args, baseline=baseline, seconds_each=cost)


@pytest.mark.parametrize("proofs", [True, False])
def test_batch_against_its_kernel(
    benchmark: BenchmarkFixture, scale: Scale, entries: list[bytes], proofs: bool
) -> None:
    """`extend` beside a leaf and a node of the bare four-way kernel, turn by turn."""
    kernel = "sha-ni x4" if "sha-ni x4" in kernel_names() else aegis_c.kernels()["sha256"]
    size = scale.entries
    flat = b"".join(entries[:size])
    extend, bare = [], []

    def turn() -> None:
        tree = MmrAccumulator(proofs=proofs)
        start = time.perf_counter()
        tree.extend(flat, entry_size=32)
        extend.append(time.perf_counter() - start)
        start = time.perf_counter()
        _kernel_run(kernel, True, size)
        _kernel_run(kernel, False, size)
        bare.append(time.perf_counter() - start)

    benchmark.group = "tree: extend against its kernel"
    benchmark.pedantic(turn, rounds=min(15, scale.rounds))
    benchmark.extra_info |= {
        "row": f"{size:,} leaves, proofs={proofs}",
        "figures_only": True,
        "extend_ns_a_leaf": min(extend) / size * 1e9,
        f"{kernel}_ns_a_leaf_and_node": min(bare) / size * 1e9,
        "share": f"{min(bare) / min(extend):.0%}",
    }


# ---- proofs ------------------------------------------------------------------------------

PROOFS = "tree: proofs in a large tree"
VERIFY = "tree: verification in a large tree"
PICKED = 1_000


@pytest.fixture(scope="module")
def large(scale: Scale, entries: list[bytes]) -> tuple[MmrAccumulator, TwinTree, list[int]]:
    """A million leaves in every form that measures, and the leaves that are asked for."""
    size = max(SIZES) if scale.rounds > 1 else scale.entries
    native, twin = MmrAccumulator(), TwinTree()
    native.extend(entries[:size])
    extend_twin(twin, entries[:size])
    assert native.root() == twin.root()
    source = random.Random(1)
    return native, twin, [source.randrange(size) for _ in range(PICKED)]


def many(
    benchmark: BenchmarkFixture, group: str, row: str, work: Callable[[], object], **info: object
) -> None:
    benchmark.group = group
    benchmark.extra_info |= {"row": row, "calls": PICKED, **info}
    benchmark.pedantic(work, rounds=50, warmup_rounds=2)


@pytest.mark.parametrize("kind", ["Python twin", "MmrAccumulator"])
def test_inclusion_proof(benchmark: BenchmarkFixture, large: Any, kind: str) -> None:
    native, twin, picked = large
    prove = twin.inclusion_proof if kind == "Python twin" else native.inclusion_proof
    assert native.inclusion_proof(picked[0]) == twin.inclusion_proof(picked[0])
    info = {"against": "inclusion", "baseline": kind == "Python twin"}
    row = f"{kind}: inclusion proof of {len(native):,} leaves"
    many(benchmark, PROOFS, row, lambda: [prove(index) for index in picked], **info)


def test_consistency_proof(benchmark: BenchmarkFixture, large: Any) -> None:
    native, _, picked = large
    prove = native.consistency_proof
    row = f"MmrAccumulator: consistency proof of {len(native):,} leaves"
    many(benchmark, PROOFS, row, lambda: [prove(old) for old in picked])


def test_earlier_root(benchmark: BenchmarkFixture, large: Any) -> None:
    native, _, picked = large
    root = native.root
    many(benchmark, PROOFS, "MmrAccumulator: root(size)", lambda: [root(size) for size in picked])


def test_unchanged_root(benchmark: BenchmarkFixture, large: Any) -> None:
    native, _, picked = large
    root = native.root
    many(benchmark, PROOFS, "MmrAccumulator: root(), unchanged", lambda: [root() for _ in picked])


@pytest.mark.parametrize("kind", ["Python verifier", "verify_inclusion"])
def test_verify_inclusion(
    benchmark: BenchmarkFixture, large: Any, entries: list[bytes], kind: str
) -> None:
    native, _, picked = large
    verify: Any = (
        offline.verify_inclusion if kind == "Python verifier" else aegis_c.verify_inclusion
    )
    size, root = len(native), native.root()
    cases = [(offline.leaf_hash(entries[i]), i, native.inclusion_proof(i)) for i in picked]

    def work() -> None:
        for leaf, index, proof in cases:
            verify(leaf, index, size, root, proof)

    info = {"against": "inclusion", "baseline": kind == "Python verifier"}
    many(benchmark, VERIFY, f"{kind}: inclusion in {size:,} leaves", work, **info)


@pytest.mark.parametrize("kind", ["Python twin", "verify_consistency"])
def test_verify_consistency(benchmark: BenchmarkFixture, large: Any, kind: str) -> None:
    native, _, picked = large
    verify: Any = (
        reference.verify_consistency if kind == "Python twin" else aegis_c.verify_consistency
    )
    size, root = len(native), native.root()
    cases = [(old, native.root(old), native.consistency_proof(old)) for old in picked]

    def work() -> None:
        for old, old_root, proof in cases:
            verify(old, size, old_root, root, proof)

    info = {"against": "consistency", "baseline": kind == "Python twin"}
    many(benchmark, VERIFY, f"{kind}: consistency with {size:,} leaves", work, **info)


# ---- memory ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TREES)
@pytest.mark.parametrize("size", SIZES)
def test_memory(
    benchmark: BenchmarkFixture, scale: Scale, entries: list[bytes], size: int, name: str
) -> None:
    """What the tree itself holds: sys.getsizeof counts it all; of the twin, tracemalloc."""
    some = entries[: fitting(size, scale)]
    held = 0

    def work() -> None:
        nonlocal held
        tree = TREES[name]()
        if isinstance(tree, TwinTree):
            tracemalloc.start()
            before = tracemalloc.get_traced_memory()[0]
            extend_twin(tree, some)
            held = tracemalloc.get_traced_memory()[0] - before
            tracemalloc.stop()
        else:
            for entry in some:
                tree.append(entry)
            held = sys.getsizeof(tree)

    benchmark.group = "tree: memory"
    benchmark.pedantic(work, rounds=1)
    benchmark.extra_info |= {
        "row": f"{len(some):,} leaves: {name}",
        "figures_only": True,
        "bytes": held,
        "bytes_a_leaf": held / len(some),
    }


# ---- kernels -----------------------------------------------------------------------------


def kernel_names() -> list[str]:
    tested = aegis_c.kernels()["tested"]
    return ["hashlib", "openssl", *(name for name, kernel in tested.items() if kernel["passed"])]


@pytest.mark.parametrize("name", kernel_names())
@pytest.mark.parametrize("shape", ["node", "leaf"])
def test_kernel(benchmark: BenchmarkFixture, scale: Scale, shape: str, name: str) -> None:
    """One of a batch: a node is 65 octets, two blocks; a leaf is 33, one block."""
    count = KERNEL_COUNT if scale.rounds > 1 else 10
    message = bytes(33 if shape == "leaf" else 65)
    benchmark.group = f"tree: kernels, one {shape} of {len(message)} bytes"
    rows = {
        "hashlib": "hashlib.sha256(message).digest(), from Python",
        "openssl": "OpenSSL, digest fetched once, one context",
    }
    row = rows.get(name, name)
    if name == aegis_c.kernels()["sha256"]:
        row += " (in use)"
    benchmark.extra_info |= {"row": row, "baseline": name == "hashlib", "calls": count}

    def in_python() -> None:
        sha256 = hashlib.sha256
        for _ in range(count):
            sha256(message).digest()

    work = in_python if name == "hashlib" else lambda: _kernel_run(name, shape == "leaf", count)
    benchmark.pedantic(work, rounds=20, warmup_rounds=1)


# ---- the drop-in -------------------------------------------------------------------------


class LegacyTwin:
    """Both legacy schemes in a few lines of hashlib, peaks only."""

    def __init__(self, scheme: str) -> None:
        self.peaks: list[tuple[int, bytes]] = []
        self.text = scheme == "v1-asciihex"

    def hash(self, prefix: bytes, data: bytes) -> bytes:
        if self.text:
            return hashlib.sha256(data).hexdigest().encode()
        return hashlib.sha256(prefix + data).digest()

    def add_leaf(self, data: bytes) -> str:
        height, node = 0, self.hash(b"\x00", data)
        while self.peaks and self.peaks[-1][0] == height:
            node = self.hash(b"\x01", self.peaks.pop()[1] + node)
            height += 1
        self.peaks.append((height, node))
        prefix = b"" if self.text else b"\x02"
        return hashlib.sha256(prefix + b"".join(peak for _, peak in self.peaks)).hexdigest()


@pytest.mark.parametrize("name", ["Python twin", "aegis_c.compat"])
@pytest.mark.parametrize("scheme", ["v1-asciihex", "v2-binary-domain-separated"])
@pytest.mark.parametrize("size", SIZES)
def test_add_leaf(
    benchmark: BenchmarkFixture,
    scale: Scale,
    entries: list[bytes],
    size: int,
    scheme: str,
    name: str,
) -> None:
    some = entries[: fitting(size, scale)]
    baseline = name == "Python twin"
    make: Any = LegacyTwin if baseline else compat.MmrAccumulator

    def work(tree: Any) -> None:
        add_leaf = tree.add_leaf
        for entry in some:
            add_leaf(entry)

    measure(
        benchmark,
        f"tree: add_leaf of the drop-in, {scheme}",
        name,
        len(some),
        lambda: make(scheme),
        work,
        baseline=baseline,
        seconds_each=4e-6 if baseline else 4e-7,
    )
