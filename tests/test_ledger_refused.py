"""What a ledger refuses to open is named, and nothing is written or deleted: logs that are long
enough for a low-water mark. tests/c/test_ledger_refused.c has the short ones."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import aegis_c
from native import entry_meta

pytestmark = pytest.mark.native

ENTRIES = 30_000  # 4 MiB of log: closed with a mark at the end


def fingerprint(folder: Path) -> str:
    """Of every name, mode and octet."""
    state = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        state.update(f"{path} {path.stat().st_mode:o}\n".encode())
        if path.is_file():
            state.update(path.read_bytes())
    return state.hexdigest()


@pytest.fixture(scope="module")
def long_log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("long")
    with aegis_c.Ledger(folder / "log") as ledger:
        for number in range(ENTRIES):
            while ledger.room() < 1 << 16:
                ledger.wait(number - 1, "durable", 60)
            ledger.submit(entry_meta(number))
        ledger.wait(ENTRIES - 1, "published", 60)
    return folder


def drop_tiles(folder: Path) -> None:
    shutil.rmtree(folder / "log" / "tile")


def drop_private_checkpoint(folder: Path) -> None:
    (folder / "log.private" / "checkpoint").unlink()


def turn_a_hash_at_the_edge(folder: Path) -> None:
    edge = max((folder / "log" / "tile" / "1" / "000.p").iterdir(), key=lambda path: int(path.name))
    octets = bytearray(edge.read_bytes())
    octets[7] ^= 1
    edge.write_bytes(octets)


def exchange_the_log(folder: Path) -> None:
    """The end of the log is another one's, of the same length."""
    shutil.copytree(folder, folder / "other")
    for name in ("log", "other/log"):
        with aegis_c.Ledger(folder / name) as ledger:
            ledger.submit(entry_meta(ENTRIES + len(name)))
            ledger.wait(ENTRIES, "published", 60)
    shutil.rmtree(folder / "log.private" / "wal")
    shutil.copytree(folder / "other" / "log.private" / "wal", folder / "log.private" / "wal")
    shutil.rmtree(folder / "other")


def roll_the_log_back(folder: Path) -> None:
    shutil.copytree(folder / "log.private" / "wal", folder / "wal")
    with aegis_c.Ledger(folder / "log") as ledger:
        ledger.submit(entry_meta(ENTRIES))
        ledger.wait(ENTRIES, "published", 60)
    shutil.rmtree(folder / "log.private" / "wal")
    (folder / "wal").rename(folder / "log.private" / "wal")


def drop_the_secret(folder: Path) -> None:
    (folder / "log.private" / "subject.secret").unlink()


def put_other_files_there(folder: Path) -> None:
    shutil.rmtree(folder / "log")
    shutil.rmtree(folder / "log.private")
    (folder / "log").mkdir()
    (folder / "log" / "holiday.jpg").write_bytes(b"JFIF")


@pytest.mark.parametrize(
    ("damage", "file", "what"),
    [
        (drop_tiles, "log/tile", "fsck"),
        (turn_a_hash_at_the_edge, "log", "tiles differ from the root at the mark"),
        (drop_private_checkpoint, "log.private/checkpoint", "older than the log's own mark"),
        (exchange_the_log, "log/checkpoint", "log was exchanged"),
        (roll_the_log_back, "log.private/checkpoint", "older than its signed checkpoint"),
        (drop_the_secret, "log.private/subject.secret", "Restore it from a copy"),
        (put_other_files_there, "log/holiday.jpg", "a folder of its own"),
    ],
)
def test_what_is_refused_is_left_as_it_was(
    long_log: Path,
    tmp_path: Path,
    damage: Callable[[Path], None],
    file: str,
    what: str,
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(long_log, folder)
    damage(folder)
    before = fingerprint(folder)
    for _ in range(2):
        with pytest.raises(aegis_c.LedgerError, match=what) as caught:
            aegis_c.Ledger(folder / "log")
        assert str(caught.value.file).startswith(str(folder / file))
        assert fingerprint(folder) == before
