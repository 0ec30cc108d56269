"""A drop-in for the Rust module `aegis_rust`: the same names, formats and roots over our core.

    import aegis_c.compat
    aegis_c.compat.install()      # from here on, `import aegis_rust` finds this module

A program written for that module then runs unchanged. What is not listed here stays absent, since
callers catch that and fall back. Two deliberate differences: appending an empty string to a WAL
writes nothing (there it writes a frame that looks like the end of the log, and all later ones are
lost), and a frame is on disk before `append` returns. New programs use `aegis_c` itself.
"""

import fcntl
import operator
import os
import struct
import sys
import threading
import time
import zlib
from collections import deque
from types import TracebackType
from typing import Self, SupportsIndex

from aegis_c._native import _hmac_sha256 as hmac_sign
from aegis_c._native import _LegacyMmrAccumulator as MmrAccumulator
from aegis_c._native import _sha256_hex as hash_sha256

__all__ = [
    "AuditRingBuffer",
    "MmrAccumulator",
    "RustRateLimiter",
    "RustWal",
    "hash_sha256",
    "hash_sha256_fast",
    "hmac_sign",
]

__version__ = "5.0.1"

hash_sha256_fast = hash_sha256

_MAX_USIZE = 2**64 - 1


def install(name: str = "aegis_rust") -> None:
    """Registers this module as `name`, so that importing that finds this one.

    Raises ImportError when a real module of that name has been imported already: its types may be
    in use.
    """
    module = sys.modules[__name__]
    if sys.modules.setdefault(name, module) is not module:
        raise ImportError(f"{name} has been imported already: call install() before", name=name)


def _unsigned(value: SupportsIndex, name: str) -> int:
    """An int within 0 .. 2**64 - 1: TypeError for a float, OverflowError for other ints."""
    number = operator.index(value)
    if not 0 <= number <= _MAX_USIZE:
        raise OverflowError(f"{name} must be within 0 .. 2**64 - 1, not {number}")
    return number


def _text(value: str, name: str) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{name} must be str, not {type(value).__name__}")
    return value


class RustWal:
    """An append-only file of text frames, of a fixed size, with one writer.

    A frame is the CRC-32 (IEEE) of the payload, its length, both u32 little-endian, and the
    payload, UTF-8; zeros follow the last frame. Made by `RustWal.open`. Safe to share between
    threads. The lock is freed by `close()`, or when the object goes away.
    """

    _HEADER = struct.Struct("<II")
    _DEFAULT_CAPACITY = 256 << 20
    _MAX_CAPACITY = 2 << 30

    _fd: int = -1

    def __new__(cls, *args: object, **kwargs: object) -> Self:
        raise TypeError("use RustWal.open(path, capacity_bytes=None)")

    @staticmethod
    def open(path: str, capacity_bytes: int | None = None) -> "RustWal":
        """Opens or creates the file at `path` with room for `capacity_bytes` (256 MiB).

        An existing file keeps its frames up to the first bad one, and its size when it is larger.

        Raises ValueError over 2 GiB or below one header, RuntimeError when another handle has the
        file, TypeError, OverflowError for a negative capacity, OSError.
        """
        _text(path, "path")
        capacity = RustWal._DEFAULT_CAPACITY
        if capacity_bytes is not None:
            capacity = _unsigned(capacity_bytes, "capacity_bytes")
        if not RustWal._HEADER.size <= capacity <= RustWal._MAX_CAPACITY:
            raise ValueError(
                f"capacity_bytes must be within {RustWal._HEADER.size} .. "
                f"{RustWal._MAX_CAPACITY} (2 GiB), not {capacity}"
            )
        wal = object.__new__(RustWal)
        wal._fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            wal._begin(path, capacity)
        except BaseException:
            wal.close()
            raise
        return wal

    def _begin(self, path: str, capacity: int) -> None:
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RuntimeError(
                f"{path}: another handle has this log (single-writer): close it first"
            ) from None
        self._path = path
        self._pid = os.getpid()
        self._mutex = threading.Lock()
        self._broken = False
        size = os.fstat(self._fd).st_size
        self._capacity = max(size, capacity)
        if size < self._capacity:
            os.ftruncate(self._fd, self._capacity)
            os.fsync(self._fd)
            self._sync_folder()
        self._pos = self._scan()[1]

    def _sync_folder(self) -> None:
        folder = os.open(os.path.dirname(self._path) or ".", os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def _scan(self) -> tuple[list[str], int]:
        """The good frames from the start of the file, and the offset behind them."""
        frames: list[str] = []
        pos = 0
        while pos + self._HEADER.size <= self._capacity:
            header = self._read(pos, self._HEADER.size)
            if len(header) < self._HEADER.size:
                break
            crc, length = self._HEADER.unpack(header)
            end = pos + self._HEADER.size + length
            if (crc == 0 and length == 0) or end > self._capacity:
                break
            payload = self._read(pos + self._HEADER.size, length)
            if len(payload) != length or zlib.crc32(payload) != crc:
                break
            try:
                frames.append(payload.decode())
            except UnicodeDecodeError:
                break
            pos = end
        return frames, pos

    def _read(self, offset: int, count: int) -> bytes:
        parts: list[bytes] = []
        while count > 0:
            part = os.pread(self._fd, count, offset)
            if not part:
                break
            parts.append(part)
            offset += len(part)
            count -= len(part)
        return b"".join(parts)

    def _check(self) -> None:
        if self._fd < 0:
            raise RuntimeError(f"{self._path}: this log is closed")
        if self._pid != os.getpid():
            raise RuntimeError(
                f"{self._path}: this log belongs to the parent process (single-writer)"
            )

    def append(self, payload: str) -> int:
        """Writes one frame and returns its offset once it is on disk.

        An empty string writes nothing and returns `write_pos()`.

        Raises TypeError unless payload is str, OverflowError when there is no room, OSError when
        the disk fails, RuntimeError from then on (what the file holds is unknown until it is opened
        again).
        """
        data = _text(payload, "payload").encode()
        with self._mutex:
            self._check()
            if self._broken:
                raise RuntimeError(f"{self._path}: an earlier write failed; open the log again")
            pos = self._pos
            end = pos + self._HEADER.size + len(data)
            if not data:
                return pos
            if end > self._capacity:
                raise OverflowError(
                    f"{self._path}: no room for a frame of {end - pos} bytes, "
                    f"{self._capacity - pos} of {self._capacity} are left"
                )
            # The header of zeros behind the frame ends the log, whatever was there before.
            tail = bytes(min(self._HEADER.size, self._capacity - end))
            frame = self._HEADER.pack(zlib.crc32(data), len(data)) + data + tail
            self._broken = True
            done = 0
            while done < len(frame):
                done += os.pwrite(self._fd, memoryview(frame)[done:], pos + done)
            os.fdatasync(self._fd)
            self._broken = False
            self._pos = end
            return pos

    def read_all(self) -> list[str]:
        """The payloads of all frames, oldest first."""
        with self._mutex:
            self._check()
            return self._scan()[0]

    def write_pos(self) -> int:
        """The offset of the next frame, in bytes."""
        return self._pos

    def capacity(self) -> int:
        """The size of the file, in bytes."""
        return self._capacity

    def remaining(self) -> int:
        """Bytes behind the last frame."""
        return self._capacity - self._pos

    def close(self) -> None:
        """Closes the file and frees the lock; any number of calls."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()


class RustRateLimiter:
    """Token buckets by key: `capacity` tokens, refilled by `refill_rate` tokens a second.

    Both are ints from 0 on: TypeError for a float, OverflowError for a negative one. Safe to share
    between threads.
    """

    def __init__(self, capacity: int, refill_rate: int) -> None:
        self._capacity = _unsigned(capacity, "capacity")
        self._refill_rate = _unsigned(refill_rate, "refill_rate")
        self._mutex = threading.Lock()
        self._buckets: dict[str, tuple[float, float]] = {}  # key -> tokens, time.monotonic()

    def check_and_consume(self, key: str) -> bool:
        """Takes one token of `key`; False when there is none."""
        _text(key, "key")
        with self._mutex:
            now = time.monotonic()
            tokens, then = self._buckets.get(key, (float(self._capacity), now))
            tokens = min(float(self._capacity), tokens + (now - then) * self._refill_rate)
            allowed = tokens >= 1.0
            self._buckets[key] = (tokens - 1.0 if allowed else tokens, now)
            return allowed

    def evict_stale(self, max_age_secs: int) -> int:
        """Forgets the keys not asked for within `max_age_secs`; returns how many those were."""
        age = _unsigned(max_age_secs, "max_age_secs")
        with self._mutex:
            oldest = time.monotonic() - age
            stale = [key for key, (_, then) in self._buckets.items() if then < oldest]
            for key in stale:
                del self._buckets[key]
            return len(stale)

    def bucket_count(self) -> int:
        """How many keys are known."""
        return len(self._buckets)


class AuditRingBuffer:
    """The last `capacity` texts; an older one makes room for a new one. Safe to share."""

    def __init__(self, capacity: int = 65536) -> None:
        """Raises ValueError for 0, OverflowError for a negative capacity."""
        self._capacity = _unsigned(capacity, "capacity")
        if self._capacity == 0:
            raise ValueError("capacity must be at least 1")
        self._mutex = threading.Lock()
        self._items: deque[str] = deque()
        self._enqueued = 0
        self._dropped = 0

    def enqueue(self, json: str) -> bool:
        """Adds one text; False when the oldest was dropped for it."""
        _text(json, "json")
        with self._mutex:
            full = len(self._items) >= self._capacity
            if full:
                self._items.popleft()
                self._dropped += 1
            self._items.append(json)
            self._enqueued += 1
            return not full

    def drain(self, max_items: int) -> list[str]:
        """Removes and returns the oldest, at most `max_items`."""
        count = _unsigned(max_items, "max_items")
        with self._mutex:
            return [self._items.popleft() for _ in range(min(count, len(self._items)))]

    def drain_all(self) -> list[str]:
        """Removes and returns all, oldest first."""
        with self._mutex:
            items = list(self._items)
            self._items.clear()
            return items

    def len(self) -> int:
        """How many are held."""
        return len(self._items)

    def is_empty(self) -> bool:
        return not self._items

    def capacity(self) -> int:
        return self._capacity

    def fill_ratio(self) -> float:
        """len() / capacity(), within 0.0 .. 1.0."""
        return len(self._items) / self._capacity

    def enqueue_count(self) -> int:
        """Texts enqueued since the counters were reset, dropped ones included."""
        return self._enqueued

    def drop_count(self) -> int:
        """Texts dropped since the counters were reset."""
        return self._dropped

    def reset_counters(self) -> None:
        with self._mutex:
            self._enqueued = self._dropped = 0
