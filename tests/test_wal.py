"""The write-ahead log from Python: WalWriter, WalReader, and processes that die."""

from __future__ import annotations

import mmap
import os
import random
import select
import shutil
import signal
import struct
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from aegis_c import WalCorruption, WalError, WalFull, WalLocked, WalReader, WalWriter
from wal_child import payload_of

pytestmark = pytest.mark.native

CHILD = Path(__file__).with_name("wal_child.py")


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "wal"


def small(path: Path, **options: object) -> WalWriter:
    return WalWriter(path, **{"segment_bytes": 65536, "ring_bytes": 65536, **options})  # type: ignore[arg-type]


def python(code: str, *args: object, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-X", "dev", "-c", textwrap.dedent(code), *map(str, args)],
        capture_output=True, text=True, timeout=60, env=os.environ | env,
    )  # fmt: skip


# -- one process


def test_append_sync_read(log: Path) -> None:
    with small(log) as wal:
        assert [wal.append(b"a"), wal.append(b"b" * 5000)] == [1, 2]
        assert wal.sync() == wal.durable_seq == 2
        assert list(WalReader(log)) == [(1, b"a"), (2, b"b" * 5000)]
        assert list(WalReader(log, from_seq=2)) == [(2, b"b" * 5000)]
    assert wal.closed
    wal.close()
    with small(log) as again:
        assert again.append(b"c") == 3
        assert "closed cleanly" in again.stats()["recovery"][0]


def test_sizes(log: Path) -> None:
    with WalWriter(log) as wal:
        wal.append(b"x" * (1 << 20))
        for bad in (b"", b"x" * ((1 << 20) + 1)):
            with pytest.raises(ValueError, match="1 to 1048576 expected"):
                wal.append(bad)
        with pytest.raises(TypeError, match="bytes"):
            wal.append(bytearray(b"x"))  # type: ignore[arg-type]
        assert wal.sync() == 1
        with pytest.raises(IndexError):
            wal.sync(2)
    with pytest.raises(WalError, match="closed"):
        wal.append(b"x")


def test_reader_follows_a_live_writer(log: Path) -> None:
    with small(log) as wal:
        wal.append(b"1")
        wal.sync()
        reader = WalReader(log)
        assert list(reader) == [(1, b"1")]
        assert list(reader) == []
        for k in range(200):  # over several segments
            wal.append(b"%d" % k * 300)
            if k % 20 == 0:
                wal.sync()
        wal.sync()
        assert [seq for seq, _ in reader] == list(range(2, 202))
        checked = WalReader.verify(log)
        assert checked["live"] and checked["last_seq"] == 201


def test_release_moves_segments_to_the_archive(log: Path) -> None:
    with small(log) as wal:
        for _ in range(100):
            wal.append(b"x" * 4000)
            wal.sync()
        wal.release(90, b"open intents")
        assert wal.low_water == (90, b"open intents")
        with pytest.raises(IndexError):
            wal.release(89)
        with pytest.raises(IndexError):
            wal.release(1000)
        assert wal.stats()["live_segments"] < 3
    assert len(list((log / "archive").iterdir())) > 4
    assert [seq for seq, _ in WalReader(log, archived=True)] == list(range(1, 101))
    with pytest.raises(IndexError, match="lies before the first segment"):
        WalReader(log, from_seq=1)
    with small(log) as wal:
        assert wal.low_water == (90, b"open intents")


def test_files_are_private(log: Path) -> None:
    with WalWriter(log) as wal:
        wal.append(b"x")
        wal.sync()
        assert log.stat().st_mode & 0o777 == 0o700
        assert {p.stat().st_mode & 0o777 for p in log.iterdir()} == {0o600}
        rings = Path(f"/dev/shm/aegis-{os.geteuid()}")
        assert rings.stat().st_mode & 0o777 == 0o700
        assert all(p.stat().st_mode & 0o777 == 0o600 for p in rings.iterdir())
        assert wal.stats()["ring_mode"] == "tmpfs"


def test_ring_on_a_disk_is_named(log: Path, tmp_path: Path) -> None:
    with small(log, ring=tmp_path / "ring") as wal:
        if wal.stats()["ring_mode"] == "tmpfs":
            pytest.skip("the temporary directory is itself in memory")
        assert wal.stats()["ring_mode"] == "disk"


def test_no_directory_for_the_ring(log: Path, tmp_path: Path) -> None:
    with pytest.raises(WalError, match="create the ring") as caught:
        WalWriter(log, ring=str(tmp_path / "nowhere" / "ring"))
    assert caught.value.file == str(tmp_path / "nowhere" / "ring")
    assert "Make the directory" in caught.value.advice


def test_room_and_full(log: Path) -> None:
    with small(log, max_delay_us=1_000_000) as wal:
        before = wal.room()
        wal.append(b"x" * 100)
        assert before - wal.room() == 104 + 16
        with pytest.raises(WalFull, match="no room"):
            list(map(wal.append, [b"x" * 8000] * 100_000))
        assert wal.sync() == wal.stats()["next_seq"] - 1
        assert wal.room() == wal.stats()["ring_capacity"]
        assert wal.want_room(100)


def test_the_eventfd(log: Path) -> None:
    with small(log) as wal:
        ready = select.poll()
        ready.register(wal.fileno(), select.POLLIN)
        wal.want(wal.append(b"x"))
        assert ready.poll(5000)
        assert wal.drain() == 1
        assert not ready.poll(0)


def test_many_threads_share_one_writer(log: Path) -> None:
    got: list[int] = []

    def work() -> None:
        for _ in range(300):
            while True:
                try:
                    seq = wal.append(threading.current_thread().name.encode())
                    break
                except WalFull:
                    wal.sync()
            got.append(seq)
        wal.sync(seq)

    with small(log) as wal:
        threads = [threading.Thread(target=work) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(got) == list(range(1, 1801))
    assert len(list(WalReader(log))) == 1800


def test_close_while_others_wait(log: Path) -> None:
    wal = small(log, max_delay_us=50_000)
    outcomes: list[object] = []

    def work() -> None:
        try:
            outcomes.append(wal.sync(wal.append(b"x")))
        except WalError as error:
            outcomes.append(error)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    wal.close()
    for thread in threads:
        thread.join(10)
    assert len(outcomes) == 8
    written = len(list(WalReader(log)))
    assert sum(isinstance(outcome, int) for outcome in outcomes) == written


# -- bad input


def test_second_writer(log: Path) -> None:
    with small(log):
        with pytest.raises(WalLocked) as caught:
            small(log)
        assert caught.value.file and caught.value.file.endswith("LOCK")
        assert caught.value.advice
        code = "import sys, aegis_c; aegis_c.WalWriter(sys.argv[1])"
        assert "WalLocked" in python(code, log).stderr
    small(log).close()


def test_a_file_in_the_way(log: Path) -> None:
    log.write_bytes(b"in the way")
    with pytest.raises(WalError, match=r"Not a directory|File exists") as caught:
        WalWriter(log)
    assert caught.value.advice
    assert log.read_bytes() == b"in the way"


@pytest.mark.parametrize("options", [
    {"segment_bytes": 5000}, {"segment_bytes": 0}, {"ring_bytes": 100}, {"ring_bytes": -1},
    {"max_delay_us": -1}, {"max_delay_us": 1 << 31},
])  # fmt: skip
def test_bad_options(log: Path, options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"expected|positive|at most"):
        WalWriter(log, **options)  # type: ignore[arg-type]


def test_no_such_log(tmp_path: Path) -> None:
    for look in (WalReader, WalReader.verify):
        with pytest.raises(WalError, match="no log here") as caught:
            look(tmp_path / "nothing")
        assert caught.value.advice


def test_corruption_names_the_place(log: Path) -> None:
    with small(log) as wal:
        for k in range(6):
            wal.append(b"%d" % k * 100)
            wal.sync()
    segment = log / "wal-0000000000000001.seg"
    data = bytearray(segment.read_bytes())
    data[2 * 4096 + 200] ^= 4
    segment.write_bytes(data)
    with pytest.raises(WalCorruption) as caught:
        small(log)
    error = caught.value
    assert (error.file, error.offset, error.seq) == (str(segment), 8192, 2)
    assert error.expected and error.found and "aegis-c wal" in str(error.advice)
    assert segment.read_bytes() == data


def test_path_removed_while_running(log: Path) -> None:
    with small(log) as wal:
        wal.append(b"x")
        wal.sync()
        while log.exists():  # the helper may be making a segment in it just now
            shutil.rmtree(log, ignore_errors=True)
        wal.append(b"y")
        assert wal.sync() == 2  # the open file goes on; the next segment cannot be made

        def fill() -> None:
            for _ in range(2000):
                wal.append(b"z" * 4000)
                wal.sync(timeout=0.5)

        with pytest.raises((WalFull, TimeoutError)):
            fill()
        assert wal.stats()["no_space"]
        log.mkdir()
        wal.sync(timeout=20)  # and goes on by itself when it can


# -- the end of a process


def test_interpreter_exit_flushes(log: Path) -> None:
    code = """
        import sys, aegis_c
        wal = aegis_c.WalWriter(sys.argv[1], max_delay_us=1_000_000)
        for k in range(3000):
            wal.append(b"%d" % k * 100)
    """
    started = time.monotonic()
    done = python(code, log)
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - started < 20
    with WalWriter(log) as wal:
        assert wal.durable_seq == 3000
        assert wal.stats()["replayed"] == 0  # it was flushed, not left to the next open
        assert "closed cleanly" in wal.stats()["recovery"][0]


def test_exit_with_an_error_flushes(log: Path) -> None:
    code = """
        import sys, aegis_c
        wal = aegis_c.WalWriter(sys.argv[1])
        wal.append(b"last words")
        raise SystemExit(7)
    """
    assert python(code, log).returncode == 7
    assert list(WalReader(log)) == [(1, b"last words")]


def test_os_exit_and_abort_lose_nothing(log: Path) -> None:
    for k, end in enumerate(("os._exit(3)", "os.abort()", "os.kill(os.getpid(), 9)")):
        code = f"""
            import os, sys, aegis_c
            wal = aegis_c.WalWriter(sys.argv[1], max_delay_us=30_000_000)
            for k in range(500):
                wal.append(b"x" * 1000)
            {end}
        """
        assert python(code, log).returncode != 0
        with WalWriter(log) as wal:
            assert wal.durable_seq == 500 * (k + 1)
            assert wal.stats()["replayed"] > 0
    assert [seq for seq, _ in WalReader(log)] == list(range(1, 1501))


@pytest.mark.forks
def test_fork(log: Path) -> None:
    code = """
        import os, sys, warnings, aegis_c
        warnings.simplefilter("ignore")
        wal = aegis_c.WalWriter(sys.argv[1])
        wal.append(b"parent")
        child = os.fork()
        if child == 0:
            try:
                wal.append(b"child")
            except aegis_c.WalError as error:
                assert "parent" in str(error), error
                wal.close()
                os._exit(0)
            os._exit(1)
        assert os.waitpid(child, 0)[1] == 0
        wal.append(b"parent again")
        wal.sync()
    """
    done = python(code, log)
    assert done.returncode == 0, done.stderr
    assert [payload for _, payload in WalReader(log)] == [b"parent", b"parent again"]


def test_unclosed_is_reported(log: Path) -> None:
    code = "import sys, aegis_c; w = aegis_c.WalWriter(sys.argv[1]); w.append(b'x'); del w"
    done = python(code, log, PYTHONWARNINGS="default")
    assert "ResourceWarning: unclosed WalWriter" in done.stderr
    assert len(list(WalReader(log))) == 1


def kill_rounds() -> int:
    """AEGIS_LONG=1: as many as the project promises; else enough to notice."""
    return 300 if os.environ.get("AEGIS_LONG") else 25


def test_kill_9_at_random_moments(log: Path, tmp_path: Path, rng: random.Random) -> None:
    """Nothing that append returned is lost, nothing is there twice, over many lives of one log."""
    told = tmp_path / "told"
    told.write_bytes(bytes(24))
    with told.open("r+b") as file:
        shared = mmap.mmap(file.fileno(), 24)
    checked = replays = 0
    for _ in range(kill_rounds()):
        struct.pack_into("<Q", shared, 16, 0)
        args = [sys.executable, str(CHILD), str(log), str(told), str(rng.randrange(1 << 30))]
        child = subprocess.Popen(args)
        try:
            # Half of the kills come soon after the start, in recovery and replay too.
            if rng.random() < 0.8:
                while not struct.unpack_from("<Q", shared, 16)[0] and child.poll() is None:
                    time.sleep(0.001)
            time.sleep(rng.random() * 0.15)
        finally:
            child.kill()
        assert child.wait() == -signal.SIGKILL
        returned, acked, _ = struct.unpack("<QQQ", shared[:24])
        with WalWriter(log, segment_bytes=1 << 18, ring_bytes=1 << 18) as wal:
            last = wal.durable_seq
            replays += wal.stats()["replayed"] > 0
            assert acked <= last and returned <= last <= returned + 1
            if checked > wal.low_water[0]:
                wal.release(checked)
        for seq, payload in WalReader(log, from_seq=checked + 1, archived=True):
            assert seq == checked + 1 and payload == payload_of(seq)
            checked = seq
        assert checked == last
        for old in (log / "archive").glob("*.seg"):
            old.unlink()
        struct.pack_into("<Q", shared, 0, last)
    assert checked > 100 and replays > 0


# -- limits


def test_file_size_limit_poisons_and_reopens(log: Path) -> None:
    """RLIMIT_FSIZE makes real short writes and EFBIG: no segment can be made beyond it."""
    code = """
        import resource, signal, sys, aegis_c
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, resource.RLIM_INFINITY))
        try:
            aegis_c.WalWriter(sys.argv[1], segment_bytes=65536, ring="/dev/shm/never")
        except aegis_c.WalError as error:
            assert "too large" in str(error), error
        else:
            raise AssertionError("no error")
    """
    done = python(code, log)
    assert done.returncode == 0, done.stderr
    small(log).close()


def wait_for(condition: Callable[[], bool], seconds: float = 10) -> bool:
    until = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > until:
            return False
        time.sleep(0.005)
    return True


def test_no_descriptors_threads_or_rings_are_left(log: Path) -> None:
    def held() -> tuple[int, int]:
        return len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))

    ring = Path(f"/dev/shm/aegis-test-{os.getpid()}.ring")
    small(log, ring=ring).close()
    before = held()
    for _ in range(20):
        with small(log, ring=ring) as wal:
            wal.append(b"x")
            assert ring.exists()
        assert not ring.exists()
    assert wait_for(lambda: held() == before), (held(), before)


def test_a_ring_whose_header_was_never_written(tmp_path: Path) -> None:
    """As after a kill between making the file and writing its header: it never held anything,
    so only a log that was not closed may have lost what another one held."""
    ring = tmp_path / "log.ring"
    with WalWriter(tmp_path / "closed", ring=ring) as wal:
        wal.append(b"one")
        wal.sync()
        shutil.copytree(tmp_path / "closed", tmp_path / "killed")
    for name, lost in (("closed", False), ("killed", True)):
        ring.write_bytes(bytes((1 << 20) + 4096))
        ring.chmod(0o600)
        with WalWriter(tmp_path / name, ring=ring) as wal:
            assert wal.stats()["ring_lost"] is lost
            assert wal.append(b"two") == 2
        assert not ring.exists() and not list(tmp_path.glob("*.orphan"))
