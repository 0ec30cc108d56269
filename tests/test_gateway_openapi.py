"""The gateway against its own OpenAPI document: no request makes it fail or answer otherwise."""

from __future__ import annotations

import asyncio
import json
import re
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any
from urllib.parse import quote

import uvloop
from hypothesis import HealthCheck, given
from hypothesis import settings as bounds
from hypothesis import strategies as st
from jsonschema import Draft202012Validator  # type: ignore[import-untyped]

import upstream
from gateway_rig import ADMIN, ASK, CHAT, Reply, Rig, gateway, request

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)
MEMBERS = st.sampled_from(
    ["model", "messages", "stream", "n", "stop", "tools", "max_tokens", "logit_bias", "x", "Model"]
)
BODIES = st.one_of(
    JSON,
    st.dictionaries(MEMBERS, JSON, max_size=4).map(lambda members: {**ASK, **members}),
    st.lists(JSON, min_size=1, max_size=2).map(lambda messages: {**ASK, "messages": messages}),
)
#: Path and query values: what people mistype, and what nobody does by mistake.
VALUES = st.text(min_size=1, max_size=30) | st.sampled_from(
    ["0", "..", "%2e%2e", "w0", "tile/0/000", "checkpoint", "0" * 200, "-1", "true", "\0"]
)
MANY = bounds(
    max_examples=50,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)


class Judge:
    """Checks replies against the document."""

    def __init__(self, document: dict[str, Any]) -> None:
        self.paths: dict[str, Any] = document["paths"]
        error = document["components"]["schemas"]["Error"]
        self.error = Draft202012Validator(error)

    def check(self, path: str, method: str, reply: Reply) -> None:
        responses = self.paths[path][method]["responses"]
        assert reply.status < 500, (path, reply.status, reply.body)
        if str(reply.status) not in responses:
            self.error.validate(json.loads(reply.body))
            assert reply.headers["content-type"] == "application/json"


def test_hostile_requests_get_what_the_document_says(tmp_path: Path) -> None:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:

        async def begin(stack: AsyncExitStack) -> Rig:
            up = await stack.enter_async_context(upstream.running())
            return await stack.enter_async_context(gateway(tmp_path, up.url))

        stack = AsyncExitStack()
        rig = runner.run(begin(stack))
        document = json.loads(runner.run(rig.send(get("/openapi.json"))).body)
        judge = Judge(document)
        assert CHAT in judge.paths
        for methods in judge.paths.values():
            for operation in methods.values():
                assert "default" in operation["responses"] and "422" not in operation["responses"]
        assert "HTTPValidationError" not in json.dumps(document)

        @MANY
        @given(BODIES)
        def chat(body: Any) -> None:
            raw = json.dumps(body).encode()
            judge.check(CHAT, "post", runner.run(rig.send(request(raw, secret=ADMIN))))

        @MANY
        @given(
            st.sampled_from([p for p in judge.paths if "get" in judge.paths[p]]),
            VALUES,
            st.dictionaries(st.sampled_from(["wait", "kind", "deep", "x"]), VALUES, max_size=2),
        )
        def read(path: str, value: str, query: dict[str, str]) -> None:
            filled = re.sub(r"\{[^}]+\}", lambda _: quote(value, safe="/.%"), path)
            asked = "&".join(f"{name}={quote(text)}" for name, text in query.items())
            reply = runner.run(rig.send(get(f"{filled}?{asked}")))
            judge.check(path, "get", reply)

        try:
            chat()
            read()
            assert runner.run(rig.ask(secret=ADMIN)).status == 200
        finally:
            runner.run(stack.aclose())


def get(path: str) -> bytes:
    return request(b"", method="GET", path=path, secret=ADMIN, content_type=None)
