"""Run the gateway as a server of its own: ``aegis-c serve``."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import sys
from collections.abc import Callable

from aegis_c.gateway import logs
from aegis_c.gateway.process import descriptors, systemd
from aegis_c.gateway.process import listener as listening
from aegis_c.gateway.process.supervisor import Supervisor
from aegis_c.gateway.process.worker import (
    DONE,
    CannotStart,
    Worker,
    fail,
    new_loop,
    server_config,
    signals_end,
)
from aegis_c.gateway.settings import Settings, SettingsError, load_settings

__all__ = ["run", "server_config"]

log = logging.getLogger("aegis_c.gateway.serve")


def run(settings: Settings, reload: Callable[[], Settings] = load_settings) -> int:
    """Serve until SIGTERM or SIGINT; returns the exit status (0, or 2 when it cannot start).

    At the signal it stops accepting, lets running calls finish within
    ``settings.shutdown_deadline``, and publishes the ledger. At SIGHUP ``reload`` gives the new
    settings; raising SettingsError, it leaves the old ones.
    """
    if not settings.keys and not settings.loopback_only():
        return fail(
            f"no API key is configured, so this gateway may only listen on this machine, not on "
            f"{settings.host}; add a key to the settings ([[keys]] with id, sha256 and tenant), "
            "or use host 127.0.0.1"
        )
    descriptors.use_all()
    try:
        listener = listening.listen(settings)
    except OSError as error:
        return fail(listening.explain(error, settings))
    try:
        if not settings.keys and not listening.is_local(listener):
            return fail(
                "no API key is configured, and the socket that was handed over can be reached "
                "from other machines; add a key to the settings"
            )
        logs.configure(settings.logs.format)
        if settings.workers > 1:
            return Supervisor(settings, listener, reload, announce).run()
        return _run_alone(settings, listener, reload)
    finally:
        listening.close(listener, settings)


def announce(settings: Settings, listener: socket.socket) -> None:
    """Say where it listens, and what an operator should know."""
    if not settings.keys:
        print(
            "aegis: warning: no API key is configured: every caller on this machine is tenant "
            "'local' with every role",
            file=sys.stderr,
        )
    if not settings.upstream.configured:
        print("aegis: no upstream is configured: the built-in demonstration model answers")
    print(
        f"aegis: listening on {listening.address(listener)}; ledger in {settings.data}",
        flush=True,
    )


def _run_alone(settings: Settings, listener: socket.socket, reload: Callable[[], Settings]) -> int:
    worker = Worker(settings, listener)
    try:
        with signals_end(worker, signal.SIGTERM, signal.SIGINT), new_loop() as runner:
            runner.run(_serve_alone(worker, listener, reload))
    except CannotStart as error:
        return fail(f"cannot start: {error}")
    return DONE


async def _serve_alone(
    worker: Worker, listener: socket.socket, reload: Callable[[], Settings]
) -> None:
    loop = asyncio.get_running_loop()

    def on_ready() -> None:
        announce(worker.settings, listener)
        systemd.notify("READY=1")

    def on_hangup() -> None:
        systemd.notify_reloading()
        try:
            worker.reload(reload())
        except SettingsError as error:
            log.error("settings not reloaded, the old ones stay: %s", error)
        else:
            log.info("settings reloaded; policy %s", worker.settings.policy())
        systemd.notify("READY=1")

    loop.add_signal_handler(signal.SIGHUP, on_hangup)
    watchdog = loop.create_task(_watchdog())
    try:
        await worker.serve(on_ready)
    finally:
        watchdog.cancel()
        systemd.notify("STOPPING=1")


async def _watchdog() -> None:
    """Tell the service manager that the loop goes round, while it asks for that."""
    seconds = systemd.watchdog_seconds()
    while seconds is not None:
        systemd.notify("WATCHDOG=1")
        await asyncio.sleep(seconds)
