"""What a measurement was made on; every result carries it."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import aegis_c


def describe(directory: Path) -> dict[str, Any]:
    """The machine and the versions; ``directory`` is where the measured files lie."""
    return {
        "cpu": _field("/proc/cpuinfo", "model name"),
        "cores": len(os.sched_getaffinity(0)),
        "virtual": " hypervisor " in _field("/proc/cpuinfo", "flags") + " ",
        "memory_gib": round(int(_field("/proc/meminfo", "MemTotal").split()[0]) / 2**20, 1),
        "kernel": platform.release(),
        "filesystem": _filesystem(directory),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "aegis": aegis_c.__version__,
        "commit": _commit(),
        "sha256": aegis_c.kernels()["sha256"],
        "load_before": round(os.getloadavg()[0], 2),
    }


def _field(path: str, name: str) -> str:
    """The value of the first ``name: value`` line of a file of /proc."""
    for line in Path(path).read_text().splitlines():
        key, _, value = line.partition(":")
        if key.strip() == name:
            return value.strip()
    return "unknown"


def _filesystem(directory: Path) -> str:
    """The type of the file system that holds ``directory``: the longest mount point above it."""
    best, kind = "", "unknown"
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, mount, name, *_ = line.split()
        if directory.resolve().is_relative_to(mount) and len(mount) >= len(best):
            best, kind = mount, name
    return kind


def _commit() -> str:
    """The commit measured, with ``+`` when files differ from it; empty outside a checkout."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        head = subprocess.run(
            [*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True
        )
        diff = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True)
    except OSError:
        return ""
    return head.stdout.strip() + ("+" if diff.stdout else "")


def quantile(samples: list[float], fraction: float) -> float:
    """The sample below which ``fraction`` of them lie (nearest rank); not for an empty list."""
    ordered = sorted(samples)
    return ordered[round(fraction * (len(ordered) - 1))]


def resident_bytes(pid: int | str = "self") -> int:
    """Resident memory of a process."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
