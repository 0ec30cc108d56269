"""What the metrics, the log line and the span of one call cost, in microseconds of CPU.

    python -m benchmarks.gateway.metrics_cost

Each is recorded as the pipeline does it, again and again, in rounds: once alone, and once after
work that empties the first caches, as calls do between one recording and the next. Counting what
was noted is included; the scrape and the writing of the log are not.
"""

from __future__ import annotations

import asyncio
import logging
import statistics
import time
from collections.abc import Callable

from aegis_c.gateway.background.spawn import Background
from aegis_c.gateway.evidence import Call
from aegis_c.gateway.logs import CallLog
from aegis_c.gateway.metrics import Metrics

CHAT = "/v1/chat/completions"
ROUNDS, CALLS, BATCH = 15, 6400, 64
_WORK = [bytearray(64) for _ in range(6000)]  # 384 KiB, and as many objects


def a_call() -> Call:
    """A plain call of eight phases with its usage, as it is when it has been answered."""
    call = Call(CHAT, "127.0.0.1")
    call.model, call.provider, call.upstream_ns = "mock-1", "upstream", 100_000
    call.usage = {"prompt_tokens": 12, "completion_tokens": 40, "total_tokens": 52}
    call.phases.spent = [20_000, 9_000, 5_000, 0, 1_000, 40_000, 90_000, 3_000, 60_000]
    return call


def alone(record: Callable[[Call], object]) -> float:
    """Microseconds a call."""
    best = float("inf")
    for _ in range(ROUNDS):
        calls = [a_call() for _ in range(CALLS)]
        began = time.perf_counter_ns()
        for call in calls:
            record(call)
        best = min(best, (time.perf_counter_ns() - began) / CALLS)
    return best / 1e3


def between(record: Callable[[Call], object]) -> float:
    """The same with other work before each: the median over batches that are counted at once."""
    batches, clocks = [], []
    for _ in range(CALLS // BATCH):
        spent = 0
        for call in [a_call() for _ in range(BATCH)]:
            sum(map(len, _WORK))
            began = time.perf_counter_ns()
            middle = time.perf_counter_ns()
            record(call)
            spent += time.perf_counter_ns() - middle
            clocks.append(middle - began)
        batches.append(spent / BATCH)
    return (statistics.median(batches) - statistics.median(clocks)) / 1e3


async def main() -> None:
    """Print a line for each."""
    metrics, log, background = Metrics(), CallLog(-1), Background(1 << 20, 2)
    log._flush = lambda: None  # type: ignore[method-assign]  # nothing is written here

    def line(call: Call) -> None:
        log.write(call, 200, 230_000)
        if len(log._lines) >= 256:
            log._take()

    recorders: dict[str, Callable[[Call], object]] = {
        "metrics": lambda call: metrics.over(call, 200, 230_000),
        "log line": line,
    }
    try:
        from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

        from aegis_c.gateway.spans import Spans
    except ImportError:
        print("span: NOT RUN (pip install 'aegis-c[otel]')")
    else:
        spans = Spans(background, "aegis.example/log", exporter=InMemorySpanExporter())
        logging.disable(logging.WARNING)  # spans that come faster than they are exported
        recorders["span, in the background"] = lambda call: spans._make(
            call, 200, time.time_ns(), 230_000, [(b"host", b"gateway")], {}
        )
    for name, record in recorders.items():
        print(f"{name}: {alone(record):.2f} us a call, {between(record):.2f} between other work")


if __name__ == "__main__":
    asyncio.run(main())
