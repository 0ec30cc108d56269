"""The fuzz targets without a fuzzer: their corpus, and random inputs, under ASan and UBSan."""

from __future__ import annotations

import subprocess

import pytest

import components
from c import build
from fuzz import run


@pytest.mark.parametrize("target", run.targets())
def test_fuzz_target(target: str) -> None:
    components.require("C tests under asan", lambda: build.missing("asan"), "gcc libc6-dev")
    program = run.regression(target)
    files = [str(path) for path in run.corpus(target)]
    command = [str(program), "20000", "1", *files]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
