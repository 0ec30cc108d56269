"""Limits in the settings: what cannot be meant is refused at the start, with its line."""

from __future__ import annotations

from pathlib import Path

import pytest

from aegis_c.gateway.limits_settings import Rate, nano
from aegis_c.gateway.settings import Limits, Settings, SettingsError, load_settings


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    for name in list(os.environ):
        if name.startswith("AEGIS_"):
            monkeypatch.delenv(name)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("requests = { rate = 0 }", "line 2: limits.key.requests.0.rate: Input should be greater"),
        ("tokens = { rate = -5 }", "line 2: limits.key.tokens.0.rate: "),
        ("tokens = { rate = nan }", "line 2: limits.key.tokens.0.rate: "),
        ("tokens = { rate = 1.5 }", "line 2: limits.key.tokens.0.rate: "),
        ("tokens = { rate = 10, burst = 0 }", "line 2: limits.key.tokens.0.burst: "),
        ("tokens = { rate = 1, per = 'day', burst = 40000 }", "more than a century"),
        ("tokens = { rate = 1_000_000_000_000_000 }", "line 2: limits.key.tokens.0.rate: "),
        ("requests = { per = 'day' }", "limits.key.requests.0.rate: Field required"),
        ("requests = { rate = 1, per = 'week' }", "line 2: limits.key.requests.0.per: "),
        ("requests = 60", "line 2: limits.key.requests: "),
        (
            "requests = [{ rate = 1 },\n  { rate = 2, per = 'minute' }]",
            "line 2: limits.key.requests: two limits per minute",
        ),
        (
            "requests = [{ rate = 1 },\n  { rat = 2, per = 'day' }]",
            "line 3: limits.key.requests.1.rat: unknown key",
        ),
        ("request = { rate = 1 }", "line 2: limits.key.request: unknown key"),
        ("budget = { amount = nan }", "line 2: limits.key.budget.0.amount: "),
        ("budget = { amount = inf }", "line 2: limits.key.budget.0.amount: "),
        ("budget = { amount = 0 }", "line 2: limits.key.budget.0.amount: "),
        ("budget = { amount = -1 }", "line 2: limits.key.budget.0.amount: "),
        ("concurrency = 0", "line 2: limits.key.concurrency: "),
        ("concurrency = 70000", "line 2: limits.key.concurrency: "),
        ("[limits.keys.nobody]\nconcurrency = 1", "line 2: limits.keys.nobody: no key has this id"),
        ("[limits.tenants.none]\nconcurrency = 1", "line 2: limits.tenants.none: no key has this"),
        ("[limits.group]\nconcurrency = 1", "line 2: limits.group: unknown key"),
        ("[limits.models.m]\ninput_price = 1", "limits.models.m: give both"),
        ("[limits.models.m]\ninput_price = -1\noutput_price = 1", "line 3: limits.models.m.input"),
        ("[limits.models.m]\nmax_output = 0", "line 3: limits.models.m.max_output: "),
    ],
)
def test_faults_of_limits_name_their_line(tmp_path: Path, text: str, words: str) -> None:
    file = tmp_path / "aegis.toml"
    file.write_text(f"[limits.key]\n{text}\n")
    with pytest.raises(SettingsError) as caught:
        load_settings(file)
    assert words in str(caught.value)


def test_faults_of_the_whole_table(tmp_path: Path) -> None:
    for text, words in (
        ("reserve = 'some'", "line 2: limits.reserve: "),
        ("when_full = 'wait'", "line 2: limits.when_full: "),
        ("slots = 1", "line 2: limits.slots: "),
        ("input_price = 1", "limits: give both input_price and output_price"),
    ):
        file = tmp_path / "aegis.toml"
        file.write_text(f"[limits]\n{text}\n")
        with pytest.raises(SettingsError) as caught:
            load_settings(file)
        assert words in str(caught.value)
    file.write_text("trusted_proxies = ['10.0.0.300/8']\n")
    with pytest.raises(SettingsError, match=r"line 1: trusted_proxies.*expected a network"):
        load_settings(file)


def test_more_rates_than_a_plan_holds_are_refused_at_the_start() -> None:
    four = [{"rate": 1, "per": per} for per in ("second", "minute", "hour", "day")]
    full = {"requests": four, "tokens": four}
    Settings(limits=Limits(key=full, tenant=full))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="up to 17 rates would apply"):
        Limits(key=full, tenant=full, total={"requests": {"rate": 1}})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="up to 17 rates"):
        Limits(key=full, tenant=full, models={"m": {"requests": {"rate": 1}}})  # type: ignore[arg-type,dict-item]


def test_money_keeps_its_digits() -> None:
    assert nano(0.1) == 10**8
    assert nano(12.5) == 12_500_000_000
    assert nano(0.000001) == 1000
    assert nano(1e-10) == 1  # rounded up: never for nothing
    assert nano(1e8) == 10**17
    assert Rate(rate=60).bucket() == (60, 60, 60)
