"""Data directories that a gateway cannot use: told with the file and what to do, exit 2, and left
as they were."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import pytest

from aegis_c import Ledger, cli


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data directory with one shard, signed, and closed."""
    folder = tmp_path / "data"
    for name in ("a", "b"):  # the second lends its key
        shard = folder if name == "a" else tmp_path / "other"
        with Ledger(shard / "ledger/w0") as ledger:
            ledger.submit(b"{}")
            ledger.wait(0, "published")
    return folder


def snapshot(data: Path) -> dict[str, tuple[int, str]]:
    """All but the gateway's own lock."""
    paths = [path for path in data.rglob("*") if path != data / "private/LOCK"]
    return {
        str(path): (
            path.stat().st_mode,
            hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "",
        )
        for path in paths
    }


def serve(data: Path) -> tuple[int, str]:
    """Exit status of `aegis-c serve` and what it said."""
    said = io.StringIO()
    arguments = ["aegis-c", "serve", "--data", str(data), "--port", "0"]
    with (
        mock.patch.object(sys, "argv", arguments),
        contextlib.redirect_stderr(said),
        pytest.raises(SystemExit) as ended,
    ):
        cli.main()
    return int(ended.value.code or 0), said.getvalue()


def drop(name: str) -> Callable[[Path], None]:
    def damage(data: Path) -> None:
        path = data / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()

    return damage


def other_key(data: Path) -> None:
    shutil.copy(data.parent / "other/private/w0/log.key", data / "private/w0/log.key")


def open_key(data: Path) -> None:
    (data / "private/w0/log.key").chmod(0o666)


def no_key(data: Path) -> None:
    (data / "private/w0/log.key").write_text("junk")


CASES: list[tuple[Callable[[Path], None], str, str]] = [
    (drop("private/w0/identity"), "private/w0/wal/LOG", "from a copy"),
    (drop("private/w0"), "ledger/w0/checkpoint", "from a copy"),
    (drop("private/w0/wal"), "expected 1 entries, found 0", "Restore the newer log"),
    (drop("private/w0/log.key"), "private/w0/log.key", "Restore the key"),
    (other_key, "belongs to another log", "Restore the key"),
    (open_key, "mode 0666", "chmod 600"),
    (no_key, "PEM form", "Restore the key"),
]


@pytest.mark.parametrize(("damage", "names", "advice"), CASES)
def test_a_directory_that_is_no_whole_log(
    data: Path, damage: Callable[[Path], None], names: str, advice: str
) -> None:
    damage(data)
    before = snapshot(data)
    status, said = serve(data)
    assert status == 2, said
    line = said[said.index("cannot start") :]
    assert names in line
    assert advice in line
    assert snapshot(data) == before


def test_a_file_in_place_of_the_directory_and_one_that_is_held(tmp_path: Path, data: Path) -> None:
    file = tmp_path / "file"
    file.write_text("x")
    status, said = serve(file)
    assert status == 2
    assert "a directory that this user may write" in said
    with Ledger(data / "ledger/w0"):
        status, said = serve(data)
        assert status == 2
        assert "LOCK" in said


@pytest.mark.skipif(os.geteuid() != 0, reason="root makes the file systems")
@pytest.mark.parametrize("kind", ["full", "read-only"])
def test_a_file_system_that_takes_nothing(tmp_path: Path, data: Path, kind: str) -> None:
    place = tmp_path / "mounted"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", str(place)]
    if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("no file system can be mounted here")
    try:
        shutil.copytree(data, place / "data")
        if kind == "full":
            with (place / "fill").open("wb", buffering=0) as fill, contextlib.suppress(OSError):
                while fill.write(bytes(4096)):
                    pass
        else:
            subprocess.run(["mount", "-o", "remount,ro", str(place)], check=True)
        status, said = serve(place / "data")
        assert status == 2
        assert ("ree some space" if kind == "full" else "Read-only file system") in said
        if kind == "full":
            (place / "fill").unlink()  # with space again everything is there
            with Ledger(place / "data/ledger/w0") as ledger:
                assert ledger.entry(0) == b"{}"
    finally:
        subprocess.run(["umount", "-l", str(place)], check=False)
