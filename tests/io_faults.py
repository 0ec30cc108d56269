"""Disk faults in a real process: the extension built with the table of `tests/c/io_rules.c`.

    faults = Faults(tmp_path / "rules")
    child = faults.start(CODE, log)                    # python -c CODE log, with that build
    with faults.stall("fdatasync", path="wal-") as rule:
        wait_for(lambda: rule.waiting)                 # the disk now hangs
    faults.fail("fdatasync", errno.EIO, times=1)

`faults.environment()` is what any other child needs (`aegis-c serve`, pytest itself). The rules
live in a shared file, so either side makes and lifts them while the other runs; a child that wants
to drive its own says `Faults.inherited()`.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import functools
import mmap
import os
import shutil
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

ROOT = Path(__file__).resolve().parents[1]
BUILD = ROOT / "build" / "fault"
MAGIC = int.from_bytes(b"AEGIUL01", "little")
RULES = 16


class _Rule(ctypes.Structure):
    _fields_ = [
        ("armed", ctypes.c_uint32),
        ("reserved", ctypes.c_uint32),
        *((name, ctypes.c_int64) for name in ("value", "skip", "times")),
        *((name, ctypes.c_int64) for name in ("calls", "hits", "waiting")),
        ("operation", ctypes.c_char * 16),
        ("action", ctypes.c_char * 16),
        ("path", ctypes.c_char * 160),
    ]


class _Control(ctypes.Structure):
    _fields_ = [
        ("magic", ctypes.c_uint64),
        *((name, ctypes.c_uint64) for name in ("calls", "syncs", "touched_after_failure")),
        ("rules", _Rule * RULES),
    ]


class Rule:
    """One rule; lifted by lift() or at the end of a `with`."""

    def __init__(self, place: _Rule) -> None:
        self._place = place

    @property
    def hits(self) -> int:
        """Calls that it has hit so far."""
        return int(self._place.hits)

    @property
    def waiting(self) -> int:
        """Calls that it stalls now."""
        return int(self._place.waiting)

    def lift(self) -> None:
        self._place.armed = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.lift()


class Faults:
    """The rules of one control file. Every rule takes: `path`, a part of the file's name; `skip`,
    so many matching calls pass first; `times`, so many are hit then (None: all that follow)."""

    def __init__(self, path: Path) -> None:
        if not path.exists():
            path.write_bytes(MAGIC.to_bytes(8, "little") + bytes(ctypes.sizeof(_Control) - 8))
        self.path = path
        with path.open("r+b") as file:
            self._control = _Control.from_buffer(mmap.mmap(file.fileno(), 0))
        assert self._control.magic == MAGIC

    @classmethod
    def inherited(cls) -> Self:
        """Those that this very process is under."""
        return cls(Path(os.environ["AEGIS_IO_RULES"]))

    # -- rules

    def fail(
        self,
        operation: str,
        error: int = errno.EIO,
        *,
        path: str = "",
        skip: int = 0,
        times: int | None = None,
    ) -> Rule:
        """The calls fail; of a write, half has arrived."""
        return self._add(operation, "fail", error, path, skip, times)

    def shorten(
        self, operation: str, *, path: str = "", skip: int = 0, times: int | None = None
    ) -> Rule:
        """Reads or writes (`pread`, `pwrite`) handle half of what they are given."""
        return self._add(operation, "short", 0, path, skip, times)

    def stall(
        self, operation: str, *, path: str = "", skip: int = 0, times: int | None = None
    ) -> Rule:
        """The calls wait until the rule is lifted."""
        return self._add(operation, "stall", 0, path, skip, times)

    def crash(self, operation: str, *, path: str = "", skip: int = 0) -> Rule:
        """The process dies by SIGKILL in the call; of a write, half has arrived."""
        return self._add(operation, "crash", 0, path, skip, 1)

    def file_system(self, magic: int, *, path: str = "") -> Rule:
        """statfs tells that type (see statfs(2))."""
        return self._add("statfs", "type", magic, path, 0, None)

    def _add(
        self, operation: str, action: str, value: int, path: str, skip: int, times: int | None
    ) -> Rule:
        place = next(rule for rule in self._control.rules if not rule.armed and not rule.waiting)
        place.operation, place.action = operation.encode(), action.encode()
        place.path = path.encode()
        place.value, place.skip, place.times = value, skip, -1 if times is None else times
        place.calls = place.hits = 0
        place.armed = 1
        return Rule(place)

    # -- what happened

    @property
    def calls(self) -> int:
        """I/O calls of any kind."""
        return int(self._control.calls)

    @property
    def syncs(self) -> int:
        """fdatasync and fsync of files."""
        return int(self._control.syncs)

    @property
    def touched_after_failure(self) -> int:
        """Writes and syncs of a file whose write or sync had failed before: must be none."""
        return int(self._control.touched_after_failure)

    # -- processes under these rules

    def environment(self) -> dict[str, str]:
        """What a child process needs to run with the faulty build under these rules."""
        paths = [str(library()), str(ROOT / "tests")]
        return os.environ | {"PYTHONPATH": os.pathsep.join(paths), "AEGIS_IO_RULES": str(self.path)}

    def start(self, code: str, *arguments: object) -> subprocess.Popen[str]:
        """`python -c code arguments` with the faulty build."""
        return subprocess.Popen(
            [sys.executable, "-X", "dev", "-c", textwrap.dedent(code), *map(str, arguments)],
            env=self.environment(), text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def run(self, code: str, *arguments: object, seconds: float = 60) -> str:
        """The same to its end; its output. Fails with its error output unless it exits with 0."""
        child = self.start(code, *arguments)
        try:
            output, errors = child.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            child.kill()
            output, errors = child.communicate()
            raise AssertionError(f"no end after {seconds} s\n{output}{errors}") from None
        assert child.returncode == 0, f"exit {child.returncode}\n{output}{errors}"
        return output


@functools.cache
def library() -> Path:
    """The folder for PYTHONPATH that holds the package with the faulty build, made when needed.

    The objects are those of the ordinary build: all there is to do is one file and a link.
    """
    BUILD.mkdir(parents=True, exist_ok=True)
    with (BUILD / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        state = _state()
        stamp = BUILD / "stamp"
        if not stamp.exists() or stamp.read_text() != state:
            shutil.rmtree(BUILD / "lib", ignore_errors=True)
            done = subprocess.run(
                [sys.executable, "setup.py", "-q", "build", "--build-base", str(BUILD),
                 "--build-lib", str(BUILD / "lib")],
                cwd=ROOT, env=os.environ | {"AEGIS_IO": "fault"}, capture_output=True, text=True,
            )  # fmt: skip
            assert done.returncode == 0, done.stdout + done.stderr
            stamp.write_text(state)
    return BUILD / "lib"


def _state() -> str:
    """Changes with every file that the build is made of."""
    files = [ROOT / "setup.py", ROOT / "tests/c/io_rules.c"]
    files += [*(ROOT / "aegis_c").rglob("*.[ch]")]
    package = (ROOT / "python/aegis_c").rglob("*")
    files += [p for p in package if p.is_file() and p.suffix not in (".so", ".pyc")]
    lines = [f"{p.relative_to(ROOT)} {p.stat().st_mtime_ns}\n" for p in sorted(files)]
    return "".join([f"{sys.version}\n", *lines])


def wait_for(condition: Callable[[], object], seconds: float = 20) -> None:
    """Waits until the condition holds; fails after so long."""
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it does not come to pass"
        time.sleep(0.002)
