"""A gateway as a process of its own, for tests of how it starts, ends and dies."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import IO, Any

from aegis_c.ledger import AsyncLedger
from gateway_rig import KEYS, Client

RUN = (
    "import sys; from aegis_c.gateway.serve import run; "
    "from aegis_c.gateway.settings import load_settings; sys.exit(run(load_settings()))"
)


class Process:
    """A running server."""

    def __init__(self, process: asyncio.subprocess.Process, address: str) -> None:
        self.process = process
        self.address = address
        self.pid = process.pid

    @asynccontextmanager
    async def client(self) -> AsyncIterator[Client]:
        if self.address.startswith("unix:"):
            pair = await asyncio.open_unix_connection(self.address.removeprefix("unix:"))
        else:
            pair = await asyncio.open_connection("127.0.0.1", int(self.address.rsplit(":", 1)[1]))
        client = Client(*pair)
        try:
            yield client
        finally:
            await client.close()

    async def end(self, number: int = signal.SIGTERM) -> int:
        """Send a signal and wait; returns the exit status."""
        if self.process.returncode is None:
            self.process.send_signal(number)
        async with asyncio.timeout(20):
            return await self.process.wait()


def environment(data: Path, url: str | None, **variables: Any) -> dict[str, str]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith("AEGIS_")}
    clean |= {"AEGIS_DATA": str(data), "AEGIS_PORT": "0", "AEGIS_KEYS": json.dumps(KEYS)}
    clean["AEGIS_DRAIN_GRACE"] = "0"
    if url is not None:
        clean["AEGIS_UPSTREAM__URL"] = url
    clean |= {name: str(value) for name, value in variables.items() if value is not None}
    return {
        name: value
        for name, value in clean.items()
        if name not in variables or variables[name] is not None
    }


@asynccontextmanager
async def serving(
    data: Path,
    url: str | None,
    log: IO[bytes] | None = None,
    code: str = RUN,
    **variables: Any,
) -> AsyncIterator[Process]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        code,
        env=environment(data, url, **variables),
        stdout=asyncio.subprocess.PIPE,
        stderr=None if log is None else log,
        start_new_session=True,
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(30):
            while b"listening on " not in (line := await process.stdout.readline()):
                assert line, "the server ended before it listened"
        address = line.decode().split("listening on ")[1].split("; ")[0]
        yield Process(process, address)
    finally:
        if process.returncode is None:
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()


async def refused(data: Path, **variables: Any) -> tuple[int, str]:
    """Exit status and standard error of a server that does not start."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        RUN,
        env=environment(data, "http://127.0.0.1:9/v1", **variables),
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(30):
        _, error = await process.communicate()
    assert process.returncode is not None
    return process.returncode, error.decode()


async def entries(data: Path, shard: str = "w0") -> list[dict[str, Any]]:
    """The entries of a shard that no process has open."""
    async with AsyncLedger(data / "ledger" / shard, private=data / "private" / shard) as ledger:
        return [json.loads(ledger.native.entry(i)) for i in range(len(ledger.native))]
