"""JsonScanner against a slow clear twin: it accepts what every parser reads the same way."""

from __future__ import annotations

import json
import sys
import threading
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aegis_c import JsonError, JsonScanner
from native import check_no_leak, counts_while, ignore
from reference import strict_json as reference

pytestmark = pytest.mark.native

GOVERNED = {
    "": frozenset({"model", "messages", "stream", "stop"}),
    "messages[]": frozenset({"role", "content"}),
    "messages[].content[]": frozenset({"type", "text"}),
}
scanner = JsonScanner(GOVERNED)

# Names that meet often, and those that fold to governed ones.
NAME = st.sampled_from(
    [
        "model",
        "Model",
        "messages",
        "role",
        "ROLE",
        "content",
        "type",
        "te\u017ft",
        "\ufb06op",
        "\u212a",
    ]
) | st.text(max_size=4)
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAME, inner, max_size=4),
    max_leaves=30,
)
MESSAGES = st.fixed_dictionaries(
    {}, optional={"messages": st.lists(st.dictionaries(NAME, JSON, max_size=3), max_size=3)}
)
BODY = st.builds(
    lambda a, b, ascii_only, indent: json.dumps(
        a | b, ensure_ascii=ascii_only, indent=indent
    ).encode(),
    st.dictionaries(NAME, JSON, max_size=5),
    MESSAGES,
    st.booleans(),
    st.sampled_from([None, 1]),
)
NUMBER = st.from_regex(
    r"-?(0|[1-9][0-9]{0,4})(\.[0-9]{1,4})?([eE][+-]?[0-9]{1,4})?", fullmatch=True
)


def refused(body: bytes, of: JsonScanner = scanner) -> JsonError:
    with pytest.raises(JsonError) as caught:
        of.scan(body)
    error = caught.value
    assert error.offset is not None and error.offset <= len(body)
    assert str(error.offset) in str(error)
    return error


def check(body: bytes, max_depth: int = 64) -> None:
    """Both refuse, or both accept; where only one thing can be wrong, they say the same."""
    of = scanner if max_depth == 64 else JsonScanner(GOVERNED, max_depth=max_depth)
    refusal = None
    try:
        reference.read(body, GOVERNED, max_depth)
    except reference.Refused as error:
        refusal = error.code
    if refusal is None:
        of.scan(body)
        return
    found = refused(body, of).code
    # The scan stops at the first fault, the twin looks for one kind at a time.
    ordered = {"invalid_utf8", "duplicate_member", "ambiguous_member", "json_too_deep"}
    assert found == refusal or {found, refusal} & ordered


@given(BODY)
def test_documents(body: bytes) -> None:
    check(body)


@given(BODY, st.integers(1, 6))
def test_the_depth_limit_is_exact(body: bytes, limit: int) -> None:
    check(body, limit)


@given(BODY, st.data())
def test_documents_with_a_change(body: bytes, data: st.DataObject) -> None:
    """Cut, overwrite, insert or repeat a few octets anywhere."""
    octets = bytearray(body)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(octets)))
        what = data.draw(st.sampled_from(["cut", "set", "insert", "repeat"]))
        piece = data.draw(
            st.binary(min_size=1, max_size=3)
            | st.sampled_from(
                [b'"', b"\\", b"{", b"}", b"[", b"]", b",", b":", b"0", b"\\ud800", b"e9"]
            )
        )
        if what == "cut":
            del octets[at : at + len(piece)]
        elif what == "set":
            octets[at : at + len(piece)] = piece
        elif what == "insert":
            octets[at:at] = piece
        else:
            octets[at:at] = octets[max(0, at - 12) : at]
    check(bytes(octets))


@given(st.binary(max_size=60))
def test_any_octets(octets: bytes) -> None:
    check(octets)
    check(b'{"a":"' + octets + b'"}')
    check(b'{"a":' + octets + b"}")


@given(NUMBER | st.builds(lambda n, e: f"{n}e{e}", st.integers(), st.integers(290, 312)))
def test_numbers(number: str) -> None:
    check(b'{"a":%s}' % number.encode())


def test_the_edge_of_a_double() -> None:
    largest = sys.float_info.max
    for text in (repr(largest), f"{Decimal(largest):f}", f"0.{'0' * 400}1e708"):
        scanner.scan(b'{"a":-%s}' % text.encode())
    for text in ("1e309", "1.8e308", f"{Decimal('1.8e308'):f}", "9" * 309, "1" + "0" * 5000):
        assert refused(b'{"a":-%s}' % text.encode()).code == "invalid_json"


def test_the_foldings_are_those_of_unicode() -> None:
    """Each character that folds to ASCII, as a name beside the governed name that it folds to."""
    governed = {
        c.casefold() for c in map(chr, range(128)) if c not in '.[]"\\' and " " < c < "\x7f"
    }
    governed |= {"ss", "ff", "fi", "fl", "ffi", "ffl", "st"}
    of = JsonScanner({"": governed})
    found = 0
    for point in range(0x80, sys.maxunicode + 1):
        character = chr(point)
        if not character.isprintable() or 0xD800 <= point < 0xE000:
            continue
        folded = character.casefold()
        if folded.isascii():
            found += 1
            error = refused(f'{{"{character}":1}}'.encode(), of)
            assert (error.code, error.member) == ("ambiguous_member", folded)
        elif point < 0x3000 or 0xF900 < point < 0x10500:
            of.scan(f'{{"{character}":1}}'.encode())
    assert found == 11


def test_a_name_given_twice_is_found_at_any_depth_and_width() -> None:
    for width in (1, 2, 15, 16, 17, 33, 5000, 100_000):
        members = ",".join(f'"{i}":0' for i in range(width))
        for level in (0, 1, 30):
            inner = '{"a":[' * level + "{" + members + "%s}" + "]}" * level
            scanner.scan((inner % "").encode())
            name = str(width // 2)
            error = refused((inner % f',"\\u003{name}":0').encode())
            assert error.code == "duplicate_member"
            assert error.member is not None
            assert error.member.startswith("a[0]." * min(level, 5))


def test_large_and_deep_bodies() -> None:
    """Linear: each of these would take minutes if it were not."""
    for body in (
        b"{" + b",".join(b'"x":0' for _ in range(5000)) + b"}",
        b'{"a":' * 200_000,
        b'{"a":' + b"[" * 1_000_000,
        b'{"a":"' + b"\\u0041" * 1_000_000 + b'", "a":1}',
        b'{"' + b"\\u0041" * 1_000_000 + b'":1, "' + b"A" * 1_000_000 + b'":1}',
        b'{"a":[' + b"0," * 4_000_000 + b"]}",
        b'{"a":' + b"9" * 8_000_000 + b"}",
        b'{"a":1e' + b"9" * 8_000_000 + b"}",
    ):
        refused(body)
    whole = {"messages": [{"role": "user", "content": "x" * (1 << 20)} for _ in range(16)]}
    scanner.scan(json.dumps(whole).encode())
    scanner.scan(json.dumps({f"{'x' * 200}{i}": i for i in range(50_000)}).encode())


def test_the_place_is_named() -> None:
    error = refused(b'{"messages":[{},{"content":[{},{"Type":1}]}]}')
    assert (error.code, error.member) == ("ambiguous_member", "messages[1].content[1].type")
    assert error.offset == 32
    assert str(error) == (
        "The member 'Type' at byte 32 differs from 'type' only by case; write 'type'."
    )
    error = refused(b'{"x":[0,{"a\\/b":1,"a/b":2}]}')
    assert (error.code, error.member, error.offset) == ("duplicate_member", "x[1].a/b", 18)
    assert str(error) == "The member 'a/b' is given twice: again at byte 18."
    error = refused('{"é":"x'.encode() + b"\x01")
    assert str(error) == (
        "The body is not valid JSON: a control character in a string at byte 8, in é."
    )
    error = refused(b'{"a\xff":1}')
    assert str(error) == "The body is not valid UTF-8 at byte 3."
    assert (error.member, error.file, error.advice) == (None, None, None)
    assert isinstance(error, Exception)


def test_arguments() -> None:
    for bad in ({"": ["Model"]}, {"": [""]}, {"A": ["a"]}, {"a..b": ["a"]}, {"": ["a" * 65]}):
        with pytest.raises(ValueError, match="governed names"):
            JsonScanner(bad)
    for depth in (0, 513, -1):
        with pytest.raises(ValueError, match=f"1 to 512, not {depth}"):
            JsonScanner(max_depth=depth)
    for wrong in ({1: ["a"]}, {"": [1]}, {"": 1}, 7):
        with pytest.raises(TypeError):
            JsonScanner(wrong)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="must be bytes, not str"):
        scanner.scan("{}")  # type: ignore[arg-type]
    JsonScanner().scan(b'{"Model":1}')


def test_nothing_leaks() -> None:
    wide = b"{" + b",".join(b'"k%d":0' % i for i in range(40)) + b',"\\u006b1":0}'

    def calls() -> None:
        of = JsonScanner(GOVERNED, max_depth=9)
        of.scan(b'{"a":1}')
        ignore(JsonError, lambda: of.scan(wide))()
        ignore(JsonError, lambda: of.scan(b'{"Model":1}'))()
        ignore(ValueError, lambda: JsonScanner({"a": ["b", "C"]}))()

    check_no_leak(calls, 100)


def test_other_threads_go_on_and_may_share() -> None:
    body = json.dumps({"a": ["x" * 1000] * 20_000}).encode()
    assert counts_while(lambda: [scanner.scan(body) for _ in range(20)]) > 0
    bad = body[:-1]
    faults: list[Any] = []

    def work() -> None:
        for _ in range(20):
            scanner.scan(body)
            try:
                scanner.scan(bad)
            except JsonError as error:
                if error.offset == len(bad):
                    continue
            faults.append("not refused at its end")

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert faults == []
