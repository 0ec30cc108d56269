"""The tests of the tree once more, with an extension whose every call gives up the interpreter."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
SPEC = importlib.util.find_spec("aegis_c")
assert SPEC is not None and SPEC.origin is not None
PACKAGE = Path(SPEC.origin).parent


def test_the_suite_passes_when_every_call_detaches(tmp_path: Path) -> None:
    """The same module with AG_DETACH_MIN 0: no path needs the interpreter while it hashes."""
    package = tmp_path / "aegis_c"
    no_native = shutil.ignore_patterns("*.so", "__pycache__")
    shutil.copytree(PACKAGE, package, ignore=no_native)
    command = [sys.executable, "setup.py", "-q", "build_ext", "--build-lib", str(tmp_path)]
    flags = {"CFLAGS": f"{os.environ.get('CFLAGS', '')} -DAG_DETACH_MIN=0"}
    built = subprocess.run(
        command, cwd=ROOT, env=os.environ | flags, capture_output=True, text=True, timeout=300
    )
    assert built.returncode == 0, built.stderr
    names = ("mmr", "functions", "threads")
    tests = [str(ROOT / "tests" / f"test_tree_{name}.py") for name in names]
    path = {"PYTHONPATH": str(tmp_path)}
    run = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-x",
            "-p",
            "no:cacheprovider",
            "-k",
            "not leaks",
            *tests,
        ],
        cwd=tmp_path,
        env=os.environ | path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stdout
    where = subprocess.run(
        [sys.executable, "-c", "from aegis_c import _native; print(_native.__file__)"],
        cwd=tmp_path,
        env=os.environ | path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert where.stdout.startswith(str(tmp_path))
