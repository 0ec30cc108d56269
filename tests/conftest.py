"""What every test may use: reproducible random numbers, free ports, the NOT RUN lines."""

from __future__ import annotations

import os
import random
import secrets
import socket
from collections.abc import Callable, Iterator

import pytest

import components

try:
    import hypothesis
except ImportError:  # the smoke run under other Python versions needs only pytest
    pass
else:
    # Deadlines measure a busy machine, not the code under test.
    hypothesis.settings.register_profile("default", deadline=None, print_blob=True)
    hypothesis.settings.register_profile("thorough", deadline=None, max_examples=2000)
    hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))

SEED = os.environ.get("AEGIS_TEST_SEED") or str(secrets.randbits(32))


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> random.Random:
    """Random numbers of this test alone: the same for the same seed, whatever else runs.

    The seed is new in every run; a failure prints it, AEGIS_TEST_SEED repeats it.
    """
    request.node.user_properties.append(("seed", SEED))
    return random.Random(f"{SEED} {request.node.name}")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    report = yield
    if report.failed and ("seed", SEED) in item.user_properties:
        report.sections.append(("seed", f"repeat with AEGIS_TEST_SEED={SEED}"))
    return report


@pytest.fixture
def free_port() -> Callable[[], int]:
    """A function that returns a TCP port of 127.0.0.1 that nothing listened on just now."""

    def pick() -> int:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port: int = probe.getsockname()[1]
            return port

    return pick


_not_run: dict[str, None] = {}


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    line = components.left_out(report)
    if line is not None:
        _not_run[line] = None


def pytest_unconfigure() -> None:
    """Last lines of the run: what an absent component left out."""
    for line in _not_run:
        print(line)
