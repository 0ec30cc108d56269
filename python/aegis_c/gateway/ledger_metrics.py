"""What /metrics says of the ledger's write-ahead log, out of `Ledger.stats()`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from aegis_c.gateway.metrics import cumulative

_VERDICTS: Final = ("new", "clean", "whole", "torn", "accepted")
_RING_MODES: Final = ("tmpfs", "disk")


class LedgerMetrics(Collector):
    """The log of one shard. ``stats`` gives Ledger.stats(), or None while there is no ledger."""

    def __init__(self, stats: Callable[[], dict[str, Any] | None]) -> None:
        self._stats = stats

    def collect(self) -> Iterable[Metric]:
        """Called by the registry at each scrape."""
        stats = self._stats()
        return () if stats is None else _families(stats["wal"])


def _families(log: dict[str, Any]) -> Iterator[Metric]:
    yield HistogramMetricFamily(
        "aegis_wal_sync_seconds",
        "Time to write a batch and fdatasync it.",
        buckets=list(cumulative(log["sync_us"], 1e-6)),
        sum_value=log["sync_ns_total"] * 1e-9,
    )
    yield _counter("aegis_wal_slow_syncs", "Batches that took over a second.", log["slow_syncs"])
    yield HistogramMetricFamily(
        "aegis_wal_batch_records",
        "Records that became durable with one fdatasync.",
        buckets=list(cumulative(log["batch_records"], 1)),
        sum_value=log["records"],
    )
    yield _counter("aegis_wal_written_bytes", "Bytes written to the log.", log["bytes"])
    yield _counter("aegis_wal_rotations", "Segments that were filled.", log["rotations"])
    appended, durable = log["next_seq"] - 1, log["durable_seq"]
    yield GaugeMetricFamily("aegis_wal_appended_seq", "Last sequence number given.", appended)
    yield GaugeMetricFamily("aegis_wal_durable_seq", "Last that survives power loss.", durable)
    yield GaugeMetricFamily(
        "aegis_wal_lag_records", "Records appended and not yet durable.", appended - durable
    )
    yield GaugeMetricFamily(
        "aegis_wal_lag_bytes", "Bytes of the ring that wait for the disk.", log["ring_used"]
    )
    yield GaugeMetricFamily("aegis_wal_ring_bytes", "Size of the ring.", log["ring_capacity"])
    yield GaugeMetricFamily(
        "aegis_wal_disk_free_bytes",
        "Free space of the log's file system, some seconds old.",
        log["disk_free"],
    )
    yield GaugeMetricFamily("aegis_wal_segments", "Segments in use.", log["live_segments"])
    yield GaugeMetricFamily("aegis_wal_poisoned", "1: a write or sync failed.", log["poisoned"])
    yield GaugeMetricFamily(
        "aegis_wal_no_space", "1: the next segment cannot be made.", log["no_space"]
    )
    yield GaugeMetricFamily(
        "aegis_wal_ring_lost",
        "1: the run before did not end cleanly, and its ring was not there to replay.",
        log["ring_lost"],
    )
    yield _state(
        "aegis_wal_recovery", "Verdict of the last recovery.", "verdict", log["verdict"], _VERDICTS
    )
    yield _state(
        "aegis_wal_ring_mode", "Where the ring lies.", "mode", log["ring_mode"], _RING_MODES
    )
    head = GaugeMetricFamily(
        "aegis_wal_head_info",
        "The chain value behind aegis_wal_durable_seq: a copy kept elsewhere shows a rollback.",
        labels=("wal_id", "chain"),
    )
    head.add_metric((f"{log['wal_id']:016x}", f"{log['chain']:08x}"), 1)
    yield head


def _counter(name: str, text: str, value: int) -> Metric:
    return CounterMetricFamily(name, text, value)


def _state(name: str, text: str, label: str, value: str, values: tuple[str, ...]) -> Metric:
    family = GaugeMetricFamily(name, text, labels=(label,))
    for one in values:
        family.add_metric((one,), float(one == value))
    return family
