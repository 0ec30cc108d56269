"""The native ledger's files and proofs, byte for byte against the reference implementation.

The reference was written from RFC 6962, RFC 8032 and the C2SP texts and shares no code with the
product; `cryptography` signs where the reference would be too slow.
"""

import json
import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from aegis_c import Ledger, LedgerError
from aegis_c.ledger import fsck, layout, verify
from aegis_c.ledger.tiles import TileReader
from logs import entry, request_id
from reference import commitment, note, proof_text, receipt, tiles, tree

EAGER: dict[str, Any] = {"publish_gap_us": 0, "max_delay_us": 0}


class Log:
    """An open ledger and what it must look like."""

    def __init__(self, data: Path) -> None:
        self.shard = layout.DataDir(data).shard("w0")
        self.ledger = Ledger(self.shard.published, **EAGER)
        pem = (self.shard.private / "log.key").read_bytes()
        key = load_pem_private_key(pem, None)
        assert isinstance(key, Ed25519PrivateKey)
        self.key = key
        self.public = key.public_key().public_bytes_raw()

    def checkpoint(self, entries: Sequence[bytes]) -> bytes:
        """The checkpoint that this log must sign, Ed25519 being deterministic."""
        origin = self.ledger.origin
        text = note.checkpoint_text(origin, len(entries), tree.mth(entries))
        signature = self.key.sign(text.encode())
        line = note.signature_line(origin, note.key_id(origin, self.public), signature)
        return (text + "\n" + line).encode()

    def compare(self, entries: Sequence[bytes]) -> None:
        """The folder holds the log of these entries, byte for byte."""
        folder = self.shard.published
        vkey = note.vkey(self.ledger.origin, self.public) + "\n"
        assert (folder / "log.vkey").read_text() == vkey
        if entries:
            assert (folder / "checkpoint").read_bytes() == self.checkpoint(entries)
        for name, content in tiles.log_files(entries).items():
            assert (folder / name).read_bytes() == content, name

    def compare_all(self, entries: Sequence[bytes]) -> None:
        """As compare; and beside that it holds only prefixes of the tiles and bundles."""
        self.compare(entries)
        folder = self.shard.published
        names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
        expected = tiles.log_files(entries)
        for name in names - {"checkpoint", "log.vkey", *expected}:
            base = name.partition(".p/")[0]
            (later,) = (n for n in expected if n == base or n.startswith(base + ".p/"))
            assert expected[later].startswith((folder / name).read_bytes()), name


def test_the_files_of_every_size_up_to_600(tmp_path: Path) -> None:
    log = Log(tmp_path)
    log.compare_all([])
    entries: list[bytes] = []
    for size in range(1, 601):
        meta = entry(size)
        index = log.ledger.submit(meta)
        entries.append(meta)
        log.ledger.wait(index, "published")
        log.compare(entries)
        if size % 100 == 0:
            log.compare_all(entries)
        assert log.ledger.checkpoint() == (log.shard.published / "checkpoint").read_bytes()
        if size in (1, 255, 256, 257, 400):  # what is reopened goes on as if it had not been
            log.ledger.close()
            log = Log(tmp_path)
            log.compare(entries)
    seed = log.key.private_bytes_raw()
    reference_note = note.checkpoint(log.ledger.origin, 600, tree.mth(entries), seed)
    assert log.ledger.checkpoint() == reference_note
    log.ledger.close()
    assert fsck.check_shard(log.shard.published).problems == []


def test_the_files_at_the_edge_of_the_third_level(tmp_path: Path) -> None:
    log = Log(tmp_path)
    entries = [b'{"n":%d}' % number for number in range(65_537)]
    for size in (65_535, 65_536, 65_537):
        for meta in entries[log.ledger.size : size]:
            log.ledger.submit(meta)
        log.ledger.wait(size - 1, "published")
        log.compare_all(entries[:size])
        for index in (0, 255, 256, 65_279, 65_534, size - 1):
            path = tree.inclusion_path(index, entries[:size])
            assert log.ledger.inclusion_proof(index) == path
            assert TileReader(log.shard.published, size).inclusion_path(index) == path
        for old in (1, 256, 65_280, 65_535):
            proof = tree.consistency_proof(old, entries[:size])
            assert log.ledger.consistency_proof(old) == proof
    log.ledger.close()


def test_every_proof_of_small_sizes(tmp_path: Path) -> None:
    log = Log(tmp_path)
    entries = [entry(number) for number in range(70)]
    for meta in entries:
        log.ledger.submit(meta)
    log.ledger.wait(69, "published")
    whole = tree.Tree(entries)
    for size in range(71):
        assert log.ledger.root(size) == whole.root(size)
        for index in range(size):
            path = whole.inclusion_path(index, size)
            assert log.ledger.inclusion_proof(index, size) == path
            verify.verify_inclusion(
                verify.leaf_hash(entries[index]), index, size, whole.root(size), path
            )
        for old in range(size + 1):
            assert log.ledger.consistency_proof(old, size) == whole.consistency_proof(old, size)
    key = verify.parse_vkey(log.ledger.vkey)
    reader = TileReader(log.shard.published, 70)
    point = log.checkpoint(entries)
    for index in range(70):
        text = proof_text.proof_text(index, whole.inclusion_path(index, 70), point)
        assert log.ledger.receipt(index) == text
        assert reader.prove(index, point) == (entries[index], text)
        assert verify.verify_proof(text, log.ledger.entry(index), key)[0] == index
    for old in range(71):
        assert reader.consistency_proof(old) == whole.consistency_proof(old, 70)
    log.ledger.close()


def test_proofs_of_what_does_not_exist_are_refused(tmp_path: Path) -> None:
    with Ledger(tmp_path / "ledger/w0") as ledger:
        for call in (
            lambda: ledger.inclusion_proof(0, 0),
            lambda: ledger.inclusion_proof(1, 1),
            lambda: ledger.consistency_proof(0, 1),
            lambda: ledger.consistency_proof(2, 1),
            lambda: ledger.receipt(0),
            lambda: ledger.entry(0),
        ):
            with pytest.raises((IndexError, LedgerError)):
                call()


def test_entries_and_commitments_are_those_of_the_reference(tmp_path: Path) -> None:
    log = Log(tmp_path)
    secret = (log.shard.private / "subject.secret").read_bytes()
    bodies: list[tuple[bytes | None, bytes | None]] = [
        (None, None),
        (b"", b""),
        (b"question", None),
        (None, b"answer"),
        (bytes(range(256)) * 300, "é".encode() * 99),
    ]
    for number, (request, response) in enumerate(bodies):
        meta = entry(number)
        log.ledger.submit(meta, request, response)
        own = b"tenant secret %d" % number
        log.ledger.submit(meta, request, response, secret=own)
        log.ledger.wait(2 * number + 1, "integrated")
        members = json.loads(meta)
        for index, used in ((2 * number, secret), (2 * number + 1, own)):
            expected = receipt.with_bodies(members, used, request, response)
            assert log.ledger.entry(index) == expected
        piecewise = log.ledger.commitment(request_id(number), "request")
        for at in range(0, len(request or b""), 1000):
            piecewise.update((request or b"")[at : at + 1000])
        digest = commitment.commitment(secret, request_id(number), "request", request or b"")
        assert piecewise.finish() == (len(request or b""), digest)
        for role in ("request", "response"):
            salt = commitment.salt(secret, request_id(number), role)
            assert log.ledger.salt(request_id(number), role) == salt
            assert log.ledger.salt(request_id(number), role, secret=own) == commitment.salt(
                own, request_id(number), role
            )
    log.ledger.close()


@pytest.mark.parametrize("umask", [0, 0o022, 0o077])
def test_what_lies_where_with_which_mode(tmp_path: Path, umask: int) -> None:
    """docs/formats.md, section 8: nothing else, and nothing more open than this."""
    data = tmp_path / "data"
    before = os.umask(umask)
    try:
        layout.DataDir(data).create()
        with Ledger(layout.DataDir(data).shard("w0").published, **EAGER) as ledger:
            ledger.wait(ledger.submit(entry(0)), "published")
    finally:
        os.umask(before)
    found = {
        str(path.relative_to(data)): stat.S_IMODE(path.stat().st_mode)
        for path in data.rglob("*")
        if "/wal/" not in str(path)
    }
    folder, private, file, secret = (mode & ~umask for mode in (0o750, 0o700, 0o640, 0o600))
    assert found == {
        "ledger": folder,
        "ledger/w0": folder,
        "ledger/w0/checkpoint": file,
        "ledger/w0/log.vkey": file,
        "ledger/w0/tile": folder,
        "ledger/w0/tile/0": folder,
        "ledger/w0/tile/0/000.p": folder,
        "ledger/w0/tile/0/000.p/1": file,
        "ledger/w0/tile/entries": folder,
        "ledger/w0/tile/entries/000.p": folder,
        "ledger/w0/tile/entries/000.p/1": file,
        "private": private,
        "private/w0": private,
        "private/w0/LOCK": secret,
        "private/w0/checkpoint": secret,
        "private/w0/identity": secret,
        "private/w0/ids": private,
        "private/w0/ids/00000000.tail": secret,
        "private/w0/log.key": secret,
        "private/w0/subject.secret": secret,
        "private/w0/wal": private,
    }
    for path in (data / "private/w0/wal").rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0
