"""A gateway without its HTTP: the parts behind a call, as `aegis-c serve` puts them together."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from aegis_c.gateway.evidence import Call
from aegis_c.gateway.hot.auth import LOCAL
from aegis_c.gateway.runtime import CHAT, Runtime
from aegis_c.gateway.settings import Settings

REQUEST = json.dumps(
    {"model": "m", "messages": [{"role": "user", "content": "Tell me of the sea. " * 100}]}
).encode()


def reply(octets: int, *, logprobs: bool = False) -> bytes:
    """A chat completion of about that size, of words or of tokens with 20 logprobs each."""
    choice: dict[str, Any] = {"index": 0, "finish_reason": "stop"}
    if logprobs:
        tokens = []
        for number in range(max(1, octets // 1300)):
            top = [{"token": f" w{number}-{k}", "logprob": -0.5 - 0.9 * k} for k in range(20)]
            tokens.append({**top[0], "top_logprobs": top})
        choice["logprobs"] = {"content": tokens}
    text = " ".join(f"word{number * 7919 % 5003}" for number in range(max(1, octets // 9)))
    choice["message"] = {"role": "assistant", "content": "sea" if logprobs else text}
    document = {"id": "c", "object": "chat.completion", "model": "m", "choices": [choice]}
    return json.dumps(document).encode()


class Parts:
    """The evidence and the background path of one running gateway."""

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime
        self.calls = 0

    def room(self) -> bool:
        """Whether a call would be admitted at once."""
        runtime = self.runtime
        free = runtime.ledger.native.room() - runtime.admission.reserved()
        return free >= 64 << 10 and runtime.analyst.room()

    def record(self, answer: bytes) -> int | None:
        """What happens to an answered call: commitments, its entry, the hand-over."""
        call = Call(CHAT, "127.0.0.1")
        call.principal, call.model, call.provider = LOCAL, "m", "upstream"
        request = self.runtime.ledger.native.commitment(call.id, "request")
        request.update(REQUEST)
        call.request = request
        index = self.runtime.evidence.call(call, 200, answer)
        if index is not None:
            self.runtime.analyst.look_at(call, index, answer)
        self.calls += 1
        return index


@asynccontextmanager
async def running(folder: Path, **tables: Any) -> AsyncIterator[Parts]:
    """The parts of a gateway whose data are in ``folder``."""
    settings = Settings(data=folder, upstream={"url": "http://127.0.0.1:9/v1"}, **tables)  # type: ignore[arg-type]
    runtime = Runtime(settings)
    await runtime.start()
    try:
        yield Parts(runtime)
    finally:
        await runtime.stop()
