"""fsck finds every damage of a published log and names the file, the offset and the entry."""

import os
import shutil
import struct
from pathlib import Path

import pytest

from aegis_c.ledger import fsck, layout, rebuild
from aegis_c.ledger.verify import parse_vkey
from logs import ORIGIN, SEED, entries, entry, request_id, write_log
from reference import ed25519, note, tiles, tree


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return write_log(tmp_path / "w0", 300)


def check(folder: Path) -> fsck.Report:
    return fsck.check_shard(folder)


def first(folder: Path) -> fsck.Problem:
    report = check(folder)
    assert not report.ok
    return report.problems[0]


def patch(path: Path, offset: int, mask: int = 1) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= mask
    path.write_bytes(data)


@pytest.mark.parametrize("count", [0, 1, 2, 3, 255, 256, 257, 511, 512, 513, 1000])
def test_a_whole_log_passes(tmp_path: Path, count: int) -> None:
    folder = write_log(tmp_path / "w0", count)
    report = check(folder)
    assert report.problems == []
    assert report.notes == []
    assert (report.size, report.entries, report.origin) == (count, count, ORIGIN)
    assert report.root == tree.mth(entries(count)).hex()
    present = [path for path in folder.rglob("*") if path.is_file()]
    assert report.files == len(present)
    octets = sum(p.stat().st_size for p in present if p.name not in ("checkpoint", "log.vkey"))
    assert report.octets == octets


def test_a_log_of_three_levels_passes_and_its_upper_tiles_are_checked(tmp_path: Path) -> None:
    folder = write_log(tmp_path / "w0", 65_536 + 300)
    assert check(folder).ok
    for name, number in (
        ("tile/2/000.p/1", 0),
        ("tile/1/000", 0),
        ("tile/1/001.p/1", 65_536),
        ("tile/0/x000/200", 51_200),
    ):
        path = folder / name
        if not path.exists():
            path = folder / name.replace("x000/", "")
        whole = path.read_bytes()
        patch(path, 5)
        problem = first(folder)
        assert (problem.file, problem.offset, problem.entry) == (
            str(path.relative_to(folder)),
            5,
            number,
        )
        path.write_bytes(whole)
    assert check(folder).ok


@pytest.mark.parametrize("count", [3, 258])
def test_every_flipped_byte_is_caught_and_its_file_is_named(tmp_path: Path, count: int) -> None:
    folder = write_log(tmp_path / "w0", count)
    tried = 0
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = str(path.relative_to(folder))
        whole = path.read_bytes()
        step = 1 if count < 10 or len(whole) < 1000 else 211
        for offset in range(0, len(whole), step):
            patch(path, offset, 1 << offset % 8)
            problem = first(folder)
            if name == "log.vkey":  # a changed key and a checkpoint of another key look alike
                assert problem.file in ("log.vkey", "checkpoint"), offset
            else:
                assert problem.file == name, (offset, str(problem))
            if name.startswith("tile/entries"):
                assert problem.entry == entry_at(whole, path, offset), offset
            elif name.startswith("tile/"):
                assert problem.offset == offset
            path.write_bytes(whole)
            tried += 1
    assert tried > 300
    assert check(folder).ok


def entry_at(bundle: bytes, path: Path, offset: int) -> int:
    """Index of the entry whose record holds an octet of a bundle."""
    index = 256 if "001" in str(path.relative_to(path.parents[2])) else 0
    at = 0
    while True:
        at += 2 + int.from_bytes(bundle[at : at + 2], "big")
        if offset < at:
            return index
        index += 1


def test_a_damaged_bundle_is_told_from_a_damaged_tile(log: Path) -> None:
    patch(log / "tile/entries/000", 2 + 20)
    problem = first(log)
    assert (problem.file, problem.entry, problem.offset) == ("tile/entries/000", 0, 0)
    patch(log / "tile/entries/000", 2 + 20)
    patch(log / "tile/0/000", 32 * 7 + 3)
    problem = first(log)
    assert (problem.file, problem.entry, problem.offset) == ("tile/0/000", 7, 32 * 7 + 3)


def test_several_damages_are_all_named(log: Path) -> None:
    whole = (log / "tile/entries/000").read_bytes()
    (log / "tile/entries/000").write_bytes(whole.replace(b'"status":200', b'"status":201', 1))
    patch(log / "tile/0/001.p/44", 40)
    patch(log / "tile/1/000.p/1", 31)
    found = {(p.file, p.entry, p.offset) for p in check(log).problems}
    assert found == {
        ("tile/entries/000", 0, 0),
        ("tile/0/001.p/44", 257, 40),
        ("tile/1/000.p/1", 0, 31),
    }


def test_an_entry_rewritten_with_its_hashes_is_found(tmp_path: Path) -> None:
    """Everything below the checkpoint is consistent; only the signed root tells."""
    folder = write_log(tmp_path / "w0", 300)
    changed = entries(300)
    changed[5] = entry(5, status=500)
    forged = tiles.log_files(changed)
    tiles.write_files(folder, forged)
    problem = first(folder)
    assert problem.file == "checkpoint"
    assert problem.expected == tree.mth(entries(300)).hex()
    assert problem.found == tree.mth(changed).hex()

    # With the tiles above left as they were, the entry itself is named.
    folder = write_log(tmp_path / "w1", 300)
    for name in ("tile/entries/000", "tile/0/000"):
        (folder / name).write_bytes(forged[name])
    report = check(folder)
    assert {p.file for p in report.problems} <= {"tile/0/000", "tile/entries/000"}
    assert report.problems[0].entry in (0, 5)


def test_a_log_signed_by_another_key_is_refused(log: Path) -> None:
    other = note.vkey(ORIGIN, ed25519.public_key(bytes(32)))
    (log / "log.vkey").write_text(other + "\n")
    assert first(log).file == "checkpoint"
    own = parse_vkey(note.vkey(ORIGIN, ed25519.public_key(SEED)))
    problem = fsck.check_shard(log, vkey=own).problems[0]
    assert problem.file == "log.vkey"
    assert problem.expected == str(own)


@pytest.mark.parametrize(
    ("name", "entry_index"),
    [
        ("checkpoint", None),
        ("log.vkey", None),
        ("tile/0/000", 0),
        ("tile/0/001.p/44", 256),
        ("tile/1/000.p/1", 0),
        ("tile/entries/000", 0),
        ("tile/entries/001.p/44", 256),
    ],
)
@pytest.mark.parametrize("how", ["missing", "empty", "cut", "longer"])
def test_missing_cut_and_grown_files(
    log: Path, name: str, entry_index: int | None, how: str
) -> None:
    path = log / name
    data = path.read_bytes()
    if how == "missing":
        path.unlink()
    else:
        path.write_bytes({"empty": b"", "cut": data[:-1], "longer": data + b"x"}[how])
    report = check(log)
    assert [p.file for p in report.problems] == [name]
    last = 255 if name.endswith("000") else 299
    if how == "cut" and name.startswith("tile/entries"):
        assert report.problems[0].entry == last
    elif how == "missing":
        assert report.problems[0].entry == entry_index
        assert "missing" in report.problems[0].what


def test_an_entry_that_breaks_the_schema_is_named(tmp_path: Path) -> None:
    bad = [entry(0), b"not json", entry(2, kind="party"), b'{"v":1,"v":1}', b"\xff{}"]
    folder = tmp_path / "w0"
    tiles.write_files(folder, tiles.signed_log(bad, ORIGIN, SEED))
    report = check(folder)
    assert [p.entry for p in report.problems] == [1, 2, 3, 4]
    assert all(p.file == "tile/entries/000.p/5" for p in report.problems)
    assert report.problems[0].offset == 2 + len(bad[0])
    assert "`kind`" in report.problems[1].what


def test_old_partial_tiles_are_checked_too(log: Path) -> None:
    """A log keeps the partial tiles of earlier checkpoints for a while."""
    for count in (100, 256, 290):
        tiles.write_files(log, tiles.log_files(entries(count)))
    assert check(log).ok
    whole = check(log).files
    assert whole == len([p for p in log.rglob("*") if p.is_file()])
    patch(log / "tile/0/000.p/100", 99)
    patch(log / "tile/entries/001.p/34", 9)
    found = {(p.file, p.offset) for p in check(log).problems}
    assert found == {("tile/0/000.p/100", 99), ("tile/entries/001.p/34", None)}


def test_files_newer_than_the_checkpoint_are_only_noted(log: Path) -> None:
    """A crash, or a log that grows meanwhile, leaves tiles that no checkpoint covers yet."""
    tiles.write_files(log, tiles.log_files(entries(310)))
    report = check(log)
    assert report.ok
    assert "newer" in report.notes[0]
    for name in ("tile/0/001.p/44", "tile/entries/001.p/44"):  # collected once full
        (log / name).unlink()
    tiles.write_files(log, tiles.log_files(entries(512)))
    assert check(log).ok
    patch(log / "tile/0/001", 32 * 10)
    assert first(log).entry == 266


def test_foreign_files_and_links_are_reported(log: Path, tmp_path: Path) -> None:
    (log / ".tmp").write_bytes(b"being written")
    assert check(log).ok
    (log / "tile/0/0").write_bytes(b"")
    (log / "notes.txt").write_text("hello")
    shutil.move(log / "tile/1", tmp_path / "elsewhere")
    (log / "tile/1").symlink_to(tmp_path / "elsewhere")
    assert {p.file for p in check(log).problems} == {"tile/0/0", "notes.txt", "tile/1"}


def test_a_hostile_checkpoint_size_costs_nothing(log: Path) -> None:
    huge = note.checkpoint(ORIGIN, 2**62, bytes(32), SEED)
    (log / "checkpoint").write_bytes(huge.replace(b"4611686018427387904", b"9223372036854775807"))
    assert first(log).file == "checkpoint"


def test_problems_are_bounded(log: Path) -> None:
    (log / "checkpoint").write_bytes(note.checkpoint(ORIGIN, 2**40, bytes(32), SEED))
    report = check(log)
    assert len(report.problems) == fsck.MAX_PROBLEMS
    assert "stopped" in report.notes[-1]


def test_progress_reaches_the_end(log: Path) -> None:
    seen: list[tuple[int, int]] = []
    fsck.check_shard(log, progress=lambda done, size: seen.append((done, size)))
    assert seen[-1] == (300, 300)
    assert seen == sorted(seen)


def test_shard_parent_and_data_directory_are_all_accepted(tmp_path: Path) -> None:
    for name in ("w0", "w1", "w10", "w2"):
        write_log(tmp_path / "data/ledger" / name, 3)
    shards = [tmp_path / "data/ledger" / name for name in ("w0", "w1", "w2", "w10")]
    assert layout.published_folders(tmp_path / "data") == shards
    assert layout.published_folders(tmp_path / "data/ledger") == shards
    assert layout.published_folders(shards[1]) == [shards[1]]
    assert [r.folder for r in fsck.fsck(tmp_path / "data")] == [str(s) for s in shards]
    assert [s.published for s in layout.DataDir(tmp_path / "data").shards()] == shards


def kept_checkpoint(path: Path, count: int, *, changed: bool = False) -> Path:
    kept = entries(count)
    if changed:
        kept[0] = entry(0, status=500)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(note.checkpoint(ORIGIN, count, tree.mth(kept), SEED))
    return path


@pytest.mark.parametrize("count", [0, 1, 2, 255, 256, 257, 299, 300])
def test_a_log_contains_the_checkpoints_that_were_kept(
    log: Path, tmp_path: Path, count: int
) -> None:
    kept = kept_checkpoint(tmp_path / "kept", count)
    report = fsck.check_shard(log, checkpoints=[kept])
    assert report.ok
    assert report.checkpoints == 2
    if count:
        other = kept_checkpoint(tmp_path / "other", count, changed=True)
        (problem,) = fsck.check_shard(log, checkpoints=[kept, other]).problems
        assert problem.file == str(other)
        assert problem.expected != problem.found == tree.mth(entries(count)).hex()


def test_a_log_older_than_its_own_copy_of_the_checkpoint_was_rolled_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fsck, "_CATCH_UP_SECONDS", 0.1)
    folder = write_log(tmp_path / "data/ledger/w0", 300)
    kept_checkpoint(tmp_path / "data/private/w0/checkpoint", 300)
    assert check(folder).checkpoints == 2
    kept_checkpoint(tmp_path / "data/private/w0/checkpoint", 301)
    problem = first(folder)
    assert (problem.file, problem.entry, problem.found) == ("checkpoint", 300, "300")
    assert "rolled back" in problem.what
    (tmp_path / "data/private/w0/checkpoint").write_bytes(b"x")
    assert first(folder).file.endswith("private/w0/checkpoint")


def test_a_kept_checkpoint_that_is_missing_or_of_another_log_is_named(
    log: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    other.write_bytes(note.checkpoint("aegis.example/other", 1, bytes(32), SEED))
    report = fsck.check_shard(log, checkpoints=[tmp_path / "missing", other])
    assert [p.file for p in report.problems] == [str(tmp_path / "missing"), str(other)]


@pytest.mark.parametrize("name", ["tile/0/000", "tile/entries/000", "tile/1/000.p/1", "log.vkey"])
def test_a_pipe_in_the_place_of_a_file_does_not_hold_the_check_up(log: Path, name: str) -> None:
    (log / name).unlink()
    os.mkfifo(log / name)
    assert name in {p.file for p in check(log).problems}


def test_the_native_pass_and_the_slow_one_report_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where every tile is flagged, everything is done in Python."""
    folder = write_log(tmp_path / "w0", 3 * 256 + 7)

    def flag_all(folder: Path, first: int, count: int) -> tuple[bytes, bytes, int]:
        return b"\7" * count, bytes(32 * count), 0

    damages = {
        None: 0,
        "tile/0/001": 77,
        "tile/entries/002": 4000,
        "tile/1/000.p/3": 40,
        "tile/entries/003.p/7": 9,
    }
    for name, offset in damages.items():
        if name is not None:
            patch(folder / name, offset)
        fast = check(folder)
        with monkeypatch.context() as context:
            context.setattr(rebuild, "_audit_tiles", flag_all)
            assert check(folder) == fast
        assert fast.ok is (name is None)
        if name is not None:
            patch(folder / name, offset)


@pytest.mark.parametrize("make", ["missing", "file", "empty", "foreign"])
def test_a_path_without_a_log_is_named(tmp_path: Path, make: str) -> None:
    path = tmp_path / "x"
    if make == "file":
        path.write_text("")
    elif make != "missing":
        path.mkdir()
        if make == "foreign":
            (path / "readme").write_text("")
    with pytest.raises(layout.LayoutError, match=str(path)):
        fsck.fsck(path)


def test_an_unreadable_file_is_a_problem_not_a_crash(log: Path) -> None:
    path = log / "tile/0/000"
    path.unlink()
    os.mkdir(path)
    assert any(p.file == "tile/0/000" for p in check(log).problems)


def test_ids_of_the_fixture_are_valid() -> None:
    assert struct.unpack(">H", bytes.fromhex(request_id(7).replace("-", ""))[6:8])[0] >> 12 == 7
