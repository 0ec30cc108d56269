"""Deep health, and what a service manager is told."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
from pathlib import Path
from typing import Any

import pytest

import upstream
from aegis_c.gateway.process import systemd
from gateway_process import RUN, environment
from gateway_rig import Client, Rig, gateway, request, run, until

DEEP = request(b"", method="GET", path="/health?deep=1", secret=None)


async def deep(rig: Rig) -> tuple[int, dict[str, Any]]:
    reply = await rig.send(DEEP)
    return reply.status, json.loads(reply.body)


def test_deep_health_goes_through_every_stage(tmp_path: Path) -> None:
    async def main() -> None:
        async with upstream.running() as up, gateway(tmp_path, up.url) as rig:
            for _ in range(3):
                await rig.ask()
            status, body = await deep(rig)
            assert status == 200
            assert set(body["stages"].values()) == {"ok"}
            numbers = body["ledger"]
            assert numbers["submitted"] == numbers["durable"] == numbers["integrated"] >= 4
            assert numbers["ring"] == "tmpfs"
            size = len(rig.runtime.ledger.native)
            checked = rig.runtime.background.done
            await deep(rig)
            assert rig.runtime.background.done <= checked + 1  # a good result is told for 50 ms
            await asyncio.sleep(0.06)
            checked = rig.runtime.background.done
            replies = await asyncio.gather(*(deep(rig) for _ in range(20)))
            assert {status for status, _ in replies} == {200}
            assert rig.runtime.background.done - checked < 20  # asked together, checked once
            assert len(rig.runtime.ledger.native) == size  # it leaves no entry
            assert len(up.exchanges) == 3  # and asks no upstream
            assert rig.runtime.admission.in_flight == 0
            shallow = await rig.ask(b"", method="GET", path="/health?deep=0", secret=None)
            assert shallow.body == b'{"status":"ok"}'

    run(main())


def test_deep_health_names_the_stage_that_fails(tmp_path: Path) -> None:
    async def main() -> None:
        async with (
            upstream.running() as up,
            gateway(tmp_path, up.url, limits={"max_in_flight": 1, "admission_deadline": 0}) as rig,
        ):
            await rig.runtime.admission.enter(1)
            status, body = await deep(rig)
            assert status == 503
            assert body["status"] == "failing"
            assert body["stages"]["admission"] == "overloaded"
            assert body["stages"]["limits"] == "ok"
            assert body["stages"]["ledger"] == "ok"
            rig.runtime.admission.leave(1)
            assert (await deep(rig))[0] == 200

    run(main())


def test_deep_health_asks_the_shared_tables_of_limits(tmp_path: Path) -> None:
    limits = {
        "total": {"requests": {"rate": 1, "per": "second"}, "concurrency": 8},
        "slots": 1024,
        "directory": tmp_path / "limits",
    }

    async def main() -> None:
        async with upstream.running() as up, gateway(tmp_path, up.url, limits=limits) as rig:
            assert rig.runtime.limits is not None
            tables = rig.runtime.limits.tables
            for _ in range(5):  # more than the limit of calls would allow: it charges no caller
                status, body = await deep(rig)
                assert (status, body["stages"]["limits"]) == (200, "ok")
            assert tables.calls.stats()["in_flight"] == 0
            hog = tables.rates.limit("hog", rate=1, per=3600, burst=1)
            for n in range(4000):
                hog.acquire(str(n))
            assert tables.rates.stats()["full"]
            await asyncio.sleep(0.06)  # a good result is told for 50 ms
            status, body = await deep(rig)
            assert (status, body["stages"]["limits"]) == (503, "the table of limits is full")
            assert body["stages"]["admission"] == body["stages"]["ledger"] == "ok"

    run(main())


@pytest.fixture
def manager(tmp_path: Path) -> Any:
    """A service manager's socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told:
        told.bind(str(tmp_path / "notify"))
        told.setblocking(False)
        yield told


def heard(manager: socket.socket) -> list[str]:
    messages = []
    while True:
        try:
            messages.append(manager.recv(1024).decode())
        except BlockingIOError:
            return messages


# Like systemd: the child learns its own pid, and finds the socket as descriptor 3.
_HAND_OVER = (
    "import os, sys; fd = int(sys.argv.pop(1)); os.dup2(fd, 3); "
    "os.environ['LISTEN_PID'] = str(os.getpid()); os.environ['LISTEN_FDS'] = '1'; "
    f"os.execv(sys.executable, [sys.executable, '-c', {RUN!r}])"
)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_service_manager_hands_over_a_socket_and_is_told(
    tmp_path: Path, manager: socket.socket, workers: int
) -> None:
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(16)
    port = listener.getsockname()[1]

    async def main() -> None:
        messages: list[str] = []
        async with upstream.running() as up:
            variables = environment(
                tmp_path / "data",
                up.url,
                AEGIS_WORKERS=workers,
                AEGIS_PORT=1,  # not used
                NOTIFY_SOCKET=tmp_path / "notify",
                WATCHDOG_USEC=400_000,
            )
            for _ in range(2):  # the second time a caller waits before there is a process
                client = Client(*await asyncio.open_connection("127.0.0.1", port))
                await client.write(request())
                process = await asyncio.create_subprocess_exec(
                    sys.executable,
                    "-c",
                    _HAND_OVER,
                    str(listener.fileno()),
                    pass_fds=[listener.fileno()],
                    env=variables,
                )
                async with asyncio.timeout(30):
                    assert (await client.reply()).status == 200
                await client.close()

                async def told(word: str) -> None:
                    async def said() -> bool:
                        messages.extend(heard(manager))
                        return word in messages

                    await until(said, 20)

                await told("READY=1")
                await told("WATCHDOG=1")
                messages.clear()
                process.send_signal(signal.SIGHUP)
                await told("READY=1")
                assert any(m.startswith("RELOADING=1\nMONOTONIC_USEC=") for m in messages)
                process.terminate()
                async with asyncio.timeout(20):
                    assert await process.wait() == 0
                await told("STOPPING=1")
                messages.clear()

    try:
        run(main())
    finally:
        listener.close()


def test_what_a_manager_hands_over_must_be_usable(monkeypatch: pytest.MonkeyPatch) -> None:
    assert systemd.listener() is None
    monkeypatch.setenv("LISTEN_PID", "1")
    monkeypatch.setenv("LISTEN_FDS", "1")
    assert systemd.listener() is None  # meant for another process
    monkeypatch.setenv("LISTEN_PID", str(os.getpid()))
    monkeypatch.setenv("LISTEN_FDS", "2")
    with pytest.raises(OSError, match="hands over 2 sockets"):
        systemd.listener()
    monkeypatch.setenv("WATCHDOG_USEC", "3000000")
    assert systemd.watchdog_seconds() == 1.5
    monkeypatch.setenv("WATCHDOG_PID", "1")
    assert systemd.watchdog_seconds() is None
