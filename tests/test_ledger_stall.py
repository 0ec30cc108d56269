"""A ledger on a disk that hangs: a real process with the faulty build. Nothing is timed here; the
latency is measured by `python -m benchmarks.stall`."""

from __future__ import annotations

from pathlib import Path

from io_faults import Faults

STALLED = """
import sys
from aegis_c import Ledger
from io_faults import Faults, wait_for

faults = Faults.inherited()
entry = b'{"pad":"' + b"x" * 1014 + b'"}'
with Ledger(sys.argv[1]) as ledger:
    ledger.submit(entry)
    ledger.wait(0, "durable")
    with faults.stall("fdatasync"), faults.stall("pwrite", path="wal-"):
        for index in range(1, 10_001):  # two seconds of 5,000 a second: LedgerFull would be raised
            assert ledger.submit(entry) == index
        assert ledger.durable_size < 5_000
    ledger.wait(10_000, "published", timeout=60)
with Ledger(sys.argv[1]) as ledger:
    assert len(ledger) == 10_001
    assert all(ledger.entry(index) == entry for index in range(0, 10_001, 100))
"""


def test_two_seconds_of_a_stalled_disk_fit_into_the_ring(tmp_path: Path) -> None:
    Faults(tmp_path / "rules").run(STALLED, tmp_path / "w0")
