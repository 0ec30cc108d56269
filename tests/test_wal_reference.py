"""The native log and its plain Python twin (tests/reference/wal.py) agree: on what is written, on
what is read, and on what is a torn write and what is damage."""

from __future__ import annotations

import random
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aegis_c import WalCorruption, WalReader, WalWriter
from reference import wal as twin

pytestmark = pytest.mark.native

payloads = st.one_of(
    st.binary(min_size=1, max_size=300),
    st.integers(1, 3000).map(lambda n: b"\0" * n),
    st.builds(lambda k, n: twin.whitening_word(k) * n, st.integers(0, 3), st.integers(1, 200)),
)


def scratch() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="aegis-wal-")


def test_crc32c_check_value() -> None:
    assert twin.crc32c(b"123456789") == 0xE3069283


@settings(max_examples=40)
@given(st.lists(st.lists(payloads, min_size=1, max_size=4), min_size=1, max_size=4))
def test_the_twin_reads_what_the_native_writer_wrote(batches: list[list[bytes]]) -> None:
    with scratch() as folder:
        path = Path(folder) / "wal"
        with WalWriter(path, segment_bytes=16384, ring_bytes=65536) as wal:
            for batch in batches:
                for payload in batch:
                    wal.append(payload)
                wal.sync()
        wanted = [p for batch in batches for p in batch]
        found = twin.recover(path)
        assert [p for _seq, p in found.records] == wanted
        assert [seq for seq, _p in found.records] == list(range(1, len(wanted) + 1))
        assert list(WalReader(path)) == found.records


@settings(max_examples=40)
@given(st.lists(st.lists(payloads, max_size=4), min_size=1, max_size=4))
def test_the_native_reader_reads_what_the_twin_wrote(batches: list[list[bytes]]) -> None:
    with scratch() as folder:
        path = Path(folder) / "wal"
        twin.create(path, batches)
        wanted = list(enumerate((p for batch in batches for p in batch), 1))
        assert list(WalReader(path)) == wanted
        assert WalReader.verify(path)["last_seq"] == len(wanted)
        with WalWriter(path, ring_bytes=65536) as wal:  # and the native writer goes on
            assert wal.append(b"more") == len(wanted) + 1
        assert twin.recover(path).records == [*wanted, (len(wanted) + 1, b"more")]


def damage(rng: random.Random, data: bytearray, end: int) -> None:
    """One tear or piece of rot in the first `end` bytes."""
    start = rng.randrange(2, end // 512) * 512
    match rng.randrange(6):
        case 0:  # an unfinished last write: some sectors of the last batch
            for at in range(end - 4096, end, 512):
                if rng.random() < 0.5:
                    data[at : at + 512] = bytes(512)
        case 1:  # a cut
            at = rng.randrange(end - 4096, end)
            data[at:end] = bytes(end - at)
        case 2:
            data[start : start + 512] = bytes(512)
        case 3:
            data[start : start + 512] = b"\xff" * 512
        case 4:
            data[rng.randrange(64, end)] ^= 1 << rng.randrange(8)
        case 5:
            at = rng.randrange(end, len(data) - 64)
            data[at : at + 64] = rng.randbytes(64)


def test_both_judge_damage_the_same_way(tmp_path: Path, rng: random.Random) -> None:
    verdicts = {"whole": 0, "torn": 0, "refused": 0}
    for round_ in range(150):
        path = tmp_path / f"{round_}"
        batches = [[rng.randbytes(rng.randrange(1, 900)) for _ in range(2)] for _ in range(3)]
        twin.create(path, batches, size=32768)
        segment = path / "wal-0000000000000001.seg"
        data = bytearray(segment.read_bytes())
        damage(rng, data, len(bytes(data).rstrip(b"\0")))
        segment.write_bytes(data)
        try:
            expected = twin.recover(path)
        except twin.Refused:
            expected = None
        if expected is None:
            with pytest.raises(WalCorruption) as caught:
                WalReader.verify(path)
            assert caught.value.file is not None and caught.value.advice
            verdicts["refused"] += 1
            continue
        found = WalReader.verify(path)
        assert (found["last_seq"], found["torn"]) == (expected.last_seq, expected.torn), round_
        verdicts["torn" if expected.torn else "whole"] += 1
    assert all(verdicts.values()), verdicts
