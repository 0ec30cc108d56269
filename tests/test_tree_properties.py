"""Properties of the tree on inputs that hypothesis makes up, against the reference twin."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aegis_c import MmrAccumulator, VerificationError, verify_consistency, verify_inclusion
from reference import tree

pytestmark = pytest.mark.native

ENTRIES = [b"%d" % n for n in range(40)]
TWIN = tree.Tree(ENTRIES)


entries_lists = st.lists(st.binary(max_size=200), max_size=150)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("append"), st.binary(max_size=200)),
        st.tuples(st.just("append_hash"), st.binary(max_size=200)),
        st.tuples(st.just("extend"), entries_lists),
        st.tuples(st.just("flat"), st.tuples(st.integers(1, 70), st.integers(0, 300))),
        st.tuples(st.just("reload"), st.none()),
        st.tuples(st.just("root"), st.none()),
    ),
    max_size=12,
)


@given(steps, st.booleans(), st.data())
def test_any_sequence_of_steps(
    operations: list[tuple[str, object]], proofs: bool, data: st.DataObject
) -> None:
    mmr = MmrAccumulator(proofs=proofs)
    entries: list[bytes] = []
    for name, argument in operations:
        before = len(entries)
        if name == "append":
            assert isinstance(argument, bytes)
            entries.append(argument)
            assert mmr.append(argument) == before
        elif name == "append_hash":
            assert isinstance(argument, bytes)
            entries.append(argument)
            assert mmr.append_hash(tree.leaf_hash(argument)) == before
        elif name == "extend":
            assert isinstance(argument, list)
            entries += argument
            assert mmr.extend(iter(argument)) == before
        elif name == "flat":
            assert isinstance(argument, tuple)
            size, count = argument
            flat = bytes((7 * i + before) % 256 for i in range(size * count))
            entries += [flat[i * size : (i + 1) * size] for i in range(count)]
            assert mmr.extend(bytearray(flat), entry_size=size) == before
        elif name == "reload":
            mmr = MmrAccumulator.load(mmr.dump())
            assert mmr.proofs is proofs
        else:
            assert mmr.root() == tree.mth(entries)
    n = len(entries)
    assert len(mmr) == n
    twin = tree.Tree(entries)
    assert mmr.root() == twin.root(n)
    if proofs and n > 0:
        size = data.draw(st.integers(1, n))
        index = data.draw(st.integers(0, size - 1))
        old = data.draw(st.integers(0, size))
        assert mmr.inclusion_proof(index, size) == twin.inclusion_path(index, size)
        assert mmr.consistency_proof(old, size) == twin.consistency_proof(old, size)


@given(st.data())
def test_any_change_of_an_inclusion_proof_is_refused(data: st.DataObject) -> None:
    size = data.draw(st.integers(1, len(ENTRIES)))
    index = data.draw(st.integers(0, size - 1))
    leaf, root = tree.leaf_hash(ENTRIES[index]), TWIN.root(size)
    proof = TWIN.inclusion_path(index, size)
    verify_inclusion(leaf, index, size, root, proof)
    verify_inclusion(leaf_hash=leaf, index=index, size=size, root=root, proof=tuple(proof))
    parts = [leaf, root, *proof]
    which = data.draw(st.integers(0, len(parts) - 1))
    bit = data.draw(st.integers(0, 255))
    flipped = bytearray(parts[which])
    flipped[bit // 8] ^= 1 << bit % 8
    parts[which] = bytes(flipped)
    with pytest.raises(VerificationError, match="leads to another root") as caught:
        verify_inclusion(parts[0], index, size, parts[1], parts[2:])
    assert caught.value.expected == parts[1].hex()
    assert caught.value.found != caught.value.expected


@given(st.data())
def test_any_change_of_a_consistency_proof_is_refused(data: st.DataObject) -> None:
    new = data.draw(st.integers(0, len(ENTRIES)))
    old = data.draw(st.integers(0, new))
    proof = TWIN.consistency_proof(old, new)
    old_root, new_root = TWIN.root(old), TWIN.root(new)
    verify_consistency(old, new, old_root, new_root, proof)
    parts = [old_root, new_root, *proof]
    which = data.draw(st.integers(0, len(parts) - 1))
    if which == 1 and old == 0 and new > 0:
        return  # every tree begins with the empty one
    bit = data.draw(st.integers(0, 255))
    flipped = bytearray(parts[which])
    flipped[bit // 8] ^= 1 << bit % 8
    parts[which] = bytes(flipped)
    with pytest.raises(VerificationError, match=r"leads to another (old|new) root"):
        verify_consistency(old, new, parts[0], parts[1], parts[2:])
