"""Compiles one C program with the core, for the crash, mutant and fuzz runs."""

from __future__ import annotations

import hashlib
import os
import shlex
import subprocess
import sysconfig
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("base", "hash", "http", "log", "wal")
FLAGS = ["-std=c11", "-D_GNU_SOURCE=1", "-Iaegis_c/core", "-Itests/c", "-pthread"]


CRASH_PARTS = ("memfs", "crash_check", "crash_states")


def compiler() -> list[str]:
    return shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc")


def core(without: Sequence[str] = (), folders: Sequence[str] = FOLDERS) -> list[str]:
    """Source files of the core, relative to the root."""
    files = [p for folder in folders for p in (ROOT / "aegis_c/core" / folder).glob("*.c")]
    names = sorted(str(p.relative_to(ROOT)) for p in files)
    return [name for name in names if Path(name).name not in without]


def build(
    name: str,
    sources: Sequence[str],
    *flags: str,
    without: Sequence[str] = (),
    folders: Sequence[str] = FOLDERS,
    cc: Sequence[str] | None = None,
) -> Path:
    """Path of the program; compiled again only when a source or the command has changed."""
    folder = ROOT / "build" / "native"
    folder.mkdir(parents=True, exist_ok=True)
    command = [
        *(cc or compiler()),
        *FLAGS,
        *flags,
        *sources,
        *core(without, folders),
        "-lcrypto",
        "-lm",
    ]
    inputs = [*(ROOT / "aegis_c/core").rglob("*.[ch]"), *(ROOT / "tests/c").glob("*.[ch]")]
    inputs += [ROOT / source for source in sources]
    state = hashlib.sha256(repr(command).encode())
    for path in sorted(inputs):
        state.update(path.read_bytes())
    program = folder / f"{name}-{state.hexdigest()[:12]}"
    if not program.exists():
        for old in folder.glob(f"{name}-" + "?" * 12):
            old.unlink()
        partial = program.with_suffix(f".{os.getpid()}")
        subprocess.run([*command, "-o", str(partial)], cwd=ROOT, check=True)
        partial.replace(program)
    return program


def crash_program() -> Path:
    """tests/c/crash_wal.c."""
    parts = [f"tests/c/{part}.c" for part in ("crash_wal", *CRASH_PARTS)]
    return build("crash_wal", parts, "-O2")
