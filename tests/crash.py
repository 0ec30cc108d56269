"""`./dev crash`: opens every state that a crash may leave of a log, a million of them by default.

Arguments go to tests/c/crash_wal.c: --states N, --seconds S, --jobs J, --seed X.
"""

from __future__ import annotations

import os
import sys

import wal_native as native


def main() -> int:
    program = native.crash_program()
    given = sys.argv[1:] or ["--states", "1000000"]
    os.execv(program, [str(program), *given])


if __name__ == "__main__":
    sys.exit(main())
