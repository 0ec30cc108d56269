"""The golden vectors of the tree, tests/vectors/tree.txt: how they are made, and how they are read.

A line is words, separated by one space; `#` begins a comment, `-` is no octets, hashes are hex.

    leaf ENTRY HASH
    node LEFT RIGHT HASH
    entry ENTRY                                       D[0], D[1], ... in this order
    root SIZE HASH                                    of the first SIZE entries
    inclusion ok|bad INDEX SIZE LEAF ROOT COUNT HASH*     a proof, or one to be refused
    consistency ok|bad OLD NEW OLDROOT NEWROOT COUNT HASH*

Only the reference implementation makes them; the C tests, the native module and the offline
verifier read them. `python tests/tree_vectors.py` writes the file anew.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from pathlib import Path

from reference import tree

PATH = Path(__file__).parent / "vectors" / "tree.txt"

# The entries of the test data of the Certificate Transparency project, then some of our own.
ENTRIES = [
    bytes.fromhex(text)
    for text in (
        "",
        "00",
        "10",
        "2021",
        "3031",
        "40414243",
        "5051525354555657",
        "606162636465666768696a6b6c6d6e6f",
    )
] + [bytes([n]) * length for n, length in enumerate((31, 32, 33, 54, 55, 62, 63, 64, 65, 119), 1)]

MAX = 2**64 - 1


def words(*parts: object) -> str:
    shown = [p.hex() or "-" if isinstance(p, bytes) else str(p) for p in parts]
    return " ".join(shown)


def inclusion(verdict: str, *numbers: object, proof: list[bytes]) -> str:
    return words("inclusion", verdict, *numbers, len(proof), *proof)


def consistency(verdict: str, *numbers: object, proof: list[bytes]) -> str:
    return words("consistency", verdict, *numbers, len(proof), *proof)


def good(t: tree.Tree) -> Iterator[str]:
    n = len(ENTRIES)
    yield "# every proof between the sizes of a small tree"
    for size in range(n + 1):
        for index in range(size):
            leaf = tree.leaf_hash(ENTRIES[index])
            proof = t.inclusion_path(index, size)
            yield inclusion("ok", index, size, leaf, t.root(size), proof=proof)
    for new in range(n + 1):
        for old in range(new + 1):
            proof = t.consistency_proof(old, new)
            yield consistency("ok", old, new, t.root(old), t.root(new), proof=proof)


def huge(rng: random.Random) -> Iterator[str]:
    """Proofs about trees that nobody has: the roots are computed from made-up hashes."""
    yield "# numbers up to 2**64 - 1"
    sizes = [2**31, 2**32 - 1, 2**32 + 1, 2**62, 2**63 - 1, 2**63, 2**63 + 1, MAX - 1, MAX]
    for size in sizes:
        for index in sorted({0, 1, size // 3, size // 2, size - 2, size - 1}):
            leaf = rng.randbytes(32)
            proof = [rng.randbytes(32) for _ in range(path_length(index, size))]
            root = leaf
            node, last = index, size - 1
            for sibling in proof:
                while node == last and node % 2 == 0:
                    node, last = node >> 1, last >> 1
                pair = (sibling, root) if node % 2 else (root, sibling)
                root = tree.node_hash(*pair)
                node, last = node >> 1, last >> 1
            assert tree.verify_inclusion(leaf, index, size, root, proof)
            yield inclusion("ok", index, size, leaf, root, proof=proof)


def path_length(index: int, size: int) -> int:
    """How many hashes PATH(index, D[size]) has, by its recursion."""
    length = 0
    while size > 1:
        k = tree.split(size)
        if index < k:
            size = k
        else:
            index, size = index - k, size - k
        length += 1
    return length


def bad(t: tree.Tree, rng: random.Random) -> Iterator[str]:
    yield "# proofs to be refused"
    n = len(ENTRIES)
    junk = rng.randbytes(32)
    empty = tree.sha256(b"")
    yield inclusion("bad", 0, 0, empty, empty, proof=[])
    yield inclusion("bad", 0, 0, tree.leaf_hash(b""), tree.leaf_hash(b""), proof=[])
    yield inclusion("bad", 1, 1, tree.leaf_hash(b""), tree.leaf_hash(b""), proof=[])
    for size in (1, 2, 3, 5, 8, n):
        root = t.root(size)
        for index in sorted({0, size // 2, size - 1}):
            leaf, proof = tree.leaf_hash(ENTRIES[index]), t.inclusion_path(index, size)
            yield inclusion("bad", index, size, leaf, root, proof=[*proof, junk])
            yield inclusion("bad", index, size, leaf, root, proof=[junk, *proof])
            yield inclusion("bad", index, size, leaf, junk, proof=proof)
            yield inclusion("bad", index, size, junk, root, proof=proof)
            for other in (size, size + 1, 2**63, MAX):
                yield inclusion("bad", other, size, leaf, root, proof=proof)
            for other in (0, 2**63, MAX):
                yield inclusion("bad", index, other, leaf, root, proof=proof)
            if proof:
                yield inclusion("bad", index, size, leaf, root, proof=proof[:-1])
                yield inclusion("bad", index ^ 1, size, leaf, root, proof=proof)
            for i in range(len(proof)):
                flipped = bytes([proof[i][0] ^ 1]) + proof[i][1:]
                changed = [*proof[:i], flipped, *proof[i + 1 :]]
                yield inclusion("bad", index, size, leaf, root, proof=changed)
    for new in (1, 2, 3, 5, 8, n):
        for old in sorted({0, 1, new // 2, new - 1, new}):
            first, second = t.root(old), t.root(new)
            proof = t.consistency_proof(old, new)
            yield consistency("bad", old, new, first, second, proof=[*proof, junk])
            yield consistency("bad", old, new, junk, second, proof=proof)
            if old > 0:
                yield consistency("bad", old, new, first, junk, proof=proof)
                yield consistency("bad", new + 1, new, first, second, proof=proof)
                yield consistency("bad", old, MAX, first, second, proof=proof)
            if proof:
                yield consistency("bad", old, new, first, second, proof=proof[:-1])
            for i in range(len(proof)):
                flipped = proof[i][:-1] + bytes([proof[i][-1] ^ 128])
                changed = [*proof[:i], flipped, *proof[i + 1 :]]
                yield consistency("bad", old, new, first, second, proof=changed)
    yield consistency("bad", 0, 0, junk, junk, proof=[])
    yield consistency("bad", 2**63, 2**63 - 1, junk, junk, proof=[])


def render() -> str:
    """The whole file."""
    t, rng = tree.Tree(ENTRIES), random.Random("aegis tree vectors")
    assert __doc__ is not None
    lines = ["# " + line if line else "#" for line in __doc__.splitlines()]
    lines += [words("leaf", entry, tree.leaf_hash(entry)) for entry in ENTRIES]
    for _ in range(4):
        left, right = rng.randbytes(32), rng.randbytes(32)
        lines.append(words("node", left, right, tree.node_hash(left, right)))
    lines += [words("entry", entry) for entry in ENTRIES]
    lines += [words("root", size, t.root(size)) for size in range(len(ENTRIES) + 1)]
    lines += [*good(t), *huge(rng), *bad(t, rng)]
    return "\n".join(lines) + "\n"


def read() -> Iterator[list[str]]:
    """The words of every line."""
    for line in PATH.read_text().splitlines():
        if not line.startswith("#"):
            yield line.split(" ")


def octets(word: str) -> bytes:
    return b"" if word == "-" else bytes.fromhex(word)


if __name__ == "__main__":
    sys.stdout.write(f"{PATH}\n")
    PATH.write_text(render())
