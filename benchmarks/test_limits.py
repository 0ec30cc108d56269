"""The limiter beside a pure-Python twin and the rivals that are installed: one run, one machine.

`python -m pytest benchmarks/test_limits.py`; the rivals are in the extra `bench`, but for
fast-litellm, which brings all of LiteLLM along: pip install fast-litellm to see it too. Times are
of whole Python calls, the loop around them included. Keys of 40 characters, in random order:
`fresh` ones are strings made just before the calls, as a request brings one; `old` ones are a
million strings that lie where they were made long ago, so that every call, whatever it calls,
also waits for its key. The row `len` is that wait and the loop alone.
"""

from __future__ import annotations

import importlib.util
import json
import os
import random
import resource
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from aegis_c import ConcurrencyLimiter, RateLimiter

if TYPE_CHECKING:
    from benchmarks.conftest import Scale

pytest.importorskip("pytest_benchmark")
Acquire = Callable[[str], Any]
SECOND = 10**9
KEYS = {"1 key": 1, "1 k keys": 1000, "1 M keys": 1_000_000}
RATE, PER, BURST = 1_000_000, 3600.0, 1_000_000  # nothing is refused: the same work every call


def aegis(slots: int = 1_500_000) -> Acquire:
    return RateLimiter(slots=slots).limit("x", rate=RATE, per=PER, burst=BURST).acquire


def nothing() -> Acquire:
    return len


def twin() -> Acquire:
    """GCRA in a dict under a lock, as one would write it."""
    tats: dict[str, int] = {}
    lock = threading.Lock()
    unit, tolerance = int(PER * SECOND) // RATE, int(PER * SECOND) // RATE * BURST

    def acquire(key: str, cost: int = 1) -> int:
        now = time.monotonic_ns()
        with lock:
            tat = max(tats.get(key, 0), now) + cost * unit
            if tat - now > tolerance:
                return tolerance - tat + now
            tats[key] = tat
        return (tolerance - tat + now) // unit

    return acquire


def throttled_py() -> Acquire:
    from throttled import MemoryStore, Throttled, rate_limiter

    quota = rate_limiter.per_duration(_hour(), RATE, BURST)
    store = MemoryStore(options={"MAX_SIZE": 2_000_000})
    return Throttled(using="gcra", quota=quota, store=store).limit


def _hour() -> Any:
    from datetime import timedelta

    return timedelta(seconds=PER)


def limits() -> Acquire:
    from limits import RateLimitItemPerHour
    from limits.storage import MemoryStorage
    from limits.strategies import FixedWindowRateLimiter

    limiter, item = FixedWindowRateLimiter(MemoryStorage()), RateLimitItemPerHour(RATE)
    return lambda key: limiter.hit(item, key)


def pyrate_limiter() -> Acquire:
    from pyrate_limiter import InMemoryBucket, Limiter, Rate

    limiters: dict[str, Any] = {}

    def acquire(key: str) -> Any:  # a bucket of its own a key, as its documentation shows
        limiter = limiters.get(key)
        if limiter is None:
            bucket = InMemoryBucket([Rate(RATE, int(PER * 1000))])
            limiter = limiters[key] = Limiter(bucket)
        return limiter.try_acquire(key, blocking=False)

    return acquire


def fast_litellm() -> Acquire:
    from fast_litellm import SimpleRateLimiter

    return SimpleRateLimiter(1_000_000_000).is_allowed


RIVALS = {
    "aegis": (aegis, None),
    "len": (nothing, None),
    "dict and lock": (twin, None),
    "throttled-py": (throttled_py, "throttled"),
    "limits": (limits, "limits"),
    "pyrate-limiter": (pyrate_limiter, "pyrate_limiter"),
}
if importlib.util.find_spec("fast_litellm") is not None:  # it brings all of LiteLLM: by hand
    RIVALS["fast-litellm"] = (fast_litellm, "fast_litellm")
MOST_KEYS = {"pyrate-limiter": 1000}  # its buckets keep an object a call, and a thread


def make(rival: str) -> Acquire:
    factory, module = RIVALS[rival]
    if module is not None and importlib.util.find_spec(module) is None:
        pytest.skip(f"{rival} is not installed")
    return factory()


def random_keys(count: int, calls: int, rng: random.Random) -> list[str]:
    return [f"user-{rng.randrange(count):035d}" for _ in range(calls)]


def call_all(acquire: Acquire, keys: list[str]) -> None:
    for key in keys:
        acquire(key)


@pytest.mark.parametrize(
    ("rival", "keys"),
    [
        (rival, keys)
        for keys, count in KEYS.items()
        for rival in RIVALS
        if count <= MOST_KEYS.get(rival, count)  # others would need gigabytes
    ],
)
def test_acquire(benchmark: Any, scale: Scale, rival: str, keys: str) -> None:
    acquire, count = make(rival), min(KEYS[keys], scale.keys)
    for i in range(count):
        acquire(f"user-{i:035d}")
    batch = 2000
    rng = random.Random(7)
    calls = iter([random_keys(count, batch, rng) for _ in range(60)])
    benchmark.group = f"acquire, {keys}, fresh: time of {batch} calls"
    benchmark.pedantic(call_all, setup=lambda: ((acquire, next(calls)), {}), rounds=60)
    if benchmark.stats is not None:
        benchmark.extra_info["ns a call, best"] = round(benchmark.stats.stats.min / batch * 1e9)
        benchmark.extra_info["ns a call, median"] = round(
            benchmark.stats.stats.median / batch * 1e9
        )


@pytest.mark.parametrize("rival", ["aegis", "len", "dict and lock"])
def test_acquire_with_old_keys(benchmark: Any, scale: Scale, rival: str) -> None:
    acquire, count = make(rival), scale.keys
    keys = [f"user-{i:035d}" for i in range(count)]
    call_all(acquire, keys)
    random.Random(7).shuffle(keys)
    benchmark.group = f"acquire, 1 M keys, old: time of {count} calls"
    benchmark.pedantic(call_all, (acquire, keys), rounds=3)
    if benchmark.stats is not None:
        benchmark.extra_info["ns a call, best"] = round(benchmark.stats.stats.min / count * 1e9)


@pytest.mark.parametrize("threads", [1, 8])
@pytest.mark.parametrize("rival", [r for r in RIVALS if r != "len"])
def test_threads(benchmark: Any, scale: Scale, rival: str, threads: int) -> None:
    acquire, calls = make(rival), 160_000 if rival in ("aegis", "dict and lock") else 16_000
    rng = random.Random(7)
    keys = min(1000, scale.keys)  # one of the rivals keeps a thread a key
    parts = [random_keys(keys, calls // threads, rng) for _ in range(threads)]

    def run() -> None:
        started = [threading.Thread(target=call_all, args=(acquire, part)) for part in parts]
        for thread in started:
            thread.start()
        for thread in started:
            thread.join()

    benchmark.group = f"{calls} calls by threads"
    benchmark.pedantic(run, rounds=7)


def test_native_threads(benchmark: Any, tmp_path: Path) -> None:
    """Charges of distinct keys a second: a thread for each core against one."""
    root = Path(__file__).parent.parent
    core = root / "aegis_c" / "core"
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

    found = benchmark.pedantic(measure, rounds=1)
    benchmark.extra_info["threads"] = found["threads"]
    benchmark.extra_info["times one thread"] = round(found["many"] / found["one"], 2)


def test_plan_of_8_limits(benchmark: Any) -> None:
    limiter = RateLimiter(slots=100_000)
    plan = limiter.plan(*(limiter.limit(str(i), rate=RATE, per=PER, burst=BURST) for i in range(8)))
    keys = tuple(f"user-{i:035d}" for i in range(8))
    benchmark(plan.acquire, keys)


def test_reserve_and_settle(benchmark: Any) -> None:
    limit = RateLimiter(slots=1024).limit("x", rate=10**9, per=1.0, burst=10**9)

    def one() -> None:
        limit.settle(limit.reserve("key", 500), 100)

    benchmark(one)


def test_enter_and_leave(benchmark: Any) -> None:
    limiter = ConcurrencyLimiter()
    benchmark(lambda: limiter.leave(limiter.enter("key", 100)))


@pytest.mark.parametrize("rival", [r for r in RIVALS if r != "len" and r not in MOST_KEYS])
def test_bytes_of_a_live_key(benchmark: Any, scale: Scale, rival: str) -> None:
    """Growth of resident memory by a limiter and a million keys; the keys do not stay."""
    make(rival)
    code = f"""
import sys; sys.path[:0] = {sys.path!r}
import test_limits as t
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * {resource.getpagesize()}
t.make({rival!r})("warm")
before = resident()
acquire = t.make({rival!r})
for i in range({scale.keys}):
    acquire(f"user-{{i:035d}}")
print((resident() - before) / {scale.keys})
"""
    run = [sys.executable, "-c", code]
    cwd = Path(__file__).parent

    def measure() -> float:
        return float(
            subprocess.run(run, cwd=cwd, capture_output=True, check=True, text=True).stdout
        )

    benchmark.extra_info["bytes a key"] = round(benchmark.pedantic(measure, rounds=1), 1)


def test_admitted_of_allowed_with_4_processes(benchmark: Any, tmp_path: Path) -> None:
    code = """
import sys, time
from aegis_c import RateLimiter
acquire = RateLimiter(sys.argv[1]).limit("x", rate=100_000, per=1.0, burst=1000).acquire
end, n = time.monotonic() + 2, 0
while time.monotonic() < end:
    n += acquire("k") >= 0
print(n)
"""
    RateLimiter(tmp_path / "limits")

    def measure() -> float:
        start = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        run = [sys.executable, "-c", code, str(tmp_path / "limits")]
        four = [subprocess.Popen(run, stdout=subprocess.PIPE, text=True) for _ in range(4)]
        first = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        admitted = sum(int(process.communicate()[0]) for process in four)
        passed = time.clock_gettime_ns(time.CLOCK_BOOTTIME) - start
        assert first >= start
        return admitted / (1000 + passed / 10**4)

    ratio = benchmark.pedantic(measure, rounds=1)
    assert ratio <= 1
    benchmark.extra_info["admitted / allowed, start of the processes included"] = round(ratio, 4)


@pytest.mark.parametrize("rival", ["limits", "throttled-py", "dict and lock"])
def test_rivals_with_4_processes(benchmark: Any, rival: str) -> None:
    """What a limiter in the memory of one process lets through when there are four."""
    make(rival)
    code = f"""
import sys; sys.path[:0] = {sys.path!r}
import test_limits as t
t.RATE, t.PER, t.BURST = 1000, 3600.0, 1000
acquire, n = t.make({rival!r}), 0
for _ in range(2000):
    answer = acquire("k")
    if hasattr(answer, "limited"):
        n += not answer.limited
    else:
        n += answer if isinstance(answer, bool) else answer >= 0
print(n)
"""
    run = [sys.executable, "-c", code]

    def measure() -> float:
        four = [
            subprocess.Popen(run, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parent)
            for _ in range(4)
        ]
        return sum(int(process.communicate()[0]) for process in four) / 1000

    benchmark.extra_info["admitted / allowed"] = round(benchmark.pedantic(measure, rounds=1), 2)


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

    benchmark(one)
