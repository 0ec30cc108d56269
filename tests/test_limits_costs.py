"""What a call costs: estimates before it, reports after it, what a model usually needs."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aegis_c.gateway.limits.costs import (
    Expected,
    Prices,
    price,
    prompt_tokens,
    reported,
    written_octets,
)
from aegis_c.gateway.settings import Limits

_documents = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@settings(max_examples=40)
@given(st.dictionaries(st.text(), _documents))
def test_every_text_of_a_prompt_counts(document: dict[str, Any]) -> None:
    def octets(value: Any, name: str = "") -> int:
        if isinstance(value, str):
            size = len(value.encode("utf-8", "replace"))
            return min(size, 4000) if name in ("url", "data", "file_data", "image_url") else size
        if isinstance(value, list):
            return sum(map(octets, value))
        if isinstance(value, dict):
            return sum(octets(member, name) for name, member in value.items())
        return 0

    assert prompt_tokens(document) == octets(document) // 4 + 1


def test_an_image_does_not_count_by_its_octets() -> None:
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 10**6}}
    message = {"role": "user", "content": [image, {"type": "text", "text": "What is it?"}]}
    assert 1000 < prompt_tokens({"model": "m", "messages": [message]}) < 1020


@settings(max_examples=60)
@given(st.text())
def test_what_a_model_wrote_is_found_in_replies_and_events(text: str) -> None:
    for name in ("content", "arguments", "reasoning_content"):
        quoted = json.dumps(text)
        for members in ({name: text}, {"id": "content", name: text, "role": "assistant"}):
            assert written_octets(json.dumps(members).encode()) == len(quoted) - 2
    assert written_octets(b": keep-alive\n\n") == 0


@pytest.mark.parametrize(
    ("usage", "found"),
    [
        (None, None),
        ({}, None),
        ({"prompt_tokens": 3}, (3, 0)),
        ({"prompt_tokens": 3, "completion_tokens": 4}, (3, 4)),
        ({"input_tokens": 3, "output_tokens": 4}, (3, 4)),
        ({"prompt_tokens": 3, "total_tokens": 10}, (3, 7)),
        ({"total_tokens": 10}, (10, 0)),
        ({"completion_tokens": 4, "total_tokens": 10}, (6, 4)),
        ({"completion_tokens": 4}, None),
        ({"prompt_tokens": 9, "total_tokens": 1}, (9, 0)),
    ],
)
def test_reports(usage: Mapping[str, int] | None, found: tuple[int, int] | None) -> None:
    assert reported(usage) == found


def test_prices_are_rounded_up_and_exact() -> None:
    limits = Limits(
        models={"a": {"input_price": 0.15, "output_price": 0.6}, "b": {}},  # type: ignore[dict-item]
        input_price=10,
        output_price=30,
    )
    prices = Prices(limits)
    assert prices.of("a") == (150_000_000, 600_000_000)
    assert prices.of("b") == prices.of("c") == (10 * 10**9, 30 * 10**9)
    assert price((150_000_000, 600_000_000), 1, 0) == 150
    assert price((1, 1), 1, 0) == 1  # a millionth of a billionth is not nothing
    assert Prices(Limits()).of("a") is None


def test_what_a_model_usually_needs(rng: random.Random) -> None:
    expected = Expected()
    for _ in range(15):
        expected.observe("m", 100)
        assert expected.tokens("m") is None
    for _ in range(1000):
        expected.observe("m", rng.randrange(1, 1001))
    tokens = expected.tokens("m")
    assert tokens is not None
    assert 800 <= tokens <= 1190  # 950 within a quarter of an octave, and of chance
    for _ in range(2000):
        expected.observe("m", 10)
    assert expected.tokens("m") == 11  # it follows what changes
    for _ in range(16):
        expected.observe("none", 0)
        expected.observe("huge", 2**53 - 1)
    assert expected.tokens("none") == 1
    assert expected.tokens("huge") == 2**53


def test_names_that_callers_make_up_take_no_more_memory() -> None:
    expected = Expected()
    for i in range(1000):
        for _ in range(16):
            expected.observe(f"model {i}", 5)
    assert expected.tokens("model 0") is not None
    assert expected.tokens("model 999") is None
    assert len(expected._counts) == 256
