"""The native check of entries says yes only where the readable one does, and to what we write."""

import json
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aegis_c._native import _entry_conforms
from aegis_c.ledger.entry_schema import parse_entry
from aegis_c.ledger.verify import FormatError
from logs import request_id

ID = request_id(1)
TIME = "2026-01-02T03:04:05.123456Z"
DIGEST = "0123456789abcdef" * 4
COMMITMENT = "A" * 43 + "="
BODY = {"bytes": 2048, "commitment": COMMITMENT}
CALL: dict[str, Any] = {
    "v": 1,
    "kind": "call",
    "id": ID,
    "client_id": "own-7",
    "session": "s",
    "time": TIME,
    "tenant": "acme",
    "key": "k1",
    "endpoint": "/v1/chat/completions",
    "model": {"asked": "gpt-x", "answered": "gpt-x-1"},
    "provider": "upstream",
    "status": 200,
    "usage": {"prompt_tokens": 120, "completion_tokens_details": {"reasoning_tokens": 0}},
    "policy": DIGEST,
    "firewall": {"score": 0.25},
    "limits": {"rate": {"remaining": 1e3}},
    "timing": {"upstream_us": 1234},
    "request": BODY,
    "response": BODY,
}
HEAD: dict[str, Any] = {"v": 1, "id": ID, "time": TIME}
ENTRIES: list[dict[str, Any]] = [
    CALL,
    HEAD | {"kind": "intent", "request": BODY},
    HEAD | {"kind": "settle", "of": 4, "status": "abandoned"},
    HEAD | {"kind": "settle", "of": 4, "status": 200},
    HEAD | {"kind": "settle", "of": 4, "status": "internal_error"},
    HEAD | {"kind": "rejection", "status": 429, "reason": "rate_limit", "stage": "limits"},
    HEAD | {"kind": "analysis", "of": 0, "analysis": {"entropy": 1.5}},
    HEAD | {"kind": "admin", "event": "shards", "shards": {"served": ["w0"], "closed": []}},
    HEAD | {"kind": "admin", "event": "restart", "size": 3, "root": COMMITMENT},
]


def encode(entry: object) -> bytes:
    return json.dumps(entry, separators=(",", ":"), ensure_ascii=False).encode()


def accepts(data: bytes) -> bool:
    try:
        parse_entry(data)
    except FormatError:
        return False
    return True


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: str(entry["kind"]))
def test_what_the_gateway_writes_takes_the_fast_way(entry: dict[str, Any]) -> None:
    for data in (encode(entry), json.dumps(entry, indent=1).encode()):
        assert accepts(data)
        assert _entry_conforms(data)
    backwards = dict(reversed(entry.items()))
    assert _entry_conforms(encode(backwards))


def test_it_takes_bytes_only() -> None:
    with pytest.raises(TypeError, match="entry must be bytes"):
        _entry_conforms("{}")  # type: ignore[arg-type]


LEAVES = [None, True, 0, -1, 1, 200, 2**70, 1.5, 1e300, "", "é", "\n", "\ud7ff", {}, []]
LEAVES += ["a" * 256, "a" * 257, "é" * 128, "é" * 129, ID, TIME, DIGEST, COMMITMENT, "call"]
LEAVES += ["done", BODY, {"served": 1, "closed": []}, {"served": 1}]
VALUES = st.recursive(
    st.sampled_from(LEAVES),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text("ab", max_size=2), inner, max_size=3)
    ),
    max_leaves=6,
)
OTHERS = [
    "of",
    "event",
    "events",
    "reason",
    "stage",
    "suppressed",
    "size",
    "root",
    "analysis",
    "shards",
]
NAMES = st.sampled_from([*CALL, *OTHERS, "x", "x_sha256", "_sha256", "tenant_sha256"])


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(ENTRIES), st.dictionaries(NAMES, VALUES, max_size=3), st.booleans())
def test_members_of_any_value(
    entry: dict[str, Any], changes: dict[str, Any], ascii_only: bool
) -> None:
    data = json.dumps({**entry, **changes}, ensure_ascii=ascii_only).encode()
    # A text that is too long only as it is escaped is left to the slow one.
    if ascii_only:
        assert accepts(data) or not _entry_conforms(data)
    else:
        assert _entry_conforms(data) == accepts(data)


def test_octets_changed_at_random() -> None:
    """Thousands of near misses: it never says yes where the slow one says no."""
    dice = random.Random(5)
    tokens = [
        b'"',
        b"\\",
        b"{",
        b"}",
        b"[",
        b"]",
        b",",
        b":",
        b"0",
        b"-",
        b".",
        b"e",
        b" ",
        b"\x1f",
    ]
    tokens += [b"\xc3", b"\xff", b'"v":1,', b"\\u", b"null", b"NaN", b'"x":{},', b'"kind"']
    agreed = 0
    for _ in range(20_000):
        data = bytearray(encode(dice.choice(ENTRIES)))
        for _ in range(dice.randint(1, 2)):
            at = dice.randrange(len(data) + 1)
            data[at : at + dice.randint(0, 2)] = dice.choice(tokens)
        fast, slow = _entry_conforms(bytes(data)), accepts(bytes(data))
        assert slow or not fast, bytes(data)
        agreed += fast == slow
    assert agreed > 19_500  # the rest is what it leaves to the slow one
