"""RFC 6962 Merkle trees, word for word from sections 2.1, 2.1.1 and 2.1.2, and the verifiers of RFC
9162 sections 2.1.3.2 and 2.1.4.2: slow, recursive, obvious, and nothing of the project in it.

Entries are a sequence of bytes, hashes are bytes of length 32. `Tree` remembers the subtrees it has
hashed, for tests that ask a lot; the functions below it do not.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence


def sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def leaf_hash(entry: bytes) -> bytes:
    return sha256(b"\x00" + entry)


def node_hash(left: bytes, right: bytes) -> bytes:
    return sha256(b"\x01" + left + right)


def split(n: int) -> int:
    """The largest power of two smaller than n, for n > 1."""
    k = 1
    while 2 * k < n:
        k *= 2
    return k


class Tree:
    """The definitions of section 2.1 over the ranges D[start:end] of some entries."""

    def __init__(self, entries: Sequence[bytes]) -> None:
        self.entries = list(entries)
        self.mth = functools.cache(self._mth)

    def _mth(self, start: int, end: int) -> bytes:
        """MTH(D[start:end])."""
        n = end - start
        if n == 0:
            return sha256(b"")
        if n == 1:
            return leaf_hash(self.entries[start])
        k = split(n)
        return node_hash(self.mth(start, start + k), self.mth(start + k, end))

    def path(self, m: int, start: int, end: int) -> list[bytes]:
        """PATH(m, D[start:end])."""
        n = end - start
        if n == 1:
            return []
        k = split(n)
        if m < k:
            return [*self.path(m, start, start + k), self.mth(start + k, end)]
        return [*self.path(m - k, start + k, end), self.mth(start, start + k)]

    def subproof(self, m: int, start: int, end: int, b: bool) -> list[bytes]:
        """SUBPROOF(m, D[start:end], b)."""
        n = end - start
        if m == n:
            return [] if b else [self.mth(start, end)]
        k = split(n)
        if m <= k:
            return [*self.subproof(m, start, start + k, b), self.mth(start + k, end)]
        return [*self.subproof(m - k, start + k, end, False), self.mth(start, start + k)]

    def root(self, size: int) -> bytes:
        return self.mth(0, size)

    def inclusion_path(self, m: int, size: int) -> list[bytes]:
        return self.path(m, 0, size)

    def consistency_proof(self, m: int, size: int) -> list[bytes]:
        """PROOF(m, D[size]); nothing has to be proven about the empty tree."""
        return self.subproof(m, 0, size, True) if m > 0 else []


def mth(entries: Sequence[bytes]) -> bytes:
    """The root of the tree of these entries."""
    return Tree(entries).root(len(entries))


def inclusion_path(m: int, entries: Sequence[bytes]) -> list[bytes]:
    """PATH(m, D[n]) of all n entries."""
    return Tree(entries).inclusion_path(m, len(entries))


def consistency_proof(m: int, entries: Sequence[bytes]) -> list[bytes]:
    """PROOF(m, D[n]) of all n entries."""
    return Tree(entries).consistency_proof(m, len(entries))


def verify_inclusion(leaf: bytes, index: int, size: int, root: bytes, proof: list[bytes]) -> bool:
    """RFC 9162 section 2.1.3.2, with its variable names."""
    if index >= size:
        return False
    fn, sn = index, size - 1
    r = leaf
    for p in proof:
        if sn == 0:
            return False
        if fn % 2 == 1 or fn == sn:
            r = node_hash(p, r)
            if fn % 2 == 0:
                while fn % 2 == 0 and fn != 0:
                    fn, sn = fn >> 1, sn >> 1
        else:
            r = node_hash(r, p)
        fn, sn = fn >> 1, sn >> 1
    return sn == 0 and r == root


def verify_consistency(
    first: int, second: int, first_hash: bytes, second_hash: bytes, proof: list[bytes]
) -> bool:
    """RFC 9162 section 2.1.4.2, with its variable names; plus the two cases it leaves out: equal
    sizes need equal roots, and every tree begins with the empty one."""
    if first > second:
        return False
    if first == 0 and first_hash != sha256(b""):
        return False
    if first == second:
        return not proof and first_hash == second_hash
    if first == 0:
        return not proof
    if not proof:
        return False
    if first & (first - 1) == 0:
        proof = [first_hash, *proof]
    fn, sn = first - 1, second - 1
    while fn % 2 == 1:
        fn, sn = fn >> 1, sn >> 1
    fr = sr = proof[0]
    for c in proof[1:]:
        if sn == 0:
            return False
        if fn % 2 == 1 or fn == sn:
            fr, sr = node_hash(c, fr), node_hash(c, sr)
            if fn % 2 == 0:
                while fn % 2 == 0 and fn != 0:
                    fn, sn = fn >> 1, sn >> 1
        else:
            sr = node_hash(sr, c)
        fn, sn = fn >> 1, sn >> 1
    return fr == first_hash and sr == second_hash and sn == 0
