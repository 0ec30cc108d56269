"""The guided tour, as users start it: it succeeds on real work and fails when a check fails."""

from __future__ import annotations

import json
import os
import pty
import stat
import subprocess
import sys
from pathlib import Path

import pytest

import aegis_c

PACKAGE_PARENT = str(Path(aegis_c.__file__).resolve().parents[1])
CALLS = ["plain", "stream", "wrong-key", "unknown-model", "not-json"]


def environment(tmp_path: Path) -> dict[str, str]:
    """This test's own; temporary files go where the test can see them."""
    temporary = tmp_path / "tmp"
    temporary.mkdir(exist_ok=True)
    paths = [PACKAGE_PARENT, os.environ.get("PYTHONPATH", "")]
    proxy = "http://127.0.0.1:9"  # nobody listens: the tour must not ask a proxy
    return os.environ | {
        "TMPDIR": str(temporary),
        "PYTHONPATH": os.pathsep.join(p for p in paths if p),
        "http_proxy": proxy,
        "HTTP_PROXY": proxy,
        "ALL_PROXY": proxy,
    }


def python(tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        env=environment(tmp_path),
        check=False,
    )


def aegis(tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return python(tmp_path, "-m", "aegis_c.cli", *arguments)


def broken(tmp_path: Path, patch: str) -> subprocess.CompletedProcess[str]:
    """The tour with one part of it replaced."""
    script = (
        "import sys\nfrom pathlib import Path\nfrom aegis_c import _capture\n"
        f"from aegis_c.demo import guided\n{patch}\nsys.exit(guided.run(None, False))\n"
    )
    return python(tmp_path, "-c", script)


def test_the_tour(tmp_path: Path) -> None:
    folder = tmp_path / "files"
    result = aegis(tmp_path, "demo", "--data", str(folder))
    assert result.returncode == 0, result.stdout + result.stderr
    out = result.stdout
    assert result.stderr == ""
    assert "\x1b" not in out

    # What it says.
    for fact in ("wrong key:     401", "unknown model: 404", "not JSON:      400"):
        assert fact in out
    for name in CALLS:
        assert f"verified: {name}" in out
    assert "refused:  plain, one bit" in out
    assert "not the entry that was logged" in out
    assert str(folder) in out

    # What it leaves: receipts of all five calls, of the right kinds and statuses.
    found = {}
    for name in CALLS:
        receipt = json.loads((folder / "calls" / f"{name}.receipt.json").read_text())
        entries = [json.loads(item["entry"]) for item in receipt["entries"]]
        assert f"entry {receipt['entries'][0]['index']}: " in out
        assert {entry["id"] for entry in entries} == {receipt["id"]}
        found[name] = [(e["kind"], e.get("status")) for e in entries if e["kind"] != "analysis"]
        response = (folder / "calls" / f"{name}.response").read_bytes()
        assert response
        assert any(e.get("response", {}).get("bytes") == len(response) for e in entries)
    assert found == {
        "plain": [("call", 200)],
        "stream": [("intent", 200), ("settle", "done")],
        "wrong-key": [("rejection", 401)],
        "unknown-model": [("call", 404)],
        "not-json": [("rejection", 400)],
    }
    request = json.loads((folder / "calls" / "plain.request").read_bytes())
    assert request["model"] == "aegis-ngram"
    assert (folder / "calls" / "not-json.request").read_bytes() == b"this is not JSON"
    stream = (folder / "calls" / "stream.response").read_bytes()
    assert stream.endswith(b"data: [DONE]\n\n")
    assert stat.S_IMODE((folder / "keys.txt").stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700

    # The tampered copy differs from the ledger in one byte, and anyone can check both again.
    ledger, copy = folder / "gateway" / "ledger", folder / "tampered"
    files = [p.relative_to(ledger) for p in ledger.rglob("*") if p.is_file()]
    assert sorted(p.relative_to(copy) for p in copy.rglob("*") if p.is_file()) == sorted(files)
    differences = [
        (str(path), at)
        for path in files
        for at, (a, b) in enumerate(
            zip((ledger / path).read_bytes(), (copy / path).read_bytes(), strict=True)
        )
        if a != b
    ]
    assert len(differences) == 1
    assert differences[0][0].startswith("w0/tile/entries/")
    vkey = str(ledger / "w0" / "log.vkey")
    assert aegis(tmp_path, "ledger", "fsck", str(ledger), "--vkey", vkey).returncode == 0
    assert aegis(tmp_path, "ledger", "fsck", str(copy), "--vkey", vkey).returncode == 1
    stream_files = folder / "calls" / "stream"
    verified = aegis(
        tmp_path,
        *("verify", f"{stream_files}.receipt.json", "--vkey", vkey),
        *("--request", f"{stream_files}.request", "--response", f"{stream_files}.response"),
    )
    assert verified.returncode == 0, verified.stderr

    # A second tour into the same directory would mix two.
    again = aegis(tmp_path, "demo", "--data", str(folder))
    assert again.returncode == 2
    assert "not empty" in again.stderr
    assert list((tmp_path / "tmp").iterdir()) == []


def test_on_a_terminal_it_is_coloured_and_leaves_nothing(tmp_path: Path) -> None:
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "aegis_c.cli", "demo"],
        stdout=slave,
        stderr=slave,
        env={**environment(tmp_path), "TERM": "xterm-256color", "NO_COLOR": ""},
    )
    os.close(slave)
    out = b""
    try:
        while data := os.read(master, 65536):
            out += data
    except OSError:
        pass  # how Linux says that the other side is closed
    os.close(master)
    assert process.wait(60) == 0, out.decode()
    assert b"\x1b[" in out
    assert b"verified: stream" in out
    assert list((tmp_path / "tmp").iterdir()) == []


def test_a_body_that_does_not_verify_fails_the_tour(tmp_path: Path) -> None:
    """The capture loses a byte, as a buggy one would: the receipt must not match."""
    result = broken(
        tmp_path,
        "add = _capture._Body.add\n"
        "_capture._Body.add = lambda self, chunk: add(self, chunk.replace(b'chat', b'chatt'))",
    )
    assert result.returncode == 1
    assert "FAILED" in result.stdout
    assert "did not verify" in result.stdout
    assert "Proven" not in result.stdout
    assert list((tmp_path / "tmp").iterdir()) == []


def test_a_blind_fsck_fails_the_tour(tmp_path: Path) -> None:
    result = broken(
        tmp_path,
        "real = guided._aegis\n"
        "def blind(arguments):\n"
        "    result = real(arguments)\n"
        "    if 'fsck' in arguments: result.returncode = 0\n"
        "    return result\n"
        "guided._aegis = blind",
    )
    assert result.returncode == 1
    assert "fsck did not find the change" in result.stdout
    assert "Proven" not in result.stdout


def test_a_gateway_that_does_not_start_fails_the_tour(tmp_path: Path) -> None:
    result = broken(
        tmp_path,
        "def bad(self, keys):\n"
        "    path = self._folder / 'aegis.toml'\n"
        "    path.write_text('prot = 1')\n"
        "    return path\n"
        "guided._Tour._settings = bad",
    )
    assert result.returncode == 1
    assert "the gateway did not start" in result.stdout
    assert "prot" in result.stdout  # the gateway's own reason


def test_without_the_openai_client_it_says_what_to_install(tmp_path: Path) -> None:
    result = broken(tmp_path, "guided.find_spec = lambda name: None")
    assert result.returncode == 2
    assert "pip install 'aegis-c[demo]'" in result.stderr
    assert list((tmp_path / "tmp").iterdir()) == []


@pytest.mark.parametrize("kind", ["file", "below a file"])
def test_a_directory_that_cannot_be(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "plain"
    path.write_text("here")
    target = path if kind == "file" else path / "sub"
    result = aegis(tmp_path, "demo", "--data", str(target))
    assert result.returncode == 2
    assert str(target) in result.stderr
    assert path.read_text() == "here"
