"""`./dev soak [SCENARIO...]`: the gateway as a process of its own, for long and under attack.

    calls            200,000 plain calls: the gateway's memory must stay flat
    streams          2,000 streams at once, again and again: the same
    idle             ten thousand connections that ask once and stay; more than files may be open
    upstream-killed  the model server is killed with -9 again and again, and comes back
    gateway-killed   so is the loaded gateway: a hundred times, in every evidence mode
    chaos            several workers, and everything goes wrong around them for five minutes

Without a name, all of them. --short: seconds instead of minutes (the suite runs that). --keep DIR:
logs and data stay there. The load generator checks every reply, and every answered call must have
left its entries; a scenario that fails says why, and the exit status is 1.
"""

from __future__ import annotations

import argparse
import asyncio
import resource
import socket
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.gateway.harness import Bench, Target, post

from chaos import Chaos
from kills import MODES, Kills

MIB = 2**20
#: MiB that a process may grow by for reasons of its own (allocator, caches) once it is warm,
#: however many calls it serves: 12 MiB over the long form are 63 bytes a call.
SLACK_MIB = 12.0
#: Memory of one idle connection at most: two protocol objects, parser, transport, buffers.
IDLE_BYTES = 20_000


class Failed(Exception):
    """A scenario did not hold; the text says what."""


@dataclass
class Soak:
    """What a scenario gets: a place, and how long it may take."""

    folder: Path
    short: bool

    def say(self, line: str) -> None:
        print(line, flush=True)

    def check_memory(self, what: str, before: float, gateway: Target, entries: int) -> None:
        """RSS has not grown beyond the slack. Raises Failed."""
        after = gateway.process.resident_mib()
        self.say(
            f"{what}: {before:.1f} MiB before, {after:.1f} MiB after {entries:,} entries "
            f"({(after - before) * MIB / entries:.0f} bytes an entry)"
        )
        if after - before > SLACK_MIB:
            raise Failed(f"{what}: grew by {after - before:.1f} MiB, allowed are {SLACK_MIB:g}")


def calls(soak: Soak) -> None:
    """Many plain calls: memory stays flat."""
    warm, many = (1_000, 3_000) if soak.short else (20_000, 200_000)
    with Bench(soak.folder) as bench:
        gateway = bench.governed(bench.upstream())
        bench.load(gateway, 64, 600, requests=warm)
        before = gateway.process.resident_mib()
        found = bench.load(gateway, 64, 3600, requests=many)
        soak.say(f"calls: {found['requests']:,} answered at {found['rps']:,.0f}/s")
        soak.check_memory("calls", before, gateway, many)


def streams(soak: Soak) -> None:
    """Many streams at once, again and again: memory stays where the first times left it.

    How far their ends overlap decides the peak, which the first time does not reach.
    """
    at_once = 200 if soak.short else 2_000
    with Bench(soak.folder) as bench:
        gateway = bench.governed(bench.upstream(), in_flight=at_once + 48)
        for _ in range(1 if soak.short else 4):
            bench.load(gateway, at_once, 120, requests=at_once, stream=True)
        before = gateway.process.resident_mib()
        rounds = 1 if soak.short else 4
        for _ in range(rounds):
            found = bench.load(gateway, at_once, 120, requests=at_once, stream=True)
            soak.say(
                f"streams: {found['requests']:,} at once, first event after "
                f"{found['first_p50'] / 1e3:.0f} ms (p50), {found['first_p99'] / 1e3:.0f} ms (p99)"
            )
        soak.check_memory("streams", before, gateway, 2 * rounds * at_once)


def idle(soak: Soak) -> None:
    """Idle connections cost memory, a known amount, and nothing else; a flood of them no call."""
    wanted = 1_000 if soak.short else 10_000
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    many = min(wanted, hard - 512)
    if many < wanted:
        soak.say(f"idle: {many:,} instead of {wanted:,}: `ulimit -Hn` is {hard:,}")
    try:
        with Bench(soak.folder) as bench:
            gateway = bench.governed(bench.upstream(), in_flight=64, limits="head_timeout = 1.0\n")
            bench.load(gateway, 8, 60, requests=400)
            before = gateway.process.resident_mib()
            kept = [_connected(gateway.port, ask=True) for _ in range(many)]
            each = (gateway.process.resident_mib() - before) * MIB / many
            soak.say(f"idle: {many:,} connections, {each:,.0f} bytes of memory each")
            found = bench.load(gateway, 8, 60, requests=400)
            soak.say(f"idle: beside them {found['rps']:,.0f} calls/s, {found['cpu_us']:.0f} us CPU")
            if not _answers(kept[0]) or not _answers(kept[-1]):
                raise Failed("idle: an idle connection was not served")
            for connection in kept:
                connection.close()
            if each > IDLE_BYTES:
                raise Failed(f"idle: {each:,.0f} bytes a connection, allowed are {IDLE_BYTES:,}")
            _flood(soak, bench, gateway)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def _flood(soak: Soak, bench: Bench, gateway: Target) -> None:
    """More connections than open files allow: who is served stays so, and others are again."""
    resource.prlimit(gateway.process.pid, resource.RLIMIT_NOFILE, (300, 300))
    known = _connected(gateway.port, ask=True)
    silent = [_connected(gateway.port, ask=False) for _ in range(400)]
    for _ in range(20):
        if not _answers(known):
            raise Failed("idle: a connection was not served while others took all there is")
    until = time.monotonic() + 20
    while post(gateway)[0] != 200:
        if time.monotonic() > until:
            raise Failed("idle: no new call is served after the silent ones had their time")
    soak.say("idle: 400 silent connections where 150 have room: who was there was served")
    for connection in (known, *silent):
        connection.close()


def _connected(port: int, *, ask: bool) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port), timeout=30)
    if ask and not _answers(connection):
        raise Failed("idle: a new connection was not served")
    return connection


def _answers(connection: socket.socket) -> bool:
    """One call on a kept connection."""
    connection.sendall(b"GET /health HTTP/1.1\r\nHost: gateway\r\n\r\n")
    return connection.recv(4096).startswith(b"HTTP/1.1 200 ")


def upstream_killed(soak: Soak) -> None:
    """The model server dies and comes back: every call has one answer and one outcome."""
    deaths = 2 if soak.short else 20
    with Bench(soak.folder) as bench:
        model = bench.upstream()
        gateway = bench.governed(model)
        asked = Callers(gateway, 4)
        with asked:
            for _ in range(deaths):
                time.sleep(0.4)
                model.process.kill()
                time.sleep(0.4)
                model = bench.upstream(port=model.port)
                deadline = time.monotonic() + 30
                while post(gateway)[0] != 200:  # the breaker lets one call try, then all
                    if time.monotonic() > deadline:
                        raise Failed("upstream-killed: no call is answered after it came back")
                    time.sleep(0.05)
        soak.say(
            f"upstream-killed: {deaths} deaths; answers: {dict(sorted(asked.statuses.items()))}"
        )
        odd = set(asked.statuses) - {200, 502, 503, 504}
        if odd or not asked.statuses[200] or not asked.statuses[502] + asked.statuses[503]:
            raise Failed(f"upstream-killed: statuses {dict(asked.statuses)}")
        bench.stop(gateway)
        check_outcomes(bench, asked.answered)


class Callers:
    """Threads that ask one call after the other and keep each answer's id and status."""

    def __init__(self, gateway: Target, count: int) -> None:
        self.statuses: Counter[int] = Counter()
        self.answered: dict[str, int] = {}
        self._gateway = gateway
        self._end = Event()
        self._faults: list[Exception] = []
        self._threads = [Thread(target=self._run) for _ in range(count)]

    def _run(self) -> None:
        try:
            while not self._end.is_set():
                status, request_id = post(self._gateway)
                self.statuses[status] += 1
                self.answered[request_id] = status
                if status != 200:
                    time.sleep(0.005)
        except Exception as error:  # the gateway must answer whatever its upstream does
            self._faults.append(error)

    def __enter__(self) -> Callers:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        for thread in self._threads:
            thread.join()
        if self._faults:
            raise Failed(f"a call was not answered: {self._faults[0]!r}")


def check_outcomes(bench: Bench, answered: dict[str, int]) -> None:
    """Every answer has exactly one outcome in the published log, with its status. Raises Failed."""
    outcomes: dict[str, list[int | str]] = {}
    suppressed = 0
    for entry in bench.entries():
        suppressed += entry.get("suppressed", 0)
        if entry["kind"] in ("call", "settle", "rejection"):
            outcomes.setdefault(entry["id"], []).append(entry["status"])
    missing = [i for i in answered if i not in outcomes]
    if len(missing) > suppressed:
        raise Failed(f"{len(missing)} answers without an entry, {suppressed} counted")
    for request_id, status in answered.items():
        if request_id in outcomes and outcomes[request_id] != [status]:
            raise Failed(f"{request_id}: answered {status}, recorded {outcomes[request_id]}")


def gateway_killed(soak: Soak) -> None:
    """What callers and the model server saw is in the log of the next run."""
    job = Kills(soak.folder, seed=time.time_ns() % 1_000_000)
    soak.say(f"gateway-killed: seed {job.seed}")
    try:
        asyncio.run(job.run(len(MODES) if soak.short else 100))
    except AssertionError as error:
        raise Failed(f"gateway-killed: {error!r}") from error
    soak.say(f"gateway-killed: {dict(sorted(job.counts.items()))}")
    for mode in MODES:
        if not job.counts[f"{mode} calls"] or not job.counts[f"{mode} streams"]:
            raise Failed(f"gateway-killed: nothing was answered in mode {mode}")


def chaos(soak: Soak) -> None:
    """Workers, model server, disk, clock and settings fail under load (tests/chaos.py)."""
    seed = time.time_ns() % 1_000_000
    job = Chaos(soak.folder, seed)
    soak.say(f"chaos: seed {seed}")
    try:
        asyncio.run(job.run(4.0 if soak.short else 300.0))
    except* AssertionError as errors:
        raise Failed(f"chaos: {errors.exceptions[0]!r}") from errors
    finally:
        soak.say(f"chaos: {job.report()}")


SCENARIOS: dict[str, Callable[[Soak], None]] = {
    "calls": calls,
    "streams": streams,
    "idle": idle,
    "upstream-killed": upstream_killed,
    "gateway-killed": gateway_killed,
    "chaos": chaos,
}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="./dev soak", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("scenario", nargs="*", help=", ".join(SCENARIOS))
    parser.add_argument("--short", action="store_true")
    parser.add_argument("--keep", type=Path, metavar="DIR")
    options = parser.parse_args(arguments)
    unknown = [name for name in options.scenario if name not in SCENARIOS]
    if unknown:
        parser.error(f"unknown scenario {unknown[0]!r}; there are {', '.join(SCENARIOS)}")
    failed = 0
    with tempfile.TemporaryDirectory(prefix="aegis-soak-") as temporary:
        for name in options.scenario or SCENARIOS:
            folder = (options.keep or Path(temporary)) / name
            folder.mkdir(parents=True)
            try:
                SCENARIOS[name](Soak(folder, options.short))
            except (Failed, RuntimeError) as error:
                failed += 1
                print(f"{name}: FAILED: {error}", file=sys.stderr, flush=True)
            else:
                print(f"{name}: held", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
