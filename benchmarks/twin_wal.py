"""What a Python user would write: a group-commit log in 60 lines, struct + crc32 + fdatasync."""

from __future__ import annotations

import asyncio
import os
import struct
import threading
import zlib
from pathlib import Path


class TwinWal:
    """append() takes a lock and a list; a thread writes what has gathered and syncs it."""

    def __init__(self, path: Path) -> None:
        self._loop = asyncio.get_running_loop()
        self._fd = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600)
        self._pending: list[bytes] = []
        self._waiters: list[tuple[int, asyncio.Future[None]]] = []
        self._seq = self._durable = 0
        self._changed = threading.Condition()
        self._stop = False
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def append(self, payload: bytes) -> int:
        record = struct.pack("<II", len(payload), zlib.crc32(payload)) + payload
        with self._changed:
            self._pending.append(record)
            self._seq += 1
            self._changed.notify()
            return self._seq

    def durable(self, seq: int) -> asyncio.Future[None]:
        future = self._loop.create_future()
        if seq <= self._durable:
            future.set_result(None)
        else:
            self._waiters.append((seq, future))
        return future

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._pending and not self._stop:
                    self._changed.wait()
                if not self._pending:
                    return
                batch, self._pending, last = self._pending, [], self._seq
            os.write(self._fd, b"".join(batch))
            os.fdatasync(self._fd)
            self._loop.call_soon_threadsafe(self._resolve, last)

    def _resolve(self, last: int) -> None:
        self._durable = last
        waiting, self._waiters = self._waiters, []
        for seq, future in waiting:
            if seq <= last:
                if not future.done():
                    future.set_result(None)
            else:
                self._waiters.append((seq, future))

    async def close(self) -> None:
        with self._changed:
            self._stop = True
            self._changed.notify()
        await self._loop.run_in_executor(None, self._thread.join)
        os.close(self._fd)
