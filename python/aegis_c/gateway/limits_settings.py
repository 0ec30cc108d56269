"""The settings of limits: how much, of what, for whom (docs/operations.md has examples).

A limit is a bucket of ``burst`` units that drains ``rate`` units per period. Whatever the calls,
any window of t seconds admits at most ``burst + t * rate / period`` units.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from fractions import Fraction
from math import ceil
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, BeforeValidator, Field, field_validator, model_validator

from aegis_c.gateway.tables import Table

Period = Literal["second", "minute", "hour", "day"]
SECONDS: Final[Mapping[str, int]] = {"second": 1, "minute": 60, "hour": 3600, "day": 86_400}
#: Money is counted in billionths of the currency that prices are given in.
NANO: Final = 10**9
#: No bucket may take longer to drain: the table's times end later.
_LONGEST: Final = 100 * 366 * 86_400

Units = Annotated[int, Field(ge=1, le=10**14)]
Price = Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False)]
Amount = Annotated[float, Field(ge=1e-6, le=1e8, allow_inf_nan=False)]


def _one_or_more(value: object) -> object:
    """A single table stands for a list of one."""
    return (value,) if isinstance(value, (dict, BaseModel)) else value


class Rate(Table):
    """``{ rate = 60, per = "minute", burst = 10 }``"""

    rate: Units
    per: Period = "minute"
    burst: Units | None = Field(default=None, description="Units at once; default: the rate.")

    @model_validator(mode="after")
    def _check_length(self) -> Rate:
        rate, seconds, burst = self.bucket()
        if burst * seconds > _LONGEST * rate:
            raise ValueError(f"a burst of {burst} would take more than a century to come back")
        return self

    def bucket(self) -> tuple[int, int, int]:
        """(units, seconds in which they drain, burst)."""
        return self.rate, SECONDS[self.per], self.burst or self.rate


class Budget(Table):
    """``{ amount = 25.0, per = "day" }``: money, in the currency of the prices."""

    amount: Amount
    per: Period = "day"
    burst: Amount | None = Field(default=None, description="Money at once; default: the amount.")

    @model_validator(mode="after")
    def _check_length(self) -> Budget:
        rate, seconds, burst = self.bucket()
        if burst * seconds > _LONGEST * rate:
            raise ValueError(f"a burst of {self.burst} would take more than a century to come back")
        return self

    def bucket(self) -> tuple[int, int, int]:
        """(billionths, seconds in which they drain, burst in billionths)."""
        amount = nano(self.amount)
        return amount, SECONDS[self.per], amount if self.burst is None else nano(self.burst)


class LimitSet(Table):
    """The limits of one key, tenant, model, address, or of everybody together."""

    requests: Annotated[tuple[Rate, ...], BeforeValidator(_one_or_more)] = ()
    tokens: Annotated[tuple[Rate, ...], BeforeValidator(_one_or_more)] = ()
    budget: Annotated[tuple[Budget, ...], BeforeValidator(_one_or_more)] = ()
    concurrency: int | None = Field(default=None, ge=1, le=65_535, description="Calls at a time.")

    @field_validator("requests", "tokens", "budget")
    @classmethod
    def _check_periods(cls, value: tuple[Any, ...]) -> tuple[Any, ...]:
        periods = [one.per for one in value]
        for period in periods:
            if periods.count(period) > 1:
                raise ValueError(f"two limits per {period}; give one")
        return value

    def all_rates(self) -> tuple[Rate | Budget, ...]:
        """The rates of every kind."""
        return (*self.requests, *self.tokens, *self.budget)

    def limits_something(self) -> bool:
        """False for a set without any limit."""
        return self.concurrency is not None or bool(self.all_rates())


class ModelLimits(LimitSet):
    """What is known of one model: its prices, its longest output, its own limits."""

    max_output: Units | None = Field(
        default=None, description="Tokens that it answers at most when a caller sets no maximum."
    )
    input_price: Price | None = Field(default=None, description="Money per million prompt tokens.")
    output_price: Price | None = Field(default=None, description="Money per million output tokens.")

    @model_validator(mode="after")
    def _check_prices(self) -> ModelLimits:
        if (self.input_price is None) != (self.output_price is None):
            raise ValueError("give both input_price and output_price, or neither")
        return self


def nano(money: float) -> int:
    """Money as whole billionths: the decimal digits as written, rounded up."""
    return ceil(Fraction(Decimal(repr(money))) * NANO)
