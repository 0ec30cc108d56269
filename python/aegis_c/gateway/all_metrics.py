"""The metrics of several workers as one exposition.

Every sample carries its worker's number: counters of a worker that was started again begin at 0,
as Prometheus expects of one series, and sums over workers are made where they are asked for.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric

Sample = tuple[str, dict[str, str], float]


class Family(msgspec.Struct, array_like=True):
    """One metric with its samples, as workers hand it to one another."""

    name: str
    text: str
    kind: str
    samples: list[Sample]


_decode = msgspec.json.Decoder(list[Family]).decode


def families(registry: CollectorRegistry) -> list[Family]:
    """What one worker has to say."""
    return [
        Family(
            metric.name,
            metric.documentation,
            metric.type,
            [(sample.name, sample.labels, float(sample.value)) for sample in metric.samples],
        )
        for metric in registry.collect()
    ]


def merged(found: Mapping[int, bytes]) -> bytes:
    """The exposition of all workers; empty bytes: that one gave no answer."""
    return generate_latest(_Fixed(list(_metrics(found))))


def _metrics(found: Mapping[int, bytes]) -> Iterable[Metric]:
    up = GaugeMetricFamily("aegis_worker_up", "The worker answers.", labels=("worker",))
    metrics: dict[str, Metric] = {}
    for number, data in sorted(found.items()):
        up.add_metric((str(number),), 1.0 if data else 0.0)
        for family in _decode(data) if data else ():
            metric = metrics.get(family.name)
            if metric is None:
                metric = metrics[family.name] = Metric(family.name, family.text, family.kind)
            for name, labels, value in family.samples:
                metric.add_sample(name, {**labels, "worker": str(number)}, value)
    return [up, *metrics.values()]


class _Fixed(CollectorRegistry):
    """A registry that says what it was given."""

    def __init__(self, metrics: list[Metric]) -> None:
        super().__init__(auto_describe=False)
        self._metrics = metrics

    def collect(self) -> Iterable[Metric]:
        return self._metrics
