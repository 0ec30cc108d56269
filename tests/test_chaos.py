"""The short form of tests/chaos.py."""

from __future__ import annotations

import random
from pathlib import Path

from chaos import chaos
from gateway_rig import run


def test_what_is_answered_is_recorded_whatever_happens_to_the_workers(
    tmp_path: Path, rng: random.Random
) -> None:
    async def main() -> None:
        print(await chaos(tmp_path, 5.0, rng))

    run(main())
