"""The id column of a ledger, from docs/formats.md section 5: the files, and looking up in them."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence

from .wal import crc32c, mask

PAGE, SLOTS, RUN = 4096, 255, 255 * 1024
TAIL, SORTED, HEAD = 1, 2, 3
NONE = bytes(16)


def tag(vkey: str) -> bytes:
    return hashlib.sha256(vkey.strip().encode()).digest()[:8]


def page(tag: bytes, kind: int, first: int, records: Sequence[bytes], count: int) -> bytes:
    """A page with its header; the records are padded with zeros."""
    rest = struct.pack("<HHQ", count, kind, first) + b"".join(records)
    rest = rest.ljust(PAGE - 4, b"\0")
    return struct.pack("<I", mask(crc32c(tag + rest))) + rest


def pages_of(records: Sequence[bytes]) -> list[Sequence[bytes]]:
    return [records[at : at + SLOTS] for at in range(0, len(records), SLOTS)]


def tail(tag: bytes, first: int, ids: Sequence[bytes]) -> bytes:
    """The file of a run that grows: `first` is its first entry."""
    parts = enumerate(pages_of(ids))
    return b"".join(page(tag, TAIL, first + n * SLOTS, some, len(some)) for n, some in parts)


def sorted_records(ids: Sequence[bytes]) -> list[bytes]:
    """What a full run is sorted into."""
    return sorted(
        hashlib.sha256(one).digest()[:12] + struct.pack(">I", offset)
        for offset, one in enumerate(ids)
        if one != NONE
    )


def head_of_run(ids: Sequence[bytes]) -> list[bytes]:
    """The records of page 0 of a full run."""
    known = [one for one in ids if one != NONE]
    return [struct.pack("<I", len(known)).ljust(16, b"\0"), min(known), max(known)]


def find(files: dict[str, bytes], request_id: bytes) -> list[int]:
    """Indices of the entries of an id, by the names and contents of whole files; a run wins over
    its tail. Checksums are not looked at."""
    found = []
    for number in sorted({int(name.partition(".")[0], 16) for name in files}):
        run = files.get(f"{number:08x}.run")
        data = run[PAGE:] if run is not None else files[f"{number:08x}.tail"]
        for n, at in enumerate(range(0, len(data), PAGE)):
            count = struct.unpack_from("<H", data, at + 4)[0]
            for slot in range(count):
                record = data[at + 16 * (slot + 1) : at + 16 * (slot + 2)]
                if run is None and record == request_id:
                    found.append(number * RUN + n * SLOTS + slot)
                elif run is not None and record[:12] == hashlib.sha256(request_id).digest()[:12]:
                    found.append(number * RUN + struct.unpack(">I", record[12:])[0])
    return sorted(found)
