"""Strict JSON on its own: what it accepts is what every parser reads the same way."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aegis_c.gateway.hot.strictjson import GOVERNED, StrictJsonError, strict_json

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=30,
)
OBJECT = st.dictionaries(
    st.text().filter(lambda name: name.casefold() not in GOVERNED), JSON, max_size=5
)


def depth(value: Any) -> int:
    """Levels of arrays and objects."""
    if isinstance(value, dict):
        return 1 + max(map(depth, value.values()), default=0)
    if isinstance(value, list):
        return 1 + max(map(depth, value), default=0)
    return 0


@given(OBJECT, st.booleans(), st.sampled_from([None, 1]))
def test_every_sane_object_is_read_as_json_reads_it(
    document: dict[str, Any], ascii_only: bool, indent: int | None
) -> None:
    text = json.dumps(document, ensure_ascii=ascii_only, indent=indent)
    body = text.encode()
    assert strict_json(body) == json.loads(body)


@given(OBJECT, st.integers(1, 6))
def test_the_depth_limit_is_exact(document: dict[str, Any], limit: int) -> None:
    body = json.dumps(document).encode()
    if depth(document) > limit:
        with pytest.raises(StrictJsonError, match="deeper") as caught:
            strict_json(body, limit)
        assert caught.value.code == "json_too_deep"
    else:
        strict_json(body, limit)


@given(OBJECT.filter(bool), st.data())
def test_a_member_given_twice_is_found_at_any_depth(
    document: dict[str, Any], data: st.DataObject
) -> None:
    name = data.draw(st.sampled_from(sorted(document)))
    member = json.dumps(name)
    inner = json.dumps(document)
    twice = inner[:-1] + f",{member}:null}}"
    for level in range(3):
        body = ('{"a":[' * level + twice + "]}" * level).encode()
        with pytest.raises(StrictJsonError) as caught:
            strict_json(body)
        assert caught.value.code == "duplicate_member"


@given(st.binary(max_size=60))
def test_any_bytes_are_read_or_refused_and_never_more_lenient_than_json(body: bytes) -> None:
    try:
        document = strict_json(body)
    except StrictJsonError:
        return
    assert json.loads(body.decode()) == document


def test_deep_input_ends_quickly_and_refused() -> None:
    for body in (b"[" * 1_000_000, b'{"a":' * 200_000, b'{"a":' + b"[" * 1_000_000):
        with pytest.raises(StrictJsonError, match="deeper"):
            strict_json(body)


def test_brackets_in_strings_are_no_depth() -> None:
    body = json.dumps({"a": '[{"' * 500, "b": "\\" * 501, "c": '\\"[' * 200}).encode()
    assert strict_json(body, 1)["b"] == "\\" * 501


def test_the_place_is_named() -> None:
    with pytest.raises(StrictJsonError, match=r"at byte 9\b"):
        strict_json('{"é": "x'.encode() + b"\x01")
    with pytest.raises(StrictJsonError, match=r"at byte 3\b"):
        strict_json(b'{"a\xff": 1}')
    with pytest.raises(StrictJsonError) as caught:
        strict_json(b'{"messages":[{},{"content":[{},{"Type":1}]}]}')
    assert caught.value.param == "messages[1].content[1].type"


def test_names_of_a_tools_own_schema_are_the_callers() -> None:
    parameters: dict[str, Any] = {"properties": {"Model": {}, "STREAM": {}, "Role": {}}}
    tool = {"type": "function", "function": {"name": "f", "parameters": parameters}}
    document = {"model": "m", "tools": [tool], "metadata": {"Model": "x"}}
    assert strict_json(json.dumps(document).encode()) == document
