"""How long native calls hold the GIL: in debug builds and under sanitizers, and nowhere else."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest

import aegis_c
from aegis_c import _native

pytestmark = pytest.mark.native
gil_times: Any = getattr(_native, "_gil_times", None)


def test_only_builds_that_look_for_faults_take_the_time(tmp_path: Path) -> None:
    """Of a detached call only what it does attached counts; each kind of call is told apart."""
    debug = bool(os.environ.get("AEGIS_DEBUG")) or "asan" in (_native.__file__ or "")
    assert (gil_times is not None) == debug
    if gil_times is None:
        return
    before = gil_times()
    watch = aegis_c.LoopWatch(every=0.05, slow=0.2)
    threading.Timer(0.5, watch.close).start()
    started = time.perf_counter()
    while watch.wait():  # detached, keyword arguments
        pass
    assert time.perf_counter() - started > 0.3
    tree = aegis_c.MmrAccumulator()
    for _ in range(100):
        tree.append(b"x" * 1000)
    digest = aegis_c.leaf_hash(b"x")
    with aegis_c.Ledger(tmp_path / "log") as ledger:
        index = ledger.submit(b"{}")
        ledger.wait(index, "published", 30)
    after = gil_times()

    def spent(name: str) -> tuple[int, ...]:
        return tuple(b - a for a, b in zip(before.get(name, (0, 0, 0)), after[name], strict=True))

    assert spent("LoopWatch.wait")[0] >= 1 and spent("LoopWatch.wait")[1] < 100_000_000
    assert spent("MmrAccumulator.append")[0] == 100 and len(digest) == 32
    assert spent("leaf_hash")[0] == 1
    assert spent("Ledger.submit")[0] == 1
    assert spent("Ledger.wait")[1] < 100_000_000
    calls, total, longest = after["MmrAccumulator.append"]
    assert calls <= total and total / calls <= longest <= total
