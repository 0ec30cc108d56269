"""The strict JSON scan, slow and clear: json.loads with hooks, then walks over its result."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Set
from decimal import Decimal
from typing import Any, NoReturn

_STRING = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)
#: From here on a number is no double, by any rounding.
_TOO_LARGE = Decimal("1.797693134862315808e308")


class Refused(ValueError):
    """The body is refused; ``code`` is one of those of aegis_c.JsonError."""

    def __init__(self, code: str, member: str | None = None) -> None:
        super().__init__(code)
        self.code = code
        self.member = member


def read(body: bytes, governed: Mapping[str, Set[str]], max_depth: int) -> dict[str, Any]:
    """The one JSON object in ``body``; numbers come as Decimal. Raises Refused."""
    try:
        text = body.decode()
    except UnicodeDecodeError:
        raise Refused("invalid_utf8") from None
    if text.startswith("\ufeff"):
        raise Refused("invalid_json")
    check_depth(body, max_depth)
    try:
        document = _decoder.decode(text)
    except json.JSONDecodeError:
        raise Refused("invalid_json") from None
    if type(document) is not dict:
        raise Refused("invalid_json")
    check_surrogates(document)
    for path, names in governed.items():
        for where, members in places(document, path):
            check_case(where, members, names)
    return document


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """One object of the text; a name given twice is refused."""
    members: dict[str, Any] = {}
    for name, value in pairs:
        if name in members:
            raise Refused("duplicate_member", name)
        members[name] = value
    return members


def constant(name: str) -> NoReturn:
    raise Refused("invalid_json")


def number(text: str) -> Decimal:
    sign, _, exponent = text.lower().partition("e")
    if len(exponent.lstrip("+-0")) > 9:  # more than a Decimal takes
        zero = not sign.strip("-0.")
        if zero or exponent.startswith("-"):
            return Decimal(0)
        raise Refused("invalid_json")
    value = Decimal(text)
    if value.copy_abs() >= _TOO_LARGE:
        raise Refused("invalid_json")
    return value


_decoder = json.JSONDecoder(
    object_pairs_hook=unique, parse_constant=constant, parse_int=number, parse_float=number
)


def check_depth(body: bytes, max_depth: int) -> None:
    """Nesting by brackets outside strings; text that is no JSON is the parser's to refuse."""
    depth = 0
    for byte in _STRING.sub(b"", body):
        if byte in b"[{":
            depth += 1
            if depth > max_depth:
                raise Refused("json_too_deep")
        elif byte in b"]}":
            depth -= 1


def check_surrogates(value: object) -> None:
    """Refuse any string with half of a surrogate pair."""
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            raise Refused("invalid_json") from None
    elif isinstance(value, dict):
        for name, member in value.items():
            check_surrogates(name)
            check_surrogates(member)
    elif isinstance(value, list):
        for item in value:
            check_surrogates(item)


def places(value: Any, path: str) -> list[tuple[str, dict[str, Any]]]:
    """The objects at a path like ``messages[].content[]``, each with where it is."""
    found = [("", value)]
    for step in re.findall(r"\[\]|[^.\[]+", path):
        inner: list[tuple[str, Any]] = []
        for where, one in found:
            if step == "[]" and type(one) is list:
                inner += [(f"{where}[{i}]", item) for i, item in enumerate(one)]
            elif step != "[]" and type(one) is dict and step in one:
                inner.append((f"{where}.{step}".removeprefix("."), one[step]))
        found = inner
    return [(where, one) for where, one in found if type(one) is dict]


def check_case(where: str, members: dict[str, Any], names: Set[str]) -> None:
    for name in members:
        folded = name.casefold()
        if name not in names and folded in names:
            raise Refused("ambiguous_member", f"{where}.{folded}".removeprefix("."))
