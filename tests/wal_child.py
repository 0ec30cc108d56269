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
        # Items of such a view are stored whole; struct.pack_into clears the place first, which a
        # kill can leave behind.
        told = memoryview(mmap.mmap(file.fileno(), 24)).cast("Q")
    wal = WalWriter(path, segment_bytes=1 << 18, ring_bytes=1 << 18, max_delay_us=500)
    seq = wal.durable_seq
    told[2] = seq + 1  # open, with so many records recovered (+ 1)
    while True:
        try:
            seq = wal.append(payload_of(seq + 1))
        except WalFull:
            wal.sync()
            continue
        told[0] = seq
        if rng.random() < 0.02:
            told[1] = wal.sync()
        if rng.random() < 0.005:
            wal.release(wal.durable_seq)


if __name__ == "__main__":
    main()
