"""The health of the event loop: how late it is, and what keeps it when it stands still.

A native thread asks the loop for an answer every 20 ms (aegis_c.LoopWatch) and measures how long
that takes, whoever holds the GIL. When an answer is `slow` seconds late, a thread of ours, asleep
until then, looks at what the loop's thread is running and names the stage. On the path that costs
nothing; an idle gateway spends about 0.1 % of a core on it.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
from collections.abc import Iterable
from pathlib import Path
from types import FrameType
from typing import Any, Final

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
    SummaryMetricFamily,
)
from prometheus_client.registry import Collector

import aegis_c
from aegis_c import LoopWatch, _native
from aegis_c.gateway.metrics import cumulative

log = logging.getLogger("aegis_c.gateway.loop")

EVERY: Final = 0.02  # seconds between two looks

_PACKAGE: Final = str(Path(aegis_c.__file__).parent) + "/"
#: The stage that a file of the package belongs to; the longest beginning counts.
STAGES: Final = {
    "gateway/hot/guard": "guard",
    "gateway/hot/strictjson": "guard",
    "gateway/hot/source": "guard",
    "gateway/hot/auth": "auth",
    "gateway/hot/firewall": "firewall",
    "gateway/hot/limits": "limits",
    "gateway/limits/": "limits",
    "gateway/hot/admission": "limits",
    "gateway/hot/adapters/": "adapter",
    "gateway/hot/": "forwarder",
    "gateway/hot/recording": "evidence",
    "gateway/evidence": "evidence",
    "ledger/": "ledger",
    "gateway/background/": "background",
    "gateway/api/": "api",
    "gateway/": "gateway",
    "": "aegis_c",
}
OTHER: Final = "other"  # no code of ours


class LoopHealth(Collector):
    """Watches the loop that start() is called on."""

    def __init__(self) -> None:
        self._watch: LoopWatch | None = None
        self._reporter: threading.Thread | None = None
        self._loop_thread = 0
        self.stalls = dict.fromkeys([*STAGES.values(), OTHER], 0)

    def start(self, slow: float) -> None:
        """Watch the running loop; it is slow when it is that many seconds late."""
        watch = self._watch = LoopWatch(every=EVERY, slow=slow)
        self._loop_thread = threading.get_ident()
        asyncio.get_running_loop().add_reader(watch.fileno(), watch.answer)
        self._reporter = threading.Thread(
            target=self._report, args=(watch,), name="aegis-loop-report", daemon=True
        )
        self._reporter.start()

    def stop(self) -> None:
        """Watch no more. On the same loop."""
        watch, self._watch = self._watch, None
        if watch is not None and self._reporter is not None:
            asyncio.get_running_loop().remove_reader(watch.fileno())
            watch.close()
            self._reporter.join(1.0)  # not for ever: it may be writing a log that nobody reads

    def _report(self, watch: LoopWatch) -> None:
        while late := watch.wait():
            stage, where = _running(sys._current_frames().get(self._loop_thread))
            self.stalls[stage] += 1
            log.warning(
                "the event loop has not answered for %.0f ms; it is in stage %s: %s",
                late * 1e-6,
                stage,
                where,
            )
            if late := watch.wait(end=True):
                log.warning(
                    "the event loop answers again, after %.0f ms in stage %s", late * 1e-6, stage
                )

    def stats(self) -> dict[str, Any]:
        """LoopWatch.stats() of the loop that is watched."""
        assert self._watch is not None
        return self._watch.stats()

    def collect(self) -> Iterable[Metric]:
        """Called by the registry at each scrape."""
        watch = self._watch
        if watch is None:
            return
        stats = watch.stats()
        yield HistogramMetricFamily(
            "aegis_loop_lag_seconds",
            "How late the event loop answers, asked every 20 ms from outside.",
            buckets=list(cumulative(stats["lags_us"], 1e-6)),
            sum_value=stats["sum_ns"] * 1e-9,
        )
        yield GaugeMetricFamily(
            "aegis_loop_lag_max_seconds", "The longest lag so far.", stats["max_ns"] * 1e-9
        )
        stalls = CounterMetricFamily(
            "aegis_loop_stalls",
            "Times that the event loop stood still, by the stage that it was in.",
            labels=("stage",),
        )
        for stage, count in list(self.stalls.items()):
            stalls.add_metric((stage,), count)
        yield stalls
        yield from _gil_times()


def _running(frame: FrameType | None) -> tuple[str, str]:
    """The stage that a stack is in, and the place in it: the innermost one of ours."""
    innermost = frame
    while frame is not None:
        file = frame.f_code.co_filename
        if file.startswith(_PACKAGE):
            name = file[len(_PACKAGE) :]
            beginning = max((s for s in STAGES if name.startswith(s)), key=len)
            return STAGES[beginning], _place(name, frame)
        frame = frame.f_back
    if innermost is None:
        return OTHER, "nothing"
    return OTHER, _place(innermost.f_code.co_filename, innermost)


def _place(file: str, frame: FrameType) -> str:
    return f"{file}:{frame.f_lineno} in {frame.f_code.co_qualname}"


def _gil_times() -> Iterable[Metric]:
    """Of a debug build: how long our own native calls held the GIL."""
    gil_times = getattr(_native, "_gil_times", None)
    if gil_times is None:
        return
    family = SummaryMetricFamily(
        "aegis_native_gil_seconds", "Time that native calls held the GIL.", labels=("call",)
    )
    longest = GaugeMetricFamily(
        "aegis_native_gil_max_seconds", "The longest of them.", labels=("call",)
    )
    for call, (count, total_ns, max_ns) in gil_times().items():
        family.add_metric((call,), count, total_ns * 1e-9)
        longest.add_metric((call,), max_ns * 1e-9)
    yield family
    yield longest
