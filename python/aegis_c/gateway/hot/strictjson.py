"""Strict JSON for governed bodies: refuse whatever two parsers could read differently.

What we judge must be what the upstream reads. The native scan (``aegis_c/core/http/strict_json.c``)
accepts RFC 8259 and of it only the part on which parsers agree; what it has accepted is decoded
once, by msgspec.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from aegis_c import JsonError, JsonScanner

#: Members that decide what is judged, charged or recorded, by their place in a request. Only
#: there: names inside a tool's own JSON schema are the caller's.
GOVERNED: Final[dict[str, frozenset[str]]] = {
    "": frozenset(
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
    ),
    "messages[]": frozenset(
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
    ),
    "messages[].content[]": frozenset(
        {
            "file",
            "image_url",
            "input_audio",
            "refusal",
            "text",
            "type",
        }
    ),
}


class StrictJson:
    """Reads governed bodies; built once from the limit."""

    __slots__ = ("_decode", "_scan")

    def __init__(self, max_depth: int) -> None:
        self._scan = JsonScanner(GOVERNED, max_depth=max_depth).scan
        self._decode = msgspec.json.Decoder(dict[str, Any]).decode

    def read(self, body: bytes) -> dict[str, Any]:
        """The object in ``body``.

        Raises JsonError, whose message names the fault, its byte and, where known, the member.
        """
        self._scan(body)
        try:
            return self._decode(body)
        except msgspec.DecodeError as error:  # a number at the very edge of what doubles hold
            refused = JsonError(f"The body is not valid JSON: {error}.")
            refused.code = "invalid_json"
            refused.member = None
            raise refused from None


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
