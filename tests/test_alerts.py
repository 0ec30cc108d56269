"""What becomes of a finding: its entry, its alert, its message to the webhook."""

from __future__ import annotations

import asyncio
import hmac
import itertools
import json
import os
import signal
import stat
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

import upstream
from aegis_c.gateway.alert_settings import WebhookSettings
from aegis_c.gateway.background import alerts as alerts_module
from aegis_c.gateway.background.alerts import FILE, Alert, Alerts, newest
from aegis_c.gateway.background.analyser import ResponseAnalyser
from aegis_c.gateway.background.analyst import ANALYSIS_MAX, HELD_MAX, PIECE, bounded
from aegis_c.gateway.background.webhook import Webhook
from aegis_c.gateway.evidence import uuid7
from aegis_c.gateway.settings import Settings
from gateway_process import RUN, Process, entries, serving
from gateway_rig import ADMIN, ASK, AUDITOR, KEY, Rig, gateway, request, run, settings, until

SECRET = "webhook-secret-0001"
FINDING = {"kind": "loop", "reason": "said again and again", "value": 9.0, "threshold": 3.0}


def alert(number: int, **members: Any) -> Alert:
    return Alert(
        id=uuid7(),
        time=f"2026-01-02T03:04:{number:02d}.000000Z",
        request_id=uuid7(),
        shard="w0",
        of=number,
        findings=[FINDING],
        **members,
    )


# -- a receiver on loopback --------------------------------------------------------------------


class Receiver:
    """Answers the first messages with the given statuses, the rest with 200; checks signatures."""

    def __init__(self, *statuses: int) -> None:
        self.statuses = list(statuses)
        self.bodies: list[dict[str, Any]] = []  # of messages that were taken
        self.attempts: list[float] = []
        self.url = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            try:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
            except asyncio.IncompleteReadError:
                break
            lines = head.split("\r\n")
            assert lines[0] == "POST /hook HTTP/1.1"
            fields = dict(line.split(": ", 1) for line in lines[1:-2])
            body = await reader.readexactly(int(fields["content-length"]))
            assert fields["content-type"] == "application/json"
            parts = dict(part.split("=") for part in fields["aegis-signature"].split(","))
            signed = f"{parts['t']}.".encode() + body
            assert parts["v1"] == hmac.new(SECRET.encode(), signed, "sha256").hexdigest()
            assert abs(time.time() - int(parts["t"])) < 5
            self.attempts.append(time.monotonic())
            status = self.statuses.pop(0) if self.statuses else 200
            if status == 0:  # hangs up instead of answering
                break
            if status < 300:
                self.bodies.append(json.loads(body))
            writer.write(f"HTTP/1.1 {status} X\r\ncontent-length: 0\r\n\r\n".encode())
        writer.close()


@asynccontextmanager
async def receiving(*statuses: int) -> AsyncIterator[Receiver]:
    receiver = Receiver(*statuses)
    server = await asyncio.start_server(receiver.serve, "127.0.0.1", 0)
    receiver.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/hook"
    try:
        yield receiver
    finally:
        server.close()


def hook(url: str | None, **members: Any) -> WebhookSettings:
    return WebhookSettings(url=url, secret=SECRET, **{"backoff": 0.01, "timeout": 2.0, **members})


# -- the webhook -------------------------------------------------------------------------------


@pytest.mark.parametrize("failures", [(), (0, 500, 503, 429, 408)], ids=["at once", "after five"])
def test_a_message_arrives_signed_and_once(failures: tuple[int, ...]) -> None:
    async def main() -> None:
        async with receiving(*failures) as receiver:
            webhook = Webhook(hook(receiver.url))
            sent = [alert(number) for number in range(3)]
            for one in sent:
                webhook.send(one)
            assert await webhook.close(20) == 0
            assert [body["id"] for body in receiver.bodies] == [one.id for one in sent]
            assert receiver.bodies[0]["findings"] == [FINDING]
            assert (webhook.delivered, webhook.retries) == (3, len(failures))
            assert (webhook.failed, webhook.dropped, webhook.waiting) == (0, 0, 0)

    run(main())


def test_attempts_back_off_and_end(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with receiving(*[500] * 4) as receiver:
            webhook = Webhook(hook(receiver.url, attempts=4, backoff=0.1))
            webhook.send(alert(0))
            webhook.send(alert(1))
            assert await webhook.close(20) == 0
            assert [body["of"] for body in receiver.bodies] == [1]
            assert (webhook.delivered, webhook.failed, webhook.retries) == (1, 1, 3)
            first = receiver.attempts[:4]
            pauses = [b - a for a, b in itertools.pairwise(first)]
            for number, pause in enumerate(pauses):
                assert pause >= 0.05 * 2**number

    run(main())
    assert "does not get an alert, after 4 attempts: status 500" in caplog.text


@pytest.mark.parametrize("status", [400, 404, 410, 301])
def test_what_the_receiver_will_never_take_is_not_tried_again(status: int) -> None:
    async def main() -> None:
        async with receiving(*[status] * (1 if status >= 400 else 9)) as receiver:
            webhook = Webhook(hook(receiver.url, attempts=2))
            webhook.send(alert(0))
            assert await webhook.close(20) == 0
            assert (webhook.delivered, webhook.failed) == (0, 1)
            assert webhook.retries == (0 if status >= 400 else 1)  # a redirect is not followed
            assert receiver.bodies == []

    run(main())


def test_nobody_there_and_a_full_queue_are_counted_and_hold_nobody_up() -> None:
    async def main() -> None:
        webhook = Webhook(hook("http://127.0.0.1:1/hook", attempts=20, backoff=30, queue=3))
        started = time.perf_counter()
        for number in range(10):
            webhook.send(alert(number))
        assert time.perf_counter() - started < 0.5
        assert (webhook.waiting, webhook.dropped) == (3, 7)
        assert await webhook.close(0.2) == 3  # said, and not waited for
        off = Webhook(hook(None))
        off.send(alert(0))
        assert (off.waiting, await off.close(1)) == (0, 0)

    run(main())


def test_new_settings_count_from_the_next_attempt_on() -> None:
    async def main() -> None:
        async with receiving(500, 500) as one, receiving() as other:
            webhook = Webhook(hook(one.url, backoff=0.2))
            webhook.send(alert(0))

            async def tried() -> bool:
                return bool(one.attempts)

            await until(tried)
            with pytest.raises(ValueError, match="cannot be read"):
                webhook.use(WebhookSettings.model_construct(secret_file=Path("/nowhere")))
            webhook.use(hook(other.url))
            assert await webhook.close(20) == 0
            assert (len(other.bodies), webhook.delivered) == (1, 1)

    run(main())


def test_a_webhook_needs_a_secret_and_the_policy_does_not_know_it(tmp_path: Path) -> None:
    url = "http://127.0.0.1:9/hook"
    short = tmp_path / "short"
    short.write_text("too-short\n")
    for members in ({}, {"secret": "too-short"}, {"secret_file": short}):
        with pytest.raises(ValueError, match="secret of 16 characters"):
            WebhookSettings(url=url, **members)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="not both"):
        WebhookSettings(url=url, secret=SECRET, secret_file=short)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="must be http"):
        WebhookSettings(url="ftp://x/")
    (tmp_path / "secret").write_text(SECRET + "\n")
    from_file = WebhookSettings(url=url, secret_file=tmp_path / "secret")
    assert from_file.key() == SECRET.encode()

    def policy(secret: str) -> str:
        return Settings(alerts={"webhook": {"url": url, "secret": secret}}).policy()  # type: ignore[arg-type]

    assert policy("a" * 20) == policy("b" * 20) != Settings().policy()


# -- the file ----------------------------------------------------------------------------------


def read(folder: Path, pending: list[Alert] | None = None, **wanted: Any) -> list[int]:
    found, _ = newest([folder], pending or [], **{"since": "", "limit": 1000, **wanted})
    return [one.of for one in found]


def test_alerts_survive_and_are_closed_to_others(tmp_path: Path) -> None:
    async def main() -> None:
        alerts = Alerts(tmp_path)
        for number in range(3):
            alerts.add(alert(number))
        await alerts.flush()
        assert alerts.pending() == []
        assert stat.S_IMODE((tmp_path / FILE).stat().st_mode) == 0o600
        again = Alerts(tmp_path)
        again.add(alert(3))
        assert read(tmp_path, again.pending()) == [3, 2, 1, 0]
        await again.close(5)
        assert read(tmp_path) == [3, 2, 1, 0]
        assert read(tmp_path, again.pending()) == [3, 2, 1, 0]
        assert read(tmp_path, limit=2) == [3, 2]
        assert read(tmp_path, since="2026-01-02T03:04:02.000000Z") == [3, 2]
        assert newest([tmp_path], [], since="", limit=3)[1] is True
        assert newest([tmp_path], [], since="", limit=4)[1] is False

    run(main())


@given(st.integers(0, 400), st.binary(max_size=40))
def test_a_file_that_was_cut_or_damaged_gives_what_is_whole(cut: int, noise: bytes) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        lines = [msgspec.json.encode(alert(number)) + b"\n" for number in range(3)]
        whole = b"".join(lines[:2]) + lines[2][:cut]
        (folder / FILE).write_bytes(whole)

        async def main() -> None:
            alerts = Alerts(folder)  # the next run goes on behind it
            alerts.add(alert(7))
            await alerts.close(5)

        run(main())
        expected = [7, 2, 1, 0] if cut >= len(lines[2]) - 1 else [7, 1, 0]
        assert read(folder) == expected
        with (folder / FILE).open("ab") as file:
            file.write(noise)
        assert read(folder) == expected


def test_the_file_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alerts_module, "FILE_MAX", 4000)

    async def main() -> None:
        alerts = Alerts(tmp_path)
        for number in range(60):
            alerts.add(alert(number))
            await alerts.flush()

    run(main())
    sizes = {file.name: file.stat().st_size for file in tmp_path.iterdir()}
    assert set(sizes) == {FILE, FILE + ".1"}
    assert max(sizes.values()) <= 4000
    kept = read(tmp_path)
    assert kept == list(range(59, 59 - len(kept), -1))
    assert len(kept) >= 4000 // max(map(len, (tmp_path / FILE).read_bytes().split(b"\n")))


def test_a_folder_that_takes_nothing_is_said_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        alerts = Alerts(tmp_path / "missing")
        alerts.add(alert(0))
        await alerts.flush()
        assert (alerts.raised, alerts.lost, alerts.pending()) == (1, 1, [])
        (tmp_path / "missing").mkdir()
        alerts.add(alert(1))
        await alerts.close(5)
        assert read(tmp_path / "missing") == [1]

    run(main())
    assert "alerts are not kept" in caplog.text


def test_a_disk_that_does_not_answer_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(alerts_module, "_PENDING_MAX", 5)
    fifo = tmp_path / FILE  # opening it for writing waits for a reader
    os.mkfifo(fifo)

    async def main() -> None:
        alerts = Alerts(tmp_path)
        for number in range(9):
            alerts.add(alert(number))
        await asyncio.sleep(0.02)
        assert len(alerts.pending()) == 5
        assert alerts.lost == 4
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(alerts.flush(), 0.05)
        reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
        await alerts.close(5)
        assert os.read(reader, 1 << 16).count(b'"request_id"') == 5
        os.close(reader)

    run(main())


# -- the gateway -------------------------------------------------------------------------------


class Finds(ResponseAnalyser):
    """Finds what replies ask it to, so that the path behind is tested whatever is looked for."""

    def reply(self, *, model: str, session: str | None = None) -> Any:
        return _Pieces()


class _Pieces:
    def __init__(self) -> None:
        self._body = b""

    def feed(self, data: bytes) -> None:
        assert len(data) <= PIECE
        self._body += data

    def finish(self) -> dict[str, Any]:
        found = [FINDING] * self._body.count(b"LOOP")
        text = {"entropy": 3.5, "repetition": 0.25}
        return {"available": True, "mean": 1.5, "findings": found, "text": text}


@asynccontextmanager
async def finding(data: Path, url: str, **tables: Any) -> AsyncIterator[Rig]:
    async with gateway(data, url, **tables) as rig:
        rig.runtime.analyst._analyser = Finds()
        yield rig


def says(text: str) -> Any:
    async def script(exchange: upstream.Exchange) -> None:
        await exchange.answer({**upstream.REPLY, "note": text})

    return script


async def listed(rig: Rig, query: str = "", secret: str = ADMIN) -> dict[str, Any]:
    reply = await rig.ask(b"", method="GET", path=f"/admin/alerts{query}", secret=secret)
    assert reply.status == 200, reply.body
    document: dict[str, Any] = json.loads(reply.body)
    return document


@pytest.mark.parametrize("size", [0, PIECE + 1], ids=["short", "long"])
def test_a_finding_is_recorded_listed_sent_and_counted(tmp_path: Path, size: int) -> None:
    async def main() -> None:
        async with receiving(500) as receiver, upstream.running(says("LOOP" + "x" * size)) as up:
            webhook = {"url": receiver.url, "secret": SECRET, "backoff": 0.01}
            async with finding(tmp_path, up.url, alerts={"webhook": webhook}) as rig:
                assert (await rig.ask(headers=("aegis-session: s1",))).status == 200
                (entry,) = await rig.wait_for("analysis")
                document = await listed(rig)
                (kept,) = document["data"]
                assert document["object"] == "list" and document["has_more"] is False
                entries = await rig.entries()
                assert entries[kept["of"]]["kind"] == "call"
                assert entries[kept["index"]] == entry
                assert (kept["shard"], kept["of"]) == ("w0", entry["of"])
                assert kept["request_id"] == entry["id"] == entries[kept["of"]]["id"]
                assert (kept["tenant"], kept["key"], kept["model"]) == ("acme", "k1", ASK["model"])
                assert kept["findings"] == entry["analysis"]["findings"] == [FINDING]

                async def delivered() -> bool:
                    return rig.runtime.webhook.delivered == 1

                await until(delivered)
                assert receiver.bodies == [kept]
                text = (await rig.ask(b"", method="GET", path="/metrics")).body.decode()
                for line in (
                    'aegis_analyses_total{result="available"} 1.0',
                    'aegis_findings_total{kind="loop"} 1.0',
                    'aegis_reply_entropy_bits_bucket{le="1.5"} 1.0',
                    "aegis_reply_word_entropy_bits_sum 3.5",
                    "aegis_reply_repetition_ratio_sum 0.25",
                    "aegis_reply_surprisal_bits_count 0.0",
                    "aegis_alerts_total 1.0",
                    'aegis_webhook_alerts_total{result="delivered"} 1.0',
                    "aegis_webhook_retries_total 1.0",
                    "aegis_webhook_waiting 0.0",
                ):
                    assert line in text, line
            async with gateway(tmp_path, up.url) as rig:  # after a restart
                assert (await listed(rig))["data"] == [kept]

    run(main())


def test_alerts_are_for_admins_and_bad_queries_are_refused(tmp_path: Path) -> None:
    async def main() -> None:
        async with upstream.running(says("LOOP")) as up, finding(tmp_path, up.url) as rig:
            for _ in range(3):
                await rig.ask()
            await rig.wait_for("analysis", 3)
            document = await listed(rig, "?limit=2")
            assert len(document["data"]) == 2 and document["has_more"] is True
            times = [one["time"] for one in (await listed(rig))["data"]]
            assert times == sorted(times, reverse=True) and len(times) == 3
            assert len((await listed(rig, f"?since={times[1]}"))["data"]) == 2
            assert len((await listed(rig, "?since=2020-01-01T00:00:00%2B05:00"))["data"]) == 3
            assert len((await listed(rig, "?since=2020-01-01T00:00:00+05:00"))["data"]) == 3
            assert (await listed(rig, "?since=2999-01-01T00:00:00Z"))["data"] == []
            for secret, status, code in (
                (KEY, 403, "role_required"),
                (AUDITOR, 403, "role_required"),
                ("wrong", 401, "invalid_api_key"),
            ):
                reply = await rig.ask(b"", method="GET", path="/admin/alerts", secret=secret)
                assert (reply.status, reply.error["code"]) == (status, code)
            for query, param in (
                ("?limit=0", "limit"),
                ("?limit=1001", "limit"),
                ("?limit=many", "limit"),
                ("?since=yesterday", "since"),
                ("?since=2026-01-02T03:04:05", "since"),
                ("?since=0001-01-01T00:00:00%2B23:59", "since"),
            ):
                path = f"/admin/alerts{query}"
                reply = await rig.ask(b"", method="GET", path=path, secret=ADMIN)
                assert (reply.status, reply.error["param"]) == (400, param), query
            assert (await rig.ask(b"{}", path="/admin/alerts", secret=ADMIN)).status == 405

    run(main())


def test_replies_that_wait_hold_admission_back(tmp_path: Path) -> None:
    """Past the bound, in jobs or in octets, the next call waits; nothing is dropped."""

    async def main() -> None:
        async with upstream.running(says("x")) as up, finding(tmp_path, up.url) as rig:
            analyst = rig.runtime.analyst
            analyst._held += HELD_MAX + 1
            waiting = asyncio.create_task(rig.ask())

            async def waits() -> bool:
                return rig.runtime.admission.waiting == 1

            await until(waits)
            assert not waiting.done() and not up.exchanges
            analyst._held -= HELD_MAX + 1
            assert (await waiting).status == 200
            await rig.runtime.background.drain(5)
            assert analyst._held == 0

    run(main())


def test_nothing_is_held_once_all_was_looked_at(tmp_path: Path) -> None:
    """Short and long replies, streams, and a straggler at the end."""

    async def main() -> None:
        async with upstream.running() as up, gateway(tmp_path, up.url) as rig:
            for body in (ASK, {**ASK, "stream": True}, ASK, {**ASK, "stream": True}):
                assert (await rig.ask(body)).status == 200
            await rig.settled()
            assert await rig.runtime.background.drain(5) == 0
            assert rig.runtime.analyst._held == 0
            assert (await rig.ask()).status == 200  # the queue is closed: not looked at, not held
            assert rig.runtime.analyst._held == 0

    run(main())


def test_an_analysis_that_is_too_long_is_cut_to_what_fits() -> None:
    long = {**FINDING, "reason": "r" * 200}
    analysis = {"available": True, "mean": 1.0, "note": "x" * 5000, "findings": [long] * 40}
    kept = bounded(analysis)
    assert len(msgspec.json.encode(kept)) <= ANALYSIS_MAX
    assert kept["omitted"] + len(kept["findings"]) == 40
    assert kept["findings"][0] == long and (kept["available"], kept["mean"]) == (True, 1.0)
    assert bounded({"available": True, "findings": []}) == {"available": True, "findings": []}


def test_settings_reach_a_running_gateway(tmp_path: Path) -> None:
    async def main() -> None:
        async with (
            receiving() as receiver,
            upstream.running(says("LOOP")) as up,
            finding(tmp_path, up.url) as rig,
        ):
            webhook = {"url": receiver.url, "secret": SECRET}
            rig.runtime.reload(
                settings(tmp_path, up.url, alerts={"webhook": webhook}, logs={"slow_loop": 0.5})
            )
            await rig.ask()

            async def arrived() -> bool:
                return bool(receiver.bodies)

            await until(arrived)

    run(main())


# -- the end of the process --------------------------------------------------------------------

SLOW = f"""
import time
import aegis_c.gateway.runtime as runtime

class Slow(runtime.ResponseAnalyser):
    def reply(self, *, model, session=None):
        return Pieces()

class Pieces:
    def feed(self, data):
        time.sleep(0.02)

    def finish(self):
        return {{"available": True, "findings": [{FINDING!r}]}}

runtime.ResponseAnalyser = Slow
{RUN}
"""


def test_what_was_not_looked_at_when_the_process_died_is_recorded_all_the_same(
    tmp_path: Path,
) -> None:
    """The calls are in the log, each analysis that is there names one, and alerts are kept."""
    count = 8

    async def kept(process: Process) -> list[dict[str, Any]]:
        async with process.client() as client:
            await client.write(request(b"", method="GET", path="/admin/alerts", secret=ADMIN))
            found: list[dict[str, Any]] = json.loads((await client.reply()).body)["data"]
            return found

    async def main() -> None:
        async with upstream.running(says("x" * 9 * PIECE)) as up:
            async with serving(tmp_path, up.url, code=SLOW) as process:

                async def ask() -> None:
                    async with process.client() as client:
                        await client.write(request())
                        assert (await client.reply()).status == 200

                await asyncio.gather(*(ask() for _ in range(count)))

                async def begun() -> bool:
                    return bool(await kept(process))

                await until(begun)
                before = await kept(process)
                assert await process.end(signal.SIGKILL) == -signal.SIGKILL
            found = await entries(tmp_path)
            calls = [i for i, e in enumerate(found) if e["kind"] == "call"]
            analyses = [e["of"] for e in found if e["kind"] == "analysis"]
            assert len(calls) == count
            assert 1 <= len(analyses) < count  # the rest was queued
            assert len(set(analyses)) == len(analyses) and set(analyses) <= set(calls)
            async with serving(tmp_path, up.url) as process:
                again = await kept(process)
                assert [a for a in again if a in before] == before
                assert {a["of"] for a in again} <= set(analyses)

    run(main())
