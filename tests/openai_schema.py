"""What OpenAI's clients may rely on in chat replies: the project's own, cut-down JSON Schemas.

Written from the published interface: required members, types and closed sets of words of what the
gateway passes on or makes itself. Members that are not named are allowed.
"""

from __future__ import annotations

from typing import Any

from jsonschema import Draft202012Validator  # type: ignore[import-untyped]

Schema = dict[str, Any]


def _object(required: Schema, optional: Schema | None = None) -> Schema:
    return {
        "type": "object",
        "required": list(required),
        "properties": {**required, **(optional or {})},
    }


def _or_null(schema: Schema) -> Schema:
    return {"anyOf": [schema, {"type": "null"}]}


def _list(items: Schema) -> Schema:
    return {"type": "array", "items": items}


TEXT: Schema = {"type": "string"}
COUNT: Schema = {"type": "integer", "minimum": 0}
_FINISH: Schema = {"enum": ["stop", "length", "tool_calls", "content_filter", "function_call"]}
_USAGE = _object({"prompt_tokens": COUNT, "completion_tokens": COUNT, "total_tokens": COUNT})
_TOKEN = {"token": TEXT, "logprob": {"type": "number"}, "bytes": _or_null(_list(COUNT))}
_LOGPROBS = _object(
    {
        "content": _or_null(_list(_object({**_TOKEN, "top_logprobs": _list(_object(_TOKEN))}))),
        "refusal": _or_null(_list({})),
    }
)
_CALL = _object(
    {
        "id": TEXT,
        "type": {"const": "function"},
        "function": _object({"name": TEXT, "arguments": TEXT}),
    }
)
_MESSAGE = _object(
    {"role": {"const": "assistant"}, "content": _or_null(TEXT), "refusal": _or_null(TEXT)},
    {"tool_calls": _list(_CALL)},
)
_DELTA = _object(
    {},
    {
        "role": {"const": "assistant"},
        "content": _or_null(TEXT),
        "refusal": _or_null(TEXT),
        "tool_calls": _list(
            _object(
                {"index": COUNT},
                {
                    "id": TEXT,
                    "type": {"const": "function"},
                    "function": _object({}, {"name": TEXT, "arguments": TEXT}),
                },
            )
        ),
    },
)
_HEAD = {"id": TEXT, "created": COUNT, "model": TEXT}

COMPLETION = Draft202012Validator(
    _object(
        {
            **_HEAD,
            "object": {"const": "chat.completion"},
            "choices": _list(
                _object(
                    {
                        "index": COUNT,
                        "finish_reason": _FINISH,
                        "message": _MESSAGE,
                        "logprobs": _or_null(_LOGPROBS),
                    }
                )
            ),
        },
        {"usage": _USAGE},
    )
)
CHUNK = Draft202012Validator(
    _object(
        {
            **_HEAD,
            "object": {"const": "chat.completion.chunk"},
            "choices": _list(
                _object(
                    {"index": COUNT, "finish_reason": _or_null(_FINISH), "delta": _DELTA},
                    {"logprobs": _or_null(_LOGPROBS)},
                )
            ),
        },
        {"usage": _or_null(_USAGE)},
    )
)
ERROR = Draft202012Validator(
    _object(
        {
            "error": _object(
                {
                    "type": TEXT,
                    "message": TEXT,
                    "param": _or_null(TEXT),
                    "code": _or_null(TEXT),
                }
            )
        }
    )
)
MODELS = Draft202012Validator(
    _object(
        {
            "object": {"const": "list"},
            "data": _list(
                _object(
                    {"id": TEXT, "object": {"const": "model"}, "created": COUNT, "owned_by": TEXT}
                )
            ),
        }
    )
)
