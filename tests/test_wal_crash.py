"""The short forms of `./dev crash` and `./dev mutants`."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

import crash
import mutants
import wal_native as native

CORE = Path(native.ROOT) / "aegis_c" / "core"


def test_crash_states() -> None:
    """20 seconds of crash states, other ones in every run; `./dev crash` opens a million."""
    import secrets

    program = native.crash_program()
    seed = str(secrets.randbits(31))
    command = [str(program), "--seconds", "20", "--seed", seed]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    count = re.search(r"(\d+) crash states", done.stdout)
    assert count is not None and int(count[1]) > 10_000, done.stdout


def test_a_ledger_that_is_killed_at_every_call() -> None:
    command = [str(crash.program("kill_ledger"))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_every_mutant_of_the_sources_is_in_the_table() -> None:
    text = "".join(path.read_text() for path in CORE.rglob("*.[ch]"))
    assert set(re.findall(r"AG_MUTANT_(\w+)", text)) == set(mutants.MUTANTS)


@pytest.mark.parametrize("name", sorted(set(mutants.MUTANTS) - {"RETRY_SYNC"}))
def test_mutant_is_caught(name: str) -> None:
    _what, check = mutants.MUTANTS[name]
    passed, said = mutants.run(check, f"-DAG_MUTANT_{name}")
    assert not passed, said
