"""The server as a process: how it starts, refuses to start, and ends."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
from pathlib import Path

import openai
import pytest

import upstream
from gateway_process import entries, refused, serving
from gateway_rig import ASK, CHAT, KEY, request, run
from upstream import Exchange, delta

STREAM = {**ASK, "stream": True}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_in_order(tmp_path: Path, number: int) -> None:
    async def main() -> None:
        async with upstream.running() as up, serving(tmp_path, up.url) as server:
            async with server.client() as client:
                await client.write(request() + request(STREAM))
                assert [(await client.reply()).status for _ in range(2)] == [200, 200]
            assert await server.end(number) == 0
        kinds = [entry["kind"] for entry in await entries(tmp_path)]
        assert kinds == ["admin", "call", "intent", "settle"]

    run(main())


def test_sigterm_lets_a_stream_finish_and_takes_no_new_caller(tmp_path: Path) -> None:
    release = asyncio.Event()

    async def script(exchange: Exchange) -> None:
        await exchange.begin_stream()
        await exchange.chunk(delta("one"))
        await release.wait()
        await exchange.chunk(delta("two") + upstream.DONE)
        await exchange.chunk(b"")

    async def main() -> None:
        async with (
            upstream.running(script) as up,
            serving(tmp_path, up.url) as server,
            server.client() as client,
            asyncio.timeout(20),
        ):
            await client.write(request(STREAM))
            await client.head()
            assert await client.chunk() == delta("one")
            ending = asyncio.create_task(server.end())
            for _ in range(500):
                try:
                    async with server.client():
                        await asyncio.sleep(0.01)
                except ConnectionError:
                    break
            else:
                raise AssertionError("it still accepts")
            assert not ending.done()
            release.set()
            assert await client.chunk() == delta("two") + upstream.DONE
            assert await client.chunk() == b""
            assert await ending == 0
        settle = (await entries(tmp_path))[-1]
        assert (settle["kind"], settle["status"], settle["events"]) == ("settle", "done", 3)

    run(main())


def test_a_stream_that_does_not_end_is_cut_at_the_deadline(tmp_path: Path) -> None:
    async def script(exchange: Exchange) -> None:
        if not json.loads(exchange.body).get("stream"):
            await exchange.gone()
            return
        await exchange.begin_stream()
        await exchange.chunk(delta("one"))
        await exchange.gone()

    async def main() -> None:
        quick = {"AEGIS_SHUTDOWN_DEADLINE": 0.5}
        async with (
            upstream.running(script) as up,
            serving(tmp_path, up.url, **quick) as server,
            server.client() as stream,
            server.client() as plain,
        ):
            await stream.write(request(STREAM))
            await stream.head()
            assert await stream.chunk() == delta("one")
            await plain.write(request())
            await up.asked(2)
            ended = asyncio.create_task(server.end())
            reply = await plain.reply()
            assert (reply.status, reply.headers["connection"]) == (503, "close")
            assert reply.headers["retry-after"]
            assert json.loads(reply.body)["error"]["code"] == "shutting_down"
            assert await ended == 0
        found = await entries(tmp_path)
        settle = next(e for e in found if e["kind"] == "settle")
        assert (settle["status"], settle["events"]) == ("shutdown", 1)
        assert settle["response"]["bytes"] == len(delta("one"))
        rejection = next(e for e in found if e["kind"] == "rejection")
        assert (rejection["status"], rejection["reason"]) == (503, "shutting_down")
        assert rejection["request"]["bytes"] == len(json.dumps(ASK))
        assert rejection["response"]["bytes"] == len(reply.body)

    run(main())


def test_a_killed_process_leaves_an_intent_that_the_next_one_settles(tmp_path: Path) -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.begin_stream()
        await exchange.chunk(delta("one"))
        await exchange.gone()

    async def main() -> None:
        async with upstream.running(script) as up:
            async with serving(tmp_path, up.url) as server, server.client() as client:
                await client.write(request(STREAM))
                await client.head()
                assert await client.chunk() == delta("one")
                await asyncio.sleep(0.2)  # the log gathers for some milliseconds
                await server.end(signal.SIGKILL)
            async with serving(tmp_path, up.url) as server:
                assert await server.end() == 0
        genesis, intent, settle = await entries(tmp_path)
        assert genesis["event"] == "genesis"
        assert (settle["kind"], settle["status"], settle["of"]) == ("settle", "abandoned", 1)
        assert settle["id"] == intent["id"]

    run(main())


def test_a_unix_socket(tmp_path: Path) -> None:
    path = tmp_path / "gateway.sock"
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))  # left behind by a process that was killed

    async def main() -> None:
        variables = {"AEGIS_UDS": path, "AEGIS_KEYS": "[]"}
        async with upstream.running() as up, serving(tmp_path, up.url, **variables) as server:
            assert server.address == f"unix:{path}"
            assert path.stat().st_mode & 0o777 == 0o660
            async with server.client() as client:
                await client.write(request())
                assert (await client.reply()).status == 200
            status, error = await refused(tmp_path / "other", AEGIS_UDS=path)
            assert (status, "in use" in error) == (2, True)
            assert await server.end() == 0
        assert not path.exists()

    run(main())


def test_the_built_in_model_answers_when_no_upstream_is_configured(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path, None, AEGIS_KEYS="[]") as server:
            port = server.address.rsplit(":", 1)[1]
            async with openai.AsyncOpenAI(
                api_key="any", base_url=f"http://127.0.0.1:{port}/v1"
            ) as client:
                models = [model.id async for model in client.models.list()]
                answer = await client.chat.completions.create(
                    model=models[0], messages=[{"role": "user", "content": "ledger"}], max_tokens=8
                )
                assert answer.choices[0].message.content
                with pytest.raises(openai.NotFoundError) as caught:
                    await client.chat.completions.create(
                        model="gpt-none", messages=[{"role": "user", "content": "Hi"}]
                    )
                assert caught.value.code == "model_not_found"
            assert await server.end() == 0
        calls = [e for e in await entries(tmp_path) if e["kind"] == "call"]
        assert [(e["status"], e["provider"]) for e in calls] == [(200, "builtin"), (404, "builtin")]

    run(main())


def test_it_says_why_it_does_not_start(tmp_path: Path) -> None:
    async def main() -> None:
        status, error = await refused(tmp_path / "a", AEGIS_HOST="0.0.0.0", AEGIS_KEYS="[]")
        assert status == 2
        assert "no API key is configured" in error and "0.0.0.0" in error
        assert not (tmp_path / "a").exists()

        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            port = taken.getsockname()[1]
            status, error = await refused(tmp_path / "b", AEGIS_PORT=port)
            assert status == 2
            assert f"127.0.0.1:{port} is in use" in error and "--port" in error

        status, error = await refused(tmp_path / "c", AEGIS_HOST="no.such.host.invalid")
        assert (status, "no.such.host.invalid" in error) == (2, True)

        (tmp_path / "d").write_text("")
        status, error = await refused(tmp_path / "d")
        assert (status, str(tmp_path / "d") in error) == (2, True)

        not_a_socket = tmp_path / "file"
        not_a_socket.write_text("precious")
        status, error = await refused(tmp_path / "e", AEGIS_UDS=not_a_socket)
        assert (status, "not a socket" in error) == (2, True)
        assert not_a_socket.read_text() == "precious"
        for text in (error,):
            assert "Traceback" not in text

    run(main())


def test_a_damaged_or_foreign_ledger_is_refused_by_name(tmp_path: Path) -> None:
    async def main() -> None:
        async with upstream.running() as up, serving(tmp_path, up.url) as server:
            async with server.client() as client:
                await client.write(request())
                assert (await client.reply()).status == 200
            status, error = await refused(tmp_path)  # in use by the process that serves
            assert (status, str(tmp_path) in error) == (2, True)
            assert await server.end() == 0

        segment = min((tmp_path / "private" / "w0" / "wal").glob("*.seg"))
        whole = segment.read_bytes()
        damaged = bytearray(whole)
        damaged[4096 + 100] ^= 1  # in the first batch
        segment.write_bytes(damaged)
        status, error = await refused(tmp_path)
        assert status == 2
        assert str(segment) in error
        assert "Traceback" not in error
        segment.write_bytes(whole)

        status, error = await refused(tmp_path, AEGIS_LEDGER__ORIGIN="another.example/log")
        assert status == 2
        assert "another.example/log" in error
        async with serving(tmp_path, "http://127.0.0.1:9/v1") as server:
            assert await server.end() == 0

    run(main())


def test_it_never_answers_what_it_did_not_record(tmp_path: Path) -> None:
    """kill -9 between calls: every answered call is in the ledger of the next run."""

    async def main() -> None:
        answered = 0
        async with upstream.running() as up:
            for _ in range(3):
                async with serving(tmp_path, up.url) as server, server.client() as client:
                    for _ in range(20):
                        await client.write(request(path=CHAT, secret=KEY))
                        assert (await client.reply()).status == 200
                        answered += 1
                    await asyncio.sleep(0.2)  # the log gathers for some milliseconds
                    await server.end(signal.SIGKILL)
        found = await entries(tmp_path)
        assert sum(e["kind"] == "call" for e in found) == answered

    run(main())
