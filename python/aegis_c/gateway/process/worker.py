"""One process that serves calls: alone, or as one of several under a supervisor."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import math
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import uvicorn
import uvloop
from fastapi import FastAPI
from starlette.types import ASGIApp

from aegis_c import AegisError
from aegis_c.gateway import logs
from aegis_c.gateway.app import create_app
from aegis_c.gateway.hot.guard import GuardedProtocol
from aegis_c.gateway.hot.server_parts import HttpToolsProtocol
from aegis_c.gateway.process import descriptors
from aegis_c.gateway.process.acceptor import Acceptor, Board
from aegis_c.gateway.process.listener import BACKLOG
from aegis_c.gateway.process.siblings import Siblings
from aegis_c.gateway.runtime import Runtime
from aegis_c.gateway.settings import Settings, SettingsError
from aegis_c.gateway.shards import Place
from aegis_c.ledger.layout import LayoutError

log = logging.getLogger("aegis_c.gateway.worker")

DONE: Final = 0
UNUSABLE: Final = 2
#: New containers between two collections of the youngest. A call makes some hundred and drops
#: them without a cycle; Python's 700 would look at those of calls under way every few calls.
_GC_YOUNG: Final = 20_000
_KEEP_ALIVE: Final = 75  # seconds; longer than clients keep theirs, so that they close, not we


class CannotStart(Exception):
    """A part cannot be used; str() says which and why."""


def server_config(
    app: ASGIApp,
    shutdown_deadline: float,
    protocol: type[GuardedProtocol] = GuardedProtocol,
) -> uvicorn.Config:
    """How this gateway wants to be served; also for a parent application that mounts it.

    With ``app.state.aegis.protocol``, refusals of the first line against smuggling leave entries.
    """
    return uvicorn.Config(
        app,
        http=protocol,
        loop="uvloop",
        ws="none",
        lifespan="on",
        log_config=None,
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=_KEEP_ALIVE,
        timeout_graceful_shutdown=math.ceil(shutdown_deadline),
        backlog=BACKLOG,
    )


class _Protocol(HttpToolsProtocol):
    """Mixed into the server's protocol: counts connections, and ends them in order."""

    owner: Server
    counted = False

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self.counted:
            self.owner.acceptor.closed()

    def on_headers_complete(self) -> None:
        super().on_headers_complete()
        if self.owner.draining and self.cycle is not None:
            self.cycle.keep_alive = False  # this answer says `connection: close`


class Server(uvicorn.Server):
    """uvicorn's server with our acceptor, our signals, and an end that fails no request."""

    acceptor: Acceptor

    def __init__(
        self,
        app: FastAPI,
        settings: Settings,
        listener: socket.socket,
        board: Board | None = None,
        number: int = 0,
        private: socket.socket | None = None,
    ) -> None:
        protocol: type[GuardedProtocol] = app.state.aegis.protocol
        config = server_config(app, settings.shutdown_deadline, protocol)
        config.http = type("Protocol", (_Protocol, protocol), {"owner": self})
        super().__init__(config)
        self.draining = False
        self._listener = listener
        self._board = board
        self._number = number
        self._private = private  # where only other workers ask
        self.use(settings)

    def use(self, settings: Settings) -> None:
        """How it ends follows these settings."""
        self._grace = settings.drain_grace
        self._upstream = settings.upstream
        self.config.timeout_graceful_shutdown = math.ceil(settings.shutdown_deadline)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals belong to the process (`_on_signals`)."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=[] if self._private is None else [self._private])
        config, state = self.config, self.server_state
        loop = asyncio.get_running_loop()

        def protocol() -> asyncio.Protocol:
            made: asyncio.Protocol = config.http_protocol_class(  # type: ignore[call-arg]
                config=config, server_state=state, app_state=self.lifespan.state, _loop=loop
            )
            made.counted = True  # type: ignore[attr-defined]
            return made

        self.acceptor = Acceptor(self._listener, protocol, self._board, self._number, self._room)
        self.acceptor.start()

    def _room(self) -> bool:
        return len(self.server_state.connections) < descriptors.for_callers(self._upstream)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Take no connection; answer kept ones a last time; close idle ones; finish the rest.

        A client whose next request is on its way on a kept connection gets its answer, with
        `connection: close`; closing at once would fail it.
        """
        self.acceptor.stop()
        if self._board is None:
            self._listener.close()  # others are refused from here on, not left waiting
        self.draining = True
        for connection in list(self.server_state.connections):
            cycle = getattr(connection, "cycle", None)
            if cycle is not None and not cycle.response_complete:
                cycle.keep_alive = False
        until = time.monotonic() + self._grace
        state = self.server_state
        while state.connections and time.monotonic() < until and not self.force_exit:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
        await super().shutdown(sockets=[])
        if self.force_exit:  # then uvicorn leaves this out
            await self.lifespan.shutdown()


class Worker:
    """What one process needs to serve: settings, the socket, its place, who to tell."""

    def __init__(
        self,
        settings: Settings,
        listener: socket.socket,
        *,
        place: Place | None = None,
        board: Board | None = None,
        private: socket.socket | None = None,
        siblings: Siblings | None = None,
    ) -> None:
        self.settings = settings
        self.app = create_app(settings, place=place, siblings=siblings)
        self.runtime: Runtime = self.app.state.aegis
        self.number = place.number if place is not None else 0
        self.server = Server(self.app, settings, listener, board, self.number, private)
        self._cores = _cores(self.number) if place is not None else None

    async def serve(self, on_ready: Callable[[], None]) -> None:
        """Start every part, call ``on_ready``, serve until told to end. Raises CannotStart."""
        loop = asyncio.get_running_loop()
        if self._cores is not None:
            mine, others = self._cores
            os.sched_setaffinity(0, others)  # threads that start now stay off the loop's core
            loop.set_default_executor(
                ThreadPoolExecutor(initializer=os.sched_setaffinity, initargs=(0, others))
            )
        try:
            await self.runtime.start()
        except (AegisError, LayoutError, OSError, SettingsError) as error:
            raise CannotStart(str(error)) from error
        if self._cores is not None:
            os.sched_setaffinity(0, {mine})
        watcher = loop.create_task(self._tell_when_started(on_ready))
        try:
            await self.server.serve()
        finally:
            watcher.cancel()
            await self.runtime.stop()

    async def _tell_when_started(self, on_ready: Callable[[], None]) -> None:
        while not self.server.started:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        # What is loaded stays: a full collection that walks it stops the loop for 20 to 50 ms.
        gc.freeze()
        gc.set_threshold(_GC_YOUNG, 10, 10)
        on_ready()

    def reload(self, settings: Settings) -> None:
        """Use other settings from now on. Raises SettingsError: then the old ones stay."""
        self.runtime.reload(settings)
        self.settings = settings
        self.server.use(settings)
        logs.configure(settings.logs.format)

    def end(self) -> None:
        """Ask it to end in order; asked again, it does not wait for clients."""
        if self.server.should_exit:
            self.server.force_exit = True
        self.server.should_exit = True


def _cores(number: int) -> tuple[int, set[int]]:
    """The core of worker ``number``'s loop, and those of its other threads."""
    allowed = sorted(os.sched_getaffinity(0))
    mine = allowed[number % len(allowed)]
    return mine, set(allowed) - {mine} or {mine}


@contextlib.contextmanager
def signals_end(worker: Worker, *numbers: int) -> Iterator[None]:
    """Signals end the worker in order, also before it serves."""
    before = {n: signal.signal(n, lambda *_: worker.end()) for n in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def new_loop() -> asyncio.Runner:
    """The event loop of a worker."""
    return asyncio.Runner(loop_factory=uvloop.new_event_loop)


def fail(message: str) -> int:
    """Say on standard error why nothing runs; returns the exit status."""
    print(f"aegis: {message}", file=sys.stderr, flush=True)
    return UNUSABLE
