"""Which entries belong to a request id.

In memory, rebuilt from the entries when a ledger is opened: that takes time and memory in
proportion to the log, about 6 s and 150 MB for a million entries of 500 bytes.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec


class _Head(msgspec.Struct):
    """The members of an entry that the index needs."""

    id: str
    kind: str
    of: int | None = None


_decode = msgspec.json.Decoder(_Head).decode


class IdIndex:
    """Maps request ids to entry indices. Not thread-safe: it belongs to the event loop."""

    def __init__(self) -> None:
        # A lone index is kept as itself: most ids have one entry.
        self._indices: dict[bytes, int | list[int]] = {}
        self._open: dict[int, None] = {}

    @classmethod
    def rebuild(cls, entries: Iterable[bytes]) -> IdIndex:
        """The index of a log, from all its entries in order. O(n)."""
        index = cls()
        for number, entry in enumerate(entries):
            try:
                head = _decode(entry)
            except msgspec.DecodeError:
                continue  # belongs to no request; fsck names such an entry
            index.add(head.id, number)
            if head.kind == "intent":
                index._open[number] = None
            elif head.kind == "settle" and head.of is not None:
                index._open.pop(head.of, None)
        return index

    def add(self, request_id: str, index: int) -> None:
        """Notes that entry `index` belongs to `request_id` (indices grow from call to call)."""
        key = _key(request_id)
        known = self._indices.get(key)
        if known is None:
            self._indices[key] = index
        elif isinstance(known, int):
            self._indices[key] = [known, index]
        else:
            known.append(index)

    def indices(self, request_id: str) -> list[int]:
        """The entries of a request, oldest first; empty for an unknown id."""
        known = self._indices.get(_key(request_id), [])
        return [known] if isinstance(known, int) else list(known)

    def open_intents(self) -> list[int]:
        """Intents that had no settle when the ledger was opened, oldest first."""
        return list(self._open)

    def __len__(self) -> int:
        return len(self._indices)


def _key(request_id: str) -> bytes:
    """16 bytes for a UUID in its usual text form, else the text itself (never 16 bytes)."""
    if len(request_id) == 36:
        try:
            raw = bytes.fromhex(request_id.replace("-", ""))
        except ValueError:
            pass
        else:
            if len(raw) == 16 and request_id == request_id.lower():
                return raw
    return b"id:" + request_id.encode("utf-8", "replace").ljust(14, b"\x00")
