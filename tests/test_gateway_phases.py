"""Where the time of a call goes: in /metrics for all, in `server-timing` for an admin."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import upstream
from aegis_c.gateway.hot.phases import PHASES
from gateway_rig import ADMIN, ASK, KEY, Rig, gateway, run

PLAIN = {"guard", "auth", "body", "limits", "queue", "first_byte", "upstream", "evidence"}


def timing(value: str) -> dict[str, float]:
    """Milliseconds by phase."""
    parts = [re.fullmatch(r"(\w+);dur=(\d+\.\d{3})", part) for part in value.split(", ")]
    return {part[1]: float(part[2]) for part in parts if part is not None}


async def metrics(rig: Rig) -> dict[str, dict[str, float]]:
    reply = await rig.ask(b"", method="GET", path="/metrics", secret=ADMIN, content_type=None)
    found: dict[str, dict[str, float]] = {"sum": {}, "count": {}}
    for kind, phase, value in re.findall(
        r'^aegis_phase_seconds_(sum|count)\{phase="(\w+)"\} (\S+)$', reply.body.decode(), re.M
    ):
        found[kind][phase] = float(value)
    return found


def test_phases(tmp_path: Path) -> None:
    async def slow(exchange: upstream.Exchange) -> None:
        await asyncio.sleep(0.05)
        await upstream.answer(exchange)

    async def main() -> None:
        async with upstream.running(slow) as up, gateway(tmp_path, up.url) as rig:
            reply = await rig.ask(secret=ADMIN)
            assert reply.status == 200
            found = timing(reply.headers["server-timing"])
            assert set(found) == PLAIN
            assert found["first_byte"] >= 49  # the upstream's sleep is in this phase
            assert sum(found.values()) < 10_000
            assert "server-timing" not in (await rig.ask(secret=KEY)).headers
            stream = await rig.ask({**ASK, "stream": True}, secret=ADMIN)
            found = timing(stream.headers["server-timing"])
            assert set(found) == PLAIN - {"upstream"}  # it goes on while the headers are read
            assert found["first_byte"] >= 49
            assert "server-timing" not in (await rig.ask(secret="wrong")).headers
            refused = await rig.ask(b"{}", secret=ADMIN)  # before it was admitted
            assert set(timing(refused.headers["server-timing"])) == {"guard", "auth", "body"}
            assert "server-timing" not in (await rig.ask(b"{}", secret=KEY)).headers
            shown = await metrics(rig)
            assert set(shown["count"]) == set(shown["sum"]) == set(PHASES)
            assert shown["count"]["guard"] == 6
            assert shown["count"]["auth"] == 5
            assert shown["count"]["limits"] == shown["count"]["first_byte"] == 3
            assert shown["count"]["firewall"] == shown["sum"]["firewall"] == 0
            assert shown["sum"]["first_byte"] >= 3 * 0.049

    run(main())
