"""accept-rollback: a log that was rolled back goes on, says so, and loses nothing that was kept."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from aegis_c import Ledger, LedgerError
from aegis_c.ledger import entry_schema, fsck, layout, rollback, verify
from logs import entry


def fill(shard: layout.Shard, first: int, count: int) -> verify.Checkpoint:
    """Publishes `count` more entries and closes."""
    with Ledger(shard.published, origin="aegis.example/w0", private=shard.private) as ledger:
        for number in range(first, first + count):
            index = ledger.submit(entry(number))
            if number % 100 == 50:
                ledger.wait(index, "published", 30)
        ledger.wait(len(ledger) - 1, "published", 30)
        return verify.open_checkpoint(ledger.checkpoint(), verify.parse_vkey(ledger.vkey))


@pytest.fixture
def shard(tmp_path: Path) -> layout.Shard:
    directory = layout.DataDir(tmp_path / "data")
    directory.create()
    return directory.shard("w0")


def aegis(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "aegis_c.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def snapshot(path: Path) -> dict[str, bytes]:
    return {str(p.relative_to(path)): p.read_bytes() for p in path.rglob("*") if p.is_file()}


def older(shard: layout.Shard, tmp_path: Path) -> verify.Checkpoint:
    """Brings back a copy of some entries ago; the newest checkpoint's copy stays."""
    fill(shard, 0, 320)
    data = shard.published.parents[1]
    shutil.copytree(data, tmp_path / "backup")
    lost = fill(shard, 320, 350)
    newest = (shard.private / "checkpoint").read_bytes()
    shutil.rmtree(shard.private)
    shutil.copytree(tmp_path / "backup/private/w0", shard.private)
    (shard.private / "checkpoint").write_bytes(newest)
    return lost


def other(shard: layout.Shard, tmp_path: Path) -> verify.Checkpoint:
    """Two histories of one key: the log is one, the checkpoint's copy is the other's."""
    fill(shard, 0, 320)
    data = shard.published.parents[1]
    shutil.copytree(data, tmp_path / "backup")
    lost = fill(shard, 1000, 200)
    newest = (shard.private / "checkpoint").read_bytes()
    shutil.rmtree(data)
    shutil.copytree(tmp_path / "backup", data)
    fill(shard, 2000, 200)
    (shard.private / "checkpoint").write_bytes(newest)
    (shard.published / "checkpoint").write_bytes(newest)
    return lost


@pytest.mark.parametrize("damage", [older, other])
def test_a_rolled_back_log_goes_on_only_by_decision(
    shard: layout.Shard, tmp_path: Path, damage: Callable[..., verify.Checkpoint]
) -> None:
    lost = damage(shard, tmp_path)
    data = shard.published.parents[1]
    with pytest.raises(LedgerError):
        Ledger(shard.published, private=shard.private)
    done = aegis("ledger", "accept-rollback", data, "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    said = json.loads(done.stdout)
    assert (said["lost_size"], said["lost_root"]) == (lost.size, lost.root.hex())
    kept = Path(said["kept"])
    assert (kept / "checkpoint.copy").exists()

    with Ledger(shard.published, private=shard.private) as ledger:  # opens as any log
        recorded = entry_schema.parse_entry(ledger.entry(said["entry"]))
        assert (recorded["event"], recorded["size"]) == ("rollback", lost.size)
        for number in range(3000, 3600):
            ledger.submit(entry(number))
        ledger.wait(len(ledger) - 1, "published", 30)
    report = fsck.check_shard(shard.published)
    assert report.ok, [str(one) for one in report.problems]
    report = fsck.check_shard(shard.published, checkpoints=[kept / "checkpoint.copy"])
    assert "not the one" in report.problems[0].what  # who kept the old checkpoint can tell

    before = snapshot(data)
    again = aegis("ledger", "accept-rollback", data)
    assert again.returncode == 2
    assert "opens as it is" in again.stderr
    after = {f"ledger/{name}": octets for name, octets in snapshot(data / "ledger").items()}
    assert after.items() <= before.items()  # opening it may collect partial tiles, no more
    gone = {name for name in before if name.startswith("ledger/")} - after.keys()
    assert all(".p/" in name for name in gone), gone


def test_what_is_no_rollback_is_not_accepted(shard: layout.Shard, tmp_path: Path) -> None:
    fill(shard, 0, 10)
    with (
        Ledger(shard.published, private=shard.private),
        pytest.raises(rollback.NothingToAccept, match="was not rolled back"),
    ):
        rollback.accept(shard)  # held by another
    key = shard.private / "log.key"
    key.rename(tmp_path / "log.key")
    before = snapshot(shard.published.parents[1])
    with pytest.raises(rollback.NothingToAccept, match="was not rolled back"):
        rollback.accept(shard)
    assert snapshot(shard.published.parents[1]) == before
    published = tmp_path / "copy/w0"
    shutil.copytree(shard.published, published)
    done = aegis("ledger", "accept-rollback", published)
    assert done.returncode == 2
    assert "private" in done.stderr
    assert not (tmp_path / "copy/w0.private").exists()
    assert aegis("ledger", "accept-rollback", tmp_path / "none").returncode == 2
