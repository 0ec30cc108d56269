"""What /metrics says of analyses, alerts and the webhook. No label comes from outside."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Final

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from aegis_c.gateway.genai_metrics import Histogram

if TYPE_CHECKING:
    from aegis_c.gateway.background.alerts import Alerts
    from aegis_c.gateway.background.webhook import Webhook

_Measure = tuple[str, Callable[[tuple[float]], None]]

_BITS: Final = (0.05, 0.1, 0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0)
_KINDS_MAX: Final = 32  # kinds of findings that have a series of their own

_PARTS: Final = (0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)

#: Member of an analysis (of a part of it) -> name, help text and bounds of its histogram.
MEASURES: Final = {
    "mean": (
        "aegis_reply_entropy_bits",
        "Mean Shannon entropy of a reply's tokens (lower bound), where it has top_logprobs.",
        _BITS,
    ),
    "surprisal_mean": (
        "aegis_reply_surprisal_bits",
        "Mean surprisal of a reply's tokens, where it has logprobs.",
        _BITS,
    ),
    "js_mean": (
        "aegis_reply_divergence_bits",
        "Mean Jensen-Shannon divergence between tokens in a row, where it has top_logprobs.",
        _PARTS,
    ),
    "text.entropy": (
        "aegis_reply_word_entropy_bits",
        "Entropy of the histogram of a reply's words.",
        _BITS,
    ),
    "text.repetition": (
        "aegis_reply_repetition_ratio",
        "Share of a reply that repeats what it said before.",
        _PARTS,
    ),
}


class AnalysisMetrics(Collector):
    """One worker's; used from its event loop alone."""

    def __init__(self) -> None:
        self._analyses = {"available": 0, "unavailable": 0}
        self._findings: dict[str, int] = {}
        self._measures = {name: Histogram(bounds) for name, (_, _, bounds) in MEASURES.items()}
        self._add_of: dict[str, list[_Measure]] = {
            "": [],
            "text": [],
        }  # part of an analysis -> its members that are measured
        for name, histogram in self._measures.items():
            part, _, member = name.rpartition(".")
            self._add_of[part].append((member, histogram.add))
        self.alerts: Alerts | None = None
        self.webhook: Webhook | None = None

    def seen(self, analysis: dict[str, Any]) -> None:
        """A reply was looked at."""
        self._analyses["available" if analysis["available"] else "unavailable"] += 1
        for member, add in self._add_of[""]:
            if member in analysis:
                add((analysis[member],))
        text = analysis.get("text")
        if text is not None:
            for member, add in self._add_of["text"]:
                add((text[member],))
        for finding in analysis["findings"]:
            kind = finding["kind"]
            if kind not in self._findings and len(self._findings) >= _KINDS_MAX:
                kind = "other"
            self._findings[kind] = self._findings.get(kind, 0) + 1

    def collect(self) -> Iterable[Metric]:
        """Called by the registry at each scrape."""
        yield _counter("aegis_analyses", "Replies looked at.", "result", self._analyses)
        yield _counter("aegis_findings", "What was found in replies.", "kind", self._findings)
        for name, histogram in self._measures.items():
            metric, text, _ = MEASURES[name]
            yield HistogramMetricFamily(
                metric, text, buckets=histogram.buckets(), sum_value=histogram.sum
            )
        if self.alerts is not None:
            yield CounterMetricFamily("aegis_alerts", "Alerts raised.", self.alerts.raised)
            yield CounterMetricFamily(
                "aegis_alerts_lost",
                "Alerts that could not be written; the ledger has their entries.",
                self.alerts.lost,
            )
        webhook = self.webhook
        if webhook is not None:
            results = {
                "delivered": webhook.delivered,
                "failed": webhook.failed,
                "dropped": webhook.dropped,
            }
            yield _counter("aegis_webhook_alerts", "Alerts for the webhook.", "result", results)
            yield CounterMetricFamily(
                "aegis_webhook_retries", "Attempts after the first one.", webhook.retries
            )
            yield GaugeMetricFamily(
                "aegis_webhook_waiting", "Alerts not yet delivered or given up.", webhook.waiting
            )


def _counter(name: str, text: str, label: str, values: dict[str, int]) -> Metric:
    family = CounterMetricFamily(name, text, labels=(label,))
    for value, count in values.items():
        family.add_metric((value,), count)
    return family
