"""The official client, its newest release and the one before on another HTTP library."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import components
import openai_model
import upstream
from gateway_rig import KEY, gateway, run

TESTS = Path(__file__).parent
OLDER = TESTS.parent / "build" / "openai-2"  # beside the newest one, in a folder of its own
WANTED = ("openai>=2,<3", "distro", "sniffio", "tqdm")


def older() -> str:
    """The folder of the 2.x client; installed there once."""
    if not (OLDER / "openai").is_dir():
        pip = [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check", "install"]
        command = [*pip, "--no-deps", "--target", str(OLDER), *WANTED]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        if done.returncode != 0:
            how = f"pip install --no-deps --target build/openai-2 '{WANTED[0]}' distro sniffio tqdm"
            components.leave_out("the openai client 2.x", how, done.stderr)
    return str(OLDER)


@pytest.mark.parametrize("release", ["newest", "2.x"])
def test_the_official_client_gets_what_it_expects(tmp_path: Path, release: str) -> None:
    path = [str(TESTS)] if release == "newest" else [older(), str(TESTS)]

    async def main() -> None:
        quick = {"first_byte_timeout": 1.0, "heartbeat": 0.05}
        async with (
            upstream.running(openai_model.script) as up,
            gateway(tmp_path, up.url, upstream=quick, evidence={"analysis": "all"}) as rig,
        ):
            driver = await asyncio.create_subprocess_exec(
                *(sys.executable, str(TESTS / "openai_driver.py"), rig.base_url, KEY),
                env={**os.environ, "PYTHONPATH": os.pathsep.join(path)},
                stdout=asyncio.subprocess.PIPE,
            )
            async with asyncio.timeout(120):
                out, _ = await driver.communicate()
            assert driver.returncode == 0
            done = json.loads(out)
            assert done["version"].startswith("2.") == (release == "2.x")
            assert len(done["cases"]) == 10
            await rig.settled()

            entries = await rig.entries()
            settled = {e["of"] for e in entries if e["kind"] == "settle"}
            assert settled == {i for i, e in enumerate(entries) if e["kind"] == "intent"}
            statuses = {e["status"] for e in entries if e["kind"] == "settle"}
            assert statuses == {"done", "upstream_error"}
            reasons = {e["reason"] for e in entries if e["kind"] == "rejection"}
            assert reasons == {
                "invalid_api_key",
                "integer_below_min_value",
                "empty_array",
                "client_gone",
                "upstream_timeout",
            }
            assert any(e["kind"] == "analysis" for e in entries)
            assert rig.runtime.admission.reserved() == 0

    run(main())
