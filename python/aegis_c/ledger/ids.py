"""Which entries belong to a request id, for a process that does not own the log.

The owner asks its own `Ledger.find`, which knows submitted entries too. Anybody else who may read
the private folder looks into the same id column beside it (docs/formats.md): other workers, tools.
What they find is what the published checkpoint covers, so each entry can be read and proven.
"""

from __future__ import annotations

import uuid

from aegis_c import _native

from .layout import Shard


def find(shard: Shard, request_id: str) -> list[int]:
    """Indices of the published entries of a request, ascending; empty for an unknown id.

    Reads a few pages of files, more where the column is damaged: not for an event loop. Raises
    LedgerError when the shard's published files cannot be read.
    """
    key = parse(request_id)
    return [] if key is None else _native._find_entries(shard.published, shard.private, key)


def parse(request_id: str) -> bytes | None:
    """The 16 bytes of an id in its usual text form, a lower-case UUID; None for other text."""
    try:
        parsed = uuid.UUID(request_id)
    except ValueError:
        return None
    return parsed.bytes if str(parsed) == request_id else None
