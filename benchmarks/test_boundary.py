"""What it costs to call into C and back, beside a call that stays in Python.

Each row evaluates one expression ``CALLS`` times in a compiled loop, whose own cost is the row "the
loop alone". The calls do next to nothing, so this is where Python wins; a native type pays where
one call does enough work. Such rows stay.
"""

# mypy: allow-untyped-calls

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

import aegis_c

CALLS = 2_000


class Empty:
    """The native types' calls with nothing behind them, in Python."""

    __slots__ = ("_size",)

    def __init__(self) -> None:
        self._size = 0

    def __len__(self) -> int:
        return 0

    @property
    def size(self) -> int:
        return self._size

    def room(self) -> int:
        return 0

    def update(self, chunk: bytes) -> None:
        return None

    def want(self, index: int, state: str = "durable") -> None:
        return None


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, object]]:
    """What the expressions use."""
    path: Path = tmp_path_factory.mktemp("boundary") / "ledger" / "w0"
    with aegis_c.Ledger(path) as ledger:
        ledger.wait(ledger.submit(b'{"v":1}'), "published", 10)
        yield {
            "ledger": ledger,
            "tree": aegis_c.MmrAccumulator(),
            "commitment": aegis_c.Commitment(b"s" * 32, bytes(16), "request"),
            "python": Empty(),
            "items": [],
            "leaf_hash": aegis_c.leaf_hash,
            "sha256": hashlib.sha256,
        }


#: Table, row, expression; the first row of a table is its baseline.
ROWS = [
    ("len()", "Python class", "len(python)"),
    ("len()", "MmrAccumulator", "len(tree)"),
    ("len()", "list (the interpreter's own C)", "len(items)"),
    ("len()", "the loop alone", "pass"),
    ("property", "Python class", "python.size"),
    ("property", "Ledger.size", "ledger.size"),
    ("no argument", "empty Python method", "python.room()"),
    ("no argument", "Ledger.room()", "ledger.room()"),
    ("one argument", "empty Python method", "python.update(b'')"),
    ("one argument", "Commitment.update(b'')", "commitment.update(b'')"),
    ("one argument", "hashlib: SHA-256 of one block", "sha256(b'\\0').digest()"),
    ("one argument", "leaf_hash: SHA-256 of one block", "leaf_hash(b'')"),
    ("keyword argument", "empty Python method", "python.want(0, state='durable')"),
    ("keyword argument", "Ledger.want()", "ledger.want(0, state='durable')"),
]


@pytest.mark.parametrize(("table", "row", "expression"), ROWS, ids=[row[2] for row in ROWS])
def test_call(
    benchmark: BenchmarkFixture,
    names: dict[str, object],
    table: str,
    row: str,
    expression: str,
) -> None:
    benchmark.group = f"boundary: {table}"
    baseline = next(known for known in ROWS if known[0] == table)[1] == row
    benchmark.extra_info |= {"row": row, "baseline": baseline, "calls": CALLS}
    loop = _loop(expression, names)
    benchmark.pedantic(loop, args=(CALLS,), rounds=200, warmup_rounds=5)


def _loop(expression: str, names: dict[str, object]) -> Callable[[int], None]:
    """A function that evaluates ``expression`` n times, with ``names`` as its local variables."""
    local = ", ".join(f"{name}={name}" for name in names)
    source = f"def loop(n, {local}):\n    for _ in range(n):\n        {expression}\n"
    space: dict[str, Any] = dict(names)
    exec(source, space)
    loop: Callable[[int], None] = space["loop"]
    return loop
