"""Shards that this process does not write, read-only: a receipt for any entry ever written.

A request's entries lie in the shard of the worker that served it. Here they are found and proven
from files alone (published tiles, checkpoint, id column), whether or not anybody serves that shard
any more; as far as its published checkpoint goes. These functions read files: call them in a
thread, not on the event loop.
"""

from __future__ import annotations

import functools
import hmac
from dataclasses import dataclass

from aegis_c import LedgerError, leaf_hash, verify_inclusion

from . import ids, verify
from .layout import DataDir, Shard
from .tiles import TileError, TileReader, read_file


@functools.lru_cache(maxsize=64)
def _open_checkpoint(note: bytes, vkey: str) -> verify.Checkpoint:
    """Verifies a checkpoint, once: that takes some milliseconds of Python."""
    return verify.open_checkpoint(note, verify.parse_vkey(vkey))


@dataclass(frozen=True)
class ReadOnlyShard:
    """What a receipt needs of a ledger (as of aegis_c.Ledger), from the files of a shard."""

    shard: Shard
    origin: str
    vkey: str
    published_size: int
    root: bytes
    note: bytes

    @classmethod
    def open(cls, shard: Shard) -> ReadOnlyShard:
        """The shard as of its published checkpoint. LedgerError when it cannot be read."""
        try:
            vkey = read_file(shard.vkey).decode().strip()
            note = read_file(shard.checkpoint)
            head = _open_checkpoint(note, vkey)
        except (OSError, UnicodeDecodeError, verify.VerificationError) as error:
            raise LedgerError(f"{shard.name} cannot be read: {error}") from None
        return cls(shard, head.origin, vkey, head.size, head.root, note)

    def entry(self, index: int) -> bytes:
        """The bytes of an entry. LedgerError."""
        return self._prove(index)[0]

    def receipt(self, index: int) -> bytes:
        """The tlog-proof of an entry. LedgerError."""
        return self._prove(index)[1]

    def _prove(self, index: int) -> tuple[bytes, bytes]:
        reader = TileReader(self.shard.published, self.published_size)
        try:
            entry, proof = reader.prove(index, self.note)
            path = reader.inclusion_path(index)
        except TileError as error:
            raise LedgerError(f"{self.shard.name}: {error}") from None
        # A damaged file must not become a receipt that nobody can verify.
        try:
            verify_inclusion(leaf_hash(entry), index, self.published_size, self.root, path)
        except Exception as error:
            advice = "run `aegis-c ledger fsck` on it"
            raise LedgerError(f"{self.shard.name}, entry {index}: {error}; {advice}") from None
        return entry, proof

    def salt(self, request_id: str, role: str, *, secret: bytes | None = None) -> bytes:
        """The salt of a body, from the subject's secret, by default the shard's. LedgerError."""
        try:
            secret = secret or read_file(self.shard.private / "subject.secret")
        except OSError as error:
            raise LedgerError(f"{self.shard.name}: no subject secret: {error.strerror}") from None
        key = ids.parse(request_id) or b""
        message = b"aegis/salt/v1" + key + role.encode().ljust(8, b"\0")
        return hmac.digest(secret, message, "sha256")


def find(directory: DataDir, request_id: str, *, but: str) -> list[tuple[ReadOnlyShard, list[int]]]:
    """The published entries of a request in every shard of the directory other than `but`.

    Raises LedgerError when a shard cannot be read: then nobody can say what it holds.
    """
    found = []
    for shard in directory.shards():
        if shard.name == but or not shard.checkpoint.exists():
            continue  # nothing was ever published there
        indices = ids.find(shard, request_id)
        if indices:
            found.append((ReadOnlyShard.open(shard), indices))
    return found
