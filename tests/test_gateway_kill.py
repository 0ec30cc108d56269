"""kill -9 of the gateway or the model server under streams (loaded: `./dev soak`)."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from gateway_process import serving
from gateway_rig import ASK, Client, request, run

STREAM = {**ASK, "stream": True}


MODEL = """if True:
    import asyncio, sys
    import upstream
    async def main():
        async with upstream.running(upstream.endless, port=int(sys.argv[1])) as up:
            print(up.port, flush=True)
            await asyncio.sleep(600)
    asyncio.run(main())
"""


@asynccontextmanager
async def model_server(port: int = 0) -> AsyncIterator[tuple[asyncio.subprocess.Process, int]]:
    """A model server in a process of its own, and its port; its streams are endless."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", MODEL, str(port)),
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)},
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(30):
            yield process, int(await process.stdout.readline())
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def rest(client: Client) -> bytes:
    """What is left of a stream."""
    parts = []
    while part := await client.chunk():
        parts.append(part)
    return b"".join(parts)


def test_gateway_and_model_server_survive_each_other(tmp_path: Path) -> None:
    """Either is killed while streams are under way; the other goes on serving."""

    async def main() -> None:
        async with model_server() as (model, port):
            url = f"http://127.0.0.1:{port}/v1"
            async with serving(tmp_path, url) as gateway:
                async with gateway.client() as client:
                    await client.write(request(ASK))
                    assert (await client.reply()).status == 200
                    await client.write(request(STREAM))
                    assert (await client.head())[0] == 200
                    await client.chunk()
                    model.kill()
                    data = await rest(client)  # an error event, then an orderly end
                    error = json.loads(data.rsplit(b"data: ", 1)[1])["error"]
                    assert error["code"] == "upstream_error"
                    await client.write(request(ASK))
                    assert (await client.reply()).status == 502
                async with model_server(port) as (model, _), gateway.client() as client:
                    await client.write(request(ASK))
                    assert (await client.reply()).status == 200
                    await client.write(request(STREAM))
                    assert (await client.head())[0] == 200
                    await gateway.end(signal.SIGKILL)
                    with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
                        await rest(client)
                    assert model.returncode is None
                    async with serving(tmp_path, url) as again, again.client() as client:
                        await client.write(request(ASK))
                        assert (await client.reply()).status == 200

    run(main())
