"""Where the time of one call goes: a stamp at the end of each phase.

Phases follow each other and do not overlap, so they add up. `queue` is the wait for admission and
for a free upstream connection, until the request is written on it; `first_byte` from there to the
reply's head; `upstream` from the head to the end of the reply or stream, its hand-over to the
caller included.
"""

from __future__ import annotations

from time import perf_counter_ns
from typing import Final

PHASES: Final = (
    "guard",
    "auth",
    "body",
    "firewall",
    "limits",
    "queue",
    "first_byte",
    "upstream",
    "evidence",
)
GUARD, AUTH, BODY, FIREWALL, LIMITS, QUEUE, FIRST_BYTE, UPSTREAM, EVIDENCE = range(len(PHASES))


class Phases:
    """The stop-watch of one call."""

    __slots__ = ("_since", "spent")

    def __init__(self, started: int) -> None:
        self._since = started
        self.spent = [0] * len(PHASES)  # nanoseconds

    def end(self, phase: int) -> None:
        """The time since the last stamp belongs to ``phase``."""
        now = perf_counter_ns()
        self.spent[phase] += now - self._since
        self._since = now

    def server_timing(self) -> bytes:
        """The value of a `server-timing` header: milliseconds so far."""
        shown = zip(PHASES, self.spent, strict=True)
        return ", ".join(f"{name};dur={ns / 1e6:.3f}" for name, ns in shown if ns).encode()
