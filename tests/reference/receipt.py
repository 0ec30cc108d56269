"""Entries with commitments, and the two forms of a receipt (docs/formats.md)."""

import base64
import json
from collections.abc import Sequence
from typing import Any

from . import commitment, ed25519, note
from .proof_text import proof_text
from .tree import inclusion_path, mth


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def with_bodies(
    members: dict[str, Any], secret: bytes, request: bytes | None, response: bytes | None
) -> bytes:
    """The final bytes of an entry: its members, then what it says about the bodies."""
    entry = dict(members)
    for role, octets in (("request", request), ("response", response)):
        if octets is not None:
            digest = commitment.commitment(secret, members["id"], role, octets)
            entry[role] = {"bytes": len(octets), "commitment": b64(digest)}
    return json.dumps(entry, separators=(",", ":"), ensure_ascii=False).encode()


def tlog_proof(entries: Sequence[bytes], index: int, origin: str, seed: bytes) -> bytes:
    checkpoint = note.checkpoint(origin, len(entries), mth(entries), seed)
    return proof_text(index, inclusion_path(index, entries), checkpoint)


def json_receipt(
    entries: Sequence[bytes], request_id: str, origin: str, seed: bytes, secret: bytes
) -> dict[str, Any]:
    items = []
    for index, entry in enumerate(entries):
        members = json.loads(entry)
        if members["id"] == request_id:
            items.append(
                {
                    "index": index,
                    "kind": members["kind"],
                    "state": "published",
                    "entry": entry.decode(),
                    "proof": tlog_proof(entries, index, origin, seed).decode(),
                }
            )
    return {
        "id": request_id,
        "origin": origin,
        "vkey": note.vkey(origin, ed25519.public_key(seed)),
        "entries": items,
        "salts": {
            role: b64(commitment.salt(secret, request_id, role)) for role in ("request", "response")
        },
    }
