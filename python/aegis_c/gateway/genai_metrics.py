"""Metrics under the names of OpenTelemetry's GenAI conventions.

`gen_ai.server.request.duration` is the caller's view, `gen_ai.server.time_to_first_token` that of a
stream until its first event was handed over, `gen_ai.client.operation.duration` what the upstream
took, `gen_ai.client.token.usage` what the provider reported. Labels are bounded: operations are
those of the endpoints.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final

from prometheus_client.core import HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

#: The bucket bounds that the conventions advise.
_SECONDS: Final = (
    0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92,
)  # fmt: skip
_FIRST_SECONDS: Final = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
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
    """Counts of values up to bounds; of durations in nanoseconds where ``unit`` is 1e-9."""

    def __init__(self, bounds: tuple[float, ...], unit: float = 1.0) -> None:
        self._shown = bounds
        self._bounds = [bound / unit for bound in bounds]
        self._unit = unit
        self._counts = [0] * (len(bounds) + 1)
        self._sum: float = 0

    def add(self, values: Sequence[float]) -> None:
        """Count ``values``."""
        counts, bounds = self._counts, self._bounds
        for value in values:
            counts[bisect_left(bounds, value)] += 1
        self._sum += sum(values)

    @property
    def sum(self) -> float:
        """Of all values, in the unit of the bounds."""
        return self._sum * self._unit

    def buckets(self) -> list[tuple[str, float]]:
        """Cumulative counts as Prometheus wants them."""
        return list(self._cumulative())

    def _cumulative(self) -> Iterator[tuple[str, float]]:
        count = 0
        for bound, here in zip((*map(str, self._shown), "+Inf"), self._counts, strict=True):
            count += here
            yield bound, count


class GenAi(Collector):
    """One worker's; used from its event loop alone."""

    def __init__(self, catch_up: Callable[[], None]) -> None:
        """``catch_up()`` is called before a scrape: it counts what is not counted yet."""
        self._catch_up = catch_up
        self._requests: dict[str, Histogram] = {}
        self._first: dict[str, Histogram] = {}
        self._upstream: dict[str, Histogram] = {}
        self._tokens: dict[tuple[str, str], Histogram] = {}

    def count(
        self,
        endpoint: str,
        total_ns: Sequence[int],
        upstream_ns: Sequence[int],
        first_ns: Sequence[int],
        usages: Sequence[dict[str, int]],
    ) -> None:
        """Governed requests are over: durations of all, and what is known of some of them."""
        if endpoint not in self._requests:
            self._requests[endpoint] = Histogram(_SECONDS, 1e-9)
            self._first[endpoint] = Histogram(_FIRST_SECONDS, 1e-9)
            self._upstream[endpoint] = Histogram(_SECONDS, 1e-9)
        self._requests[endpoint].add(total_ns)
        self._first[endpoint].add(first_ns)
        self._upstream[endpoint].add(upstream_ns)
        for name, kind in _USAGE.items():
            tokens = [usage[name] for usage in usages if name in usage]
            if tokens:
                if (endpoint, kind) not in self._tokens:
                    self._tokens[endpoint, kind] = Histogram(_TOKENS)
                self._tokens[endpoint, kind].add(tokens)

    # -- the scrape --------------------------------------------------------------------------

    def collect(self) -> Iterable[Metric]:
        """Called by the registry at each scrape."""
        self._catch_up()
        label = "gen_ai_operation_name"
        yield _family(
            "gen_ai_server_request_duration_seconds",
            "From a governed request's arrival to the end of its answer.",
            (label,),
            {(operation(e),): h for e, h in self._requests.items()},
        )
        yield _family(
            "gen_ai_server_time_to_first_token_seconds",
            "From a stream's request to its first event handed over.",
            (label,),
            {(operation(e),): h for e, h in self._first.items()},
        )
        yield _family(
            "gen_ai_client_operation_duration_seconds",
            "What the upstream took of it.",
            (label,),
            {(operation(e),): h for e, h in self._upstream.items()},
        )
        yield _family(
            "gen_ai_client_token_usage",
            "Tokens of a call, as the provider reports them.",
            (label, "gen_ai_token_type"),
            {(operation(e), kind): h for (e, kind), h in self._tokens.items()},
        )


def operation(endpoint: str) -> str:
    """The conventions' word for what an endpoint does."""
    return _OPERATIONS.get(endpoint, endpoint.removeprefix("/v1/"))


def _family(
    name: str, text: str, labels: tuple[str, ...], found: dict[tuple[str, ...], Histogram]
) -> Metric:
    family = HistogramMetricFamily(name, text, labels=labels)
    for values, histogram in found.items():
        family.add_metric(values, histogram.buckets(), histogram.sum)
    return family
