"""`./dev soak`: the long forms of what the suite checks in short, on this machine, with figures.

./dev soak --kills 100 [--seed N]      kill -9 of a loaded gateway, in all evidence modes
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
from pathlib import Path

from kills import Kills


def kills(rounds: int, seed: int) -> None:
    """An AssertionError says what was lost; else the figures are printed."""
    with tempfile.TemporaryDirectory(prefix="aegis-soak-") as data:
        job = Kills(Path(data), seed)
        asyncio.run(job.run(rounds))
    for name, count in sorted(job.counts.items()):
        print(f"{count:>9,} {name}")


def main() -> int:
    parser = argparse.ArgumentParser(prog="./dev soak", description=__doc__.split("\n", 1)[0])
    parser.add_argument("--kills", type=int, default=100, help="kill -9 of a loaded gateway")
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    kills(given.kills, given.seed)
    return 0


if __name__ == "__main__":
    sys.exit(main())
