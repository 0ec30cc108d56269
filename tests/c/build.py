"""Compiles and runs the plain C tests of the core: tests/c/test_*.c, without an interpreter.

Every flavour (a set of sanitizers) has a folder under build/c/ with the objects, an archive of the
core's, and the programs; only what changed is made again. tests/test_core_c.py runs them all; by
hand: `python tests/c/build.py [--flavour asan] [test_mmr ...]`.

A line `// links: alloc_fault` in a test program adds tests/c/alloc_fault.c. It is linked before
the archive, so its functions take the place of the core's file that defines the same ones. A line
`// threads: none` says that nothing in the program starts a thread: ThreadSanitizer is left out.
`// only: asan` leaves it out too: of many repetitions of what another program does once under it.
"""

from __future__ import annotations

import argparse
import fcntl
import functools
import hashlib
import importlib.util
import os
import re
import shlex
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
SANITIZERS = {"asan": "address,undefined", "tsan": "thread"}
OPTIONS = {
    "ASAN_OPTIONS": "detect_leaks=1:detect_stack_use_after_return=1:strict_string_checks=1",
    "UBSAN_OPTIONS": "print_stacktrace=1",
    "TSAN_OPTIONS": "halt_on_error=1:second_deadlock_stack=1",
}
RUN_SECONDS = 300


class CommandFailed(Exception):
    """A compiler, linker or test program failed; the text is the command and its output."""


class Built(NamedTuple):
    programs: dict[str, Path]  # by the stem of the source: "test_mmr"
    errors: dict[str, str]  # by source or program: what the compiler or linker said


def sources(flavour: str) -> list[Path]:
    """The test programs that a flavour has something to say about, sorted."""
    programs = sorted((ROOT / "tests" / "c").glob("test_*.c"))
    if flavour == "tsan":
        texts = {path: path.read_text() for path in programs}
        marks = ("// threads: none\n", "// only: asan\n")
        return [p for p, text in texts.items() if not any(mark in text for mark in marks)]
    return programs


def run(command: list[str], **env: str) -> str:
    """Runs a command in the root of the project; its output. Raises CommandFailed."""
    try:
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=os.environ | env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=RUN_SECONDS,
            text=True,
            errors="replace",
        )
    except subprocess.TimeoutExpired as error:
        output = error.output.decode(errors="replace") if error.output else ""
        raise CommandFailed(
            f"{shlex.join(command)}\n{output}no end after {RUN_SECONDS} s"
        ) from None
    except OSError as error:
        raise CommandFailed(f"{shlex.join(command)}\n{error}") from None
    if done.returncode != 0:
        raise CommandFailed(f"{shlex.join(command)}\n{done.stdout}exit status {done.returncode}")
    return done.stdout


def run_program(program: Path) -> str:
    """Runs a test program with the sanitizers' options; its output. Raises CommandFailed."""
    return run([str(program)], **OPTIONS)


@functools.cache
def setup_py() -> ModuleType:
    """setup.py as a module: the one place that knows the flags."""
    spec = importlib.util.spec_from_file_location("aegis_setup", ROOT / "setup.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def compiler() -> list[str]:
    """The compiler that builds the extension too: $CC, else the interpreter's own."""
    return shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc")


def commands(flavour: str) -> tuple[list[str], list[str]]:
    """The compiler with its flags, and the flags of the linker, under this flavour."""
    switches = {"AEGIS_SANITIZE": SANITIZERS[flavour], "AEGIS_WERROR": "1"}
    if "AEGIS_OPENSSL" in os.environ:
        switches["AEGIS_OPENSSL"] = os.environ["AEGIS_OPENSSL"]
    compile_flags, link_flags = setup_py().flags(switches)
    return [*compiler(), *compile_flags], link_flags


def missing(flavour: str) -> str | None:
    """Why programs of this flavour do not build or run on this machine; None when they do."""
    folder = ROOT / "build" / "c"
    folder.mkdir(parents=True, exist_ok=True)
    probe = folder / f"probe-{flavour}-{os.getpid()}"
    source = probe.with_suffix(".c")
    source.write_text("int main(void) { return 0; }\n")
    try:
        run([*compiler(), f"-fsanitize={SANITIZERS[flavour]}", str(source), "-o", str(probe)])
        run_program(probe)
    except CommandFailed as error:
        return str(error)
    finally:
        source.unlink()
        probe.unlink(missing_ok=True)
    return None


def digest(value: object) -> str:
    """A short name for what a file was made with."""
    return hashlib.sha256(repr(value).encode()).hexdigest()[:8]


def is_older(target: Path, inputs: list[Path]) -> bool:
    """True when `target` or an input is missing, or an input is newer."""
    try:
        made = target.stat().st_mtime_ns
        return any((ROOT / path).stat().st_mtime_ns > made for path in inputs)
    except OSError:
        return True


def compile_object(command: list[str], folder: Path, source: Path) -> Path:
    """Compiles one file unless its object is newer than all that it was made of."""
    name = source.relative_to(ROOT)
    target = folder / name.with_suffix(".o")
    rule = target.with_suffix(".d")  # "target: source header ..." as the compiler wrote it
    inputs = [source]
    if rule.exists():
        words = re.split(r"(?<!\\)\s+", rule.read_text().replace("\\\n", " ").strip())
        inputs = [Path(word.replace("\\ ", " ")) for word in words[1:]]
    if not rule.exists() or is_older(target, inputs):
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)
        own = setup_py().CORE_WARNINGS if name.parts[0] == "aegis_c" else []
        # -MQ: a fixed name, since make's escaping of a path is not ours to parse
        depend = ["-MMD", "-MF", str(rule), "-MQ", "object"]
        run([*command, *own, *depend, "-c", str(name), "-o", str(target)])
    return target


def link_program(flags: list[str], folder: Path, source: Path, archive: Path) -> Path:
    """Links one test program with the helpers that it names, unless it is up to date."""
    target = folder / source.stem
    names = re.findall(r"^\W*links: ([\w ]+)", source.read_text(), re.MULTILINE)
    own = [source.stem, *(" ".join(names).split())]
    inputs = [*(folder / "tests" / "c" / f"{name}.o" for name in own), archive]
    if is_older(target, inputs):
        target.unlink(missing_ok=True)
        run([*compiler(), *map(str, inputs), *flags, "-o", str(target)])
    return target


def build(flavour: str) -> Built:
    """Makes every test program of a flavour. What fails is reported, the rest is made."""
    compile_command, link_flags = commands(flavour)
    folder = ROOT / "build" / "c" / f"{flavour}-{digest((compile_command, link_flags))}"
    folder.mkdir(parents=True, exist_ok=True)
    errors: dict[str, str] = {}

    def attempt(name: str, make: functools.partial[Path]) -> Path | None:
        try:
            return make()
        except CommandFailed as error:
            errors[name] = str(error)
            return None

    with open(folder / "lock", "w") as lock, ThreadPoolExecutor(os.cpu_count()) as pool:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two runs at the same time take turns

        def compile_all(files: list[Path]) -> list[Path]:
            def one(source: Path) -> Path | None:
                make = functools.partial(compile_object, compile_command, folder, source)
                return attempt(str(source.relative_to(ROOT)), make)

            return [made for made in pool.map(one, files) if made is not None]

        core = compile_all(sorted((ROOT / "aegis_c" / "core").rglob("*.c")))
        compile_all(sorted((ROOT / "tests" / "c").glob("*.c")))
        archive = folder / f"libcore-{digest(core)}.a"
        if is_older(archive, core):
            archive.unlink(missing_ok=True)
            run(["ar", "rcs", str(archive), *map(str, core)])

        def link(source: Path) -> Path | None:
            make = functools.partial(link_program, link_flags, folder, source, archive)
            return attempt(source.stem, make)

        wanted = sources(flavour)
        made = zip(wanted, pool.map(link, wanted), strict=True)
        return Built({source.stem: path for source, path in made if path}, errors)


def main() -> int:
    """Builds and runs the named programs, or all; 1 when anything failed."""
    parser = argparse.ArgumentParser(description="Build and run the plain C tests.")
    parser.add_argument("--flavour", choices=SANITIZERS, action="append")
    parser.add_argument("program", nargs="*", help="test_<unit>; all when none is named")
    arguments = parser.parse_args()
    failed = False
    for flavour in arguments.flavour or SANITIZERS:
        programs, errors = build(flavour)
        for text in errors.values():
            failed = True
            print(text, file=sys.stderr)
        for name in arguments.program or sorted(programs):
            try:
                if name not in programs:
                    raise CommandFailed("not built")
                run_program(programs[name])
                print(f"{flavour} {name}: ok")
            except CommandFailed as error:
                failed = True
                print(f"{flavour} {name}: FAILED\n{error}", file=sys.stderr)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
