"""The built-in model behind OpenAI's chat API: POST /v1/chat/completions, GET /v1/models[/{id}].

A plain ASGI application, so that it starts in a blink, and a server thread for it. It answers as
OpenAI documents: ``logprobs`` are the model's true log-probabilities (before temperature and
top_p), ``usage`` counts the model's own tokens, errors are OpenAI's error object.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import random
import socket
import threading
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from typing import Any

import msgspec
import uvicorn

from aegis_c.demo import corpus
from aegis_c.demo.chat_request import (
    CONTEXT_TOKENS,
    MODEL_ID,
    ApiError,
    ChatRequest,
    parse,
    unknown_model,
)
from aegis_c.demo.language_model import LanguageModel, tokenize
from aegis_c.demo.sampler import Piece, Reply, Sampler

_Scope = MutableMapping[str, Any]
_Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
_Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

BODY_MAX = 1 << 20  # octets of a request; far above what CONTEXT_TOKENS can hold
_encode = msgspec.json.Encoder().encode


class ModelApp:
    """The ASGI application; see `create_model_app`."""

    def __init__(self, model: LanguageModel, fingerprint: str) -> None:
        self._model = model
        self._fingerprint = fingerprint
        self._started = int(time.time())

    async def __call__(self, scope: _Scope, receive: _Receive, send: _Send) -> None:
        if scope["type"] == "lifespan":
            await _lifespan(receive, send)
            return
        if scope["type"] != "http":
            raise RuntimeError(f"the model server speaks HTTP only, not {scope['type']}")
        begun = time.perf_counter()
        headers = [(b"x-request-id", f"req_{uuid.uuid4().hex}".encode())]
        try:
            path, method = scope["path"], scope["method"]
            if path == "/v1/chat/completions":
                _allow(scope, "POST")
                request = parse(await _read_body(scope, receive))
                prompt = self._prompt_tokens(request)
                # Nothing more to receive but the news that the caller has left.
                gone = asyncio.ensure_future(receive())
                try:
                    if request.stream:
                        await self._stream(request, prompt, headers, send, gone)
                        return
                    body = await self._complete(request, prompt, gone)
                finally:
                    gone.cancel()
                if body is None:
                    return
            elif path == "/v1/models":
                _allow(scope, "GET")
                body = _encode({"object": "list", "data": [self._card()]})
            elif path.startswith("/v1/models/"):
                _allow(scope, "GET")
                if path.removeprefix("/v1/models/") != MODEL_ID:
                    raise unknown_model(path.removeprefix("/v1/models/"))
                body = _encode(self._card())
            else:
                raise ApiError(404, f"Invalid URL ({method} {path[:256]})", code="unknown_url")
            status = 200
        except ApiError as error:
            status, body = error.status, error.body
        took = int((time.perf_counter() - begun) * 1000)
        headers.append((b"openai-processing-ms", str(took).encode()))
        headers.append((b"content-type", b"application/json"))
        headers.append((b"content-length", str(len(body)).encode()))
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    def _card(self) -> dict[str, Any]:
        return {
            "id": MODEL_ID,
            "object": "model",
            "created": self._started,
            "owned_by": "aegis-c",
        }

    def _prompt_tokens(self, request: ChatRequest) -> int:
        """Tokens of the conversation as it is laid out for the model, one message a line."""
        rendered = "".join(f"{m.role}: {m.text()}\n" for m in request.messages)
        count = len(tokenize(rendered))
        if count > CONTEXT_TOKENS:
            raise ApiError(
                400,
                f"This model's maximum context length is {CONTEXT_TOKENS} tokens. However, your "
                f"messages resulted in {count} tokens. Please reduce the length of the messages.",
                param="messages",
                code="context_length_exceeded",
            )
        return count

    def _replies(self, request: ChatRequest) -> list[Reply]:
        """One reply for each choice. A seed gives every choice its own, repeatable numbers."""
        asked = [m.text() for m in request.messages if m.role == "user"]
        topic = self._model.topic(asked[-1]) if asked else frozenset[int]()
        temperature = 1.0 if request.temperature is None else request.temperature
        top_p = 1.0 if request.top_p is None else request.top_p
        seeds = [
            None if request.seed is None else f"{request.seed}/{i}" for i in range(_n(request))
        ]
        return [
            Reply(
                self._model,
                Sampler(self._model, temperature, top_p, random.Random(seed)),
                topic=topic,
                max_tokens=request.reply_tokens(),
                stop=request.stops(),
                top_logprobs=request.top_logprobs or 0,
            )
            for seed in seeds
        ]

    async def _pieces(
        self, replies: list[Reply], gone: asyncio.Future[Any]
    ) -> AsyncIterator[tuple[int, Piece | None]]:
        """(choice, piece) in turn over the choices, (choice, None) at the end of each.

        Other calls run between two pieces; ends early when the caller has left.
        """
        running = [(i, iter(reply)) for i, reply in enumerate(replies)]
        while running:
            for entry in list(running):
                piece = next(entry[1], None)
                if piece is None:
                    running.remove(entry)
                yield entry[0], piece
                await asyncio.sleep(0)
                if gone.done():
                    return

    async def _complete(
        self, request: ChatRequest, prompt: int, gone: asyncio.Future[Any]
    ) -> bytes | None:
        """The whole answer, or None when nobody waits for it any more."""
        replies = self._replies(request)
        pieces: list[list[Piece]] = [[] for _ in replies]
        async for choice, piece in self._pieces(replies, gone):
            if piece is not None:
                pieces[choice].append(piece)
        if gone.done():
            return None
        choices = [
            {
                "index": i,
                "message": {
                    "role": "assistant",
                    "content": "".join(piece.text for piece in pieces[i]),
                    "refusal": None,
                },
                "logprobs": self._logprobs(request, pieces[i]),
                "finish_reason": reply.finish,
            }
            for i, reply in enumerate(replies)
        ]
        answer = self._envelope("chat.completion")
        return _encode({**answer, "choices": choices, "usage": _usage(prompt, replies)})

    async def _stream(
        self,
        request: ChatRequest,
        prompt: int,
        headers: list[tuple[bytes, bytes]],
        send: _Send,
        gone: asyncio.Future[Any],
    ) -> None:
        """The answer as server-sent events, one for each piece."""
        envelope = self._envelope("chat.completion.chunk")
        with_usage = bool(request.stream_options and request.stream_options.include_usage)

        async def event(choices: list[Any], usage: dict[str, int] | None = None) -> None:
            chunk = {**envelope, "choices": choices}
            if with_usage:
                chunk["usage"] = usage
            data = b"data: " + _encode(chunk) + b"\n\n"
            await send({"type": "http.response.body", "body": data, "more_body": True})

        def choice(index: int, delta: dict[str, Any], **members: Any) -> dict[str, Any]:
            rest = {"logprobs": None, "finish_reason": None, **members}
            return {"index": index, "delta": delta, **rest}

        headers += [
            (b"content-type", b"text/event-stream; charset=utf-8"),
            (b"cache-control", b"no-cache"),
        ]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        replies = self._replies(request)
        for i in range(len(replies)):
            await event([choice(i, {"role": "assistant", "content": "", "refusal": None})])
        async for i, piece in self._pieces(replies, gone):
            if piece is None:
                await event([choice(i, {}, finish_reason=replies[i].finish)])
            else:
                logprobs = self._logprobs(request, [piece])
                await event([choice(i, {"content": piece.text}, logprobs=logprobs)])
        if gone.done():
            return
        if with_usage:
            await event([], _usage(prompt, replies))
        await send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})

    def _envelope(self, kind: str) -> dict[str, Any]:
        return {
            "id": f"chatcmpl-{uuid.uuid4().hex}",
            "object": kind,
            "created": int(time.time()),
            "model": MODEL_ID,
            "system_fingerprint": self._fingerprint,
        }

    def _logprobs(self, request: ChatRequest, pieces: list[Piece]) -> dict[str, Any] | None:
        if not request.logprobs:
            return None
        content = [
            {
                **self._token(choice.id, choice.logprob),
                "top_logprobs": [self._token(token, logprob) for token, logprob in choice.top],
            }
            for piece in pieces
            for choice in piece.tokens
        ]
        return {"content": content, "refusal": None}

    def _token(self, token: int, logprob: float) -> dict[str, Any]:
        text = self._model.tokens[token]
        return {"token": text, "logprob": logprob, "bytes": list(text.encode())}


def _n(request: ChatRequest) -> int:
    return request.n or 1


def _usage(prompt: int, replies: list[Reply]) -> dict[str, int]:
    drawn = sum(reply.drawn for reply in replies)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": drawn,
        "total_tokens": prompt + drawn,
    }


def _allow(scope: _Scope, method: str) -> None:
    if scope["method"] != method:
        raise ApiError(
            405,
            f"Not allowed to {scope['method']} on {scope['path'][:256]}; use {method}.",
            code="method_not_supported",
        )


async def _read_body(scope: _Scope, receive: _Receive) -> bytes:
    """The request's octets. Raises ApiError: 413 above BODY_MAX, 415 for a content coding."""
    for name, value in scope["headers"]:
        if name == b"content-encoding" and value.strip().lower() != b"identity":
            raise ApiError(415, "The built-in model reads bodies without content-encoding only.")
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ApiError(400, "The request's body ended early.")
        body += message.get("body", b"")
        if len(body) > BODY_MAX:
            raise ApiError(413, f"The request's body is larger than {BODY_MAX} octets.")
        if not message.get("more_body", False):
            return bytes(body)


async def _lifespan(receive: _Receive, send: _Send) -> None:
    while True:
        message = await receive()
        await send({"type": message["type"] + ".complete"})
        if message["type"] == "lifespan.shutdown":
            return


def create_model_app() -> ModelApp:
    """An ASGI application with the built-in model, trained now (tens of milliseconds)."""
    text = corpus.load()
    fingerprint = "fp_" + hashlib.sha256(text.encode()).hexdigest()[:12]
    return ModelApp(LanguageModel(text), fingerprint)


class ModelServer:
    """A running model server; `base_url` ends in ``/v1``. Stop it with `stop` or ``with``."""

    def __init__(self, server: uvicorn.Server, listener: socket.socket) -> None:
        self.base_url = f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
        self._server = server
        self._listener = listener
        self._thread = threading.Thread(target=self._run, name="aegis-demo-model", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        with contextlib.closing(self._listener):
            asyncio.run(self._server.serve(sockets=[self._listener]))

    def stop(self, timeout: float = 10.0) -> None:
        """Ends the server and waits for it; repeatable. Raises TimeoutError after `timeout` s."""
        self._server.should_exit = True
        self._thread.join(timeout)
        if self._thread.is_alive():
            raise TimeoutError(f"the model server did not end within {timeout} s")

    def __enter__(self) -> ModelServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def start_model_server(port: int = 0) -> ModelServer:
    """Serves the built-in model on 127.0.0.1 from a thread of its own with its own event loop.

    `port` 0 takes a free one. Requests may be sent at once: the socket listens when this
    returns. Raises OSError when the port is taken.
    """
    app = create_model_app()
    # With the protocol named: asyncio sets TCP_NODELAY on such sockets only.
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", port))
        listener.listen(128)
    except OSError:
        listener.close()
        raise
    config = uvicorn.Config(
        app, lifespan="off", log_config=None, access_log=False, timeout_graceful_shutdown=2
    )
    return ModelServer(uvicorn.Server(config), listener)
