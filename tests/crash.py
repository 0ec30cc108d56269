"""`./dev crash`: opens every state that a crash may leave of a log, a million of them by default.

`./dev crash` runs tests/c/crash_wal.c on the write-ahead log alone (--states N, --seconds S,
--jobs J, --seed X). `./dev crash ledger [--seconds S]` treats the whole ledger, with the programs
that the suite runs in a shorter form: loss of power at every call of runs one after another, for S
seconds (120); SIGKILL at every call; and every octet of every file with a bit flipped.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from pathlib import Path

import wal_native as native

FOLDER = native.ROOT / "tests" / "c"


def program(name: str) -> Path:
    """A program of tests/c, with what it names as `links:`, optimised and without sanitizers."""
    links = re.search(r"^// links: ([\w ]+)", (FOLDER / f"{name}.c").read_text(), re.MULTILINE)
    names = [name, *(links[1].split() if links else [])]
    return native.build(name, [f"tests/c/{one}.c" for one in names], "-O2")


def ledger(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="./dev crash ledger")
    parser.add_argument("--seconds", default="120", help="of loss of power, one after another")
    seconds = parser.parse_args(arguments).seconds
    jobs = str(os.cpu_count() or 1)
    failed = False
    for name in ("test_ledger_power", "kill_ledger", "test_ledger_damage"):
        print(name, flush=True)
        env = {"AEGIS_CRASH_SECONDS": seconds, "AEGIS_EVERY": "1", "AEGIS_JOBS": jobs}
        failed |= subprocess.run([program(name)], env=os.environ | env).returncode != 0
    print("FAILED" if failed else "ok")
    return int(failed)


def main() -> int:
    if sys.argv[1:2] == ["ledger"]:
        return ledger(sys.argv[2:])
    arguments = sys.argv[1:] or ["--states", "1000000"]
    return subprocess.run([native.crash_program(), *arguments]).returncode


if __name__ == "__main__":
    sys.exit(main())
