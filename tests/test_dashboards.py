"""The dashboard and the alert rules name nothing that is not exported."""

from __future__ import annotations

import json
import re
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

import upstream
from aegis_c.gateway.all_metrics import families, merged
from gateway_rig import ASK, gateway, run

DOCS = Path(__file__).parent.parent / "docs"
NAME = re.compile(r"\b(?:aegis|gen_ai)_[a-z0-9_]+\b")
#: Labels and functions that look like names of metrics.
LABELS = {"gen_ai_token_type", "gen_ai_operation_name"}


def test_every_metric_that_they_name_is_exported(tmp_path: Path) -> None:
    exported: set[str] = set()

    async def main() -> None:
        async with upstream.running() as up, gateway(tmp_path, up.url) as rig:
            await rig.ask()
            await rig.ask({**ASK, "stream": True})
            await rig.ask(secret="wrong")
            await rig.settled()
            registry = rig.runtime.metrics.registry
            own = merged({0: json.dumps([list(_plain(f)) for f in families(registry)]).encode()})
            for family in text_string_to_metric_families(own.decode()):
                exported.add(family.name)
                exported.update(sample.name for sample in family.samples)

    run(main())
    rules = (DOCS / "alerts.yaml").read_text()
    board = json.loads((DOCS / "grafana.json").read_text())
    queries = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    expressions = re.findall(r"expr: (?:>-\n)?((?:.|\n {10,})+)", rules)
    assert len(queries) > 15
    assert len(expressions) == rules.count("- alert:")
    named = {name for text in (*queries, *expressions) for name in NAME.findall(text)} - LABELS
    assert len(named) > 20
    assert sorted(named - exported) == []


def _plain(family: object) -> list[object]:
    return [getattr(family, name) for name in ("name", "text", "kind", "samples")]


def test_the_first_names_are_those_of_the_conventions(tmp_path: Path) -> None:
    async def main() -> None:
        async with upstream.running() as up, gateway(tmp_path, up.url) as rig:
            await rig.ask()
            await rig.ask({**ASK, "stream": True})
            await rig.settled()
            text = (await rig.ask(b"", method="GET", path="/metrics")).body.decode()
            names = [line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")]
            assert names[0].startswith("gen_ai_")
            samples = {
                (s.name, *sorted(s.labels.items())): s.value
                for family in text_string_to_metric_families(text)
                for s in family.samples
            }
            chat = ("gen_ai_operation_name", "chat")
            assert samples["gen_ai_server_request_duration_seconds_count", chat] == 2
            assert samples["gen_ai_client_operation_duration_seconds_count", chat] == 2
            assert samples["gen_ai_server_time_to_first_token_seconds_count", chat] == 1
            total = samples["gen_ai_server_request_duration_seconds_sum", chat]
            assert 0 < samples["gen_ai_server_time_to_first_token_seconds_sum", chat] < total < 10
            usage = upstream.REPLY["usage"]  # and the stream reports the same
            for kind, name in (("input", "prompt_tokens"), ("output", "completion_tokens")):
                label = ("gen_ai_token_type", kind)
                assert samples["gen_ai_client_token_usage_sum", chat, label] == 2 * usage[name]

    run(main())
