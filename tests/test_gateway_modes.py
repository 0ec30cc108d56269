"""What waits for the disk in each evidence mode, and what happens when the disk does not answer."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

import upstream
from aegis_c.gateway.app import create_app
from gateway_rig import ASK, KEY, Client, Reply, Rig, gateway, no_file_may_grow, request, run, until
from gateway_rig import settings as rig_settings
from test_gateway_calls import commitment
from upstream import Exchange, Upstream

STREAM = {**ASK, "stream": True}
MODES = ["background", "durable", "write-ahead"]
WAITING = MODES[1:]


class Gate:
    """Stands between the gateway and the news that an entry is durable."""

    def __init__(self, rig: Rig) -> None:
        self._durable = rig.runtime.ledger.durable
        self.open = asyncio.Event()
        self.asked: list[int] = []
        rig.runtime.ledger.durable = self.durable  # type: ignore[method-assign]

    async def durable(self, index: int) -> None:
        self.asked.append(index)
        await self.open.wait()
        await self._durable(index)

    async def waits_for(self, index: int) -> None:
        async def asked() -> bool:
            return index in self.asked

        await until(asked)


@asynccontextmanager
async def governed(
    data: Path, mode: str, script: upstream.Script = upstream.answer, **tables: Any
) -> AsyncIterator[tuple[Upstream, Rig]]:
    """A gateway in ``mode`` before a scripted upstream."""
    evidence = {"mode": mode, **tables.pop("evidence", {})}
    async with (
        upstream.running(script) as up,
        gateway(data, up.url, evidence=evidence, **tables) as rig,
        asyncio.timeout(30),
    ):
        await rig.runtime.ledger.durable(0)
        yield up, rig


def named(rig: Rig, headers: dict[str, str]) -> int:
    """The index that ``aegis-entry`` names."""
    origin, _, index = headers["aegis-entry"].rpartition("/")
    assert origin == rig.runtime.ledger.native.origin
    return int(index)


async def silence(client: Client) -> None:
    """Nothing comes for a while."""
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await client.reader.read(1)


@pytest.mark.parametrize("mode", MODES)
def test_what_is_durable_when_the_headers_come(tmp_path: Path, mode: str) -> None:
    sizes: list[int] = []

    async def script(exchange: Exchange) -> None:
        sizes.append(rig.runtime.ledger.native.durable_size)
        await upstream.answer(exchange)

    async def main() -> None:
        nonlocal rig
        async with governed(tmp_path, mode, script) as (up, rig):
            native = rig.runtime.ledger.native
            async with rig.client() as client:
                await client.write(request(ASK))
                status, headers = await client.head()
                durable = native.durable_size
                body = await client.reader.readexactly(int(headers["content-length"]))
                assert status == 200
                await client.write(request(STREAM))
                status, stream_headers = await client.head()
                stream_durable = native.durable_size
                parts = []
                while part := await client.chunk():
                    parts.append(part)
                ended_durable = native.durable_size
            entries = await rig.entries()
            kinds = [entry["kind"] for entry in entries]
            if mode == "write-ahead":
                assert kinds == ["admin", "intent", "settle", "intent", "settle"]
                intent, settle = entries[1:3]
                assert sizes[0] >= 2 and sizes[1] >= 4  # on disk before the upstream was asked
                assert intent["request"] == commitment(
                    rig, intent["id"], "request", up.exchanges[0].body
                )
                assert "status" not in intent and "request" not in settle
                assert (settle["of"], settle["status"]) == (1, 200)
                assert settle["usage"] == upstream.REPLY["usage"]
                assert settle["response"] == commitment(rig, settle["id"], "response", body)
                assert named(rig, headers) == 1 and durable >= 3
                assert named(rig, stream_headers) == 3 and ended_durable >= 5
                assert "status" not in entries[3]
            else:
                assert kinds == ["admin", "call", "intent", "settle"]
                assert entries[1]["response"] == commitment(rig, entries[1]["id"], "response", body)
                if mode == "durable":
                    assert named(rig, headers) == 1 and durable >= 2
                    assert named(rig, stream_headers) == 2
                    assert stream_durable >= 3 and ended_durable >= 4
                else:
                    assert "aegis-entry" not in headers and "aegis-entry" not in stream_headers
            settle = entries[-1]
            assert (settle["status"], settle["of"]) == ("done", len(entries) - 2)
            assert settle["response"] == commitment(rig, settle["id"], "response", b"".join(parts))
            assert rig.runtime.admission.reserved() == 0

    rig: Rig = None  # type: ignore[assignment]
    run(main())


@pytest.mark.parametrize("mode", MODES)
def test_a_disk_that_does_not_answer_holds_back_what_the_mode_says(
    tmp_path: Path, mode: str
) -> None:
    async def main() -> None:
        async with governed(tmp_path, mode) as (up, rig), rig.client() as client:
            gate = Gate(rig)
            await client.write(request(ASK))
            if mode == "background":
                assert (await client.reply()).status == 200
                await client.write(request(STREAM))
                assert (await client.reply()).body.endswith(upstream.DONE)
                assert gate.asked == []
                return
            await gate.waits_for(1)
            await silence(client)
            assert len(up.exchanges) == (1 if mode == "durable" else 0)
            gate.open.set()
            assert (await client.reply()).status == 200
            first = 2 if mode == "durable" else 3
            gate.open.clear()
            await client.write(request(STREAM))
            await gate.waits_for(first)
            await silence(client)
            assert len(up.exchanges) == (2 if mode == "durable" else 1)
            gate.open.set()
            assert (await client.reply()).body.endswith(upstream.DONE)
            assert gate.asked[-1] == first + 1

    run(main())


@pytest.mark.parametrize("mode", WAITING)
def test_a_stream_ends_only_after_its_settle_is_durable(tmp_path: Path, mode: str) -> None:
    async def main() -> None:
        release = asyncio.Event()

        async def script(exchange: Exchange) -> None:
            await exchange.begin_stream()
            await exchange.chunk(upstream.delta("all"))
            await release.wait()
            await exchange.chunk(upstream.DONE)
            await exchange.chunk(b"")

        async with governed(tmp_path, mode, script) as (_, rig), rig.client() as client:
            await client.write(request(STREAM))
            await client.head()
            assert await client.chunk() == upstream.delta("all")
            gate = Gate(rig)
            release.set()
            assert await client.chunk() == upstream.DONE
            await gate.waits_for(2)
            await silence(client)
            gate.open.set()
            assert await client.chunk() == b""

    run(main())


@pytest.mark.parametrize("mode", MODES)
def test_refusals_and_upstream_errors(tmp_path: Path, mode: str) -> None:
    """Before admission nothing waits; a call that was admitted leaves its entry on disk."""

    async def reset(exchange: Exchange) -> None:
        exchange.reset()

    async def limited(exchange: Exchange) -> None:
        error = {"message": "slow down", "type": "requests", "param": None, "code": "rate"}
        await exchange.answer({"error": error}, "429 Too Many Requests", ["Retry-After: 7"])

    async def main() -> None:
        async with governed(tmp_path, mode) as (up, rig):
            native = rig.runtime.ledger.native
            for body, secret in (({**ASK, "n": 0}, KEY), (ASK, "wrong")):
                reply = await rig.ask(body, secret=secret)
                assert reply.status in (400, 401)
                assert "aegis-entry" not in reply.headers
            for body in (ASK, STREAM):
                for script, status in ((reset, 502), (limited, 429)):
                    up.script = script
                    size = len(native)
                    reply = await rig.ask(body)
                    assert reply.status == status
                    if mode == "background":
                        assert "aegis-entry" not in reply.headers
                    else:
                        assert named(rig, reply.headers) == size
                        assert native.durable_size == len(native)
                    entries = (await rig.entries())[size:]
                    last = entries[-1]
                    expected = commitment(rig, last["id"], "response", reply.body)
                    assert (last["status"], last["response"]) == (status, expected)
                    if status == 502:
                        assert (last["reason"], last["stage"]) == ("upstream_error", "upstream")
                    kinds = [entry["kind"] for entry in entries]
                    if mode == "write-ahead":
                        assert kinds == ["intent", "settle"]
                        assert last["of"] == size
                    else:
                        assert kinds == ["rejection" if status == 502 else "call"]
            assert rig.runtime.admission.reserved() == 0

    run(main())


@pytest.mark.parametrize("on_failure", ["refuse", "serve"])
@pytest.mark.parametrize("mode", WAITING)
@pytest.mark.parametrize("body", [ASK, STREAM], ids=["plain", "stream"])
def test_a_disk_that_fails_while_the_reply_waits(
    tmp_path: Path, mode: str, on_failure: str, body: dict[str, Any], caplog: Any
) -> None:
    """The outcome is unknown: the reply is withheld or goes out unnamed; the log comes back."""

    async def main() -> None:
        evidence = {"on_failure": on_failure}
        async with governed(tmp_path, mode, evidence=evidence) as (up, rig):
            native = rig.runtime.ledger.native

            async def healed() -> bool:
                return native.poisoned is None

            with no_file_may_grow():
                reply = await rig.ask(body)
                withheld = on_failure == "refuse"
                assert reply.status == (503 if withheld else 200)
                assert "aegis-entry" not in reply.headers
                if withheld:
                    assert reply.error["code"] == "ledger_unavailable"
                # In write-ahead mode nobody asked the model for a reply that is withheld.
                asked = 0 if withheld and mode == "write-ahead" else 1
                assert len(up.exchanges) == asked
            assert "is unknown" in caplog.text
            await until(healed)
            reply = await rig.ask(body)
            assert reply.status == 200
            entries = await rig.entries()
            index = named(rig, reply.headers)
            assert entries[index]["id"] == reply.headers["x-request-id"]
            # What was submitted was not lost after all: the log wrote it again. What happened
            # while it could not be told is told now.
            first = [e for e in entries if e["id"] == entries[1]["id"]]
            plain = body is ASK
            if mode == "durable" and plain:
                expected = [("call", 200)]
            elif mode == "durable":
                expected = [("intent", 200)]
            else:
                expected = [("intent", None)]
            if withheld:
                expected.append(("rejection" if expected == [("call", 200)] else "settle", 503))
                assert first[-1]["reason"] == "ledger_unavailable"
                assert first[-1]["response"]["bytes"] > 0
            elif expected[0][0] == "intent":
                expected.append(("settle", 200 if plain else "done"))
            assert [(e["kind"], e.get("status")) for e in first] == expected
            for settle in first[1:]:
                assert settle.get("of", 1) == 1
            assert rig.runtime.admission.reserved() == 0

    run(main())


@pytest.mark.parametrize("on_failure", ["refuse", "serve"])
@pytest.mark.parametrize("mode", WAITING)
def test_a_disk_that_fails_before_the_settle(tmp_path: Path, mode: str, on_failure: str) -> None:
    """The intent is on disk, the settle perhaps not: no orderly end, or one that is logged."""

    async def main() -> None:
        async def script(exchange: Exchange) -> None:
            if not json.loads(exchange.body).get("stream"):
                disk.__enter__()
                await exchange.answer()
                return
            await exchange.begin_stream()
            await exchange.chunk(upstream.delta("all"))
            await release.wait()
            disk.__enter__()
            await exchange.chunk(upstream.DONE)
            await exchange.chunk(b"")

        release = asyncio.Event()
        disk = no_file_may_grow()
        evidence = {"on_failure": on_failure}
        async with governed(tmp_path, mode, script, evidence=evidence) as (_, rig):
            async with rig.client() as client:
                await client.write(request(STREAM))
                _, headers = await client.head()
                assert named(rig, headers) == 1
                release.set()
                data = b""
                while upstream.DONE not in data:
                    data += await client.chunk()
                if on_failure == "refuse":
                    assert await client.reader.read() == b""  # closed, not ended
                else:
                    assert await client.chunk() == b""
            disk.__exit__(None, None, None)

            async def healed() -> bool:
                return rig.runtime.ledger.native.poisoned is None

            await until(healed)
            settle = (await rig.entries("settle"))[0]
            assert (settle["of"], settle["status"]) == (1, "done")
            if mode == "write-ahead":  # a plain reply, withheld after its intent
                disk = no_file_may_grow()
                reply = await rig.ask()
                disk.__exit__(None, None, None)
                assert reply.status == (503 if on_failure == "refuse" else 200)
                index = named(rig, reply.headers)  # the intent was durable then, and is
                await until(healed)
                assert (await rig.entries())[index]["id"] == reply.headers["x-request-id"]
            assert rig.runtime.admission.reserved() == 0

    run(main())


@pytest.mark.parametrize("mode", WAITING)
def test_a_caller_that_leaves_while_its_reply_waits(tmp_path: Path, mode: str) -> None:
    async def main() -> None:
        async with governed(tmp_path, mode) as (up, rig):
            gate = Gate(rig)
            for body in (ASK, STREAM):
                async with rig.client() as client:
                    await client.write(request(body))
                    await gate.waits_for(len(rig.runtime.ledger.native))
            await asyncio.sleep(0.05)
            gate.open.set()
            await rig.settled()
            entries = await rig.entries()
            assert len(up.exchanges) == (0 if mode == "write-ahead" else 2)
            if mode == "write-ahead":  # nobody is there to be answered: no model is asked
                assert {e["status"] for e in entries if e["kind"] == "settle"} == {499}
                assert sorted(e["kind"] for e in entries[1:]) == ["intent"] * 2 + ["settle"] * 2
            else:
                assert sorted(e["kind"] for e in entries[1:]) == ["call", "intent", "settle"]
            for settle in (e for e in entries if e["kind"] == "settle"):
                assert entries[settle["of"]]["id"] == settle["id"]
            assert rig.runtime.admission.reserved() == 0
            assert (await rig.ask()).status == 200

    run(main())


@pytest.mark.parametrize("mode", MODES)
def test_a_caller_that_leaves_while_the_model_works(tmp_path: Path, mode: str) -> None:
    """Its upstream is given up, and its entry says that nobody had an answer."""
    gone = asyncio.Event()

    async def script(exchange: Exchange) -> None:
        await exchange.gone()
        gone.set()

    async def main() -> None:
        async with governed(tmp_path, mode, script) as (up, rig):
            async with rig.client() as client:
                await client.write(request(ASK))
                await up.asked(1)
            await gone.wait()
            await rig.settled()
            *_, last = await rig.entries()
            assert last["kind"] == ("settle" if mode == "write-ahead" else "rejection")
            assert (last["status"], last["reason"]) == (499, "client_gone")
            assert last.get("of", 1) == 1

    run(main())


@pytest.mark.parametrize("body", [ASK, STREAM], ids=["plain", "stream"])
@pytest.mark.parametrize("mode", WAITING)
def test_a_shutdown_while_replies_wait(tmp_path: Path, mode: str, body: dict[str, Any]) -> None:
    """They get their reply once the disk answers; when it never does, nothing is claimed."""

    async def main() -> None:
        async with upstream.running() as up:
            evidence = {"mode": mode}
            async with gateway(tmp_path, up.url, evidence=evidence) as rig, rig.client() as client:
                gate = Gate(rig)
                await client.write(request(body))
                await gate.waits_for(1)
                rig.server.should_exit = True
                await asyncio.sleep(0.05)
                gate.open.set()
                reply = await client.reply()
                assert reply.status == 200
                assert named(rig, reply.headers) == 1
            async with (
                gateway(tmp_path, up.url, evidence=evidence, shutdown_deadline=0.3) as rig,
                rig.client() as client,
            ):
                gate = Gate(rig)
                size = len(rig.runtime.ledger.native)
                await client.write(request(body))
                await gate.waits_for(size)
                rig.server.should_exit = True
                reply = await client.reply()
                assert reply.status == 503
                assert reply.headers["retry-after"]
                code = (
                    "ledger_unavailable" if mode == "durable" and body is ASK else "shutting_down"
                )
                assert json.loads(reply.body)["error"]["code"] == code
                assert "aegis-entry" not in reply.headers
            async with gateway(tmp_path, up.url, evidence=evidence) as rig:
                entries = (await rig.entries())[size:]
                two = mode == "write-ahead" or body is STREAM
                first, last = entries
                assert first["kind"] == ("intent" if two else "call")
                # What the model said was not handed out, and the log says why.
                assert (last["kind"], last.get("of")) == (
                    ("settle", size) if two else ("rejection", None)
                )
                assert (last["status"], last["reason"]) == (503, code)
                assert last["response"]["bytes"] == len(reply.body)

    run(main())


def test_modes_are_in_the_policy(tmp_path: Path) -> None:
    """An entry's policy tells the modes apart."""
    policies = {
        create_app(rig_settings(tmp_path, None, evidence={"mode": mode})).state.aegis._policy
        for mode in MODES
    }
    assert len(policies) == 3


def test_many_calls_share_a_commit(tmp_path: Path) -> None:
    """Each reply names its own entry, which is on disk when the reply is read."""

    async def main() -> None:
        async with governed(tmp_path, "durable") as (_, rig):
            native = rig.runtime.ledger.native

            async def one() -> Reply:
                reply = await rig.ask()
                assert native.durable_size > named(rig, reply.headers)
                return reply

            replies = await asyncio.gather(*(one() for _ in range(32)))
            entries = await rig.entries()
            for reply in replies:
                entry = entries[named(rig, reply.headers)]
                assert (entry["kind"], entry["id"]) == ("call", reply.headers["x-request-id"])
            assert len({reply.headers["aegis-entry"] for reply in replies}) == 32

    run(main())
