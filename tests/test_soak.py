"""The short form of `./dev soak`: every scenario holds."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import soak

SCRIPT = Path(__file__).with_name("soak.py")


@pytest.mark.parametrize("name", [n for n in soak.SCENARIOS if n != "chaos"])  # test_chaos.py
def test_scenario(name: str) -> None:
    command = [sys.executable, SCRIPT, "--short", name]
    done = subprocess.run(command, capture_output=True, text=True, timeout=80)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{name}: held" in done.stdout


def test_unknown_names_are_refused() -> None:
    done = subprocess.run([sys.executable, SCRIPT, "nothing"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "there are calls, streams" in done.stderr


def test_a_leak_is_noticed(tmp_path: Path) -> None:
    """The judgement itself: growth beyond what the entries take fails."""

    class Leaky:
        process = type("Process", (), {"resident_mib": staticmethod(lambda: 200.0)})

    it = soak.Soak(tmp_path, short=True)
    it.check_memory("fine", 195.0, Leaky, 100)  # type: ignore[arg-type]
    with pytest.raises(soak.Failed, match=r"grew by 50\.0 MiB"):
        it.check_memory("leak", 150.0, Leaky, 100)  # type: ignore[arg-type]
