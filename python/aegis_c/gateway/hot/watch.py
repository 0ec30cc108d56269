"""Notices that the caller leaves, or stops reading, while its call is under way."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from aegis_c.gateway.hot.guard import ClientGone

if TYPE_CHECKING:
    from starlette.types import Receive

    from aegis_c.gateway.hot.pool import Connection


class Watch:
    """Watches one caller; a call that is answered at once never starts it."""

    __slots__ = ("_over", "_receive", "_task", "connection", "owner", "stalled")

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._task: asyncio.Task[None] | None = None
        self._over = False
        self.connection: Connection | None = None
        self.owner: asyncio.Task[object] | None = None  # is cancelled when the caller stalls
        self.stalled = False

    def attach(self, connection: Connection) -> None:
        """The call is asked on this connection, which ends when the caller leaves."""
        self.connection = connection
        connection.on_slow = self.start

    def start(self) -> None:
        """Begin to listen for the caller's disconnect."""
        if self._task is None and not self._over:
            self._task = asyncio.get_running_loop().create_task(self._listen())

    @property
    def left(self) -> bool:
        """Whether the caller left since start()."""
        return self._task is not None and self._task.done()

    async def pause(self, seconds: float) -> None:
        """Wait, while nothing is asked of an upstream. Raises ClientGone when the caller left."""
        self.start()
        assert self._task is not None
        done, _ = await asyncio.wait((self._task,), timeout=seconds)
        if done:
            raise ClientGone

    def stall(self) -> None:
        """The caller has not taken anything for too long: its call is ended."""
        self.stalled = True
        if self.owner is not None:
            self.owner.cancel()

    def stop(self) -> None:
        """The call is over. Nothing may point back from here: a cycle would outlive the call."""
        self._over = True
        self.connection = self.owner = None
        task, self._task = self._task, None
        if task is not None:
            task.cancel()

    async def _listen(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        if self.connection is not None:
            self.connection.fail(ClientGone())
