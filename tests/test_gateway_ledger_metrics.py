"""/metrics of the write-ahead log: every number against the log's own, on a healthy and a stalled
disk, and after one that failed."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

import upstream
from gateway_rig import Rig, gateway, run
from io_faults import Faults

Samples = dict[tuple[str, ...], float]


async def samples(rig: Rig) -> Samples:
    reply = await rig.ask(b"", method="GET", path="/metrics", secret=None)
    assert reply.status == 200
    return parse(reply.body.decode())


def parse(text: str) -> Samples:
    return {
        (s.name, *s.labels.values()): s.value
        for family in text_string_to_metric_families(text)
        for s in family.samples
        if s.name.startswith("aegis_wal_")
    }


def test_the_numbers_are_the_logs_own(tmp_path: Path) -> None:
    async def main() -> None:
        async with upstream.running() as up, gateway(tmp_path, up.url) as rig:
            for _ in range(5):
                await rig.ask()
            await rig.settled()
            native = rig.runtime.ledger.native
            native.wait(native.size - 1, "durable", 10)
            got, log = await samples(rig), native.stats()["wal"]
            while got["aegis_wal_sync_seconds_count",] != log["syncs"]:  # the idle marker
                got, log = await samples(rig), native.stats()["wal"]
            assert got["aegis_wal_appended_seq",] == log["next_seq"] - 1 == native.size
            assert got["aegis_wal_durable_seq",] == native.durable_size
            assert got["aegis_wal_lag_records",] == got["aegis_wal_lag_bytes",] == 0
            assert got["aegis_wal_sync_seconds_count",] == sum(log["sync_us"]) == log["syncs"] > 0
            assert got["aegis_wal_sync_seconds_bucket", "+Inf"] == log["syncs"]
            assert abs(got["aegis_wal_sync_seconds_sum",] - log["sync_ns_total"] / 1e9) < 1e-9
            assert got["aegis_wal_batch_records_count",] == log["batches"] <= native.size
            assert got["aegis_wal_batch_records_sum",] == log["records"] == native.size
            assert got["aegis_wal_written_bytes_total",] == log["bytes"] >= 4096
            assert got["aegis_wal_ring_bytes",] == log["ring_capacity"] == 16 << 20
            assert got["aegis_wal_disk_free_bytes",] > 0
            assert got["aegis_wal_segments",] == 1
            for name in ("poisoned", "no_space", "ring_lost", "slow_syncs_total"):
                assert got[f"aegis_wal_{name}",] == 0
            assert got["aegis_wal_recovery", "new"] == 1 == got["aegis_wal_ring_mode", "tmpfs"]
            assert got["aegis_wal_recovery", "torn"] == 0 == got["aegis_wal_ring_mode", "disk"]
            assert got["aegis_wal_head_info", f"{log['chain']:08x}", f"{log['wal_id']:016x}"] == 1
        async with upstream.running() as up, gateway(tmp_path, up.url) as rig:
            assert (await samples(rig))["aegis_wal_recovery", "clean"] == 1

    run(main())


def test_buckets_are_cumulative_powers_of_two(tmp_path: Path) -> None:
    async def main() -> None:
        async with upstream.running() as up, gateway(tmp_path, up.url) as rig:
            await rig.ask()
            got = await samples(rig)
            for name in ("aegis_wal_sync_seconds_bucket", "aegis_wal_batch_records_bucket"):
                bounds = {float(k[1]): v for k, v in got.items() if k[0] == name}
                ordered = sorted(bounds)
                assert all(b == 2 * a for a, b in pairwise(ordered[:-1]))
                assert [bounds[k] for k in ordered] == sorted(bounds.values())

    run(main())


CODE = """
import asyncio, errno, json, sys
from pathlib import Path

import upstream
from gateway_rig import gateway, run
from io_faults import Faults
from test_gateway_ledger_metrics import samples

faults = Faults.inherited()
seen = {}

async def main():
    async with upstream.running() as up, gateway(Path(sys.argv[1]), up.url) as rig:
        await rig.ask()
        await rig.settled()
        native = rig.runtime.ledger.native
        with faults.stall("fdatasync", path="wal-") as rule:
            for _ in range(3):
                await rig.ask()
            while not rule.waiting:
                await asyncio.sleep(0.001)
            stalled = await samples(rig)
        with faults.fail("fdatasync", path="wal-") as rule:
            while not native.poisoned:
                await rig.ask()
                await asyncio.sleep(0.01)
            poisoned = await samples(rig)
        while native.poisoned:
            await asyncio.sleep(0.01)
        native.wait(native.size - 1, "durable", 20)
        mended = await samples(rig)
    print(json.dumps([[[*key, value] for key, value in s.items()]
                      for s in (stalled, poisoned, mended)]))

run(main())
"""


def test_a_disk_that_stalls_and_fails_shows(tmp_path: Path) -> None:
    faults = Faults(tmp_path / "rules")
    out = faults.run(CODE, tmp_path / "data")
    stalled, poisoned, mended = (
        {tuple(sample[:-1]): sample[-1] for sample in one}
        for one in json.loads(out.splitlines()[-1])
    )
    assert stalled["aegis_wal_lag_records",] >= 3 and stalled["aegis_wal_lag_bytes",] > 0
    assert stalled["aegis_wal_poisoned",] == 0
    assert poisoned["aegis_wal_poisoned",] == 1
    assert mended["aegis_wal_poisoned",] == mended["aegis_wal_lag_records",] == 0
    assert mended["aegis_wal_recovery", "new"] == 0
    assert faults.touched_after_failure == 0
