"""Limits of several workers: one table for all, through kill -9, restart, reboot and damage."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

import upstream
from aegis_c.gateway.limits import tables
from gateway_process import Process, refused, serving
from gateway_rig import request, run, until
from limits_rig import limit_tables, limited, slow, used
from upstream import Exchange


def variables(folder: Path, workers: int = 1, **limits: Any) -> dict[str, Any]:
    """Environment of a gateway with these limits."""
    table = limit_tables(folder, **limits)
    table["directory"] = str(table["directory"])
    return {"AEGIS_LIMITS": json.dumps(table), "AEGIS_WORKERS": workers}


async def ask(server: Process) -> int:
    async with server.client() as client:
        await client.write(request())
        async with asyncio.timeout(10):
            return (await client.reply()).status


async def answered(server: Process) -> int:
    """The status of a call, or 0 when the process that should answer is gone."""
    try:
        return await ask(server)
    except (ConnectionError, asyncio.IncompleteReadError):
        return 0


def workers_of(supervisor: int) -> list[int]:
    text = Path(f"/proc/{supervisor}/task/{supervisor}/children").read_text()
    return [int(pid) for pid in text.split()]


def table_of(folder: Path) -> Path:
    (table,) = (folder / "shm").glob("*.limits")
    return table


def test_workers_share_every_limit(tmp_path: Path) -> None:
    """More connections than the limit, spread over three processes: exactly the limit pass."""
    limits = {"key": {"requests": slow(7)}}

    async def main() -> None:
        async with upstream.running() as up:
            async with serving(tmp_path, up.url, **variables(tmp_path, 3, **limits)) as server:
                statuses = await asyncio.gather(*(ask(server) for _ in range(24)))
                assert sorted(statuses) == [200] * 7 + [429] * 17
                assert await server.end() == 0
            # The table outlives the gateway: a restart gives nothing back.
            async with serving(tmp_path, up.url, **variables(tmp_path, **limits)) as server:
                assert await ask(server) == 429
            assert len(up.exchanges) == 7

    run(main())


class Holding:
    """Callers whose calls the model server keeps waiting until ``answers``."""

    def __init__(self) -> None:
        self.answers = False
        self._tasks: list[asyncio.Task[int]] = []

    async def script(self, exchange: Exchange) -> None:
        if self.answers:
            await exchange.answer()
        else:
            await exchange.gone()

    async def begin(self, server: Process, up: upstream.Upstream, calls: int) -> None:
        """Returns when all of them wait for the model."""
        already = len(up.exchanges)
        self._tasks += [asyncio.create_task(ask(server)) for _ in range(calls)]
        await up.asked(already + calls)

    async def lost(self) -> int:
        """How many of them lose their connection now; at least one, or none after 0.3 s."""
        await asyncio.wait(self._tasks, timeout=0.3, return_when=asyncio.FIRST_COMPLETED)
        await asyncio.sleep(0.02)  # all at one moment, but for the time it takes to see them
        ended = [task for task in self._tasks if task.done()]
        assert all(task.exception() is not None for task in ended)
        return len(ended)

    async def end(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


def test_places_of_a_killed_worker_come_back_within_a_second(tmp_path: Path) -> None:
    """As many as it held: the calls of the other worker go on, and keep theirs."""
    limits = {"key": {"concurrency": 6}, "model": {"concurrency": 6}}
    held = Holding()

    async def main() -> None:
        async with upstream.running(held.script) as up:
            environment = variables(tmp_path, 2, **limits)
            async with serving(tmp_path, up.url, **environment) as server:
                await held.begin(server, up, 6)
                assert await ask(server) == 429
                for worker in workers_of(server.pid):
                    os.kill(worker, signal.SIGKILL)
                    killed = time.monotonic()
                    if lost := await held.lost():
                        break
                held.answers = True
                while await answered(server) != 200:
                    assert time.monotonic() - killed < 1
                    await asyncio.sleep(0.01)
                held.answers = False
                await held.begin(server, up, lost)
                assert await ask(server) == 429
                await held.end()
                assert await server.end() == 0

    run(main())


@pytest.mark.parametrize("workers", [1, 3])
def test_a_gateway_whose_workers_all_died_goes_on_with_every_place_free(
    tmp_path: Path, workers: int
) -> None:
    """Started again by hand or by its supervisor, it refuses no call for the sake of dead ones.
    What those had reserved stays charged, and drains."""
    limits = {"key": {"concurrency": 4, "tokens": slow(10_000)}, "reserve": "max"}
    environment = variables(tmp_path, workers, max_output=100, **limits)
    held = Holding()

    async def goes_on(server: Process) -> None:
        deadline = time.monotonic() + 20
        while not (status := await answered(server)):
            assert time.monotonic() < deadline
            await asyncio.sleep(0.01)
        assert status == 200
        async with server.client() as client:
            await client.write(request())
            left = int((await client.reply()).headers["x-ratelimit-remaining-tokens"])
        assert 10_000 - 4 * 200 < left <= 10_000 - 4 * 100
        await held.end()
        assert await server.end() == 0

    async def main() -> None:
        async with upstream.running(held.script) as up:
            async with serving(tmp_path, up.url, **environment) as server:
                await held.begin(server, up, 4)
                assert await ask(server) == 429
                held.answers = True
                for process in workers_of(server.pid) or [server.pid]:
                    os.kill(process, signal.SIGKILL)
                if workers > 1:
                    await goes_on(server)
            if workers == 1:
                async with serving(tmp_path, up.url, **environment) as server:
                    await goes_on(server)

    run(main())


def test_a_reboot_does_not_give_the_day_back(tmp_path: Path) -> None:
    """The memory file system is gone, the copy in the data directory is not."""
    limits = {"key": {"requests": slow(3)}}

    async def main() -> None:
        async with upstream.running() as up:
            async with limited(tmp_path, up.url, limits) as rig:
                for _ in range(3):
                    assert (await rig.ask()).status == 200
            copy = tmp_path / "private" / tables.COPY
            assert copy.stat().st_mode & 0o777 == 0o600
            table_of(tmp_path).unlink()
            async with limited(tmp_path, up.url, limits) as rig:
                assert (await rig.ask()).status == 429
                assert used(rig, "key-requests-day", "k1", slow(3)) == 3
            # A copy that cannot be read is put aside, and the limits begin anew: the log says so.
            table_of(tmp_path).unlink()
            copy.write_bytes(copy.read_bytes()[:-100])
            async with limited(tmp_path, up.url, limits) as rig:
                assert (await rig.ask()).status == 200
            assert copy.with_suffix(".unusable").exists()

    run(main())


def test_copies_are_made_while_it_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "COPY_EVERY", 0.02)
    limits = {"key": {"requests": slow(3)}}

    async def main() -> None:
        async with upstream.running() as up, limited(tmp_path, up.url, limits) as rig:
            assert (await rig.ask()).status == 200
            copy = tmp_path / "private" / tables.COPY
            whole = table_of(tmp_path).read_bytes()

            async def copied() -> bool:
                return copy.exists() and copy.read_bytes()[4096:] == whole[4096:]

            await until(copied)
        assert not list((tmp_path / "private").glob("*.new"))

    run(main())


@pytest.mark.parametrize("what", ["short", "foreign", "version", "mode"])
def test_a_table_that_cannot_be_used_stops_the_start_by_name(tmp_path: Path, what: str) -> None:
    environment = variables(tmp_path, key={"requests": slow(3)})

    async def main() -> None:
        shm = tmp_path / "shm"
        probe = tables.Tables(tmp_path, directory=shm, slots=1024)
        del probe
        table = table_of(tmp_path)
        data = bytearray(table.read_bytes())
        if what == "short":
            table.write_bytes(data[:5000])
        elif what == "foreign":
            table.write_bytes(b"x" * len(data))
        elif what == "version":
            data[8] += 1  # the next version of this program has opened it first
            table.write_bytes(data)
        else:
            table.chmod(0o644)
        status, error = await refused(tmp_path, **environment)
        assert status == 2
        assert str(table) in error
        assert "cannot start" in error
        assert "remove" in error or "choose another path" in error

    run(main())


@pytest.mark.parametrize("policy", ["refuse", "allow"])
def test_a_table_full_of_live_keys(tmp_path: Path, policy: str) -> None:
    """Refused or let through uncharged, as the settings say; counted; nobody is charged twice."""
    limits = {"key": {"requests": slow(2)}, "when_full": policy}

    async def main() -> None:
        async with upstream.running() as up, limited(tmp_path, up.url, limits) as rig:
            assert (await rig.ask()).status == 200  # this key has its slot
            assert rig.runtime.limits is not None
            rates = rig.runtime.limits.tables.rates
            filler = rates.limit("filler", rate=1, per=86_400.0, burst=1)
            taken = sum(filler.acquire(f"{i}") == 0 for i in range(50_000))
            assert taken == 1023
            reply = await rig.ask(secret="sk-admin")
            text = rig.runtime.metrics.text().decode()
            if policy == "refuse":
                assert (reply.status, reply.error["code"]) == (503, "limits_full")
                assert len(up.exchanges) == 1
            else:
                assert reply.status == 200
                assert "aegis_limit_calls_not_charged_total 1.0" in text
            assert 'aegis_limit_table_full_total{what="full"}' in text
            assert (await rig.ask()).status == 200
            assert (await rig.ask()).status == 429

    run(main())


def test_a_reload_changes_limits_and_forgets_nothing(tmp_path: Path) -> None:
    async def main() -> None:
        async with upstream.running() as up, limited(tmp_path, up.url, {}) as rig:
            runtime = rig.runtime
            assert (await rig.ask()).status == 200

            def reload(**limits: Any) -> None:
                table = runtime.settings.model_dump()["limits"]
                table |= limit_tables(tmp_path, **limits)
                changed = runtime.settings.model_dump() | {"limits": table}
                runtime.reload(type(runtime.settings).model_validate(changed))

            reload(key={"requests": slow(1)})
            assert [(await rig.ask()).status for _ in range(2)] == [200, 429]
            reload(key={"requests": slow(3)})
            assert runtime.limits is not None
            assert runtime.limits.refused == {"key-requests-day": 1}
            assert [(await rig.ask()).status for _ in range(3)] == [200, 200, 429]
            reload(key={})
            assert (await rig.ask()).status == 200
            assert runtime.limits is None

    run(main())


def test_two_gateways_have_two_tables(tmp_path: Path) -> None:
    one = tables.Tables(tmp_path / "a", directory=tmp_path / "shm", slots=1024)
    two = tables.Tables(tmp_path / "b", directory=tmp_path / "shm", slots=1024)
    assert one.rates.path != two.rates.path
