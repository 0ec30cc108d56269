"""The limiter beside a pure-Python twin and its rivals: one run, one machine, two minutes.

`python -m pytest benchmarks/test_limits.py`; the rivals are in the extra `bench`, but for
fast-litellm: `pip install --no-deps fast-litellm` to see it too. Each limiter is measured in a
process of its own, by `limiters.py`.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from aegis_c import ConcurrencyLimiter, RateLimiter
from benchmarks import limiters

if TYPE_CHECKING:
    from benchmarks.conftest import Scale

pytest.importorskip("pytest_benchmark")
ROOT = Path(__file__).parent.parent
NAMES = [name for name in limiters.LIMITERS if limiters.installed(name)]
COLUMNS = (
    "ns, 1 key",
    "ns, 1 k keys",
    "ns, 1 M keys",
    "ns, a new key",
    "ns, 1 M old keys",
    "8 threads / 1",
    "bytes a key",
    "admitted / allowed, 4 processes",
)

# A process of four that share a limit of 1,000 calls, as far as they can share one.
SHARING = """
import sys
from benchmarks import limiters
name, path = sys.argv[1:]
limiters.RATE, limiters.BURST = 100, 1000
if name == "aegis":
    acquire = limiters.aegis(1024, path)
else:
    acquire = limiters.LIMITERS[name][0]()
admitted = 0
for _ in range(2000):
    answer = acquire("k")
    if hasattr(answer, "limited"):
        admitted += not answer.limited
    else:
        admitted += answer if isinstance(answer, bool) else answer >= 0
print(admitted)
"""


def start(code: str, *arguments: str | Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)


def shared(name: str, path: Path) -> float:
    """What four processes let through of what one limit allows."""
    before = time.monotonic()
    four = [start(SHARING, name, path / "limits") for _ in range(4)]
    admitted = sum(int(process.communicate()[0].split()[-1]) for process in four)
    return admitted / (1000 + (time.monotonic() - before) * 100 / limiters.DAY)


@pytest.mark.parametrize("name", NAMES)
def test_limiter(benchmark: Any, scale: Scale, tmp_path: Path, name: str) -> None:
    command = [sys.executable, "-m", "benchmarks.limiters", name, "--keys", str(scale.keys)]
    smoke = benchmark.disabled and name != "aegis"  # without processes of their own

    def measure() -> dict[str, float]:
        if smoke:
            return limiters.measure(name, scale.keys)
        done = subprocess.run(command, cwd=ROOT, capture_output=True, check=True, text=True)
        found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
        return found

    benchmark.group = "limiter: beside others"
    found = benchmark.pedantic(measure, rounds=1)
    if name not in ("nothing", "fast-litellm") and not smoke:  # that one's limit is built in
        found[COLUMNS[-1]] = shared(name, tmp_path)
    info = benchmark.extra_info
    info["figures_only"] = True
    info["row"] = "**Aegis**" if name == "aegis" else name
    for column in COLUMNS:
        value = found.get(column)
        if value is None:
            info[column] = ""
        elif column.startswith("ns"):
            info[column] = round(value)
        else:
            info[column] = round(value, 1) if column.startswith("bytes") else f"{value:.2f}"


def test_native_threads(benchmark: Any, tmp_path: Path) -> None:
    """Charges of distinct keys a second: a thread for each core against one."""
    core = ROOT / "aegis_c" / "core"
    sources = [*(core / "limit").glob("*.c"), *(core / "base").glob("*.c")]
    sources += [core / "hash" / "crc32c.c", core / "hash" / "siphash.c"]
    program = tmp_path / "limit_threads"
    compiler = [*shlex.split(os.environ.get("CC", "cc")), "-std=gnu11", "-O2", "-D_GNU_SOURCE"]
    compiler += [f"-I{core}"]
    files = [*sources, Path(__file__).with_name("limit_threads.c")]
    subprocess.run([*compiler, *files, "-o", program, "-lpthread"], check=True)

    def measure() -> dict[str, float]:
        run = [program, str(os.cpu_count())]
        done = subprocess.run(run, capture_output=True, check=True, text=True)
        found: dict[str, float] = json.loads(done.stdout)
        return found

    benchmark.group = "limiter: threads and processes"
    found = benchmark.pedantic(measure, rounds=1)
    benchmark.extra_info["figures_only"] = True
    benchmark.extra_info["row"] = f"{found['threads']:.0f} native threads by one, distinct keys"
    benchmark.extra_info["ratio"] = f"{found['many'] / found['one']:.2f}"


CALLS = "limiter: other calls"


def test_plan_of_8_limits(benchmark: Any) -> None:
    benchmark.group, benchmark.extra_info["row"] = CALLS, "Plan.acquire, 8 limits"
    limiter = RateLimiter(slots=100_000)
    plan = limiter.plan(
        *(limiter.limit(str(i), rate=100, per=86_400, burst=10**6) for i in range(8))
    )
    keys = tuple(map(limiters.key, range(8)))
    benchmark(plan.acquire, keys)


def test_reserve_and_settle(benchmark: Any) -> None:
    benchmark.group, benchmark.extra_info["row"] = CALLS, "Limit.reserve and settle"
    limit = RateLimiter(slots=1024).limit("x", rate=10**9, per=1.0, burst=10**9)

    def one() -> None:
        limit.settle(limit.reserve("key", 500), 100)

    benchmark(one)


def test_enter_and_leave(benchmark: Any) -> None:
    benchmark.group, benchmark.extra_info["row"] = CALLS, "ConcurrencyLimiter.enter and leave"
    limiter = ConcurrencyLimiter()
    benchmark(lambda: limiter.leave(limiter.enter("key", 100)))


def test_four_processes_above_the_rate(benchmark: Any, tmp_path: Path) -> None:
    """Of what a limit of 100,000 a second allows them from the moment when all of them run."""
    code = """
import sys, time
from aegis_c import RateLimiter
acquire = RateLimiter(sys.argv[1]).limit("x", rate=100_000, per=1.0, burst=1000).acquire
acquire("k", 0)
print("ready", flush=True)
sys.stdin.readline()
end, n = time.monotonic() + float(sys.argv[2]), 0
while time.monotonic() < end:
    n += acquire("k") >= 0
print(n)
"""
    seconds = 0.1 if benchmark.disabled else 2.0

    def measure() -> float:
        command = [sys.executable, "-c", code, str(tmp_path / "limits"), str(seconds)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        four = [subprocess.Popen(command, text=True, **pipes) for _ in range(4)]
        for process in four:
            assert process.stdout is not None and process.stdout.readline() == "ready\n"
        begin = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        for process in four:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        admitted = sum(int(process.communicate()[0]) for process in four)
        passed = time.clock_gettime_ns(time.CLOCK_BOOTTIME) - begin
        assert admitted <= 1000 + (passed + 1) / 10_000
        return admitted / (1000 + passed / 10_000)

    benchmark.group = "limiter: threads and processes"
    benchmark.extra_info["figures_only"] = True
    benchmark.extra_info["row"] = "admitted by allowed, 4 processes that ask for more, 2 s"
    benchmark.extra_info["ratio"] = f"{benchmark.pedantic(measure, rounds=1):.4f}"


@pytest.mark.parametrize("limits", ["1 rate", "requests, tokens, concurrency", "8 rates, 2 caps"])
def test_the_stage_of_the_gateway(benchmark: Any, tmp_path: Path, limits: str) -> None:
    """All that a limited call costs in Python: enter, settle, header fields, release."""
    from functools import partial

    from aegis_c.gateway.evidence import Call
    from aegis_c.gateway.hot.auth import Principal
    from aegis_c.gateway.hot.limits import Limits
    from aegis_c.gateway.limits.rules import limits_for
    from aegis_c.gateway.limits.tables import Tables
    from aegis_c.gateway.settings import Limits as Settings

    much: dict[str, Any] = {"rate": 10**12}
    day = {"rate": 10**12, "per": "day"}
    sets: dict[str, dict[str, Any]] = {
        "1 rate": {"key": {"requests": much}},
        "requests, tokens, concurrency": {
            "key": {"requests": much, "tokens": much, "concurrency": 60_000}
        },
        "8 rates, 2 caps": {
            "key": {"requests": [much, day], "tokens": [much, day], "concurrency": 60_000},
            "tenant": {"requests": much, "tokens": much},
            "ip": {"requests": much},
            "total": {"requests": much, "concurrency": 60_000},
        },
    }
    settings = Settings(**sets[limits])
    tables = Tables(tmp_path, directory=tmp_path / "shm", slots=1 << 16)
    stage = Limits(settings, tables, partial(limits_for, limits=settings))
    who = Principal("tenant", "key", frozenset({"caller"}))
    document = {
        "model": "m",
        "messages": [
            {"role": "system", "content": "x" * 300},
            {"role": "user", "content": "y" * 1500},
        ],
        "max_tokens": 100,
    }
    usage = {"prompt_tokens": 450, "completion_tokens": 80, "total_tokens": 530}

    def one() -> None:
        call = Call("/v1/chat/completions", "127.0.0.1")
        call.principal, call.model = who, "m"
        stage.enter(call, document)
        assert call.held is not None
        call.held.answered(200, usage, b"")
        call.held.headers()
        call.held.release()

    benchmark.group, benchmark.extra_info["row"] = "limiter: the gateway's stage", limits
    benchmark(one)
