"""The benchmarks still run: every file once without timing, the gateway harness with few calls.

No figure is judged here: what is fast enough is said in benchmarks/README.md, beside a machine.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
CALLS = 200
ENTRIES = 500


def _start(*command: str | Path) -> subprocess.Popen[str]:
    # Within a run on several cores pytest-benchmark would measure nothing.
    env = {name: value for name, value in os.environ.items() if "XDIST" not in name}
    return subprocess.Popen(
        [sys.executable, "-m", *map(str, command)],
        cwd=ROOT,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def _ended(process: subprocess.Popen[str]) -> str:
    """What a process said that must have succeeded."""
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said
    return said


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the results of short runs side by side, and once.txt."""
    folder: Path = tmp_path_factory.mktemp("results")
    few = ("--rounds", "1", "--calls", "10")
    timed = ("benchmarks/test_boundary.py", "-k", "len", "--benchmark-only")
    with (
        _start("pytest", "benchmarks", "--benchmark-disable", "-q") as once,
        _start(
            "benchmarks.gateway", "--calls", str(CALLS), "--json", folder / "gateway.json"
        ) as gw,
        _start("pytest", *timed, f"--benchmark-json={folder / 'pytest.json'}") as short,
        _start(
            *("benchmarks.contention", "--seconds", "0.03", "--rounds", "1"),
            *("--json", folder / "contention.json", "--png", folder / "contention.png"),
        ) as contention,
        _start("benchmarks.lag", "all", "--seconds", "2.5", "--json", folder / "lag.json") as lag,
        _start("benchmarks.start", str(ENTRIES), *few, "--dir", folder) as begun,
        _start(
            "benchmarks.gateway.limits",
            *("--rounds", "1", "--seconds", "0.05", "--json", folder / "limits.json"),
        ) as limits,
    ):
        try:
            said, _ = once.communicate(timeout=300)
            (folder / "once.txt").write_text(f"{said}\nexit status {once.returncode}")
            for process in (gw, short, contention, lag, limits):
                _ended(process)
            (folder / "start.json").write_text(_ended(begun).splitlines()[-1])
        finally:
            for process in (once, gw, short, contention, lag, begun, limits):
                process.kill()
    return folder


def test_every_benchmark_runs(results: Path) -> None:
    said = (results / "once.txt").read_text()
    assert said.endswith("exit status 0") and "skipped" not in said, said


def test_gateway_harness_measures_every_target(results: Path) -> None:
    found: dict[str, Any] = json.loads((results / "gateway.json").read_text())
    calls = {(row["target"], row["connections"]): row for row in found["calls"]}
    names = ("direct", "bare", "passthrough", "aiohttp", "governed", "naive")
    assert set(calls) == {(name, c) for name in names for c in (1, 8, 64)}
    for (name, _), row in calls.items():
        assert row["requests"] == CALLS and row["errors"] == 0
        assert 0 < row["total_p50"] <= row["total_p99"] <= row["total_max"]
        assert 0 < row["cpu_us"] < row["seconds"] / CALLS * 1e6 * 4, name
    assert [row["client"] for row in found["clients"]] == ["pool", "aiohttp", "httpx"]
    for row in found["clients"]:
        assert row["calls"] > 0 and row["cpu_us"] > 0
    for row in found["delayed"]:
        assert row["total_p50"] >= 20_000  # microseconds: the upstream's own delay
    for row in found["streams"] + found["spread"]:
        assert row["events"] == 33 * row["requests"]  # 32 and [DONE], of 64 streams or twice that
        assert row["first_p50"] < row["total_p50"] >= 31 * 20_000


def test_start_measures_a_ledger_of_any_size(results: Path) -> None:
    found: dict[str, Any] = json.loads((results / "start.json").read_text())
    timed = 2 * 2 * (10 + 1)  # bodies and commitments, early and late, without and with gaps
    assert found["entries"] == ENTRIES + timed
    assert list(found["resident_mib"])[-1] == str(ENTRIES)
    for times in (found["submit_early"], found["submit_late"]):
        assert len(times) == 4
        assert all(0 < row["p50_us"] <= row["p99_us"] for row in times.values())
    for kind in ("open_ms", "open_cold_ms", "open_asyncio_ms", "gateway_ready_ms"):
        assert found[kind] and all(ms > 0 for ms in found[kind])
    assert not list(results.glob("aegis-start-*"))


def test_report_fills_a_file_with_the_measured_numbers(results: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- results: all -->\nold\n<!-- end -->\nafter\n")
    files = (results / "gateway.json", results / "pytest.json", results / "limits.json")
    for _ in range(2):  # the second time over the first one's tables
        with _start("benchmarks.report", *files, "--into", page) as report:
            _ended(report)
    text = page.read_text()
    assert text.startswith("before\n<!-- results: all -->\n") and "old" not in text
    assert text.endswith("<!-- end -->\nafter\n")
    assert text.count("### boundary: len()") == text.count("### Memory and start") == 1
    governed = json.loads(files[0].read_text())["calls"]
    cpu = {row["connections"]: row["cpu_us"] for row in governed if row["target"] == "governed"}
    assert f"| {cpu[1]:,.0f} | {cpu[8]:,.0f} | {cpu[64]:,.0f} |" in text
    assert "| Python class |" in text
    assert text.count("### One plain call with limits") == text.count("| no limits |") == 1


def test_report_refuses_a_name_that_it_has_no_results_for(results: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("<!-- results: gateway speed -->\nkept\n<!-- end -->\n")
    with _start("benchmarks.report", results / "gateway.json", "--into", page) as report:
        said, _ = report.communicate(timeout=60)
    assert report.returncode == 2 and "gateway speed" in said
    assert "kept" in page.read_text()


def test_report_keeps_the_tables_of_other_runs(results: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "<!-- results: another -->\nkept\n<!-- end -->\n"
        "<!-- results: all -->\n\nof two runs\n\n### Another\n\n| 1 |\n\n"
        "### One plain call with limits\n\n| old |\n\n### Last\n\n| 2 |\n\n<!-- end -->\n"
    )
    for _ in range(2):
        with _start(
            "benchmarks.report", results / "limits.json", "--into", page, "--keep"
        ) as report:
            _ended(report)
    text = page.read_text()
    assert "kept" in text and "of two runs" in text and "| old |" not in text
    places = [text.index(title) for title in ("### Another", "### One plain", "### Last")]
    assert places == sorted(places) and text.count("| no limits |") == 1
    assert text.index("| 1 |") < text.index("| no limits |") < text.index("| 2 |")


def test_readme_has_a_place_for_the_tables() -> None:
    text = (ROOT / "benchmarks" / "README.md").read_text()
    assert text.count("<!-- results: all -->") == 1
    assert text.count("<!-- results: ") == text.count("<!-- end -->")


def test_contention_measures_every_way_and_draws_it(results: Path) -> None:
    found: dict[str, Any] = json.loads((results / "contention.json").read_text())
    handed = {(row["loop"], row["way"], row["burst"]) for row in found["scheduling"]}
    assert len(handed) == 2 * 3 * 2
    assert all(0 < row["p50_ns"] <= row["p99_ns"] for row in found["scheduling"])
    counts = {2**k for k in range(8)}
    ways = ("none", "threads", "to_thread", "ours")
    assert {(r["way"], r["callers"]) for r in found["sweep"]} == {
        (way, c) for way in ways for c in counts
    }
    for row in found["sweep"]:
        assert row["calls_per_second"] > 0 and row["p50_us"] >= 4000
    assert len(found["verdict"]) == 3 * len(counts)
    assert (results / "contention.png").read_bytes().startswith(b"\x89PNG")


def test_the_loop_goes_on_while_the_disk_stalls_and_long_replies_come(results: Path) -> None:
    """No judgement of speed: a loop that waited for the disk would be late by the whole stall."""
    (row,) = json.loads((results / "lag.json").read_text())["rows"]
    assert row["stalled"] >= 1  # the log did wait for the disk, for 2 s
    assert row["idle_ticks"] > 50 and row["loaded_ticks"] > 10
    assert row["calls_per_second"] > 0 and row["analyses_per_second"] > 0
    assert row["loaded_max_us"] < 1_500_000
