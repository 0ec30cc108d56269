"""Gateways with limits, for their tests: tables in the test's own folder, levels read directly."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import gateway_rig
from aegis_c.gateway.limits_settings import SECONDS
from gateway_rig import Rig


def slow(units: int) -> dict[str, Any]:
    """A limit of which nothing drains during a test: numbers can be compared exactly."""
    return {"rate": -(-units // 10_000), "per": "day", "burst": units}


def limit_tables(folder: Path, **limits: Any) -> dict[str, Any]:
    """The settings' table ``limits``, with shared memory in ``folder``."""
    return {"directory": folder / "shm", "slots": 1024, **limits}


@asynccontextmanager
async def limited(
    data: Path, url: str | None, limits: dict[str, Any], **tables: Any
) -> AsyncIterator[Rig]:
    """A gateway with these limits."""
    limits = limit_tables(data, **limits)
    async with gateway_rig.gateway(data, url, limits=limits, **tables) as rig:
        yield rig


def used(rig: Rig, name: str, key: str, limit: dict[str, Any]) -> int:
    """What is charged to ``key`` of the limit ``name``, which the settings give as ``limit``."""
    assert rig.runtime.limits is not None
    burst: int = limit.get("burst", limit["rate"])
    native = rig.runtime.limits.tables.rates.limit(
        name, rate=limit["rate"], per=float(SECONDS[limit["per"]]), burst=burst
    )
    return burst - native.check(key, 0).remaining


def in_flight(rig: Rig) -> int:
    """Places taken over all limits of concurrency."""
    assert rig.runtime.limits is not None
    return rig.runtime.limits.tables.calls.stats()["in_flight"]
