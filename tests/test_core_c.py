"""The plain C tests of the core, each under AddressSanitizer + UBSan (with leak detection) and
under ThreadSanitizer: no interpreter, no suppressions. See tests/c/build.py."""

from __future__ import annotations

import functools

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


@pytest.mark.parametrize("flavour", FLAVOURS)
@pytest.mark.parametrize("program", [source.stem for source in build.sources()])
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
