"""The asyncio face of the write-ahead log, on asyncio and on uvloop."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
import uvloop

from aegis_c import WalError, WalReader
from aegis_c.ledger.wal import Wal, ring_bytes

Run = Callable[[Coroutine[Any, Any, None]], None]


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Run:
    return asyncio.run if request.param == "asyncio" else uvloop.run


def small(path: Path, **options: Any) -> Wal:
    return Wal(path, **{"segment_bytes": 1 << 18, "ring_bytes": 1 << 16, **options})


def test_durable(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        async with small(tmp_path / "wal") as wal:
            seqs = [wal.append(b"%d" % k) for k in range(100)]
            await asyncio.gather(*(wal.durable(seq) for seq in reversed(seqs)))
            assert wal.native.durable_seq == 100
            await wal.durable(1)  # what is durable already
            assert wal.waiting() == 0
        assert wal.closed
        assert len(list(WalReader(tmp_path / "wal"))) == 100

    run(main())


def test_a_crowd_asks_for_the_disk_together(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Waiters that were resolved together come back together: one demand, not one for each."""

    async def main() -> None:
        async with small(tmp_path / "wal", ring_bytes=1 << 20) as wal:
            asked: list[int] = []
            native = wal._want

            def want(seq: int) -> None:
                asked.append(seq)
                native(seq)

            monkeypatch.setattr(wal, "_want", want)

            async def one() -> None:
                await wal.durable(wal.append(b"x"))

            await one()
            assert asked == [1]  # alone: at once
            while not wal._crowded:
                await asyncio.gather(*(one() for _ in range(50)))
            asked.clear()
            last = wal.native.durable_seq
            await asyncio.gather(*(one() for _ in range(300)))
            assert asked == [last + 128, last + 256, last + 300]
            asked.clear()
            wal._crowded = True
            futures = [wal.durable(wal.append(b"x")) for _ in range(3)]
            assert asked == []
            await asyncio.wait_for(asyncio.gather(*futures), 20)
            assert asked == [last + 303]

    run(main())


def test_many_tasks(run: Run, tmp_path: Path) -> None:
    async def worker(wal: Wal, rng: random.Random) -> None:
        for _ in range(50):
            payload = rng.randbytes(rng.randrange(1, 2000))
            await wal.room(len(payload))
            seq = wal.append(payload)
            await wal.durable(seq)
            assert wal.native.durable_seq >= seq

    async def main() -> None:
        async with small(tmp_path / "wal") as wal:
            await asyncio.gather(*(worker(wal, random.Random(k)) for k in range(64)))
            assert wal.waiting() == 0
        assert len(list(WalReader(tmp_path / "wal"))) == 64 * 50

    run(main())


def test_cancelled_waiters(run: Run, tmp_path: Path) -> None:
    """Cancelling takes nothing back, and harms no other waiter."""

    async def main() -> None:
        async with small(tmp_path / "wal", max_delay_us=100_000) as wal:
            tasks = []
            for k in range(200):
                seq = wal.append(b"x%d" % k)
                tasks.append(asyncio.ensure_future(wal.durable(seq)))
            for task in tasks[::2]:
                task.cancel()
            done = await asyncio.gather(*tasks, return_exceptions=True)
            assert [isinstance(d, asyncio.CancelledError) for d in done] == [True, False] * 100
            assert wal.waiting() == 0
        assert len(list(WalReader(tmp_path / "wal"))) == 200

    run(main())


def test_room_is_first_come_first_served(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        async with small(tmp_path / "wal", max_delay_us=50_000) as wal:
            order: list[int] = []

            async def worker(k: int) -> None:
                await wal.room(20_000)
                order.append(k)
                wal.append(b"x" * 20_000)

            tasks = [asyncio.ensure_future(worker(k)) for k in range(12)]
            await asyncio.sleep(0)
            tasks[7].cancel()  # not in the way of those behind it
            await asyncio.gather(*tasks, return_exceptions=True)
            assert order == [k for k in range(12) if k != 7]
            with pytest.raises(ValueError, match="does not fit"):
                await wal.room(1 << 17)
        assert ring_bytes(1) == 24

    run(main())


def test_the_loop_goes_on_while_the_disk_works(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        async with Wal(tmp_path / "wal") as wal:
            worst = 0.0

            async def watch() -> None:
                nonlocal worst
                while True:
                    before = time.perf_counter()
                    await asyncio.sleep(0.001)
                    worst = max(worst, time.perf_counter() - before)

            watcher = asyncio.ensure_future(watch())
            for _ in range(300):
                await wal.durable(wal.append(b"x" * 2000))
            watcher.cancel()
            assert worst < 0.5

    run(main())


def test_close_resolves_waiters_and_may_be_repeated(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        wal = small(tmp_path / "wal", max_delay_us=1_000_000)
        waiter = wal.durable(wal.append(b"x"))
        await asyncio.gather(wal.close(), wal.close())
        await waiter  # closing made it durable
        await wal.close()
        with pytest.raises(WalError, match="closed"):
            wal.append(b"y")
        with pytest.raises(WalError, match="closed"):
            await wal.durable(1)
        with pytest.raises(WalError, match="closed"):
            await wal.room(1)

    run(main())


def test_loop_that_ends_without_close(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        wal = small(tmp_path / "wal")
        kept.append(wal)
        wal.append(b"x")
        waiter = asyncio.ensure_future(wal.durable(wal.append(b"y")))
        await asyncio.sleep(0)
        waiter.cancel()

    kept: list[Wal] = []
    run(main())
    kept[0].native.close()
    assert len(list(WalReader(tmp_path / "wal"))) == 2


def test_waiter_beyond_the_end_gets_its_answer_at_close(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        wal = small(tmp_path / "wal")
        waiter = wal.durable(1000)
        await asyncio.sleep(0.01)
        assert not waiter.done()
        await wal.close()
        with pytest.raises(WalError, match="closed"):
            await waiter

    run(main())
