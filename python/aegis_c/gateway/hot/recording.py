"""How a call is recorded: the three evidence modes, one object each, built once.

The forwarder tells the mode what happens to a call; the mode makes the entries and waits for the
disk where it must. ``call.entry`` is set once an entry that the caller may rely on is durable: the
`call`, or the `intent` of a stream and of every call in write-ahead mode.

A log that fails while a call waits for it leaves the outcome unknown: what was submitted is
written again when the log is reopened, or at the next start, or is lost with the power. Then
``evidence.on_failure`` decides: the reply is withheld, or goes out without `aegis-entry`.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from aegis_c import LedgerError
from aegis_c.gateway.errors import ledger_unavailable, ledger_uncertain

if TYPE_CHECKING:
    from aegis_c import Commitment
    from aegis_c.gateway.evidence import Call, Evidence
    from aegis_c.gateway.hot.adapters.openai import EventReader, Usage
    from aegis_c.gateway.hot.admission import Admission
    from aegis_c.ledger import AsyncLedger

log = logging.getLogger("aegis_c.gateway.recording")


class Recording:
    """Everything is submitted before the reply goes out, and nothing waits for the disk."""

    writes_ahead = False  # whether before() may wait for the disk

    def __init__(self, evidence: Evidence, ledger: AsyncLedger, admission: Admission) -> None:
        self._evidence = evidence
        self._ledger = ledger
        self._admission = admission

    def entries(self, stream: bool) -> int:
        """Entries that a call can make: room for them is kept from its admission on."""
        return 2 if stream else 1

    async def before(self, call: Call) -> None:
        """The upstream is about to be asked. Raises Refusal."""

    def asked(self, call: Call, body: bytes) -> None:
        """The request has gone upstream: commit to it while the model works."""
        commitment = self._ledger.native.commitment(call.id, "request")
        commitment.update(body)
        call.request = commitment

    async def answer(
        self, call: Call, status: int, reply: bytes, answered: str | None, usage: Usage | None
    ) -> int | None:
        """A plain reply is about to go out. Raises Refusal when it must be withheld."""
        index = self._evidence.call(call, status, reply, answered=answered, usage=usage)
        self._made(call, index)
        call.recorded = True
        await self._confirm(call, index)
        return index

    async def begin(self, call: Call) -> None:
        """The headers of a stream are about to go out. Raises Refusal when they must not."""
        call.intent = self._evidence.intent(call, 200)
        self._made(call, call.intent)
        await self._confirm(call, call.intent)
        call.recorded = True

    def end(self, call: Call, how: str, response: Commitment, events: EventReader) -> int | None:
        """A stream is over; ``response`` commits to what was handed to the caller."""
        index = self._evidence.settle(
            call,
            how,
            response,
            events=events.count,
            answered=events.model,
            usage=events.usage,
        )
        call.owed -= 1
        self._admission.made()
        return index

    async def ended(self, call: Call, index: int | None) -> bool:
        """Before the last byte of a stream: whether the caller may see its orderly end."""
        return True

    async def refused(self, call: Call, index: int | None) -> None:
        """An admitted call is refused, and ``index`` is the entry that says so."""

    async def _confirm(self, call: Call, index: int | None) -> None:
        """Wait until the caller may rely on the entry. Raises Refusal."""

    def _made(self, call: Call, index: int | None) -> None:
        """An entry was submitted, or could not be: then a call that must not go on is refused."""
        if index is None and self._evidence.refuses:
            raise ledger_unavailable("evidence")
        call.owed -= 1
        self._admission.made()


class Durable(Recording):
    """A reply waits for the group commit of its entry, and names it; a stream ends after its own.

    A stream's headers wait for its intent. Refusals of calls that were not admitted never wait.
    """

    def __init__(self, evidence: Evidence, ledger: AsyncLedger, admission: Admission) -> None:
        super().__init__(evidence, ledger, admission)
        self._origin = ledger.native.origin

    async def ended(self, call: Call, index: int | None) -> bool:
        """See Recording; False when the settle is not known to be durable and must be."""
        return await self._durable(call, index) or not self._evidence.refuses

    async def refused(self, call: Call, index: int | None) -> None:
        """See Recording."""
        if await self._durable(call, index) and call.entry is None:
            self._name(call, index)

    async def _confirm(self, call: Call, index: int | None) -> None:
        if await self._durable(call, index):
            self._name(call, index)
        elif self._evidence.refuses:
            raise ledger_uncertain()

    async def _durable(self, call: Call, index: int | None) -> bool:
        """Wait for the disk; False when the entry is not known to have reached it."""
        if index is None:
            return False
        try:
            await self._ledger.durable(index)
        except LedgerError as error:
            log.error("call %s: whether entry %d is durable is unknown: %s", call.id, index, error)
            return False
        return True

    def _name(self, call: Call, index: int | None) -> None:
        call.entry = f"{self._origin}/{index}".encode()


class WriteAhead(Durable):
    """The intent of every call is durable before its upstream is asked, the settle before it ends.

    A call whose intent could not be recorded but which is served all the same
    (``evidence.on_failure = "serve"``) is recorded as in durable mode.
    """

    writes_ahead = True

    def entries(self, stream: bool) -> int:
        """An intent and a settle, whatever is asked for."""
        return 2

    async def before(self, call: Call) -> None:
        """The intent holds the commitment to the request: nothing was sent yet."""
        call.intent = self._evidence.intent(call, None)
        self._made(call, call.intent)
        if await self._durable(call, call.intent):
            self._name(call, call.intent)
        elif self._evidence.refuses:
            raise ledger_unavailable("evidence")

    def asked(self, call: Call, body: bytes) -> None:
        """The intent has the commitment already."""
        if call.intent is None:
            super().asked(call, body)

    async def answer(
        self, call: Call, status: int, reply: bytes, answered: str | None, usage: Usage | None
    ) -> int | None:
        """The settle of a plain reply holds its status."""
        if call.intent is None:
            return await super().answer(call, status, reply, answered, usage)
        index = self._evidence.settle(call, status, reply, answered=answered, usage=usage)
        self._made(call, index)
        call.recorded = True
        if not await self.ended(call, index):
            raise ledger_uncertain()
        return index

    async def begin(self, call: Call) -> None:
        """The intent is there, unless it could not be recorded."""
        if call.intent is None:
            await super().begin(call)
        call.recorded = True


MODES: dict[str, type[Recording]] = {
    "background": Recording,
    "durable": Durable,
    "write-ahead": WriteAhead,
}
