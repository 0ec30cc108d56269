"""Asks the upstreams until one answers: target, attempt, outcome, and the next attempt if any.

``targets.py`` says who is next, ``retry.py`` whether a call may be repeated, ``breaker.py`` whom to
leave alone. Everything here happens before the first byte of an answer goes to the caller.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from aegis_c.gateway.errors import Refusal, unavailable, unknown_model
from aegis_c.gateway.hot.phases import QUEUE
from aegis_c.gateway.hot.pool import (
    ConnectFailed,
    Connection,
    PoolBusy,
    PoolClosed,
    UpstreamError,
)
from aegis_c.gateway.hot.retry import Retries, retry_after

if TYPE_CHECKING:
    from aegis_c.gateway.evidence import Call
    from aegis_c.gateway.hot.targets import Target, Targets
    from aegis_c.gateway.hot.watch import Watch

log = logging.getLogger("aegis_c.gateway.dispatch")

_FAILED: Final = 500  # statuses from here on are failures of the target


class Exchange:
    """A call that a target has answered, at least with a head; close() it whatever happens."""

    __slots__ = ("_now", "_period", "connection", "target")

    def __init__(
        self, target: Target, period: int, connection: Connection, now: Callable[[], float]
    ) -> None:
        self.target = target
        self.connection = connection
        self._period = period
        self._now = now

    def __str__(self) -> str:
        return f"status {self.connection.status}"

    def close(self) -> None:
        """Release the connection, and tell the breaker how the answer went. Once only."""
        connection = self.connection
        if connection.busy:
            if connection.status < _FAILED:
                breaker = self.target.breaker
                tell = breaker.failed if connection.broke else breaker.succeeded
                tell(self._period, self._now())
            connection.release()


class Dispatcher:
    """Built once, used for every call of every endpoint."""

    def __init__(self, targets: Targets, retries: Retries, now: Callable[[], float]) -> None:
        self.targets = targets
        self.retries = retries
        self._now = now
        #: Known before anybody is asked: the one target, when there is but one.
        self.sole = targets.all[0].name if len(targets.all) == 1 else None

    async def ask(
        self,
        call: Call,
        path: bytes,
        head: bytes,
        body: bytes,
        watch: Watch,
        asked: Callable[[Call, bytes], None],
    ) -> Exchange:
        """Ask for an answer's head; ``asked`` is called whenever a request has been written.

        ``head`` is what follows the target's own part of the head. Raises UpstreamError, Refusal
        when no target can be asked, ClientGone.
        """
        retries = self.retries
        retries.call()
        target = self.targets.choose(call.model, self._now())
        if target is None:
            raise self._nobody(call)
        made = 0
        tried: list[Target] = []
        while True:
            call.provider = target.name
            outcome = await self._attempt(
                target, call, target.head(path) + head, body, watch, asked
            )
            if isinstance(outcome, Exchange):
                connection = outcome.connection
                if connection.status < 400 or not retries.put_off(
                    connection.status, connection.headers
                ):
                    return outcome
                wait = retries.wait(made, retry_after(connection.headers))
            else:
                wait = retries.wait(made, None) if isinstance(outcome, ConnectFailed) else None
            tried.append(target)
            following = None
            if retries.may(made):
                now = self._now()
                following = self.targets.choose(call.model, now, tried)
                if following is not None:
                    wait = 0.0
                elif wait is not None and target.breaker.ready(now):
                    following = target
            if following is None:
                if isinstance(outcome, Exchange):
                    return outcome
                raise outcome
            log.info("call %s: %s: %s; asking %s", call.id, target.name, outcome, following.name)
            if isinstance(outcome, Exchange):
                outcome.close()
            retries.take()
            made += 1
            self.targets.pausing += 1
            try:
                await watch.pause(wait or 0.0)
            finally:
                self.targets.pausing -= 1
            target = following

    async def _attempt(
        self,
        target: Target,
        call: Call,
        head: bytes,
        body: bytes,
        watch: Watch,
        asked: Callable[[Call, bytes], None],
    ) -> Exchange | UpstreamError:
        """One attempt; an error is returned when nothing was sent, and raised when it was."""
        breaker = target.breaker
        period = breaker.enter()
        pool = target.pool
        connection = None
        try:
            connection = await pool.open(head, body)
            watch.attach(connection)
            asked(call, body)
            call.phases.end(QUEUE)
            connection = await pool.answered(connection, head, body, watch.attach)
        except UpstreamError as error:
            watch.connection = None
            if isinstance(error, (PoolBusy, PoolClosed)):
                breaker.leave(period)
            else:
                breaker.failed(period, self._now())
            if not error.unsent:
                raise
            return error
        except BaseException:
            breaker.leave(period)
            if connection is not None:
                connection.release()
            raise
        if connection.status >= _FAILED:
            breaker.failed(period, self._now())
        elif breaker.trying:  # everybody else waits for this one: its end may be far off
            breaker.succeeded(period, self._now())
        return Exchange(target, period, connection, self._now)

    def _nobody(self, call: Call) -> Refusal:
        targets = self.targets
        if not targets.serves(call.model):
            return unknown_model(call.model)
        return unavailable(targets.wait(call.model, self._now()))
