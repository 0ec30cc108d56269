"""The log on a disk that stalls, fails, fills up, and under a process that dies in the middle of a
call: a real process with the faulty build (`io_faults`). No root is needed, nothing is timed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from aegis_c import WalReader
from io_faults import ROOT, Faults, library

HEAD = """
import asyncio, errno, sys
import aegis_c
from aegis_c.ledger.wal import Wal
from io_faults import Faults, wait_for

faults = Faults.inherited()
path = sys.argv[1]

def small(**options):
    return aegis_c.WalWriter(path, segment_bytes=65536, ring_bytes=65536, **options)

"""


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "wal"


@pytest.fixture
def faults(tmp_path: Path) -> Faults:
    return Faults(tmp_path / "rules")


def drive(faults: Faults, code: str, log: Path) -> str:
    """Runs the code on this log, with what HEAD gives it; its output."""
    return faults.run(HEAD + textwrap.dedent(code), log)


def payloads(log: Path) -> list[bytes]:
    """Every record, after a check of the whole log; sequence numbers without a gap from 1."""
    WalReader.verify(log)
    found = list(WalReader(log))
    assert [seq for seq, _ in found] == list(range(1, len(found) + 1))
    return [payload for _, payload in found]


# -- the build


def test_the_faulty_build_is_the_one_that_is_imported(faults: Faults) -> None:
    out = faults.run("import aegis_c; print(aegis_c._native.__file__)")
    assert out.startswith(str(library()))


@pytest.mark.parametrize("command", [["build_ext", "--inplace"], ["bdist_wheel"]])
def test_the_faulty_build_cannot_be_installed(command: list[str], tmp_path: Path) -> None:
    options = ["-b", str(tmp_path / "build")] if command == ["bdist_wheel"] else []
    done = subprocess.run(
        [sys.executable, "setup.py", "-q", *command, *options],
        cwd=ROOT, env=os.environ | {"AEGIS_IO": "fault"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 1
    assert "must not be installed" in done.stderr
    done = subprocess.run(
        [sys.executable, "setup.py", "--version"],
        cwd=ROOT, env=os.environ | {"AEGIS_IO": "broken"}, capture_output=True, text=True,
    )  # fmt: skip
    assert "expected 'fault'" in done.stderr


# -- a disk that stalls


def test_append_returns_while_the_disk_stalls(faults: Faults, log: Path) -> None:
    """Two seconds' worth of the busiest gateway, on the event loop, while nothing reaches disk."""
    drive(
        faults,
        """
        async def main():
            async with Wal(path) as wal:
                with faults.stall("fdatasync", path="wal-") as rule:
                    waiting = [wal.durable(wal.append(b"x" * 1024))]
                    while not rule.waiting:
                        await asyncio.sleep(0.001)
                    for _ in range(10_000):
                        waiting.append(wal.durable(wal.append(b"x" * 1024)))
                        if len(waiting) % 100 == 0:
                            await asyncio.sleep(0)
                    stats = wal.native.stats()
                    assert stats["durable_seq"] == wal.native.durable_seq == 0
                    assert stats["next_seq"] == 10_002
                    assert rule.waiting and not any(w.done() for w in waiting)
                await asyncio.gather(*waiting)
                assert wal.native.durable_seq == 10_001
        asyncio.run(main())
        """,
        log,
    )
    assert len(payloads(log)) == 10_001


def test_a_full_ring_refuses_and_room_is_told_once_the_disk_goes_on(
    faults: Faults, log: Path
) -> None:
    drive(
        faults,
        """
        async def main():
            async with Wal(path, segment_bytes=65536, ring_bytes=65536) as wal:
                with faults.stall("fdatasync", path="wal-") as rule:
                    count = 0
                    try:
                        while True:
                            wal.append(b"x" * 1000)
                            count += 1
                    except aegis_c.WalFull as error:
                        assert "Wait for room" in error.advice
                    room = asyncio.create_task(wal.room(1000))
                    await asyncio.sleep(0.05)
                    assert rule.waiting and not room.done()
                await room
                wal.append(b"y")
            print(count)
        asyncio.run(main())
        """,
        log,
    )
    assert payloads(log)[-1] == b"y"


def test_submit_returns_while_the_disk_stalls(faults: Faults, tmp_path: Path) -> None:
    faults.run(
        """
        import json, sys, uuid, aegis_c
        from io_faults import Faults, wait_for

        faults = Faults.inherited()
        with aegis_c.Ledger(sys.argv[1] + "/ledger/w0") as ledger:
            with faults.stall("fdatasync", path="wal-") as rule:
                for n in range(5000):
                    meta = json.dumps({"v": 1, "id": str(uuid.UUID(int=n + 1)), "n": "x" * 700})
                    ledger.submit(meta.encode(), b"q" * 1024, b"r" * 1024)
                    if n == 0:
                        ledger.want(0)
                        wait_for(lambda: rule.waiting)
                assert rule.waiting and ledger.durable_size == 0 and ledger.size == 5000
                assert ledger.room() > 0 and not ledger.poisoned
            ledger.wait(4999, "published", 30)
        """,
        tmp_path,
    )


def test_close_with_a_limit_while_the_disk_stalls(faults: Faults, log: Path) -> None:
    drive(
        faults,
        """
        wal = small()
        with faults.stall("fdatasync", path="wal-") as rule:
            wal.want(wal.append(b"x"))
            wait_for(lambda: rule.waiting)
            for call in (wal.sync, wal.close):
                try:
                    call(timeout=0.05)
                    raise AssertionError("no TimeoutError")
                except TimeoutError:
                    pass
        wal.close()
        """,
        log,
    )
    assert payloads(log) == [b"x"]


# -- a sync that fails


FAIL = """
async def main():
    async with Wal(path, segment_bytes=1 << 18) as wal:
        await wal.durable(wal.append(b"before"))
        with faults.fail({operation!r}, errno.{error}, path="wal-", times=1) as rule:
            seqs = [wal.append(b"%d" % k) for k in range(100)]
            got = await asyncio.gather(*map(wal.durable, seqs), return_exceptions=True)
            assert rule.hits == 1
        assert all(isinstance(g, aegis_c.WalPoisoned) for g in got), got
        assert all("outcome unknown" in str(g) for g in got), got
        assert "{word}" in str(got[0]) and "wal-" in str(got[0]), got[0]
        native, late = wal.native, wal.durable(seqs[-1])
        for call in (lambda: wal.append(b"z"), native.sync):
            try:
                call()
                raise AssertionError("no WalPoisoned")
            except aegis_c.WalPoisoned as failure:
                assert failure.file and failure.advice and "reopen" in failure.advice
        try:
            await late
            raise AssertionError("a waiter that comes late hears nothing")
        except aegis_c.WalPoisoned:
            pass
        assert native.stats()["poisoned"] and native.poisoned and native.durable_seq == 1
        before = native.stats()["segment_no"]
        await wal.reopen()
        assert native.stats()["segment_no"] > before and not native.stats()["poisoned"]
        assert native.durable_seq == 101
        await wal.durable(wal.append(b"after"))
asyncio.run(main())
"""


@pytest.mark.parametrize(
    ("operation", "error", "word"),
    [
        ("fdatasync", "EIO", "Input/output error"),
        ("fdatasync", "ENOSPC", "No space left"),
        ("fdatasync", "EDQUOT", "quota"),
        ("pwrite", "EIO", "Input/output error"),
        ("pwrite", "ENOSPC", "No space left"),
    ],
)
def test_a_failed_sync_poisons_and_a_new_segment_mends(
    faults: Faults, log: Path, operation: str, error: str, word: str
) -> None:
    code = FAIL.replace("{operation!r}", repr(operation)).replace("{error}", error)
    drive(faults, code.replace("{word}", word), log)
    assert payloads(log) == [b"before", *(b"%d" % k for k in range(100)), b"after"]
    assert faults.touched_after_failure == 0


def test_a_log_that_was_left_poisoned_is_whole_at_the_next_open(faults: Faults, log: Path) -> None:
    """Close says what is wrong; what was not durable waits in the ring."""
    drive(
        faults,
        """
        wal = small()
        with faults.fail("fdatasync", path="wal-"):
            wal.append(b"x")
            for call in (wal.sync, wal.close):
                try:
                    call()
                    raise AssertionError("no WalPoisoned")
                except aegis_c.WalPoisoned:
                    pass
        assert wal.closed
        with small() as wal:
            assert wal.durable_seq == 1 and wal.stats()["replayed"] >= 0
            wal.append(b"y")
        """,
        log,
    )
    assert payloads(log) == [b"x", b"y"]
    assert faults.touched_after_failure == 0


def test_reopen_fails_as_long_as_the_disk_does(faults: Faults, log: Path) -> None:
    drive(
        faults,
        """
        with small() as wal:
            with faults.fail("fdatasync"), faults.fail("fsync"):
                wal.append(b"x")
                for call in (wal.sync, wal.reopen, wal.reopen):
                    try:
                        call()
                        raise AssertionError("no error")
                    except aegis_c.WalError as error:
                        assert error.file or "Input/output" in str(error), error
                assert wal.poisoned
            wal.reopen()
            assert not wal.poisoned
            wal.append(b"y")
            wal.sync()
        """,
        log,
    )
    assert payloads(log) == [b"x", b"y"]
    assert faults.touched_after_failure == 0


def test_append_refuses_at_once_while_a_reopen_waits_for_the_disk(
    faults: Faults, log: Path
) -> None:
    """The event loop never waits for what the disk holds up: not for a reopen either."""
    faults.run(
        HEAD
        + """
async def main():
    async with Wal(path) as wal:
        with faults.fail("fdatasync", path="wal-", times=1):
            lost = wal.durable(wal.append(b"x"))
            await asyncio.wait([lost])
        assert lost.exception()
        with faults.stall("fdatasync", path="wal-") as rule:
            reopening = asyncio.create_task(wal.reopen())
            while not rule.waiting:
                await asyncio.sleep(0.001)
            for call in (lambda: wal.append(b"y"), wal.native.sync):
                try:
                    call()
                    raise AssertionError("no WalPoisoned")
                except aegis_c.WalPoisoned:
                    pass
            try:
                wal.native.close(timeout=0.02)
                raise AssertionError("no TimeoutError")
            except TimeoutError:
                pass
            assert wal.native.poisoned and wal.native.stats()["poisoned"] and rule.waiting
        await asyncio.gather(reopening, wal.reopen(), wal.reopen())
        await wal.durable(wal.append(b"y"))
asyncio.run(main())
""",
        log,
    )
    assert payloads(log) == [b"x", b"y"]


# -- a disk that is full, and other refusals


def test_no_space_for_the_next_segment_is_waited_for(faults: Faults, log: Path) -> None:
    drive(
        faults,
        """
        with small() as wal:
            with faults.fail("pwrite", errno.ENOSPC, path="segment.tmp") as rule:
                try:
                    while True:
                        wal.append(b"x" * 1000)
                        wal.sync(timeout=0.5)
                except TimeoutError:
                    pass
                wait_for(lambda: wal.stats()["no_space"])
                assert rule.hits and not wal.poisoned
                try:
                    while True:
                        wal.append(b"x" * 1000)
                except aegis_c.WalFull as error:
                    assert "free some" in error.advice, error.advice
            assert wal.sync(timeout=20) == wal.stats()["next_seq"] - 1
        """,
        log,
    )
    assert len(payloads(log)) > 64
    assert faults.touched_after_failure == 0


def test_short_writes_and_reads_are_finished(faults: Faults, log: Path) -> None:
    drive(
        faults,
        """
        writes = [faults.shorten("pwrite", skip=skip, times=3) for skip in (0, 8, 16, 24)]
        reads = [faults.shorten("pread", skip=skip, times=2) for skip in (0, 4, 8)]
        for life in range(2):
            with small() as wal:
                for k in range(100):
                    wal.append(b"%d" % k * 300)
                wal.sync()
        assert all(rule.hits for rule in writes) and reads[0].hits
        """,
        log,
    )
    assert payloads(log) == [b"%d" % k * 300 for k in range(100)] * 2


@pytest.mark.parametrize(
    ("operation", "error", "kind", "says"),
    [
        ("open", "EROFS", "WalError", "Read-only file system"),
        ("open", "EACCES", "WalError", "Permission denied"),
        ("open", "EMFILE", "WalError", "Too many open files"),
        ("mkdir", "ENOSPC", "WalError", "No space left"),
        ("pwrite", "ENOSPC", "WalError", "No space left"),
        ("pwrite", "EDQUOT", "WalError", "quota"),
        ("fsync", "EIO", "WalError", "Input/output error"),
        ("fsync_dir", "EIO", "WalError", "Input/output error"),
        ("rename", "EIO", "WalError", "Input/output error"),
        ("lock", "ENOLCK", "WalError", "No locks available"),
    ],
)
def test_an_open_that_fails_says_where_and_is_repeated_with_success(
    faults: Faults, log: Path, operation: str, error: str, kind: str, says: str
) -> None:
    code = f"""
        with faults.fail({operation!r}, errno.{error}, path=path, times=1) as rule:
            try:
                small().close()
                raise AssertionError("no error")
            except aegis_c.WalError as error:
                assert type(error).__name__ == {kind!r} and {says!r} in str(error), error
                assert path in (error.file or ""), error.file
            assert rule.hits == 1
        small().close()
    """
    drive(faults, code, log)
    assert payloads(log) == []


def test_a_read_error_in_recovery_is_no_torn_tail(faults: Faults, log: Path) -> None:
    drive(
        faults,
        """
        with small() as wal:
            wal.append(b"x" * 1000)
        with faults.fail("pread", path="wal-", times=1):
            try:
                small()
                raise AssertionError("no error")
            except aegis_c.WalError as error:
                assert not isinstance(error, aegis_c.WalCorruption)
                assert "Input/output" in str(error) and error.file and "wal-" in error.file
        small().close()
        """,
        log,
    )
    assert payloads(log) == [b"x" * 1000]


@pytest.mark.parametrize(
    ("magic", "name"), [(0x6969, "NFS"), (0x01021994, "tmpfs"), (0x9123683E, "btrfs")]
)
def test_file_systems_that_promise_less_are_named(
    faults: Faults, log: Path, magic: int, name: str
) -> None:
    code = f"""
        with faults.file_system({magic}, path=path):
            with small() as wal:
                notes = wal.stats()["recovery"]
        assert any(line.startswith("warning: the log lies on {name}") for line in notes), notes
    """
    drive(faults, code, log)


# -- a process that dies in the middle of a call


@pytest.mark.parametrize("operation", ["pwrite", "fdatasync", "fsync", "rename", "fsync_dir"])
def test_death_in_a_call_loses_nothing_that_append_returned(
    faults: Faults, log: Path, operation: str
) -> None:
    """Over the whole life of a log: first start, batches, rotation, archive, replay, close."""
    code = """
        import mmap
        with open(sys.argv[2], "r+b") as file:
            told = memoryview(mmap.mmap(file.fileno(), 8)).cast("Q")
        wal = small()
        for k in range(1, 200):
            seq = wal.append(b"x" * 1000)
            told[0] = seq
            if k % 8 == 0:
                wal.sync()
            if k % 50 == 0:
                wal.release(wal.durable_seq)
        wal.close()
        """
    told = log.with_name("told")
    returned = deaths = 0
    for skip in (0, 2, 5, 11):
        told.write_bytes(returned.to_bytes(8, "little"))
        rule = faults.crash(operation, path=str(log), skip=skip)
        child = faults.start(HEAD + textwrap.dedent(code), log, told)
        _, errors = child.communicate(timeout=60)
        rule.lift()
        assert child.returncode in (-signal.SIGKILL, 0), errors
        deaths += child.returncode != 0
        returned = int.from_bytes(told.read_bytes(), "little")
        last = int(drive(faults, "with small() as wal: print(wal.durable_seq)", log))
        assert returned <= last <= returned + 1
        returned = last
    assert deaths >= 3
    found = [seq for seq, _ in WalReader(log, archived=True)]
    assert found == list(range(1, returned + 1))
    assert faults.touched_after_failure == 0
