"""One connection to an upstream, and the reply of the exchange it is busy with."""

from __future__ import annotations

import asyncio
import fcntl
import termios
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, cast

import httptools

from aegis_c.gateway.hot.pool.errors import PoolClosed, Stale, UpstreamError, UpstreamTimeout

if TYPE_CHECKING:
    from aegis_c.gateway.hot.pool.origin import Pool

HEAD_LIMIT: Final = 64 << 10  # bytes of a reply's head, of its trailers, of one chunk's extensions
FIELD_LIMIT: Final = 200  # header fields of a reply
BUFFER_HIGH: Final = 256 << 10  # unread body bytes above which reading is paused
JOIN_BELOW: Final = 16 << 10  # request bodies up to here are joined with their head: one write
SLOW_AFTER: Final = 0.25  # seconds without a complete reply after which `on_slow` is called
#: Seconds after a request within which a kept connection that closes counts as closed before it:
#: the upstream's close and our request crossed. Later, the upstream had the request and died of it.
STALE_WITHIN: Final = 1.0


class Connection(asyncio.Protocol):
    """One connection; made by its pool, used for one exchange at a time."""

    __slots__ = (
        "_beat",
        "_buffered",
        "_chunks",
        "_closed",
        "_collecting",
        "_deadline",
        "_early",
        "_error",
        "_fields",
        "_head_done",
        "_informational",
        "_keep",
        "_large",
        "_last",
        "_parser",
        "_paused",
        "_pool",
        "_progressless",
        "_received",
        "_self_delimiting",
        "_sent",
        "_silent",
        "_waiter",
        "busy",
        "done",
        "exchanges",
        "handing",
        "headers",
        "on_slow",
        "on_stall",
        "status",
        "transport",
    )

    transport: asyncio.Transport

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._parser = httptools.HttpResponseParser(self)
        self._waiter: asyncio.Future[None] | None = None
        self._closed = False
        self._last = 0.0
        self._sent = 0.0
        self._deadline = 0.0
        self._large = False
        self.busy = False
        self.exchanges = 0  # requests written so far
        self.handing = 0.0  # when the caller of chunk() began to pass a piece on; 0: it did not
        self.on_slow: Callable[[], None] | None = None
        self.on_stall: Callable[[], None] | None = None
        self._begin()

    def _begin(self) -> None:
        self.status = 0
        self.headers: dict[bytes, bytes] = {}
        self.done = False
        self._error: Exception | None = None
        self._chunks: list[bytes] = []
        self._buffered = 0
        self._collecting = False
        self._early = False
        self._fields = 0
        self._head_done = False
        self._informational = False
        self._keep = False
        self._paused = False
        self._progressless = 0  # bytes since the last piece of the body
        self._received = False
        self._self_delimiting = False
        self._silent = False  # a heartbeat is due, and nothing has come since
        self._beat = 0.0

    # -- what the forwarder calls ------------------------------------------------------------

    def send(self, head: bytes, body: bytes) -> None:
        """Write one request; the reply is then read with head(), body() and chunk()."""
        pool = self._pool
        if self.exchanges:
            self._begin()
        self.exchanges += 1
        self.busy = True
        self._sent = self._last = now = pool.loop.time()
        self._deadline = now + pool.total_timeout
        pool.started(self)
        self._large = len(body) > JOIN_BELOW
        if not self._large:
            self.transport.write(head + body)
        else:
            self.transport.writelines((head, body))

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
                self.fail(self._too_large())
                continue
            await self._wait()
        if self._buffered > self._pool.max_reply_bytes:
            raise self._too_large()
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
        self.transport.abort()

    def release(self) -> None:
        """The exchange is over: keep the connection when it is clean, else close it."""
        if not self.busy:
            return
        self.busy = False
        self.on_slow = self.on_stall = None
        self.handing = 0.0
        clean = (
            self.done
            and self._keep
            and not self._early
            and not self._closed
            and self._error is None
            and not self.transport.is_closing()
        )
        if clean and self._paused:
            self._resume()
        self._chunks = []
        self._last = self._pool.loop.time()
        self._pool.finished(self, clean)

    def _wait(self) -> asyncio.Future[None]:
        """To be awaited at once: done when something has changed."""
        self._waiter = waiter = self._pool.loop.create_future()
        return waiter

    def _wake(self) -> None:
        waiter = self._waiter
        if waiter is not None:
            self._waiter = None
            if not waiter.done():
                waiter.set_result(None)

    def _resume(self) -> None:
        if self._paused:
            self._paused = False
            if not self._closed:
                self.transport.resume_reading()

    def _too_large(self) -> UpstreamError:
        return UpstreamError(f"the reply exceeds {self._pool.max_reply_bytes} bytes")

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

    @property
    def broke(self) -> bool:
        """True when the upstream broke off the reply, or the exchange took it too long."""
        error = self._error
        return isinstance(error, UpstreamError) and not isinstance(error, PoolClosed)

    def idle_since(self) -> float:
        """Loop time of the last use."""
        return self._last

    def usable(self) -> bool:
        """True when a kept connection still looks open."""
        return not self._closed and not self.transport.is_closing()

    def abort(self) -> None:
        """Close at once, without waiting for anything."""
        self.transport.abort()

    # -- asyncio.Protocol --------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The connection is open."""
        # uvloop's transports have the interface of asyncio.Transport, but not as a base class.
        self.transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Bytes of a reply; on an idle connection they belong to nothing and end it."""
        if not self.busy or self._error is not None:
            self.transport.abort()
            return
        self._received = True
        self._progressless += len(data)
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
            if self._progressless > HEAD_LIMIT and not self.done:
                self.fail(UpstreamError(f"{HEAD_LIMIT} bytes of the reply hold no body"))

    def eof_received(self) -> None:
        """The upstream sent its last byte; connection_lost follows."""

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is gone; the exchange it was busy with ends with it."""
        self._closed = True
        if self.busy and not self.done and self._error is None:
            self._lost_inside(exc)
        self._wake()
        self._pool.lost(self)

    def _lost_inside(self, exc: Exception | None) -> None:
        if self._head_done and not self._self_delimiting and exc is None:
            self.done = True  # a body that the close delimits
        elif self._received:
            self._error = UpstreamError("the upstream closed the connection inside its reply")
        elif self.exchanges > 1 and self._pool.loop.time() - self._sent < STALE_WITHIN:
            self._error = Stale("a kept connection was closed")
        else:
            self._error = UpstreamError("the upstream closed the connection without a reply")

    # -- httptools callbacks -----------------------------------------------------------------

    def on_message_begin(self) -> None:
        """The parser starts a message; a second one was not asked for."""
        if self.done:
            raise UpstreamError("the upstream sent more than one reply")

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header field; of repeated ones the first counts, but framing must agree.

        llhttp lets no CR, LF or NUL into either. Trailers count, and are thrown away.
        """
        self._fields += 1
        if self._fields > FIELD_LIMIT:
            raise UpstreamError(f"the reply has more than {FIELD_LIMIT} header fields")
        if self._head_done:
            return
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
        self._early = self._large and self._unsent()
        self._self_delimiting = (
            b"content-length" in self.headers or b"transfer-encoding" in self.headers
        )
        self._wake()

    def _unsent(self) -> bool:
        """True when the upstream answers a request that it cannot have read to its end.

        What it makes of the rest is anybody's guess. A reply acknowledges what was read before it,
        so bytes that the kernel still keeps (under TLS, the only ones to be seen) are such a rest.
        """
        if self.transport.get_write_buffer_size() > 0:
            return True
        descriptor: int = self.transport.get_extra_info("socket").fileno()
        return descriptor >= 0 and any(fcntl.ioctl(descriptor, termios.TIOCOUTQ, bytes(4)))

    def on_body(self, data: bytes) -> None:
        """A piece of the body."""
        self._progressless = 0
        self._chunks.append(data)
        self._buffered += len(data)
        if self._buffered > BUFFER_HIGH and not self._collecting and not self._paused:
            self._paused = True
            self.transport.pause_reading()
        self._wake()

    def on_message_complete(self) -> None:
        """The reply is complete (an informational one is followed by the real one)."""
        if self._informational:
            self._informational = False
        else:
            self.done = True
            self._wake()
