"""`submit` while the disk stalls: 5,000 entries of 1 KiB a second, two seconds without a sync.

    python -m benchmarks.stall [--rounds N] [--seconds S] [--json]

In a process of its own, with the build whose disk can be made to hang (tests/io_faults.py): in each
round every entry is timed for S seconds (2) on a disk that works, S seconds while each write and
sync of the log hangs, and S seconds after. All entries must be durable at the end. Prints a table,
or JSON: microseconds, the median of the rounds' p50 and p99, and the largest of all.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.machine import describe

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from io_faults import Faults

RATE = 5_000
ENTRY_BYTES = 1024
PHASES = ("before", "during", "after")

_CHILD = """
import json, sys, time
from pathlib import Path
import aegis_c
from io_faults import Faults, wait_for

folder, rounds, seconds, rate, size = sys.argv[1], *map(int, sys.argv[2:])
faults = Faults.inherited()
clock = time.perf_counter_ns
entry = b'{"pad":"' + b"x" * (size - 10) + b'"}'


def timed(ledger):
    step, count = 1_000_000_000 // rate, rate * seconds
    took, due = [0] * count, clock()
    for i in range(count):
        while clock() < due:
            pass
        started = clock()
        ledger.submit(entry)
        took[i] = clock() - started
        due += step
    return sorted(took)


results = {"before": [], "during": [], "after": []}
with aegis_c.Ledger(Path(folder) / "ledger" / "w0") as ledger:
    timed(ledger)  # everything is warm
    for _ in range(rounds):
        ledger.wait(len(ledger) - 1, "durable")
        results["before"].append(timed(ledger))
        with faults.stall("fdatasync"), faults.stall("pwrite", path="wal-") as writes:
            results["during"].append(timed(ledger))
            assert len(ledger) - ledger.durable_size > rate * seconds * 9 // 10, "no stall"
        results["after"].append(timed(ledger))
    ledger.wait(len(ledger) - 1, "published")
    assert ledger.published_size == len(ledger)
print(json.dumps({
    phase: [[took[len(took) // 2], took[len(took) * 99 // 100], took[-1]] for took in runs]
    for phase, runs in results.items()
}))
"""


def measure(folder: Path, rounds: int, seconds: int) -> dict[str, dict[str, float]]:
    """Microseconds by phase: p50, p99, max."""
    faults = Faults(folder / "rules")
    arguments = (folder, rounds, seconds, RATE, ENTRY_BYTES)
    found: dict[str, Any] = json.loads(faults.run(_CHILD, *arguments, seconds=600))
    return {
        phase: {
            "p50": statistics.median(run[0] for run in found[phase]) / 1e3,
            "p99": statistics.median(run[1] for run in found[phase]) / 1e3,
            "max": max(run[2] for run in found[phase]) / 1e3,
        }
        for phase in PHASES
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="aegis-stall-") as folder:
        found = measure(Path(folder), options.rounds, options.seconds)
    if options.json:
        print(json.dumps({"machine": describe(), "submit_us": found}))
        return
    print(f"submit of {ENTRY_BYTES} bytes, {RATE} a second; stalled for {options.seconds} s")
    print(f"{'us':<8}{'p50':>8}{'p99':>8}{'max':>10}")
    for phase, values in found.items():
        print(f"{phase:<8}{values['p50']:>8.2f}{values['p99']:>8.2f}{values['max']:>10.1f}")


if __name__ == "__main__":
    main()
