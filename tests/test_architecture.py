"""docs/architecture.md names a file for each stage, docs/operations.md describes each setting."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from pydantic import BaseModel

from aegis_c.gateway.limits_settings import Budget, LimitSet, ModelLimits, Rate
from aegis_c.gateway.settings import Settings

ROOT = Path(__file__).parents[1]
ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text()
STAGES = [
    "smuggling guard",
    "auth",
    "WAF",
    "rate limit",
    "adapter",
    "forwarder",
    "response analyser",
    "audit ledger",
    "Merkle Mountain Range",
    "write-ahead log",
    "tiles, signed checkpoint",
]


@pytest.mark.parametrize("stage", STAGES)
def test_each_stage_of_the_picture_has_a_file(stage: str) -> None:
    picture = ARCHITECTURE.split("```")[1]
    for part in stage.split(", "):
        assert part in picture
    row = re.search(rf"^\| {re.escape(stage)} \| (.+) \|$", ARCHITECTURE, re.MULTILINE)
    assert row is not None
    assert re.findall(r"`([\w/.]+\.(?:py|c))`", row[1])


def test_every_file_that_is_named_exists() -> None:
    for document in ("README.md", "docs/architecture.md", "docs/operations.md", "docs/status.md"):
        text = (ROOT / document).read_text()
        for name in re.findall(r"`((?:aegis_c|python|tests|benchmarks|docs)/[\w/.-]+)`", text):
            assert (ROOT / name).exists(), f"{document} names {name}"
        for target in re.findall(r"\]\(([\w./-]+)(?:#[\w-]+)?\)", text):
            assert (ROOT / document).parent.joinpath(target).exists(), f"{document}: {target}"


def setting_names(model: type[BaseModel], prefix: str = "") -> list[tuple[str, str]]:
    found = []
    for name, field in model.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel) and inner is not LimitSet:
            found += setting_names(inner, f"{prefix}{name}.")
        else:
            found.append((prefix, name))
    return found


def test_every_setting_is_documented() -> None:
    rows = re.findall(r"^\| (`.+?) \|", (ROOT / "docs" / "operations.md").read_text(), re.MULTILINE)
    documented = set()
    for row in rows:
        names = re.findall(r"`([a-z_.]+)`", row)
        table = names[0].rpartition(".")[0] if names else ""
        documented |= {name if "." in name or not table else f"{table}.{name}" for name in names}
    for prefix, name in setting_names(Settings):
        assert f"{prefix}{name}" in documented
    for model in (ModelLimits, Rate, Budget):  # tables that may stand in several places
        for name in model.model_fields:
            assert name in documented
