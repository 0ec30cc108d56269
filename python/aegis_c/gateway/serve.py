"""Run the gateway as a server of its own: ``aegis-c serve``."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import math
import os
import signal
import socket
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import uvicorn
import uvloop
from starlette.types import ASGIApp

from aegis_c import AegisError
from aegis_c.gateway.app import Runtime, create_app
from aegis_c.gateway.settings import Settings, SettingsError

DONE = 0
UNUSABLE = 2
_BACKLOG = 2048
_KEEP_ALIVE = 75  # seconds; longer than clients keep theirs, so that they close, not we


def run(settings: Settings) -> int:
    """Serve until SIGTERM or SIGINT; returns the exit status (0, or 2 when it cannot start).

    At the signal it stops accepting, lets running calls finish within
    ``settings.shutdown_deadline``, and publishes the ledger.
    """
    if not settings.keys and not settings.loopback_only():
        return _fail(
            f"no API key is configured, so this gateway may only listen on this machine, not on "
            f"{settings.host}; add a key to the settings ([[keys]] with id, sha256 and tenant), "
            "or use host 127.0.0.1"
        )
    try:
        listener = _listen(settings)
    except OSError as error:
        return _fail(_explain(error, settings))
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    app = create_app(settings)
    server = uvicorn.Server(server_config(app, settings.shutdown_deadline))
    try:
        with _signals_ask(server), asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(_serve(server, app.state.aegis, listener, settings))
    finally:
        listener.close()
        if settings.uds is not None:
            with contextlib.suppress(FileNotFoundError):
                settings.uds.unlink()


def server_config(app: ASGIApp, shutdown_deadline: float) -> uvicorn.Config:
    """How this gateway wants to be served; also for a parent application that mounts it."""
    return uvicorn.Config(
        app,
        http="httptools",
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
        backlog=_BACKLOG,
    )


async def _serve(
    server: uvicorn.Server, runtime: Runtime, listener: socket.socket, settings: Settings
) -> int:
    try:
        await runtime.start()
    except (AegisError, OSError, SettingsError) as error:
        return _fail(f"cannot start: {error}")
    if not settings.keys:
        print(
            "aegis: warning: no API key is configured: every caller on this machine is tenant "
            "'local' with every role",
            file=sys.stderr,
        )
    if not settings.upstream.configured:
        print("aegis: no upstream is configured: the built-in demonstration model answers")
    print(
        f"aegis: listening on {_address(listener, settings)}; ledger in {settings.data}",
        flush=True,
    )
    try:
        await server.serve(sockets=[listener])
    finally:
        await runtime.stop()
    return DONE


def _listen(settings: Settings) -> socket.socket:
    """A bound socket. Raises OSError."""
    if settings.uds is not None:
        return _listen_unix(settings.uds)
    family, kind, proto, _, address = socket.getaddrinfo(
        settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    listener = socket.socket(family, kind, proto)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(_BACKLOG)
    except OSError:
        listener.close()
        raise
    return listener


def _listen_unix(path: Path) -> socket.socket:
    """A socket file for this user and group (0660); one that nobody listens on is replaced."""
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISSOCK(path.stat().st_mode):
            raise FileExistsError(errno.EEXIST, "exists and is not a socket", str(path))
        with socket.socket(socket.AF_UNIX) as probe:
            try:
                probe.connect(str(path))
            except ConnectionRefusedError:
                path.unlink()
            else:
                raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE), str(path))
    listener = socket.socket(socket.AF_UNIX)
    try:
        listener.bind(str(path))
        path.chmod(0o660)
        listener.listen(_BACKLOG)
    except OSError:
        listener.close()
        raise
    return listener


def _address(listener: socket.socket, settings: Settings) -> str:
    if settings.uds is not None:
        return f"unix:{settings.uds}"
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _explain(error: OSError, settings: Settings) -> str:
    where = str(settings.uds) if settings.uds is not None else f"{settings.host}:{settings.port}"
    if error.errno == errno.EADDRINUSE:
        return f"{where} is in use by another process; stop it, or choose another with --port"
    if error.errno == errno.EACCES:
        return f"{where}: not allowed for this user; choose a port above 1023 with --port"
    return f"cannot listen on {where}: {error.strerror or error}"


@contextlib.contextmanager
def _signals_ask(server: uvicorn.Server) -> Iterator[None]:
    """SIGTERM and SIGINT ask the server to stop, also before it serves; then exit is orderly.

    The server installs its own handlers while it serves, and afterwards raises the signal again
    for ours, which by then has nothing left to do.
    """

    def ask(number: int, frame: FrameType | None) -> None:
        server.should_exit = True

    before = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _fail(message: str) -> int:
    print(f"aegis: {message}", file=sys.stderr, flush=True)
    return UNUSABLE
