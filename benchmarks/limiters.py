"""What `test_limits.py` measures of one limiter, in a process of its own.

    python -m benchmarks.limiters NAME [--keys N]     # prints one line of JSON

Every limiter gets the same work: keys of 40 characters, a limit that keeps a key's charge alive
for minutes and refuses nothing. A limiter that is not installed: exit status 3.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import json
import random
import statistics
import sys
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any, Final

from aegis_c import RateLimiter
from benchmarks.machine import resident_bytes

Acquire = Callable[[str], Any]

SECOND: Final = 10**9
DAY: Final = 86_400
RATE, BURST = 100, 1_000_000  # a day: one call keeps its key in the table for 14 minutes
BATCH: Final = 2000
NOT_INSTALLED: Final = 3


def aegis(slots: int = 1_500_000, path: str | None = None) -> Acquire:
    return RateLimiter(path, slots=slots).limit("x", rate=RATE, per=DAY, burst=BURST).acquire


def floor() -> Acquire:
    """The loop around a call, and a look at the key's first character."""
    return str.isdigit


def dict_and_lock() -> Acquire:
    """GCRA in a dict under a lock, as one would write it."""
    tats: dict[str, int] = {}
    lock = threading.Lock()
    unit = DAY * SECOND // RATE
    tolerance = unit * BURST

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

    quota = rate_limiter.per_duration(timedelta(days=1), RATE, BURST)
    store = MemoryStore(options={"MAX_SIZE": 2_000_000})
    return Throttled(using="gcra", quota=quota, store=store).limit


def limits() -> Acquire:
    from limits import RateLimitItemPerDay
    from limits.storage import MemoryStorage
    from limits.strategies import FixedWindowRateLimiter

    limiter, item = FixedWindowRateLimiter(MemoryStorage()), RateLimitItemPerDay(BURST)
    return lambda key: limiter.hit(item, key)


def pyrate_limiter() -> Acquire:
    from pyrate_limiter import InMemoryBucket, Limiter, Rate

    limiters: dict[str, Any] = {}

    def acquire(key: str) -> Any:  # a bucket of its own a key, as its documentation shows
        limiter = limiters.get(key)
        if limiter is None:
            bucket = InMemoryBucket([Rate(BURST, DAY * 1000)])
            limiter = limiters[key] = Limiter(bucket)
        return limiter.try_acquire(key, blocking=False)

    return acquire


def fast_litellm() -> Acquire:
    from fast_litellm import SimpleRateLimiter

    return SimpleRateLimiter(1_000_000_000).is_allowed


#: By name: how it is made, the module that it needs, and the keys that it can hold here.
LIMITERS: Final[dict[str, tuple[Callable[[], Acquire], str, int]]] = {
    "aegis": (aegis, "aegis_c", 1_000_000),
    "nothing": (floor, "builtins", 1_000_000),
    "dict and lock": (dict_and_lock, "builtins", 1_000_000),
    "throttled-py": (throttled_py, "throttled", 1_000_000),
    "limits": (limits, "limits", 1_000_000),
    # Its buckets keep an object a call, and a thread.
    "pyrate-limiter": (pyrate_limiter, "pyrate_limiter", 1000),
    # Not in the extra `bench`, for it wants all of LiteLLM: pip install --no-deps fast-litellm
    "fast-litellm": (fast_litellm, "fast_litellm", 1_000_000),
}


def installed(name: str) -> bool:
    return importlib.util.find_spec(LIMITERS[name][1]) is not None


def key(number: int) -> str:
    return f"user-{number:035d}"


def call_all(acquire: Acquire, keys: list[str]) -> None:
    for one in keys:
        acquire(one)


def nanoseconds(acquire: Acquire, keys: list[str]) -> float:
    """Of one call."""
    start = time.perf_counter_ns()
    call_all(acquire, keys)
    return (time.perf_counter_ns() - start) / len(keys)


def known(acquire: Acquire, count: int, rounds: int) -> float:
    """Median of a call for a random one of the keys that it knows; the key itself is fresh."""
    rng = random.Random(7)
    rows = [
        nanoseconds(acquire, [key(rng.randrange(count)) for _ in range(BATCH)])
        for _ in range(rounds)
    ]
    return statistics.median(rows)


def fill(acquire: Acquire, count: int) -> float:
    """Makes `count` keys known; median of a key's first call."""
    batch = min(BATCH, count)
    return statistics.median(
        nanoseconds(acquire, [key(first + i) for i in range(batch)])
        for first in range(0, count, batch)
    )


def old(acquire: Acquire, count: int) -> float:
    """A call each for some of the strings that lie where they were made long ago."""
    keys = [key(i) for i in range(count)]
    random.Random(7).shuffle(keys)
    some = -(-count // 8)
    return min(nanoseconds(acquire, keys[i * some : (i + 1) * some]) for i in range(2))


def threads_against_one(make: Callable[[], Acquire], count: int, rounds: int) -> float:
    """Calls a second of 8 threads by those of one, in turns of a quarter of a second."""
    acquire = make()
    fill(acquire, count)
    rng = random.Random(7)
    keys = [key(rng.randrange(count)) for _ in range(BATCH if rounds > 1 else 8)]
    each = min(nanoseconds(acquire, keys) for _ in range(3)) * len(keys)
    repeats = 8 * round(0.25e9 / 8 / each + 1) if rounds > 1 else 8

    def call_again(times: int) -> None:
        for _ in range(times):
            call_all(acquire, keys)

    def seconds(threads: int) -> float:
        started = [
            threading.Thread(target=call_again, args=(repeats // threads,)) for _ in range(threads)
        ]
        start = time.perf_counter()
        for thread in started:
            thread.start()
        for thread in started:
            thread.join()
        return time.perf_counter() - start

    return statistics.median(seconds(1) / seconds(8) for _ in range(rounds))


def measure(name: str, keys: int) -> dict[str, float]:
    make, _, most = LIMITERS[name]
    many = min(keys, most)
    rounds = 60 if keys > 1000 else 1
    found: dict[str, float] = {}
    fill(make(), min(2 * BATCH, many))  # what the interpreter keeps for itself
    gc.collect()
    before = resident_bytes()
    acquire = make()
    new = fill(acquire, many)
    gc.collect()
    bytes_a_key = (resident_bytes() - before) / many
    if many == keys:  # a limiter that cannot hold them has no such figures
        found["ns, 1 M keys"] = known(acquire, many, rounds)
        found["ns, a new key"] = new
        found["ns, 1 M old keys"] = old(acquire, many)
        if name != "nothing":
            found["bytes a key"] = bytes_a_key
    if name == "aegis":  # none was refused, and all are still live
        assert all(0 <= acquire(key(i)) < BURST - 1 for i in range(many))
    del acquire
    for label, count in (("ns, 1 key", 1), ("ns, 1 k keys", min(1000, many))):
        one = make()
        fill(one, count)
        found[label] = known(one, count, rounds)
    if name != "nothing":
        found["8 threads / 1"] = threads_against_one(make, min(1000, many), min(5, rounds))
    return found


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.limiters", description=__doc__)
    parser.add_argument("name", choices=LIMITERS)
    parser.add_argument("--keys", type=int, default=1_000_000)
    options = parser.parse_args(arguments)
    if not installed(options.name):
        return NOT_INSTALLED
    print(json.dumps(measure(options.name, options.keys)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
