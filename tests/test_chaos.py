"""The short form of `./dev soak chaos`, and what it must notice."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import chaos
import soak


def test_what_is_answered_is_recorded_whatever_goes_wrong(tmp_path: Path) -> None:
    said: list[str] = []
    job = soak.Soak(tmp_path, short=True)
    job.say = said.append  # type: ignore[method-assign]
    soak.chaos(job)
    print("\n".join(said))
    for what in ("disk full", "clock jumps", "model killed", "gateway killed", "SIGUSR2"):
        assert f"'{what}': " in said[-1]


def test_the_clock_jumps(tmp_path: Path) -> None:
    """Without this, a run in which the clock stood still would hold as well."""
    library, clock = tmp_path / "clock.so", tmp_path / "clock"
    clock.write_bytes((86_400).to_bytes(8, "little"))
    chaos.compile_clock(library)
    code = "import time; print(time.time(), time.time_ns(), time.monotonic())"
    variables = {"LD_PRELOAD": str(library), "JUMPING_CLOCK": str(clock)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | variables, capture_output=True, check=True
    )
    seconds, nanoseconds, monotonic = map(float, done.stdout.split())
    for shown in (seconds, nanoseconds * 1e-9):
        assert 86_300 < shown - time.time() < 86_500
    assert abs(monotonic - time.monotonic()) < 60
