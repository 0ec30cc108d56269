"""What auditors get wrong: each is told where, what was expected and found, and what to do;
nothing is written, nothing is deleted."""

import base64
import contextlib
import io
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from aegis_c import Ledger, LedgerError, cli
from logs import ORIGIN, SEED, entries, entry, request_id, write_log
from reference import ed25519, note, proof_text, tree

VKEY = note.vkey(ORIGIN, ed25519.public_key(SEED))
COUNT = 300


def aegis(*arguments: object) -> tuple[int, dict[str, Any]]:
    """Exit status, and the one JSON object that the command printed."""
    printed = io.StringIO()
    with (
        mock.patch.object(sys, "argv", ["aegis-c", *map(str, arguments), "--json"]),
        contextlib.redirect_stdout(printed),
        pytest.raises(SystemExit) as ended,
    ):
        cli.main()
    return int(ended.value.code or 0), json.loads(printed.getvalue())


def snapshot(path: Path) -> dict[str, tuple[int, bytes]]:
    files = [path, *path.rglob("*")]
    return {
        str(one): (one.stat().st_mtime_ns, one.read_bytes() if one.is_file() else b"")
        for one in files
    }


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return write_log(tmp_path / "data/ledger/w0", COUNT)


def empty(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


def foreign(folder: Path) -> None:
    empty(folder)
    (folder / "holiday.jpg").write_bytes(b"")


def half_copied(folder: Path) -> None:
    shutil.rmtree(folder / "tile/entries")


def without_checkpoint(folder: Path) -> None:
    (folder / "checkpoint").unlink()


def cut_short(folder: Path) -> None:
    bundle = folder / "tile/entries/000"
    bundle.write_bytes(bundle.read_bytes()[:-7])


def of_another_log(folder: Path) -> None:
    other = note.checkpoint("aegis.example/other", 3, tree.mth(entries(3)), SEED)
    (folder / "checkpoint").write_bytes(other)


FOLDERS: list[tuple[Callable[[Path], None], int, str]] = [
    (empty, 2, "w0"),
    (foreign, 2, "w0"),
    (half_copied, 1, "tile/entries/000"),
    (without_checkpoint, 1, "checkpoint"),
    (cut_short, 1, "tile/entries/000"),
    (of_another_log, 1, "checkpoint"),
]


@pytest.mark.parametrize(("damage", "status", "names"), FOLDERS)
def test_a_folder_that_is_no_whole_log(
    log: Path, damage: Callable[[Path], None], status: int, names: str
) -> None:
    damage(log)
    before = snapshot(log.parents[1])
    got, said = aegis("ledger", "fsck", log)
    assert (got, said["ok"]) == (status, False)
    if status == 2:
        error = said["error"]
        assert error["where"].endswith(names)
        assert error["what"]
        assert error["expected"]
        assert error["found"]
        assert error["advice"]
    else:
        (report,) = said["shards"]
        assert report["problems"][0]["file"] == names
        assert report["problems"][0]["what"]
    for command in (["prove", log, "--index", "1"], ["search", log, "--kind", "call"]):
        if damage not in (cut_short, half_copied) or command[0] == "prove":
            got, said = aegis("ledger", *command)
            assert got in (1, 2)
            assert said["error"]["what"]
    assert snapshot(log.parents[1]) == before


def test_a_shard_whose_published_half_is_gone_is_missed(log: Path) -> None:
    private = log.parents[1] / "private/w1"
    private.mkdir(parents=True)
    (private / "identity").write_text("x")
    got, said = aegis("ledger", "fsck", log.parents[1])
    assert got == 1
    assert [report["ok"] for report in said["shards"]] == [True, False]
    assert said["shards"][1]["folder"].endswith("w1")


def test_a_log_older_than_a_kept_checkpoint_names_both_sizes(log: Path, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.write_bytes(note.checkpoint(ORIGIN, 400, tree.mth(entries(400)), SEED))
    before = snapshot(tmp_path)
    got, said = aegis("ledger", "fsck", log, "--checkpoint", kept)
    assert got == 1
    (problem,) = said["shards"][0]["problems"]
    assert (problem["file"], problem["entry"], problem["found"]) == ("checkpoint", 300, "300")
    assert "400" in problem["expected"]
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("index", [COUNT, COUNT + 1, 2**40, 2**63])
def test_a_proof_of_an_entry_that_does_not_exist(log: Path, index: int) -> None:
    got, said = aegis("ledger", "prove", log, "--index", index)
    error = said["error"]
    assert got == 2
    assert (error["expected"], error["found"]) == (f"an index below {COUNT}", str(index))
    assert error["advice"]
    assert error["where"] == str(log)


def test_proofs_of_sizes_that_do_not_exist_and_a_log_held_by_another(tmp_path: Path) -> None:
    folder = tmp_path / "data/ledger/w0"
    with Ledger(folder) as ledger:
        ledger.wait(ledger.submit(entry(1)), "published", 30)
        size = len(ledger)
        for ask in (
            lambda: ledger.inclusion_proof(size),
            lambda: ledger.inclusion_proof(0, size + 1),
            lambda: ledger.consistency_proof(2, size + 1),
            lambda: ledger.consistency_proof(size + 1),
            lambda: ledger.entry(size),
            lambda: ledger.receipt(size),
        ):
            with pytest.raises((IndexError, LedgerError), match=str(size)):
                ask()
        with pytest.raises(LedgerError, match="LOCK"):
            Ledger(folder)
        # reading tools need no lock; the one that writes is refused
        assert aegis("ledger", "fsck", folder)[0] == 0
        got, said = aegis("ledger", "accept-rollback", folder)
        assert got == 2
        assert "LOCK" in said["error"]["what"]
        assert len(ledger) == size


SALT = base64.b64encode(bytes(32)).decode()


def receipt(**changes: Any) -> dict[str, Any]:
    signed = note.checkpoint(ORIGIN, COUNT, tree.mth(entries(COUNT)), SEED)
    proof = proof_text.proof_text(7, tree.inclusion_path(7, entries(COUNT)), signed)
    item = {"index": 7, "kind": "call", "state": "published", "entry": entry(7).decode()}
    items = [{**item, "proof": proof.decode()}]
    head = {"id": request_id(7), "origin": ORIGIN, "vkey": VKEY, "entries": items}
    return {**head, "salts": {"request": SALT, "response": SALT}, **changes}


def test_receipts_that_prove_nothing(tmp_path: Path) -> None:
    file = tmp_path / "receipt"
    whole = json.dumps(receipt())
    later = receipt()
    later["entries"][0]["proof"] = later["entries"][0]["proof"].replace("\n300\n", "\n301\n")
    beyond = receipt()
    beyond["entries"][0]["proof"] = beyond["entries"][0]["proof"].replace("index 7", "index 300")
    cases = [
        (whole[: len(whole) // 2], 2, "not JSON"),
        (json.dumps(receipt(origin="aegis.example/other")), 1, "receipt of another log"),
        (json.dumps(later), 1, "wrong signature"),
        (json.dumps(beyond), 1, "index outside the tree"),
        (json.dumps(receipt(entries=[])), 2, "no entries"),
    ]
    file.write_text(whole)
    assert aegis("verify", file, "--vkey", VKEY)[0] == 0
    for text, status, what in cases:
        file.write_text(text)
        got, said = aegis("verify", file, "--vkey", VKEY)
        assert (got, said["ok"]) == (status, False)
        assert what in said["error"]["what"]
        assert said["error"]["where"]
        assert status == 2 or said["error"]["advice"]
        assert file.read_text() == text
