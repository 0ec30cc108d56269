"""MmrAccumulator against the reference twin: every size, every proof, every way to add a leaf."""

from __future__ import annotations

import struct
import sys
from collections.abc import Callable
from typing import Any

import pytest

import aegis_c
from aegis_c import AegisError, MmrAccumulator
from reference import tree

pytestmark = pytest.mark.native

MOST = 1100
ENTRIES = [b"%d:" % n + bytes(n % 70) for n in range(MOST)]
TWIN = tree.Tree(ENTRIES)

# Around the edges of tiles (256), of batches (64), and of the levels above.
EDGES = [63, 64, 65, 127, 128, 129, 255, 256, 257, 511, 512, 513, 1023, 1024, 1025]


def accumulator(count: int, *, proofs: bool = True) -> MmrAccumulator:
    mmr = MmrAccumulator(proofs=proofs)
    assert mmr.extend(ENTRIES[:count]) == 0
    return mmr


# --- roots ---


@pytest.mark.parametrize("proofs", [True, False])
def test_every_root_to_1100_as_leaves_are_appended(proofs: bool) -> None:
    mmr = MmrAccumulator(proofs=proofs)
    assert mmr.proofs is proofs
    for size, entry in enumerate(ENTRIES):
        assert len(mmr) == size
        assert mmr.root() == TWIN.root(size)
        assert mmr.root() == TWIN.root(size)  # unchanged
        assert mmr.append(entry) == size
    assert mmr.root() == TWIN.root(MOST)


def test_every_earlier_root_of_one_tree() -> None:
    mmr = accumulator(MOST)
    for size in range(MOST + 1):
        assert mmr.root(size) == TWIN.root(size)
    assert mmr.root(size=None) == TWIN.root(MOST)


@pytest.mark.parametrize("proofs", [True, False])
def test_every_size_in_one_call(proofs: bool) -> None:
    for size in range(MOST + 1):
        assert accumulator(size, proofs=proofs).root() == TWIN.root(size)


def test_sizes_around_the_second_level_of_tiles() -> None:
    entries = [struct.pack("<I", n) for n in range(65537)]
    twin = tree.Tree(entries)
    mmr = MmrAccumulator()
    mmr.extend(b"".join(entries), entry_size=4)
    peaks_only = MmrAccumulator(proofs=False)
    peaks_only.extend(entries[:65535])
    for size in (65535, 65536, 65537):
        assert mmr.root(size) == twin.root(size)
        assert peaks_only.root() == twin.root(size)
        for index in {0, 255, 256, 65534, size - 1}:
            assert mmr.inclusion_proof(index, size) == twin.inclusion_path(index, size)
        for old in {1, 255, 256, 257, 32768, 65535, size}:
            assert mmr.consistency_proof(old, size) == twin.consistency_proof(old, size)
        if size < 65537:
            peaks_only.append(entries[size])


def test_peaks_are_the_complete_subtrees() -> None:
    mmr = MmrAccumulator()
    for size in range(1, 200):
        mmr.append(ENTRIES[size - 1])
        expected = []
        start = 0
        for height in reversed(range(8)):
            if size >> height & 1:
                expected.append(TWIN.mth(start, start + 2**height))
                start += 2**height
        assert mmr.peaks() == expected
        assert accumulator(size, proofs=False).peaks() == expected
    assert MmrAccumulator().peaks() == []


# --- proofs ---


def test_every_inclusion_proof_of_every_size_to_300() -> None:
    mmr = accumulator(MOST)
    for size in range(1, 301):
        for index in range(size):
            assert mmr.inclusion_proof(index, size) == TWIN.inclusion_path(index, size)


def test_every_consistency_proof_of_every_pair_to_300() -> None:
    mmr = accumulator(MOST)
    for new in range(301):
        for old in range(new + 1):
            assert mmr.consistency_proof(old, new) == TWIN.consistency_proof(old, new)


@pytest.mark.parametrize("size", EDGES)
def test_all_proofs_at_the_edges(size: int) -> None:
    mmr = accumulator(size)
    root = mmr.root()
    for index in range(size):
        proof = mmr.inclusion_proof(index)
        assert proof == TWIN.inclusion_path(index, size)
        leaf = aegis_c.leaf_hash(ENTRIES[index])
        aegis_c.verify_inclusion(leaf, index, size, root, proof)
    for old in range(size + 1):
        proof = mmr.consistency_proof(old)
        assert proof == TWIN.consistency_proof(old, size)
        aegis_c.verify_consistency(old, size, TWIN.root(old), root, proof)


# --- all ways to add leaves ---


@pytest.mark.parametrize(
    "make", [bytes, bytearray, memoryview, lambda b: memoryview(b).cast("B", (4, 8))]
)
def test_extend_takes_any_contiguous_buffer(make: Callable[[bytes], bytes]) -> None:
    flat = bytes(range(32))
    mmr = MmrAccumulator()
    assert mmr.extend(make(flat), entry_size=4) == 0
    assert mmr.root() == tree.mth([flat[i : i + 4] for i in range(0, 32, 4)])


def test_large_entries_and_large_calls_are_hashed_the_same() -> None:
    """Above the bound from which the interpreter is given to other threads."""
    big = bytes(range(256)) * 1000
    entries = [big, b"", big[:100_000], *[bytes([n]) * 3000 for n in range(200)]]
    mmr = MmrAccumulator()
    for entry in entries:
        mmr.append(entry)
    assert mmr.root() == tree.mth(entries)
    assert mmr.extend(entries) == len(entries)
    assert mmr.root() == tree.mth(entries * 2)


def test_many_entries_take_several_batches_of_addresses() -> None:
    entries = [b"%d" % n for n in range(140_000)]
    mmr = MmrAccumulator()
    mmr.extend(entries)
    other = MmrAccumulator(proofs=False)
    other.extend(tuple(entries))
    assert mmr.root() == other.root() == tree.mth(entries)


# --- dump and load ---


@pytest.mark.parametrize("proofs", [True, False])
def test_dump_and_load_at_every_size_to_300(proofs: bool) -> None:
    for size in range(301):
        mmr = accumulator(size, proofs=proofs)
        dump = mmr.dump()
        copy = MmrAccumulator.load(dump)
        assert copy.dump() == dump
        assert copy.root() == TWIN.root(size)
        assert copy.append(ENTRIES[size]) == size
        assert copy.root() == TWIN.root(size + 1)
        assert len(mmr) == size  # a copy indeed


def test_the_format_of_a_dump() -> None:
    """The bytes that docs describe, made by hand."""
    for proofs in (True, False):
        hashes = [tree.leaf_hash(e) for e in ENTRIES[:3]]
        if not proofs:
            hashes = [tree.node_hash(hashes[0], hashes[1]), hashes[2]]
        body = b"aegismmr" + struct.pack("<IIQ", 1, proofs, 3) + b"".join(hashes)
        by_hand = body + tree.sha256(body)
        assert accumulator(3, proofs=proofs).dump() == by_hand
        assert MmrAccumulator.load(by_hand).root() == TWIN.root(3)


def test_every_damaged_dump_is_refused() -> None:
    dump = accumulator(5).dump()
    for position in range(len(dump)):
        damaged = bytearray(dump)
        damaged[position] ^= 0x40
        with pytest.raises(AegisError):
            MmrAccumulator.load(bytes(damaged))
    for length in range(len(dump)):
        with pytest.raises(AegisError, match=r"bytes|begin|hold"):
            MmrAccumulator.load(dump[:length])
    with pytest.raises(AegisError, match="hold 5 hashes, but its 217 bytes hold 5 and a part"):
        MmrAccumulator.load(dump + b"x")


def test_dump_errors_name_what_was_found() -> None:
    def sealed(body: bytes) -> bytes:
        return body + tree.sha256(body)

    dump = accumulator(2).dump()
    with pytest.raises(AegisError, match="version 7, this release reads 1"):
        MmrAccumulator.load(sealed(b"aegismmr" + struct.pack("<IIQ", 7, 1, 0)))
    with pytest.raises(AegisError, match="flags 0x80000001"):
        MmrAccumulator.load(sealed(b"aegismmr" + struct.pack("<IIQ", 1, 0x80000001, 0)))
    with pytest.raises(AegisError, match=f"claims {2**63} leaves"):
        MmrAccumulator.load(sealed(b"aegismmr" + struct.pack("<IIQ", 1, 1, 2**63)))
    with pytest.raises(AegisError, match="not the dump of a tree"):
        MmrAccumulator.load(sealed(b"\x7fELF" + bytes(40)))
    with pytest.raises(AegisError, match="checksum") as caught:
        MmrAccumulator.load(dump[:-1] + bytes([dump[-1] ^ 1]))
    assert caught.value.expected is not None
    assert caught.value.expected != caught.value.found
    with pytest.raises(TypeError, match="bytes, not bytearray"):
        MmrAccumulator.load(bytearray(dump))  # type: ignore[arg-type]


# --- bad input ---


def test_indices_and_sizes_out_of_range() -> None:
    mmr = accumulator(5)
    for size in (6, 2**62, 2**63, 2**64 - 1, 2**64, -1, -(2**63), 10**30):
        with pytest.raises(IndexError, match=str(size)):
            mmr.root(size)
        with pytest.raises(IndexError, match=str(size)):
            mmr.inclusion_proof(0, size)
        with pytest.raises(IndexError, match=str(size)):
            mmr.inclusion_proof(size)
        with pytest.raises(IndexError, match=str(size)):
            mmr.consistency_proof(size)
        with pytest.raises(IndexError, match=str(size)):
            mmr.consistency_proof(0, size)
    with pytest.raises(IndexError, match="index 3 is beyond the tree of 3 leaves"):
        mmr.inclusion_proof(3, 3)
    with pytest.raises(IndexError, match="old_size 4 is beyond the tree of 3 leaves"):
        mmr.consistency_proof(4, 3)
    empty = MmrAccumulator()
    with pytest.raises(IndexError, match="index 0 is beyond the tree of 0 leaves"):
        empty.inclusion_proof(0)
    assert empty.root() == empty.root(0) == tree.sha256(b"")
    assert empty.consistency_proof(0) == []


def test_a_number_too_long_to_show_is_still_an_index_error() -> None:
    with pytest.raises(IndexError, match="more than 100 digits"):
        MmrAccumulator().root(1 << 100_000)


def test_wrong_types_and_lengths() -> None:
    mmr: Any = accumulator(5)
    make: Any = MmrAccumulator
    bad: list[Callable[[], object]] = [
        lambda: mmr.append("text"),
        lambda: mmr.append(bytearray(b"x")),
        lambda: mmr.append_hash("text"),
        lambda: mmr.extend(b"one buffer"),
        lambda: mmr.extend("text"),
        lambda: mmr.extend(7),
        lambda: mmr.extend([b"good", "bad"]),
        lambda: mmr.extend([b"good"], entry_size=4),
        lambda: mmr.extend(b"abcd", entry_size=1.0),
        lambda: mmr.extend(b"abcd", 4),
        lambda: mmr.extend(entries=[b"x"]),
        lambda: mmr.extend(),
        lambda: mmr.root("5"),
        lambda: mmr.root(1.0),
        lambda: mmr.root(1, 2),
        lambda: mmr.root(other=1),
        lambda: mmr.inclusion_proof(),
        lambda: mmr.inclusion_proof(1, index=1),
        lambda: make(False),
    ]
    for call in bad:
        with pytest.raises(TypeError):
            call()
    for length in (0, 31, 33, 64):
        with pytest.raises(ValueError, match=f"32 bytes, not {length}"):
            mmr.append_hash(bytes(length))
    for size in (0, 3, 5, 2**63):
        with pytest.raises(ValueError, match=f"entry_size {size} does not divide"):
            mmr.extend(b"abcd", entry_size=size)
    with pytest.raises(ValueError, match="-1 is outside"):
        mmr.extend(b"abcd", entry_size=-1)
    with pytest.raises(BufferError):
        mmr.extend(memoryview(b"abcdefgh")[::2], entry_size=1)
    assert len(mmr) == 5
    assert mmr.root() == TWIN.root(5)


def test_a_failing_iterable_adds_nothing() -> None:
    mmr = accumulator(5)

    def entries() -> object:
        yield b"one"
        raise KeyError("from the iterable")

    with pytest.raises(KeyError, match="from the iterable"):
        mmr.extend(entries())  # type: ignore[call-overload]
    with pytest.raises(TypeError, match=r"entries\[1\] must be bytes, not int"):
        mmr.extend([b"one", 2])  # type: ignore[list-item]
    assert len(mmr) == 5


def test_an_entry_that_changes_the_list_while_it_is_read() -> None:
    entries: list[bytes] = [b"%d" % n for n in range(100)]
    mmr = MmrAccumulator()

    class Shrinking:
        def __iter__(self) -> object:
            yield from [entries.pop() for _ in range(50)]

    mmr.extend(Shrinking())  # type: ignore[call-overload]
    assert len(mmr) == 50


def test_without_proofs_the_past_is_not_known() -> None:
    mmr = accumulator(5, proofs=False)
    assert mmr.root(5) == TWIN.root(5)
    assert mmr.root(0) == TWIN.root(0)
    calls: list[Callable[[], object]] = [
        lambda: mmr.root(4),
        lambda: mmr.inclusion_proof(0),
        lambda: mmr.consistency_proof(1),
    ]
    for call in calls:
        with pytest.raises(AegisError, match=r"proofs=False.*Use MmrAccumulator\(proofs=True\)"):
            call()
    with pytest.raises(IndexError):
        mmr.root(6)


# --- memory ---


def test_memory_per_leaf() -> None:
    mmr = MmrAccumulator()
    empty = sys.getsizeof(mmr)
    assert empty < 1024
    mmr.extend(bytes(32 * 100_000), entry_size=32)
    assert sys.getsizeof(mmr) <= 68 * 100_000
    small = accumulator(100)
    assert sys.getsizeof(small) <= 100 * 64 * 2 + empty


def test_memory_without_proofs() -> None:
    mmr = MmrAccumulator(proofs=False)
    before = sys.getsizeof(mmr)
    mmr.extend(bytes(32 * 100_000), entry_size=32)
    assert sys.getsizeof(mmr) == before < 8192
