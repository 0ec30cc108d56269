"""Optional components of the machine that some tests need.

A test calls `require()` first. Without the component it is skipped, and the run ends with a line
`NOT RUN: <what> (<how to get it>)`. With CI=true nothing is left out silently: the component is
installed where that is possible (root, apt-get, AEGIS_NO_APT unset), else the test fails.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from typing import NoReturn

import pytest

NOT_RUN = "NOT RUN: "


def require(what: str, missing: Callable[[], str | None], packages: str) -> None:
    """Skips (with CI=true: fails) the calling test unless `missing()` returns None.

    `missing` returns why the component cannot be used; `packages` are Debian's, space-separated.
    """
    reason = missing()
    if reason is not None and in_ci() and may_install():
        install(packages)
        reason = missing()
    if reason is not None:
        leave_out(what, f"sudo apt-get install {packages}", reason)


def leave_out(what: str, how: str, reason: str) -> NoReturn:
    """Skips (with CI=true: fails) the calling test and has the run end with a NOT RUN line."""
    line = f"{what} ({how})"
    if in_ci():
        pytest.fail(f"CI=true, but this machine lacks: {line}\n{reason}", pytrace=False)
    why = (reason.strip().splitlines() or ["no reason given"])[-1]
    pytest.skip(f"{NOT_RUN}{line}\n{why}")


def left_out(report: pytest.TestReport) -> str | None:
    """The NOT RUN line of a test that leave_out() skipped, maybe in another process."""
    if not report.skipped or not isinstance(report.longrepr, tuple):
        return None
    said = report.longrepr[2].removeprefix("Skipped: ").splitlines()
    return said[0] if said and said[0].startswith(NOT_RUN) else None


def in_ci() -> bool:
    return os.environ.get("CI") == "true"


def may_install() -> bool:
    wanted = os.environ.get("AEGIS_NO_APT", "") in ("", "0")
    return wanted and os.geteuid() == 0 and shutil.which("apt-get") is not None


def install(packages: str) -> None:
    apt = ["apt-get", "-qq", "-o", "DPkg::Lock::Timeout=120"]
    env = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    subprocess.run([*apt, "update"], env=env, timeout=300, check=False)
    command = [*apt, "install", "-y", "--no-install-recommends", *packages.split()]
    subprocess.run(command, env=env, timeout=600, check=False)
