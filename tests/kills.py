"""kill -9 of a loaded gateway, again and again: what callers hold must be in its log.

Callers, plain and streaming, keep a gateway process busy before a scripted upstream; it is killed
at a random moment and started again on the same data. What every caller and the upstream saw is
kept, and held against the ledger at the end. Short form in the suite, long form by `./dev soak`.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import random
import signal
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any, Literal

import upstream
from aegis_c.ledger import AsyncLedger
from aegis_c.ledger import verify as v
from gateway_process import Process, serving
from gateway_rig import ASK, KEY, SCHEMA, request
from upstream import Exchange

CALLERS = 12
Role = Literal["request", "response"]


class Seen:
    """One call as its caller saw it, from the moment that it had the head of a reply."""

    def __init__(self, mode: str, stream: bool, asked: bytes, headers: dict[str, str]) -> None:
        self.mode = mode
        self.stream = stream
        self.asked = asked
        self.id = headers["x-request-id"]
        self.entry = headers.get("aegis-entry")
        self.body = b""
        self.complete = False


MODES = ("background", "durable", "write-ahead")


class Kills:
    """One data directory, its runs in turn in every mode, and everything that was seen of it."""

    def __init__(self, data: Path, seed: int) -> None:
        self.data = data
        self.mode = ""
        self.seed = seed
        self.random = random.Random(seed)
        self.seen: list[Seen] = []
        self.receipts: list[bytes] = []
        self.asked: dict[str, bytes] = {}  # what reached the upstream, by request id
        self.written_ahead: set[str] = set()  # those of it in mode write-ahead
        self.counts: Counter[str] = Counter()

    async def run(self, rounds: int) -> None:
        """Kill the gateway ``rounds`` times, then hold its ledger against what was seen."""
        async with upstream.running(self._script) as up:
            for i in range(rounds):
                self.mode = MODES[i % len(MODES)]
                more = {"AEGIS_EVIDENCE__MODE": self.mode, "AEGIS_UPSTREAM__HEARTBEAT": 0.1}
                async with serving(self.data, up.url, **more) as server:
                    await self._round(server)
            async with serving(self.data, up.url) as server:
                assert await server.end() == 0
        await self._check()

    # -- the load ----------------------------------------------------------------------------

    async def _script(self, exchange: Exchange) -> None:
        name = exchange.headers["x-client-request-id"]
        assert name not in self.asked, "a call went upstream twice"
        self.asked[name] = exchange.body
        if self.mode == "write-ahead":
            self.written_ahead.add(name)
        await asyncio.sleep(self.random.choice((0, 0, 0.002, 0.02)))
        try:
            if not json.loads(exchange.body).get("stream"):
                await exchange.answer()
                return
            await exchange.begin_stream()
            for i in range(self.random.randrange(12)):
                await exchange.chunk(upstream.delta(str(i)))
                await asyncio.sleep(self.random.choice((0, 0.001, 0.01, 0.15)))
            await exchange.chunk(upstream.DONE)
            await exchange.chunk(b"")
        except ConnectionError:
            pass  # the gateway was killed

    async def _round(self, server: Process) -> None:
        callers = [asyncio.create_task(self._call(server)) for _ in range(CALLERS)]
        auditor = asyncio.create_task(self._audit(server))
        await asyncio.sleep(self.random.uniform(0.1, 0.7))
        assert await server.end(signal.SIGKILL) == -signal.SIGKILL
        async with asyncio.timeout(10):  # every connection is closed: nobody waits for ever
            await asyncio.gather(*callers, auditor)
        self.counts["kills"] += 1

    async def _call(self, server: Process) -> None:
        try:
            async with server.client() as client:
                while True:
                    stream = self.random.random() < 0.5
                    asked = json.dumps(
                        {**ASK, "stream": stream, "seed": self.random.getrandbits(31)}
                    )
                    await client.write(request(asked.encode()))
                    self.counts["sent"] += 1
                    status, headers = await client.head()
                    assert status == 200
                    seen = Seen(self.mode, stream, asked.encode(), headers)
                    self.seen.append(seen)
                    if stream:
                        while part := await client.chunk():
                            seen.body += part
                    else:
                        length = int(headers["content-length"])
                        seen.body = await client.reader.readexactly(length)
                    seen.complete = True
        except (ConnectionError, asyncio.IncompleteReadError):
            self.counts["closed"] += 1

    async def _audit(self, server: Process) -> None:
        """Collect published receipts while the gateway is loaded."""
        try:
            async with server.client() as client:
                while True:
                    await asyncio.sleep(0.02)
                    done = [seen.id for seen in self.seen if seen.complete]
                    if done:
                        path = f"/v1/receipts/{self.random.choice(done)}?wait=1"
                        await client.write(request(b"", method="GET", path=path, secret=KEY))
                        reply = await client.reply()
                        if reply.status == 200:
                            self.receipts.append(reply.body)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass

    # -- the check ---------------------------------------------------------------------------

    async def _check(self) -> None:
        published = self.data / "ledger" / "w0"
        async with AsyncLedger(published, private=self.data / "private" / "w0") as ledger:
            native = ledger.native
            raw = [native.entry(i) for i in range(len(native))]
            entries = [json.loads(entry) for entry in raw]
            by_id: dict[str, list[int]] = defaultdict(list)
            for index, entry in enumerate(entries):
                SCHEMA.validate(entry)
                by_id[entry["id"]].append(index)
            self.counts |= Counter(entries=len(entries), written_ahead=len(self.written_ahead))

            def commitment(name: str, role: Role, octets: bytes) -> dict[str, Any]:
                digest = hmac.digest(native.salt(name, role), octets, hashlib.sha256)
                return {"bytes": len(octets), "commitment": base64.b64encode(digest).decode()}

            assert [e["event"] for e in entries if e["kind"] == "admin"] == ["genesis"]
            for indices in by_id.values():
                kinds = [entries[i]["kind"] for i in indices]
                assert kinds in (["admin"], ["call"], ["intent", "settle"])
                if kinds == ["intent", "settle"]:
                    assert entries[indices[1]]["of"] == indices[0]
                    if entries[indices[1]]["status"] == "abandoned":
                        self.counts["abandoned"] += 1
            assert len({seen.id for seen in self.seen}) == len(self.seen)  # nobody had it twice
            for seen in self.seen:
                assert self.asked[seen.id] == seen.asked
                mine = [entries[i] for i in by_id[seen.id]]
                kinds = [entry["kind"] for entry in mine]
                two = seen.stream or seen.mode == "write-ahead"
                assert kinds == (["intent", "settle"] if two else ["call"]), seen.id
                assert mine[0]["request"] == commitment(seen.id, "request", seen.asked)
                if seen.entry is not None:
                    assert seen.entry == f"{native.origin}/{by_id[seen.id][0]}"
                assert (seen.entry is None) == (seen.mode == "background")
                if seen.complete:
                    self.counts[f"{seen.mode} {'streams' if seen.stream else 'calls'}"] += 1
                    assert mine[-1]["status"] == ("done" if seen.stream else 200)
                    assert mine[-1]["response"] == commitment(seen.id, "response", seen.body)
            for name in self.written_ahead:  # no upstream was asked without an intent
                intent = entries[by_id[name][0]]
                assert intent["kind"] == "intent"
                assert intent["request"] == commitment(name, "request", self.asked[name])
            key = v.load_vkey((published / "log.vkey").read_text())
            for receipt in self.receipts:
                proven = v.verify_receipt(receipt, key)
                assert proven.entries
                self.counts["receipts"] += 1
                for proof in proven.entries:
                    assert entries[proof.index] == proof.entry
                    assert native.root(proof.checkpoint.size) == proof.checkpoint.root
