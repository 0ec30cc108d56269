"""/health?deep=1: the stages of a call, and proof that the ledger lives.

A check takes a place among the calls, goes through the background queue, waits until what was
submitted is durable, and proves one entry against the tree. It leaves no entry and asks no
upstream. However many callers ask at a time, one check runs, and all of them get its result.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final

from aegis_c import AegisError, Ledger, leaf_hash, verify_inclusion
from aegis_c.gateway.errors import Refusal
from aegis_c.gateway.hot.adapters.openai import examine_chat

if TYPE_CHECKING:
    from aegis_c.gateway.runtime import Runtime

_SECONDS: Final = 5.0  # for one stage
_BODY: Final = b'{"model":"health","messages":[{"role":"user","content":"Are you well?"}]}'


class DeepHealth:
    """The checks of one gateway; used from its event loop alone."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._running: asyncio.Task[tuple[int, bytes]] | None = None

    async def check(self) -> tuple[int, bytes]:
        """Status and JSON body: 200 when every stage works, else 503."""
        if self._running is None:
            self._running = asyncio.get_running_loop().create_task(self._check())
            self._running.add_done_callback(self._done)
        return await asyncio.shield(self._running)

    def _done(self, _: object) -> None:
        self._running = None

    async def _check(self) -> tuple[int, bytes]:
        stages: dict[str, str] = {}
        checks: dict[str, Callable[[], Awaitable[None]]] = {
            "guard, firewall, adapter": self._judge,
            "limits": self._limits,
            "background": self._background,
            "ledger": self._ledger,
        }
        for name, check in checks.items():
            try:
                async with asyncio.timeout(_SECONDS):
                    await check()
            except TimeoutError:
                stages[name] = f"no answer within {_SECONDS:g} s"
            except Refusal as refusal:
                stages[name] = refusal.code
            except (AegisError, OSError) as error:
                stages[name] = str(error)
            else:
                stages[name] = "ok"
        for missing in self._runtime.missing():
            stages.setdefault("ready", missing)
        well = all(found == "ok" for found in stages.values())
        body = {
            "status": "ok" if well else "failing",
            "stages": stages,
            "ledger": self._numbers(),
        }
        return 200 if well else 503, json.dumps(body).encode()

    async def _judge(self) -> None:
        """What a body goes through before it is admitted."""
        document = self._runtime.read(_BODY)
        examine_chat(document)
        self._runtime.firewall.judge(document)

    async def _limits(self) -> None:
        admission = self._runtime.admission
        await admission.enter(1)
        admission.leave(1)

    async def _background(self) -> None:
        done = asyncio.Event()
        self._runtime.background.spawn(None, done.set)
        await done.wait()

    async def _ledger(self) -> None:
        """All that was submitted until now is durable; one entry is in the tree."""
        ledger = self._runtime.ledger
        size = len(ledger.native)
        if size:
            await ledger.durable(size - 1)
            await ledger.integrated(size - 1)
            await asyncio.to_thread(_prove_one, ledger.native, size)

    def _numbers(self) -> dict[str, Any]:
        native = self._runtime.ledger.native
        return {
            "submitted": len(native),
            "durable": native.durable_size,
            "integrated": native.integrated_size,
            "published": native.published_size,
            "ring": native.stats()["ring_mode"],
        }


def _prove_one(native: Ledger, size: int) -> None:
    """Raises AegisError when an entry, drawn by lot, does not prove."""
    index = random.randrange(size)
    proof = native.inclusion_proof(index, size)
    verify_inclusion(leaf_hash(native.entry(index)), index, size, native.root(size), proof)
