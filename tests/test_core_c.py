"""The plain C tests of the core, each under AddressSanitizer + UBSan (with leak detection) and
under ThreadSanitizer: no interpreter, no suppressions. See tests/c/build.py."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest

from c import build
from components import require

FLAVOURS = sorted(build.SANITIZERS)


@functools.cache
def built(flavour: str) -> build.Built:
    # On Debian the libraries of the sanitizers come with the compiler.
    require(f"C tests under {flavour}", lambda: build.missing(flavour), "gcc libc6-dev")
    return build.build(flavour)


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_every_c_file_compiles_and_links(flavour: str) -> None:
    assert "\n\n".join(built(flavour).errors.values()) == ""


@pytest.mark.parametrize(
    ("program", "flavour"),
    [(source.stem, flavour) for flavour in FLAVOURS for source in build.sources(flavour)],
)
def test_c(program: str, flavour: str) -> None:
    programs, errors = built(flavour)
    if program not in programs:
        pytest.fail(f"{program} was not built:\n" + "\n".join(errors.values()), pytrace=False)
    failure = None
    try:
        build.run_program(programs[program])
    except build.CommandFailed as error:
        failure = str(error)
    if failure is not None:
        pytest.fail(failure, pytrace=False)


def test_a_program_without_threads_can_start_none() -> None:
    marked = [s for s in build.sources("asan") if "// threads: none\n" in s.read_text()]
    single = {source.stem for source in marked}
    assert len(single) > 5
    programs = built("asan").programs
    for name in single & programs.keys():
        assert "pthread_create" not in build.run(["nm", "--undefined-only", str(programs[name])])


BROKEN_C = """
#include "check.h"
#include <pthread.h>
static volatile int32_t n = 1;
static char *volatile p;
static void *add(void *unused) { n = n + 1; return unused; }
static void broken(void) { %s }
int main(void) { RUN(broken); return p == (char *)add; }
"""
RACE = "pthread_t t; pthread_create(&t, NULL, add, NULL); add(NULL); pthread_join(t, NULL);"
BROKEN = {
    "a leak": ("asan", "p = malloc(9); p = NULL;", "9 byte(s) leaked"),
    "a read past the end": (
        "asan",
        "p = malloc(8); n = p[7 + n]; free(p);",
        "heap-buffer-overflow",
    ),
    "undefined arithmetic": ("asan", "n = n + INT32_MAX;", "signed integer overflow"),
    "a race": ("tsan", RACE, "data race"),
    "a failed assertion": ("tsan", "ASSERT_EQ(n, 7);", "broken: n == 7, but 1 and 7"),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_the_flavours_catch(fault: str, tmp_path: Path) -> None:
    flavour, body, says = BROKEN[fault]
    built(flavour)
    source = tmp_path / "broken.c"
    source.write_text(BROKEN_C % body)
    program = tmp_path / "broken"
    compile_command, link_flags = build.commands(flavour)
    build.run([*compile_command, "-Itests/c", str(source), "-o", str(program), *link_flags])
    with pytest.raises(build.CommandFailed) as failure:
        build.run_program(program)
    assert says in str(failure.value)
