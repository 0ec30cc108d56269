"""After the reply: hands what the model said to the analyser, and records what it finds."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from aegis_c.gateway.background.analyser import analyse

if TYPE_CHECKING:
    from aegis_c.gateway.background.spawn import Background
    from aegis_c.gateway.evidence import Call, Evidence

log = logging.getLogger("aegis_c.gateway.analyst")


class Analyst:
    """Built once; ``all`` asks for an entry also when nothing was found."""

    def __init__(self, background: Background, evidence: Evidence, *, all: bool) -> None:
        self._background = background
        self._evidence = evidence
        self._all = all

    def look_at(self, call: Call, index: int, reply: bytes | list[bytes]) -> None:
        """Queue a reply that entry ``index`` recorded: its body, or the telling events of a stream.

        One without per-token probabilities has nothing to say.
        """
        if self._all or (b'"top_logprobs"' in reply if isinstance(reply, bytes) else bool(reply)):
            try:
                self._background.spawn(_session(call), self._run, call, index, reply)
            except RuntimeError:  # a straggler: the queue has been drained for the shutdown
                log.warning("call %s: not analysed: the gateway is shutting down", call.id)

    def _run(self, call: Call, index: int, reply: bytes | list[bytes]) -> None:
        """A background job: an analysis with nothing found is recorded only when asked for."""
        analysis = analyse(reply)
        if self._all or analysis.get("available"):
            self._evidence.analysis(call, index, analysis)


def _session(call: Call) -> tuple[str, bytes] | None:
    """A caller's session is its own: two keys may use one name."""
    if call.session is None or call.principal is None:
        return None
    return call.principal.key, call.session
