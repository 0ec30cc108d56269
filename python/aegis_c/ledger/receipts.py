"""Builds receipts from a ledger; their forms are in docs/formats.md.

These functions read files: call them in a thread, not on the event loop.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from typing import Any, Literal, Protocol

from aegis_c import LedgerError

_Role = Literal["request", "response"]


class Source(Protocol):
    """What a receipt is made from: an aegis_c.Ledger, or a shard that is only read."""

    @property
    def origin(self) -> str: ...
    @property
    def vkey(self) -> str: ...
    @property
    def published_size(self) -> int: ...
    def entry(self, index: int, /) -> bytes: ...
    def receipt(self, index: int, /) -> bytes: ...
    def salt(
        self,
        request_id: str,
        role: Literal["request", "response"],
        /,
        *,
        secret: bytes | None = None,
    ) -> bytes: ...


def build_receipt(
    native: Source, request_id: str, indices: Sequence[int], *, secret: bytes | None = None
) -> dict[str, Any]:
    """The JSON receipt of a request whose entries are `indices`.

    Each entry comes with its exact bytes (as text: entries are UTF-8) and the proof that the
    last published checkpoint covers it; `proof` is null until one does. `secret` is the
    subject's secret, by default the shard's. Raises LedgerError for an entry that cannot be
    read yet.
    """
    return {
        "id": request_id,
        "origin": native.origin,
        "vkey": native.vkey,
        "entries": [_item(native, index) for index in indices],
        "salts": {
            "request": _base64(native.salt(request_id, "request", secret=secret)),
            "response": _base64(native.salt(request_id, "response", secret=secret)),
        },
    }


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _item(native: Source, index: int) -> dict[str, Any]:
    entry = native.entry(index)
    proof = None
    if index < native.published_size:
        try:
            proof = native.receipt(index).decode()
        except LedgerError:  # the tiles cannot be read just now: the entry still counts
            proof = None
    return {
        "index": index,
        "kind": json.loads(entry)["kind"],
        "state": "integrated" if proof is None else "published",
        "entry": entry.decode(),
        "proof": proof,
    }
