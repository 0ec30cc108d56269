"""Drives a gateway with the official client of whichever release is importable.

    openai_driver.py BASE-URL KEY

Every reply is checked twice: its JSON against `openai_schema`, and by the client itself, which
validates strictly. Prints the client's version and what was done, one JSON object.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable
from typing import Any

import openai
import pydantic
import pytest

import openai_schema as schema
from openai_model import USAGE, WORDS

TEXT = "".join(WORDS)
MODEL = "scripted-1"
PIXEL = "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAQAAAC1HAwCAAAAC0lEQVR42mNk"
CASES: list[Callable[[openai.OpenAI], None]] = []


def case(function: Callable[[openai.OpenAI], None]) -> Callable[[openai.OpenAI], None]:
    CASES.append(function)
    return function


def say(content: Any, **members: Any) -> dict[str, Any]:
    return {"model": MODEL, "messages": [{"role": "user", "content": content}], **members}


def both(client: openai.OpenAI, ask: dict[str, Any]) -> tuple[Any, list[Any]]:
    """The plain and the streamed answer to the same question, both checked."""
    raw = client.chat.completions.with_raw_response.create(**ask)
    schema.COMPLETION.validate(json.loads(raw.http_response.content))
    assert raw.headers["x-request-id"]
    with client.chat.completions.with_streaming_response.create(**ask, stream=True) as response:
        texts = [line for line in response.iter_lines() if line]
    assert texts.count("data: [DONE]") == 1 and texts[-1] == "data: [DONE]"
    for text in texts[:-1]:
        schema.CHUNK.validate(json.loads(text.removeprefix("data: ")))
    return raw.parse(), list(client.chat.completions.create(**ask, stream=True))


def text_of(chunks: list[Any], index: int = 0) -> str:
    return "".join(
        choice.delta.content or ""
        for chunk in chunks
        for choice in chunk.choices
        if choice.index == index
    )


@case
def text(client: openai.OpenAI) -> None:
    ask = say("Hi", n=2)
    reply, chunks = both(client, ask)
    assert [choice.message.content for choice in reply.choices] == [TEXT, TEXT]
    assert reply.usage.total_tokens == USAGE["total_tokens"]
    assert text_of(chunks, 0) == text_of(chunks, 1) == TEXT
    deltas = [choice for chunk in chunks for choice in chunk.choices if choice.index == 1]
    assert [c.delta.role for c in deltas] == ["assistant", *[None] * (len(deltas) - 1)]
    assert [c.finish_reason for c in deltas] == [*[None] * (len(deltas) - 1), "stop"]
    options = {"include_usage": True}
    *_, last = client.chat.completions.create(**ask, stream=True, stream_options=options)
    assert last.choices == [] and last.usage.prompt_tokens == USAGE["prompt_tokens"]


@case
def tools(client: openai.OpenAI) -> None:
    parameters = {"type": "object", "properties": {"city": {"type": "string"}}}
    names = ("weather", "time")
    given = [
        {"type": "function", "function": {"name": name, "parameters": parameters}} for name in names
    ]
    ask = say("Weather and time in Zürich?", tools=given, tool_choice="auto")
    reply, chunks = both(client, ask)
    calls = reply.choices[0].message.tool_calls
    assert [call.function.name for call in calls] == list(names)
    assert reply.choices[0].finish_reason == "tool_calls"
    found: dict[int, dict[str, str]] = {}
    for chunk in chunks:
        for part in chunk.choices[0].delta.tool_calls or ():
            known = found.setdefault(part.index, {"id": "", "name": "", "arguments": ""})
            known["id"] += part.id or ""
            known["name"] += part.function.name or ""
            known["arguments"] += part.function.arguments or ""
    assert [found[i] for i in range(2)] == [
        {"id": call.id, "name": call.function.name, "arguments": call.function.arguments}
        for call in calls
    ]
    result = {"role": "tool", "tool_call_id": calls[0].id, "content": "21 °C"}
    ask["messages"] += [reply.choices[0].message.model_dump(exclude_none=True), result]
    reply, chunks = both(client, ask)
    assert reply.choices[0].message.content == text_of(chunks) == "It is 21 °C"


@case
def images(client: openai.OpenAI) -> None:
    parts = [{"type": "text", "text": "What is this?"}]
    parts += [{"type": "image_url", "image_url": {"url": PIXEL + "A" * n}} for n in (0, 100_000)]  # type: ignore[dict-item]
    reply, chunks = both(client, say(parts))
    told = f"2 images, {2 * len(PIXEL) + 100_000}"
    assert reply.choices[0].message.content == text_of(chunks) == told


class Weather(pydantic.BaseModel):
    city: str
    degrees: int


@case
def json_schema(client: openai.OpenAI) -> None:
    shape = {"name": "weather", "strict": True, "schema": Weather.model_json_schema()}
    ask = say("Weather?", response_format={"type": "json_schema", "json_schema": shape})
    _, chunks = both(client, ask)
    expected = Weather(city="Zürich", degrees=21)
    assert Weather.model_validate_json(text_of(chunks)) == expected
    parsed = client.chat.completions.parse(**say("Weather?"), response_format=Weather)
    assert parsed.choices[0].message.parsed == expected
    with client.chat.completions.stream(**say("Weather?"), response_format=Weather) as stream:
        assert stream.get_final_completion().choices[0].message.parsed == expected


@case
def token_logprobs(client: openai.OpenAI) -> None:
    reply, chunks = both(client, say("Hi", logprobs=True, top_logprobs=2))
    content = reply.choices[0].logprobs.content
    assert [token.token for token in content] == list(WORDS)
    assert all(bytes(token.bytes).decode() == token.token for token in content)
    streamed = [
        token
        for chunk in chunks
        for choice in chunk.choices
        if choice.logprobs
        for token in choice.logprobs.content
    ]
    assert streamed == content


@case
def errors(client: openai.OpenAI) -> None:
    """Of the gateway and of the model: the type that a caller catches, and OpenAI's shape."""
    expected: list[tuple[type[openai.APIStatusError], str, dict[str, Any]]] = [
        (openai.BadRequestError, "integer_below_min_value", say("Hi", n=0)),
        (openai.BadRequestError, "empty_array", {**say("Hi"), "messages": []}),
        (openai.NotFoundError, "model_not_found", {**say("Hi"), "model": "no-such-model"}),
        (openai.RateLimitError, "rate_limit_exceeded", {**say(f"{id(client)}"), "model": "busy"}),
        (openai.InternalServerError, "upstream_error", {**say("Hi"), "model": "broken"}),
    ]
    for kind, code, ask in expected:
        for stream in (False, True):
            if code == "rate_limit_exceeded" and stream:
                continue  # this model refuses only once
            with pytest.raises(kind) as caught:
                client.chat.completions.create(**ask, stream=stream)
            assert caught.value.code == code
            assert caught.value.request_id
            schema.ERROR.validate(json.loads(caught.value.response.content))
    with pytest.raises(openai.AuthenticationError) as denied:
        client.with_options(api_key="sk-unknown").chat.completions.create(**say("Hi"))
    schema.ERROR.validate(json.loads(denied.value.response.content))


@case
def retries(client: openai.OpenAI) -> None:
    """The client obeys retry-after-ms and gets its answer."""
    patient = client.with_options(max_retries=1)
    ask = {**say(f"again {id(client)}"), "model": "busy"}
    assert patient.chat.completions.create(**ask).choices[0].message.content == TEXT


@case
def a_stream_that_breaks(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(**{**say("Hi"), "model": "breaks"}, stream=True)
    assert next(stream).choices[0].delta.role == "assistant"
    assert next(stream).choices[0].delta.content == "begun"
    with pytest.raises(openai.APIError) as caught:
        next(stream)
    assert caught.value.code == "upstream_error"


@case
def timeouts(client: openai.OpenAI) -> None:
    """The caller's own, and the gateway's for its upstream."""
    ask = {**say("Hi"), "model": "silent"}
    hasty = client.with_options(timeout=0.1)
    for stream in (False, True):
        with pytest.raises(openai.APITimeoutError):
            hasty.chat.completions.create(**ask, stream=stream)
    with pytest.raises(openai.InternalServerError) as caught:
        client.chat.completions.create(**ask)
    assert (caught.value.status_code, caught.value.code) == (504, "upstream_timeout")


@case
def models(client: openai.OpenAI) -> None:
    raw = client.models.with_raw_response.list()
    schema.MODELS.validate(json.loads(raw.http_response.content))
    assert [model.id for model in client.models.list()] == [MODEL]


async def concurrently(base_url: str, key: str) -> None:
    """The asynchronous client: plain calls and streams at a time."""

    async def one(client: openai.AsyncOpenAI, i: int) -> str:
        if i % 2:
            reply = await client.chat.completions.create(**say(str(i)))
            return str(reply.choices[0].message.content)
        stream = await client.chat.completions.create(**say(str(i)), stream=True)
        return text_of([chunk async for chunk in stream])

    async with openai.AsyncOpenAI(
        base_url=base_url, api_key=key, max_retries=0, _strict_response_validation=True
    ) as client:
        assert set(await asyncio.gather(*(one(client, i) for i in range(16)))) == {TEXT}


def main(base_url: str, key: str) -> None:
    with openai.OpenAI(
        base_url=base_url, api_key=key, max_retries=0, _strict_response_validation=True
    ) as client:
        for function in CASES:
            function(client)
    asyncio.run(concurrently(base_url, key))
    done = [function.__name__ for function in CASES]
    print(json.dumps({"version": openai.__version__, "cases": done}))


if __name__ == "__main__":
    main(*sys.argv[1:])
