"""`./dev fuzz`: libFuzzer with ASan and UBSan on every target here, `--seconds S` each (60).

Needs clang with its sanitizer runtime. A crash is written to build/native/; put the input into
tests/fuzz/corpus/<target>/ together with the fix: the suite runs those files without a fuzzer.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
sys.path.insert(0, str(FOLDER.parent))
import wal_native as native  # noqa: E402

SANITIZE = ("-g", "-O1", "-fno-sanitize-recover=all")


def targets() -> list[str]:
    return sorted(path.stem for path in FOLDER.glob("fuzz_*.c"))


def corpus(target: str) -> list[Path]:
    return sorted(p for p in (FOLDER / "corpus" / target).glob("*") if p.is_file())


def folders(target: str) -> tuple[str, ...]:
    """The core that a target needs: parsers and limiters stand on few files."""
    few = {
        "text": ("base", "text"),
        "http": ("base", "hash", "http"),
        "limit": ("base", "hash", "limit"),
    }
    return few.get(target.split("_")[1], native.FOLDERS)


def regression(target: str) -> Path:
    """The target with the plain driver, under the sanitizers of the usual compiler."""
    sources = [f"tests/fuzz/{target}.c", "tests/fuzz/driver.c"]
    flags = (*SANITIZE, "-fsanitize=address,undefined")
    return native.build(target, sources, *flags, folders=folders(target))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("target", nargs="*", choices=[[], *targets()])
    arguments = parser.parse_args()
    clang = next((c for c in ("clang", "clang-19", "clang-14") if shutil.which(c)), None)
    if clang is None:
        print("fuzz: no clang (sudo apt-get install clang libclang-rt-14-dev)", file=sys.stderr)
        return 2
    failed = 0
    for target in arguments.target or targets():
        program = native.build(
            f"{target}-libfuzzer", [f"tests/fuzz/{target}.c"], *SANITIZE,
            "-fsanitize=fuzzer,address,undefined", folders=folders(target), cc=[clang],
        )  # fmt: skip
        work = native.ROOT / "build" / "native" / f"corpus-{target}"
        work.mkdir(exist_ok=True)
        command = [str(program), f"-max_total_time={arguments.seconds}", "-print_final_stats=1",
                   "-max_len=8192", f"-artifact_prefix={work.parent}/", str(work)]  # fmt: skip
        if corpus(target):
            command.append(str(FOLDER / "corpus" / target))
        done = subprocess.run(command, capture_output=True, text=True)
        tail = [line for line in done.stderr.splitlines() if "stat::" in line or "ERROR" in line]
        print(f"{target}: {'ok' if done.returncode == 0 else 'FAILED'}")
        tail[3:] = [line for line in done.stderr.splitlines() if "DONE" in line]  # coverage
        print("\n".join(f"  {line}" for line in tail))
        if done.returncode != 0:
            print(done.stderr[-3000:])
            failed = 1
    return failed


if __name__ == "__main__":
    sys.exit(main())
