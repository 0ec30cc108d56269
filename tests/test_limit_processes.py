"""Limits across processes: exact under contention, after kill -9 of any of them, after fork.

The schedules and kills are few here; AEGIS_KILLS=300 and AEGIS_SCHEDULES=3000 make them many.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pytest

from aegis_c import ConcurrencyLimiter, LimitError, RateLimiter
from reference.limits import most_admitted

pytestmark = pytest.mark.native

KILLS = int(os.environ.get("AEGIS_KILLS", "30"))
SCHEDULES = int(os.environ.get("AEGIS_SCHEDULES", "20"))
SECOND = 10**9
Sync = Literal["cas", "mutex"]


def boottime() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


# A worker: for every line [rate, per, burst, calls, gap, key] of its input it makes that many
# calls with random pauses of up to `gap` seconds, and answers with how many were admitted.
WORKER = """
import json, random, sys, time
from aegis_c import RateLimiter
limiter = RateLimiter(sys.argv[1], slots=1024, sync=sys.argv[2])
for line in sys.stdin:
    rate, per, burst, calls, gap, key = json.loads(line)
    acquire = limiter.limit("shared", rate=rate, per=per, burst=burst).acquire
    admitted = 0
    for _ in range(calls):
        admitted += acquire(key) >= 0
        if gap and random.random() < 0.2:
            time.sleep(random.random() * gap)
    print(admitted, flush=True)
"""


class Worker:
    def __init__(self, path: Path, sync: Sync) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", WORKER, str(path), sync],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1,
        )  # fmt: skip

    def ask(self, *order: object) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()

    def answer(self) -> int:
        assert self.process.stdout is not None
        return int(self.process.stdout.readline())

    def end(self) -> None:
        with self.process:
            self.process.kill()


@pytest.fixture(params=["cas", "mutex"])
def sync(request: pytest.FixtureRequest) -> Sync:
    if request.param == "cas" and not RateLimiter(slots=16).stats()["cas"]:
        pytest.skip("this CPU has no 128-bit compare-and-swap")
    kind: Sync = request.param
    return kind


@pytest.fixture
def workers(tmp_path: Path, sync: Sync) -> Iterator[list[Worker]]:
    four = [Worker(tmp_path / "limits", sync) for _ in range(4)]
    yield four
    for worker in four:
        worker.end()


def test_four_processes_on_one_key_never_exceed_the_bound(
    workers: list[Worker], rng: random.Random
) -> None:
    for schedule in range(SCHEDULES):
        burst = rng.choice([1, 3, 50, 1000])
        rate, per = rng.choice([(10, 1.0), (1000, 1.0), (7, 0.1), (100_000, 1.0)])
        calls = rng.randrange(50, 1000)
        start = boottime()
        for worker in workers:
            gap = rng.choice([0, 0, 0.0002])
            worker.ask(rate, per, burst, calls, gap, f"key {schedule}")
        admitted = sum(worker.answer() for worker in workers)
        passed = boottime() - start
        bound = most_admitted(rate, int(per * SECOND), burst, passed)
        assert admitted <= bound
        assert admitted >= min(burst, 4 * calls)  # a key starts with its whole burst


def test_a_demand_above_the_rate_gets_99_percent_of_it(tmp_path: Path, sync: Sync) -> None:
    """Without contention. A pause of this process longer than the burst (0.2 s) is no demand."""
    limit = RateLimiter(tmp_path / "limits", slots=64, sync=sync).limit(
        "x", rate=20_000, per=1.0, burst=4000
    )
    start = last = boottime()
    admitted = paused = 0
    while (now := boottime()) - start < SECOND:
        paused += max(0, now - last - SECOND // 5)
        last = now
        admitted += limit.acquire("k") >= 0
    assert admitted <= most_admitted(20_000, SECOND, 4000, boottime() - start)
    assert admitted >= 0.99 * most_admitted(20_000, SECOND, 4000, last - start - paused)


def test_kill_9_of_workers_never_lets_more_through(
    tmp_path: Path, sync: Sync, rng: random.Random
) -> None:
    """Every admission is written to a pipe before the next call, so the dead are counted too:
    each may have been admitted once more than it told."""
    code = """
import os, sys
from aegis_c import RateLimiter
limiter = RateLimiter(sys.argv[1], slots=64, sync=sys.argv[2])
limit = limiter.limit("x", rate=2000, per=1.0, burst=50)
churn = limiter.limit("churn", rate=1000000, per=1.0, burst=1)
n = 0
while True:
    if limit.acquire("shared") >= 0:
        os.write(1, b".")
    n += 1
    churn.acquire(str(n % 97))
"""

    def start() -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path / "limits"), sync], stdout=counted
        )

    with open(tmp_path / "counted", "ab") as counted:
        begin = boottime()
        running = [start() for _ in range(3)]
        for _ in range(KILLS):
            time.sleep(rng.random() * 0.06)
            victim = rng.randrange(len(running))
            running[victim].kill()
            assert running[victim].wait() == -signal.SIGKILL
            running[victim] = start()
        seen = counted.tell()
        deadline = time.monotonic() + 20
        while (tmp_path / "counted").stat().st_size < seen + 1:  # nobody hangs
            assert time.monotonic() < deadline
            time.sleep(0.01)
        for process in running:
            process.kill()
            process.wait()
    passed = boottime() - begin
    admitted = (tmp_path / "counted").stat().st_size
    assert 50 < admitted <= most_admitted(2000, SECOND, 50, passed)
    limit = RateLimiter(tmp_path / "limits", sync=sync).limit("x", rate=2000, per=1.0, burst=50)
    time.sleep(0.06)
    assert limit.acquire("shared") >= 0


@pytest.mark.forks
def test_a_child_shares_the_table_and_not_the_reservations(tmp_path: Path, sync: Sync) -> None:
    for path in (None, tmp_path / "limits"):
        limit = RateLimiter(path, slots=64, sync=sync).limit("x", rate=1, per=3600.0, burst=10)
        reservation = limit.reserve("k", 4)
        child = os.fork()
        if child == 0:
            status = 1
            try:
                assert limit.acquire("k", 4) == 2
                with pytest.raises(LimitError, match="before the fork"):
                    limit.settle(reservation, 0)
                status = 0
            finally:
                os._exit(status)
        assert os.waitpid(child, 0)[1] == 0
        assert limit.acquire("k", 0) == 2
        limit.settle(reservation, 0)
        assert limit.acquire("k", 0) == 6


def test_concurrency_comes_back_within_a_second_of_kill_9(tmp_path: Path) -> None:
    path = tmp_path / "calls"
    code = """
import sys, time
from aegis_c import ConcurrencyLimiter
limiter = ConcurrencyLimiter(sys.argv[1], slots=64)
assert all(limiter.enter("key", 5) for _ in range(5))
print("full", flush=True)
time.sleep(60)
"""
    limiter = ConcurrencyLimiter(path, slots=64)
    for _ in range(3):
        command = [sys.executable, "-c", code, str(path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as worker:
            assert worker.stdout is not None
            assert worker.stdout.readline() == "full\n"
            assert limiter.enter("key", 5) == 0
            assert limiter.reap() == 0  # it lives
            worker.kill()
            killed = time.monotonic()
            while not (lease := limiter.enter("key", 5)):
                assert time.monotonic() - killed < 1
                time.sleep(0.005)
        assert limiter.count("key") == 1
        assert limiter.leave(lease)
    assert limiter.stats()["reaped"] == 15


@pytest.mark.forks
def test_concurrency_in_a_child_is_the_childs_own(tmp_path: Path) -> None:
    for path in (None, tmp_path / "calls"):
        limiter = ConcurrencyLimiter(path, slots=64)
        lease = limiter.enter("k", 2)
        child = os.fork()
        if child == 0:
            status = 1
            try:
                assert not limiter.leave(lease)  # the parent's
                assert limiter.enter("k", 2)
                assert not limiter.enter("k", 2)
                status = 0
            finally:
                os._exit(status)
        assert os.waitpid(child, 0)[1] == 0
        assert limiter.count("k") == 2  # until somebody needs the place of the dead child
        died = time.monotonic()
        while not limiter.enter("k", 2):
            assert time.monotonic() - died < 1
            time.sleep(0.005)
        assert not limiter.enter("k", 2)
        assert limiter.leave(lease)


def test_a_burst_of_starting_workers_makes_one_table(tmp_path: Path, sync: Sync) -> None:
    code = """
import sys
from aegis_c import RateLimiter
limiter = RateLimiter(sys.argv[1], slots=4096, sync=sys.argv[2])
limit = limiter.limit("x", rate=1, per=3600.0, burst=3)
print(int(limit.acquire("k") >= 0))
"""
    command = [sys.executable, "-c", code, str(tmp_path / "new" / "limits"), sync]
    started = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(6)]
    assert sum(int(process.communicate()[0]) for process in started) == 3
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["limits"]
