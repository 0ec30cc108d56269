"""Builds the extension aegis_c._native; the rest is in pyproject.toml. Environment switches:
AEGIS_DEBUG=1      -O0 -g3 with assertions; takes the time that calls hold the GIL
AEGIS_SANITIZE=X   -fsanitize=X ("address,undefined" or "thread")
AEGIS_COVERAGE=1   gcov counters
AEGIS_WERROR=1     warnings are errors
AEGIS_OPENSSL=X    "pkg-config" or "/prefix"; unset: pkg-config if it can, else -lcrypto
AEGIS_IO=fault     files fail as tests/io_faults.py says; only for `setup.py build`, never a wheel
"""

import copy
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from glob import glob
from hashlib import sha256

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.modified import newer_group

WARN = "-Wall -Wextra -Wshadow -Wstrict-prototypes -Wmissing-prototypes -Wvla -Wformat=2"
BASE = f"-std=c11 -fvisibility=hidden -fno-strict-aliasing -pthread -D_GNU_SOURCE=1 {WARN}"
CORE_WARNINGS = ["-Wconversion", "-pedantic"]  # not in bind: type slots hold function pointers
HARDEN = "-U_FORTIFY_SOURCE -D_FORTIFY_SOURCE=3 -fstack-protector-strong"
if platform.machine() in ("x86_64", "i686"):
    HARDEN += " -fstack-clash-protection -fcf-protection"
HARDEN_LINK = "-Wl,-z,relro,-z,now,-z,noexecstack" if sys.platform == "linux" else ""
if (IO := os.environ.get("AEGIS_IO", "")) not in ("", "fault"):
    sys.exit(f"AEGIS_IO={IO!r}: expected 'fault'")
FAULTY = IO == "fault"


def openssl(choice: str) -> tuple[list[str], list[str]]:
    """Compiler and linker flags for libcrypto; `choice` is the value of AEGIS_OPENSSL."""
    if choice.startswith("/"):
        a, b = f"{choice}/lib", f"{choice}/lib64"
        return [f"-I{choice}/include"], [f"-L{a}", f"-L{b}", f"-Wl,-rpath,{a}:{b}", "-lcrypto"]
    if choice not in ("", "pkg-config"):
        sys.exit(f"AEGIS_OPENSSL={choice!r}: expected 'pkg-config' or an absolute path")
    ask = [["pkg-config", what, "libcrypto"] for what in ("--cflags", "--libs")]
    try:
        run = [subprocess.run(a, capture_output=True, check=True, text=True) for a in ask]
        return run[0].stdout.split(), run[1].stdout.split()
    except (OSError, subprocess.CalledProcessError):
        if choice:
            sys.exit("AEGIS_OPENSSL=pkg-config, but there is no pkg-config that knows libcrypto")
        return [], ["-lcrypto"]


def flags(switches: Mapping[str, str] = os.environ) -> tuple[list[str], list[str]]:
    """Compiler and linker flags under these switches, the core's own warnings aside."""
    compiler, linker = openssl(switches.get("AEGIS_OPENSSL", ""))
    compiler = [*BASE.split(), "-Iaegis_c/core", *compiler]
    if sanitizers := switches.get("AEGIS_SANITIZE"):
        linker += [f"-fsanitize={sanitizers}"]
        compiler += ["-O1", "-g", "-fno-omit-frame-pointer", "-U_FORTIFY_SOURCE", "-UNDEBUG"]
        compiler += ["-DAG_GIL_TIMES"]
        compiler += [f"-fsanitize={sanitizers}", "-fno-sanitize-recover=all"]
    elif switches.get("AEGIS_DEBUG") or switches.get("AEGIS_COVERAGE"):
        compiler += ["-O0", "-g3", "-U_FORTIFY_SOURCE", "-UNDEBUG", "-DAG_GIL_TIMES"]
    else:
        compiler, linker = ["-O2", *compiler, *HARDEN.split()], linker + HARDEN_LINK.split()
    coverage = ["--coverage"] * bool(switches.get("AEGIS_COVERAGE"))
    werror = ["-Werror"] * bool(switches.get("AEGIS_WERROR"))
    return [*compiler, *coverage, *werror], [*linker, *coverage, "-pthread", "-lm"]


def folder_of(command: list[str]) -> str:
    """Where the objects of one compiler command lie."""
    return f"build/obj-{sha256(repr(command).encode()).hexdigest()[:12]}"


class BuildExt(build_ext):
    """Compiles in parallel, only what changed; core files get the core's warnings as well."""

    def run(self) -> None:
        packed = {"bdist_wheel", "editable_wheel"} & set(self.distribution.command_obj)
        if FAULTY and (self.inplace or packed):
            sys.exit("AEGIS_IO=fault is for tests/io_faults.py: it must not be installed")
        super().run()

    def build_extension(self, ext: Extension) -> None:
        # The core knows nothing of Python: its objects serve every interpreter with these flags.
        core = [*self.compiler.compiler_so, *ext.extra_compile_args, *CORE_WARNINGS]
        bind = [*self.compiler.compiler_so, *ext.extra_compile_args]
        bind += [f"-I{path}" for path in self.compiler.include_dirs]
        self.build_temp = folder_of(bind)
        self.force = self.compiler.force = True  # always link: quick, and flags may have changed

        def compile_one(source: str) -> str:
            cc = core if source.startswith("aegis_c/core/") else bind
            (obj,) = self.compiler.object_filenames([source], output_dir=folder_of(cc))
            if newer_group([source, *ext.depends], obj):
                os.makedirs(os.path.dirname(obj), exist_ok=True)
                # Whole or not at all: another interpreter may build beside this one.
                own = f"{obj}.{os.getpid()}"
                self.spawn([*cc, "-c", source, "-o", own])
                os.replace(own, obj)
            return obj

        ready = copy.copy(ext)
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            ready.sources, ready.extra_objects = [], list(pool.map(compile_one, ext.sources))
        super().build_extension(ready)


if __name__ == "__main__":
    compiler_flags, linker_flags = flags()
    native = Extension(
        "aegis_c._native",
        sources=sorted(glob("aegis_c/core/**/*.c", recursive=True) + glob("aegis_c/bind/*.c"))
        + ["tests/c/io_rules.c"] * FAULTY,
        depends=["setup.py", *sorted(glob("aegis_c/**/*.h", recursive=True))],
        extra_compile_args=compiler_flags,
        extra_link_args=linker_flags + ["-Wl,--wrap=ag_io_posix"] * FAULTY,
    )
    setup(ext_modules=[native], cmdclass={"build_ext": BuildExt})
