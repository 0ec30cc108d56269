"""The id column that a ledger writes, against a second reading of its format."""

import json
import tempfile
import time
import uuid
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from aegis_c import Ledger
from aegis_c.ledger import ids as lookup
from aegis_c.ledger.layout import DataDir, Shard
from reference import ids as reference


def request_id(number: int) -> bytes:
    """An id, or none; close together and far apart, in no order."""
    return bytes(16) if number == 0 else uuid.UUID(int=number * 0x9E3779B97F4A7C15 << 40).bytes


def entry(key: bytes) -> bytes:
    if key == reference.NONE:
        return b"{}"
    return json.dumps({"id": str(uuid.UUID(bytes=key))}).encode()


def files_of(shard: Shard) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (shard.private / "ids").iterdir()}


def fill(ledger: Ledger, keys: list[bytes]) -> None:
    for key in keys:
        while True:
            try:
                ledger.submit(entry(key))
                break
            except Exception:
                ledger.wait(len(ledger) - 1, "durable")


@settings(max_examples=12, deadline=None)
@given(st.lists(st.lists(st.integers(0, 40), max_size=300), min_size=1, max_size=3))
def test_a_tail_is_what_the_reference_writes(runs: list[list[int]]) -> None:
    """Over several openings; every id is found, by the ledger, beside it, and by the reference."""
    keys: list[bytes] = []
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        shard = DataDir(Path(folder)).shard()
        for numbers in runs:
            with Ledger(shard.published, private=shard.private) as ledger:
                fill(ledger, [request_id(number) for number in numbers])
                keys += [request_id(number) for number in numbers]
                tag = reference.tag(ledger.vkey)
                if keys:
                    ledger.wait(len(keys) - 1, "published", timeout=20)
                for number in range(1, 42):
                    key = request_id(number)
                    expected = [i for i, one in enumerate(keys) if one == key]
                    assert ledger.find(key) == expected
                    assert lookup.find(shard, str(uuid.UUID(bytes=key))) == expected
            files = files_of(shard)
            if keys:
                assert files == {"00000000.tail": reference.tail(tag, 0, keys)}
                key = request_id(7)
                assert reference.find(files, key) == [i for i, k in enumerate(keys) if k == key]


def test_a_full_run_is_what_the_reference_writes(tmp_path: Path) -> None:
    shard = DataDir(tmp_path).shard()
    keys = [request_id(number * 7919 % 200_000) for number in range(reference.RUN + 300)]
    with Ledger(shard.published, private=shard.private) as ledger:
        fill(ledger, keys)
        tag = reference.tag(ledger.vkey)
        run = shard.private / "ids" / "00000000.run"
        until = time.monotonic() + 60
        while not run.exists() and time.monotonic() < until:
            time.sleep(0.01)
        wanted = [keys[1], keys[12_345], keys[reference.RUN + 299], request_id(500_000)]
        expected = [[i for i, key in enumerate(keys) if key == one] for one in wanted]
        assert [ledger.find(one) for one in wanted] == expected
    data = run.read_bytes()
    records = reference.sorted_records(keys[: reference.RUN])
    pages = reference.pages_of(records)
    assert len(data) == reference.PAGE * (1 + len(pages))
    head = reference.page(tag, reference.HEAD, 0, reference.head_of_run(keys[: reference.RUN]), 0)
    assert data[: reference.PAGE] == head
    for n, some in enumerate(pages, 1):
        one = data[n * reference.PAGE : (n + 1) * reference.PAGE]
        assert one[16:] == b"".join(some).ljust(reference.PAGE - 16, b"\0")
        if n % 97 == 1 or n == len(pages):
            assert one == reference.page(tag, reference.SORTED, n, some, len(some))
    files = files_of(shard)
    assert [reference.find(files, one) for one in wanted] == expected
