"""What /metrics says: plain counters on the path, turned into Prometheus text when asked.

Labels are bounded: endpoints and reasons are this program's own words, statuses are numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

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

#: Name, help text, and a function that gives {label: value} at the time of the scrape.
Gauge = tuple[str, str, str, Callable[[], dict[str, float]]]


class Metrics(Collector):
    """Counters of one worker; used from its event loop alone."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry(auto_describe=False)
        self.genai = GenAi()
        self.registry.register(self.genai)
        self.registry.register(self)
        self.calls: dict[tuple[str, int], int] = {}
        self.rejections: dict[tuple[str, str], int] = {}
        self.streams: dict[str, int] = {}
        self._phases = [0] * len(PHASES)  # nanoseconds
        self._phase_counts = [0] * len(PHASES)
        self._gauges: list[Gauge] = []
        self._counters: list[Gauge] = []

    def answered(self, endpoint: str, status: int, nanoseconds: int, upstream_ns: int = 0) -> None:
        """A hot request was answered with ``status`` after ``nanoseconds``."""
        label = (endpoint, status)
        self.calls[label] = self.calls.get(label, 0) + 1
        self.genai.answered(endpoint, nanoseconds, upstream_ns)

    def spent(self, nanoseconds: list[int]) -> None:
        """The phases of one call; those that it did not come to are 0."""
        for i, each in enumerate(nanoseconds):
            if each:
                self._phases[i] += each
                self._phase_counts[i] += 1

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
