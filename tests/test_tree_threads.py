"""The native trees under threads, forks and subinterpreters; what they leave behind; and the pace
of other Python threads while they hash."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable

import pytest

import aegis_c
from aegis_c import AegisError, MmrAccumulator, VerificationError
from aegis_c._native import _hmac_sha256, _kernel_run, _LegacyMmrAccumulator, _sha256_hex
from native import check_no_leak, counts_while, ignore
from reference import tree

pytestmark = pytest.mark.native


def in_threads(count: int, work: Callable[[int], object]) -> None:
    """Runs work(0), work(1), ... at the same time; the first failure is raised here."""
    barrier = threading.Barrier(count)
    failures: list[BaseException] = []

    def run(number: int) -> None:
        try:
            barrier.wait()
            work(number)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(n,)) for n in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


# --- threads ---


def test_threads_append_to_one_tree() -> None:
    """Every leaf gets one index, and the tree is that of the entries in this order."""
    mmr = MmrAccumulator()
    placed: dict[int, bytes] = {}

    def work(number: int) -> None:
        for n in range(400):
            entry = b"%d/%d" % (number, n)
            kind = n % 4
            if kind == 0:
                placed[mmr.append(entry)] = entry
            elif kind == 1:
                placed[mmr.append_hash(tree.leaf_hash(entry))] = entry
            elif kind == 2:
                entries = [entry + b"-%d" % i for i in range(3)]
                first = mmr.extend(entries)
                placed.update({first + i: e for i, e in enumerate(entries)})
            else:
                large = entry * 5000  # hashed without the interpreter
                placed[mmr.append(large)] = large

    in_threads(8, work)
    assert sorted(placed) == list(range(len(mmr)))
    assert mmr.root() == tree.mth([placed[n] for n in range(len(mmr))])


def test_threads_read_while_others_append() -> None:
    """Whatever is read is of some size that the tree had: proofs, roots and dumps all verify."""
    mmr = MmrAccumulator()
    mmr.append(b"0")
    reading = threading.Event()

    def work(number: int) -> None:
        if number < 2:
            while not reading.is_set():
                mmr.extend([b"%d" % n for n in range(97)])
                mmr.append(b"y" * 20_000)
            return
        try:
            for n in range(300):
                size = len(mmr)
                root = mmr.root(size)
                index = n * 7919 % size
                old = n % (size + 1)
                inclusion = mmr.inclusion_proof(index, size)
                assert len(inclusion) <= size.bit_length()
                consistency = mmr.consistency_proof(old, size)
                aegis_c.verify_consistency(old, size, mmr.root(old), root, consistency)
                if n % 50 == 0:
                    copy = MmrAccumulator.load(mmr.dump())
                    assert copy.root(size) == root
                    peaks = copy.peaks()
                    fold = peaks.pop()
                    while peaks:
                        fold = aegis_c.node_hash(peaks.pop(), fold)
                    assert fold == copy.root()
        finally:
            reading.set()

    in_threads(6, work)


def test_threads_share_a_legacy_tree() -> None:
    legacy = _LegacyMmrAccumulator()
    roots: list[str] = []

    def work(number: int) -> None:
        roots.extend(legacy.add_leaf(b"same" * (1 + 8000 * (n % 2))) for n in range(300))

    in_threads(6, work)
    assert legacy.get_leaf_count() == 1800
    assert len(set(roots)) == 1800  # a root for every size, none twice
    assert legacy.get_root_hash() in roots


# --- the pace of other threads ---


def test_other_threads_keep_their_pace_while_a_buffer_is_hashed() -> None:
    flat = bytes(32 * 2_000_000)
    mmr = MmrAccumulator(proofs=False)
    assert counts_while(lambda: mmr.extend(flat, entry_size=32)) > 1000


def test_other_threads_keep_their_pace_while_a_list_is_hashed() -> None:
    entries = [bytes(1000)] * 200_000
    mmr = MmrAccumulator(proofs=False)
    assert counts_while(lambda: mmr.extend(entries)) > 1000


def test_other_threads_keep_their_pace_while_one_entry_is_hashed() -> None:
    entry = bytes(64 << 20)
    mmr = MmrAccumulator()
    assert counts_while(lambda: mmr.append(entry)) > 1000
    assert counts_while(lambda: aegis_c.leaf_hash(entry)) > 1000


def test_other_threads_keep_their_pace_during_dump_and_load() -> None:
    mmr = MmrAccumulator()
    mmr.extend(bytes(1_000_000), entry_size=1)
    dump = b""

    def make() -> None:
        nonlocal dump
        dump = mmr.dump()

    assert counts_while(make) > 1000
    assert counts_while(lambda: MmrAccumulator.load(dump)) > 1000


# --- fork ---


@pytest.mark.forks
def test_the_tree_of_the_parent_refuses_in_a_forked_child() -> None:
    script = textwrap.dedent(
        """
        import os, sys, aegis_c
        mmr = aegis_c.MmrAccumulator()
        mmr.append(b"parent")
        dump = mmr.dump()
        child = os.fork()
        if child == 0:
            calls = [lambda: mmr.append(b"x"), lambda: mmr.append(b"x" * 100000),
                     lambda: mmr.append_hash(bytes(32)), lambda: mmr.extend([b"x"]),
                     lambda: mmr.extend(b"x", entry_size=1), mmr.root, mmr.peaks, mmr.dump,
                     lambda: mmr.inclusion_proof(0), lambda: mmr.consistency_proof(0),
                     lambda: len(mmr), lambda: sys.getsizeof(mmr)]
            for call in calls:
                try:
                    call()
                except aegis_c.AegisError as error:
                    assert "after fork" in str(error) and "load() it there" in error.advice
                else:
                    os._exit(1)
            copy = aegis_c.MmrAccumulator.load(dump)
            copy.append(b"child")
            os._exit(0 if len(copy) == 2 else 2)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        mmr.append(b"goes on")
        assert len(mmr) == 2
        """
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


# --- subinterpreters ---


def test_subinterpreters_have_trees_of_their_own() -> None:
    script = textwrap.dedent(
        """
        try:
            import _interpreters as interpreters
        except ImportError:
            import _xxsubinterpreters as interpreters
        import sys, aegis_c
        code = '''
        import sys
        sys.path[:] = {path!r}
        import aegis_c, aegis_c.compat
        mmr = aegis_c.MmrAccumulator()
        mmr.extend([b"%d" % n for n in range(1000)])
        aegis_c.verify_inclusion(
            aegis_c.leaf_hash(b"7"), 7, 1000, mmr.root(), mmr.inclusion_proof(7))
        try:
            aegis_c.verify_inclusion(bytes(32), 7, 1000, mmr.root(), mmr.inclusion_proof(7))
        except aegis_c.VerificationError as error:
            assert error.found
        else:
            raise AssertionError
        assert aegis_c.compat.MmrAccumulator().add_leaf(b"leaf0").startswith("b7a84d0e")
        assert aegis_c.kernels()["sha256"]
        '''
        import textwrap
        for n in range(3):
            interpreter = interpreters.create()
            text = textwrap.dedent(code).format(path=sys.path)
            failed = interpreters.run_string(interpreter, text)
            assert failed is None, failed
            interpreters.destroy(interpreter)
        assert len(aegis_c.MmrAccumulator()) == 0
        """
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


# --- leaks ---


def tree_calls() -> dict[str, Callable[[], object]]:
    """Every method and function of the trees, good and bad arguments."""
    h = bytes(32)
    mmr = MmrAccumulator()
    mmr.extend([b"%d" % n for n in range(1000)])
    peaks_only = MmrAccumulator(proofs=False)
    peaks_only.extend([b"x"] * 100)
    dump, root, proof = mmr.dump(), mmr.root(), mmr.inclusion_proof(5)
    damaged = dump[:-1] + b"?"
    legacy = _LegacyMmrAccumulator()
    big = bytes(100_000)

    def fresh() -> None:
        new = MmrAccumulator()
        for _ in range(20):
            new.append(b"entry")
        new.append(big)
        new.append_hash(h)
        new.extend([b"a", b"b", big])
        new.extend([b"a"] * 100)
        new.extend(bytearray(1000), entry_size=8)
        len(new)
        new.__sizeof__()

    def broken() -> object:
        yield b"x"
        raise KeyError

    return {
        "fresh": fresh,
        "fresh without proofs": lambda: MmrAccumulator(proofs=False).append(b"x"),
        "bad constructor": ignore(TypeError, lambda: MmrAccumulator(other=1)),  # type: ignore[call-arg]
        "append str": ignore(TypeError, lambda: mmr.append("x")),  # type: ignore[arg-type]
        "append_hash short": ignore(ValueError, lambda: mmr.append_hash(b"x")),
        "extend bad item": ignore(TypeError, lambda: mmr.extend([b"x", 1])),  # type: ignore[list-item]
        "extend failing": ignore(KeyError, lambda: mmr.extend(broken())),  # type: ignore[call-overload]
        "extend bad size": ignore(ValueError, lambda: mmr.extend(b"abc", entry_size=2)),
        "extend no buffer": ignore(TypeError, lambda: mmr.extend([], entry_size=2)),  # type: ignore[call-overload]
        "root": mmr.root,
        "root of a size": lambda: mmr.root(777),
        "root beyond": ignore(IndexError, lambda: mmr.root(2**63)),
        "root far beyond": ignore(IndexError, lambda: mmr.root(2**70)),
        "root by keyword": lambda: mmr.root(size=3),
        "root bad keyword": ignore(TypeError, lambda: mmr.root(other=3)),  # type: ignore[call-arg]
        "root not kept": ignore(AegisError, lambda: peaks_only.root(5)),
        "peaks": mmr.peaks,
        "inclusion_proof": lambda: mmr.inclusion_proof(5, 700),
        "inclusion_proof beyond": ignore(IndexError, lambda: mmr.inclusion_proof(1000)),
        "inclusion_proof not kept": ignore(AegisError, lambda: peaks_only.inclusion_proof(0)),
        "consistency_proof": lambda: mmr.consistency_proof(5, 700),
        "consistency_proof beyond": ignore(IndexError, lambda: mmr.consistency_proof(9, 8)),
        "dump": mmr.dump,
        "load": lambda: MmrAccumulator.load(dump),
        "load damaged": ignore(AegisError, lambda: MmrAccumulator.load(damaged)),
        "load str": ignore(TypeError, lambda: MmrAccumulator.load("x")),  # type: ignore[arg-type]
        "proofs": lambda: mmr.proofs,
        "leaf_hash": lambda: aegis_c.leaf_hash(b"x"),
        "leaf_hash str": ignore(TypeError, lambda: aegis_c.leaf_hash("x")),  # type: ignore[arg-type]
        "node_hash": lambda: aegis_c.node_hash(h, h),
        "node_hash short": ignore(ValueError, lambda: aegis_c.node_hash(h, b"")),
        "verify_inclusion": lambda: aegis_c.verify_inclusion(
            tree.leaf_hash(b"5"), 5, 1000, root, proof
        ),
        "verify_inclusion bad": ignore(
            VerificationError, lambda: aegis_c.verify_inclusion(h, 5, 1000, root, proof)
        ),
        "verify_inclusion junk": ignore(
            VerificationError, lambda: aegis_c.verify_inclusion(h, 5, 6, root, [h, b"", h])
        ),
        "verify_inclusion index": ignore(
            VerificationError, lambda: aegis_c.verify_inclusion(h, 2**64, 6, root, [])
        ),
        "verify_inclusion type": ignore(
            TypeError,
            lambda: aegis_c.verify_inclusion(h, 0, 2, root, [1]),  # type: ignore[list-item]
        ),
        "verify_consistency": lambda: aegis_c.verify_consistency(1000, 1000, root, root, []),
        "verify_consistency bad": ignore(
            VerificationError, lambda: aegis_c.verify_consistency(1000, 1000, root, h, [])
        ),
        "kernels": aegis_c.kernels,
        "kernel run": lambda: _kernel_run("openssl", False, 2),
        "kernel run unknown": ignore(AegisError, lambda: _kernel_run("none", False, 2)),
        "legacy": lambda: legacy.add_leaf(data=b"x"),
        "legacy large": lambda: legacy.add_leaf(big),
        "legacy root": legacy.get_root_hash,
        "legacy count": legacy.get_leaf_count,
        "legacy scheme": lambda: _LegacyMmrAccumulator("v2-binary-domain-separated").hash_scheme,
        "legacy bad scheme": ignore(ValueError, lambda: _LegacyMmrAccumulator("v3")),
        "legacy bad type": ignore(TypeError, lambda: legacy.add_leaf("x")),  # type: ignore[arg-type]
        "sha256_hex": lambda: _sha256_hex(b"x"),
        "hmac_sha256": lambda: _hmac_sha256(b"k", b"m"),
        "hmac_sha256 bad": ignore(TypeError, lambda: _hmac_sha256(b"k", "m")),  # type: ignore[arg-type]
    }


@pytest.mark.parametrize("name", list(tree_calls()))
def test_nothing_leaks(name: str) -> None:
    check_no_leak(tree_calls()[name], times=50 if name in ("dump", "load") else 300)
