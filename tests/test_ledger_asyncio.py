"""AsyncLedger: waiting for states, in order, under cancellation, poison and close."""

import asyncio
import gc
import json
import resource
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import uvloop

from aegis_c import LedgerError
from aegis_c.ledger import AsyncLedger, fsck, ids
from aegis_c.ledger.layout import DataDir
from logs import entry, request_id

Run = Callable[[Coroutine[Any, Any, Any]], Any]


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Run:
    """Runs a coroutine on a fresh loop of each kind, with asyncio's own checks switched on."""
    factory = uvloop.new_event_loop if request.param == "uvloop" else asyncio.new_event_loop

    def run(coroutine: Coroutine[Any, Any, Any]) -> Any:
        with asyncio.Runner(loop_factory=factory, debug=True) as runner:
            return runner.run(asyncio.wait_for(coroutine, 60))

    return run


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data/ledger/w0"


@contextmanager
def full_disk(limit: int = 64 << 10) -> Iterator[None]:
    """Inside, no file of this process grows beyond `limit` octets (EFBIG)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_each_entry_goes_through_its_states_in_order(run: Run, path: Path) -> None:
    async def main() -> None:
        async with AsyncLedger(path) as ledger:
            order: list[tuple[str, int]] = []

            async def follow(index: int) -> None:
                for state in ("durable", "integrated", "published"):
                    await getattr(ledger, state)(index)
                    order.append((state, index))

            indices = [ledger.submit(entry(i), b"q", b"a") for i in range(50)]
            assert indices == list(range(50))
            await asyncio.gather(*(follow(i) for i in indices))
            for state in ("durable", "integrated", "published"):
                assert sorted(i for s, i in order if s == state) == indices
            for index in indices:
                assert order.index(("durable", index)) < order.index(("integrated", index))
                assert order.index(("integrated", index)) < order.index(("published", index))
            assert ledger.waiting() == 0
            assert json.loads(ledger.native.entry(7))["id"] == request_id(7)

    run(main())


def test_thousands_of_waiters_are_resolved_and_the_loop_keeps_turning(run: Run, path: Path) -> None:
    async def main() -> None:
        async with AsyncLedger(path) as ledger:
            last = [ledger.submit(entry(i)) for i in range(5000)][-1]
            waiters = [asyncio.ensure_future(ledger.durable(last)) for _ in range(5000)]
            await asyncio.gather(*waiters)
            await ledger.published(last)
            assert ledger.native.published_size == 5000
            assert ledger.waiting() == 0

    run(main())


def test_a_state_that_is_reached_returns_at_once(run: Run, path: Path) -> None:
    async def main() -> None:
        async with AsyncLedger(path) as ledger:
            index = ledger.submit(entry(0))
            await ledger.published(index)
            ready = ledger.published(index)
            with pytest.raises(StopIteration):
                ready.send(None)

    run(main())


def test_an_entry_that_does_not_exist_is_an_error_not_a_hang(run: Run, path: Path) -> None:
    async def main() -> None:
        async with AsyncLedger(path) as ledger:
            for index in (0, 7, -1):
                with pytest.raises(IndexError, match=str(index)):
                    await ledger.durable(index)

    run(main())


def test_cancelled_waiters_leave_nothing_behind(run: Run, path: Path) -> None:
    async def main() -> None:
        async with AsyncLedger(path, publish_gap_us=300_000) as ledger:
            first = ledger.submit(entry(0))
            await ledger.published(first)  # the next checkpoint comes 300 ms later
            index = ledger.submit(entry(1))
            for _ in range(20):
                tasks = [asyncio.ensure_future(ledger.published(index)) for _ in range(50)]
                await asyncio.sleep(0)
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
            assert ledger.waiting() == 0
            held = ledger._waiters["published"]._heap
            assert len(held) < 200
            await ledger.published(index)
            assert ledger.waiting() == 0

    run(main())


def test_close_publishes_everything_and_may_be_called_again(run: Run, path: Path) -> None:
    async def main() -> None:
        ledger = AsyncLedger(path)
        for i in range(300):
            ledger.submit(entry(i))
        waiter = asyncio.ensure_future(ledger.published(299))
        await asyncio.gather(ledger.close(), ledger.close())
        await ledger.close()
        await waiter
        with pytest.raises(LedgerError):
            ledger.submit(entry(300))
        with pytest.raises(LedgerError):
            await ledger.durable(0)

    run(main())
    report = fsck.check_shard(path)
    assert report.problems == []
    assert report.size == 300


def test_a_cancelled_close_still_closes(run: Run, path: Path) -> None:
    async def main() -> None:
        ledger = AsyncLedger(path)
        ledger.submit(entry(0))
        closing = asyncio.ensure_future(ledger.close())
        await asyncio.sleep(0)
        closing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await closing
        await ledger.close()
        async with AsyncLedger(path) as again:  # the lock is free
            assert again.native.published_size == 1

    run(main())


def test_poison_reaches_every_waiter_and_later_ones(run: Run, path: Path) -> None:
    async def main() -> None:
        ledger = AsyncLedger(path)
        kept = ledger.submit(entry(0))
        await ledger.durable(kept)
        published = asyncio.ensure_future(ledger.published(kept))
        waits = (ledger.durable, ledger.integrated, ledger.published)
        waiting = []
        last = kept
        with full_disk(0):  # not an octet: a reopened log must not find room in its spare
            while last < 1000:  # some wait before the failure, some meet it when they begin
                try:
                    last = ledger.submit(entry(last + 1, client_id="x" * 250))
                except LedgerError:
                    break
                if last % 100 == 0:
                    waiting += [asyncio.ensure_future(wait(last)) for wait in waits]
                    await asyncio.sleep(0)
            waiting += [asyncio.ensure_future(wait(last)) for wait in waits]
            results = await asyncio.gather(*waiting, return_exceptions=True)
            assert ledger.native.poisoned
            assert all(isinstance(result, LedgerError) for result in results[-3:]), results
            assert all(result is None or isinstance(result, LedgerError) for result in results)
            with pytest.raises(LedgerError):
                await ledger.durable(last)
            with pytest.raises(LedgerError):
                ledger.submit(entry(2000))
        await published  # what was durable is published nevertheless
        assert ledger.waiting() == 0
        while ledger.native.poisoned:  # noqa: ASYNC110 (with room it comes back by itself)
            await asyncio.sleep(0.01)
        assert ledger.submit(entry(2000)) == last + 1  # and what was submitted has its place
        await ledger.published(last + 1)
        assert ledger.native.entry(last) == entry(last, client_id="x" * 250)
        await ledger.close()

    run(main())


def test_the_loop_is_free_while_the_ledger_works(run: Run, path: Path) -> None:
    async def main() -> None:
        async with AsyncLedger(path) as ledger:
            turns = 0
            last = [ledger.submit(entry(i)) for i in range(2000)][-1]
            waiter = asyncio.ensure_future(ledger.published(last))
            while not waiter.done():
                turns += 1
                await asyncio.sleep(0)
            assert turns > 10

    run(main())


def test_ids_are_found_after_a_restart_and_open_intents_are_named(run: Run, path: Path) -> None:
    shard = DataDir(path.parents[1]).shard("w0")

    async def write() -> None:
        async with AsyncLedger(path) as ledger:
            ledger.submit(entry(0))
            ledger.submit(entry(1, kind="intent"))
            ledger.submit(entry(2, kind="intent"))
            ledger.submit(entry(1, kind="settle", of=1, status="done"))
            last = ledger.submit(b'{"not":"an entry"}')
            assert await ledger.find(request_id(1)) == [1, 3]  # submitted only
            await ledger.integrated(last)
            assert await ledger.find(request_id(1)) == [1, 3]
            await ledger.published(last)
            assert ids.find(shard, request_id(1)) == [1, 3]  # as another process does
            assert ledger.native.open_intents() == []  # none when it was opened

    async def read() -> None:
        async with AsyncLedger(path) as ledger:
            assert await ledger.find(request_id(0)) == [0]
            assert await ledger.find(request_id(1)) == [1, 3]
            assert await ledger.find(request_id(9)) == []
            assert ledger.native.open_intents() == [2]

    run(write())
    run(read())
    assert ids.find(shard, request_id(1)) == [1, 3]
    assert ids.find(shard, request_id(9)) == []


@pytest.mark.parametrize(
    "unknown", ["", "x", request_id(0xABC).upper(), "0" * 36, request_id(0) + " ", "\ud800"]
)
def test_only_the_usual_text_of_an_id_is_known(run: Run, path: Path, unknown: str) -> None:
    async def main() -> None:
        async with AsyncLedger(path) as ledger:
            ledger.submit(entry(0xABC))
            assert await ledger.find(request_id(0xABC)) == [0]
            assert await ledger.find(unknown) == []

    run(main())
    assert ids.find(DataDir(path.parents[1]).shard("w0"), unknown) == []


def test_a_failed_open_leaves_no_lock(run: Run, path: Path) -> None:
    async def main() -> None:
        async with AsyncLedger(path):
            with pytest.raises(LedgerError):
                AsyncLedger(path)
        async with AsyncLedger(path):
            pass

    run(main())
    gc.collect()
