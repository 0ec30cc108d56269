"""A published folder and a receipt pass the Go project's own transparency-log packages."""

import functools
import os
import subprocess
from pathlib import Path

import pytest

import components
from aegis_c import Ledger
from logs import entry

pytestmark = pytest.mark.native

SOURCES = Path(__file__).parent / "interop"
ENTRIES, EARLIER = 700, 300


@functools.cache
def program() -> Path | str:
    """The compiled checker; or why there is none."""
    target = Path(__file__).parents[1] / "build" / "interop"
    target.parent.mkdir(exist_ok=True)
    try:
        done = subprocess.run(
            ["go", "build", "-o", str(target), "."],
            cwd=SOURCES,
            env=os.environ | {"GOFLAGS": "-mod=readonly -buildvcs=false"},
            capture_output=True,
            text=True,
            timeout=120,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return target if done.returncode == 0 else done.stderr or "go build failed"


def missing() -> str | None:
    found = program()
    return found if isinstance(found, str) else None


def run(*arguments: Path) -> subprocess.CompletedProcess[str]:
    command = [str(program()), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


@pytest.fixture
def evidence(tmp_path: Path) -> list[Path]:
    """A log, an earlier checkpoint of it, and the receipt of an entry with the entry."""
    components.require("check by Go's transparency-log packages", missing, "golang-go")
    files = [tmp_path / name for name in ("ledger/w0", "earlier", "proof", "entry")]
    with Ledger(files[0], origin="aegis.example/interop/w0") as ledger:
        for number in range(EARLIER):
            ledger.submit(entry(number))
        ledger.wait(EARLIER - 1, "published", 30)
        files[1].write_bytes(ledger.checkpoint())
        for number in range(EARLIER, ENTRIES):
            ledger.submit(entry(number))
        ledger.wait(ENTRIES - 1, "published", 30)
        files[2].write_bytes(ledger.receipt(42))
        files[3].write_bytes(ledger.entry(42))
    return files


def test_go_verifies_checkpoints_every_inclusion_consistency_and_a_receipt(
    evidence: list[Path],
) -> None:
    done = run(*evidence)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("verified 70")
    folder, *others = evidence
    files = [folder / "checkpoint", folder / "tile/0/001", folder / "tile/entries/002.p/188"]
    bundles = sorted((folder / "tile/entries").rglob("*"))
    files[2] = next(path for path in reversed(bundles) if path.is_file())
    for path in (*files, *others):
        whole = path.read_bytes()
        path.write_bytes(whole.replace(b"7", b"8") if path != files[1] else bytes(len(whole)))
        if path.read_bytes() != whole:
            assert run(*evidence).returncode == 1, path
        path.write_bytes(whole)
    assert run(*evidence).returncode == 0
