"""OpenAI's chat dialect: what must be right in a request, and what a reply tells us.

Only what the gateway judges, charges or records is checked; ranges and names that are the model's
business are the upstream's to refuse.
"""

from __future__ import annotations

import re
from typing import Any, Final

import msgspec

from aegis_c.gateway.errors import Refusal
from aegis_c.gateway.hot.strictjson import type_name

Usage = dict[str, int]

_STRING: Final = (frozenset({str}), "a string")
_BOOLEAN: Final = (frozenset({bool}), "a boolean")
_INTEGER: Final = (frozenset({int}), "an integer")
_NUMBER: Final = (frozenset({int, float}), "a number")
_ARRAY: Final = (frozenset({list}), "an array")
_OBJECT: Final = (frozenset({dict}), "an object")
_STRING_OR_ARRAY: Final = (frozenset({str, list}), "a string or an array of strings")
_STRING_OR_OBJECT: Final = (frozenset({str, dict}), "a string or an object")

_TYPES: Final[dict[str, tuple[frozenset[type], str]]] = {
    "audio": _OBJECT,
    "frequency_penalty": _NUMBER,
    "function_call": _STRING_OR_OBJECT,
    "functions": _ARRAY,
    "logit_bias": _OBJECT,
    "logprobs": _BOOLEAN,
    "max_completion_tokens": _INTEGER,
    "max_tokens": _INTEGER,
    "messages": _ARRAY,
    "metadata": _OBJECT,
    "modalities": _ARRAY,
    "model": _STRING,
    "n": _INTEGER,
    "parallel_tool_calls": _BOOLEAN,
    "presence_penalty": _NUMBER,
    "response_format": _OBJECT,
    "seed": _INTEGER,
    "stop": _STRING_OR_ARRAY,
    "store": _BOOLEAN,
    "stream": _BOOLEAN,
    "stream_options": _OBJECT,
    "temperature": _NUMBER,
    "tool_choice": _STRING_OR_OBJECT,
    "tools": _ARRAY,
    "top_logprobs": _INTEGER,
    "top_p": _NUMBER,
    "user": _STRING,
}
_COUNTS: Final = ("n", "max_tokens", "max_completion_tokens")
_USAGE_MEMBERS: Final = ("prompt_tokens", "completion_tokens", "total_tokens")
_COUNT_MAX: Final = 1 << 53  # beyond it JSON readers disagree on integers (RFC 8259 section 6)

_HAS_USAGE = re.compile(rb'"usage"\s*:\s*\{')
_DATA_LINE = re.compile(rb"^data:[ ]?(.*?)\r?$", re.MULTILINE)
_DONE = re.compile(rb"^data:[ ]?\[DONE\]", re.MULTILINE)
_BOUNDARY = re.compile(rb"\r\n\r\n|\n\n|\r\r|\n\r\n")
#: Bytes of one unfinished event that are held at most.
HOLD_LIMIT: Final = 1 << 20


def _invalid(code: str, message: str, param: str) -> Refusal:
    return Refusal(400, code, message, stage="body", param=param)


def _wrong_type(param: str, expected: str, value: object) -> Refusal:
    return _invalid(
        "invalid_type",
        f"Invalid type for '{param}': expected {expected}, but got {type_name(value)} instead.",
        param,
    )


def _missing(param: str) -> Refusal:
    return _invalid("missing_required_parameter", f"Missing required parameter: '{param}'.", param)


def examine_chat(document: dict[str, Any]) -> tuple[str, bool]:
    """Check a chat completion request; returns (model, whether a stream is asked for).

    Raises Refusal (400) naming the member.
    """
    types = _TYPES
    for name, value in document.items():
        expected = types.get(name)
        if expected is not None and type(value) not in expected[0] and value is not None:
            raise _wrong_type(name, expected[1], value)
    model: str | None = document.get("model")
    if model is None:
        raise _missing("model")
    if not model:
        raise _invalid("invalid_value", "Invalid value for 'model': it must not be empty.", "model")
    messages = document.get("messages")
    if messages is None:
        raise _missing("messages")
    if not messages:
        raise _invalid(
            "empty_array", "Invalid 'messages': at least one message is needed.", "messages"
        )
    for i, message in enumerate(messages):
        if type(message) is not dict:
            raise _wrong_type(f"messages[{i}]", "an object", message)
        role = message.get("role")
        if type(role) is not str:
            if role is None:
                raise _missing(f"messages[{i}].role")
            raise _wrong_type(f"messages[{i}].role", "a string", role)
        content = message.get("content")
        if type(content) is not str and content is not None:
            _check_parts(content, f"messages[{i}].content")
    for name in _COUNTS:
        count = document.get(name)
        if count is not None and not 1 <= count < _COUNT_MAX:
            raise _invalid(
                "integer_below_min_value" if count < 1 else "integer_above_max_value",
                f"Invalid '{name}': expected an integer from 1 to {_COUNT_MAX - 1}.",
                name,
            )
    return model, document.get("stream") is True


def _check_parts(content: object, where: str) -> None:
    if type(content) is not list:
        raise _wrong_type(where, "a string or an array of objects", content)
    for j, part in enumerate(content):
        if type(part) is not dict:
            raise _wrong_type(f"{where}[{j}]", "an object", part)
        if type(part.get("type")) is not str:
            raise _wrong_type(f"{where}[{j}].type", "a string", part.get("type"))


class _Reply(msgspec.Struct):
    model: Any = None
    usage: Any = None
    error: Any = None


_decode_reply = msgspec.json.Decoder(_Reply).decode


def _usage(value: object) -> Usage | None:
    """The token counts the upstream reports, those of them that are counts."""
    if not isinstance(value, dict):
        return None
    counts = {}
    for name in _USAGE_MEMBERS:
        count = value.get(name)
        if type(count) is int and 0 <= count < _COUNT_MAX:
            counts[name] = count
    return counts or None


def read_reply(body: bytes) -> tuple[str | None, Usage | None, bool]:
    """Facts of a complete reply: (model that answered, usage, whether it is an error).

    Raises ValueError when the body is not one JSON object.
    """
    reply = _decode_reply(body)
    model = reply.model if type(reply.model) is str else None
    return model, _usage(reply.usage), type(reply.error) is dict


class EventReader:
    """Follows a stream of server-sent events (WHATWG HTML section 9.2) without changing a byte.

    feed() gives back what may go to the caller: whole events, as they came. An unfinished event
    is held until it is complete, so that an error can always follow on a clean boundary.
    """

    __slots__ = (
        "_held",
        "between",
        "count",
        "finished",
        "model",
        "usage",
    )

    def __init__(self) -> None:
        self.count = 0
        self.between = True  # what was given back ends where an event ends
        self.finished = False  # the event that closes the answer has passed
        self.model: str | None = None
        self.usage: Usage | None = None
        self._held = b""

    def feed(self, data: bytes) -> bytes:
        """Take the next piece; returns the bytes to pass on now, possibly none."""
        if self._held:
            data = self._held + data
            self._held = b""
        if not data.endswith((b"\n\n", b"\r\n\r\n")):
            cut = 0
            for match in _BOUNDARY.finditer(data):
                cut = match.end()
            if len(data) - cut > HOLD_LIMIT:
                cut = len(data)
                self.between = False
            elif cut:
                self.between = True
            self._held = data[cut:]
            data = data[:cut]
        else:
            self.between = True
        if data:
            self._read(data)
        return data

    def rest(self) -> bytes:
        """What is left when the stream ended without closing its last event."""
        data, self._held = self._held, b""
        if data:
            self.count += 1
            self._read(data)
        return data

    def close(self) -> bytes:
        """What ends an event of which a part has been given back, so that another may follow."""
        return b"" if self.between else b"\n\n"

    def _read(self, events: bytes) -> None:
        self.count += len(_BOUNDARY.findall(events))
        if b"[DONE]" in events and _DONE.search(events) is not None:
            self.finished = True
        if self.model is None and self.count <= 8:  # an upstream that names none never will
            for text in _DATA_LINE.findall(events):
                self._facts(text)
        if _HAS_USAGE.search(events) is not None:
            for text in _DATA_LINE.findall(events):
                if _HAS_USAGE.search(text) is not None:
                    self._facts(text)

    def _facts(self, text: bytes) -> None:
        try:
            model, usage, _ = read_reply(text)
        except ValueError:  # [DONE], or an event that is no JSON: the caller's to read
            return
        self.model = self.model or model
        self.usage = usage or self.usage
