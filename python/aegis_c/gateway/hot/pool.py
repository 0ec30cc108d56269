"""A small keep-alive HTTP/1.1 client for one upstream: asyncio.Protocol over httptools (llhttp).

Promises: no request can choose a host; connections are bounded; every wait ends (connect, first
byte, idle, total); a reply larger than its limit is refused; a body is only read as fast as it is
taken; a connection is used again only after a complete, self-delimiting reply; a request is sent a
second time only when a kept connection closed before any byte of a reply (RFC 9112 section 9.3.1).

Deadlines cost nothing per call: one sweep per pool looks at the busy connections a few times a
second, so a timeout fires up to one sweep late.
"""

from __future__ import annotations

import asyncio
import logging
import re
import ssl
from collections import deque
from collections.abc import Callable
from typing import Final, cast
from urllib.parse import urlsplit

import httptools

from aegis_c.gateway.settings import Upstream

log = logging.getLogger("aegis_c.gateway.upstream")

HEAD_LIMIT: Final = 64 << 10  # bytes of a reply's head
FIELD_LIMIT: Final = 200  # header fields of a reply
BUFFER_HIGH: Final = 256 << 10  # unread body bytes above which reading is paused
KEEP_IDLE: Final = 30.0  # seconds a connection is kept without use
SLOW_AFTER: Final = 0.25  # seconds without a complete reply after which `on_slow` is called

_UNSAFE = re.compile(rb"[\r\n\0]")


class UpstreamError(Exception):
    """The upstream could not be used: down, broken, or not speaking HTTP."""


class UpstreamTimeout(UpstreamError):
    """The upstream took longer than the settings allow."""


class PoolBusy(UpstreamError):
    """Every connection is in use and none became free in time; nothing was sent."""


class PoolClosed(UpstreamError):
    """The gateway is shutting down: nothing is sent any more."""


class _Stale(UpstreamError):
    """A kept connection turned out to be closed before any byte of the reply."""


def header_line(name: bytes, value: bytes) -> bytes:
    """One header line. Raises ValueError when the value could end the line early."""
    if _UNSAFE.search(value) is not None:
        raise ValueError(f"the value of {name.decode()} holds CR, LF or NUL")
    return name + b": " + value + b"\r\n"


class Connection(asyncio.Protocol):
    """One connection, and the reply of the exchange it is busy with."""

    __slots__ = (
        "_beat",
        "_buffered",
        "_chunks",
        "_closed",
        "_collecting",
        "_deadline",
        "_error",
        "_fields",
        "_head_bytes",
        "_head_done",
        "_informational",
        "_keep",
        "_last",
        "_parser",
        "_paused",
        "_pool",
        "_reused",
        "_self_delimiting",
        "_sent",
        "_silent",
        "_transport",
        "_waiter",
        "busy",
        "done",
        "handing",
        "headers",
        "on_slow",
        "on_stall",
        "status",
    )

    _transport: asyncio.Transport

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._parser = httptools.HttpResponseParser(self)
        self._waiter: asyncio.Future[None] | None = None
        self._closed = False
        self._reused = False
        self._last = 0.0
        self._sent = 0.0
        self._deadline = 0.0
        self.busy = False
        self._begin()

    def _begin(self) -> None:
        self.status = 0
        self.headers: dict[bytes, bytes] = {}
        self.done = False
        self.handing = 0.0  # when the caller of chunk() began to pass a piece on; 0: it did not
        self.on_slow: Callable[[], None] | None = None
        self.on_stall: Callable[[], None] | None = None
        self._error: Exception | None = None
        self._chunks: list[bytes] = []
        self._buffered = 0
        self._collecting = False
        self._fields = 0
        self._head_bytes = 0
        self._head_done = False
        self._informational = False
        self._keep = False
        self._paused = False
        self._self_delimiting = False
        self._silent = False  # a heartbeat is due, and nothing has come since
        self._beat = 0.0

    # -- what the forwarder calls ------------------------------------------------------------

    def send(self, head: bytes, body: bytes) -> None:
        """Write one request; the reply is then read with head(), body() and chunk()."""
        pool = self._pool
        self._begin()
        self.busy = True
        self._sent = self._last = pool.loop.time()
        self._deadline = self._sent + pool.total_timeout
        pool.started(self)
        if len(body) <= 16384:
            self._transport.write(head + body)
        else:
            self._transport.writelines((head, body))

    async def head(self) -> None:
        """Wait for status and headers. Raises UpstreamError or what fail() was given."""
        while not self._head_done:
            if self._error is not None:
                raise self._error
            await self._wait()

    async def body(self) -> bytes:
        """The whole body. Raises UpstreamError, also when it is larger than the limit."""
        self._collecting = True
        self._resume()
        while not self.done or self._error is not None:
            if self._error is not None:
                raise self._error
            if self._buffered > self._pool.max_reply_bytes:
                self.fail(UpstreamError(f"the reply exceeds {self._pool.max_reply_bytes} bytes"))
                continue
            await self._wait()
        if self._buffered > self._pool.max_reply_bytes:
            raise UpstreamError(f"the reply exceeds {self._pool.max_reply_bytes} bytes")
        chunks = self._chunks
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    async def chunk(self) -> bytes | None:
        """The next piece of the body as soon as there is one; None at its end.

        Empty when there was none for ``heartbeat`` seconds: the caller may want to say so.
        """
        while True:
            chunks = self._chunks
            if chunks:
                data = chunks[0] if len(chunks) == 1 else b"".join(chunks)
                chunks.clear()
                self._buffered = 0
                return data
            if self._error is not None:
                raise self._error
            if self.done:
                return None
            self._resume()
            if not self._silent:
                self._last = self._pool.loop.time()
            await self._wait()
            if self._silent and not chunks and not self.done and self._error is None:
                return b""

    def fail(self, error: Exception) -> None:
        """End the exchange: whoever waits for the reply gets ``error``.

        An upstream's fault comes after what has arrived before it; anything else comes at once.
        """
        if not isinstance(error, UpstreamError):
            self._error = error
            self._chunks.clear()
        elif self._error is None and not self.done:
            self._error = error
        self._wake()
        self._transport.abort()

    def release(self) -> None:
        """The exchange is over: keep the connection when it is clean, else close it."""
        if not self.busy:
            return
        self.busy = False
        self.on_slow = self.on_stall = None
        clean = (
            self.done
            and self._keep
            and not self._closed
            and self._error is None
            and not self._transport.is_closing()
            and self._transport.get_write_buffer_size() == 0  # an early reply: bytes still to go
        )
        if not clean:
            self._transport.abort()
        elif self._paused:
            self._resume()
        self._chunks = []
        self._last = self._pool.loop.time()
        self._reused = True
        self._pool.finished(self, clean)

    async def _wait(self) -> None:
        self._waiter = waiter = self._pool.loop.create_future()
        try:
            await waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def _resume(self) -> None:
        if self._paused:
            self._paused = False
            if not self._closed:
                self._transport.resume_reading()

    # -- deadlines ---------------------------------------------------------------------------

    def check(self, now: float) -> None:
        """Called by the pool's sweep while the connection is busy."""
        pool = self._pool
        if self.handing:
            if now - self.handing > pool.idle_timeout and self.on_stall is not None:
                self.on_stall()
        elif self.done or self._error is not None:
            return
        elif now > self._deadline:
            self.fail(UpstreamTimeout(f"no complete reply within {pool.total_timeout:g} s"))
        elif not self._head_done and now - self._sent > pool.first_byte_timeout:
            self.fail(UpstreamTimeout(f"no reply within {pool.first_byte_timeout:g} s"))
        elif self.on_slow is not None and now - self._sent > SLOW_AFTER:
            on_slow, self.on_slow = self.on_slow, None
            on_slow()
        elif self._head_done and self._waiter is not None:
            if now - self._last > pool.idle_timeout:
                self.fail(UpstreamTimeout(f"nothing more within {pool.idle_timeout:g} s"))
            elif pool.heartbeat and now - max(self._last, self._beat) >= pool.heartbeat:
                self._beat = now
                self._silent = True
                self._wake()

    def idle_since(self) -> float:
        """Loop time of the last use."""
        return self._last

    def usable(self) -> bool:
        """True when a kept connection still looks open."""
        return not self._closed and not self._transport.is_closing()

    def abort(self) -> None:
        """Close at once, without waiting for anything."""
        self._transport.abort()

    # -- asyncio.Protocol --------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The connection is open."""
        # uvloop's transports have the interface of asyncio.Transport, but not as a base class.
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Bytes of a reply; on an idle connection they belong to nothing and end it."""
        if not self.busy or self._error is not None:
            self._transport.abort()
            return
        if not self._head_done:
            self._head_bytes += len(data)
        self._last = self._pool.loop.time()
        self._silent = False
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self.fail(UpstreamError("the upstream switched to another protocol"))
        except httptools.HttpParserCallbackError as error:
            cause = error.__context__
            if not isinstance(cause, UpstreamError):
                raise
            self.fail(cause)
        except httptools.HttpParserError as error:
            self.fail(UpstreamError(f"the upstream's reply is not valid HTTP: {error}"))
        else:
            if not self._head_done and self._head_bytes > HEAD_LIMIT:
                self.fail(UpstreamError(f"the reply's head exceeds {HEAD_LIMIT} bytes"))

    def eof_received(self) -> None:
        """The upstream sent its last byte; connection_lost follows."""

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is gone; the exchange it was busy with ends with it."""
        self._closed = True
        if self.busy and not self.done and self._error is None:
            if self._head_done and not self._self_delimiting and exc is None:
                self.done = True  # a body that the close delimits
            elif self._reused and self._head_bytes == 0:
                self._error = _Stale("a kept connection was closed")
            elif self._head_bytes == 0:
                self._error = UpstreamError("the upstream closed the connection without a reply")
            else:
                self._error = UpstreamError("the upstream closed the connection inside its reply")
        self._wake()
        self._pool.lost(self)

    # -- httptools callbacks -----------------------------------------------------------------

    def on_message_begin(self) -> None:
        """The parser starts a message; a second one was not asked for."""
        if self.done:
            raise UpstreamError("the upstream sent more than one reply")

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header field; of repeated ones the first counts, but framing must agree."""
        self._fields += 1
        if self._fields > FIELD_LIMIT or len(name) + len(value) > HEAD_LIMIT:
            raise UpstreamError(f"the reply's head exceeds {FIELD_LIMIT} fields or its size limit")
        name = name.lower()
        first = self.headers.setdefault(name, value)
        if first is not value and name == b"content-length" and first != value:
            raise UpstreamError("the reply gives two different lengths")

    def on_headers_complete(self) -> None:
        """Status and headers are there."""
        status = self._parser.get_status_code()
        if 100 <= status < 200:
            if status == 101:
                raise UpstreamError("the upstream switched to another protocol")
            self._informational = True
            self.headers.clear()
            return
        self.status = status
        self._head_done = True
        self._keep = self._parser.should_keep_alive()
        self._self_delimiting = (
            b"content-length" in self.headers or b"transfer-encoding" in self.headers
        )
        self._wake()

    def on_body(self, data: bytes) -> None:
        """A piece of the body."""
        self._chunks.append(data)
        self._buffered += len(data)
        if self._buffered > BUFFER_HIGH and not self._collecting and not self._paused:
            self._paused = True
            self._transport.pause_reading()
        self._wake()

    def on_message_complete(self) -> None:
        """The reply is complete (an informational one is followed by the real one)."""
        if self._informational:
            self._informational = False
        else:
            self.done = True
            self._wake()


class Pool:
    """Connections to one upstream; made inside a running loop, used from that loop alone."""

    def __init__(self, settings: Upstream) -> None:
        assert settings.url is not None
        parts = urlsplit(settings.url)
        assert parts.hostname is not None
        self.loop = asyncio.get_running_loop()
        self.total_timeout = settings.total_timeout
        self.first_byte_timeout = settings.first_byte_timeout
        self.idle_timeout = settings.idle_timeout
        self.heartbeat = settings.heartbeat
        self.max_reply_bytes = settings.max_reply_bytes
        self.created = 0  # connections opened so far
        self.retries = 0  # requests sent a second time
        self._connect_timeout = settings.connect_timeout
        self._host = parts.hostname
        self._tls: ssl.SSLContext | None = None
        if parts.scheme == "https":
            self._tls = ssl.create_default_context(
                cafile=str(settings.ca_file) if settings.ca_file is not None else None
            )
            self._tls.set_alpn_protocols(["http/1.1"])
        self._port = parts.port or (443 if self._tls is not None else 80)
        self._path = parts.path.encode("ascii")
        self._fixed = (
            header_line(b"host", parts.netloc.encode("ascii"))
            + (
                header_line(
                    b"authorization", b"Bearer " + settings.api_key.get_secret_value().encode()
                )
                if settings.api_key is not None
                else b""
            )
            + b"accept-encoding: identity\r\nuser-agent: aegis-c\r\n"
        )
        self._max = settings.max_connections
        self._open = 0
        self._idle: list[Connection] = []
        self._busy: set[Connection] = set()
        self._live: set[Connection] = set()
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
        return method + b" " + self._path + path + b" HTTP/1.1\r\n" + self._fixed

    async def open(self, head: bytes, body: bytes) -> Connection:
        """Take a connection and write the request to it. Raises UpstreamError.

        The caller owns the connection and must release() it, whatever happens.
        """
        connection = await self._acquire(fresh=False)
        connection.send(head, body)
        return connection

    async def answered(self, connection: Connection, head: bytes, body: bytes) -> Connection:
        """Wait for the reply's head, sending once more when a kept connection was closed.

        Returns the connection that answered. On any error the connection has been released.
        """
        try:
            await connection.head()
            return connection
        except _Stale:
            connection.release()
        except BaseException:
            connection.release()
            raise
        self.retries += 1
        on_slow = connection.on_slow
        connection = await self._acquire(fresh=True)
        connection.send(head, body)
        connection.on_slow = on_slow
        try:
            await connection.head()
            return connection
        except BaseException:
            connection.release()
            raise

    def stats(self) -> dict[str, int]:
        """Connections in use, idle, and callers that wait for one."""
        return {"busy": len(self._busy), "idle": len(self._idle), "waiting": len(self._waiting)}

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
        if not clean or self._closed:
            self._forget(connection)
            connection.abort()
            return
        if not self._wake_one(connection):
            self._idle.append(connection)

    def lost(self, connection: Connection) -> None:
        """The transport is gone. A busy connection is forgotten when it is released."""
        if not connection.busy:
            self._forget(connection)

    # -- inside ------------------------------------------------------------------------------

    def _forget(self, connection: Connection) -> None:
        """A connection no longer counts; somebody who waits may open another."""
        if connection not in self._live:
            return
        self._live.discard(connection)
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

    async def _acquire(self, *, fresh: bool) -> Connection:
        """An idle connection, or a new one; ``fresh`` insists on a new one."""
        deadline = self.loop.time() + self._connect_timeout
        while True:
            if self._closed:
                raise PoolClosed("the gateway is shutting down")
            while self._idle:
                connection = self._idle.pop()
                if not fresh and connection.usable():
                    return connection
                self._forget(connection)
                connection.abort()
            if self._open < self._max:
                return await self._connect(deadline)
            connection_or_none = await self._wait_for_one(deadline)
            if connection_or_none is None:
                continue
            if not fresh and connection_or_none.usable():
                return connection_or_none
            self._forget(connection_or_none)
            connection_or_none.abort()

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
                    self.finished(connection, connection.usable())
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
                _, connection = await self.loop.create_connection(
                    lambda: Connection(self), self._host, self._port, ssl=self._tls
                )
        except BaseException as error:
            self._open -= 1
            self._wake_one(None)
            if isinstance(error, TimeoutError):
                raise UpstreamTimeout(f"no connection within {self._connect_timeout:g} s") from None
            if isinstance(error, (OSError, ssl.CertificateError)):
                raise UpstreamError(f"cannot connect: {error}") from error
            raise
        self.created += 1
        self._live.add(connection)
        if not connection.usable():
            self._forget(connection)
            raise UpstreamError("the upstream closed the connection at once")
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
            if now - connection.idle_since() > KEEP_IDLE:
                self._forget(connection)
                connection.abort()
        if self._busy:
            self._sweep_in(self._sweep_every, busy=True)
        elif self._idle:
            self._sweep_in(KEEP_IDLE / 2, busy=False)
