"""What the gateway says on standard error: one JSON object a line, one line a call.

A line never holds a prompt, an answer or a key: of a call it has what its entry has, names and
numbers. Lines of calls are gathered and written by a thread, so a reader that stops reading never
stops the event loop; what then no longer fits is counted and said. Warnings that repeat are
counted too: a broken disk must not fill another one.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import msgspec

from aegis_c.gateway.evidence import timestamp
from aegis_c.gateway.hot.phases import PHASES

if TYPE_CHECKING:
    from aegis_c.gateway.evidence import Call

_GATHER: Final = 0.1  # seconds of calls that are written at once
_HELD_MAX: Final = 4 << 20  # bytes of lines that wait for a slow reader
_SAME_MAX: Final = 10  # warnings of one kind ...
_SAME_SECONDS: Final = 10.0  # ... in so many seconds

_encode = msgspec.json.Encoder().encode


class JsonLines(logging.Formatter):
    """A log record as one line of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": _timestamp(record.created),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        repeated = getattr(record, "repeated", 0)
        if repeated:
            line["repeated"] = repeated
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return _encode(line).decode()


class Repeats(logging.Filter):
    """Lets a few warnings of one kind through, then counts; the next one carries the count."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._now = now
        self._seen: dict[tuple[str, str], list[float]] = {}  # [since, let through, held back]

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno < logging.WARNING:
            return True
        kind = (record.name, str(record.msg))
        now = self._now()
        seen = self._seen.get(kind)
        if seen is None or now - seen[0] > _SAME_SECONDS:
            record.repeated = 0 if seen is None else int(seen[2])
            if len(self._seen) > 1024:
                self._seen.clear()
            self._seen[kind] = [now, 1, 0]
            return True
        if seen[1] < _SAME_MAX:
            seen[1] += 1
            return True
        seen[2] += 1
        return False


def configure(style: str) -> None:
    """Send this process's log to standard error, as ``json`` or ``text``."""
    handler = logging.StreamHandler(sys.stderr)
    handler.addFilter(Repeats())
    if style == "json":
        handler.setFormatter(JsonLines())
    else:
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)


class _Timing(msgspec.Struct, omit_defaults=True):
    total_us: int
    upstream_us: int = 0  # 0: none was asked


#: A member for each phase that the call came to, in nanoseconds.
_Spent = msgspec.defstruct("_Spent", [(name, int, 0) for name in PHASES], omit_defaults=True)


class _Line(msgspec.Struct):
    """The line of one call; ``outcome``: how its stream ended, or why it was refused."""

    time: str
    id: str
    endpoint: str
    status: int
    tenant: str | None
    key: str | None
    model: str | None
    outcome: str | None
    timing: _Timing
    phases_ns: msgspec.Struct  # a _Spent
    level: str = "info"
    logger: str = "aegis_c.gateway.calls"


class CallLog:
    """One line for each governed call; used from the event loop alone."""

    def __init__(self, fd: int = 2) -> None:
        self._fd = fd
        self._lines: list[bytes] = []
        self._held = 0
        self._writing: asyncio.Future[None] | None = None
        self._due = False
        self.dropped = 0

    def write(self, call: Call, status: int, took: int) -> None:
        """Note that ``call`` was answered with ``status`` after ``took`` nanoseconds."""
        principal, model = call.principal, call.model
        text = _encode(
            _Line(
                timestamp(),
                call.id,
                call.endpoint,
                status,
                None if principal is None else principal.tenant,
                None if principal is None else principal.key,
                None if model is None else model[:256],
                call.outcome,
                _Timing(took // 1000, call.upstream_ns // 1000),
                _Spent(*call.phases.spent),
            )
        )
        if self._held + len(text) > _HELD_MAX:
            self.dropped += 1
            return
        self._lines.append(text)
        self._held += len(text) + 1
        if not self._due:
            self._due = True
            asyncio.get_running_loop().call_later(_GATHER, self._flush)

    def _flush(self) -> None:
        self._due = False
        if self._writing is not None and not self._writing.done():
            self._due = True
            asyncio.get_running_loop().call_later(_GATHER, self._flush)
            return
        loop = asyncio.get_running_loop()
        self._writing = loop.run_in_executor(None, _write, self._fd, self._take())

    async def close(self) -> None:
        """Write what is left."""
        if self._writing is not None:
            await self._writing
        data = self._take()
        if data:
            await asyncio.to_thread(_write, self._fd, data)

    def _take(self) -> bytes:
        """What is to be written, with a word on what was dropped."""
        lines, self._lines, self._held = self._lines, [], 0
        if self.dropped:
            lines.append(_encode({"level": "warning", "calls_not_logged": self.dropped}))
            self.dropped = 0
        return b"\n".join([*lines, b""]) if lines else b""


def _write(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(fd, view) :]
        except OSError:
            return  # nobody reads the log any more


def _timestamp(seconds: float) -> str:
    whole = int(seconds)
    text = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(whole))
    return f"{text}.{int((seconds - whole) * 1e6):06d}Z"
