"""A plain reply in one write is, byte for byte, the reply in two messages."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from starlette.types import Receive, Scope, Send

import upstream
from aegis_c.gateway.app import create_app
from aegis_c.gateway.hot.guard import GuardedProtocol
from aegis_c.gateway.hot.server_parts import HttpToolsProtocol, RequestResponseCycle, check
from aegis_c.gateway.hot.wire import send_reply
from gateway_rig import ASK, request, run, serving, settings
from upstream import Exchange

VARIES = re.compile(rb"(date|x-request-id|openai-processing-ms): [^\r]*")


async def script(exchange: Exchange) -> None:
    if b"teapot" in exchange.body:
        error = {"message": "no", "type": "t", "param": None, "code": "c"}
        await exchange.answer({"error": error}, "418 I'm a teapot", ["Retry-After: 3"])
    else:
        await exchange.answer()


def test_one_write_and_two_messages_are_the_same_bytes(tmp_path: Path) -> None:
    asks = [
        request(ASK),
        request({**ASK, "model": "teapot"}),
        request(ASK) + request({**ASK, "user": "pipelined"}),
        request(ASK, headers=("Connection: close",)),
        request(ASK, headers=("Expect: 100-continue",)),
        request(ASK).replace(b"HTTP/1.1", b"HTTP/1.0"),
        request(ASK)
        .replace(b"HTTP/1.1", b"HTTP/1.0")
        .replace(b"\r\n", b"\r\nConnection: x\r\n", 1),
    ]

    async def replies(data: Path, url: str, wrapped: bool) -> list[bytes]:
        app = create_app(settings(data, url, evidence={"mode": "durable"}))

        async def outer(scope: Scope, receive: Receive, send: Send) -> None:
            async def other(message: Any) -> None:
                await send(message)

            await app(scope, receive, other)

        found = []
        async with serving(outer if wrapped else app, app.state.aegis) as rig:
            await rig.runtime.ledger.durable(0)
            for ask in asks:
                async with rig.client() as client:
                    await client.write(ask)
                    await asyncio.sleep(0.2)
                    client.writer.write_eof()
                    async with asyncio.timeout(5):
                        found.append(VARIES.sub(rb"\1", await client.reader.read()))
        return found

    async def main() -> None:
        async with upstream.running(script) as up:
            one = await replies(tmp_path / "one", up.url, wrapped=False)
            two = await replies(tmp_path / "two", up.url, wrapped=True)
        for a, b in zip(one, two, strict=True):
            assert re.sub(rb"aegis-entry: \S+/", b"aegis-entry: /", a) == re.sub(
                rb"aegis-entry: \S+/", b"aegis-entry: /", b
            )
            assert b"Hello." in a or b"retry-after: 3" in a
        assert one[2].count(b"HTTP/1.1 200 OK\r\n") == 2

    run(main())


@pytest.mark.parametrize("value", [b"a\r\nx: y", b"a\nb", b"a\rb", b"a\0b"])
def test_no_header_can_end_early(value: bytes) -> None:
    """Whatever the value, nothing is written when a header would become two."""
    transport = Mock()
    cycle = RequestResponseCycle(
        scope={"type": "http", "method": "POST"},  # type: ignore[typeddict-item]
        transport=transport,
        flow=Mock(write_paused=False),
        logger=Mock(),
        access_logger=Mock(),
        access_log=False,
        default_headers=[],
        message_event=Mock(),
        expect_100_continue=False,
        keep_alive=True,
        on_response=Mock(__self__=Mock(spec=GuardedProtocol)),
    )
    with pytest.raises(ValueError, match="CR, LF or NUL"):
        asyncio.run(send_reply(cycle.send, 200, [(b"x", value)], b""))  # type: ignore[arg-type]
    transport.write.assert_not_called()


def test_a_server_with_other_insides_is_refused() -> None:
    """By name, when the gateway is imported: not by a call that fails later."""
    check(HttpToolsProtocol, RequestResponseCycle)

    class Older(HttpToolsProtocol):
        _should_upgrade = None  # type: ignore[assignment]

        def __init__(self) -> None:
            self.pipeline = self.cycle = None  # type: ignore[assignment]

    class Newer(RequestResponseCycle):
        def __init__(self, **parts: Any) -> None:
            super().__init__(**parts)
            del self.more_body

    class Another:
        def __init__(self, scope: Scope) -> None:
            pass

    with pytest.raises(ImportError, match=r"uvicorn [0-9.]+: it has no _should_upgrade, app_state"):
        check(Older, RequestResponseCycle)
    with pytest.raises(ImportError, match="has no more_body"):
        check(HttpToolsProtocol, Newer)
    with pytest.raises(ImportError, match=r"Another: .*unexpected keyword"):
        check(HttpToolsProtocol, Another)
