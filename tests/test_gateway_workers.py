"""Several workers: one port, a shard each, and what happens when one of them ends."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

import upstream
from aegis_c.gateway.process.acceptor import Board
from aegis_c.ledger import verify
from gateway_process import Process, entries, refused, serving
from gateway_rig import ASK, AUDITOR, KEY, KEYS, SCHEMA, Client, Reply, key, request, run, until
from upstream import Exchange, delta

STREAM = {**ASK, "stream": True}


def children(pid: int) -> list[int]:
    """The processes that ``pid`` has forked, in order."""
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(word) for word in text.split()]


async def calls(server: Process, clients: int) -> list[str]:
    """One call on each of so many connections that are open at the same time; the ids."""

    async def one(ready: asyncio.Barrier) -> str:
        async with server.client() as client:
            await ready.wait()
            await client.write(request())
            reply = await client.reply()
            assert reply.status == 200
            await ready.wait()
            return reply.headers["x-request-id"]

    ready = asyncio.Barrier(clients)
    return await asyncio.gather(*(one(ready) for _ in range(clients)))


async def get(server: Process, path: str, secret: str) -> Reply:
    async with server.client() as client:
        await client.write(request(b"", method="GET", path=path, secret=secret))
        return await client.reply()


async def any_worker_answers_for_all(server: Process, ids: list[str]) -> None:
    """Receipts of every call and the metrics of every worker, over any connection."""
    for one in ids:
        receipt = await get(server, f"/v1/receipts/{one}", KEY)
        assert receipt.status == 200
        assert one in receipt.body.decode()
    for one in ids[-4:]:  # whoever wrote it, it is waited for
        raw = (await get(server, f"/v1/receipts/{one}?wait=1", KEY)).body
        key = verify.parse_vkey(json.loads(raw)["vkey"])
        assert verify.verify_receipt(raw, key).entries[0].entry["id"] == one
    foreign = await get(server, f"/v1/receipts/{ids[0]}", AUDITOR)
    unknown = await get(server, f"/v1/receipts/{'0' * 36}", KEY)
    assert (foreign.status, foreign.body) == (404, unknown.body)
    for _ in range(3):
        exposition = (await get(server, "/metrics", KEY)).body.decode()
        made: dict[str, float] = {}
        for family in text_string_to_metric_families(exposition):
            for sample in family.samples:
                assert "worker" in sample.labels, sample
                if sample.name == "aegis_entries_total" and sample.labels["kind"] == "call":
                    made[sample.labels["worker"]] = sample.value
                if sample.name == "aegis_worker_up":
                    assert sample.value == 1
        assert set(made) == {"0", "1", "2"}
        assert sum(made.values()) == len(ids)


async def stays_open(exchange: Exchange) -> None:
    """A stream that says one thing and then nothing."""
    if not json.loads(exchange.body).get("stream"):
        await upstream.answer(exchange)
        return
    await exchange.begin_stream()
    await exchange.chunk(delta("one"))
    await exchange.gone()


def kinds(found: list[dict[str, Any]], *wanted: str) -> list[dict[str, Any]]:
    return [entry for entry in found if entry["kind"] in wanted]


def test_each_worker_writes_a_shard_and_fewer_workers_lose_nothing(tmp_path: Path) -> None:
    async def main() -> None:
        async with upstream.running() as up:
            async with serving(tmp_path, up.url, AEGIS_WORKERS=3) as server:
                await any_worker_answers_for_all(server, await calls(server, 24))
                assert await server.end() == 0
            shards = {name: await entries(tmp_path, name) for name in ("w0", "w1", "w2")}
            spread = [len(kinds(found, "call")) for found in shards.values()]
            assert sum(spread) == 24
            assert min(spread) >= 1, spread  # a busy worker may leave more to the others
            events = [e for e in shards["w0"] if e.get("event") == "shards"]
            assert [e["shards"] for e in events] == [{"served": ["w0", "w1", "w2"], "closed": []}]
            assert not [e for n in ("w1", "w2") for e in shards[n] if e.get("event") == "shards"]
            for found in shards.values():
                for entry in found:
                    SCHEMA.validate(entry)

            for _ in range(2):  # the second time nothing has changed
                async with serving(tmp_path, up.url) as server:
                    assert await server.end() == 0
            found = await entries(tmp_path)
            events = [e["shards"] for e in found if e.get("event") == "shards"]
            assert len(events) == 2
            assert events[1]["served"] == ["w0"]
            for closed in events[1]["closed"]:
                folder = tmp_path / "ledger" / closed["name"]
                vkey = verify.load_vkey(str(folder / "log.vkey"))
                note = (folder / "checkpoint").read_bytes()
                checkpoint = verify.open_checkpoint(note, vkey, "checkpoint")
                assert checkpoint.size == closed["size"] == len(shards[closed["name"]])

    run(main())


def test_what_a_killed_gateway_left_open_is_settled_in_shards_without_a_worker(
    tmp_path: Path,
) -> None:
    async def main() -> None:
        async with upstream.running(stays_open) as up:
            async with serving(tmp_path, up.url, AEGIS_WORKERS=2) as server:
                clients = []
                for _ in range(8):
                    client = await connect(server)
                    clients.append(client)
                    await client.write(request(STREAM))
                    await client.head()
                await asyncio.sleep(0.2)
                os.killpg(server.pid, signal.SIGKILL)
                for client in clients:
                    await client.close()
            async with serving(tmp_path, up.url) as server:
                assert await server.end() == 0
        streams = 0
        for name in ("w0", "w1"):
            found = await entries(tmp_path, name)
            intents, settles = kinds(found, "intent"), kinds(found, "settle")
            assert len(intents) == len(settles) >= 1
            assert {e["id"] for e in intents} == {e["id"] for e in settles}
            assert {e["status"] for e in settles} == {"abandoned"}
            streams += len(intents)
        assert streams == 8

    run(main())


async def connect(server: Process) -> Client:
    port = int(server.address.rsplit(":", 1)[1])
    return Client(*await asyncio.open_connection("127.0.0.1", port))


def test_a_killed_worker_is_started_again(tmp_path: Path) -> None:
    async def main() -> None:
        async with (
            upstream.running(stays_open) as up,
            serving(tmp_path, up.url, AEGIS_WORKERS=2) as server,
        ):
            clients = [await connect(server) for _ in range(8)]
            for client in clients:
                await client.write(request(STREAM))
                await client.head()
                assert await client.chunk() == delta("one")
            await asyncio.sleep(0.2)
            before = children(server.pid)
            assert len(before) == 2
            os.kill(before[1], signal.SIGKILL)

            async def again() -> bool:
                now = children(server.pid)
                return len(now) == 2 and before[1] not in now

            await until(again, 20)
            ended = [asyncio.create_task(client.reader.read()) for client in clients]
            done, waiting = await asyncio.wait(ended, timeout=1)
            assert done  # its connections are closed ...
            assert waiting  # ... and the others' open
            await calls(server, 2)
            for task in waiting:
                task.cancel()
            for client in clients:
                await client.close()
            assert await server.end() == 0
        settled = [e["status"] for e in kinds(await entries(tmp_path, "w1"), "settle")]
        assert settled == ["abandoned"] * len(done)
        settled = [e["status"] for e in kinds(await entries(tmp_path, "w0"), "settle")]
        assert settled == ["client_gone"] * len(waiting)

    run(main())


def test_a_worker_that_cannot_start_ends_the_gateway_with_a_reason(tmp_path: Path) -> None:
    async def main() -> None:
        async with (
            upstream.running() as up,
            serving(tmp_path, up.url, AEGIS_WORKERS=2) as server,
        ):
            status, error = await refused(tmp_path, AEGIS_WORKERS=2)
            assert status == 2
            assert f"in use by another gateway (pid {server.pid})" in error
            await calls(server, 4)
            assert await server.end() == 0
        segment = min((tmp_path / "private" / "w1" / "wal").glob("*.seg"))
        whole = segment.read_bytes()
        damaged = bytearray(whole)
        damaged[4096 + 100] ^= 1
        segment.write_bytes(damaged)
        for workers in (2, 1):  # served by a worker, and closed before anybody listens
            status, error = await refused(tmp_path, AEGIS_WORKERS=workers)
            assert status == 2
            assert str(segment) in error
            assert "Traceback" not in error
        segment.write_bytes(whole)

    run(main())


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make another user's directory")
def test_a_directory_of_another_user_is_refused(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    os.chown(data, 65534, 65534)

    async def main() -> None:
        for workers in (1, 2):
            status, error = await refused(data, AEGIS_WORKERS=workers)
            assert status == 2
            assert "belongs to user nobody" in error and str(data) in error
        assert list(data.iterdir()) == []

    run(main())


def test_workers_end_when_their_supervisor_is_killed(tmp_path: Path) -> None:
    async def main() -> None:
        async with (
            upstream.running() as up,
            serving(tmp_path, up.url, AEGIS_WORKERS=2) as server,
        ):
            workers = children(server.pid)
            await calls(server, 2)
            await server.end(signal.SIGKILL)

            async def gone() -> bool:
                return not any(_alive(pid) for pid in workers)

            await until(gone, 20)
        made = [len(kinds(await entries(tmp_path, name), "call")) for name in ("w0", "w1")]
        assert sum(made) == 2

    run(main())


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


async def _no_failure(server: Process, act: Callable[[], Awaitable[None]]) -> int:
    """Make calls on kept connections while ``act`` runs; each must be answered."""
    over = asyncio.Event()
    answered = 0

    async def caller() -> None:
        nonlocal answered
        while not over.is_set():
            async with server.client() as client:
                closed = False
                while not over.is_set() and not closed:
                    await client.write(request())
                    reply = await client.reply()
                    assert reply.status == 200
                    closed = reply.closed
                    answered += 1
                    await asyncio.sleep(0.005)

    async with asyncio.TaskGroup() as group:
        for _ in range(6):
            group.create_task(caller())
        await asyncio.sleep(0.1)
        await act()
        await asyncio.sleep(0.1)
        over.set()
    return answered


def test_a_rolling_restart_fails_no_request(tmp_path: Path) -> None:
    async def main() -> None:
        variables = {"AEGIS_WORKERS": 2, "AEGIS_DRAIN_GRACE": 1}
        async with upstream.running() as up, serving(tmp_path, up.url, **variables) as server:
            before = set(children(server.pid))

            async def roll() -> None:
                server.process.send_signal(signal.SIGUSR2)

                async def replaced() -> bool:
                    now = set(children(server.pid))
                    return len(now) == 2 and not now & before

                await until(replaced, 20)
                await asyncio.sleep(0.3)

            answered = await _no_failure(server, roll)
            assert answered > 10
            assert await server.end() == 0
        made = sum([len(kinds(await entries(tmp_path, f"w{n}"), "call")) for n in (0, 1)])
        assert made == answered

    run(main())


@pytest.mark.parametrize("workers", [1, 2])
def test_hangup_reloads_the_settings_or_leaves_them_whole(tmp_path: Path, workers: int) -> None:
    file = tmp_path / "aegis.toml"
    log = tmp_path / "log"

    def write(keys: list[dict[str, Any]], more: str = "") -> None:
        lines = [more]
        for one in keys:
            lines += ["[[keys]]", *(f"{k} = {json.dumps(v)}" for k, v in one.items())]
        file.write_text("\n".join(lines))

    other = key("sk-new", "k9", "late")

    async def main() -> None:
        write(KEYS)
        with log.open("wb") as written:
            async with (
                upstream.running() as up,
                serving(
                    tmp_path / "data",
                    up.url,
                    log=written,
                    AEGIS_WORKERS=workers,
                    AEGIS_CONFIG=file,
                    AEGIS_KEYS=None,
                ) as server,
            ):

                async def status(secret: str) -> int:
                    async with server.client() as client:
                        await client.write(request(secret=secret))
                        return (await client.reply()).status

                async def hang_up(mark: str, count: int) -> None:
                    server.process.send_signal(signal.SIGHUP)

                    async def said() -> bool:
                        return log.read_text().count(mark) >= count

                    await until(said)
                    await asyncio.sleep(0.1)  # workers take what they are sent

                assert [await status(KEY), await status("sk-new")] == [200, 401]

                write([*KEYS, other])
                await _no_failure(server, lambda: hang_up("settings reloaded; policy", 1))
                assert [await status(KEY), await status("sk-new")] == [200, 200]
                write([other], "prot = 1")
                await hang_up("settings not reloaded", 1)
                write([other], "[ledger]\nring_bytes = 8388608")
                await hang_up("settings not reloaded", 2)
                assert "ledger.ring_bytes changed; that takes a restart" in log.read_text()
                assert [await status(KEY), await status("sk-new")] == [200, 200]
                write([other])
                await hang_up("settings reloaded; policy", 2)
                for _ in range(2 * workers):
                    assert [await status(KEY), await status("sk-new")] == [401, 200]
                assert await server.end() == 0
        found = [e for n in range(workers) for e in await entries(tmp_path / "data", f"w{n}")]
        policies = {e["policy"] for e in found if e.get("key") == "k9"}
        assert len(policies) == 2
        assert len({e["policy"] for e in found}) == 3

    run(main())


def test_the_board_sends_connections_to_the_least_loaded() -> None:
    board = Board(3)
    board.held[0] = board.held[1] = 0
    assert board.is_least(0) and board.is_least(1)
    board.held[0] += 1
    assert not board.is_least(0)
    assert board.is_least(1)
    board.held[1] = -1  # takes none: no longer waited for
    assert board.is_least(0)
