"""Strict JSON for governed bodies: refuse whatever two parsers could read differently.

What we judge must be what the upstream reads, so this accepts RFC 8259 and of it only the part on
which parsers agree: one object, UTF-8 without a byte order mark, no duplicate members at any
depth, no lone surrogates, no NaN or Infinity, nesting up to a limit, and no member that equals a
governed name under case folding without being that name byte for byte.
"""

from __future__ import annotations

import json
import re
from typing import Any, Final, NoReturn

#: Members of a request that decide what is judged, charged or recorded.
GOVERNED: Final = frozenset(
    {
        "audio",
        "echo",
        "functions",
        "function_call",
        "input",
        "instructions",
        "logit_bias",
        "logprobs",
        "max_completion_tokens",
        "max_output_tokens",
        "max_tokens",
        "messages",
        "metadata",
        "model",
        "n",
        "parallel_tool_calls",
        "prompt",
        "response_format",
        "seed",
        "stop",
        "store",
        "stream",
        "stream_options",
        "suffix",
        "temperature",
        "tool_choice",
        "tools",
        "top_logprobs",
        "top_p",
        "user",
    }
)
#: Members of one message and of one part of its content.
GOVERNED_MESSAGE: Final = frozenset(
    {
        "audio",
        "content",
        "function_call",
        "name",
        "refusal",
        "role",
        "tool_call_id",
        "tool_calls",
    }
)
GOVERNED_PART: Final = frozenset({"file", "image_url", "input_audio", "refusal", "text", "type"})

_STRING = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)
_NOT_BRACKETS = bytes(c for c in range(256) if c not in b"[]{}")
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


class StrictJsonError(ValueError):
    """A body is refused. ``code`` is the error code, ``param`` the member when one is to blame."""

    def __init__(self, code: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.param = param


def strict_json(body: bytes, max_depth: int = 64) -> dict[str, Any]:
    """Decode one JSON object from ``body``, refusing everything ambiguous.

    Raises StrictJsonError, whose message names the fault and, where known, the byte or the member.
    """
    try:
        text = body.decode()
    except UnicodeDecodeError as error:
        raise StrictJsonError(
            "invalid_utf8",
            f"The body is not valid UTF-8: {error.reason} at byte {error.start}.",
        ) from None
    if text.startswith("\ufeff"):
        raise StrictJsonError(
            "invalid_json", "The body starts with a byte order mark; send UTF-8 without one."
        )
    if body.count(b"{") + body.count(b"[") > max_depth:
        _check_depth(body, max_depth)
    try:
        document = _decoder.decode(text)
    except json.JSONDecodeError as error:
        offset = len(text[: error.pos].encode())
        raise StrictJsonError(
            "invalid_json",
            f"The body is not valid JSON: {error.msg.removesuffix(' at')} at byte {offset}.",
        ) from None
    except RecursionError:
        raise _too_deep(max_depth) from None
    except StrictJsonError:
        raise
    except ValueError:  # an integer of thousands of digits
        raise StrictJsonError(
            "invalid_json", "The body holds a number with too many digits."
        ) from None
    if type(document) is not dict:
        raise StrictJsonError(
            "invalid_json", f"The body must be a JSON object, not {type_name(document)}."
        )
    if _SURROGATE.search(body) is not None:
        _check_surrogates(document)
    _check_names(document)
    return document


def type_name(value: object) -> str:
    """What a decoded JSON value is called in an error message, with its article."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "a boolean"
    if isinstance(value, int):
        return "an integer"
    if isinstance(value, float):
        return "a number"
    if isinstance(value, str):
        return "a string"
    return "an array" if isinstance(value, list) else "an object"


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """One object of the text; a name given twice is refused."""
    members = dict(pairs)
    if len(members) != len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                shown = name[:64].encode("utf-8", "replace").decode()
                raise StrictJsonError(
                    "duplicate_member", f"The member {shown!r} is given twice.", shown
                )
            seen.add(name)
    return members


def _constant(name: str) -> NoReturn:
    raise StrictJsonError("invalid_json", f"The body holds {name}, which is not JSON.")


_decoder = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_constant)


def _too_deep(max_depth: int) -> StrictJsonError:
    return StrictJsonError(
        "json_too_deep", f"The body is nested deeper than the limit of {max_depth} levels."
    )


def _check_depth(body: bytes, max_depth: int) -> None:
    """Nesting by brackets outside strings; text that is no JSON is the parser's to refuse."""
    depth = 0
    for bracket in _STRING.sub(b"", body).translate(None, _NOT_BRACKETS):
        if bracket in b"[{":
            depth += 1
            if depth > max_depth:
                raise _too_deep(max_depth)
        else:
            depth -= 1


def _check_surrogates(value: object) -> None:
    """Refuse any string with half of a surrogate pair; the depth is already bounded."""
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            raise StrictJsonError(
                "invalid_json",
                "The body holds a lone surrogate escape (half of a pair), which no UTF-8 text has.",
            ) from None
    elif isinstance(value, dict):
        for name, member in value.items():
            _check_surrogates(name)
            _check_surrogates(member)
    elif isinstance(value, list):
        for item in value:
            _check_surrogates(item)


def _check_names(document: dict[str, Any]) -> None:
    """Governed names must be themselves where they are governed.

    Only there: names inside a tool's own JSON schema are the caller's.
    """
    if not document.keys() <= GOVERNED:
        _check_case(document, GOVERNED, "")
    messages = document.get("messages")
    if type(messages) is not list:
        return
    for i, message in enumerate(messages):
        if type(message) is not dict:
            continue
        if not message.keys() <= GOVERNED_MESSAGE:
            _check_case(message, GOVERNED_MESSAGE, f"messages[{i}].")
        content = message.get("content")
        if type(content) is list:
            for j, part in enumerate(content):
                if type(part) is dict and not part.keys() <= GOVERNED_PART:
                    _check_case(part, GOVERNED_PART, f"messages[{i}].content[{j}].")


def _check_case(members: dict[str, Any], governed: frozenset[str], where: str) -> None:
    for name in members:
        if name not in governed:
            folded = name.casefold()
            if folded in governed:
                raise StrictJsonError(
                    "ambiguous_member",
                    f"The member {name!r} differs from {folded!r} only by case; write {folded!r}.",
                    where + folded,
                )
