"""Accepting connections, fairly when several workers share one listening socket.

All workers wait on the same socket, so a connection that nobody has taken yet is never lost with
a worker. Each writes how many connections it holds into one shared array; one that holds more
than the least loaded worker leaves a new connection to that one for a moment.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import mmap
import socket
from collections.abc import Callable
from typing import Final

log = logging.getLogger("aegis_c.gateway.acceptor")

_LEAVE: Final = 0.001  # seconds that a connection is left to the others
_LEAVE_TIMES: Final = 3  # after so many it is taken all the same: the others are busy
_AT_ONCE: Final = 16  # connections taken in one turn of the loop
_NO_DESCRIPTORS: Final = 0.2  # seconds of pause when this process can open no more


class Board:
    """How many connections each worker holds, in memory that all of them share.

    A slot has one writer. Negative: that worker takes none.
    """

    def __init__(self, workers: int) -> None:
        self._memory = mmap.mmap(-1, 8 * workers)
        self.held = memoryview(self._memory).cast("q")
        for number in range(workers):
            self.held[number] = -1

    def is_least(self, number: int) -> bool:
        """Whether no other worker that takes connections holds fewer than ``number``."""
        mine = self.held[number]
        return all(held < 0 or held >= mine for held in self.held)


class Acceptor:
    """Takes connections for one worker."""

    def __init__(
        self,
        listener: socket.socket,
        protocol: Callable[[], asyncio.Protocol],
        board: Board | None,
        number: int,
        room: Callable[[], bool] = lambda: True,
    ) -> None:
        """``room()``: whether this process may hold another connection."""
        listener.setblocking(False)
        self._room = room
        self._listener = listener
        self._protocol = protocol
        self._board = board
        self._number = number
        self._left = 0
        self._later: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._stopped = False
        self._loop = asyncio.get_running_loop()

    def start(self) -> None:
        """Take connections from now on."""
        if self._board is not None:
            self._board.held[self._number] = 0
        self._loop.add_reader(self._listener.fileno(), self._on_ready)

    def stop(self) -> None:
        """Take no more; what was taken stays."""
        if self._stopped:
            return
        self._stopped = True
        if self._board is not None:
            self._board.held[self._number] = -1
        if self._later is not None:
            self._later.cancel()
        self._loop.remove_reader(self._listener.fileno())

    def closed(self) -> None:
        """A connection of this worker is over."""
        if self._board is not None and not self._stopped:
            self._board.held[self._number] -= 1

    def _on_ready(self) -> None:
        for _ in range(_AT_ONCE):
            if self._left < _LEAVE_TIMES and not self._my_turn():
                self._left += 1
                self._pause(_LEAVE)
                return
            self._left = 0
            if not self._room():
                log.error("callers hold as many connections as the limit of open files allows")
                self._pause(_NO_DESCRIPTORS)
                return
            try:
                connection, _ = self._listener.accept()
            except (BlockingIOError, ConnectionAbortedError):
                return
            except OSError as error:
                if error.errno not in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                    raise
                log.error("cannot take a connection: %s", error.strerror)
                self._pause(_NO_DESCRIPTORS)
                return
            connection.setblocking(False)
            if self._board is not None:
                self._board.held[self._number] += 1
            task = self._loop.create_task(self._attach(connection))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def _my_turn(self) -> bool:
        return self._board is None or self._board.is_least(self._number)

    async def _attach(self, connection: socket.socket) -> None:
        try:
            await self._loop.connect_accepted_socket(self._protocol, connection)
        except OSError:  # gone before it was looked at
            connection.close()
            self.closed()

    def _pause(self, seconds: float) -> None:
        self._loop.remove_reader(self._listener.fileno())
        self._later = self._loop.call_later(seconds, self._resume)

    def _resume(self) -> None:
        self._later = None
        self._loop.add_reader(self._listener.fileno(), self._on_ready)
