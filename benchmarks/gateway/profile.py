"""Where the microseconds of a governed call go: py-spy for Python, perf for C and the kernel.

    python -m benchmarks.gateway.profile [--seconds S] [--streams] [--into FILE]

Drives `aegis-c serve` at c=8 and samples it twice: py-spy says which part of the gateway the event
loop's thread was in (a sample counts for the innermost frame that belongs to a part), perf which
library or the kernel. Shares become microseconds through the CPU that a call cost in a run without
a sampler. With --into, FILE's block `<!-- profile -->` .. `<!-- end profile -->` is replaced.
"""

from __future__ import annotations

import argparse
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from benchmarks.gateway.harness import Bench, Target
from benchmarks.machine import describe
from benchmarks.report import fill_block, machine_line, table

CONNECTIONS = 8
_HZ = 499
LOOP = "event loop (uvloop) and its socket calls"
#: Parts, by the end of a frame's file name; the first that fits counts.
PARTS = {
    "gateway/hot/guard": "guard: headers, body",
    "gateway/hot/strictjson": "strict JSON",
    "gateway/hot/auth": "auth",
    "gateway/hot/firewall": "firewall",
    "gateway/hot/limits": "limits and admission",
    "gateway/hot/admission": "limits and admission",
    "gateway/hot/adapters": "adapter",
    "gateway/hot/pool": "upstream pool",
    "gateway/hot/dispatch": "forwarder",
    "gateway/hot/targets": "forwarder",
    "gateway/hot/retry": "forwarder",
    "gateway/hot/breaker": "forwarder",
    "gateway/hot/forwarder": "forwarder",
    "gateway/hot/watch": "forwarder",
    "gateway/hot/relay": "streams",
    "gateway/hot/reply": "reply: headers, the write to the socket",
    "gateway/hot/wire": "reply: headers, the write to the socket",
    "gateway/hot/recording": "evidence",
    "gateway/evidence": "evidence",
    "aegis_c/ledger": "ledger",
    "gateway/hot/pipeline": "pipeline",
    "gateway/metrics": "metrics",
    "gateway/background": "background path",
    "gateway/serve": LOOP,
    "gateway/process/worker": LOOP,
    "gateway/": "gateway, the rest",
    "uvicorn/": "uvicorn: HTTP in and out",
}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gateway.profile",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--seconds", type=float, default=10.0, help="of each sampled run")
    parser.add_argument("--streams", action="store_true", help="64 streams instead of plain calls")
    parser.add_argument("--into", type=Path, metavar="FILE")
    options = parser.parse_args(arguments)
    missing = [tool for tool in ("py-spy", "perf") if _tool(tool) is None]
    if missing:
        parser.error(f"{' and '.join(missing)} not found (pip install py-spy; apt: linux-perf)")
    with tempfile.TemporaryDirectory(prefix="aegis-profile-") as temporary:
        text = measure(Path(temporary), options.seconds, options.streams)
    print(text)
    if options.into is not None:
        fill_block(options.into, "profile", text)
    return 0


def measure(folder: Path, seconds: float, streams: bool) -> str:
    """The report, as Markdown."""
    load: dict[str, Any] = {"connections": CONNECTIONS, "seconds": seconds}
    if streams:
        load = {"connections": 64, "seconds": seconds, "stream": True}
    with Bench(folder) as bench:
        gateway = bench.governed(bench.upstream())
        bench.load(gateway, **{**load, "seconds": 1.0})
        plain = bench.load(gateway, **load)
        spied = _sampled(bench, gateway, load, _spy_command(folder, gateway.process.pid))
        perfed = _sampled(bench, gateway, load, _perf_command(folder, gateway.process.pid))
        parts = python_parts((folder / "spy.txt").read_text())
        places, symbols = native_places(folder)
    cpu = plain["cpu_us"]
    outside = max(0.0, cpu - plain["loop_cpu_us"])
    what = "call" if not streams else "stream of 32 events"
    head = (
        f"{machine_line(describe(folder))}\n\n{cpu:.0f} us of CPU a {what} at "
        f"c={load['connections']} ({plain['rps']:,.0f}/s), {outside:.0f} of them outside the event "
        f"loop's thread. With py-spy beside it: {spied['rps']:,.0f}/s, with perf: "
        f"{perfed['rps']:,.0f}/s."
    )
    loop = cpu - outside
    rows = [[name, f"{share:.1%}", f"{share * loop:.1f}"] for name, share in parts]
    by_part = table("The event loop's thread, by part (py-spy)", ["", "share", "us"], rows)
    rows = [[name, f"{share:.1%}", f"{share * cpu:.1f}"] for name, share in places]
    by_place = table("The whole process, by library (perf)", ["", "share", "us"], rows)
    rows = [[f"`{name}`", f"{share:.1%}", f"{share * cpu:.1f}"] for name, share in symbols]
    by_symbol = table("The hottest functions (perf)", ["", "share", "us"], rows)
    return "\n".join((head, "", by_part, by_place, by_symbol))


def _tool(name: str) -> str | None:
    beside = Path(sys.executable).with_name(name)
    return str(beside) if beside.exists() else shutil.which(name)


def _spy_command(folder: Path, pid: int) -> list[str]:
    command = [_tool("py-spy") or "", "record", "--rate", str(_HZ), "--duration", "3600"]
    command += ["--format", "raw", "--full-filenames", "--nonblocking"]
    return [*command, "--output", str(folder / "spy.txt"), "--pid", str(pid)]


def _perf_command(folder: Path, pid: int) -> list[str]:
    command = [_tool("perf") or "", "record", "-q", "-F", str(_HZ), "-o", str(folder / "perf.data")]
    return [*command, "-p", str(pid)]


def _sampled(
    bench: Bench, gateway: Target, load: dict[str, Any], command: list[str]
) -> dict[str, Any]:
    """One run with a sampler beside it."""
    sampler = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        found = bench.load(gateway, **load)
    finally:
        sampler.send_signal(signal.SIGINT)
        said, _ = sampler.communicate(timeout=60)
    if sampler.returncode not in (0, -signal.SIGINT):
        raise RuntimeError(f"{command[0]} failed: {said.decode()}")
    return found


def python_parts(folded: str) -> list[tuple[str, float]]:
    """Shares of the samples by part, largest first, from py-spy's raw format."""
    found: Counter[str] = Counter()
    for line in folded.splitlines():
        stack, _, count = line.rpartition(" ")
        found[_part(stack.split(";"))] += int(count)
    total = sum(found.values())
    return [(name, count / total) for name, count in found.most_common()]


def _part(frames: list[str]) -> str:
    for frame in reversed(frames):
        for mark, name in PARTS.items():
            if mark in frame:
                return name
        if "/site-packages/" in frame and "aegis" not in frame:
            return frame.split("/site-packages/")[1].split("/")[0]
    return LOOP


def native_places(folder: Path) -> tuple[list[tuple[str, float]], list[tuple[str, float]]]:
    """Shares by library, and the hottest functions, from perf's report."""
    found = []
    for sort, keep in (("dso", 10), ("dso,symbol", 20)):
        command = [_tool("perf") or "", "report", "-i", str(folder / "perf.data"), "--stdio"]
        said = subprocess.run(
            [*command, "--sort", sort, "--percentage", "relative"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        rows = []
        for line in said.splitlines():
            match = re.match(r"\s+([0-9.]+)%\s+(.+?)\s*$", line)
            if match is not None and len(rows) < keep:
                name = re.sub(r"\s+\[[.k]\]\s+", ": ", match[2])
                name = re.sub(r"(\s+-)+$", "", name)
                rows.append((name, float(match[1]) / 100))
        found.append(rows)
    return found[0], found[1]


if __name__ == "__main__":
    sys.exit(main())
