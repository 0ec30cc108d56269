"""The webhook: every alert as one signed POST, from a queue of its own that nobody waits for.

Messages go out one after the other. One that is not answered with 2xx is tried again, after
`backoff` x 2^n seconds, unless the receiver says that it never will take it (4xx but 408 and 429).
The signature is `t=<unix seconds>,v1=<hex>`, HMAC-SHA-256 over `<unix seconds>.<body>`: made anew
for every attempt, so that a receiver can refuse what is old (docs/formats.md).
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import random
import time
from collections import deque
from typing import TYPE_CHECKING, Final

import msgspec

from aegis_c.gateway.hot.pool import Pool, UpstreamError
from aegis_c.gateway.upstream_settings import Upstream

if TYPE_CHECKING:
    from aegis_c.gateway.alert_settings import WebhookSettings
    from aegis_c.gateway.background.alerts import Alert

log = logging.getLogger("aegis_c.gateway.webhook")

_BACKOFF_MAX: Final = 60.0  # seconds between two attempts
_ANSWER_MAX: Final = 64 << 10  # octets of an answer that are read and thrown away

_encode = msgspec.json.Encoder().encode


class Webhook:
    """One gateway's; made on its event loop, used from there. Without a URL it does nothing."""

    def __init__(self, settings: WebhookSettings) -> None:
        """Raises ValueError, OSError when a file of the settings cannot be read."""
        self._queue: deque[bytes] = deque()
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._idle = asyncio.Event()
        self._idle.set()
        self.delivered = 0
        self.failed = 0  # given up after the last attempt, or refused for good
        self.dropped = 0  # not queued: the queue was full
        self.retries = 0
        self._pool: Pool | None = None
        self.use(settings)

    def use(self, settings: WebhookSettings) -> None:
        """Other settings from the next attempt on. Raises ValueError, OSError: then none change."""
        key, pool, head = settings.key(), None, b""
        if settings.url is not None:
            pool = Pool(_pool_settings(settings))
            head = pool.request_head(b"POST", b"")
        if self._pool is not None:
            self._pool.close()
        self._settings, self._key, self._pool, self._head = settings, key, pool, head

    @property
    def waiting(self) -> int:
        """Messages not yet delivered or given up."""
        return len(self._queue) + (not self._idle.is_set())

    def send(self, alert: Alert) -> None:
        """Queue an alert; never waits. What no longer fits is counted: it stays an alert."""
        if self._pool is None:
            return
        if len(self._queue) >= self._settings.queue:
            self.dropped += 1
            log.warning("the webhook's queue is full: an alert was not queued")
            return
        self._queue.append(_encode(alert))
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run())
        self._wake.set()

    async def close(self, seconds: float) -> int:
        """Deliver what waits, for so long; returns how many messages were given up then."""
        left = 0
        if self._task is not None:
            try:
                async with asyncio.timeout(seconds):
                    while self.waiting:
                        await self._idle.wait()
                        await asyncio.sleep(0)
            except TimeoutError:
                left = self.waiting
                log.error("%d alerts were not delivered to the webhook before the end", left)
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None
        if self._pool is not None:
            self._pool.close()
            self._pool = None
        return left

    async def _run(self) -> None:
        while True:
            while self._queue:
                self._idle.clear()
                try:
                    await self._deliver(self._queue.popleft())
                finally:
                    self._idle.set()
            self._wake.clear()
            await self._wake.wait()

    async def _deliver(self, body: bytes) -> None:
        attempt = 0
        while True:
            attempt += 1
            fault, final = await self._attempt(body)
            if fault is None:
                self.delivered += 1
                return
            settings = self._settings
            if final or attempt >= settings.attempts:
                self.failed += 1
                log.error(
                    "the webhook does not get an alert, after %d attempts: %s", attempt, fault
                )
                return
            self.retries += 1
            pause = min(_BACKOFF_MAX, settings.backoff * 2 ** (attempt - 1))
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))

    async def _attempt(self, body: bytes) -> tuple[str | None, bool]:
        """What went wrong, None when nothing did; and whether trying again is of no use."""
        pool = self._pool
        if pool is None:
            return "there is no webhook any more", True
        head = self._head + (
            b"content-type: application/json\r\ncontent-length: %d\r\naegis-signature: %s\r\n\r\n"
            % (len(body), sign(self._key, int(time.time()), body))
        )
        try:
            connection = await pool.answered(await pool.open(head, body), head, body)
            try:
                status = connection.status
                await connection.body()
            finally:
                connection.release()
        except (UpstreamError, OSError) as error:
            return str(error) or type(error).__name__, False
        if 200 <= status < 300:
            return None, True
        return f"status {status}", 400 <= status < 500 and status not in (408, 429)


def _pool_settings(settings: WebhookSettings) -> Upstream:
    return Upstream(
        url=settings.url,
        ca_file=settings.ca_file,
        proxy=settings.proxy,
        max_connections=1,
        connect_timeout=settings.timeout,
        first_byte_timeout=settings.timeout,
        idle_timeout=settings.timeout,
        total_timeout=settings.timeout,
        heartbeat=0,
        max_reply_bytes=_ANSWER_MAX,
    )


def sign(key: bytes, seconds: int, body: bytes) -> bytes:
    """The value of `aegis-signature`."""
    digest = hmac.new(key, b"%d.%s" % (seconds, body), "sha256").hexdigest()
    return b"t=%d,v1=%s" % (seconds, digest.encode())
