"""Several workers under load while everything around them goes wrong: `./dev soak chaos`.

Callers keep connections busy with plain calls and streams, one of them with a limited key, as fast
as it can. Meanwhile workers die by SIGKILL and SIGTERM, all of them are replaced (SIGUSR2),
settings are reloaded in storms (SIGHUP), right ones and wrong ones; the model server is killed; the
disk is full and has room again; the clock jumps; and the whole gateway is killed and started again.
What the callers and the model server saw is then held against the ledger.
"""

from __future__ import annotations

import asyncio
import errno
import itertools
import json
import os
import random
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import upstream
from aegis_c.ledger import verify as v
from aegis_c.ledger.fsck import check_shard
from aegis_c.ledger.layout import DataDir
from gateway_process import Process, entries, serving
from gateway_rig import ASK, KEY, KEYS, Client, key, request
from io_faults import Faults, library

WORKERS = 2
CALLERS = 5
GONE = (ConnectionError, asyncio.IncompleteReadError)
LIMITED = "sk-limited"
RATE, BURST = 25, 10  # requests a second of the limited key, and at once
SLACK_MIB = 12.0  # that a process may grow by once it is warm
HERE = Path(__file__).parent


@dataclass
class Seen:
    """What the callers saw; by the name that each gave its request."""

    plain: dict[str, str] = field(default_factory=dict)  # name -> id of a whole plain answer
    streams: dict[str, str] = field(default_factory=dict)  # of a stream that came to its end
    broken: dict[str, str] = field(default_factory=dict)  # of a stream that was cut off
    held: dict[str, str] = field(default_factory=dict)  # of those, in a worker known to be killed
    limited: dict[str, str] = field(default_factory=dict)  # plain answers to the limited key
    closed: int = 0  # connections that ended before an answer began
    refused: Counter[int] = field(default_factory=Counter)


ONLY_ERROR = re.compile(rb'(: keep-alive\n\n)*(data: \{"error":[^\n]*\n\n)?')


class Chaos:
    """One data directory, the callers, and what happens to them."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder = folder
        self.data = folder / "data"
        self.random = random.Random(seed)
        self.seen = Seen()
        self.done: Counter[str] = Counter()
        self.receipts = 0
        self.limited_seconds = 0.0  # from its first call to the end of its last
        self.growth: dict[str, float] = {}  # MiB
        self._names = itertools.count()
        self._over = asyncio.Event()
        self._address = ""
        self._server: Process | None = None
        self._model: asyncio.subprocess.Process | None = None
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._model_port = free.getsockname()[1]
        self._answered = folder / "answered"
        self._config = folder / "aegis.toml"
        self._clock = folder / "clock"
        self._faults = Faults(folder / "rules")
        self._warm: dict[str, float] = {}

    async def run(self, seconds: float) -> None:
        """The whole run. AssertionError says what does not hold."""
        self._prepare()
        async with self._model_server(), asyncio.TaskGroup() as group:
            group.create_task(self._limited_caller())
            for _ in range(CALLERS):
                group.create_task(self._caller(random.Random(self.random.random())))
            for last in (False, True):
                async with self._gateway() as server:
                    await self._kill_a_stream(server)
                    self._address = server.address
                    await self._trouble(server, seconds / 2)
                    self._address = ""
                    if last:
                        self._over.set()
                        for _ in range(3):
                            server.process.send_signal(signal.SIGTERM)
                        assert await server.end() == 0, "it does not end in order"
                    else:
                        os.killpg(server.pid, signal.SIGKILL)
                        self.done["gateway killed"] += 1
        async with self._gateway() as server:  # what was open is settled by the next run
            await self._collect_receipts(server)
            assert await server.end() == 0
        await self._check()

    def report(self) -> str:
        seen = self.seen
        return (
            f"{len(seen.plain)} calls and {len(seen.streams)} streams answered, "
            f"{len(seen.broken) + len(seen.held)} streams cut, {seen.closed} connections closed, "
            f"refused {dict(sorted(seen.refused.items()))}; the limited key had "
            f"{len(seen.limited)} of {BURST + RATE * self.limited_seconds:.0f} in "
            f"{self.limited_seconds:.1f} s; {self.receipts} receipts verified; growth in MiB "
            f"{ {k: round(n, 1) for k, n in self.growth.items()} }; done: {dict(self.done)}"
        )

    # -- the parts ---------------------------------------------------------------------------

    def _prepare(self) -> None:
        self._clock.write_bytes(bytes(8))
        self._write_settings()
        compile_clock(self.folder / "clock.so")

    def _write_settings(self, extra: str = "") -> None:
        new = self._config.with_suffix(".new")
        deadline = self.random.choice((1.0, 2.0))
        new.write_text(
            f"{extra}\n[upstream.breaker]\nopen_for = 0.2\nopen_max = 0.5\n"
            f"[limits]\nadmission_deadline = {deadline}\n"
            f"directory = '{self.folder / 'limits'}'\n"
            f"[limits.keys.k9]\nrequests = {{ rate = {RATE}, per = 'second', burst = {BURST} }}\n"
        )
        new.rename(self._config)  # no reload sees half of it

    @asynccontextmanager
    async def _gateway(self) -> AsyncIterator[Process]:
        variables = {
            "AEGIS_WORKERS": WORKERS,
            "AEGIS_DRAIN_GRACE": 0.5,
            "AEGIS_CONFIG": self._config,
            "AEGIS_KEYS": json.dumps([*KEYS, key(LIMITED, "k9", "acme")]),
            "AEGIS_IO_RULES": self._faults.path,
            "PYTHONPATH": os.pathsep.join((str(library()), str(HERE))),
            "LD_PRELOAD": self.folder / "clock.so",
            "JUMPING_CLOCK": self._clock,
        }
        url = f"http://127.0.0.1:{self._model_port}/v1"
        with (self.folder / "log").open("ab") as log:
            async with serving(self.data, url, log, **variables) as server:
                yield server

    @asynccontextmanager
    async def _model_server(self) -> AsyncIterator[None]:
        await self._start_model()
        try:
            yield
        finally:
            await self._kill_model()

    async def _start_model(self) -> None:
        self._model = await asyncio.create_subprocess_exec(
            *(sys.executable, HERE / "chaos_model.py", str(self._model_port), self._answered),
            stdout=asyncio.subprocess.PIPE,
        )
        assert self._model.stdout is not None
        async with asyncio.timeout(30):
            assert await self._model.stdout.readline() == b"ready\n"

    async def _kill_model(self) -> None:
        assert self._model is not None
        self._model.kill()
        await self._model.wait()

    # -- the callers -------------------------------------------------------------------------

    async def _connected(self, serve: Callable[[Client], Awaitable[None]]) -> None:
        """Let ``serve`` use a connection until it is over; a new one whenever one is closed."""
        while not self._over.is_set():
            try:
                port = int(self._address.rsplit(":", 1)[1])
                client = Client(*await asyncio.open_connection("127.0.0.1", port))
            except (ConnectionError, IndexError):  # nobody listens just now
                await asyncio.sleep(0.05)
                continue
            try:
                await serve(client)
            except GONE:
                self.seen.closed += 1
            finally:
                await client.close()

    async def _caller(self, rng: random.Random) -> None:
        async def serve(client: Client) -> None:
            while not self._over.is_set():
                call = self._stream if rng.random() < 0.4 else self._plain
                if not await call(client):
                    return

        await self._connected(serve)

    async def _limited_caller(self) -> None:
        began = 0.0

        async def serve(client: Client) -> None:
            nonlocal began
            began = began or time.monotonic()
            while not self._over.is_set():
                if not await self._plain(client, LIMITED, self.seen.limited):
                    return
                await asyncio.sleep(0.002)

        await self._connected(serve)
        self.limited_seconds = time.monotonic() - began

    def _ask(self, kind: str, secret: str = KEY, **members: Any) -> tuple[str, bytes]:
        name = f"{kind}-{next(self._names)}"
        body = {**ASK, "user": name, **members}
        return name, request(body, secret=secret, headers=(f"x-client-request-id: {name}",))

    async def _plain(
        self, client: Client, secret: str = KEY, into: dict[str, str] | None = None
    ) -> bool:
        """One call; False when the connection ends with it. Raises what a cut connection raises."""
        name, raw = self._ask("call", secret)
        await client.write(raw)
        reply = await client.reply()
        if reply.status == 200:
            assert json.loads(reply.body)["id"] == name, "the answer to another request"
            (self.seen.plain if into is None else into)[name] = reply.headers["x-request-id"]
        else:
            self.seen.refused[reply.status] += 1
            await asyncio.sleep(0.002)
        return not reply.closed

    async def _stream(self, client: Client) -> bool:
        name, raw = self._ask("stream", stream=True)
        await client.write(raw)
        status, headers = await client.head()
        if status != 200:
            await client.reader.readexactly(int(headers["content-length"]))
            self.seen.refused[status] += 1
            return headers.get("connection") != "close"
        data = b""
        try:
            while part := await client.chunk():
                data += part
        except (*GONE, ValueError):
            self.seen.broken[name] = headers["x-request-id"]
            return False
        answered = upstream.delta(name) in data
        # The model may have died between the head and its first word: then there is only that.
        assert answered or ONLY_ERROR.fullmatch(data), f"the answer to another request: {data!r}"
        whole = data.endswith(upstream.DONE)
        (self.seen.streams if whole else self.seen.broken)[name] = headers["x-request-id"]
        return headers.get("connection") != "close"

    # -- the trouble -------------------------------------------------------------------------

    async def _kill_a_stream(self, server: Process) -> None:
        """A stream in flight in a worker that is killed: its connection is closed."""
        async with server.client() as client:
            name, raw = self._ask("hold", stream=True)
            await client.write(raw)
            status, headers = await client.head()
            assert status == 200
            await client.chunk()
            for pid in workers_of(server):
                os.kill(pid, signal.SIGKILL)
            self.done["SIGKILL"] += WORKERS
            async with asyncio.timeout(10):
                try:
                    while await client.chunk():
                        pass
                except GONE:
                    self.seen.held[name] = headers["x-request-id"]
                else:
                    raise AssertionError("a stream of a killed worker came to an orderly end")
        deadline = time.monotonic() + 10
        while not await ready(server):
            assert time.monotonic() < deadline, "killed workers do not come back"
            await asyncio.sleep(0.02)

    async def _trouble(self, server: Process, seconds: float) -> None:
        """Each kind once in random order, then any of them until the time is over."""
        self._server = server
        await asyncio.sleep(0.5)
        self._watch_memory(server)
        kinds = [self._sigkill, self._sigkill, self._sigterm, self._sighup, self._sigusr2]
        kinds += [self._model_dies, self._disk_full, self._clock_jumps]
        due: list[Callable[[], Awaitable[None]]] = []
        until = time.monotonic() + seconds
        while time.monotonic() < until or due:
            due = due or self.random.sample(kinds, len(kinds))
            await due.pop()()
            if time.monotonic() > until and self.done.total() >= len(kinds):
                break
            await asyncio.sleep(self.random.uniform(0.05, min(0.8, seconds / 10)))
        await asyncio.sleep(0.3)  # a worker that was killed a moment ago is dead by then
        deadline = time.monotonic() + 20
        while not (await ready(server) and len(workers_of(server)) == WORKERS):
            assert time.monotonic() < deadline, "it is not ready after all trouble is over"
            await asyncio.sleep(0.05)
        self._watch_memory(server)

    def _signal_worker(self, number: signal.Signals) -> None:
        assert self._server is not None
        if workers := workers_of(self._server):
            os.kill(self.random.choice(workers), number)
            self.done[number.name] += 1

    async def _sigkill(self) -> None:
        self._signal_worker(signal.SIGKILL)

    async def _sigterm(self) -> None:
        for _ in range(self.random.choice((1, 5))):
            self._signal_worker(signal.SIGTERM)

    async def _sighup(self) -> None:
        assert self._server is not None
        for _ in range(self.random.choice((2, 20))):
            self._write_settings(self.random.choice(("", "", "prot = 1", "port = [")))
            self._server.process.send_signal(signal.SIGHUP)
            self.done["SIGHUP"] += 1
            await asyncio.sleep(self.random.choice((0, 0.005)))
        self._write_settings()

    async def _sigusr2(self) -> None:
        assert self._server is not None
        self._server.process.send_signal(signal.SIGUSR2)
        self.done["SIGUSR2"] += 1

    async def _model_dies(self) -> None:
        await self._kill_model()
        self.done["model killed"] += 1
        await asyncio.sleep(self.random.uniform(0, 0.4))
        await self._start_model()

    async def _disk_full(self) -> None:
        with (
            self._faults.fail("pwrite", errno.ENOSPC),
            self._faults.fail("reserve", errno.ENOSPC),
        ):
            await asyncio.sleep(self.random.uniform(0.1, 0.6))
        self.done["disk full"] += 1

    async def _clock_jumps(self) -> None:
        offset = self.random.choice((-86_400, -3600, -1, 1, 3600, 86_400))
        with self._clock.open("r+b") as file:  # never truncated: it is mapped
            file.write(offset.to_bytes(8, "little", signed=True))
        self.done["clock jumps"] += 1

    def _watch_memory(self, server: Process) -> None:
        """Keep what processes take when warm, then by how much they have grown since."""
        now = {
            "supervisor": anonymous_mib(server.pid),
            "largest worker": max(map(anonymous_mib, workers_of(server))),
        }
        for who, mib in now.items():
            self._warm.setdefault(who, mib)
            self.growth[who] = mib - self._warm[who]

    # -- the check ---------------------------------------------------------------------------

    async def _collect_receipts(self, server: Process) -> None:
        """Every receipt that a caller can ask for verifies offline, with the shard's own key."""
        keys = {}
        for shard in DataDir(self.data).shards():
            vkey = v.load_vkey((shard.published / "log.vkey").read_text())
            keys[vkey.name] = vkey
        mine = [*self.seen.plain.values(), *self.seen.streams.values(), *self.seen.held.values()]
        asked = [(one, KEY) for one in self.random.sample(mine, min(len(mine), 200))]
        asked += [(one, LIMITED) for one in [*self.seen.limited.values()][:20]]
        async with server.client() as client:
            for one, secret in asked:
                path = f"/v1/receipts/{one}?wait=1"
                await client.write(request(b"", method="GET", path=path, secret=secret))
                reply = await client.reply()
                assert reply.status == 200, f"no receipt of {one}: {reply.body!r}"
                origin = json.loads(reply.body)["origin"]
                assert v.verify_receipt(reply.body, keys[origin]).entries
                self.receipts += 1

    async def _check(self) -> None:
        """Hold what was seen against the ledger."""
        outcomes: dict[str, list[dict[str, Any]]] = defaultdict(list)  # by the caller's name
        for shard in DataDir(self.data).shards():
            report = check_shard(shard.published)
            assert report.ok, [str(problem) for problem in report.problems]
            own = await entries(self.data, shard.name)
            intents = [n for n, entry in enumerate(own) if entry["kind"] == "intent"]
            settled = [entry["of"] for entry in own if entry["kind"] == "settle"]
            assert sorted(settled) == intents, "an intent without its one settle"
            for entry in own:
                if entry["kind"] in ("call", "settle", "rejection"):
                    outcomes[entry.get("client_id", "")].append(entry)
        outcomes.pop("", None)
        twice = [name for name, found in outcomes.items() if len(found) > 1]
        assert not twice, f"requests with more than one outcome: {twice[:3]}"
        answered = Counter(self._answered.read_text().split())
        assert max(answered.values()) == 1, "a request was answered twice by the model server"
        seen = self.seen
        for name, one in {**seen.plain, **seen.limited}.items():
            assert [(e["kind"], e["id"]) for e in outcomes[name]] == [("call", one)], name
        for name, one in {**seen.streams, **seen.broken, **seen.held}.items():
            assert [(e["kind"], e["id"]) for e in outcomes[name]] == [("settle", one)], name
        # A stream's last bytes may have been read before its settle was made; then came the kill.
        ended = {outcomes[name][0]["status"] for name in seen.streams}
        assert ended <= {"done", "abandoned"}, ended
        assert {outcomes[name][0]["status"] for name in seen.held} == {"abandoned"}
        charged = sum(
            found[0].get("key") == "k9" and found[0]["kind"] == "call"
            for found in outcomes.values()
        )
        bound = BURST + RATE * self.limited_seconds
        assert len(seen.limited) <= charged <= bound, f"{charged} calls, the limit allows {bound}"
        assert charged > BURST, "the limited key was not driven to its limit"
        for who, mib in self.growth.items():
            assert mib < SLACK_MIB, f"{who} grew by {mib:.1f} MiB"


def compile_clock(library: Path) -> None:
    """Make what is preloaded so that the wall clock obeys a file."""
    compiler = shlex.split(os.environ.get("CC", "cc"))
    source = HERE / "c" / "jumping_clock.c"
    subprocess.run([*compiler, "-shared", "-fPIC", "-O1", "-o", library, source], check=True)


async def ready(server: Process) -> bool:
    try:
        async with server.client() as client, asyncio.timeout(5):
            await client.write(request(b"", method="GET", path="/ready", secret=None))
            return (await client.reply()).status == 200
    except (*GONE, TimeoutError):
        return False


def workers_of(server: Process) -> list[int]:
    """Those that live; not one whose end the supervisor has yet to take note of."""
    path = Path(f"/proc/{server.pid}/task/{server.pid}/children")
    return [int(word) for word in path.read_text().split() if lives(int(word))]


def lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def anonymous_mib(pid: int) -> float:
    """What a process has for itself: without files and shared memory."""
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except OSError:  # it has just died
        return 0.0
    return next((int(x.split()[1]) / 1024 for x in text.splitlines() if x[:7] == "RssAnon"), 0.0)
