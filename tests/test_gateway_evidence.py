"""Evidence under pressure: caps, floods of refusals, no room, a broken ledger, earlier runs."""

from __future__ import annotations

import asyncio
import base64
import gc
import hashlib
import inspect
import json
import re
import signal
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

import upstream
from aegis_c.gateway import errors, evidence
from aegis_c.gateway.app import create_app
from aegis_c.gateway.background.analyst import ANALYSIS_MAX
from aegis_c.gateway.errors import Refusal
from aegis_c.gateway.evidence import CAP, CAP_ESCAPED, Entry, cap, timestamp, uuid7
from aegis_c.gateway.hot.admission import Admission
from aegis_c.gateway.hot.source import Source
from aegis_c.gateway.settings import ENTRY_MAX
from aegis_c.ledger import AsyncLedger
from gateway_rig import (
    ASK,
    CHAT,
    KEY,
    Rig,
    gateway,
    key,
    no_file_may_grow,
    request,
    run,
    settings,
    until,
)
from upstream import Exchange

STREAM = {**ASK, "stream": True}


@given(st.text(max_size=600) | st.text(alphabet='"\\\x00\x1f\x7fé€😀', max_size=600))
def test_a_capped_string_is_a_prefix_or_carries_the_digest_of_the_whole(text: str) -> None:
    kept, digest = cap(text)
    assert text.startswith(kept)
    assert len(kept.encode()) <= CAP
    assert len(msgspec.json.encode(kept)) <= CAP_ESCAPED + 2
    if digest is None:
        assert kept == text
    else:
        assert kept != text
        assert digest == hashlib.sha256(text.encode()).hexdigest()


def test_caps_are_exact() -> None:
    assert cap("x" * 256) == ("x" * 256, None)
    assert cap("x" * 257)[0] == "x" * 256
    assert cap("é" * 128) == ("é" * 128, None)
    assert cap("x" + "é" * 128)[0] == "x" + "é" * 127
    assert cap('"' * 192) == ('"' * 192, None)
    assert cap('"' * 193)[0] == '"' * 192
    assert cap("\\" * 193)[0] == "\\" * 192


def test_no_input_makes_an_entry_larger_than_a_call_may_take(tmp_path: Path) -> None:
    """Every string from outside at its worst, in every kind that a call can make."""
    worst = "\x01" * 5000
    header = '"' * 300 + "\xff" * 2000
    names = {"id": "k" * 64, "tenant": "t" * 64}
    usage = {"prompt_tokens": 2**53 - 1, "completion_tokens": 2**53 - 1, "total_tokens": 10**40}
    reply = {**upstream.REPLY, "model": worst, "usage": usage}

    async def script(exchange: Exchange) -> None:
        asked = json.loads(exchange.body)
        if asked["model"] == "hang up":
            exchange.reset()
        elif asked.get("stream"):
            await exchange.begin_stream()
            await exchange.chunk(upstream.delta("x", model=worst, usage=usage))
            await exchange.chunk(b"")
        else:
            await exchange.answer(reply)

    async def main() -> None:
        keys = [{**key(KEY, "k", "t"), **names}]
        provider = {"name": "p" * 64}
        async with (
            upstream.running(script) as up,
            gateway(tmp_path, up.url, keys=keys, upstream=provider) as rig,
        ):
            headers = (f"X-Client-Request-Id: {header}", f"Aegis-Session: {header}")
            for body in ({**ASK, "model": worst}, {**STREAM, "model": worst}):
                assert (await rig.ask(body, headers=headers)).status == 200
            assert (await rig.ask({**ASK, "n": 0, "model": worst}, headers=headers)).status == 400
            path = "/v1/" + "%01" * 1000
            assert (await rig.ask(path=path, headers=headers)).status == 404
            await rig.settled()
            entries = await rig.entries()
            assert {e["kind"] for e in entries} == {
                "admin",
                "call",
                "intent",
                "settle",
                "rejection",
            }
            native = rig.runtime.ledger.native
            sizes = [len(native.entry(i)) for i in range(len(entries))]
            assert max(sizes) <= ENTRY_MAX - 256, sizes
            whole = hashlib.sha256(header.encode("latin-1").decode("latin-1").encode()).hexdigest()
            call = entries[1]
            assert call["client_id_sha256"] == call["session_sha256"] == whole
            assert call["model"]["asked_sha256"] == hashlib.sha256(worst.encode()).hexdigest()
            assert call["model"]["answered_sha256"] == call["model"]["asked_sha256"]
            assert call["model"]["asked"] == worst[: len(call["model"]["asked"])]
            assert call["usage"] == {k: usage[k] for k in ("prompt_tokens", "completion_tokens")}

    run(main())


_EVERY = {"v", "kind", "id", "client_id", "client_id_sha256", "session", "session_sha256", "time"}
_EVERY |= {"tenant", "key", "endpoint", "endpoint_sha256", "policy", "suppressed"}
_ANSWER = {"model", "provider", "status", "limits", "timing"}
KINDS = {
    "call": _EVERY | _ANSWER | {"usage", "request", "response"},
    "intent": _EVERY | _ANSWER | {"request"},
    "settle": _EVERY | _ANSWER | {"of", "usage", "events", "reason", "stage", "response"},
    "rejection": _EVERY | _ANSWER | {"reason", "stage", "request", "response"},
    "analysis": _EVERY | {"of", "analysis"},
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_member_at_its_longest_fits_into_what_a_call_may_take(kind: str) -> None:
    """No call makes a larger entry than room is kept for, whatever anybody sends.

    A member that is new must be given its longest value, and its kinds, here.
    """
    digest, name, most = "f" * 64, "n" * 64, 2**63 - 1
    text = max(
        (cap(c * 5000)[0] for c in ("\x01", '"', "\xff", "x")),
        key=lambda kept: len(msgspec.json.encode(kept)),
    )
    assert CAP_ESCAPED - 6 < len(msgspec.json.encode(text)) <= CAP_ESCAPED + 2
    longest: dict[str, Any] = {
        "v": 1,
        "kind": kind,
        "id": uuid7(),
        "client_id": text,
        "client_id_sha256": digest,
        "of": most,
        "session": text,
        "session_sha256": digest,
        "time": timestamp(),
        "tenant": name,
        "key": name,
        "endpoint": text,
        "endpoint_sha256": digest,
        "model": {
            "asked": text,
            "asked_sha256": digest,
            "answered": text,
            "answered_sha256": digest,
        },
        "provider": name,
        "status": "internal_error",
        "usage": dict.fromkeys(("prompt_tokens", "completion_tokens", "total_tokens"), 2**53 - 1),
        "policy": digest,
        "limits": {
            "limit": "tenant-requests-second",
            **dict.fromkeys(("remaining", "retry_after_ms", "reserved_tokens"), most),
            **dict.fromkeys(("used_tokens", "reserved_nano", "used_nano"), most),
        },
        "timing": {"upstream_us": most, "total_us": most},
        "events": most,
        "reason": "r" * 64,
        "stage": "s" * 16,
        "suppressed": most,
        "analysis": {"a": "x" * (ANALYSIS_MAX - len(b'{"a":""}'))},
    }
    admin = {"event", "size", "root", "shards"}  # of kind admin, which no call makes
    assert set(longest) | admin == set(Entry.__struct_fields__)
    made = {member: value for member, value in longest.items() if member in KINDS[kind]}
    size = len(msgspec.json.encode(Entry(**made)))
    for role in KINDS[kind] & {"request", "response"}:
        body = {"bytes": 2**64 - 1, "commitment": "A" * 44}
        size += len(b',"":') + len(role) + len(msgspec.json.encode(body))
    assert size <= ENTRY_MAX, size
    codes = re.findall(r'"([a-z]+_[a-z_]+)"', inspect.getsource(errors))
    assert codes
    assert max(map(len, codes)) <= 64


def test_request_ids_are_version_7_and_new() -> None:
    ids = [uuid.UUID(uuid7()) for _ in range(2000)]
    assert len(set(ids)) == 2000
    assert {i.version for i in ids} == {7}
    assert {i.variant for i in ids} == {uuid.RFC_4122}


# -- floods of refusals ------------------------------------------------------------------------


def test_a_flood_of_refusals_is_counted_and_the_next_entry_says_so(tmp_path: Path) -> None:
    rates = {"rejections_per_source": 0.5, "rejections_total": 100.0}

    async def main() -> None:
        async with upstream.running() as up:
            async with gateway(tmp_path, up.url, evidence=rates) as rig:
                for _ in range(30):
                    assert (await rig.ask(secret="wrong")).status == 401
                recorded = len(await rig.entries("rejection"))
                assert 3 <= recorded <= 6  # five seconds' worth at once
                assert (await rig.ask()).status == 200
                assert (await rig.ask()).status == 200
                first, second = await rig.entries("call")
                assert recorded + first["suppressed"] == 30
                assert "suppressed" not in second
                text = (await rig.ask(b"", method="GET", path="/metrics")).body.decode()
                assert f"aegis_rejections_suppressed_total {first['suppressed']}.0" in text
                for _ in range(7):
                    await rig.ask(secret="wrong")
            async with gateway(tmp_path, up.url) as rig:  # what was still unsaid at the end
                last = (await rig.entries())[-1]
                assert (last["kind"], last["event"]) == ("admin", "suppressed")
                assert 6 <= last["suppressed"] <= 7

    run(main())


def test_sources_are_counted_one_by_one_and_together(tmp_path: Path) -> None:
    """IPv6 addresses count by their /64, so that a host cannot be a million sources."""

    async def refused(app: Any, address: str) -> None:
        sent: list[Any] = []

        async def receive() -> dict[str, Any]:
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {
            "type": "http",
            "method": "POST",
            "path": CHAT,
            "headers": [],
            "client": (address, 1),
        }
        await app(scope, receive, send)
        assert sent[0]["status"] == 401

    async def main() -> None:
        rates = {"rejections_per_source": 1.0, "rejections_total": 4.0}
        async with upstream.running() as up:
            app = create_app(settings(tmp_path, up.url, evidence=rates))
            runtime = app.state.aegis
            rig = Rig(0, runtime, None)  # type: ignore[arg-type]
            async with runtime.lifespan():
                for i in range(50):
                    await refused(app, f"2001:db8::{i:x}")
                assert 5 <= len(await rig.entries("rejection")) <= 7
                for i in range(100):
                    await refused(app, f"2001:db8:0:{i:x}::1")
                assert 19 <= len(await rig.entries("rejection")) <= 23  # all sources together
                assert runtime.evidence.suppressed_total >= 127

    run(main())


def test_source_addresses() -> None:
    def source(client: tuple[str, int] | None) -> str:
        return Source((), "x-forwarded-for").of({"type": "http", "client": client})

    assert source(("192.0.2.7", 1)) == "192.0.2.7"
    assert source(("2001:db8:1:2:3:4:5:6", 1)) == "2001:db8:1:2::/64"
    assert source(("2001:db8:1:2::", 1)) == "2001:db8:1:2::/64"
    assert source(("::ffff:192.0.2.7", 1)) == "192.0.2.7"
    assert source(("fe80::1%eth0", 1)) == "fe80::/64"
    assert source(None) == "local"


# -- room before work --------------------------------------------------------------------------


class Room:
    """The numbers that admission looks at, set by a test."""

    def __init__(self, **values: Any) -> None:
        self.room = 1 << 20
        self.poisoned: str | None = None
        self.background = True
        self.depth = 0
        self.admission = Admission(
            max_in_flight=values.get("max_in_flight", 4),
            deadline=values.get("deadline", 0.2),
            room=lambda: self.room,
            poisoned=lambda: self.poisoned,
            refuse_on_failure=values.get("refuse", True),
            background_room=lambda: self.background,
            background_depth=lambda: self.depth,
        )


async def enters(admission: Admission, entries: int = 1) -> str:
    """``in``, or the code of the refusal."""
    try:
        await admission.enter(entries)
    except Refusal as refusal:
        return refusal.code
    return "in"


def test_admission_keeps_room_for_every_entry_of_every_call() -> None:
    async def main() -> None:
        room = Room(deadline=0)
        admission = room.admission
        room.room = 3 * ENTRY_MAX
        assert await enters(admission, 2) == "in"
        assert await enters(admission, 2) == "overloaded"
        assert await enters(admission, 1) == "in"
        assert admission.reserved() == 3 * ENTRY_MAX
        admission.made()
        room.room -= ENTRY_MAX  # the entry it made is in the ring now
        assert await enters(admission, 1) == "overloaded"
        admission.leave(1)
        assert await enters(admission, 1) == "in"
        admission.leave(1)
        room.depth = 1  # a queued analysis may need an entry, too
        assert await enters(admission, 1) == "overloaded"
        room.depth = 0
        room.background = False
        assert await enters(admission, 1) == "overloaded"
        room.background = True
        assert await enters(admission, 1) == "in"
        assert admission.in_flight == 2

    run(main())


def test_calls_wait_in_order_until_there_is_room() -> None:
    async def main() -> None:
        room = Room(max_in_flight=1, deadline=5)
        admission = room.admission
        assert await enters(admission) == "in"
        order: list[int] = []

        async def one(i: int) -> None:
            assert await enters(admission) == "in"
            order.append(i)
            await asyncio.sleep(0)
            admission.leave(1)

        tasks = [asyncio.create_task(one(0))]
        await asyncio.sleep(0)
        assert admission.waiting == 1
        late = asyncio.create_task(enters(admission))
        await asyncio.sleep(0)
        assert await enters(admission) == "overloaded"  # as many wait as may be in flight
        late.cancel()
        admission.leave(1)
        await asyncio.gather(*tasks)
        assert order == [0]
        room.room = 0
        waiting = asyncio.create_task(enters(admission))
        await asyncio.sleep(0.05)
        assert not waiting.done()
        room.room = 1 << 20  # freed by a thread: nobody says so, it is looked at
        assert await waiting == "in"
        admission.leave(1)
        assert (admission.in_flight, admission.waiting, admission.reserved()) == (0, 0, 0)

    run(main())


def test_waiting_ends_at_the_deadline_at_a_cancel_and_at_the_close() -> None:
    async def main() -> None:
        room = Room(deadline=0.05)
        room.room = 0
        assert await enters(room.admission) == "overloaded"
        patient = Room(deadline=60).admission
        patient._room = lambda: 0
        waiting = [asyncio.create_task(enters(patient)) for _ in range(3)]
        await asyncio.sleep(0)
        waiting[0].cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting[0]
        assert patient.waiting == 2
        patient.close()
        assert await asyncio.gather(*waiting[1:]) == ["shutting_down"] * 2
        assert await enters(patient) == "shutting_down"
        assert (patient.in_flight, patient.reserved()) == (0, 0)

    run(main())


def test_a_poisoned_ledger_admits_nothing_or_all() -> None:
    async def main() -> None:
        for refuse, outcome in ((True, "ledger_unavailable"), (False, "in")):
            room = Room(refuse=refuse, deadline=0)
            room.poisoned = "disk full"
            room.room = 0
            assert await enters(room.admission) == outcome

    run(main())


def test_a_full_gateway_refuses_and_sends_nothing_upstream(tmp_path: Path) -> None:
    release = asyncio.Event()

    async def script(exchange: Exchange) -> None:
        await release.wait()
        await exchange.answer()

    async def main() -> None:
        tight = {"max_in_flight": 1, "admission_deadline": 0.2}
        async with upstream.running(script) as up, gateway(tmp_path, up.url, limits=tight) as rig:
            first = asyncio.create_task(rig.ask())
            await up.asked(1)
            reply = await rig.ask()
            assert (reply.status, reply.error["code"]) == (503, "overloaded")
            assert reply.headers["retry-after"] == "1"
            entry = (await rig.entries())[-1]
            assert (entry["kind"], entry["stage"]) == ("rejection", "limits")
            assert len(up.exchanges) == 1
            second = asyncio.create_task(rig.ask())  # waits, and gets its turn
            await asyncio.sleep(0.05)
            release.set()
            assert (await first).status == (await second).status == 200
            assert rig.runtime.admission.reserved() == 0

    run(main())


# -- a ledger that breaks ----------------------------------------------------------------------


@pytest.mark.parametrize("on_failure", ["refuse", "serve"])
def test_when_the_ledger_cannot_record(
    tmp_path: Path, on_failure: str, caplog: pytest.LogCaptureFixture
) -> None:
    """While the disk is full calls are refused, or served with a logged gap; then all is well."""

    async def main() -> None:
        evidence = {"on_failure": on_failure}
        async with upstream.running() as up, gateway(tmp_path, up.url, evidence=evidence) as rig:
            native = rig.runtime.ledger.native

            async def broken() -> bool:
                return native.poisoned is not None

            async def healed() -> bool:
                return native.poisoned is None

            assert (await rig.ask()).status == 200
            await rig.runtime.ledger.durable(len(native) - 1)
            with no_file_may_grow():
                await rig.ask()  # submitted before the disk is asked
                await until(broken)
                sent = len(up.exchanges)
                for body in (ASK, STREAM):
                    reply = await rig.ask(body)
                    if on_failure == "refuse":
                        assert (reply.status, reply.error["code"]) == (503, "ledger_unavailable")
                        assert "retry-after" in reply.headers
                    else:
                        assert reply.status == 200
                assert len(up.exchanges) == sent + (0 if on_failure == "refuse" else 2)
                ready = await rig.ask(b"", method="GET", path="/ready")
                assert ready.status == 503
                assert json.loads(ready.body)["missing"][0].startswith("ledger: ")
            text = (await rig.ask(b"", method="GET", path="/metrics")).body.decode()
            gaps = next(x for x in text.splitlines() if x.startswith("aegis_ledger_gaps_total"))
            assert float(gaps.split()[1]) >= 2
            assert "could not record" in caplog.text
            assert rig.runtime.admission.reserved() == 0
            await until(healed)
            size = len(native)
            assert (await rig.ask()).status == 200
            kinds = [entry["kind"] for entry in (await rig.entries())[size:]]
            missed = ["rejection"] * 2 if on_failure == "refuse" else ["call", "intent", "settle"]
            assert kinds == [*missed, "call"]  # what happened meanwhile comes first
            assert rig.runtime.evidence.late == len(missed)
            assert (await rig.ask(b"", method="GET", path="/ready")).status == 200

    run(main())


def test_what_is_kept_for_later_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the bound refusals are counted, and the first entry after them says how many."""
    monkeypatch.setattr(evidence, "_LATE_MAX", 3)

    async def main() -> None:
        async with upstream.running() as up, gateway(tmp_path, up.url) as rig:
            native = rig.runtime.ledger.native

            async def poisoned() -> bool:
                return native.poisoned is not None

            async def healed() -> bool:
                return native.poisoned is None

            await rig.runtime.ledger.durable(0)
            with no_file_may_grow():
                await rig.ask()
                await until(poisoned)
                for _ in range(8):
                    assert (await rig.ask(secret="wrong")).status == 401
            await until(healed)
            assert (await rig.ask()).status == 200
            entries = await rig.entries()
            kinds = [entry["kind"] for entry in entries]
            assert kinds == ["admin", "call", *["rejection"] * 3, "call"]
            assert entries[-1]["suppressed"] == 5
            assert not any("suppressed" in entry for entry in entries[:-1])

    run(main())


# -- earlier runs ------------------------------------------------------------------------------


def test_streams_of_an_earlier_run_are_settled_as_abandoned_once(tmp_path: Path) -> None:
    """The intent of a run that was killed; here the run's ledger is closed without its settle."""
    begun = asyncio.Event()

    async def script(exchange: Exchange) -> None:
        await exchange.begin_stream()
        await exchange.chunk(upstream.delta("one"))
        begun.set()
        await exchange.gone()

    async def main() -> None:
        async with upstream.running(script) as up:
            async with gateway(tmp_path, up.url) as rig:
                runtime = rig.runtime
                async with rig.client() as client:
                    session = ("aegis-session: s-9", "x-client-request-id: c-9")
                    await client.write(request(STREAM, headers=session))
                    await begun.wait()
                    await client.head()
                    await runtime.ledger.close()  # from here on nothing can be recorded
            for run in range(2):
                async with gateway(tmp_path, up.url) as rig:
                    entries = await rig.entries()
                    intent, settle = entries[1], entries[2]
                    assert [e["kind"] for e in entries] == ["admin", "intent", "settle"], run
                    assert (settle["status"], settle["of"]) == ("abandoned", 1)
                    for name in ("id", "tenant", "key", "endpoint", "model", "provider"):
                        assert settle[name] == intent[name]
                    assert (settle["session"], settle["client_id"]) == ("s-9", "c-9")
                    assert "response" not in settle

    run(main())


def test_a_start_that_misses_what_the_last_run_had_in_memory_says_so(tmp_path: Path) -> None:
    """The process is killed and its ring is gone, as after a loss of power."""
    script = """if True:
        import os, pathlib, re, signal, sys
        from aegis_c import Ledger
        from aegis_c.ledger.layout import DataDir
        directory = DataDir(pathlib.Path(sys.argv[1]))
        directory.create()
        ledger = Ledger(directory.shard("w0").published)
        ledger.wait(ledger.submit(b'{"v":1,"kind":"admin","id":"00000000-0000-7000-8000-000000000000",'
            b'"event":"genesis","time":"2026-01-02T03:04:05.000006Z"}'), "durable")
        with open("/proc/self/maps") as maps:
            ring = re.search(r"/dev/shm/[^ ]+[.]ring", maps.read())
        os.unlink(ring[0])
        os.kill(os.getpid(), signal.SIGKILL)
    """
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=False, timeout=60)
    assert done.returncode == -signal.SIGKILL

    async def main() -> None:
        async with upstream.running() as up:
            for _ in range(2):
                async with gateway(tmp_path, up.url) as rig:
                    entries = await rig.entries()
                    assert [e["event"] for e in entries] == ["genesis", "restart"]
                    assert entries[1]["size"] == 1
                    root = base64.b64decode(entries[1]["root"])
                    assert root == rig.runtime.ledger.native.root(1)

    run(main())


def mapped_ring() -> Path:
    """The ring that this process has open."""
    found = re.search(r"/dev/shm/[^ \n]+[.]ring", Path("/proc/self/maps").read_text())
    assert found is not None
    return Path(found[0])


def test_a_clean_end_is_no_loss(tmp_path: Path) -> None:
    """Neither a new ring nor a missing one means that something was lost."""

    async def main() -> None:
        async with upstream.running() as up:
            for run in range(3):
                async with gateway(tmp_path, up.url) as rig:
                    assert (await rig.ask()).status == 200
                    entries = await rig.entries()
                    assert [e["kind"] for e in entries] == ["admin", *["call"] * (run + 1)]
                    ring = mapped_ring()
                if run == 1:
                    ring.unlink(missing_ok=True)  # as after another boot

    run(main())


def test_an_entry_is_there_before_the_reply(tmp_path: Path) -> None:
    """Whoever has a reply finds its entry: it was submitted before the first byte went out."""

    async def main() -> None:
        async with upstream.running() as up, gateway(tmp_path, up.url) as rig:
            for secret, body in ((KEY, ASK), (KEY, STREAM), ("x", ASK), (KEY, {"model": 1})):
                async with rig.client() as client:
                    size = len(rig.runtime.ledger.native)
                    await client.write(request(body, secret=secret))
                    await client.head()
                    assert len(rig.runtime.ledger.native) > size
            await rig.settled()

    run(main())


def test_the_ledger_is_published_when_the_gateway_ends(tmp_path: Path) -> None:
    async def main() -> None:
        async with upstream.running() as up, gateway(tmp_path, up.url) as rig:
            for _ in range(3):
                await rig.ask()
        gc.collect()
        checkpoint = (tmp_path / "ledger" / "w0" / "checkpoint").read_text().splitlines()
        assert checkpoint[1] == "4"
        async with AsyncLedger(
            tmp_path / "ledger" / "w0", private=tmp_path / "private" / "w0"
        ) as ledger:
            assert len(ledger.native) == 4

    run(main())
