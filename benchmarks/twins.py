"""What a careful Python programmer would write instead: the baselines of the ledger's rows.

They do the same work with the standard library and keep it in memory, each in its fastest honest
form (one-shot HMAC in C, no JSON encoder where concatenation serves). What they leave out (signed
checkpoints, a write-ahead log, other threads) is left out in their favour.
"""

from __future__ import annotations

import base64
import hmac
import json
import os
import uuid
from hashlib import sha256
from typing import BinaryIO

_LABEL = b"aegis/salt/v1"
_ROLES = {"request": b"request\0", "response": b"response"}


def salt(secret: bytes, request_id: str, role: str) -> bytes:
    """The salt of one body (docs/formats.md)."""
    message = _LABEL + uuid.UUID(request_id).bytes + _ROLES[role]
    return hmac.digest(secret, message, "sha256")


def commitment(secret: bytes, request_id: str, role: str, body: bytes) -> bytes:
    """The salted commitment to one body."""
    return hmac.digest(salt(secret, request_id, role), body, "sha256")


def member(name: str, count: int, digest: bytes) -> bytes:
    """The entry's member for one body."""
    text = base64.b64encode(digest)
    return b',"%s":{"bytes":%d,"commitment":"%s"}' % (name.encode(), count, text)


class TwinLedger:
    """The ledger's memory half: entries in a list, commitments with hmac and hashlib."""

    def __init__(self, secret: bytes) -> None:
        self.entries: list[bytes] = []
        self._secret = secret

    def submit(
        self, meta: bytes, request: bytes | None = None, response: bytes | None = None
    ) -> int:
        """Append an entry with the commitments to raw bodies; returns its index."""
        document = json.loads(meta)  # the check that it is a JSON object, and the id
        parts = [meta[:-1]]
        for role, body in (("request", request), ("response", response)):
            if body is not None:
                digest = commitment(self._secret, document["id"], role, body)
                parts.append(member(role, len(body), digest))
        parts.append(b"}")
        return self._append(b"".join(parts))

    def submit_finished(self, meta: bytes, request: hmac.HMAC, response: hmac.HMAC) -> int:
        """The same with commitments that were made while the bodies passed (2 KiB each)."""
        json.loads(meta)
        return self._append(
            meta[:-1]
            + member("request", 2048, request.digest())
            + member("response", 2048, response.digest())
            + b"}"
        )

    def _append(self, entry: bytes) -> int:
        self.entries.append(entry)
        return len(self.entries) - 1


class TwinTree:
    """An RFC 6962 tree with every full node in a list of its level."""

    def __init__(self) -> None:
        self.levels: list[list[bytes]] = [[]]

    def append(self, entry: bytes) -> None:
        """Add a leaf and every node that it completes."""
        node, level = sha256(b"\0" + entry).digest(), 0
        while True:
            nodes = self.levels[level]
            nodes.append(node)
            if len(nodes) & 1:
                return
            node = sha256(b"\1" + nodes[-2] + nodes[-1]).digest()
            level += 1
            if level == len(self.levels):
                self.levels.append([])

    def root(self) -> bytes:
        """The root: the peaks hashed together, smallest first. Not for an empty tree."""
        root = None
        for nodes in self.levels:
            if len(nodes) & 1:
                root = nodes[-1] if root is None else sha256(b"\1" + nodes[-1] + root).digest()
        assert root is not None
        return root

    def inclusion_proof(self, index: int) -> list[bytes]:
        """The audit path of a leaf in the whole tree (RFC 6962 section 2.1.1)."""
        proof = []
        below: bytes | None = None  # root of what stands right of the full nodes of a level
        size = len(self.levels[0])
        for level, nodes in enumerate(self.levels):
            if index ^ 1 < len(nodes):
                proof.append(nodes[index ^ 1])
            elif index ^ 1 == len(nodes) and below is not None:
                proof.append(below)
            if (size >> level) & 1:
                below = nodes[-1] if below is None else sha256(b"\1" + nodes[-1] + below).digest()
            index >>= 1
        return proof


def append_durable(file: BinaryIO, line: bytes) -> None:
    """One record on disk before anything else happens; run with asyncio.to_thread."""
    file.write(line)
    file.flush()
    os.fdatasync(file.fileno())


def replay(path: str | os.PathLike[str]) -> TwinTree:
    """What a ledger of JSON lines does at every start: read, check and hash all of it."""
    tree = TwinTree()
    with open(path, "rb") as file:
        for line in file:
            entry = line.rstrip(b"\n")
            json.loads(entry)
            tree.append(entry)
    return tree
