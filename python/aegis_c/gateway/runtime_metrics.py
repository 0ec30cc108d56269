"""What /metrics shows of the parts' own numbers, read when it is asked for."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Final

from aegis_c.gateway.ledger_metrics import LedgerMetrics

if TYPE_CHECKING:
    from aegis_c.gateway.runtime import Runtime

#: Name, help text, label ("": one value), and what reads the values by label.
Row = tuple[str, str, str, "Callable[[Runtime], dict[str, float]]"]

GAUGES: Final[tuple[Row, ...]] = (
    (
        "aegis_calls_in_flight",
        "Calls admitted and not yet over.",
        "",
        lambda r: {"": r.admission.in_flight},
    ),
    (
        "aegis_calls_waiting",
        "Calls that wait for room.",
        "",
        lambda r: {"": r.admission.waiting},
    ),
    (
        "aegis_background_jobs",
        "Background jobs not yet done.",
        "",
        lambda r: {"": r.background.depth},
    ),
    (
        "aegis_background_oldest_seconds",
        "Age of the oldest background job.",
        "",
        lambda r: {"": r.background.oldest_age},
    ),
    (
        "aegis_upstream_connections",
        "Connections to the upstream; waiting: calls without one.",
        "state",
        lambda r: {k: float(v) for k, v in r.targets.stats().items()},
    ),
    (
        "aegis_ledger_entries",
        "Entries that have reached a state.",
        "state",
        lambda r: {
            "submitted": r.ledger.native.size,
            "durable": r.ledger.native.durable_size,
            "integrated": r.ledger.native.integrated_size,
            "published": r.ledger.native.published_size,
        },
    ),
    (
        "aegis_ledger_room_bytes",
        "Free bytes of the ledger's ring.",
        "",
        lambda r: {"": r.ledger.native.room()},
    ),
    (
        "aegis_target_breaker",
        "State of a target's circuit breaker: 0 closed, 1 half-open, 2 open.",
        "target",
        lambda r: r.breaker_states(),
    ),
)
COUNTERS: Final[tuple[Row, ...]] = (
    (
        "aegis_entries",
        "Entries submitted.",
        "kind",
        lambda r: {k: float(v) for k, v in r.evidence.submitted.items()},
    ),
    (
        "aegis_ledger_gaps",
        "Entries that could not be recorded when they were made.",
        "",
        lambda r: {"": r.evidence.gaps},
    ),
    (
        "aegis_ledger_late",
        "Entries that were recorded later, once the ledger was back.",
        "",
        lambda r: {"": r.evidence.late},
    ),
    (
        "aegis_rejections_suppressed",
        "Rejections counted instead of recorded.",
        "",
        lambda r: {"": r.evidence.suppressed_total},
    ),
    (
        "aegis_upstream_retries",
        "Requests sent a second time because a kept connection was closed.",
        "",
        lambda r: {"": r.targets.resent()},
    ),
    (
        "aegis_retries",
        "Calls asked again, of the same target or another one.",
        "",
        lambda r: {"": r.retries.made},
    ),
    (
        "aegis_retries_exhausted",
        "Calls not asked again because the retry budget was used up.",
        "",
        lambda r: {"": r.retries.exhausted},
    ),
    (
        "aegis_target_opened",
        "Times that a target's circuit breaker opened.",
        "target",
        lambda r: {t.name: t.breaker.opened for t in r.targets.all},
    ),
)


def add_gauges(runtime: Runtime) -> None:
    """Tell the metrics where the other parts keep their numbers."""
    metrics = runtime.metrics
    metrics.registry.register(
        LedgerMetrics(lambda: runtime.ledger.native.stats() if runtime.running else None)
    )
    for add, rows in ((metrics.gauge, GAUGES), (metrics.counter, COUNTERS)):
        for name, text, label, read in rows:
            add(name, text, label, partial(_while_running, runtime, read))


def _while_running(
    runtime: Runtime, read: Callable[[Runtime], dict[str, float]]
) -> dict[str, float]:
    return read(runtime) if runtime.running else {}
