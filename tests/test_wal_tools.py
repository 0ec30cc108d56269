"""`aegis-c wal verify | dump | salvage | accept-tail`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from aegis_c import WalReader, WalWriter
from aegis_c.ledger.wal_tools import app, gaps

invoke = CliRunner().invoke


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "wal"
    with WalWriter(path, segment_bytes=65536, ring_bytes=65536) as wal:
        for k in range(6):
            wal.append(b"text %d" % k if k % 2 else b"\xff%d" % k)
            wal.sync()
    return path


def flip(log: Path, offset: int) -> bytes:
    segment = log / "wal-0000000000000001.seg"
    data = bytearray(segment.read_bytes())
    data[offset] ^= 1
    segment.write_bytes(data)
    return bytes(data)


def tree(path: Path) -> dict[str, bytes]:
    return {str(p.relative_to(path)): p.read_bytes() for p in path.rglob("*") if p.is_file()}


def test_verify(log: Path) -> None:
    before = tree(log)
    done = invoke(app, ["verify", str(log)])
    assert done.exit_code == 0 and done.output.endswith("ok\n")
    found = json.loads(invoke(app, ["verify", str(log), "--json"]).output)
    assert found["ok"] and found["last_seq"] == 6 and found["clean_close"]
    assert tree(log) == before


def test_verify_beside_a_writer(log: Path) -> None:
    with WalWriter(log) as wal:
        wal.append(b"x")
        wal.sync()
        done = invoke(app, ["verify", str(log)])
        assert done.exit_code == 0 and "a writer holds the log" in done.output
        wal.append(b"y")  # it was not disturbed
        assert wal.sync() == 8


def test_exit_status(log: Path, tmp_path: Path) -> None:
    assert invoke(app, ["verify", str(tmp_path / "nothing")]).exit_code == 2
    assert invoke(app, ["dump", str(tmp_path / "nothing")]).exit_code == 2
    out = str(tmp_path / "out")
    assert invoke(app, ["salvage", str(tmp_path / "nothing"), "--to", out]).exit_code == 2
    flip(log, 4096 * 2 + 70)
    done = invoke(app, ["verify", str(log), "--json"])
    assert done.exit_code == 1
    report = json.loads(done.output)
    assert not report["ok"] and report["offset"] == 8192 and report["seq"] == 2
    assert "accept-tail" in report["advice"]


def test_dump(log: Path) -> None:
    lines = [json.loads(line) for line in invoke(app, ["dump", str(log)]).output.splitlines()]
    assert [line["seq"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert lines[0]["base64"] == "/zA=" and lines[1]["text"] == "text 1"
    later = invoke(app, ["dump", str(log), "--from", "5"]).output.splitlines()
    assert [json.loads(line)["seq"] for line in later] == [5, 6]


def test_salvage_reads_past_a_hole(log: Path, tmp_path: Path) -> None:
    flip(log, 4096 * 3 + 70)
    before = tree(log)
    out = tmp_path / "out"
    done = invoke(app, ["salvage", str(log), "--to", str(out)])
    assert done.exit_code == 1 and "lost: sequence 3 to 3" in done.output
    lines = [json.loads(line) for line in (out / "records.jsonl").read_text().splitlines()]
    assert [line["seq"] for line in lines] == [1, 2, 4, 5, 6]
    assert json.loads((out / "report.json").read_text())["lost"] == [[3, 3]]
    assert tree(log) == before
    again = invoke(app, ["salvage", str(log), "--to", str(out)])
    assert again.exit_code == 2 and "is there already" in again.output


def test_salvage_without_LOG(log: Path, tmp_path: Path) -> None:
    (log / "LOG").unlink()
    done = invoke(app, ["salvage", str(log), "--to", str(tmp_path / "out"), "--json"])
    assert done.exit_code == 0 and json.loads(done.output)["records"] == 6


def test_accept_tail(log: Path) -> None:
    damaged = flip(log, 4096 * 4 + 70)
    for at, seq in ((4096 * 4, 4), (4096 * 3, 3), (4096 * 5, 4)):
        done = invoke(app, ["accept-tail", str(log), "--at", str(at), "--expect-seq", str(seq)])
        assert done.exit_code == 1, (at, seq)  # not the place
    order = ["accept-tail", str(log), "--at", str(4096 * 4), "--expect-seq", "3"]
    done = invoke(app, order)
    assert done.exit_code == 0, done.output
    assert [seq for seq, _ in WalReader(log)] == [1, 2, 3]
    copy = log.with_name(f"wal.before-accept-{4096 * 4}-3")
    assert (copy / "wal-0000000000000001.seg").read_bytes() == damaged
    assert (log / "wal-0000000000000001.seg").read_bytes() == damaged  # never changed
    assert invoke(app, ["verify", str(log)]).exit_code == 0
    assert invoke(app, order).exit_code != 0  # there is nothing to accept any more


def test_gaps() -> None:
    assert gaps([1, 2, 5, 6, 9]) == [(3, 4), (7, 8)]
    assert gaps([]) == []
