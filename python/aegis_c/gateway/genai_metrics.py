"""Metrics under the names of OpenTelemetry's GenAI conventions.

`gen_ai.server.request.duration` is the caller's view, `gen_ai.client.operation.duration` what the
upstream took of it, `gen_ai.client.token.usage` what the provider reported. Labels are bounded:
operations are those of the endpoints.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator
from typing import Final

from prometheus_client.core import HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

#: The bucket bounds that the conventions advise.
_SECONDS: Final = (
    0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92,
)  # fmt: skip
_TOKENS: Final = tuple(4**k for k in range(14))

_OPERATIONS: Final = {
    "/v1/chat/completions": "chat",
    "/v1/responses": "chat",
    "/v1/messages": "chat",
    "/v1/completions": "text_completion",
    "/v1/embeddings": "embeddings",
}
_USAGE: Final = {
    "prompt_tokens": "input",
    "input_tokens": "input",
    "completion_tokens": "output",
    "output_tokens": "output",
}


class Histogram:
    """Counts of values below bounds."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def add(self, value: float) -> None:
        """Count ``value``."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self.sum += value

    def buckets(self) -> list[tuple[str, float]]:
        """Cumulative counts as Prometheus wants them."""
        return list(self._cumulative())

    def _cumulative(self) -> Iterator[tuple[str, float]]:
        count = 0
        for bound, here in zip((*map(str, self._bounds), "+Inf"), self._counts, strict=True):
            count += here
            yield bound, count


class GenAi(Collector):
    """One worker's; used from its event loop alone."""

    def __init__(self) -> None:
        self._requests: dict[str, Histogram] = {}
        self._upstream: dict[str, Histogram] = {}
        self._tokens: dict[tuple[str, str], Histogram] = {}

    def answered(self, endpoint: str, total_ns: int, upstream_ns: int) -> None:
        """A governed request is over; ``upstream_ns`` is 0 when none was asked."""
        requests = self._requests.get(endpoint)
        if requests is None:
            requests = self._requests[endpoint] = Histogram(_SECONDS)
            self._upstream[endpoint] = Histogram(_SECONDS)
        requests.add(total_ns * 1e-9)
        if upstream_ns:
            self._upstream[endpoint].add(upstream_ns * 1e-9)

    def used(self, endpoint: str, usage: dict[str, int]) -> None:
        """The provider reported ``usage``."""
        for name, count in usage.items():
            kind = _USAGE.get(name)
            if kind is not None:
                tokens = self._tokens.get((endpoint, kind))
                if tokens is None:
                    tokens = self._tokens[endpoint, kind] = Histogram(_TOKENS)
                tokens.add(count)

    # -- the scrape --------------------------------------------------------------------------

    def collect(self) -> Iterable[Metric]:
        """Called by the registry at each scrape."""
        operation = "gen_ai_operation_name"
        yield _family(
            "gen_ai_server_request_duration_seconds",
            "From a governed request's arrival to the end of its answer.",
            (operation,),
            {(_operation(e),): h for e, h in self._requests.items()},
        )
        yield _family(
            "gen_ai_client_operation_duration_seconds",
            "What the upstream took of it.",
            (operation,),
            {(_operation(e),): h for e, h in self._upstream.items()},
        )
        yield _family(
            "gen_ai_client_token_usage",
            "Tokens of a call, as the provider reports them.",
            (operation, "gen_ai_token_type"),
            {(_operation(e), kind): h for (e, kind), h in self._tokens.items()},
        )


def _operation(endpoint: str) -> str:
    return _OPERATIONS.get(endpoint, endpoint.removeprefix("/v1/"))


def _family(
    name: str, text: str, labels: tuple[str, ...], found: dict[tuple[str, ...], Histogram]
) -> Metric:
    family = HistogramMetricFamily(name, text, labels=labels)
    for values, histogram in found.items():
        family.add_metric(values, histogram.buckets(), histogram.sum)
    return family
