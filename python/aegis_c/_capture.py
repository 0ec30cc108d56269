"""`aegis_c.capture(client)`: keeps the octets that a caller sent and received.

A receipt commits to a call's exact octets, which users of an SDK never see. This hooks into the
HTTP client below the SDK (httpx or httpx2, found by its shape, so neither is imported here) and
notes the bytes as they pass: the request as sent, the response as it came before any
decompression, for a stream the exact event bytes.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from types import TracebackType
from typing import Any, Self

_STREAM_BASES = ("SyncByteStream", "AsyncByteStream")


@dataclass(frozen=True, slots=True)
class Captured:
    """One exchange: what left this process and what came back, octet for octet.

    `request` and `response` are the bodies after transfer-decoding and before content-decoding.
    `complete` is False when the response's end was not seen (left early or broken off; an event
    stream is complete with its ``[DONE]`` event), or when a body is longer than the capture's
    bound or was on its way before the capture began.
    """

    request_id: str | None  # the response's x-request-id
    method: str
    url: str
    status: int
    request: bytes = field(repr=False)
    response: bytes = field(repr=False)
    complete: bool


class Capture:
    """The exchanges of one client, newest last; made by `capture`. Safe to share by threads.

    An exchange appears once its response has been read to the end or closed. The oldest go when
    there are more than `max_calls`, or bodies of more than `max_bytes` octets together.
    """

    def __init__(self, client: Any, *, max_calls: int = 1000, max_bytes: int = 64 << 20) -> None:
        if max_calls < 1 or max_bytes < 1:
            raise ValueError("max_calls and max_bytes must be at least 1")
        http: Any = client if hasattr(client, "event_hooks") else getattr(client, "_client", None)
        if not hasattr(http, "event_hooks"):
            raise TypeError(
                f"cannot capture {type(client).__name__}: expected an httpx or httpx2 client, "
                "or an SDK client built on one, such as openai.OpenAI or openai.AsyncOpenAI"
            )
        self._http = http
        self._max_calls = max_calls
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._calls: deque[Captured] = deque()
        self._size = 0
        asynchronous = hasattr(http, "aclose")
        self._on_request = self._request_async if asynchronous else self._request
        self._on_response = self._response_async if asynchronous else self._response
        # Last to see the request, after hooks that change it; first to see the response, before
        # hooks that read it.
        http.event_hooks["request"].append(self._on_request)
        http.event_hooks["response"].insert(0, self._on_response)

    @property
    def calls(self) -> list[Captured]:
        """The kept exchanges, oldest first."""
        with self._lock:
            return list(self._calls)

    @property
    def last(self) -> Captured | None:
        """The newest exchange, or None before the first."""
        with self._lock:
            return self._calls[-1] if self._calls else None

    def get(self, request_id: str) -> Captured | None:
        """The newest exchange whose response carried this x-request-id, or None."""
        with self._lock:
            return next((c for c in reversed(self._calls) if c.request_id == request_id), None)

    def close(self) -> None:
        """Unhooks from the client; what was captured stays. Repeatable."""
        for name, hook in (("request", self._on_request), ("response", self._on_response)):
            hooks = self._http.event_hooks[name]
            if hook in hooks:
                hooks.remove(hook)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _request(self, request: Any) -> None:
        """Request hook: a body that is produced while it is sent is noted on its way."""
        if not hasattr(request, "_content"):
            request.stream = _recording(request.stream, _Body(self._max_bytes))

    async def _request_async(self, request: Any) -> None:
        self._request(request)

    def _response(self, response: Any) -> None:
        """Response hook: runs when the head has arrived, before any of the body is read."""
        self._record(response)
        if response.is_stream_consumed:  # made in memory by a transport without a network
            for _ in response.stream:
                pass

    async def _response_async(self, response: Any) -> None:
        self._record(response)
        if response.is_stream_consumed:
            async for _ in response.stream:
                pass

    def _record(self, response: Any) -> None:
        body = _Body(self._max_bytes, lambda ended: self._keep(response, ended))
        response.stream = _recording(response.stream, body)

    def _keep(self, response: Any, body: _Body) -> None:
        request = response.request
        sent, whole = _sent(request)
        ended = body.complete or (_is_events(response) and _is_done(body))
        call = Captured(
            request_id=response.headers.get("x-request-id"),
            method=request.method,
            url=str(request.url),
            status=response.status_code,
            request=sent,
            response=bytes(body.octets),
            complete=ended and whole,
        )
        size = len(call.request) + len(call.response)
        with self._lock:
            self._calls.append(call)
            self._size += size
            while len(self._calls) > self._max_calls or (
                self._size > self._max_bytes and len(self._calls) > 1
            ):
                oldest = self._calls.popleft()
                self._size -= len(oldest.request) + len(oldest.response)


class _Body:
    """The octets of one body so far, at most `limit`; `on_end` is called once."""

    def __init__(self, limit: int, on_end: Callable[[_Body], None] | None = None) -> None:
        self.octets = bytearray()
        self.complete = False
        self.truncated = False
        self._limit = limit
        self._on_end = on_end

    def add(self, chunk: bytes) -> None:
        room = self._limit - len(self.octets)
        self.octets += chunk[:room]
        self.truncated |= len(chunk) > room

    def end(self, complete: bool) -> None:
        self.complete = complete and not self.truncated
        on_end, self._on_end = self._on_end, None
        if on_end is not None:
            on_end(self)


class _Recording:
    """A byte stream that notes what passes through another; mixed with the library's base."""

    def __init__(self, inner: Any, body: _Body) -> None:
        self._inner = inner
        self.body = body

    def __iter__(self) -> Iterator[bytes]:
        for chunk in self._inner:
            self.body.add(chunk)
            yield chunk
        self.body.end(True)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for chunk in self._inner:
            self.body.add(chunk)
            yield chunk
        self.body.end(True)

    def close(self) -> None:
        try:
            self._inner.close()
        finally:
            self.body.end(False)

    async def aclose(self) -> None:
        try:
            await self._inner.aclose()
        finally:
            self.body.end(False)


def _recording(stream: Any, body: _Body) -> Any:
    """`stream` with recording, as an instance of the bases that its library checks for."""
    bases = tuple(base for base in type(stream).__mro__ if base.__name__ in _STREAM_BASES)
    return _recording_type(bases)(stream, body)


@cache
def _recording_type(bases: tuple[type, ...]) -> Any:
    return type("RecordingStream", (_Recording, *bases), {})


def _sent(request: Any) -> tuple[bytes, bool]:
    """The request's octets, and whether they are all of them."""
    if isinstance(request.stream, _Recording):
        body = request.stream.body
        return bytes(body.octets), not body.truncated
    content = getattr(request, "_content", None)
    return (b"", False) if content is None else (content, True)


def _is_events(response: Any) -> bool:
    """True for server-sent events in the clear."""
    kind: str = response.headers.get("content-type", "").partition(";")[0].strip().lower()
    coding: str = response.headers.get("content-encoding", "identity").strip().lower()
    return kind == "text/event-stream" and coding == "identity"


def _is_done(body: _Body) -> bool:
    """True when the last event is OpenAI's end mark: SDKs stop reading there."""
    if body.truncated:
        return False
    tail = bytes(body.octets[-32:]).replace(b"\r\n", b"\n")
    return tail.endswith(b"\n\n") and tail.rstrip().split(b"\n")[-1] in (
        b"data: [DONE]",
        b"data:[DONE]",
    )


def capture(client: Any, *, max_calls: int = 1000, max_bytes: int = 64 << 20) -> Capture:
    """Keeps the raw bytes of every exchange of `client`, for good or inside a ``with`` block.

    `client` is an `openai` client (or another SDK's on httpx or httpx2) or a bare httpx or httpx2
    client, synchronous or asynchronous. Refused calls and each attempt of a retried one are
    exchanges of their own; one that got no response is not captured. Streams stay streams.

        with aegis_c.capture(client) as calls:
            client.chat.completions.create(...)
        calls.last.request, calls.last.response   # octets for `aegis-c verify`

    Raises TypeError for any other object.
    """
    return Capture(client, max_calls=max_calls, max_bytes=max_bytes)
