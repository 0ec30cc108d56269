"""Alerts: what the analyser found, kept for GET /admin/alerts in a bounded file of each shard.

One JSON object a line, newest last, in `private/<shard>/alerts.jsonl`; when that is full it becomes
`alerts.jsonl.1`. Lines are written by a thread, a moment after their `analysis` entries were
submitted, so the event loop never waits for that disk. The ledger is the record; this is the copy
that is quick to ask: without an fsync, it survives the end of the process, not of the machine.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final

import msgspec

log = logging.getLogger("aegis_c.gateway.alerts")

FILE: Final = "alerts.jsonl"
FILE_MAX: Final = 1 << 20  # octets of one file; there are two
_PENDING_MAX: Final = 1000  # alerts that wait for the disk
_YIELD_EVERY: Final = 50  # lines after which a reading thread lets others have the interpreter


class Alert(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One finding or several about one reply (docs/formats.md)."""

    id: str
    time: str
    request_id: str
    shard: str
    of: int
    index: int | None = None
    tenant: str | None = None
    key: str | None = None
    model: str | None = None
    findings: list[dict[str, Any]]


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Alert).decode


class Alerts:
    """The alerts of one shard; used from its event loop."""

    def __init__(self, folder: Path) -> None:
        self.shard = folder.name
        self._path = folder / FILE
        self._pending: deque[bytes] = deque()
        self._writing: asyncio.Task[None] | None = None
        self._begun = False  # a line of this run has been written
        self.raised = 0
        self.lost = 0  # could not be written, and are in the ledger only

    def add(self, alert: Alert) -> None:
        """Keep an alert; it is on its way to the file when this returns."""
        self.raised += 1
        self._pending.append(_encode(alert) + b"\n")
        if len(self._pending) > _PENDING_MAX:  # a disk that does not answer
            self._pending.popleft()
            self.lost += 1
        if self._writing is None:
            self._writing = asyncio.get_running_loop().create_task(self._write())

    async def flush(self) -> None:
        """Wait until everything so far was written, or could not be."""
        if self._writing is not None:
            await asyncio.shield(self._writing)

    async def close(self, seconds: float) -> None:
        """Write what is left."""
        try:
            await asyncio.wait_for(self.flush(), seconds)
        except TimeoutError:
            log.error("%d alerts were not written to %s", len(self._pending), self._path)

    def pending(self) -> list[Alert]:
        """Those that are not in the file yet."""
        return [_decode(line) for line in self._pending]

    async def _write(self) -> None:
        try:
            while self._pending:
                lines = list(self._pending)
                data = b"".join(lines)
                try:
                    # An earlier run may have died inside its last line.
                    await asyncio.to_thread(
                        _append, self._path, data if self._begun else b"\n" + data
                    )
                except OSError as error:
                    self.lost += len(lines)
                    log.error("alerts are not kept in %s: %s", self._path, error)
                else:
                    self._begun = True
                while lines and self._pending and self._pending[0] is lines[0]:
                    self._pending.popleft()
                    del lines[0]
        finally:
            self._writing = None


def _append(path: Path, data: bytes) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
    fd = os.open(path, flags, 0o600)
    try:
        if os.fstat(fd).st_size + len(data) > FILE_MAX:
            os.replace(path, _older(path))
            os.close(fd)
            fd = os.open(path, flags, 0o600)
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]
    finally:
        os.close(fd)


def _older(path: Path) -> Path:
    return path.with_name(path.name + ".1")


def newest(
    folders: Iterable[Path], pending: list[Alert], *, since: str, limit: int
) -> tuple[list[Alert], bool]:
    """The newest ``limit`` alerts of all ``folders`` and ``pending`` from ``since`` on; whether
    there are more. For a thread: it reads files. ``since`` is written as in alerts."""
    found = {alert.id: alert for alert in pending}
    for folder in folders:
        found |= {alert.id: alert for alert in _read(folder / FILE)}
    chosen = [alert for alert in found.values() if alert.time >= since]
    chosen.sort(key=lambda alert: (alert.time, alert.id), reverse=True)
    return chosen[:limit], len(chosen) > limit


def _read(path: Path) -> Iterator[Alert]:
    # The file that grows first: it may become the older one in between.
    for one in (path, _older(path)):
        try:
            lines = one.read_bytes().split(b"\n")
        except OSError:
            continue
        for number, line in enumerate(lines):
            if number % _YIELD_EVERY == 0:
                time.sleep(0)
            try:
                yield _decode(line)
            except msgspec.DecodeError:
                continue  # empty, or the last one of a process that was killed
