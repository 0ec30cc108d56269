"""`./dev mutants`: builds the log with one deliberate mistake at a time; the tests must notice.

Each mutant is a -D switch in aegis_c/core. It is caught when at least one of the programs
fails; the table names which. Exit 1 when a mutant survives, or when the healthy code fails.
"""

from __future__ import annotations

import subprocess
import sys
import time

import wal_native as native

CRASH = (
    "crash states",
    "tests/c/crash_wal.c",
    native.CRASH_PARTS,
    ("--seconds", "20", "--jobs", "1"),
)
ROT = ("damage", "tests/c/test_wal_rot.c", ("memfs",), ())
RING = ("ring kills", "tests/c/test_wal_ring.c", ("ring_trace",), ())
WRITER = ("faults", "tests/c/test_wal_writer.c", ("scratch", "wal_rig"), ())
RIG = ("io_fault", "ledger_rig", "scratch")
LEDGER = ("ledger", "tests/c/test_ledger.c", RIG, ())
SIGNING = ("ledger faults", "tests/c/test_ledger_faults.c", RIG, ())
REFUSED = ("refused ledgers", "tests/c/test_ledger_refused.c", RIG, ())
IDS = ("id column", "tests/c/test_ids.c", ("io_fault", "scratch"), ())
Check = tuple[str, str, tuple[str, ...], tuple[str, ...]]

MUTANTS: dict[str, tuple[str, Check]] = {
    "DROP_SYNC": ("leaves out fdatasync", CRASH),
    "ACK_EARLY": ("acknowledges before fdatasync", CRASH),
    "SKIP_DIR_SYNC": ("leaves out the fsync of the directory", CRASH),
    "RETRY_SYNC": ("tries a failed fdatasync again", WRITER),
    "TRUST_LENGTH": ("uses a length before its checksum is known", ROT),
    "REPLAY_TWICE": ("replays records that the log already has", CRASH),
    "IGNORE_CHAIN": ("does not compare the chain of checksums", ROT),
    "TRUST_TILES": ("signs without reading the tiles back", SIGNING),
    "TRUST_HISTORY": ("signs without the consistency with the last checkpoint", SIGNING),
    "TRUST_LENGTH_OF_LOG": ("opens a log that is shorter than what was signed", REFUSED),
    "TRUST_ROOT": ("opens a log that differs from what was signed", REFUSED),
    "COLLECT_MARKED": ("removes the partial tiles that the mark stands on", LEDGER),
    "FORGET_INTENTS": ("leaves the open intents out of the mark", LEDGER),
    "TRUST_COLUMN": ("reports what the id column names without a look at it", IDS),
    "TAIL_FIRST": ("publishes the ring's tail before the record", RING),
}


def run(check: Check, *flags: str) -> tuple[bool, str]:
    """Whether the program passes, and its last line of output."""
    name, source, helpers, arguments = check
    sources = [source, *(f"tests/c/{helper}.c" for helper in helpers)]
    without = ("ring.c",) if "ring_trace" in helpers else ()
    stem = source.rsplit("/", 1)[1][:-2] + "".join(flags).replace("-DAG_MUTANT_", "-")
    program = native.build(stem, sources, "-O2", *flags, without=without)
    try:
        done = subprocess.run(
            [str(program), *arguments], capture_output=True, text=True, timeout=240
        )
    except subprocess.TimeoutExpired:
        return False, f"{name}: no end"
    lines = (done.stdout + done.stderr).strip().splitlines() or [""]
    said = [line for line in lines if ":" in line and not line.startswith(" ")] or lines
    return done.returncode == 0, said[-1][:100]


def main() -> int:
    wanted = sys.argv[1:] or list(MUTANTS)
    survivors = 0
    for name in wanted:
        what, check = MUTANTS[name]
        started = time.monotonic()
        passed, said = run(check, f"-DAG_MUTANT_{name}")
        verdict = "SURVIVED" if passed else "caught"
        survivors += passed
        print(f"{verdict:8} {time.monotonic() - started:5.1f} s  {name:14} {what}")
        print(f"{'':19} by {check[0]}: {said}", flush=True)
    for check in (ROT, RING, WRITER):
        passed, said = run(check)
        survivors += not passed
        print(f"{'passes' if passed else 'FAILS':8} {'':8} {'(healthy)':14} {check[0]}")
    print(f"{len(wanted)} mutants, {survivors} problems")
    return int(survivors != 0)


if __name__ == "__main__":
    sys.exit(main())
