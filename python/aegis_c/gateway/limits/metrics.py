"""What /metrics says of limits. Labels are names of limits, which the settings bound."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from aegis_c.gateway.hot.limits import Limits
    from aegis_c.gateway.metrics import Metrics

Read = Callable[["Limits"], dict[str, int]]


def add_metrics(metrics: Metrics, limits: Callable[[], Limits | None]) -> None:
    """Tell the metrics where the numbers are; there are none while ``limits()`` is None."""

    def of(read: Read) -> Callable[[], dict[str, float]]:
        def values() -> dict[str, float]:
            stage = limits()
            return {} if stage is None else {k: float(v) for k, v in read(stage).items()}

        return values

    metrics.gauge(
        "aegis_limit_keys",
        "Keys of rates with a level above zero, and the slots for them.",
        "state",
        of(lambda stage: _some(stage.tables.rates.stats(), "live", "slots")),
    )
    metrics.gauge(
        "aegis_limit_calls_in_flight",
        "Places taken in limits of concurrency, over all workers.",
        "",
        of(lambda stage: {"": stage.calls.stats()["in_flight"]}),
    )
    metrics.counter(
        "aegis_limit_refusals",
        "Calls refused, by the limit that refused them.",
        "limit",
        of(lambda stage: stage.refused),
    )
    metrics.counter(
        "aegis_limit_tokens",
        "Tokens reserved before calls, and used by them, where tokens or money are limited.",
        "state",
        of(lambda stage: stage.tokens),
    )
    metrics.counter(
        "aegis_limit_table_full",
        "Charges (full) and debts (debts_lost) that found no slot, over all workers.",
        "what",
        of(lambda stage: _some(stage.tables.rates.stats(), "full", "debts_lost")),
    )
    metrics.counter(
        "aegis_limit_calls_not_charged",
        "Calls that passed uncharged because the table was full.",
        "",
        of(lambda stage: {"": stage.not_charged}),
    )
    metrics.counter(
        "aegis_limit_places_reaped",
        "Places given back for workers that died, over all workers.",
        "",
        of(lambda stage: {"": stage.calls.stats()["reaped"]}),
    )


def _some(stats: dict[str, int], *names: str) -> dict[str, int]:
    return {name: stats[name] for name in names}
