"""A process to be killed: appends numbered records as fast as it can, and tells through a shared
file what append returned and what it saw durable. `python wal_child.py LOG TOLD SEED`."""

from __future__ import annotations

import mmap
import random
import struct
import sys

from aegis_c import WalFull, WalWriter


def payload_of(seq: int) -> bytes:
    rng = random.Random(seq)
    return struct.pack("<Q", seq) + rng.randbytes(rng.randrange(0, 1500))


def main() -> None:
    path, told_path, seed = sys.argv[1], sys.argv[2], int(sys.argv[3])
    rng = random.Random(seed)
    with open(told_path, "r+b") as file:
        told = mmap.mmap(file.fileno(), 24)
    wal = WalWriter(path, segment_bytes=1 << 18, ring_bytes=1 << 18, max_delay_us=500)
    seq = wal.durable_seq
    struct.pack_into("<Q", told, 16, seq + 1)  # open, with so many records recovered (+ 1)
    while True:
        try:
            seq = wal.append(payload_of(seq + 1))
        except WalFull:
            wal.sync()
            continue
        struct.pack_into("<Q", told, 0, seq)
        if rng.random() < 0.02:
            struct.pack_into("<Q", told, 8, wal.sync())
        if rng.random() < 0.005:
            wal.release(wal.durable_seq)


if __name__ == "__main__":
    main()
