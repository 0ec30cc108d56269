"""The model server of tests/chaos.py: a process of its own, so that it can be killed.

    python tests/chaos_model.py PORT FILE

What a caller put into `user` comes back in the answer, so that an answer that reaches the wrong
caller is noticed; a `user` that begins with `hold` gets a stream that does not end. FILE gets a
line with the request's id after each answer.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys

import upstream
from upstream import Exchange, delta


async def serve(port: int, answered: int) -> None:
    async def script(exchange: Exchange) -> None:
        asked = json.loads(exchange.body)
        try:
            if asked.get("stream"):
                await stream(exchange, asked["user"])
            else:
                await exchange.answer({**upstream.REPLY, "id": asked["user"]})
        except (ConnectionError, RuntimeError):
            exchange.close()  # the worker that asked is gone
        else:
            os.write(answered, f"{exchange.headers['x-client-request-id']}\n".encode())

    async with upstream.running(script, port=port):
        print("ready", flush=True)
        await asyncio.Event().wait()


async def stream(exchange: Exchange, name: str) -> None:
    await exchange.begin_stream()
    await exchange.chunk(delta(name))
    if name.startswith("hold"):
        await exchange.gone()
        raise ConnectionResetError
    for n in range(3):
        await exchange.chunk(delta(str(n)))
        await asyncio.sleep(0.02)
    await exchange.chunk(upstream.DONE)
    await exchange.chunk(b"")


if __name__ == "__main__":
    file = os.open(sys.argv[2], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    asyncio.run(serve(int(sys.argv[1]), file))
