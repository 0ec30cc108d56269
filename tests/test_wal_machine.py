"""The log on what only a machine has: a disk image that runs full below the file system, small and
read-only mounts, other users, a clock that jumps, forks, an interpreter that ends."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
import sysconfig
import textwrap
from pathlib import Path

import pytest

import components
from aegis_c import WalError, WalLocked, WalReader, WalWriter
from aegis_c.ledger.wal import Wal
from io_faults import Faults


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "wal"


def python(
    code: str, *arguments: object, before: tuple[str, ...] = (), **env: str
) -> subprocess.CompletedProcess[str]:
    """Runs `before... python -c code arguments`."""
    command = [*before, sys.executable, "-X", "dev", "-c", textwrap.dedent(code)]
    return subprocess.run(
        [*command, *map(str, arguments)],
        capture_output=True, text=True, timeout=60, env=os.environ | env,
    )  # fmt: skip


def passes(code: str, *arguments: object, before: tuple[str, ...] = (), **env: str) -> str:
    done = python(code, *arguments, before=before, **env)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


# -- mounts


@functools.cache
def no_mounts() -> str | None:
    """Why nothing can be mounted in a user namespace here; None when it can."""
    if shutil.which("unshare") is None:
        return "no unshare"
    done = subprocess.run(
        [*in_namespace("size=1m"), "true"], capture_output=True, text=True, timeout=20
    )
    return None if done.returncode == 0 else done.stderr or "mount failed"


def in_namespace(options: str) -> tuple[str, ...]:
    """A command prefix: a tmpfs at /mnt, in a user namespace of its own."""
    script = f'mount -t tmpfs -o {options} none /mnt && exec "$@"'
    return ("unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script, "sh")


def in_small_tmpfs(code: str, size: str) -> None:
    components.require("tmpfs in a user namespace", no_mounts, "util-linux mount")
    passes(code, before=in_namespace(f"size={size}"))


def test_real_enospc_at_rotation_and_resume() -> None:
    in_small_tmpfs("""
        import os, aegis_c
        open("/mnt/ballast", "wb").write(bytes(300_000))
        wal = aegis_c.WalWriter("/mnt/wal", segment_bytes=1 << 18, ring_bytes=1 << 16)
        assert any("tmpfs" in line for line in wal.stats()["recovery"])
        try:
            while True:
                wal.append(b"x" * 4000)
                wal.sync(timeout=1)
        except (aegis_c.WalFull, TimeoutError):
            pass
        stats = wal.stats()
        assert stats["no_space"] and not stats["poisoned"], stats
        os.unlink("/mnt/ballast")
        wal.sync(timeout=20)
        last = wal.stats()["next_seq"] - 1
        wal.close()
        assert aegis_c.WalReader.verify("/mnt/wal")["last_seq"] == last
    """, "1m")  # fmt: skip


def test_no_space_for_the_first_segment() -> None:
    in_small_tmpfs("""
        import os, aegis_c
        try:
            aegis_c.WalWriter("/mnt/wal", ring_bytes=1 << 16)
            raise AssertionError("no error")
        except aegis_c.WalError as error:
            assert "No space left" in str(error) and error.file.startswith("/mnt/wal/"), error
            assert "Free some space" in error.advice, error.advice
        assert os.listdir("/mnt/wal") == ["LOCK"]
        aegis_c.WalWriter("/mnt/wal", segment_bytes=1 << 16, ring_bytes=1 << 16).close()
    """, "1m")  # fmt: skip


def test_little_shared_memory() -> None:
    in_small_tmpfs("""
        import aegis_c, tempfile
        with tempfile.TemporaryDirectory() as folder:
            with aegis_c.WalWriter(folder + "/wal", ring="/mnt/ring") as wal:
                assert 256 << 10 <= wal.stats()["ring_capacity"] < 1 << 20, wal.stats()
                assert any("instead of 16777216" in line for line in wal.stats()["recovery"])
            open("/mnt/ballast", "wb").write(bytes(900_000))
            try:
                aegis_c.WalWriter(folder + "/wal", ring="/mnt/ring")
            except aegis_c.WalError as error:
                assert error.file == "/mnt/ring" and "ring=PATH" in error.advice, error
            else:
                raise AssertionError("no room, but no error")
    """, "1m")  # fmt: skip


def test_no_shared_memory(log: Path) -> None:
    """Without a tmpfs at its place the ring is not put on a disk silently."""
    components.require("tmpfs in a user namespace", no_mounts, "util-linux mount")
    code = """
        import sys, aegis_c
        try:
            aegis_c.WalWriter(sys.argv[1])
            raise AssertionError("no error")
        except aegis_c.WalError as error:
            assert "no memory file system" in str(error) and error.file == "/dev/shm", error
            assert "ring=PATH" in error.advice and error.found == "none"
        with aegis_c.WalWriter(sys.argv[1], ring=sys.argv[1] + ".ring") as wal:
            assert wal.stats()["ring_mode"] == "disk"
    """
    script = 'mount --bind "$0" /dev/shm && exec "$@"'
    unshare = ("unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script)
    probe = python("import os, sys; sys.exit(0)", before=(*unshare, str(log.parent)))
    if probe.returncode != 0:
        components.leave_out("a bind mount", "a kernel that allows it", probe.stderr)
    if os.statvfs(log.parent).f_fsid == os.statvfs("/dev/shm").f_fsid:
        pytest.skip("the temporary directory is itself in shared memory")
    passes(code, log, before=(*unshare, str(log.parent)))


def test_a_read_only_mount() -> None:
    in_small_tmpfs("""
        import subprocess, aegis_c
        with aegis_c.WalWriter("/mnt/wal", segment_bytes=1 << 16, ring_bytes=1 << 16) as wal:
            wal.append(b"x")
        subprocess.run(["mount", "-o", "remount,ro", "/mnt"], check=True)
        for path in ("/mnt/wal", "/mnt/new"):
            try:
                aegis_c.WalWriter(path, segment_bytes=1 << 16, ring_bytes=1 << 16)
                raise AssertionError("no error")
            except aegis_c.WalError as error:
                assert "Read-only file system" in str(error), error
                assert error.file.startswith(path), error.file
                assert "may write" in error.advice, error.advice
        assert list(aegis_c.WalReader("/mnt/wal")) == [(1, b"x")]
        assert aegis_c.WalReader.verify("/mnt/wal")["last_seq"] == 1
    """, "2m")  # fmt: skip


# -- a disk that runs full below the file system


@functools.cache
def no_loop_device() -> str | None:
    """Why no image can be mounted through a loop device here; None when it can."""
    if os.geteuid() != 0:
        return "needs root"
    if shutil.which("mkfs.ext4") is None or shutil.which("losetup") is None:
        return "no mkfs.ext4 or losetup"
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", MOUNT_IMAGE.format(then="true")],
        capture_output=True, text=True, timeout=30,
    )  # fmt: skip
    return None if done.returncode == 0 else done.stderr or "mount failed"


MOUNT_IMAGE = """
set -e
mount -t tmpfs -o size=40m none /mnt
mkdir /mnt/disk
truncate -s 64m /mnt/image
mkfs.ext4 -q -O ^has_journal -E nodiscard,lazy_itable_init=0 -b 4096 /mnt/image
mount -o loop /mnt/image /mnt/disk
{then}
"""

# The memory behind the image is given back below the prepared segments and taken by others, as on
# a volume that promises more than it has: what is written there from now on is lost.
REAL_FAILURE = """
import ctypes, fcntl, os, struct, sys
from pathlib import Path
import aegis_c

path, direct, mend = Path("/mnt/disk/wal"), sys.argv[1] == "direct", sys.argv[2]
libc = ctypes.CDLL(None, use_errno=True)

def make():
    return aegis_c.WalWriter(path, segment_bytes=1 << 18, ring_bytes=1 << 20, direct=direct)

def forsake(segment):
    with segment.open("rb") as file, open("/mnt/image", "r+b") as image:
        for k in range(8, segment.stat().st_size // 4096):  # behind what is durable
            block = fcntl.ioctl(file.fileno(), 1, struct.pack("i", k))  # FIBMAP
            at = struct.unpack("i", block)[0] * 4096
            hole = [ctypes.c_int64(at), ctypes.c_int64(4096)]
            assert libc.fallocate(image.fileno(), 3, *hole) == 0, ctypes.get_errno()

wal = make()
wal.append(b"before")
assert wal.sync() == 1
while len(list(path.glob("*.seg"))) < 2:
    pass
os.sync()
for segment in path.glob("*.seg"):
    forsake(segment)
with open("/mnt/ballast", "wb", buffering=0) as ballast:
    try:
        while True:
            ballast.write(bytes(4096))
    except OSError:
        pass
appended = 1
try:
    for k in range(60):
        appended = wal.append(b"%d" % k * 1500)
        durable = wal.sync(timeout=20)
    raise AssertionError("every sync passed")
except aegis_c.WalPoisoned as error:
    what, file = str(error), error.file
assert "wal-" in file and ("No space" in what or "Input/output" in what), what
assert appended > wal.durable_seq
os.unlink("/mnt/ballast")
if mend == "reopen":
    wal.reopen()
else:
    try:
        wal.close()
    except aegis_c.WalPoisoned:
        pass
    wal = make()
assert wal.durable_seq == appended, (wal.durable_seq, appended, wal.stats())
wal.append(b"after")
wal.sync(timeout=20)
wal.close()
os.sync()
Path("/proc/sys/vm/drop_caches").write_text("1")
found = [payload for _, payload in aegis_c.WalReader(path)]
assert found == [b"before", *(b"%d" % k * 1500 for k in range(appended - 1)), b"after"]
print(what)
"""


@pytest.mark.parametrize("mend", ["reopen", "open"])
@pytest.mark.parametrize("mode", ["direct", "buffered"])
def test_a_real_failed_write_poisons_and_loses_nothing(mode: str, mend: str) -> None:
    """The kernel reports the loss once and then serves the lost bytes from its cache: neither the
    running log nor the next open believes it. What was appended comes back out of the ring."""
    components.require("ext4 through a loop device as root", no_loop_device, "e2fsprogs mount")
    script = MOUNT_IMAGE.format(then='exec "$0" -c "$@"')
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", script, sys.executable, REAL_FAILURE, mode, mend],
        capture_output=True, text=True, timeout=90,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


# -- other users


def test_a_directory_without_permission(tmp_path: Path) -> None:
    """As another user when this one may everything; the path leads there for both."""
    code = """
        import os, sys, aegis_c
        if os.geteuid() == 0:
            os.setgid(65534); os.setuid(65534)
        for path in sys.argv[1:]:
            try:
                aegis_c.WalWriter(path)
                raise AssertionError("no error")
            except aegis_c.WalError as error:
                assert "Permission denied" in str(error), error
                assert error.file.startswith(path), error.file
                assert "may write" in error.advice, error.advice
    """
    folder = Path("/var/tmp") / f"aegis-test-{os.getpid()}"
    folder.mkdir()
    try:
        (folder / "closed").mkdir()
        (folder / "closed").chmod(0o555)
        passes(code, folder / "closed", folder / "closed" / "below")
    finally:
        (folder / "closed").chmod(0o700)
        shutil.rmtree(folder)


def test_errors_of_a_closed_log_say_which(log: Path) -> None:
    wal = WalWriter(log, segment_bytes=65536, ring_bytes=65536)
    wal.close()
    for call in (lambda: wal.append(b"x"), wal.sync, wal.stats, wal.reopen, lambda: wal.want(1)):
        with pytest.raises(WalError, match="closed") as caught:
            call()
        assert caught.value.file == str(log) and caught.value.advice


# -- a clock that jumps

JUMPING_CLOCK = r"""
#define _GNU_SOURCE
#include <stdlib.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static time_t
jump(void)
{
    static _Atomic unsigned calls;
    static const time_t times[] = {0, 4000000000, 1, 1700000000, 86400, 2147483647};
    return times[calls++ % 6];
}

int
clock_gettime(clockid_t clock, struct timespec *now)
{
    if (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE) {
        *now = (struct timespec){jump(), 0};
        return 0;
    }
    return (int)syscall(SYS_clock_gettime, clock, now);
}

time_t
time(time_t *now)
{
    time_t value = jump();
    if (now != NULL) {
        *now = value;
    }
    return value;
}

int
gettimeofday(struct timeval *restrict now, void *restrict zone)
{
    (void)zone;
    *now = (struct timeval){jump(), 0};
    return 0;
}
"""


def test_a_wall_clock_that_jumps_changes_nothing(log: Path, tmp_path: Path) -> None:
    """Forwards, backwards and to 0 with every look: appends, waits with and without a limit, the
    idle marker, rotation, close and recovery go on."""
    source, shim = tmp_path / "clock.c", tmp_path / "clock.so"
    source.write_text(JUMPING_CLOCK)
    cc = (os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc").split()
    subprocess.run([*cc, "-shared", "-fPIC", "-O1", str(source), "-o", str(shim)], check=True)
    code = """
        import sys, time, aegis_c
        assert {round(time.time()) for _ in range(6)} >= {0, 1, 86400}, "the clock does not jump"
        for life in range(2):
            with aegis_c.WalWriter(sys.argv[1], segment_bytes=65536, ring_bytes=65536) as wal:
                begun = time.monotonic()
                for k in range(200):
                    wal.append(b"x" * 1000)
                    if k % 10 == 0:
                        wal.sync(timeout=30)
                last = wal.append(b"nobody waits")
                while wal.durable_seq < last:
                    time.sleep(0.001)
                rotations = 0
                while not wal.stats()["markers"]:
                    # A rotation says what a marker says: after one, the next record has a marker.
                    assert time.monotonic() - begun < 40, wal.stats()
                    if wal.stats()["rotations"] != rotations:
                        rotations = wal.stats()["rotations"]
                        last = wal.append(b"nobody waits")
                    time.sleep(0.01)
                wal.sync(timeout=30)
                wal.release(last)
                assert wal.stats()["rotations"] > 1
        print(last)
    """
    last = int(passes(code, log, LD_PRELOAD=str(shim)))
    assert [seq for seq, _ in WalReader(log, archived=True)] == list(range(1, last + 1))


# -- forks


@pytest.mark.forks
def test_a_child_that_goes_on_does_not_keep_the_log(log: Path) -> None:
    """Forked while W flushes: it does not write, holds up no later writer, and may abort."""
    code = """
        import os, sys, time, warnings, aegis_c
        warnings.simplefilter("ignore")
        path = sys.argv[1]
        wal = aegis_c.WalWriter(path, segment_bytes=65536, ring_bytes=65536, max_delay_us=0)
        children, count = [], 0
        for life in range(8):
            for k in range(20):
                wal.append(b"x" * 1000)
                count += 1
            read, write = os.pipe()
            child = os.fork()
            if child == 0:
                os.close(write)
                for call in (lambda: wal.append(b"child"), wal.sync, wal.reopen, wal.stats):
                    try:
                        call()
                        os._exit(9)
                    except aegis_c.WalError as error:
                        if error.file != path or not error.advice:
                            os._exit(8)
                try:
                    aegis_c.WalWriter(path, segment_bytes=65536, ring_bytes=65536)
                    os._exit(7)
                except aegis_c.WalLocked:
                    pass
                os.read(read, 1)  # goes on beyond the parent's log
                os.abort() if life % 2 else os._exit(0)
            children.append((child, write))
            os.close(read)
            wal.sync()
        time.sleep(0.2)
        wal.close()
        with aegis_c.WalWriter(path) as again:  # although eight children live
            assert again.durable_seq == count, again.durable_seq
        for k, (child, write) in enumerate(children):
            os.close(write)
        ends = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child, _ in children]
        assert ends == [0, -6] * 4, ends
    """
    passes(code, log)
    assert [seq for seq, _ in WalReader(log)] == list(range(1, 161))


def test_two_writers_of_one_process_and_by_another_name(log: Path, tmp_path: Path) -> None:
    with WalWriter(log, segment_bytes=65536, ring_bytes=65536) as wal:
        (tmp_path / "alias").symlink_to(log)
        for path in (log, tmp_path / "alias", log / ".." / "wal"):
            with pytest.raises(WalLocked) as caught:
                WalWriter(path)
            assert caught.value.advice and str(caught.value.file).endswith("LOCK")
        wal.append(b"x")
        assert wal.sync() == 1


# -- the end of the interpreter


@pytest.mark.parametrize("kind", ["WalWriter", "Wal"])
def test_exit_with_a_full_ring(log: Path, kind: str) -> None:
    """Everything that append returned is in the log when the process has ended."""
    assert Wal.__name__ == "Wal"
    code = """
        import asyncio, sys, aegis_c
        from aegis_c.ledger.wal import Wal

        def fill(append):
            try:
                while True:
                    append(b"x" * 500)
            except aegis_c.WalFull:
                pass

        options = {"ring_bytes": 1 << 18, "max_delay_us": 60_000_000}
        async def main():
            global wal
            wal = Wal(sys.argv[1], **options)
            fill(wal.append)
            print(wal.native.stats()["next_seq"] - 1)

        if sys.argv[2] == "Wal":
            asyncio.run(main())
        else:
            wal = aegis_c.WalWriter(sys.argv[1], **options)
            fill(wal.append)
            print(wal.stats()["next_seq"] - 1)
    """
    count = int(passes(code, log, kind))
    assert count > 200
    assert [seq for seq, _ in WalReader(log)] == list(range(1, count + 1))


def test_exit_while_the_disk_stalls_is_bounded(log: Path, tmp_path: Path) -> None:
    """The end does not hang on the disk; the next open writes what it did not take."""
    faults = Faults(tmp_path / "rules")
    code = """
        import sys, aegis_c
        wal = aegis_c.WalWriter(sys.argv[1], ring_bytes=1 << 18)
        try:
            while True:
                wal.append(b"x" * 500)
        except aegis_c.WalFull:
            pass
        print(wal.stats()["next_seq"] - 1)
    """
    with faults.stall("fdatasync", path="wal-", skip=1) as rule:  # not in open
        child = faults.start(code, log)
        output, errors = child.communicate(timeout=60)
        assert rule.hits
    assert child.returncode == 0, errors
    assert "the rest is in the ring" in errors
    count = int(output)
    with WalWriter(log) as wal:
        assert wal.durable_seq == count
    assert [seq for seq, _ in WalReader(log)] == list(range(1, count + 1))
