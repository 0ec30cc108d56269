"""The functions of the tree and the kernels under them; the golden vectors, read by the native
module, the offline verifier and the reference alike (tests/c/test_proof.c reads them too)."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable
from typing import Any

import pytest

import aegis_c
import tree_vectors
from aegis_c import MmrAccumulator, VerificationError, verify_consistency, verify_inclusion
from aegis_c._native import _kernel_run
from aegis_c.ledger import verify as offline
from reference import tree

pytestmark = pytest.mark.native

ENTRIES = [b"%d" % n for n in range(40)]
TWIN = tree.Tree(ENTRIES)


# --- hashing ---


@pytest.mark.parametrize("length", [*range(140), 1000, 4096, 16383, 16384, 16385, 100_000])
def test_leaf_hash_of_every_length(length: int, rng: random.Random) -> None:
    entry = rng.randbytes(length)
    assert aegis_c.leaf_hash(entry) == hashlib.sha256(b"\x00" + entry).digest()


def test_node_hash_with_every_last_octet(rng: random.Random) -> None:
    for last in range(256):
        left, right = rng.randbytes(32), rng.randbytes(31) + bytes([last])
        assert aegis_c.node_hash(left, right) == hashlib.sha256(b"\x01" + left + right).digest()
    assert aegis_c.node_hash(left, left) == hashlib.sha256(b"\x01" + left + left).digest()


def test_bad_arguments_of_the_hashes() -> None:
    h = bytes(32)
    bad_types: list[Callable[[], object]] = [
        lambda: aegis_c.leaf_hash("text"),  # type: ignore[arg-type]
        lambda: aegis_c.leaf_hash(bytearray(3)),  # type: ignore[arg-type]
        lambda: aegis_c.node_hash(h),  # type: ignore[call-arg]
        lambda: aegis_c.node_hash(h, None),  # type: ignore[arg-type]
        lambda: aegis_c.node_hash(7, h),  # type: ignore[arg-type]
        lambda: aegis_c.node_hash(h, h, h),  # type: ignore[call-arg]
    ]
    for call in bad_types:
        with pytest.raises(TypeError):
            call()
    with pytest.raises(ValueError, match="left must have 32 bytes, not 31"):
        aegis_c.node_hash(h[1:], h)
    with pytest.raises(ValueError, match="right must have 32 bytes, not 33"):
        aegis_c.node_hash(h, h + b"x")


# --- the golden vectors ---


def test_the_vectors_are_what_the_reference_makes() -> None:
    assert tree_vectors.PATH.read_text() == tree_vectors.render()


def test_hashes_of_the_vectors() -> None:
    seen = 0
    for kind, *words in tree_vectors.read():
        if kind in ("leaf", "node"):
            *arguments, expected = map(tree_vectors.octets, words)
            native: Any = aegis_c.leaf_hash if kind == "leaf" else aegis_c.node_hash
            pure: Any = offline.leaf_hash if kind == "leaf" else offline.node_hash
            assert native(*arguments) == expected
            assert pure(*arguments) == expected
            seen += 1
    assert seen > 20


def test_roots_of_the_vectors() -> None:
    entries: list[bytes] = []
    sizes = 0
    mmr = MmrAccumulator()
    for kind, *words in tree_vectors.read():
        if kind == "entry":
            entries.append(tree_vectors.octets(words[0]))
            mmr.append(entries[-1])
        elif kind == "root":
            size, root = int(words[0]), bytes.fromhex(words[1])
            assert mmr.root(size) == root
            peaks_only = MmrAccumulator(proofs=False)
            peaks_only.extend(entries[:size])
            assert peaks_only.root() == root
            sizes += 1
    assert sizes == len(entries) + 1


def proofs_of_the_vectors() -> dict[str, list[tuple[object, ...]]]:
    found: dict[str, list[tuple[object, ...]]] = {}
    for kind, *words in tree_vectors.read():
        if kind in ("inclusion", "consistency"):
            verdict, a, b, first, second, count, *hashes = words
            proof = [bytes.fromhex(h) for h in hashes]
            assert int(count) == len(proof)
            ab, roots = (int(a), int(b)), (bytes.fromhex(first), bytes.fromhex(second))
            arguments = (roots[0], *ab, roots[1]) if kind == "inclusion" else (*ab, *roots)
            found.setdefault(f"{kind} {verdict}", []).append((*arguments, proof))
    return found


VERIFIERS: dict[str, list[Callable[..., object]]] = {
    "inclusion": [verify_inclusion, offline.verify_inclusion],
    "consistency": [verify_consistency],
}
TWINS: dict[str, Callable[..., bool]] = {
    "inclusion": tree.verify_inclusion,
    "consistency": tree.verify_consistency,
}


@pytest.mark.parametrize("kind", ["inclusion", "consistency"])
def test_good_proofs_of_the_vectors(kind: str) -> None:
    lines = proofs_of_the_vectors()[f"{kind} ok"]
    assert len(lines) > 100
    for arguments in lines:
        assert TWINS[kind](*arguments)
        for verify in VERIFIERS[kind]:
            assert verify(*arguments) is None


@pytest.mark.parametrize("kind", ["inclusion", "consistency"])
def test_bad_proofs_of_the_vectors(kind: str) -> None:
    lines = proofs_of_the_vectors()[f"{kind} bad"]
    assert len(lines) > 100
    for arguments in lines:
        assert not TWINS[kind](*arguments)
        for verify, error in zip(
            VERIFIERS[kind], (VerificationError, offline.VerificationError), strict=False
        ):
            with pytest.raises(error):
                verify(*arguments)


# --- verification ---


def test_errors_name_the_value() -> None:
    h = bytes(32)
    cases: list[tuple[str, Callable[[], object]]] = [
        ("no leaf 5 in a tree of 5", lambda: verify_inclusion(h, 5, 5, h, [])),
        ("no leaf 0 in a tree of 0", lambda: verify_inclusion(h, 0, 0, h, [])),
        (f"no leaf {2**63} in", lambda: verify_inclusion(h, 2**63, 2**63, h, [])),
        ("index -1 is outside", lambda: verify_inclusion(h, -1, 5, h, [])),
        (f"size {2**64} is outside", lambda: verify_inclusion(h, 0, 2**64, h, [])),
        ("more than 100 digits", lambda: verify_inclusion(h, 0, 1 << 9999, h, [])),
        ("leaf_hash must have 32 bytes, not 3", lambda: verify_inclusion(b"abc", 0, 1, h, [])),
        ("root must have 32 bytes, not 0", lambda: verify_inclusion(h, 0, 1, b"", [])),
        ("has 3 hashes, this one has 0", lambda: verify_inclusion(h, 0, 5, h, [])),
        (
            "has 63 hashes, this one has 100000",
            lambda: verify_inclusion(h, 0, 2**63, h, [h] * 10**5),
        ),
        (
            r"proof\[1\] must have 32 bytes, not 5",
            lambda: verify_inclusion(h, 0, 4, h, [h, b"short"]),
        ),
        ("old_size 6 is more than new_size 5", lambda: verify_consistency(6, 5, h, h, [])),
        ("old_size -2 is outside", lambda: verify_consistency(-2, 5, h, h, [])),
        (f"new_size {2**70} is", lambda: verify_consistency(0, 2**70, h, h, [])),
        ("old_root must have 32", lambda: verify_consistency(1, 1, b"", h, [])),
        ("new_root must have 32", lambda: verify_consistency(1, 1, h, h + h, [])),
        ("has 0 hashes, this one has 1", lambda: verify_consistency(3, 3, h, h, [h])),
        ("another old root", lambda: verify_consistency(0, 3, h, h, [])),
        ("another new root", lambda: verify_consistency(3, 3, h, b"x" * 32, [])),
    ]
    for text, call in cases:
        with pytest.raises(VerificationError, match=text) as caught:
            call()
        assert caught.value.file is None  # the detail is there, and does not apply


def test_wrong_types_of_verification() -> None:
    h = bytes(32)
    inclusion: Any = verify_inclusion
    consistency: Any = verify_consistency
    bad: list[Callable[[], object]] = [
        lambda: inclusion("x" * 32, 0, 1, h, []),
        lambda: inclusion(h, "0", 1, h, []),
        lambda: inclusion(h, 0, 1.0, h, []),
        lambda: inclusion(h, 0, 1, bytearray(32), []),
        lambda: inclusion(h, 0, 1, h, None),
        lambda: inclusion(h, 0, 2, h, h),
        lambda: inclusion(h, 0, 2, h, "x"),
        lambda: inclusion(h, 0, 2, h, {h}),
        lambda: inclusion(h, 0, 2, h, [7]),
        lambda: inclusion(h, 0, 2, h, iter([h])),
        lambda: inclusion(h, 0, 1, h),
        lambda: inclusion(h, 0, 1, h, [], []),
        lambda: inclusion(h, 0, 1, h, path=[]),
        lambda: consistency(0, 0, h, h),
        lambda: consistency(b"", 0, h, h, []),
        lambda: consistency(1, 2, h, h, bytearray(32)),
    ]
    for call in bad:
        with pytest.raises(TypeError):
            call()


def test_a_proof_that_lies_about_its_length() -> None:
    h = bytes(32)

    class Lying(list[bytes]):
        def __len__(self) -> int:
            return 3

        def __getitem__(self, index: object) -> bytes:  # type: ignore[override]
            raise KeyError(index)

    with pytest.raises(KeyError):
        verify_inclusion(h, 0, 5, h, Lying())


# --- kernels ---


def test_kernels_says_what_runs() -> None:
    kernels = aegis_c.kernels()
    tested = kernels["tested"]
    assert "portable" in tested
    assert tested[kernels["sha256"]]["passed"]
    for name, kernel in tested.items():
        assert kernel["passed"] == kernel["runs_here"], f"{name} runs here and is wrong"
        assert (kernel["node_ns"] > 0) == kernel["passed"]
    assert kernels["crc32c"] in ("portable", "sse4.2 x3")
    fastest = min(kernel["node_ns"] for kernel in tested.values() if kernel["passed"])
    assert tested[kernels["sha256"]]["node_ns"] == fastest
    assert aegis_c.kernels() == kernels  # measured once


def test_every_kernel_that_passed_can_be_measured() -> None:
    for name, kernel in aegis_c.kernels()["tested"].items():
        if kernel["passed"]:
            _kernel_run(name, True, 300)
            _kernel_run(name, False, 300)
    _kernel_run("openssl", True, 3)
    _kernel_run("openssl", False, 0)
    with pytest.raises(aegis_c.AegisError):
        _kernel_run("avx-1024", True, 3)
    with pytest.raises(ValueError, match="invalid"):
        _kernel_run("portable", True, -1)
