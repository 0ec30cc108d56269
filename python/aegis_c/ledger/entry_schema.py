"""The schema of entries, as docs/entry.schema.json publishes it: the form of every member.

verify.py checks what evidence depends on; this is the rest, for `aegis-c verify` and fsck.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

from .verify import FormatError, need, read_entry, show

KINDS = {"call": ["status"], "intent": [], "settle": ["status"]}
KINDS |= {"rejection": ["status", "reason", "stage"], "analysis": ["of", "analysis"]}
KINDS |= {"admin": ["event"]}
"""Each kind with the members that it must have, beside v, kind, id and time."""
ENDINGS = ["done", "client_gone", "upstream_error", "timeout", "shutdown"]
ENDINGS += ["internal_error", "abandoned"]
"""Values of `status` in an entry of kind settle: how a stream ended. A plain reply has its own."""

Rule = tuple[str, Callable[[Any], bool]]
"""What a value must be, in words and as a check."""


def like(pattern: str) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, str) and bool(re.fullmatch(pattern, value, re.ASCII))


def is_model(value: Any) -> bool:
    return OBJECT[1](value) and all(TEXT[1](value.get(n, "")) for n in ("asked", "answered"))


def is_body(value: Any) -> bool:
    return OBJECT[1](value) and COUNT[1](value.get("bytes")) and HASH[1](value.get("commitment"))


def is_shards(value: Any) -> bool:
    return OBJECT[1](value) and "served" in value and "closed" in value


OBJECT: Rule = ("an object", lambda value: isinstance(value, dict))
TEXT: Rule = ("a text of at most 256 bytes", lambda value: isinstance(value, str)
              and len(value.encode("utf-8", "replace")) <= 256)  # fmt: skip
COUNT: Rule = ("an integer >= 0", lambda value: type(value) is int and value >= 0)
HASH: Rule = ("32 bytes in base64", like(r"[A-Za-z0-9+/]{43}="))
DIGEST: Rule = ("64 hex digits", like(r"[0-9a-f]{64}"))
BODY: Rule = ("an object with `bytes` and `commitment` (32 bytes in base64)", is_body)
STATUS: Rule = ("an HTTP status", lambda value: type(value) is int and 100 <= value <= 599)
ENDING: Rule = (f"an HTTP status or one of {', '.join(ENDINGS)}",
                lambda value: STATUS[1](value) or value in ENDINGS)  # fmt: skip
RULES: list[tuple[str, Rule]] = [
    ("v", ("1", lambda value: type(value) is int and value == 1)),
    ("kind", (f"one of {', '.join(KINDS)}", lambda value: value in tuple(KINDS))),
    ("id", ("a UUID in lower case", like(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"))),
    ("time", ("YYYY-MM-DDThh:mm:ss.ffffffZ", like(r"\d{4}(-\d\d){2}T\d\d(:\d\d){2}\.\d{6}Z"))),
    ("client_id session tenant key endpoint provider event reason stage", TEXT),
    ("model", ("an object with texts `asked`, `answered`", is_model)),
    ("of events suppressed size", COUNT),
    ("policy", DIGEST),
    ("root", HASH),
    ("shards", ("an object with `served` and `closed`", is_shards)),
    ("usage firewall limits timing analysis", OBJECT),
    ("request response", BODY),
]
MEMBERS = {name: rule for names, rule in RULES for name in names.split()}
"""Members that are not named here are allowed and kept."""


def parse_entry(data: bytes, where: str = "entry") -> dict[str, Any]:
    """An entry from its bytes. FormatError when it does not fit the schema."""
    entry = read_entry(data, where)
    check_schema(entry, where)
    return entry


def check_schema(entry: dict[str, Any], where: str = "entry") -> None:
    """FormatError when the members of an entry do not fit the schema."""
    kind = entry.get("kind")
    for name in ("v", "kind", "id", "time", *KINDS.get(str(kind), ())):
        need(name in entry, f"member `{name}` is missing", where)
    for name, value in entry.items():
        rule = MEMBERS.get(name)
        if name == "status":
            rule = ENDING if kind == "settle" else STATUS
        elif rule is None and name.endswith("_sha256"):
            rule = DIGEST
        if rule is not None and not rule[1](value):
            what = f"member `{name}` is not valid"
            raise FormatError(what, where, rule[0], show(json.dumps(value)))
