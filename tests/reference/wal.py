"""The format of the write-ahead log and its recovery, slow and plain: the twin that the native
code is compared with. Formats: aegis_c/core/wal/format.h. Pure Python, whole files in memory."""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass, field
from pathlib import Path

BLOCK, SECTOR, HEADER = 4096, 512, 64
PAYLOAD_MAX, BATCH_MAX = 1 << 20, (1 << 20) + BLOCK
MARKER, SEAL, CLEAN = 1, 4, 8
_M64 = (1 << 64) - 1

_TABLE = []
for _n in range(256):
    for _ in range(8):
        _n = (_n >> 1) ^ (0x82F63B78 if _n & 1 else 0)
    _TABLE.append(_n)


class Refused(Exception):
    """Recovery does not go on: damage that is no unfinished write."""


def crc32c(data: bytes, crc: int = 0) -> int:
    """CRC-32C (RFC 3720 appendix B.4)."""
    crc ^= 0xFFFFFFFF
    for byte in data:
        crc = (crc >> 8) ^ _TABLE[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF


def mask(crc: int) -> int:
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def pad8(n: int) -> int:
    return -(-n // 8) * 8


def extent(body: int) -> int:
    return -(-(HEADER + body + 8) // BLOCK) * BLOCK


def whitening_word(key: int) -> bytes:
    word = key * 0x9E3779B97F4A7C15 & _M64
    word = (word ^ word >> 30) * 0xBF58476D1CE4E5B9 & _M64
    word = (word ^ word >> 27) * 0x94D049BB133111EB & _M64
    return (word ^ word >> 31).to_bytes(8, "little")


def whiten(data: bytes, key: int) -> bytes:
    word = whitening_word(key) * (len(data) // 8)
    return bytes(a ^ b for a, b in zip(data, word, strict=True))


@dataclass
class SegmentHeader:
    wal_id: int
    number: int
    epoch: int
    first_seq: int
    prev_len: int = 0
    prev_seq: int = 0
    prev_crc: int = 0
    flags: int = 0
    crc: int = 0

    _FORM = struct.Struct("<8sQIIQQQIII")

    def encode(self) -> bytes:
        head = self._FORM.pack(
            b"AGWSEG\0\1", self.wal_id, self.number, self.epoch, self.first_seq, self.prev_len,
            self.prev_seq, self.prev_crc, self.flags, 0,
        )  # fmt: skip
        self.crc = mask(crc32c(head))
        return (head + struct.pack("<I", self.crc)).ljust(BLOCK, b"\xff")

    @classmethod
    def decode(cls, block: bytes) -> SegmentHeader | None:
        magic, *fields, _zero = cls._FORM.unpack(block[:60])
        (crc,) = struct.unpack("<I", block[60:64])
        whole = crc == mask(crc32c(block[:60])) and block[64:] == b"\xff" * (BLOCK - 64)
        if not whole or magic != b"AGWSEG\0\1":
            return None
        return cls(*fields, crc)


@dataclass
class BatchHeader:
    flags: int
    whitening: int
    wal_id: int
    number: int
    block: int
    first_seq: int
    durable: int
    nrec: int
    body_len: int
    body_crc: int
    prev_crc: int
    epoch: int
    crc: int = 0

    _FORM = struct.Struct("<4sBBHQIIQQIIIII")

    def encode(self) -> bytes:
        head = self._FORM.pack(
            b"AGBT", 1, self.flags, self.whitening, self.wal_id, self.number, self.block,
            self.first_seq, self.durable, self.nrec, self.body_len, self.body_crc,
            self.prev_crc, self.epoch,
        )  # fmt: skip
        self.crc = mask(crc32c(head))
        return head + struct.pack("<I", self.crc)

    @classmethod
    def decode(cls, data: bytes) -> BatchHeader | None:
        magic, version, *fields = cls._FORM.unpack(data[:60])
        (crc,) = struct.unpack("<I", data[60:64])
        if magic != b"AGBT" or version != 1 or crc != mask(crc32c(data[:60])):
            return None
        return cls(*fields, crc)


def record(seq: int, payload: bytes) -> bytes:
    crc = mask(crc32c(struct.pack("<QI", seq, len(payload)) + payload))
    return struct.pack("<II", len(payload), crc) + payload.ljust(pad8(len(payload)), b"\xff")


def seal_batch(header: BatchHeader, records: bytes) -> bytes:
    """The whole batch on disk; fills lengths, checksums and whitening of `header`."""
    header.body_len = len(records)
    body = records.ljust(extent(len(records)) - HEADER, b"\xff")

    def zero_sector(data: bytes) -> bool:
        starts = range(SECTOR - HEADER, len(data), SECTOR)
        return any(not any(data[at : at + SECTOR]) for at in starts)

    plain, header.whitening = body, 0
    while zero_sector(body):
        header.whitening += 1
        body = whiten(plain, header.whitening)
    header.body_crc = crc32c(body)
    return header.encode() + body


@dataclass
class Position:
    number: int
    wal_id: int
    epoch: int
    at: int
    next_seq: int
    crc: int
    sealed: bool = False
    records: list[tuple[int, bytes]] = field(default_factory=list)


def _check(condition: bool, what: str) -> None:
    if not condition:
        raise Refused(what)


def _records(header: BatchHeader, body: bytes) -> list[tuple[int, bytes]]:
    if header.whitening:
        body = whiten(body, header.whitening)
    found, at = [], 0
    for k in range(header.nrec):
        n, crc = struct.unpack_from("<II", body, at)
        payload = body[at + 8 : at + 8 + n]
        found.append((header.first_seq + k, payload))
        _check(record(header.first_seq + k, payload)[4:8] == struct.pack("<I", crc), "record")
        at += 8 + pad8(n)
    return found


def _step(data: bytes, p: Position) -> tuple[str, BatchHeader | None]:
    """("batch" | "end" | "header" | "body", header) at p.at; moves p over a good batch."""
    if p.at + BLOCK > len(data):
        return "end", None
    header = BatchHeader.decode(data[p.at : p.at + HEADER])
    if header is None:
        return "header", None
    size = extent(header.body_len)
    belongs = (header.wal_id, header.number, header.block, header.epoch, header.first_seq,
               header.prev_crc) == (p.wal_id, p.number, p.at // BLOCK, p.epoch, p.next_seq,
                                    p.crc)  # fmt: skip
    empty = header.nrec == 0
    _check(belongs and header.durable < header.first_seq and p.at + size <= len(data), "identity")
    _check(empty == (header.body_len == 0) == bool(header.flags & (MARKER | SEAL)), "counts")
    body = data[p.at + HEADER : p.at + size]
    if crc32c(body) != header.body_crc:
        return "body", header
    p.records += _records(header, body)
    p.at += size
    p.next_seq += header.nrec
    p.crc = header.crc
    p.sealed = bool(header.flags & SEAL)
    return "batch", header


def _judge_tail(data: bytes, p: Position, why: str, header: BatchHeader | None) -> None:
    """Raises unless the damage at p.at is an unfinished last write."""
    tail = data[p.at :]
    size = extent(header.body_len) if header is not None else BLOCK
    for at in range(p.at + size, len(data), BLOCK):
        later = BatchHeader.decode(data[at : at + HEADER])
        if later is not None and (later.wal_id, later.number) == (p.wal_id, p.number):
            same_place = later.block == at // BLOCK and later.first_seq >= p.next_seq
            _check(not same_place, "a later batch")
    if header is not None:
        _check(not any(tail[size:]), "data behind a damaged batch")
        sectors = (tail[at : at + SECTOR] for at in range(0, size, SECTOR))
        last, padding = tail[size - 8 : size], b"\xff" * 8
        if header.whitening:
            padding = whiten(padding, header.whitening)
        n = next((i for i in range(8) if last[i] != padding[i]), 8)
        completed = crc32c(tail[HEADER : size - 8] + padding) == header.body_crc
        cut = n < 8 and not any(last[n:]) and completed
        _check(any(not any(s) for s in sectors) or not any(last) or cut, "whole but damaged")
    elif any(tail[HEADER:]):
        _check(not any(tail[:SECTOR]) and not any(tail[BATCH_MAX:]), "a damaged header")


@dataclass
class Recovered:
    last_seq: int
    records: list[tuple[int, bytes]]
    torn: bool


def recover(directory: Path) -> Recovered:
    """Reads a whole log; raises Refused."""
    log = (directory / "LOG").read_bytes()
    _check(len(log) >= HEADER and log[:8] == b"AGWALOG\1", "LOG")
    crc = struct.unpack_from("<I", log, 60)[0]
    _check(crc == mask(crc32c(log[:60] + log[HEADER:])), "LOG checksum")
    wal_id, size, block, _epoch, first_live, opened, _blob = struct.unpack_from("<QIIIIII", log, 8)
    first_seq, low_water, first_crc = struct.unpack_from("<QQI", log, 40)
    _check(block == BLOCK, "block size")
    name = re.compile("wal-([0-9a-f]{16}).seg")
    matches = (name.fullmatch(path.name) for path in directory.iterdir())
    numbers = sorted(int(m[1], 16) for m in matches if m)
    numbers = [n for n in numbers if n >= first_live]
    _check(numbers == list(range(first_live, first_live + len(numbers))) != [], "missing segment")
    files = [(directory / f"wal-{n:016x}.seg").read_bytes() for n in numbers]
    _check(all(len(data) == size for data in files), "size")
    headers = [SegmentHeader.decode(data[:BLOCK]) for data in files]
    for k, header in enumerate(headers):
        if header is None:
            _check(k + 1 == len(files) and not any(files[k][BLOCK:]), "segment header")
    active = [h for h in headers if h is not None]
    last_active = numbers[len(active) - 1] if active else first_live - 1
    _check(opened <= last_active, "the last segments are missing")
    records: list[tuple[int, bytes]] = []
    end_len, end_seq, end_crc, end_epoch = None, first_seq - 1, first_crc, 0
    torn = False
    for k, head in enumerate(active):
        _check((head.wal_id, head.number) == (wal_id, numbers[k]), "another log or segment")
        chained = (head.prev_seq, head.first_seq, head.prev_crc) == (end_seq, end_seq + 1, end_crc)
        _check(chained and head.epoch >= end_epoch, "does not continue")
        _check(end_len is None or head.prev_len == end_len, "does not continue")
        p = Position(head.number, wal_id, head.epoch, BLOCK, head.first_seq, head.crc)
        certified = active[k + 1].prev_len if k + 1 < len(active) else None
        why, bad = "batch", None
        while why == "batch" and not p.sealed and (certified is None or p.at < certified):
            why, bad = _step(files[k], p)
        if certified is not None:
            _check(p.at == certified, "damage before the certified end")
        elif why != "end" and any(files[k][p.at :]):
            _check(not p.sealed, "data behind a seal")
            _judge_tail(files[k], p, why, bad if why == "body" else None)
            torn = True
        elif p.sealed:
            _check(len(files) > len(active), "the segment behind a sealed one is missing")
        records += p.records
        end_len, end_seq, end_crc, end_epoch = p.at, p.next_seq - 1, p.crc, head.epoch
    _check(low_water <= end_seq, "ends before the low-water mark")
    return Recovered(end_seq, records, torn)


def create(directory: Path, batches: list[list[bytes]], *, size: int = 65536) -> None:
    """Writes a log of one segment with these batches, as the native writer would."""
    wal_id = 0x1122334455667788
    head = SegmentHeader(wal_id, 1, 1, 1)
    data = head.encode()
    crc, seq = head.crc, 1
    for payloads in batches:
        header = BatchHeader(
            0 if payloads else MARKER, 0, wal_id, 1, len(data) // BLOCK, seq, seq - 1,
            len(payloads), 0, 0, crc, 1,
        )  # fmt: skip
        data += seal_batch(header, b"".join(record(seq + k, p) for k, p in enumerate(payloads)))
        seq += len(payloads)
        crc = header.crc
    directory.mkdir(parents=True)
    (directory / "wal-0000000000000001.seg").write_bytes(data.ljust(size, b"\0"))
    log = struct.pack("<8sQIIIIIIQQI", b"AGWALOG\1", wal_id, size, BLOCK, 1, 1, 1, 0, 1, 0, 0)
    (directory / "LOG").write_bytes(log + struct.pack("<I", mask(crc32c(log))))
