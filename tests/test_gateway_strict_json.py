"""Strict JSON in the gateway: the governed names, and what a body is read as."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aegis_c import JsonError
from aegis_c.gateway.hot.strictjson import GOVERNED, StrictJson

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
    st.text().filter(lambda name: name.casefold() not in GOVERNED[""]), JSON, max_size=5
)
read = StrictJson(64).read


@given(OBJECT, st.booleans(), st.sampled_from([None, 1]))
def test_every_sane_object_is_read_as_json_reads_it(
    document: dict[str, Any], ascii_only: bool, indent: int | None
) -> None:
    body = json.dumps(document, ensure_ascii=ascii_only, indent=indent).encode()
    assert read(body) == json.loads(body)


@pytest.mark.parametrize("path", GOVERNED)
def test_every_governed_name_is_guarded(path: str) -> None:
    for name in GOVERNED[path]:
        for given_name in (name.upper(), name.title(), name.replace("s", "\u017f")):
            if given_name == name:
                continue
            member = json.dumps({given_name: 1}).encode()
            where = ""
            for step in reversed(path.split(".") if path else []):
                member = b'{"%s":[%s]}' % (step.removesuffix("[]").encode(), member)
                where = f"{step.removesuffix('[]')}[0].{where}"
            with pytest.raises(JsonError) as caught:
                read(member)
            assert (caught.value.code, caught.value.member) == ("ambiguous_member", where + name)


def test_names_of_a_tools_own_schema_are_the_callers() -> None:
    parameters: dict[str, Any] = {"properties": {"Model": {}, "STREAM": {}, "Role": {}}}
    tool = {"type": "function", "function": {"name": "f", "parameters": parameters}}
    document = {"model": "m", "tools": [tool], "metadata": {"Model": "x"}}
    assert read(json.dumps(document).encode()) == document


def test_a_number_between_the_largest_double_and_the_bound_of_the_scan() -> None:
    """The decoder has the last word: never infinity."""
    for digits in ("1.7976931348623157e308", "1.7976931348623158079372e308"):
        assert read(b'{"a":%s}' % digits.encode())["a"] == 1.7976931348623157e308
    with pytest.raises(JsonError, match="out of range") as caught:
        read(b'{"a":1.7976931348623158079999e308}')
    assert (caught.value.code, caught.value.member) == ("invalid_json", None)
