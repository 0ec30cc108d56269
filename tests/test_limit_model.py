"""The limiter against its slow twin in rational arithmetic, time under control.

The native core runs as a small C program under AddressSanitizer that takes one script after the
other (tests/c/limit_driver.c); the twin is tests/reference/limits.py.
"""

from __future__ import annotations

import functools
import random
import subprocess
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from c import build
from components import require
from reference.limits import Bucket, Gcra, most_admitted, plan

ROOT = Path(__file__).resolve().parents[1]
SECOND = 10**9


class Native:
    """The driver; one answer a line, and a new table for every script."""

    def __init__(self, program: Path) -> None:
        self.process = subprocess.Popen(
            [program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1 << 16
        )

    def run(self, lines: list[str]) -> list[int]:
        assert self.process.stdin is not None and self.process.stdout is not None
        answers: list[int] = []
        for i in range(0, len(lines) + 1, 500):  # less than a pipe holds, in both directions
            part = ["N", *lines][i : i + 500]
            self.process.stdin.write("\n".join([*part, ""]))
            self.process.stdin.flush()
            answers += [int(self.process.stdout.readline()) for _ in part]
        return answers[1:]


@functools.cache
def native() -> Native:
    require("C tests under asan", lambda: build.missing("asan"), "gcc libc6-dev")
    compiler, link = build.commands("asan")
    sources = [
        *(ROOT / "aegis_c/core/limit").glob("*.c"),
        *(ROOT / "aegis_c/core/base").glob("*.c"),
    ]
    sources += [ROOT / f"aegis_c/core/hash/{name}.c" for name in ("crc32c", "siphash")]
    sources += [ROOT / "tests/c/limit_driver.c"]
    program = ROOT / "build" / "c" / "limit_driver"
    if build.is_older(program, [*sources, *(ROOT / "aegis_c/core").rglob("*.h")]):
        build.run([*compiler, *map(str, sources), "-o", str(program), *link])
    return Native(program)


numbers = st.one_of(st.integers(1, 20), st.integers(1, 10**6), st.just(10**10))
periods = st.one_of(st.integers(1, 50), st.integers(1, 10**12), st.just(86400 * SECOND))


@st.composite
def scripts(draw: st.DrawFn) -> tuple[int, int, int, list[tuple[int, int]]]:
    """A limit, and steps (time since the last, cost) that make it refuse now and then."""
    rate, per = draw(numbers), draw(periods)
    burst = draw(numbers)
    burst = min(burst, (1 << 61) * rate // per)
    unit = per // rate
    gap = st.one_of(st.just(0), st.integers(0, 3), st.integers(0, 2 * unit + 2))
    steps = draw(st.lists(st.tuples(gap, st.integers(0, burst)), max_size=40))
    return rate, per, burst, steps


@given(scripts())
@settings(max_examples=300)
def test_acquire_answers_as_the_twin(script: tuple[int, int, int, list[tuple[int, int]]]) -> None:
    rate, per, burst, steps = script
    twin, lines, expected, now = Gcra(rate, per, burst), [f"L {rate} {per} {burst}"], [0], SECOND
    admitted: list[tuple[int, int]] = []
    for gap, cost in steps:
        now += gap
        lines.append(f"A 0 k {cost} {now}")
        expected.append(twin.acquire(cost, now))
        if expected[-1] >= 0:
            admitted.append((now, cost))
    assert native().run(lines) == expected
    for i, (start, _) in enumerate(admitted):  # the bound, in every window, without the twin
        units = 0
        for end, cost in admitted[i:]:
            units += cost
            assert units <= most_admitted(rate, per, burst, end - start)


@given(st.integers(1, 50), st.integers(1, 10**10), st.data())
@settings(max_examples=200)
def test_settle_answers_as_the_twin(rate: int, per: int, data: st.DataObject) -> None:
    burst = data.draw(st.integers(1, 100))
    twin, lines, expected, now = Gcra(rate, per, burst), [f"L {rate} {per} {burst}"], [0], SECOND
    open_ones: list[tuple[int, int]] = []
    for _ in range(data.draw(st.integers(1, 30))):
        now += data.draw(st.integers(0, per // rate * 3 + 3))
        settle = data.draw(st.booleans())
        if open_ones and settle:
            cost, then = open_ones.pop(data.draw(st.integers(0, len(open_ones) - 1)))
            used = data.draw(st.integers(0, 2 * cost))
            lines.append(f"S 0 k {cost} {used} {then} {now}")
            expected.append(0)
            twin.settle(cost, used, then, now)
        else:
            cost = data.draw(st.integers(1, burst))
            lines.append(f"A 0 k {cost} {now}")
            expected.append(twin.acquire(cost, now))
            if expected[-1] >= 0:
                open_ones.append((cost, now))
    assert native().run(lines) == expected


@given(st.data())
@settings(max_examples=200)
def test_a_plan_answers_as_the_twin(data: st.DataObject) -> None:
    shapes = [data.draw(st.tuples(st.integers(1, 9), st.integers(1, 99), st.integers(1, 9)))
              for _ in range(2)]  # fmt: skip
    twins = [Gcra(*shape) for shape in shapes]
    lines = [f"L {rate} {per} {burst}" for rate, per, burst in shapes]
    now = SECOND
    for _ in range(30):
        now += data.draw(st.integers(0, 40))
        costs = [data.draw(st.integers(0, twin.burst)) for twin in twins]
        lines.append(f"P 0 1 k {costs[0]} {costs[1]} {now}")
        allowed = plan(twins, costs, now)
        answer = native_answer(lines)
        assert (answer == 2) == allowed
        if not allowed:  # the limit that asks for the longest wait
            waits = [twin.wait(cost, now) for twin, cost in zip(twins, costs, strict=True)]
            assert waits[answer] == max(waits)


def native_answer(lines: list[str]) -> int:
    return native().run(lines)[-1]


def adversarial_mix(rng: random.Random, *, naive: bool) -> tuple[Fraction, list[str], list[int]]:
    """Reservations that are far too high, settled late, between charges that are used in full.

    Returns the highest true level over burst, and the script with the twin's answers.
    """
    rate, per, burst = 10, SECOND, 100
    twin, true = Gcra(rate, per, burst), Bucket(rate, per)
    lines, expected, now = [f"L {rate} {per} {burst}"], [0], SECOND
    pending: list[tuple[int, int, int]] = []  # (settle at, cost, then)
    for _ in range(300):
        now += rng.randrange(0, 2 * SECOND)
        for due, cost, then in [one for one in pending if one[0] <= now]:
            twin.settle(cost, 0, then, now, naive=naive)
            lines.append(f"S 0 k {cost} 0 {then} {now}")
            expected.append(0)
            pending.remove((due, cost, then))
        cost = rng.choice([5, 40, 90])
        lines.append(f"A 0 k {cost} {now}")
        expected.append(twin.acquire(cost, now))
        if expected[-1] < 0:
            continue
        if rng.random() < 0.5:  # reserved, nothing used, settled when it has drained
            pending.append((now + rng.randrange(0, 15 * SECOND), cost, now))
        else:
            true.charge(now, cost)
    return true.highest() / burst, lines, expected


def test_an_adversarial_mix_of_settles_stays_below_the_burst(rng: random.Random) -> None:
    worst_naive = Fraction(0)
    for _ in range(20):
        seed = rng.random()
        level, lines, expected = adversarial_mix(random.Random(seed), naive=False)
        assert native().run(lines) == expected
        assert level <= 1
        worst_naive = max(worst_naive, adversarial_mix(random.Random(seed), naive=True)[0])
    assert worst_naive > 1, "the mix is not adversarial: a naive refund stays harmless in it"


def test_rounding_takes_no_call_away_in_ten_years() -> None:
    """7 an hour is no whole number of ns: ten years of a key that always asks at once."""
    rate, per, burst = 7, 3600 * SECOND, 7
    years, steps = 10 * 365 * 86400 * SECOND, 20_000
    gap = years // steps  # about 4.4 hours: 30 units drain, so the bucket is empty again
    lines, now = [f"L {rate} {per} {burst}"], SECOND
    for _ in range(steps):
        lines += [f"A 0 k 1 {now + 2 * i}" for i in range(burst + 1)]
        now += gap
    answers = native().run(lines)[1:]
    for i in range(0, len(answers), burst + 1):
        assert answers[i : i + burst] == list(range(burst - 1, -1, -1))
        assert answers[i + burst] < 0


@pytest.mark.parametrize("late", [0, 1, 30, 59, 60, 61, 600])
def test_a_client_that_cancels_late_gets_back_only_what_has_not_drained(late: int) -> None:
    """60 a minute: 60 reserved, nothing used, settled after `late` seconds."""
    lines = ["L 60 60000000000 60", f"A 0 k 60 {SECOND}"]
    now = SECOND + late * SECOND
    room = min(late, 60)
    lines += [f"A 0 k {room} {now}"] if room else []  # others take what has drained
    lines += [f"S 0 k 60 0 {SECOND} {now}", f"A 0 k 0 {now}"]
    assert native().run(lines)[-1] == 60 - room if room < 60 else native().run(lines)[-1] < 0
