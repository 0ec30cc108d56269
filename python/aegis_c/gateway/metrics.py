"""What /metrics says: one note a call on the path, counted in batches, text when asked.

Labels are bounded: endpoints and reasons are this program's own words, statuses are numbers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import compress
from typing import TYPE_CHECKING, Final

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    Metric,
    SummaryMetricFamily,
)
from prometheus_client.registry import Collector

from aegis_c.gateway.genai_metrics import GenAi
from aegis_c.gateway.hot.phases import PHASES

if TYPE_CHECKING:
    from aegis_c.gateway.evidence import Call

#: Calls that are counted at once: 64 took 38 us, in which the event loop does nothing else.
_BATCH: Final = 64

#: Name, help text, and a function that gives {label: value} at the time of the scrape.
Gauge = tuple[str, str, str, Callable[[], dict[str, float]]]


class Metrics(Collector):
    """Counters of one worker; used from its event loop alone."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry(auto_describe=False)
        self.genai = GenAi(self._count)
        self.registry.register(self.genai)
        self.registry.register(self)
        self._over: list[tuple[str, int, int, int, int, dict[str, int] | None, list[int]]] = []
        self.calls: Counter[tuple[str, int]] = Counter()
        self.rejections: dict[tuple[str, str], int] = {}
        self.streams: dict[str, int] = {}
        self._phases = [0] * len(PHASES)  # nanoseconds
        self._phase_counts = [0] * len(PHASES)
        self._gauges: list[Gauge] = []
        self._counters: list[Gauge] = []

    def over(self, call: Call, status: int, took: int) -> None:
        """A governed request was answered with ``status``, ``took`` nanoseconds after it came."""
        over = self._over
        over.append(
            (
                call.endpoint,
                status,
                took,
                call.upstream_ns,
                call.first_ns,
                call.usage,
                call.phases.spent,
            )
        )
        if len(over) >= _BATCH:
            self._count()

    def _count(self) -> None:
        """Count what was only noted."""
        over, self._over = self._over, []
        if not over:
            return
        endpoints, statuses, took, upstream, first, usages, spent = zip(*over, strict=True)
        self.calls.update(zip(endpoints, statuses, strict=True))
        for endpoint in set(endpoints):
            mine = [e is endpoint or e == endpoint for e in endpoints]
            self.genai.count(
                endpoint,
                [*compress(took, mine)],
                [ns for ns in compress(upstream, mine) if ns],
                [ns for ns in compress(first, mine) if ns],
                [usage for usage in compress(usages, mine) if usage],
            )
        for i, each in enumerate(zip(*spent, strict=True)):
            self._phases[i] += sum(each)
            self._phase_counts[i] += len(each) - each.count(0)

    def rejected(self, stage: str, reason: str) -> None:
        """A request was refused at ``stage``."""
        label = (stage, reason)
        self.rejections[label] = self.rejections.get(label, 0) + 1

    def stream_ended(self, how: str) -> None:
        """A stream ended as its settle entry says."""
        self.streams[how] = self.streams.get(how, 0) + 1

    def gauge(
        self, name: str, text: str, label: str, values: Callable[[], dict[str, float]]
    ) -> None:
        """A value that goes up and down; ``label`` empty: one value under the key ``""``."""
        self._gauges.append((name, text, label, values))

    def counter(
        self, name: str, text: str, label: str, values: Callable[[], dict[str, float]]
    ) -> None:
        """A count that another part keeps."""
        self._counters.append((name, text, label, values))

    def text(self) -> bytes:
        """The exposition in Prometheus' text format."""
        return generate_latest(self.registry)

    def collect(self) -> Iterable[Metric]:
        """Called by the registry at each scrape."""
        calls = CounterMetricFamily(
            "aegis_requests", "Answers on governed endpoints.", labels=("endpoint", "status")
        )
        for (endpoint, status), count in self.calls.items():
            calls.add_metric((endpoint, str(status)), count)
        yield calls
        rejections = CounterMetricFamily(
            "aegis_rejections", "Requests refused.", labels=("stage", "reason")
        )
        for (stage, reason), count in self.rejections.items():
            rejections.add_metric((stage, reason), count)
        yield rejections
        streams = CounterMetricFamily("aegis_streams", "Streams ended.", labels=("ending",))
        for how, count in self.streams.items():
            streams.add_metric((how,), count)
        yield streams
        phases = SummaryMetricFamily(
            "aegis_phase_seconds",
            "Time in each phase of governed requests that came to it.",
            labels=("phase",),
        )
        for i, phase in enumerate(PHASES):
            phases.add_metric((phase,), self._phase_counts[i], self._phases[i] * 1e-9)
        yield phases
        for name, text, label, values in self._gauges:
            yield _fill(GaugeMetricFamily(name, text, labels=(label,) if label else ()), values())
        for name, text, label, values in self._counters:
            yield _fill(CounterMetricFamily(name, text, labels=(label,) if label else ()), values())


def cumulative(counts: list[int], unit: float) -> Iterator[tuple[str, float]]:
    """Item k counts what is below 2**k units, the last one everything above as well."""
    total = 0
    for k, count in enumerate(counts):
        total += count
        last = k + 1 == len(counts)
        yield ("+Inf" if last else repr(float(2**k * unit))), total


def _fill(
    family: GaugeMetricFamily | CounterMetricFamily, values: dict[str, float]
) -> GaugeMetricFamily | CounterMetricFamily:
    for label, value in values.items():
        family.add_metric((label,) if label else (), value)
    return family
