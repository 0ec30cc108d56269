"""The connections to one upstream: how many, which one serves a request, how long each is kept.

Deadlines cost nothing per call: one sweep per pool looks at the busy connections a few times a
second, so a timeout fires up to one sweep late.
"""

from __future__ import annotations

import asyncio
import re
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from aegis_c.gateway.hot.pool.connection import Connection
from aegis_c.gateway.hot.pool.dial import Dialer
from aegis_c.gateway.hot.pool.errors import (
    ConnectFailed,
    ConnectTimeout,
    PoolBusy,
    PoolClosed,
    Stale,
)

if TYPE_CHECKING:
    from aegis_c.gateway.upstream_settings import Upstream

KEEP_IDLE: Final = 30.0  # seconds a connection is kept without use, unless the upstream says less

_NAME = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_UNSAFE = re.compile(rb"[\r\n\0]")
_KEEP_ALIVE = re.compile(rb"(?:^|[\s,;])timeout=([0-9]{1,6})")


def header_line(name: bytes, value: bytes) -> bytes:
    """One header line. Raises ValueError when it could end early or be taken for another."""
    if _NAME.fullmatch(name) is None:
        raise ValueError(f"{name!r} is not a name")
    if _UNSAFE.search(value) is not None:
        raise ValueError(f"the value of {name.decode()} holds CR, LF or NUL")
    return name + b": " + value + b"\r\n"


class Pool:
    """Connections to one upstream; made inside a running loop, used from that loop alone."""

    def __init__(self, settings: Upstream, dialer: Dialer | None = None) -> None:
        self.loop = asyncio.get_running_loop()
        self.total_timeout = settings.total_timeout
        self.first_byte_timeout = settings.first_byte_timeout
        self.idle_timeout = settings.idle_timeout
        self.heartbeat = settings.heartbeat
        self.max_reply_bytes = settings.max_reply_bytes
        self.created = 0  # connections opened so far
        self.retries = 0  # requests sent a second time
        self._dialer = dialer or Dialer(settings)
        self._connect_timeout = settings.connect_timeout
        self._fixed = header_line(b"host", self._dialer.host_header)
        bearer = settings.bearer()
        if bearer is not None:
            self._fixed += header_line(b"authorization", b"Bearer " + bearer.encode())
        self._fixed += b"accept-encoding: identity\r\nuser-agent: aegis-c\r\n"
        self._max = settings.max_connections
        self._open = 0
        self._idle: list[Connection] = []
        self._busy: set[Connection] = set()
        self._live: set[Connection] = set()
        self._keep: dict[Connection, float] = {}  # connections that the upstream keeps for less
        self._waiting: deque[asyncio.Future[Connection | None]] = deque()
        shortest = min(settings.first_byte_timeout, settings.idle_timeout, settings.total_timeout)
        if settings.heartbeat:
            shortest = min(shortest, settings.heartbeat)
        self._sweep_every = max(0.02, min(0.25, shortest / 4))
        self._sweep: asyncio.TimerHandle | None = None
        self._sweeping_busy = False
        self._closed = False

    def request_head(self, method: bytes, path: bytes) -> bytes:
        """Request line and the headers that never change, without the empty line."""
        return method + b" " + self._dialer.path + path + b" HTTP/1.1\r\n" + self._fixed

    async def open(self, head: bytes, body: bytes) -> Connection:
        """Take a connection and write the request to it. Raises UpstreamError.

        The caller owns the connection and must release() it, whatever happens.
        """
        idle = self._idle
        connection = None
        while idle and not self._closed:
            connection = idle.pop()
            if self._usable(connection):
                break
            self._drop(connection)
            connection = None
        if connection is None:
            connection = await self._acquire()
        connection.send(head, body)
        return connection

    async def answered(
        self,
        connection: Connection,
        head: bytes,
        body: bytes,
        again: Callable[[Connection], None] | None = None,
    ) -> Connection:
        """Wait for the reply's head, sending once more when a kept connection was closed.

        Returns the connection that answered; ``again`` is told of another one as soon as it is
        in use. On any error the connection has been released.
        """
        try:
            await connection.head()
            return connection
        except Stale:
            connection.release()
        except BaseException:
            connection.release()
            raise
        self.retries += 1
        connection = await self._acquire(fresh=True)
        connection.send(head, body)
        if again is not None:
            again(connection)
        try:
            await connection.head()
            return connection
        except BaseException:
            connection.release()
            raise

    def stats(self) -> dict[str, int]:
        """Connections in use, idle, and callers that wait for one."""
        return {"busy": len(self._busy), "idle": len(self._idle), "waiting": len(self._waiting)}

    @property
    def resumed(self) -> int:
        """TLS connections that resumed a session."""
        return 0 if self._dialer.tls is None else self._dialer.tls.resumed

    def close(self) -> None:
        """Close every connection; running exchanges end with an error."""
        self._closed = True
        if self._sweep is not None:
            self._sweep.cancel()
            self._sweep = None
        for connection in list(self._live):
            if connection.busy:
                connection.fail(PoolClosed("the gateway is shutting down"))
            else:
                connection.abort()
        for waiter in self._waiting:
            if not waiter.done():
                waiter.set_result(None)

    # -- called by connections ---------------------------------------------------------------

    def started(self, connection: Connection) -> None:
        """A request was written."""
        self._busy.add(connection)
        if not self._sweeping_busy:
            self._sweep_in(self._sweep_every, busy=True)

    def finished(self, connection: Connection, clean: bool) -> None:
        """An exchange is over; ``clean`` when the connection can serve again."""
        self._busy.discard(connection)
        if connection.exchanges == 1 and connection.status:
            self._first_reply(connection)
        if not clean or self._closed:
            self._drop(connection)
            return
        self._offer(connection)

    def lost(self, connection: Connection) -> None:
        """The transport is gone. A busy connection is forgotten when it is released."""
        if not connection.busy:
            self._forget(connection)

    # -- inside ------------------------------------------------------------------------------

    def _first_reply(self, connection: Connection) -> None:
        """What a connection's first reply tells: its TLS session, how long it is kept."""
        if self._dialer.tls is not None:
            self._dialer.tls.keep(connection.transport)
        hint = _KEEP_ALIVE.search(connection.headers.get(b"keep-alive", b""))
        if hint is not None and int(hint[1]) <= KEEP_IDLE and connection in self._live:
            self._keep[connection] = max(0.0, int(hint[1]) - 1.0)

    def _offer(self, connection: Connection) -> None:
        """A connection serves whoever waits longest, or is kept."""
        if not self._waiting or not self._wake_one(connection):
            self._idle.append(connection)

    def _usable(self, connection: Connection) -> bool:
        """True unless a kept connection is closed, or the upstream is about to close it."""
        return connection.usable() and (
            connection not in self._keep
            or self.loop.time() - connection.idle_since() <= self._keep[connection]
        )

    def _drop(self, connection: Connection) -> None:
        self._forget(connection)
        connection.abort()

    def _forget(self, connection: Connection) -> None:
        """A connection no longer counts; somebody who waits may open another."""
        if connection not in self._live:
            return
        self._live.discard(connection)
        self._keep.pop(connection, None)
        self._open -= 1
        if connection in self._idle:
            self._idle.remove(connection)
        self._wake_one(None)

    def _wake_one(self, connection: Connection | None) -> bool:
        """Hand ``connection``, or the chance to open one, to whoever waits longest."""
        while self._waiting:
            waiter = self._waiting.popleft()
            if not waiter.done():
                waiter.set_result(connection)
                return True
        return False

    async def _acquire(self, *, fresh: bool = False) -> Connection:
        """An idle connection, or a new one; ``fresh`` insists on a new one."""
        deadline = self.loop.time() + self._connect_timeout
        while True:
            if self._closed:
                raise PoolClosed("the gateway is shutting down")
            if fresh and self._idle and self._open >= self._max:
                self._drop(self._idle[0])
            while self._idle and not fresh:
                connection = self._idle.pop()
                if self._usable(connection):
                    return connection
                self._drop(connection)
            if self._open < self._max:
                return await self._connect(deadline)
            handed = await self._wait_for_one(deadline)
            if handed is None:
                continue
            if not fresh and self._usable(handed):
                return handed
            self._drop(handed)

    async def _wait_for_one(self, deadline: float) -> Connection | None:
        waiter: asyncio.Future[Connection | None] = self.loop.create_future()
        self._waiting.append(waiter)
        try:
            async with asyncio.timeout_at(deadline):
                return await waiter
        except BaseException as error:
            if waiter.done() and not waiter.cancelled():
                connection = waiter.result()
                if connection is not None:  # handed over at the very moment of the timeout
                    self._offer(connection)
                else:
                    self._wake_one(None)
            elif waiter in self._waiting:
                self._waiting.remove(waiter)
            if isinstance(error, TimeoutError):
                raise PoolBusy(
                    f"all {self._max} upstream connections were in use for "
                    f"{self._connect_timeout:g} s"
                ) from None
            raise

    async def _connect(self, deadline: float) -> Connection:
        self._open += 1
        try:
            async with asyncio.timeout_at(deadline):
                connection = await self._dialer.dial(lambda: Connection(self))
        except BaseException as error:
            self._open -= 1
            self._wake_one(None)
            if isinstance(error, TimeoutError):
                raise ConnectTimeout(f"no connection within {self._connect_timeout:g} s") from None
            raise
        self.created += 1
        self._live.add(connection)
        if self._closed:
            self._drop(connection)
            raise PoolClosed("the gateway is shutting down")
        if not connection.usable():
            self._forget(connection)
            raise ConnectFailed("the upstream closed the connection at once")
        return connection

    def _sweep_in(self, seconds: float, *, busy: bool) -> None:
        if self._sweep is not None:
            self._sweep.cancel()
        self._sweep = self.loop.call_later(seconds, self._on_sweep)
        self._sweeping_busy = busy

    def _on_sweep(self) -> None:
        self._sweep = None
        self._sweeping_busy = False
        now = self.loop.time()
        for connection in list(self._busy):
            connection.check(now)
        for connection in list(self._idle):
            if now - connection.idle_since() > self._keep.get(connection, KEEP_IDLE):
                self._drop(connection)
        if self._busy:
            self._sweep_in(self._sweep_every, busy=True)
        elif self._idle:
            self._sweep_in(self._idle_sweep(), busy=False)

    def _idle_sweep(self) -> float:
        """Seconds until the next look at idle connections: half the shortest that one is kept."""
        return max(0.25, min([KEEP_IDLE, *self._keep.values()]) / 2)
