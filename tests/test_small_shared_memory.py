"""Containers with little shared memory: rings are sized down with a warning, or refused."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

import components
from gateway_process import RUN, environment
from gateway_rig import KEY
from test_wal_machine import no_mounts

URL = "http://127.0.0.1:9/v1"  # nobody is asked


@pytest.fixture(autouse=True)
def _needs_mounts() -> None:
    components.require("tmpfs in a user namespace", no_mounts, "util-linux mount")


def command(size: str) -> tuple[str, ...]:
    """A gateway that sees so much shared memory."""
    script = f'mount -t tmpfs -o size={size} none /dev/shm && exec "$@"'
    namespace = ("unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script, "sh")
    return (*namespace, sys.executable, "-c", RUN)


def get(address: str, path: str) -> bytes:
    asked = urllib.request.Request(address + path, headers={"authorization": f"Bearer {KEY}"})
    with urllib.request.urlopen(asked, timeout=10) as reply:
        body: bytes = reply.read()
    return body


@pytest.mark.parametrize(("size", "workers", "ring"), [("24m", 2, 4 << 20), ("512k", 1, 256 << 10)])
def test_rings_are_sized_down_with_a_warning(
    tmp_path: Path, size: str, workers: int, ring: int
) -> None:
    log = tmp_path / "log"
    with (
        log.open("wb") as errors,
        subprocess.Popen(
            command(size),
            env=environment(tmp_path / "data", URL, AEGIS_WORKERS=workers),
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        ) as process,
    ):
        try:
            assert process.stdout is not None
            said = next(line for line in process.stdout if "listening on " in line)
            address = said.split("listening on ")[1].split(";")[0]
            ready = json.loads(get(address, "/ready"))
            assert ready == {"ready": True, "missing": [], "ring": "tmpfs"}
            text = get(address, "/metrics").decode()
            sizes = re.findall(r"^aegis_wal_ring_bytes(?:\{.*\})? (\S+)$", text, re.M)
            assert [float(size) for size in sizes] == [ring] * workers
            process.send_signal(signal.SIGTERM)
            assert process.wait(20) == 0
        finally:
            process.kill()
    said = f"each of {workers} rings takes {ring} bytes instead of 16777216; for more, enlarge it"
    assert said in log.read_text()
    assert "--shm-size" in log.read_text()


def test_without_room_for_a_ring_it_says_what_to_do(tmp_path: Path) -> None:
    done = subprocess.run(
        command("64k"),
        env=environment(tmp_path / "data", URL),
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.returncode == 2
    assert "cannot start: " in done.stderr
    assert "--shm-size" in done.stderr
    assert "Traceback" not in done.stderr
