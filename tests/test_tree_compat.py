"""aegis_c.compat, the drop-in for the module `aegis_rust`: its roots, file format, errors."""

from __future__ import annotations

import gc
import hashlib
import hmac
import os
import random
import struct
import subprocess
import sys
import textwrap
import threading
import time
import zlib
from pathlib import Path
from typing import Any

import pytest

from aegis_c import compat

pytestmark = pytest.mark.native

SURFACE = {
    "MmrAccumulator": {"add_leaf", "get_leaf_count", "get_root_hash", "hash_scheme"},
    "RustWal": {"append", "capacity", "open", "read_all", "remaining", "write_pos"},
    "RustRateLimiter": {"bucket_count", "check_and_consume", "evict_stale"},
    "AuditRingBuffer": {
        "capacity",
        "drain",
        "drain_all",
        "drop_count",
        "enqueue",
        "enqueue_count",
        "fill_ratio",
        "is_empty",
        "len",
        "reset_counters",
    },
}


# --- the surface ---


def test_the_surface() -> None:
    for name, members in SURFACE.items():
        public = {n for n in dir(getattr(compat, name)) if not n.startswith("_")}
        assert public - {"close"} == members
    assert set(compat.__all__) == {*SURFACE, "hash_sha256", "hash_sha256_fast", "hmac_sign"}
    assert compat.__version__ == "5.0.1"
    assert not hasattr(compat, "MerkleTree")


def test_a_program_that_imports_the_old_name_runs() -> None:
    program = textwrap.dedent(
        """
        import aegis_c.compat
        aegis_c.compat.install()
        aegis_c.compat.install()          # again is nothing

        import aegis_rust
        from aegis_rust import MmrAccumulator, RustWal
        assert aegis_rust.__version__ == "5.0.1"
        try:
            from aegis_rust import SomethingElse
        except ImportError:
            pass                          # callers catch this and fall back
        else:
            raise AssertionError
        accumulator = MmrAccumulator()
        roots = [accumulator.add_leaf(data) for data in (b"leaf0", b"leaf1", b"leaf2")]
        assert roots[-1].startswith("1da276a3") and roots[-1].endswith("09f2")
        assert aegis_rust.hash_sha256(b"")[:8] == "e3b0c442"
        """
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_install_refuses_beside_the_real_module(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "some_module", sys)
    with pytest.raises(ImportError, match="some_module has been imported already"):
        compat.install("some_module")


# --- the accumulators ---


def hexdigest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def slow_root(scheme: str, leaves: list[bytes]) -> str:
    """The root by the definitions: every subtree is hashed anew."""
    if not leaves:
        return "0" * 64

    def subtree(part: list[bytes]) -> bytes:
        if scheme == "v1-asciihex":
            if len(part) == 1:
                return hexdigest(part[0]).encode()
            half = len(part) // 2
            return hexdigest(subtree(part[:half]) + subtree(part[half:])).encode()
        if len(part) == 1:
            return hashlib.sha256(b"\x00" + part[0]).digest()
        half = len(part) // 2
        return hashlib.sha256(b"\x01" + subtree(part[:half]) + subtree(part[half:])).digest()

    peaks = []
    start = 0
    for height in reversed(range(len(leaves).bit_length())):
        if len(leaves) >> height & 1:
            peaks.append(subtree(leaves[start : start + 2**height]))
            start += 2**height
    return hexdigest((b"" if scheme == "v1-asciihex" else b"\x02") + b"".join(peaks))


SCHEMES = ["v1-asciihex", "v2-binary-domain-separated"]


@pytest.mark.parametrize(
    ("scheme", "expected"),
    [
        (
            None,
            [
                "b7a84d0ef75f3165fa7f4b17e764e9456843f8a0dff30ef8dd7f70516bd2e883",
                "77b451fbe119447f3a75cb9c4844284965822bed15a68df43c07bf5e66ce9140",
                "1da276a388c713ff3ec7158d1df871e8b669be900259b41c2b612981249009f2",
            ],
        ),
        (
            "v2-binary-domain-separated",
            [
                "6df17a931b8eec697fae2d7cb8f7c3b92b5572060051b827c55966993f61122c",
                "919126b01d2b59e4682b49a0ea5448d65a10c70ef5a54b9d216e93bc9e256094",
                "4e73aac8abb71c8846a8a02f1537a0c9f9a71329a023f090f6c15f65d1257e12",
            ],
        ),
    ],
)
def test_published_roots(scheme: str | None, expected: list[str]) -> None:
    accumulator = compat.MmrAccumulator(scheme)
    assert accumulator.get_root_hash() == "0" * 64
    assert [accumulator.add_leaf(b"leaf%d" % n) for n in range(3)] == expected
    assert accumulator.get_root_hash() == expected[-1]
    assert accumulator.get_leaf_count() == 3
    assert accumulator.hash_scheme == (scheme or "v1-asciihex")


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_root_to_300(scheme: str, rng: random.Random) -> None:
    leaves = [
        rng.randbytes(rng.choice([0, 1, 5, 31, 32, 54, 55, 56, 63, 64, 200])) for _ in range(300)
    ]
    accumulator = compat.MmrAccumulator(hash_scheme=scheme)
    for size, leaf in enumerate(leaves, 1):
        assert accumulator.add_leaf(data=leaf) == slow_root(scheme, leaves[:size])
    assert accumulator.get_root_hash() == slow_root(scheme, leaves)


def test_bad_arguments_of_the_accumulator() -> None:
    make: Any = compat.MmrAccumulator
    with pytest.raises(ValueError, match="unknown hash_scheme 'v3'"):
        make("v3")
    with pytest.raises(TypeError):
        make(7)
    accumulator = make()
    for bad in ("text", bytearray(b"x"), None, 7):
        with pytest.raises(TypeError, match="must be bytes"):
            accumulator.add_leaf(bad)
    with pytest.raises(TypeError):
        accumulator.add_leaf()
    with pytest.raises(TypeError):
        accumulator.add_leaf(other=b"x")
    assert accumulator.get_leaf_count() == 0


def test_functions(rng: random.Random) -> None:
    for length in (0, 1, 55, 56, 64, 1000, 100_000):
        data, key = rng.randbytes(length), rng.randbytes(length // 2)
        assert compat.hash_sha256(data) == compat.hash_sha256_fast(data) == hexdigest(data)
        assert compat.hmac_sign(key, data) == hmac.digest(key, data, "sha256")
    call: Any = compat
    for bad in ("text", bytearray(3), None):
        with pytest.raises(TypeError):
            call.hash_sha256(bad)
        with pytest.raises(TypeError):
            call.hmac_sign(bad, b"")
        with pytest.raises(TypeError):
            call.hmac_sign(b"", bad)


# --- the write-ahead log ---


def frame(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<II", zlib.crc32(data), len(data)) + data


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "log.wal")


def test_offsets_and_the_format_of_the_file(path: str) -> None:
    wal = compat.RustWal.open(path, 4096)
    assert [wal.append(text) for text in ("abc", "dé", "next")] == [0, 11, 22]
    assert wal.write_pos() == 34
    assert wal.capacity() == 4096
    assert wal.remaining() == 4096 - 34
    assert wal.read_all() == ["abc", "dé", "next"]
    content = frame("abc") + frame("dé") + frame("next")
    assert Path(path).read_bytes() == content + bytes(4096 - len(content))
    assert os.stat(path).st_mode & 0o777 == 0o600


def test_an_existing_file_opens_and_goes_on(path: str) -> None:
    content = frame("one") + frame("two")
    Path(path).write_bytes(content + bytes(100))
    wal = compat.RustWal.open(path)
    assert wal.capacity() == 256 << 20
    assert wal.read_all() == ["one", "two"]
    assert wal.append("three") == len(content)
    del wal
    gc.collect()
    assert compat.RustWal.open(path, 4096).capacity() == 256 << 20  # a larger file keeps its size
    assert compat.RustWal.open(path, 4096).read_all() == ["one", "two", "three"]


def test_an_empty_append_loses_nothing(path: str) -> None:
    with compat.RustWal.open(path, 4096) as wal:
        assert wal.append("") == 0
        assert wal.append("before") == 0
        assert wal.append("") == wal.write_pos() == 14
        assert wal.append("after") == 14
        assert wal.read_all() == ["before", "after"]
    assert compat.RustWal.open(path).read_all() == ["before", "after"]


def test_a_bad_frame_ends_the_log(path: str) -> None:
    good, next_ones = frame("good"), frame("bad!") + frame("stale")
    for position in range(len(frame("bad!"))):
        damaged = bytearray(next_ones)
        damaged[position] ^= 0x10
        Path(path).write_bytes(good + bytes(damaged) + bytes(4000))
        with compat.RustWal.open(path, 64) as wal:
            assert wal.read_all() == ["good"]
            assert wal.write_pos() == len(good)
            # as long as the bad one: what was behind it must not come back
            assert wal.append("new!") == len(good)
            assert wal.read_all() == ["good", "new!"]
        with compat.RustWal.open(path, 64) as wal:
            assert wal.read_all() == ["good", "new!"]
    Path(path).write_bytes(good + struct.pack("<II", zlib.crc32(b"\xff"), 1) + b"\xff" + bytes(99))
    with compat.RustWal.open(path, 64) as wal:
        assert wal.read_all() == ["good"]  # not UTF-8
    Path(path).write_bytes(good + b"\x01" * 5)
    with compat.RustWal.open(path, 8) as wal:
        assert wal.read_all() == ["good"]  # shorter than a header
        assert wal.capacity() == len(good) + 5


def test_a_full_log(path: str) -> None:
    wal = compat.RustWal.open(path, 30)
    wal.append("a" * 10)
    with pytest.raises(OverflowError, match="no room for a frame of 13 bytes, 12 of 30"):
        wal.append("b" * 5)
    assert wal.append("b" * 4) == 18
    assert wal.remaining() == 0
    assert wal.append("") == 30
    with pytest.raises(OverflowError):
        wal.append("c")
    assert wal.read_all() == ["a" * 10, "b" * 4]


def test_a_single_writer(path: str) -> None:
    wal = compat.RustWal.open(path, 4096)
    with pytest.raises(RuntimeError, match="single-writer"):
        compat.RustWal.open(path, 4096)
    program = "import sys; from aegis_c import compat; compat.RustWal.open(sys.argv[1], 4096)"
    other = subprocess.run([sys.executable, "-c", program, path], capture_output=True, text=True)
    assert "single-writer" in other.stderr
    assert other.returncode == 1
    wal.append("kept")
    del wal  # frees the lock
    gc.collect()
    assert compat.RustWal.open(path, 4096).read_all() == ["kept"]


@pytest.mark.forks
def test_a_handle_of_the_parent_refuses_in_a_child(path: str) -> None:
    wal = compat.RustWal.open(path, 4096)
    child = os.fork()
    if child == 0:
        try:
            wal.append("from the child")
        except RuntimeError as error:
            os._exit(0 if "single-writer" in str(error) else 1)
        os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    wal.append("from the parent")
    assert wal.read_all() == ["from the parent"]


def test_a_failed_sync_stops_the_log(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    wal = compat.RustWal.open(path, 4096)
    wal.append("good")

    def fail(fd: int) -> None:
        raise OSError(5, "no disk")

    monkeypatch.setattr(os, "fdatasync", fail)
    with pytest.raises(OSError, match="no disk"):
        wal.append("unknown")
    monkeypatch.undo()
    with pytest.raises(RuntimeError, match="open the log again"):
        wal.append("more")
    assert wal.write_pos() == 12


def test_every_append_is_on_disk_before_it_returns(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    wal = compat.RustWal.open(path, 4096)
    seen: list[bytes] = []
    sync = os.fdatasync

    def record(fd: int) -> None:
        seen.append(Path(path).read_bytes()[:20])
        sync(fd)

    monkeypatch.setattr(os, "fdatasync", record)
    wal.append("abc")
    wal.append("")
    assert seen == [frame("abc") + bytes(9)]


def test_bad_arguments_of_the_log(path: str) -> None:
    open_wal: Any = compat.RustWal.open
    with pytest.raises(ValueError, match="2 GiB"):
        open_wal(path, (2 << 30) + 1)
    with pytest.raises(ValueError, match="not 7"):
        open_wal(path, 7)
    with pytest.raises(OverflowError):
        open_wal(path, -1)
    for bad in (Path(path), path.encode(), 7):
        with pytest.raises(TypeError):
            open_wal(bad)
    with pytest.raises(TypeError):
        open_wal(path, 4096.0)
    with pytest.raises(FileNotFoundError):
        open_wal(path + "/not/there")
    make: Any = compat.RustWal
    with pytest.raises(TypeError, match=r"use RustWal\.open"):
        make(path)
    wal = open_wal(path, capacity_bytes=2 << 30)  # exactly 2 GiB is allowed
    assert wal.capacity() == 2 << 30
    for bad_payload in (b"bytes", None, 7):
        with pytest.raises(TypeError, match="payload must be str"):
            wal.append(bad_payload)
    with pytest.raises(UnicodeEncodeError):
        wal.append("\ud800")
    wal.append("fine")
    wal.close()
    wal.close()
    with pytest.raises(RuntimeError, match="closed"):
        wal.append("x")
    with pytest.raises(RuntimeError, match="closed"):
        wal.read_all()


def test_threads_share_a_log(path: str) -> None:
    wal = compat.RustWal.open(path, 1 << 20)
    offsets: dict[int, str] = {}

    def work(number: int) -> None:
        for n in range(40):
            text = f"{number}/{n}"
            offsets[wal.append(text)] = text

    threads = [threading.Thread(target=work, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wal.read_all() == [offsets[o] for o in sorted(offsets)]
    assert len(offsets) == 240


# --- the rate limiter ---


def test_the_limiter(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    limiter = compat.RustRateLimiter(3, 2)
    assert [limiter.check_and_consume("a") for _ in range(5)] == [True] * 3 + [False] * 2
    assert limiter.check_and_consume("b")
    assert limiter.bucket_count() == 2
    now += 0.5
    assert [limiter.check_and_consume("a") for _ in range(2)] == [True, False]
    now += 100.0
    assert [limiter.check_and_consume("a") for _ in range(4)] == [True] * 3 + [False]
    now += 5
    assert limiter.evict_stale(200) == 0
    assert limiter.evict_stale(50) == 1  # b
    assert limiter.bucket_count() == 1
    assert limiter.evict_stale(0) == 1
    never = compat.RustRateLimiter(0, 0)
    assert not never.check_and_consume("a")


def test_bad_arguments_of_the_limiter() -> None:
    make: Any = compat.RustRateLimiter
    for bad in ((-1, 1), (1, -1), (2**64, 1)):
        with pytest.raises(OverflowError):
            make(*bad)
    for bad_type in ((1.0, 1), (1, 1.0), ("1", 1)):
        with pytest.raises(TypeError):
            make(*bad_type)
    limiter = make(1, 1)
    with pytest.raises(TypeError):
        limiter.check_and_consume(b"key")
    with pytest.raises(OverflowError):
        limiter.evict_stale(-1)
    with pytest.raises(TypeError):
        limiter.evict_stale(1.5)


# --- the ring buffer ---


def test_the_ring_buffer() -> None:
    ring = compat.AuditRingBuffer(3)
    assert ring.is_empty()
    assert [ring.enqueue(text) for text in "abc"] == [True] * 3
    assert ring.fill_ratio() == 1.0
    assert ring.enqueue(json="d") is False  # a was evicted
    assert (ring.len(), ring.capacity()) == (3, 3)
    assert (ring.enqueue_count(), ring.drop_count()) == (4, 1)
    assert ring.drain(2) == ["b", "c"]
    assert ring.drain(0) == []
    assert ring.fill_ratio() == pytest.approx(1 / 3)
    assert ring.drain_all() == ["d"]
    assert ring.drain_all() == ring.drain(5) == []
    ring.reset_counters()
    assert (ring.enqueue_count(), ring.drop_count()) == (0, 0)
    assert compat.AuditRingBuffer().capacity() == 65536


def test_bad_arguments_of_the_ring_buffer() -> None:
    make: Any = compat.AuditRingBuffer
    with pytest.raises(ValueError, match="at least 1"):
        make(0)
    with pytest.raises(OverflowError):
        make(-1)
    with pytest.raises(TypeError):
        make(1.0)
    ring = make(2)
    with pytest.raises(TypeError):
        ring.enqueue(b"bytes")
    with pytest.raises(OverflowError):
        ring.drain(-1)
    with pytest.raises(TypeError):
        ring.drain(1.0)
