"""Several workers under load while they are killed, replaced and given new settings.

    .venv/bin/python tests/chaos.py [--seconds S] [--seed N]

Callers keep connections busy with plain calls and streams. Meanwhile workers die by SIGKILL and
SIGTERM, all of them are replaced (SIGUSR2), settings are reloaded, and the whole gateway is killed
and started again. What the callers saw is then held against the ledger.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import signal
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import upstream
from aegis_c.ledger.fsck import check_shard
from aegis_c.ledger.layout import DataDir
from gateway_process import Process, entries, serving
from gateway_rig import ASK, Client, request, run
from upstream import Exchange, delta

WORKERS = 2
CALLERS = 6
STREAM = {**ASK, "stream": True}
GONE = (ConnectionError, asyncio.IncompleteReadError)


class Seen:
    """What the callers saw."""

    def __init__(self) -> None:
        self.plain: list[str] = []  # ids of whole plain answers
        self.streams: list[str] = []  # ids of streams that came to their end
        self.broken: list[str] = []  # ids of streams that were cut off
        self.closed = 0  # connections that ended before an answer began
        self.refused: Counter[int] = Counter()


async def script(exchange: Exchange) -> None:
    if b'"stream"' not in exchange.body:
        await exchange.answer()
        return
    try:
        await exchange.begin_stream()
        for n in range(4):
            await exchange.chunk(delta(str(n)))
            await asyncio.sleep(0.02)
        await exchange.chunk(upstream.DONE)
        await exchange.chunk(b"")
    except (ConnectionError, RuntimeError):
        exchange.close()  # the worker that asked is gone


async def caller(address: list[str], seen: Seen, over: asyncio.Event, rng: random.Random) -> None:
    while not over.is_set():
        try:
            port = int(address[0].rsplit(":", 1)[1])
            client = Client(*await asyncio.open_connection("127.0.0.1", port))
        except (ConnectionError, IndexError):  # nobody listens just now
            await asyncio.sleep(0.05)
            continue
        try:
            while not over.is_set():
                if not await one_call(client, seen, stream=rng.random() < 0.4):
                    break
        except GONE:
            seen.closed += 1
        finally:
            await client.close()


async def one_call(client: Client, seen: Seen, *, stream: bool) -> bool:
    """One call; False when the connection ends with it. Raises what a cut connection raises."""
    await client.write(request(STREAM if stream else ASK))
    if not stream:
        reply = await client.reply()
        if reply.status == 200:
            seen.plain.append(reply.headers["x-request-id"])
        else:
            seen.refused[reply.status] += 1
        return not reply.closed
    status, headers = await client.head()
    if status != 200:
        await client.reader.readexactly(int(headers["content-length"]))
        seen.refused[status] += 1
        return headers.get("connection") != "close"
    data = b""
    try:
        while part := await client.chunk():
            data += part
    except (*GONE, ValueError):
        seen.broken.append(headers["x-request-id"])
        return False
    whole = data.endswith(upstream.DONE)
    (seen.streams if whole else seen.broken).append(headers["x-request-id"])
    return headers.get("connection") != "close"


def workers_of(server: Process) -> list[int]:
    path = Path(f"/proc/{server.pid}/task/{server.pid}/children")
    return [int(word) for word in path.read_text().split()]


async def trouble(server: Process, seconds: float, rng: random.Random, done: Counter[str]) -> None:
    """Do something to the gateway again and again."""
    until = asyncio.get_running_loop().time() + seconds
    while asyncio.get_running_loop().time() < until:
        await asyncio.sleep(rng.uniform(0.2, 0.8))
        what = rng.choice(("SIGKILL", "SIGKILL", "SIGTERM", "SIGHUP", "SIGUSR2"))
        done[what] += 1
        if what in ("SIGHUP", "SIGUSR2"):
            for _ in range(rng.choice((1, 5))):
                server.process.send_signal(signal.Signals[what])
        elif workers := workers_of(server):
            os.kill(rng.choice(workers), signal.Signals[what])
    await asyncio.sleep(1.0)  # a worker killed while the gateway ends is a failure of that end


async def chaos(data: Path, seconds: float, rng: random.Random) -> str:
    """The whole run; returns what was done and seen. AssertionError says what does not hold."""
    seen, over, done = Seen(), asyncio.Event(), Counter[str]()
    address = [""]
    async with upstream.running(script) as up, asyncio.TaskGroup() as group:
        for _ in range(CALLERS):
            group.create_task(caller(address, seen, over, random.Random(rng.random())))
        for last in (False, True):
            variables = {"AEGIS_WORKERS": WORKERS, "AEGIS_DRAIN_GRACE": 0.5}
            async with serving(data, up.url, **variables) as server:
                address[0] = server.address
                await trouble(server, seconds / 2, rng, done)
                address[0] = ""
                if last:
                    over.set()
                    assert await server.end() == 0, "it does not end in order"
                else:
                    os.killpg(server.pid, signal.SIGKILL)
                    done["all killed"] += 1
    async with serving(data, up.url) as server:  # what was open is settled by the next run
        assert await server.end() == 0
    await check(data, seen)
    return (
        f"{len(seen.plain)} calls and {len(seen.streams)} streams answered, {len(seen.broken)} "
        f"streams cut, {seen.closed} connections closed, refused {dict(seen.refused)}; "
        f"done: {dict(done)}"
    )


async def check(data: Path, seen: Seen) -> None:
    """Hold what was seen against the ledger."""
    shards = DataDir(data).shards()
    found: list[dict[str, Any]] = []
    for shard in shards:
        report = check_shard(shard.published)
        assert report.ok, [str(problem) for problem in report.problems]
        own = await entries(data, shard.name)
        found += own
        intents = [n for n, entry in enumerate(own) if entry["kind"] == "intent"]
        settled = [entry["of"] for entry in own if entry["kind"] == "settle"]
        assert sorted(settled) == intents, "an intent without its one settle"
    calls = Counter(entry["id"] for entry in found if entry["kind"] == "call")
    endings = {entry["id"]: entry["status"] for entry in found if entry["kind"] == "settle"}
    ids = [*seen.plain, *seen.streams, *seen.broken]
    assert len(set(ids)) == len(ids), "an id was given twice"
    assert {calls[one] for one in seen.plain} <= {1}, "an answered call without its one entry"
    wrong = {one: endings.get(one) for one in seen.streams if endings.get(one) != "done"}
    # A stream's last bytes may have been read before its settle was made, and then the kill came.
    assert set(wrong.values()) <= {"abandoned"}, wrong
    assert all(one in endings for one in seen.broken), "a broken stream without an ending"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32))
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)

    async def act() -> None:
        with tempfile.TemporaryDirectory(prefix="aegis-chaos-") as folder:
            print(await chaos(Path(folder), options.seconds, random.Random(options.seed)))

    run(act())
    return 0


if __name__ == "__main__":
    sys.exit(main())
