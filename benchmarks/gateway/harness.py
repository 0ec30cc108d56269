"""Processes of the gateway benchmark: built, pinned, measured, and ended whatever happens.

The server under measurement has core 0 to itself; the mock upstream and the load generator share
core 1 (with one core everything shares it, and the result says so). All of it is loopback only.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import shlex
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aegis_c import Ledger
from aegis_c.ledger.layout import DataDir
from benchmarks.machine import resident_bytes

KEY = "aegis-benchmark-key"  # of a caller
ADMIN_KEY = "aegis-benchmark-admin"  # reads the metrics
CHAT = "/v1/chat/completions"
SOURCE = Path(__file__).with_name("bench_http.c")
_libc = ctypes.CDLL(None)
_START_SECONDS = 30.0
_STOP_SECONDS = 15.0
_SETTLE_SECONDS = 0.05  # after a run: what its calls left to do in the background counts


def cores() -> tuple[int, int]:
    """The server's core, and the core of everything else."""
    mine = sorted(os.sched_getaffinity(0))
    return mine[0], mine[-1]


@contextmanager
def pinned(core: int) -> Iterator[None]:
    """Processes started inside inherit this core."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def build(folder: Path) -> Path:
    """Compile the mock upstream and load generator."""
    program = folder / "bench_http"
    compiler = shlex.split(os.environ.get("CC", "cc"))
    subprocess.run([*compiler, "-std=gnu11", "-O2", SOURCE, "-o", program], check=True)
    return program


def _end_with_parent() -> None:
    """A benchmark that is killed leaves no server behind: prctl(PR_SET_PDEATHSIG, SIGTERM)."""
    _libc.prctl(1, signal.SIGTERM)


class Process:
    """A server that says where it listens; ended when the block is left."""

    def __init__(self, command: list[str], core: int, log: Path) -> None:
        self.log = log
        self.started = time.monotonic()
        with pinned(core), log.open("w") as output:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=SOURCE.parents[2],  # so that `benchmarks` can be imported
                preexec_fn=_end_with_parent,
            )
        self.pid = self.process.pid

    def wait_for(self, mark: str) -> str:
        """The rest of the first line that holds ``mark``."""
        while time.monotonic() < self.started + _START_SECONDS:
            for line in self.log.read_text().splitlines(keepends=True):
                if mark in line and line.endswith("\n"):
                    return line.partition(mark)[2].strip()
            if self.process.poll() is not None:
                break
            time.sleep(0.002)
        raise RuntimeError(f"the server did not start; it said:\n{self.log.read_text()}")

    def cpu_seconds(self) -> float:
        """CPU time of all its threads: the process's CPU clock, clock_getcpuclockid(3)."""
        return time.clock_gettime(~self.pid << 3 | 2)

    def main_thread_seconds(self) -> float:
        """CPU time of its first thread, the event loop's; steps of 10 ms (proc_pid_stat(5))."""
        text = Path(f"/proc/{self.pid}/task/{self.pid}/stat").read_text()
        user, system = text.rpartition(")")[2].split()[11:13]
        return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")

    def resident_mib(self) -> float:
        return resident_bytes(self.pid) / 2**20

    def kill(self) -> None:
        """At once, without a word: SIGKILL."""
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        """In order, then by force."""
        if self.process.stdin is not None:
            self.process.stdin.close()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()


@dataclass
class Target:
    """Something that answers chat completions."""

    name: str
    process: Process
    port: int
    ready_ms: float | None = None  # process start to /ready 200
    idle_mib: float = 0.0
    governed: bool = False

    def get(self, path: str) -> bytes:
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}", headers={"authorization": f"Bearer {ADMIN_KEY}"}
        )
        with urllib.request.urlopen(request, timeout=10) as reply:
            body: bytes = reply.read()
        return body

    def recorded(self) -> dict[str, int]:
        """Entries in the ledger of a governed target, by kind."""
        counts = {}
        for line in self.get("/metrics").decode().splitlines():
            if line.startswith("aegis_entries_total{"):
                labels, _, value = line.rpartition(" ")
                counts[labels.split('"')[1]] = int(float(value))
        return counts


class Bench:
    """Builds the programs and starts targets; a context manager that ends all of them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.program = build(folder)
        self.core, self.other = cores()
        self._processes: list[Process] = []

    def __enter__(self) -> Bench:
        return self

    def __exit__(self, *_: object) -> None:
        for process in reversed(self._processes):
            process.stop()

    def _start(self, name: str, command: list[str], core: int) -> Process:
        process = Process(command, core, self.folder / f"{name}.log")
        self._processes.append(process)
        return process

    def upstream(self, port: int = 0) -> Target:
        """The mock model server, which is also what a direct run talks to."""
        process = self._start("direct", [str(self.program), "serve", str(port)], self.other)
        return Target("direct", process, int(process.wait_for("127.0.0.1:")))

    def server(self, name: str, upstream: Target) -> Target:
        """One of benchmarks/gateway/servers.py."""
        command = [sys.executable, "-m", "benchmarks.gateway.servers", name, _url(upstream)]
        process = self._start(name, command, self.core)
        target = Target(name, process, int(process.wait_for("127.0.0.1:")))
        target.idle_mib = process.resident_mib()
        return target

    def governed(
        self,
        upstream: Target,
        in_flight: int = 2048,
        mode: str = "background",
        name: str = "",
        limits: str = "",
    ) -> Target:
        """`aegis-c serve` with two keys, its defaults, and room for so many calls at a time.

        ``limits`` is more of the settings' table of that name, as TOML.
        """
        name = name or ("governed" if mode == "background" else mode)
        config = self.folder / f"{name}.toml"
        ring = max(16 << 20, in_flight * 2 * 4096)
        config.write_text(
            f'port = 0\ndata = "{self.folder / name}"\n[evidence]\nmode = "{mode}"\n'
            f'[upstream]\nurl = "{_url(upstream)}"\nmax_connections = {in_flight}\n'
            f"[limits]\nmax_in_flight = {in_flight}\n{limits}[ledger]\nring_bytes = {ring}\n"
            f"{keys()}"
        )
        command = [sys.executable, "-m", "aegis_c.cli", "serve", "--config", str(config)]
        process = self._start(name, command, self.core)
        port = process.wait_for("listening on http://127.0.0.1:").partition(";")[0]
        target = Target(name, process, int(port), governed=True)
        target.get("/ready")
        target.ready_ms = (time.monotonic() - process.started) * 1e3
        target.idle_mib = process.resident_mib()
        return target

    def stop(self, target: Target) -> None:
        """End one of the servers in order."""
        target.process.stop()

    def entries(self) -> Iterator[dict[str, Any]]:
        """Every entry in the log of the governed server, which has ended."""
        shard = DataDir(self.folder / "governed").shard("w0")
        with Ledger(shard.published, private=shard.private) as ledger:
            for index in range(len(ledger)):
                yield json.loads(ledger.entry(index))

    def load(
        self,
        target: Target,
        connections: int,
        seconds: float,
        *,
        requests: int = 0,
        model: str = "mock-1",
        stream: bool = False,
        path: str = CHAT,
        ramp: float = 0.0,
    ) -> dict[str, Any]:
        """Run the load generator against ``target``; adds what the target spent meanwhile.

        The first requests are sent at once, or evenly over ``ramp`` seconds.

        Raises RuntimeError when a single reply was wrong, or a governed one left no entry.
        """
        command = [str(self.program), "load", str(target.port), str(connections)]
        command += [str(seconds), str(requests), str(ramp)]
        before = target.recorded() if target.governed else {}
        cpu, loop = target.process.cpu_seconds(), target.process.main_thread_seconds()
        with pinned(self.other):
            done = subprocess.run(
                command,
                input=_request(path, model, stream),
                capture_output=True,
                timeout=seconds + 90,
            )
        time.sleep(_SETTLE_SECONDS)
        cpu = target.process.cpu_seconds() - cpu
        loop = target.process.main_thread_seconds() - loop
        if done.returncode != 0:
            raise RuntimeError(f"{target.name}: the load failed: {done.stderr.decode()}")
        found: dict[str, Any] = json.loads(done.stdout)
        if found["errors"] or not found["requests"]:
            log = target.process.log.read_text()[-2000:]
            raise RuntimeError(f"{target.name}: {done.stderr.decode()}{found}\n{log}")
        if target.governed and path == CHAT:
            self._check_entries(target, before, found["requests"], stream)
        found["rps"] = found["requests"] / found["seconds"]
        found["cpu_us"] = cpu / found["requests"] * 1e6
        found["loop_cpu_us"] = loop / found["requests"] * 1e6
        return found

    def client(
        self, name: str, upstream: Target, connections: int, seconds: float
    ) -> dict[str, Any]:
        """What one of benchmarks/gateway/clients.py spends when it asks the mock by itself."""
        command = [sys.executable, "-m", "benchmarks.gateway.clients", name, _url(upstream)]
        with pinned(self.core):
            done = subprocess.run(
                [*command, str(connections), str(seconds)],
                cwd=SOURCE.parents[2],
                capture_output=True,
                text=True,
                timeout=seconds + 90,
            )
        if done.returncode != 0:
            raise RuntimeError(f"{name}: {done.stderr}")
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    def _check_entries(
        self, target: Target, before: dict[str, int], calls: int, stream: bool
    ) -> None:
        after = target.recorded()
        two = stream or target.name == "write-ahead"
        for kind in ("intent", "settle") if two else ("call",):
            made = after.get(kind, 0) - before.get(kind, 0)
            if made != calls:
                raise RuntimeError(f"{calls} calls were answered, but left {made} {kind} entries")


def keys() -> str:
    """Settings for KEY and ADMIN_KEY, as TOML."""
    found = ""
    for name, secret, role in (("bench", KEY, "caller"), ("operator", ADMIN_KEY, "admin")):
        digest = hashlib.sha256(secret.encode()).hexdigest()
        found += (
            f'[[keys]]\nid = "{name}"\nsha256 = "{digest}"\ntenant = "bench"\nroles = ["{role}"]\n'
        )
    return found


def _url(upstream: Target) -> str:
    return f"http://127.0.0.1:{upstream.port}/v1"


def post(target: Target, timeout: float = 30.0) -> tuple[int, str]:
    """One plain call on a connection of its own: its status and request id. Raises OSError."""
    request = urllib.request.Request(
        f"http://127.0.0.1:{target.port}{CHAT}",
        chat_body("mock-1", stream=False),
        {"authorization": f"Bearer {KEY}", "content-type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=timeout) as reply:
            reply.read()
            return reply.status, reply.headers["x-request-id"]
    except urllib.error.HTTPError as error:
        error.read()
        return error.code, error.headers["x-request-id"]


def chat_body(model: str, stream: bool) -> bytes:
    """A request of about half a kilobyte; `model` and `stream` first, where the mock looks."""
    content = "Which of these words are governed, and who could prove it? " * 6
    document: dict[str, Any] = {"model": model}
    if stream:
        document["stream"] = True
    document["messages"] = [{"role": "user", "content": content}]
    return json.dumps(document, separators=(",", ":")).encode()


def _request(path: str, model: str, stream: bool) -> bytes:
    """The bytes of one request."""
    if path != CHAT:
        return f"GET {path} HTTP/1.1\r\nHost: gateway\r\n\r\n".encode()
    body = chat_body(model, stream)
    head = (
        f"POST {path} HTTP/1.1\r\nHost: gateway\r\nAuthorization: Bearer {KEY}\r\n"
        f"Content-Type: application/json\r\nAccept: application/json\r\n"
        f"User-Agent: bench_http\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body
