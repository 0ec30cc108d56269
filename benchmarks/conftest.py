"""How benchmarks are run and what their JSON says beside pytest-benchmark's own numbers.

A benchmark of this folder names its table with ``benchmark.group`` and its row in
``extra_info["row"]``; ``extra_info["baseline"]`` marks the pure-Python row that the others of the
same ``extra_info["against"]`` (default: the group) are compared with. Any other item of
``extra_info`` is a column of its own. `benchmarks/report.py` makes the tables.
"""

from __future__ import annotations

import gc
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from benchmarks.machine import describe, quantile


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("aegis")
    group.addoption(
        "--full",
        action="store_true",
        help="the long form: a million entries, 30 s of event-loop lag, more rounds",
    )


@dataclass(frozen=True)
class Scale:
    """How much is measured."""

    entries: int  # in a ledger that counts as long
    rounds: int  # single calls that are timed one by one
    gaps: int  # of them with a pause of 1 ms before each
    keys: int  # at most, in a limiter
    seconds: float  # of event-loop lag, idle and busy each


_SMOKE = Scale(entries=300, rounds=1, gaps=1, keys=20, seconds=0.1)
_SHORT = Scale(entries=100_000, rounds=20_000, gaps=1_000, keys=1_000_000, seconds=5.0)
_FULL = Scale(entries=1_000_000, rounds=50_000, gaps=5_000, keys=1_000_000, seconds=30.0)


@pytest.fixture(scope="session")
def scale(request: pytest.FixtureRequest) -> Scale:
    """Small when nothing is measured (--benchmark-disable)."""
    if request.config.getoption("benchmark_disable"):
        return _SMOKE
    return _FULL if request.config.getoption("full") else _SHORT


@pytest.fixture(autouse=True)
def _collect(scale: Scale) -> None:
    """Garbage of one benchmark is not collected in the next."""
    if scale is not _SMOKE:
        gc.collect()


def pytest_benchmark_update_machine_info(machine_info: dict[str, Any]) -> None:
    """Replace pytest-benchmark's description, which names the host, by ours."""
    machine_info.clear()
    machine_info.update(describe(Path(tempfile.gettempdir())))


def pytest_benchmark_update_json(benchmarks: list[Any], output_json: dict[str, Any]) -> None:
    """Add the 99th percentile where every round was one call; leave the single samples out."""
    samples = {bench.fullname: bench.stats.data for bench in benchmarks}
    for bench in output_json["benchmarks"]:
        stats, data = bench["stats"], samples[bench["fullname"]]
        one_call = stats["iterations"] == 1 and "calls" not in bench["extra_info"]
        if one_call and len(data) >= 1000:
            stats["p99"] = quantile(data, 0.99)
        stats.pop("data", None)
