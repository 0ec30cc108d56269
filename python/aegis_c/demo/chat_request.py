"""What the built-in model accepts in a chat completion request, and how it refuses the rest.

Every parameter of OpenAI's CreateChatCompletionRequest is known. One that the model cannot honour
is refused unless it is null or has the value that changes nothing: no parameter is ever ignored
when it would have changed the answer. An unknown one is refused by name.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

MODEL_ID = "aegis-ngram"
CONTEXT_TOKENS = 4096  # of a prompt, and again of a reply
DEFAULT_REPLY_TOKENS = 512

_Unit = Annotated[float, Meta(ge=0, le=1)] | None
_StopText = Annotated[str, Meta(min_length=1)]


class ApiError(Exception):
    """A refusal: HTTP `status` and the members of OpenAI's error object."""

    def __init__(
        self, status: int, message: str, *, param: str | None = None, code: str | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.body = msgspec.json.encode(
            {
                "error": {
                    "message": message,
                    "type": "invalid_request_error" if status < 500 else "server_error",
                    "param": param,
                    "code": code,
                }
            }
        )


class TextPart(Struct, forbid_unknown_fields=True):
    type: Literal["text"]
    text: str


class Message(Struct, forbid_unknown_fields=True):
    """One message; the members typed None belong to tools and sound, which the model lacks."""

    role: Literal["developer", "system", "user", "assistant"]
    content: str | list[TextPart] | None = None
    name: str | None = None
    refusal: str | None = None
    annotations: list[Any] | None = None
    audio: None = None
    function_call: None = None
    tool_calls: None = None

    def text(self) -> str:
        """The content as one string."""
        if isinstance(self.content, list):
            return "".join(part.text for part in self.content)
        return self.content or ""


class StreamOptions(Struct, forbid_unknown_fields=True):
    include_usage: bool | None = None
    include_obfuscation: Literal[False] | None = None  # nothing here pads its events


class ChatRequest(Struct, forbid_unknown_fields=True):
    """The body of POST /v1/chat/completions; ranges as OpenAI documents them."""

    model: str
    messages: Annotated[list[Message], Meta(min_length=1)]
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: _Unit = None
    n: Annotated[int, Meta(ge=1, le=128)] | None = None
    seed: Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | None = None
    stop: _StopText | Annotated[list[_StopText], Meta(max_length=4)] | None = None
    max_tokens: Annotated[int, Meta(ge=1, le=CONTEXT_TOKENS)] | None = None
    max_completion_tokens: Annotated[int, Meta(ge=1, le=CONTEXT_TOKENS)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    # Labels of the caller: nothing in an answer depends on them.
    metadata: dict[str, str] | None = None
    parallel_tool_calls: bool | None = None
    prompt_cache_key: str | None = None
    prompt_cache_options: Any = None
    prompt_cache_retention: str | None = None
    safety_identifier: str | None = None
    user: str | None = None
    # What this model cannot do: see _NEUTRAL.
    audio: Any = None
    frequency_penalty: Any = None
    function_call: Any = None
    functions: Any = None
    logit_bias: Any = None
    modalities: Any = None
    moderation: Any = None
    prediction: Any = None
    presence_penalty: Any = None
    reasoning_effort: Any = None
    response_format: Any = None
    service_tier: Any = None
    store: Any = None
    tool_choice: Any = None
    tools: Any = None
    verbosity: Any = None
    web_search_options: Any = None

    def stops(self) -> tuple[str, ...]:
        """The stop sequences, at most four, none empty."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    def reply_tokens(self) -> int:
        """The most tokens that each choice may have."""
        return self.max_completion_tokens or self.max_tokens or DEFAULT_REPLY_TOKENS


# Values that ask for nothing, beside null.
_NEUTRAL: dict[str, tuple[object, ...]] = {
    "audio": (),
    "frequency_penalty": (0,),
    "function_call": ("none",),
    "functions": ([],),
    "logit_bias": ({},),
    "modalities": (["text"],),
    "moderation": (),
    "prediction": (),
    "presence_penalty": (0,),
    "reasoning_effort": ("none",),
    "response_format": ({"type": "text"},),
    "service_tier": ("auto", "default"),
    "store": (False,),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "verbosity": ("medium",),
    "web_search_options": (),
}

_decoder = msgspec.json.Decoder(ChatRequest)
_UNKNOWN = re.compile(r"Object contains unknown field `(.+?)`(?: - at `\$(.*)`)?$")
_MISSING = re.compile(r"Object missing required field `(.+?)`(?: - at `\$(.*)`)?$")
_INVALID = re.compile(r"(.*?)(?: - at `\$(.*)`)?$", re.DOTALL)


def parse(body: bytes) -> ChatRequest:
    """The checked request. Raises ApiError (400, or 404 for another model)."""
    try:
        request = _decoder.decode(body)
    except msgspec.ValidationError as error:
        raise _explain(str(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ApiError(400, f"We could not parse the JSON body of your request: {error}.") from None
    if request.model != MODEL_ID:
        raise unknown_model(request.model)
    for name, neutral in _NEUTRAL.items():
        value = getattr(request, name)
        # False == 0 in Python, but not in JSON.
        if value is not None and (isinstance(value, bool), value) not in [
            (isinstance(other, bool), other) for other in neutral
        ]:
            raise ApiError(
                400,
                f"Unsupported parameter: '{name}' is not supported with this model.",
                param=name,
                code="unsupported_parameter",
            )
    if request.top_logprobs is not None and not request.logprobs:
        raise _invalid("top_logprobs", "it needs 'logprobs' set to true")
    if request.stream_options is not None and not request.stream:
        raise _invalid("stream_options", "it needs 'stream' set to true")
    if request.max_tokens is not None and request.max_completion_tokens is not None:
        raise _invalid("max_tokens", "set it or 'max_completion_tokens', not both")
    return request


def unknown_model(name: str) -> ApiError:
    """404 for a model that is not served here."""
    return ApiError(
        404,
        f"The model '{name[:256]}' does not exist; the built-in model is '{MODEL_ID}'.",
        param="model",
        code="model_not_found",
    )


def _invalid(param: str, reason: str) -> ApiError:
    return ApiError(
        400, f"Invalid value for '{param}': {reason}.", param=param, code="invalid_value"
    )


def _explain(fault: str) -> ApiError:
    """The refusal for one of msgspec's messages, with the path of the parameter."""
    if found := _UNKNOWN.match(fault):
        name = _path(found[2], found[1])
        return ApiError(400, f"Unknown parameter: '{name}'.", param=name, code="unknown_parameter")
    if found := _MISSING.match(fault):
        name = _path(found[2], found[1])
        return ApiError(
            400,
            f"Missing required parameter: '{name}'.",
            param=name,
            code="missing_required_parameter",
        )
    found = _INVALID.match(fault)
    assert found is not None  # the pattern matches every text
    reason, name = found[1], _path(found[2], "")
    if not name:
        return ApiError(400, f"We could not use the JSON body of your request: {reason}.")
    return _invalid(name, reason)


def _path(parent: str | None, name: str) -> str:
    """`messages[0].role` from msgspec's `.messages[0]` and `role`."""
    return f"{parent or ''}.{name}".strip(".")[:256]
