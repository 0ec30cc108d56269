"""Results as Markdown: no number is typed by hand.

    python -m benchmarks.report [RESULTS.json ...] [--into FILE ...]

Reads the JSON of `pytest --benchmark-json`, of `python -m benchmarks.gateway --json` and of
`python -m benchmarks.gateway.limits --json`, in any number and order, and prints every table. With
--into, the text between ``<!-- results: NAME -->`` and ``<!-- end -->`` in a file is replaced by
that table (NAME `all`: by every one of them), so a table of the README is made again by running
this again. With --keep, tables that the results do not hold stay as they are, and what stands
before the first table of `all` (which run they are of) is left to the writer.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

_BLOCK = re.compile(r"(<!-- results: (.+?) -->\n)(.*?)(<!-- end -->)", re.DOTALL)
_OWN = {"row", "baseline", "against", "calls", "figures_only"}  # the rest are columns
_TARGETS = {
    "direct": "direct to the upstream",
    "bare": "bare ASGI app, constant reply, no upstream",
    "passthrough": "bare ASGI app + own upstream client",
    "aiohttp": "bare ASGI app + aiohttp",
    "governed": "**Aegis, every stage on**",
    "naive": "FastAPI + httpx + json/hmac record",
}
_PLAIN = ("passthrough", "aiohttp")  # what governs nothing: its floor, and the usual way


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__)
    parser.add_argument("results", nargs="+", type=Path, help="JSON files")
    parser.add_argument("--into", action="append", default=[], type=Path, help="files to fill")
    parser.add_argument("--keep", action="store_true", help="leave tables of other runs alone")
    options = parser.parse_args(arguments)
    tables: dict[str, str] = {}
    for path in options.results:
        results = json.loads(path.read_text())
        if "form" in results:
            tables |= gateway_results(results)
        elif "limits" in results:
            tables["gateway limits"] = limits_table(results["limits"])
        else:
            tables |= pytest_results(results)
    if not options.into:
        print("\n".join(tables.values()))
    for path in options.into:
        text = path.read_text()
        names = [match[2] for match in _BLOCK.finditer(text)]
        unknown = [name for name in names if name not in tables and name != "all"]
        if unknown and not options.keep:
            print(f"{path}: no results named {unknown}; there are {list(tables)}", file=sys.stderr)
            return 2
        path.write_text(_BLOCK.sub(lambda match: fill(match, tables, options.keep), text))
    return 0


def fill(block: re.Match[str], tables: dict[str, str], keep: bool) -> str:
    """The block with its table; with ``keep``, a table that there is none for stays."""
    head, name, old, end = block.groups()
    if name != "all":
        text = tables.get(name)
        return block[0] if text is None else f"{head}\n{text}\n{end}"
    if not keep:
        return f"{head}\n" + "\n".join(tables.values()) + f"\n{end}"
    before, *sections = re.split(r"^(?=### )", old, flags=re.MULTILINE)
    stand = {section.partition("\n")[0]: section for section in sections}
    stand |= {
        table.partition("\n")[0]: f"{table}\n"
        for table in tables.values()
        if table.startswith("### ")
    }
    return head + before + "".join(stand.values()) + end


def machine_line(machine: dict[str, Any]) -> str:
    """What was measured, and on what."""
    virtual = ", virtual machine" if machine["virtual"] else ""
    return (
        f"{machine['cpu']}, {machine['cores']} cores{virtual}, {machine['memory_gib']} GiB, "
        f"{machine['filesystem']}, Linux {machine['kernel']}, {machine['python']}, "
        f"aegis-c {machine['aegis']} at {machine['commit'] or 'no commit'}, "
        f"SHA-256 {machine['sha256']}; load average before: {machine['load_before']}.\n"
    )


def table(title: str, header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; the first column is text, the others are numbers."""
    lines = [
        f"### {title}\n",
        "| " + " | ".join(header) + " |",
        "|---" + "|--:" * (len(header) - 1) + "|",
        *("| " + " | ".join(row) + " |" for row in rows),
    ]
    return "\n".join(lines) + "\n"


def fill_block(file: Path, name: str, text: str) -> None:
    """Replace the block ``<!-- NAME -->`` .. ``<!-- end NAME -->`` of a file. Raises ValueError."""
    block = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end {name} -->)", re.DOTALL)
    page, count = block.subn(lambda m: f"{m[1]}\n{text}\n{m[2]}", file.read_text())
    if count != 1:
        raise ValueError(f"{file} has no block <!-- {name} --> .. <!-- end {name} -->")
    file.write_text(page)


# ---- pytest-benchmark --------------------------------------------------------------------


def pytest_results(results: dict[str, Any]) -> dict[str, str]:
    """Tables by the name of their group, and ``machine``."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for bench in results["benchmarks"]:
        groups.setdefault(bench["group"] or bench["fullname"].partition("::")[0], []).append(bench)
    tables = {"machine": machine_line(results["machine_info"])}
    return tables | {group: _group_table(group, rows) for group, rows in groups.items()}


def _group_table(group: str, benches: list[dict[str, Any]]) -> str:
    infos = [bench["extra_info"] for bench in benches]
    columns = list(dict.fromkeys(name for info in infos for name in info if name not in _OWN))
    timed = not all(info.get("figures_only") for info in infos)
    tails = any("p99" in bench["stats"] for bench in benches)
    baselines = {
        info.get("against"): _per_call(bench)
        for bench, info in zip(benches, infos, strict=True)
        if info.get("baseline")
    }
    header = [""]
    if timed:
        header += ["median", *(["p99"] if tails else []), "per second"]
        header += ["speed against Python"] if baselines else []
    rows = []
    for bench, info in zip(benches, infos, strict=True):
        row = [info.get("row", bench["name"].removeprefix("test_"))]
        if timed:
            each = _per_call(bench)
            row += [_duration(each)]
            row += [_duration(bench["stats"]["p99"]) if "p99" in bench["stats"] else ""] * tails
            row += [f"{1 / each:,.0f}" if each < 0.01 else f"{1 / each:.3g}"]
            if baselines:
                row += [_speed(baselines.get(info.get("against")), each, info)]
        rows.append(row + [_figure(info.get(name)) for name in columns])
    return table(group, header + [name.replace("_", " ") for name in columns], rows)


def _per_call(bench: dict[str, Any]) -> float:
    median: float = bench["stats"]["median"]
    return median / int(bench["extra_info"].get("calls", 1))


def _speed(baseline: float | None, each: float, info: dict[str, Any]) -> str:
    if info.get("baseline"):
        return "1"
    if baseline is None:
        return ""
    ratio = baseline / each
    return f"{ratio:.2g} (Python wins)" if ratio < 0.95 else f"{ratio:.2g}"


def _duration(seconds: float) -> str:
    """Three significant digits."""
    for unit, scale in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= scale:
            return f"{seconds / scale:.3g} {unit}"
    return f"{seconds * 1e9:.3g} ns"


def _figure(value: object) -> str:
    if isinstance(value, float):
        return f"{value:,.1f}" if value < 1000 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) else str(value or "")


# ---- the gateway -------------------------------------------------------------------------


def gateway_tables(results: dict[str, Any]) -> str:
    """Every table of the gateway harness, one below the other."""
    return "\n".join(gateway_results(results).values())


def gateway_results(results: dict[str, Any]) -> dict[str, str]:
    """Tables by name."""
    return {
        "gateway machine": f"{results['form']} form. " + machine_line(results["machine"]),
        "gateway calls": _calls(results["calls"]),
        "gateway latency": _latency(results["calls"]),
        "gateway ratios": _ratios(results),
        "gateway streams": _streams(results["streams"], "all begun at once"),
        "gateway spread": _streams(results["spread"], "begun evenly over 640 ms"),
        "gateway health": _health(results["health"]),
        "gateway clients": _clients(results["clients"]),
        "gateway memory": _memory(results["memory"]),
    }


def _by_target(rows: list[dict[str, Any]]) -> dict[str, dict[int, dict[str, Any]]]:
    found: dict[str, dict[int, dict[str, Any]]] = {}
    for row in rows:
        found.setdefault(row["target"], {})[row["connections"]] = row
    return found


def _calls(rows: list[dict[str, Any]]) -> str:
    found = _by_target(rows)
    counts = sorted(found["direct"])
    header = [
        "",
        *(f"requests/s, c={c}" for c in counts),
        *(f"CPU us a call, c={c}" for c in counts),
    ]
    header += ["of it outside the event loop's thread, c=8"]
    lines = []
    for name, runs in found.items():
        line = [_TARGETS[name], *(f"{runs[c]['rps']:,.0f}" for c in counts)]
        if name == "direct":
            line += [""] * (len(counts) + 1)
        else:
            line += [f"{runs[c]['cpu_us']:,.0f}" for c in counts]
            line += [f"{max(0.0, runs[8]['cpu_us'] - runs[8]['loop_cpu_us']):,.0f}"]
        lines.append(line)
    return table("One plain call: throughput and CPU of the gateway's process", header, lines)


def _latency(rows: list[dict[str, Any]]) -> str:
    found = _by_target(rows)
    counts = sorted(found["direct"])
    lines = [
        [_TARGETS["direct"]]
        + [f"{found['direct'][c][f'total_{q}']:,.0f}" for c in counts for q in ("p50", "p99")]
    ]
    for name, runs in found.items():
        if name not in ("direct", "bare"):
            direct = found["direct"]
            added = [runs[c][q] - direct[c][q] for c in counts for q in ("total_p50", "total_p99")]
            lines.append([_TARGETS[name] + ", added", *(f"{us:,.0f}" for us in added)])
    header = ["us", *(f"{q}, c={c}" for c in counts for q in ("p50", "p99"))]
    return table("One plain call: latency, and what a gateway adds to it", header, lines)


def _ratios(results: dict[str, Any]) -> str:
    lines = []
    for title, rows in (("CPU-bound", results["calls"]), ("20 ms upstream", results["delayed"])):
        found = _by_target(rows)
        for c, governed in found["governed"].items():
            line = [f"{title}, c={c}", f"{governed['rps']:,.0f}"]
            for plain in (found[name][c] for name in _PLAIN if name in found):
                line += [
                    f"{plain['rps']:,.0f}",
                    f"{governed['rps'] / plain['rps']:.2f}",
                    f"{plain['cpu_us'] / governed['cpu_us']:.2f}",
                ]
            lines.append(line)
    header = ["", "governed, requests/s"]
    for name in _PLAIN:
        if name in _by_target(results["calls"]):
            header += [f"{_TARGETS[name]}, requests/s", "governed / it", "by CPU a call"]
    return table("Governed against plain", header, lines)


def _streams(rows: list[dict[str, Any]], how: str) -> str:
    found = _by_target(rows)
    lines = []
    for name, runs in found.items():
        for c, run in runs.items():
            line = [f"{_TARGETS[name]}, {c} streams"]
            for q in ("first_p50", "first_p99"):
                added = 0.0 if name == "direct" else found["direct"][c][q]
                line.append(f"{(run[q] - added) / 1000:,.2f}")
            cpu = (
                "" if name == "direct" else f"{run['cpu_us'] * run['requests'] / run['events']:.1f}"
            )
            lines.append([*line, cpu])
    header = ["", "first event p50, ms (added)", "p99, ms (added)", "CPU us an event"]
    return table(f"Streams of 32 events, one every 20 ms, {how}", header, lines)


def _health(rows: list[dict[str, Any]]) -> str:
    found = _by_target(rows)
    lines = []
    for name, runs in found.items():
        best = max(run["rps"] for run in runs.values())
        line = [f"{run['rps']:,.0f} ({run['rps'] / best:.2f})" for run in runs.values()]
        lines.append([_TARGETS[name], *line])
    header = ["", *(f"c={c}" for c in sorted(found["governed"]))]
    return table("/health: requests/s (share of the best)", header, lines)


def limits_table(rows: list[dict[str, Any]]) -> str:
    found: dict[str, dict[int, dict[str, Any]]] = {}
    for row in rows:
        found.setdefault(row["row"], {})[row["connections"]] = row
    counts = sorted({row["connections"] for row in rows})
    none = next(iter(found.values()))
    lines = [
        [name, *(f"{runs[c]['cpu_us']:,.0f}" for c in counts)]
        + [f"{runs[c]['cpu_us'] - none[c]['cpu_us']:+,.1f}" for c in counts]
        for name, runs in found.items()
    ]
    header = ["", *(f"CPU us a call, c={c}" for c in counts), *(f"added, c={c}" for c in counts)]
    return table("One plain call with limits", header, lines)


def _clients(rows: list[dict[str, Any]]) -> str:
    names = {"pool": "**own pool**"}
    counts = sorted({row["connections"] for row in rows})
    found: dict[str, dict[int, dict[str, Any]]] = {}
    for row in rows:
        found.setdefault(row["client"], {})[row["connections"]] = row
    lines = [
        [
            names.get(name, name),
            *(f"{runs[c]['cpu_us']:,.0f}" for c in counts),
            *(f"{runs[c]['rps']:,.0f}" for c in counts),
        ]
        for name, runs in found.items()
    ]
    header = ["", *(f"CPU us a call, c={c}" for c in counts)]
    header += [f"requests/s, c={c}" for c in counts]
    return table("The upstream client alone", header, lines)


def _memory(rows: list[dict[str, Any]]) -> str:
    lines = [
        [
            _TARGETS[row["target"]],
            f"{row['idle_mib']:,.0f}",
            f"{row['after_mib']:,.0f}",
            "" if row["ready_ms"] is None else f"{row['ready_ms']:,}",
        ]
        for row in rows
    ]
    return table(
        "Memory and start", ["", "RSS idle, MiB", "RSS after, MiB", "start to /ready, ms"], lines
    )


if __name__ == "__main__":
    sys.exit(main())
