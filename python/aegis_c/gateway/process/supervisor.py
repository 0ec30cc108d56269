"""Several workers on one port: starting, watching, restarting, reloading and ending them.

The supervisor listens and forks; it runs no event loop, opens no ledger and serves no call, so
that there is little in it that can fail. A worker gets the listening socket, its number, and one
end of a socket pair: over it it says that it is ready and gets new settings; when the supervisor
is gone, it reads the end of it and ends in order.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import pickle
import selectors
import signal
import socket
import struct
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from aegis_c import AegisError
from aegis_c.gateway.process import systemd
from aegis_c.gateway.process.acceptor import Board
from aegis_c.gateway.process.siblings import Siblings, Sockets
from aegis_c.gateway.process.worker import (
    DONE,
    UNUSABLE,
    CannotStart,
    Worker,
    fail,
    new_loop,
    signals_end,
)
from aegis_c.gateway.runtime import check_reload
from aegis_c.gateway.settings import Settings, SettingsError
from aegis_c.gateway.shards import Place, close_others
from aegis_c.ledger.layout import DataDir, LayoutError

log = logging.getLogger("aegis_c.gateway.supervisor")

FAILED: Final = 1
_READY: Final = b"r"
_STEADY: Final = 10.0  # seconds after which a worker's death counts as the first one again
_BACK_OFF: Final = 0.1  # seconds before the second restart in a row; doubled each time
_BACK_OFF_MAX: Final = 5.0
_KILL_AFTER: Final = 10.0  # seconds beyond the deadline after which a worker is killed
_LENGTH: Final = struct.Struct("!I")


@dataclass
class _Child:
    """One worker as the supervisor sees it."""

    number: int
    pid: int = 0  # 0: not running
    channel: socket.socket | None = None
    ready: bool = False
    started: float = 0.0
    deaths: int = 0  # in a row, each sooner than _STEADY
    start_at: float = 0.0  # when it is to be started again
    replacing: bool = field(default=False)  # it was asked to end, to be started anew


class Supervisor:
    """The first process of a gateway with several workers."""

    def __init__(
        self,
        settings: Settings,
        listener: socket.socket,
        reload: Callable[[], Settings],
        announce: Callable[[Settings, socket.socket], None],
    ) -> None:
        self._settings = settings
        self._listener = listener
        self._reload = reload
        self._announce = announce
        self._board = Board(settings.workers)
        self._children = [_Child(number) for number in range(settings.workers)]
        self._selector = selectors.DefaultSelector()
        self._signals: list[int] = []
        self._changed: dict[str, Any] | None = None
        self._stopping = False
        self._running = False  # every worker was ready once

    def run(self) -> int:
        """Serve until SIGTERM or SIGINT; returns the exit status."""
        directory = DataDir(self._settings.data)
        try:
            directory.create()
            lock = directory.lock()
            self._sockets = Sockets(directory.private, self._settings.workers)
        except (LayoutError, OSError) as error:
            return fail(f"cannot start: {error}")
        wake, self._wake_write = socket.socketpair()
        for end in (wake, self._wake_write):
            end.setblocking(False)
        signal.set_wakeup_fd(self._wake_write.fileno(), warn_on_full_buffer=False)
        for number in _HANDLED:
            signal.signal(number, lambda number, _: self._signals.append(number))
        self._selector.register(wake, selectors.EVENT_READ)
        gc.collect()
        gc.freeze()  # what is loaded stays shared with the workers
        try:
            found = _in_a_child(lambda: asyncio.run(close_others(self._settings)))
        except CannotStart as error:
            self._sockets.remove()
            return fail(f"cannot start: {error}")
        self._changed = found
        try:
            return self._watch(wake)
        finally:
            self._sockets.remove()
            os.close(lock)

    # -- the loop ----------------------------------------------------------------------------

    def _watch(self, wake: socket.socket) -> int:
        beat = systemd.watchdog_seconds()
        status = DONE
        deadline = None
        while True:
            now = time.monotonic()
            if not self._stopping:
                for child in self._children:
                    if child.pid == 0 and child.start_at <= now:
                        self._start(child)
            elif all(child.pid == 0 for child in self._children):
                return status
            for key, _ in self._selector.select(self._patience(now, beat)):
                if key.data is None:
                    wake.recv(4096)
                else:
                    self._hear(key.data)
            if beat is not None:
                systemd.notify("WATCHDOG=1")
            while self._signals:
                self._on_signal(self._signals.pop(0))
            found = self._reap()
            status = status or found
            if self._stopping:
                if deadline is None:
                    deadline = time.monotonic() + self._settings.shutdown_deadline + _KILL_AFTER
                elif time.monotonic() > deadline:
                    self._tell_all(signal.SIGKILL)

    def _patience(self, now: float, beat: float | None) -> float:
        waits = [1.0]
        if beat is not None:
            waits.append(beat)
        if not self._stopping:
            waits += [max(0.0, c.start_at - now) for c in self._children if c.pid == 0]
        return min(waits)

    def _on_signal(self, number: int) -> None:
        if number in (signal.SIGTERM, signal.SIGINT):
            self._stop()
        elif number == signal.SIGHUP and not self._stopping:
            self._on_hangup()
        elif number == signal.SIGUSR2 and not self._stopping:
            log.info("rolling restart: the workers are replaced one after the other")
            for child in self._children:
                child.replacing = True
            self._replace_next()

    def _stop(self) -> None:
        """Again and again at each signal: workers that are asked twice do not wait for clients."""
        self._stopping = True
        systemd.notify("STOPPING=1")
        self._listener.close()  # others are refused from here on, not left waiting
        self._tell_all(signal.SIGTERM)

    def _tell_all(self, number: int) -> None:
        for child in self._children:
            if child.pid:
                os.kill(child.pid, number)

    # -- one worker --------------------------------------------------------------------------

    def _start(self, child: _Child) -> None:
        ours, theirs = socket.socketpair()
        sys.stdout.flush()
        sys.stderr.flush()
        try:
            pid = os.fork()
        except OSError as error:  # too many processes, no memory: later, then
            log.error("worker %d cannot be started: %s", child.number, error.strerror)
            child.start_at = time.monotonic() + 1.0
            ours.close()
            theirs.close()
            return
        if pid == 0:
            status = UNUSABLE
            try:
                self._become(child, ours, theirs)
                status = DONE
            except CannotStart as error:
                fail(f"worker {child.number} cannot start: {error}")
            except BaseException:
                traceback.print_exc()
                status = FAILED
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(status)
        theirs.close()
        ours.setblocking(False)
        child.pid, child.channel, child.ready = pid, ours, False
        child.started = time.monotonic()
        self._selector.register(ours, selectors.EVENT_READ, child)

    def _become(self, child: _Child, ours: socket.socket, theirs: socket.socket) -> None:
        """In the new process: leave what is the supervisor's, then serve as a worker."""
        signal.set_wakeup_fd(-1)
        self._selector.close()
        ours.close()
        for other in self._children:
            if other.channel is not None:
                other.channel.close()
        for number in _HANDLED:
            signal.signal(number, signal.SIG_DFL)
        for number in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR2):
            signal.signal(number, signal.SIG_IGN)  # what they mean, the supervisor passes on
        os.environ.pop("NOTIFY_SOCKET", None)
        changed = self._changed if child.number == 0 else None
        place = Place(child.number, self._settings.workers, changed)
        own = self._sockets.listeners[child.number]
        for private in self._sockets.listeners:
            if private is not own:
                private.close()
        worker = Worker(
            self._settings,
            self._listener,
            place=place,
            board=self._board,
            private=own,
            siblings=Siblings(child.number, self._sockets.paths),
        )
        with signals_end(worker, signal.SIGTERM), new_loop() as runner:
            runner.run(_serve(worker, theirs))

    def _hear(self, child: _Child) -> None:
        assert child.channel is not None
        try:
            word = child.channel.recv(1)
        except (BlockingIOError, ConnectionError):
            return
        if not word:  # it ends: its exit status says how
            self._selector.unregister(child.channel)
            child.channel.close()
            child.channel = None
            return
        child.ready = True
        if child.number == 0:
            self._changed = None  # recorded
        if not self._running and all(c.ready for c in self._children):
            self._running = True
            self._announce(self._settings, self._listener)
            systemd.notify("READY=1")
        self._replace_next()

    def _reap(self) -> int:
        """See to workers that have ended; returns the status when the gateway must end."""
        status = 0
        for child in self._children:
            if child.pid == 0:
                continue
            pid, code = os.waitpid(child.pid, os.WNOHANG)
            if pid == 0:
                continue
            self._board.held[child.number] = -1
            if child.channel is not None:
                self._selector.unregister(child.channel)
                child.channel.close()
                child.channel = None
            child.pid = 0
            status = self._after(child, pid, os.waitstatus_to_exitcode(code)) or status
        return status

    def _after(self, child: _Child, pid: int, code: int) -> int:
        """What follows the end of a worker with exit code ``code`` (negative: a signal)."""
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"
        if self._stopping:
            if code in (DONE, -signal.SIGTERM):  # by the signal itself: it had not begun to serve
                return 0
            log.error("worker %d ended with %s", child.number, how)
            return FAILED
        now = time.monotonic()
        asked, child.replacing = child.replacing, False
        if asked and code == DONE:
            child.start_at = now
            return 0
        if not self._running and not child.ready:
            fail(f"worker {child.number} ended with {how} before it was ready; giving up")
            self._stop()
            return UNUSABLE
        in_order = child.ready and code == DONE  # somebody sent it a SIGTERM
        steady = child.ready and now - child.started > _STEADY
        if not in_order:
            child.deaths = 0 if steady else child.deaths + 1
        backs_off = child.deaths and not in_order
        wait = min(_BACK_OFF_MAX, _BACK_OFF * 2 ** (child.deaths - 1)) if backs_off else 0.0
        child.start_at = now + wait
        log.error(
            "worker %d (pid %d) ended with %s; it is started again in %.1f s",
            child.number,
            pid,
            how,
            wait,
        )
        return 0

    def _replace_next(self) -> None:
        """Of the workers to be replaced, end one, once all others are ready."""
        if not all(child.ready and child.pid for child in self._children):
            return
        for child in self._children:
            if child.replacing:
                child.ready = False
                os.kill(child.pid, signal.SIGTERM)
                return

    # -- settings ----------------------------------------------------------------------------

    def _on_hangup(self) -> None:
        systemd.notify_reloading()
        try:
            settings = self._reload()
            check_reload(self._settings, settings)
        except SettingsError as error:
            log.error("settings not reloaded, the old ones stay: %s", error)
        else:
            self._settings = settings
            data = pickle.dumps(settings)
            for child in self._children:
                if child.channel is not None:
                    child.channel.setblocking(True)
                    child.channel.settimeout(5.0)
                    try:
                        child.channel.sendall(_LENGTH.pack(len(data)) + data)
                    except OSError as error:
                        log.error("worker %d gets no settings: %s", child.number, error)
                    finally:
                        child.channel.setblocking(False)
            log.info("settings reloaded; policy %s", settings.policy())
        systemd.notify("READY=1")


_HANDLED: Final = (
    signal.SIGTERM,
    signal.SIGINT,
    signal.SIGHUP,
    signal.SIGUSR2,
    signal.SIGCHLD,
)


async def _serve(worker: Worker, channel: socket.socket) -> None:
    """A worker's life: say when ready, take settings, end with the supervisor."""
    channel.setblocking(False)
    reader, writer = await asyncio.open_connection(sock=channel)

    async def listen() -> None:
        try:
            while True:
                (length,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
                settings = pickle.loads(await reader.readexactly(length))
                try:
                    worker.reload(settings)
                except SettingsError as error:
                    log.error("settings not reloaded, the old ones stay: %s", error)
        except (asyncio.IncompleteReadError, OSError):
            if not worker.server.should_exit:
                log.error("the supervisor is gone; worker %d ends", worker.number)
                worker.end()

    listening = asyncio.get_running_loop().create_task(listen())
    try:
        await worker.serve(lambda: writer.write(_READY))
    finally:
        listening.cancel()
        writer.close()


def _in_a_child(work: Callable[[], Any]) -> Any:
    """Do ``work`` in a process of its own: it may start threads. Raises CannotStart."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(read)
        signal.set_wakeup_fd(-1)
        try:
            answer = ("done", work())
        except (AegisError, LayoutError, OSError) as error:
            answer = ("failed", str(error))
        except BaseException:
            answer = ("failed", traceback.format_exc())
        with os.fdopen(write, "wb") as out:
            pickle.dump(answer, out)
        sys.stderr.flush()
        os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as source:
        data = source.read()
    os.waitpid(pid, 0)
    if not data:
        raise CannotStart("the process that looks after closed shards died")
    how, what = pickle.loads(data)
    if how == "failed":
        raise CannotStart(what)
    return what
