"""What the tests of the native types share: one working example of every public call."""

from __future__ import annotations

import ctypes
import gc
import json
import os
import sys
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable
from contextvars import copy_context
from pathlib import Path
from typing import Any

import aegis_c

SECRET = b"s" * 32


def entry_meta(n: int = 0) -> bytes:
    """A small entry with an id."""
    return json.dumps({"v": 1, "id": str(uuid.UUID(int=n + 1)), "n": n}).encode()


class Mallinfo2(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            "arena",
            "ordblks",
            "smblks",
            "hblks",
            "hblkhd",
            "usmblks",
            "fsmblks",
            "uordblks",
            "fordblks",
            "keepcost",
        )
    ]


def heap_bytes() -> int:
    """Bytes in use on the C heap (glibc's mallinfo2)."""
    libc = ctypes.CDLL(None)
    libc.mallinfo2.restype = Mallinfo2
    info = libc.mallinfo2()
    return int(info.uordblks + info.hblkhd)


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def running_threads() -> int:
    return len(os.listdir("/proc/self/task"))


def held() -> tuple[int, int, int, int]:
    """(Python's memory blocks, C heap bytes, descriptors, threads) in use."""
    gc.collect()
    return sys.getallocatedblocks(), heap_bytes(), open_descriptors(), running_threads()


def check_no_leak(
    call: Callable[[], object], times: int = 300, settle: Callable[[], object] = lambda: None
) -> None:
    """Calls `call` many times; what is held afterwards must not grow with the number.

    A leak adds at least one block of 16 bytes, a descriptor or a thread with every call. Caches
    may grow in the first rounds, so one of five rounds has to stay below half a block per call.
    `settle` waits for native threads.
    """
    for _ in range(times):
        call()
    for _ in range(5):
        settle()
        before = held()
        for _ in range(times):
            call()
        settle()
        grown = [new - old for new, old in zip(held(), before, strict=True)]
        if grown[0] < times // 2 and grown[1] < times * 8 and grown[2] <= 0 and grown[3] <= 0:
            return
    raise AssertionError(
        f"{times} more calls hold {grown[0]} more blocks, {grown[1]} more bytes of the C heap, "
        f"{grown[2]} more descriptors, {grown[3]} more threads"
    )


def ignore(error: type[BaseException], call: Callable[[], object]) -> Callable[[], object]:
    """The call, which must raise `error`."""

    def run() -> None:
        try:
            call()
        except error:
            return
        raise AssertionError(f"{error.__name__} was not raised")

    return run


def handover_calls() -> dict[str, Callable[[], object]]:
    """Every method of HandOver, good and bad arguments."""
    context = copy_context()

    def job() -> None:
        pass

    def whole() -> None:
        queue: deque[Any] = deque()
        woken: list[object] = []

        def call_soon(wake: object, *, context: object) -> None:
            woken.append((wake, context))

        entrance = aegis_c.HandOver(queue, call_soon, job, context)
        entrance.spawn("a", job)
        entrance.spawn(None, job, 1, "two")
        assert woken == [(job, context)]  # once, until a worker sleeps again
        entrance.sleeps()
        entrance.spawn(None, job, [3])
        assert len(woken) == 2
        assert [item[1:] for item in queue] == [
            ("a", job, ()),
            (None, job, (1, "two")),
            (None, job, ([3],)),
        ]
        assert 0 <= time.clock_gettime(time.CLOCK_MONOTONIC) - queue[0][0] < 60
        ignore(TypeError, lambda: entrance.spawn("a"))()  # type: ignore[call-arg]
        entrance.close()
        ignore(RuntimeError, lambda: entrance.spawn(None, job))()
        assert len(queue) == 3

    def refused() -> None:
        """A loop that takes no wake-up: nothing is appended, and the next one asks again."""
        queue: deque[Any] = deque()
        entrance = aegis_c.HandOver(queue, ignore, job, context)
        for _ in range(2):
            ignore(TypeError, lambda: entrance.spawn(None, job))()
        assert not queue

    def in_a_circle() -> None:
        queue: deque[Any] = deque()
        entrance = aegis_c.HandOver(queue, lambda *_, **__: None, job, context)
        entrance.spawn(entrance, entrance.spawn, queue)

    return {
        "whole": whole,
        "refused": refused,
        "in a circle": in_a_circle,
        "no queue": ignore(
            AttributeError,
            lambda: aegis_c.HandOver(object(), job, job, context),  # type: ignore[arg-type]
        ),
        "no arguments": ignore(TypeError, lambda: aegis_c.HandOver()),  # type: ignore[call-arg]
    }


def commitment_calls() -> dict[str, Callable[[], object]]:
    """Every method of Commitment, good and bad arguments."""
    identity = str(uuid.UUID(int=7))

    def make() -> aegis_c.Commitment:
        return aegis_c.Commitment(SECRET, identity, "request")

    def whole() -> None:
        c = make()
        c.update(b"a" * 5000)
        c.update(bytearray(b"b" * 20000))
        c.update(memoryview(b"c"))
        c.finish()
        c.finish()
        assert len(c.salt) == 32
        ignore(ValueError, lambda: c.update(b"x"))()

    return {
        "whole": whole,
        "id as bytes": lambda: aegis_c.Commitment(SECRET, b"i" * 16, "response"),
        "bad id": ignore(ValueError, lambda: aegis_c.Commitment(SECRET, "no", "request")),
        "bad role": ignore(
            ValueError,
            lambda: aegis_c.Commitment(SECRET, identity, "both"),  # type: ignore[arg-type]
        ),
        "empty secret": ignore(ValueError, lambda: aegis_c.Commitment(b"", identity, "request")),
        "no buffer": ignore(TypeError, lambda: make().update("text")),  # type: ignore[arg-type]
        "detached": lambda: make().update(b"d" * 100_000),
    }


def ledger_calls(ledger: aegis_c.Ledger) -> dict[str, Callable[[], object]]:
    """Every method of Ledger, good and bad arguments. Expects published entries."""
    identity = str(uuid.UUID(int=9))
    last = len(ledger) - 1
    far = 1 << 62

    def submit_finished() -> None:
        c = ledger.commitment(identity, "request")
        c.update(b"body")
        ledger.submit(entry_meta(), c)

    return {
        "submit": lambda: ledger.submit(entry_meta()),
        "submit bodies": lambda: ledger.submit(entry_meta(), b"q" * 100, b"r" * 100),
        "submit detached": lambda: ledger.submit(entry_meta(), b"q" * 100_000, secret=SECRET),
        "submit finished": submit_finished,
        "submit no object": ignore(ValueError, lambda: ledger.submit(b"[]")),
        "submit no id": ignore(ValueError, lambda: ledger.submit(b'{"v":1}', b"body")),
        "submit too large": ignore(
            aegis_c.LedgerError, lambda: ledger.submit(b'{"a":"' + b"x" * 70_000 + b'"}')
        ),
        "submit str": ignore(TypeError, lambda: ledger.submit("{}")),  # type: ignore[arg-type]
        "submit bad body": ignore(TypeError, lambda: ledger.submit(b"{}", 7)),  # type: ignore[arg-type]
        "submit keyword": ignore(
            TypeError,
            lambda: ledger.submit(b"{}", other=7),  # type: ignore[call-arg]
        ),
        "commitment": lambda: ledger.commitment(identity, "response", secret=SECRET),
        "salt": lambda: ledger.salt(identity, "request"),
        "salt bad role": ignore(
            ValueError,
            lambda: ledger.salt(identity, "x"),  # type: ignore[arg-type]
        ),
        "want": lambda: ledger.want(last, "published"),
        "want beyond": ignore(IndexError, lambda: ledger.want(far)),
        "want bad state": ignore(
            ValueError,
            lambda: ledger.want(0, "gone"),  # type: ignore[arg-type]
        ),
        "wait": lambda: ledger.wait(last, "published", 10),
        "wait beyond": ignore(IndexError, lambda: ledger.wait(far, timeout=0)),
        "wait bad timeout": ignore(ValueError, lambda: ledger.wait(0, timeout=-1)),
        "drain": ledger.drain,
        "fileno": ledger.fileno,
        "room": ledger.room,
        "entry": lambda: ledger.entry(last),
        "entry of a bundle": lambda: ledger.entry(0),
        "find by bytes": lambda: ledger.find(uuid.UUID(int=3).bytes),
        "find": lambda: ledger.find(str(uuid.UUID(int=2))),
        "find no id": ignore(ValueError, lambda: ledger.find("x")),
        "open_intents": ledger.open_intents,
        "entry beyond": ignore(IndexError, lambda: ledger.entry(far)),
        "entry negative": ignore(IndexError, lambda: ledger.entry(-1)),
        "checkpoint": ledger.checkpoint,
        "root": ledger.root,
        "root beyond": ignore(IndexError, lambda: ledger.root(far)),
        "inclusion_proof": lambda: ledger.inclusion_proof(3, 200),
        "inclusion_proof beyond": ignore(IndexError, lambda: ledger.inclusion_proof(9, 9)),
        "consistency_proof": lambda: ledger.consistency_proof(100, 200),
        "consistency_proof beyond": ignore(IndexError, lambda: ledger.consistency_proof(5, 4)),
        "receipt": lambda: ledger.receipt(5),
        "receipt beyond": ignore(IndexError, lambda: ledger.receipt(far)),
        "stats": ledger.stats,
        "len": lambda: len(ledger),
        "properties": lambda: (
            ledger.size,
            ledger.durable_size,
            ledger.integrated_size,
            ledger.published_size,
            ledger.origin,
            ledger.vkey,
            ledger.path,
            ledger.poisoned,
        ),
    }


def wal_calls(wal: aegis_c.WalWriter, path: Path) -> dict[str, Callable[[], object]]:
    """Every method of WalWriter and WalReader, good and bad arguments. Expects records."""

    segment = min(path.glob("*.seg")).read_bytes()

    def read_all() -> None:
        with aegis_c.WalReader(path) as reader:
            assert sum(1 for _ in reader) >= 1

    return {
        "append": lambda: wal.append(b"x" * 100),
        "append empty": ignore(ValueError, lambda: wal.append(b"")),
        "append str": ignore(TypeError, lambda: wal.append("text")),  # type: ignore[arg-type]
        "want": lambda: wal.want(1),
        "sync": wal.sync,
        "sync beyond": ignore(IndexError, lambda: wal.sync(1 << 60, 0.0)),
        "drain": wal.drain,
        "fileno": wal.fileno,
        "room": wal.room,
        "want_room": lambda: wal.want_room(10),
        "release": lambda: wal.release(1, b"blob"),
        "reopen": wal.reopen,
        "stats": wal.stats,
        "properties": lambda: (wal.durable_seq, wal.low_water, wal.poisoned, wal.closed),
        "second writer": ignore(aegis_c.WalLocked, lambda: aegis_c.WalWriter(path)),
        "read": read_all,
        "verify": lambda: aegis_c.WalReader.verify(path),
        "salvage": lambda: aegis_c.WalReader.salvage(segment, 1),
        "salvage of junk": lambda: aegis_c.WalReader.salvage(b"junk" * 5000, 1),
        "read nothing": ignore(aegis_c.WalError, lambda: aegis_c.WalReader(path / "none")),
    }


def limiter_calls(folder: Path) -> dict[str, Callable[[], object]]:
    """Every method of the limiters' types, good and bad arguments."""
    limiter = aegis_c.RateLimiter(slots=1 << 10)
    calls = aegis_c.ConcurrencyLimiter(slots=1 << 6)
    plenty = limiter.limit("plenty", rate=1_000_000_000, per=1.0, burst=1_000_000_000)
    scarce = limiter.limit("scarce", rate=1, per=3600.0, burst=1)
    plan = limiter.plan(plenty, scarce)
    scarce.acquire("key")

    def reserve_and_settle() -> None:
        reservation = plenty.reserve("key", 10)
        plenty.settle(reservation, 5)
        assert reservation.settled
        ignore(aegis_c.LimitError, lambda: plenty.settle(reservation, 5))()

    def enter_and_leave() -> None:
        lease = calls.enter(b"key", 2)
        assert lease and calls.count("key") == 1
        assert calls.leave(lease) and not calls.leave(lease)

    def describe() -> None:
        d = scarce.check("key")
        assert not d and not d.allowed
        repr((d.limit, d.remaining, d.retry_after, d.reset_after, d.name, d.each, plan, limiter))

    return {
        "acquire": lambda: plenty.acquire("key", 2),
        "acquire refused": lambda: scarce.acquire(b"key"),
        "acquire too much": ignore(aegis_c.LimitError, lambda: scarce.acquire("key", 2)),
        "check": describe,
        "reserve and settle": reserve_and_settle,
        "plan acquire": lambda: plan.acquire(("key", "key"), (1, 1)),
        "plan reserve": lambda: plan.reserve(("key", "key"), 1).decision,
        "plan of wrong length": ignore(ValueError, lambda: plan.acquire(("key",))),
        "limit": lambda: limiter.limit("other", rate=5, per=1.0, burst=5),
        "limit of nothing": ignore(
            ValueError, lambda: limiter.limit("bad", rate=0, per=1.0, burst=5)
        ),
        "plan": lambda: limiter.plan(plenty),
        "stats": lambda: (limiter.stats(), calls.stats(), limiter.path),
        "enter and leave": enter_and_leave,
        "reap": calls.reap,
        "open": lambda: aegis_c.RateLimiter(folder / "limits", slots=1 << 8),
        "open for concurrency": lambda: aegis_c.ConcurrencyLimiter(folder / "calls", slots=8),
        "open below a file": ignore(
            aegis_c.LimitError, lambda: aegis_c.RateLimiter(folder / "limits" / "below")
        ),
    }


def filled_ledger(folder: Path, entries: int = 300) -> aegis_c.Ledger:
    """A ledger with published entries."""
    ledger = aegis_c.Ledger(folder / "ledger" / "w0", publish_gap_us=1000, segment_bytes=1 << 20)
    for n in range(entries):
        ledger.submit(entry_meta(n), b"request", b"response")
    ledger.wait(entries - 1, "published", 30)
    return ledger


def counts_while(call: Callable[[], object]) -> int:
    """How far another Python thread counts while `call` runs: 0 if the call keeps the GIL."""
    count = 0
    stop = False

    def work() -> None:
        nonlocal count
        while not stop:
            count += 1

    worker = threading.Thread(target=work)
    worker.start()
    try:
        while count == 0:
            pass
        before = count
        call()
        return count - before
    finally:
        stop = True
        worker.join()
