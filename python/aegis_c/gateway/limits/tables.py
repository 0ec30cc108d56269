"""Where the limiters' tables live: shared memory for all workers, and a copy that outlives it.

The tables lie in a memory file system, in a directory of this user alone, under a name derived
from the data directory: workers of one gateway share them. A reboot takes that memory away, and
must not give a day's budget back; so limits by the hour or day are copied to the data directory
now and then, and a start that finds no table begins with that copy. Its times are moved to the
clock of this boot when it is opened (``core/limit/area.h``).
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import shutil
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

from aegis_c import ConcurrencyLimiter, LimitError, RateLimiter

log = logging.getLogger("aegis_c.gateway.limits")

COPY: Final = "limits.table"
COPY_EVERY: Final = 15.0  # seconds of charges that a loss of power can forget
_WORKERS: Final = 128
_CALL_SLOTS: Final = 4096


class Tables:
    """The tables of one gateway, opened by each of its workers."""

    def __init__(self, data: Path, *, directory: Path | None, slots: int) -> None:
        """Raises LimitError or OSError."""
        if directory is None:
            directory = Path(f"/dev/shm/aegis-{os.geteuid()}")
        name = hashlib.sha256(os.fsencode(os.path.realpath(data))).hexdigest()[:16]
        self._path = directory / f"{name}.limits"
        self._copy = data / "private" / COPY
        self._lasting = False
        self._saving = threading.Lock()
        self._copier: asyncio.Task[None] | None = None
        restored = self._restore()
        try:
            self.rates = RateLimiter(self._path, slots=slots)
        except LimitError as error:
            if not restored:
                raise
            aside = self._copy.with_suffix(".unusable")
            log.error("limits begin anew: the copy of their table, now %s: %s", aside, error)
            self._path.unlink()
            self._copy.rename(aside)
            self.rates = RateLimiter(self._path, slots=slots)
        self.calls = ConcurrencyLimiter(
            directory / f"{name}.calls", slots=_CALL_SLOTS, workers=_WORKERS
        )
        self.calls.reap()  # of workers that died; who is refused looks for dead ones, too

    def keep(self, lasting: bool) -> None:
        """From now on, copy the table now and then, if some limit lasts an hour or more."""
        self._lasting = lasting
        if lasting and self._copier is None:
            self._copier = asyncio.get_running_loop().create_task(self._copy_on())

    async def close(self) -> None:
        """The last copy. Whoever still holds a place or a reservation may give it back."""
        if self._copier is not None:
            self._copier.cancel()
            self._copier = None
        if self._lasting:
            await asyncio.to_thread(self.save)

    async def _copy_on(self) -> None:
        """Workers take turns by the copy's age."""
        while True:
            await asyncio.sleep(COPY_EVERY)
            if self._lasting:
                await asyncio.to_thread(self._save_when_due)

    def save(self) -> None:
        """Copy the table to the data directory, whole or not at all. Logs what fails."""
        new = self._copy.with_suffix(f".{os.getpid()}.new")
        try:
            with self._saving:
                with open(self._path, "rb") as table, open(new, "wb", opener=_private) as copy:
                    shutil.copyfileobj(table, copy, 1 << 20)
                    os.fsync(copy.fileno())
                new.rename(self._copy)
        except OSError as error:
            log.error("the table of limits could not be copied: %s", error)
            with suppress(OSError):
                new.unlink()

    def _save_when_due(self) -> None:
        with suppress(OSError):
            if time.time() - self._copy.stat().st_mtime < COPY_EVERY / 2:
                return
        self.save()

    def _restore(self) -> bool:
        """Put the copy where a table is expected and none is; true when it now lies there."""
        if self._path.exists() or not self._copy.exists():
            return False
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        new = self._path.with_suffix(f".{os.getpid()}.new")
        try:
            with open(self._copy, "rb") as copy, open(new, "wb", opener=_private) as table:
                shutil.copyfileobj(copy, table, 1 << 20)
            os.link(new, self._path)  # unlike a rename, never over another worker's
        except FileExistsError:
            return False
        finally:
            new.unlink(missing_ok=True)
        log.warning("the table of limits of before the last boot is in force again")
        return True


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW, 0o600)
