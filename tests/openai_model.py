"""A scripted model that answers like OpenAI's: tools, images, JSON schemas, logprobs, errors."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from upstream import DONE, Exchange

USAGE = {"prompt_tokens": 9, "completion_tokens": 4, "total_tokens": 13}
MODELS = {
    "object": "list",
    "data": [{"id": "scripted-1", "object": "model", "created": 1, "owned_by": "tests"}],
}
WORDS = ("Grüße", ", ", "世界", " 👋", ".")
failed: set[str] = set()  # prompts whose first attempt has been refused


def error(message: str, code: str, kind: str = "invalid_request_error") -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}


def logprobs(words: tuple[str, ...]) -> dict[str, Any]:
    def token(text: str, value: float) -> dict[str, Any]:
        return {"token": text, "logprob": value, "bytes": list(text.encode())}

    content = [
        {**token(word, -0.1), "top_logprobs": [token(word, -0.1), token("?", -2.5)]}
        for word in words
    ]
    return {"content": content, "refusal": None}


def tool_calls(tools: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One call of every tool: several run in parallel."""
    return [
        {
            "id": f"call_{i}",
            "type": "function",
            "function": {"name": tool["function"]["name"], "arguments": '{"city": "Zürich"}'},
        }
        for i, tool in enumerate(tools)
    ]


def words_for(asked: dict[str, Any]) -> tuple[str, ...]:
    last = asked["messages"][-1]
    if asked.get("response_format", {}).get("type") == "json_schema":
        return ('{"city": ', '"Zürich", ', '"degrees": 21}')
    if last["role"] == "tool":
        return ("It is ", last["content"])
    if isinstance(last["content"], list):
        images = [part for part in last["content"] if part["type"] == "image_url"]
        return (f"{len(images)} images, ", str(sum(len(i["image_url"]["url"]) for i in images)))
    return WORDS


async def script(exchange: Exchange) -> None:
    """The whole model."""
    if exchange.request_line.startswith("GET "):
        await exchange.answer(MODELS)
        return
    asked = json.loads(exchange.body)
    model, prompt = asked["model"], str(asked["messages"][-1]["content"])
    if model == "no-such-model":
        await exchange.answer(error("no such model", "model_not_found"), "404 Not Found")
    elif model == "busy" and prompt not in failed:
        failed.add(prompt)
        refusal = error("slow down", "rate_limit_exceeded", "requests")
        headers = ["Retry-After: 1", "Retry-After-Ms: 20"]
        await exchange.answer(refusal, "429 Too Many Requests", headers)
    elif model == "broken":
        await exchange.answer(b"<h1>oops</h1>", "500 Internal Server Error")
    elif model == "silent":
        await exchange.gone()
    elif asked.get("stream"):
        await stream(exchange, asked)
    else:
        await plain(exchange, asked)


async def plain(exchange: Exchange, asked: dict[str, Any]) -> None:
    words = words_for(asked)
    calling = "tools" in asked and asked["messages"][-1]["role"] != "tool"
    message: dict[str, Any] = {
        "role": "assistant",
        "content": None if calling else "".join(words),
        "refusal": None,
    }
    if calling:
        message["tool_calls"] = tool_calls(asked["tools"])
    choices = [
        {
            "index": i,
            "message": message,
            "logprobs": logprobs(words) if asked.get("logprobs") else None,
            "finish_reason": "tool_calls" if calling else "stop",
        }
        for i in range(asked.get("n", 1))
    ]
    await exchange.answer({**_head("chat.completion"), "choices": choices, "usage": USAGE})


async def stream(exchange: Exchange, asked: dict[str, Any]) -> None:
    words = words_for(asked)
    chosen = range(asked.get("n", 1))

    async def event(choices: list[dict[str, Any]], **members: Any) -> None:
        chunk = {**_head("chat.completion.chunk"), "choices": choices, **members}
        text = json.dumps(chunk, ensure_ascii=False).encode()
        data = b"data: " + text + b"\n\n"
        half = len(data) // 2  # as the network cuts it: anywhere
        await exchange.chunk(data[:half])
        await exchange.chunk(data[half:])

    async def choice(index: int, delta: dict[str, Any], finish: str | None = None) -> None:
        text = delta.get("content")
        told = logprobs((text,)) if asked.get("logprobs") and text else None
        await event([{"index": index, "delta": delta, "finish_reason": finish, "logprobs": told}])

    await exchange.begin_stream()
    for i in chosen:
        await choice(i, {"role": "assistant", "content": "", "refusal": None})
    if asked["model"] == "breaks":
        await choice(0, {"content": "begun"})
        exchange.reset()
        return
    if "tools" in asked and asked["messages"][-1]["role"] != "tool":
        for index, call in enumerate(tool_calls(asked["tools"])):
            function = call["function"]
            begun = {"name": function["name"], "arguments": ""}
            await choice(0, {"tool_calls": [{**call, "index": index, "function": begun}]})
            for part in (function["arguments"][:8], function["arguments"][8:]):
                more = {"index": index, "function": {"arguments": part}}
                await choice(0, {"tool_calls": [more]})
        await choice(0, {}, "tool_calls")
    else:
        for word in words:
            for i in chosen:
                await choice(i, {"content": word})
            await asyncio.sleep(0)
        for i in chosen:
            await choice(i, {}, "stop")
    if asked.get("stream_options", {}).get("include_usage"):
        await event([], usage=USAGE)
    await exchange.chunk(DONE)
    await exchange.chunk(b"")


def _head(kind: str) -> dict[str, Any]:
    return {"id": "chatcmpl-9", "object": kind, "created": 1, "model": "scripted-1"}
