"""What the tables of the settings share: unknown keys are refused, values do not change."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

#: Names that go into every entry: short and plain, so they never need a cap.
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:@-]{0,63}$")]
Seconds = Annotated[float, Field(gt=0, le=86_400)]


class Table(BaseModel):
    """One table of the settings file."""

    model_config = ConfigDict(extra="forbid", frozen=True)
