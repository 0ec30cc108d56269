"""`aegis_c.capture`: the octets of both bodies, whatever client and however they are read."""

from __future__ import annotations

import asyncio
import gzip
import json
import threading
from collections.abc import AsyncIterator, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import openai
import pytest

import aegis_c
from aegis_c.demo.model_server import ModelServer, start_model_server

try:
    import httpx2
except ImportError:  # the official client of an older major has httpx alone
    LIBRARIES = [httpx]
else:
    LIBRARIES = [httpx, httpx2]

TEXT = b"the quick brown fox " * 200
EVENTS = [b'data: {"a": 1}\n\n', b": heartbeat\n\n", b'data: {"b": 2}\n\n', b"data: [DONE]\n\n"]


class Handler(BaseHTTPRequestHandler):
    """Remembers the bodies it got; the path says what it answers."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self.server.got.append(self.read_body())  # type: ignore[attr-defined]
        match self.path:
            case "/gzip":
                self.answer(200, gzip.compress(TEXT), ("content-encoding", "gzip"))
            case "/refused":
                self.answer(401, b'{"error": {"message": "no"}}')
            case "/redirect":
                self.answer(307, b"over there", ("location", "/plain"))
            case "/broken":
                self.answer(200, TEXT, length=len(TEXT) + 10)
                self.close_connection = True
            case "/cut":
                self.answer(200, EVENTS[-1], length=len(EVENTS[-1]) + 1)
                self.close_connection = True
            case "/events":
                self.chunked(EVENTS)
            case "/nameless":
                self.answer(200, TEXT, request_id=None)
            case _:
                self.answer(200, TEXT)

    do_GET = do_POST

    def read_body(self) -> bytes:
        if self.headers.get("transfer-encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("content-length", 0)))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def answer(
        self,
        status: int,
        body: bytes,
        *headers: tuple[str, str],
        length: int | None = None,
        request_id: str | None = "id",
    ) -> None:
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        if request_id is not None:
            self.send_header("x-request-id", f"{request_id}-{len(self.server.got)}")  # type: ignore[attr-defined]
        self.send_header("content-length", str(len(body) if length is None else length))
        self.end_headers()
        self.wfile.write(body)

    def chunked(self, pieces: list[bytes]) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("x-request-id", "stream")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        for piece in [*pieces, b""]:
            self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece))
            self.wfile.flush()

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def server() -> Iterator[Any]:
    class Server(ThreadingHTTPServer):
        daemon_threads = True

    with Server(("127.0.0.1", 0), Handler) as running:
        running.got = []  # type: ignore[attr-defined]
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield running
        running.shutdown()
        thread.join(10)


@pytest.fixture
def url(server: Any) -> str:
    return f"http://127.0.0.1:{server.server_address[1]}"


@pytest.fixture(scope="module")
def model() -> Iterator[ModelServer]:
    with start_model_server() as running:
        yield running


@pytest.fixture(params=LIBRARIES, ids=lambda library: library.__name__)
def library(request: pytest.FixtureRequest) -> Any:
    return request.param


def fetch(library: Any, asynchronous: bool, url: str, **options: Any) -> tuple[Any, Any]:
    """(response or error, capture) of one POST."""

    async def later() -> tuple[Any, Any]:
        async with library.AsyncClient(trust_env=False) as client:
            calls = aegis_c.capture(client)
            try:
                return await client.post(url, **options), calls
            except library.HTTPError as error:
                return error, calls

    if asynchronous:
        return asyncio.run(later())
    with library.Client(trust_env=False) as client:
        calls = aegis_c.capture(client)
        try:
            return client.post(url, **options), calls
        except library.HTTPError as error:
            return error, calls


both = pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])


@both
def test_plain(library: Any, asynchronous: bool, url: str, server: Any) -> None:
    response, calls = fetch(library, asynchronous, f"{url}/plain", content=b"\x00raw\xff")
    assert response.content == TEXT
    (call,) = calls.calls
    assert call == calls.last == calls.get(response.headers["x-request-id"])
    assert call.request == server.got[-1] == b"\x00raw\xff"
    assert call.response == TEXT
    assert (call.method, call.url, call.status) == ("POST", f"{url}/plain", 200)
    assert call.complete
    assert "fox" not in repr(call)


@both
def test_response_is_kept_before_decompression(library: Any, asynchronous: bool, url: str) -> None:
    response, calls = fetch(library, asynchronous, f"{url}/gzip")
    assert response.content == TEXT
    assert calls.last.response != TEXT
    assert gzip.decompress(calls.last.response) == TEXT
    assert calls.last.complete


@both
def test_request_is_kept_before_decoding(
    library: Any, asynchronous: bool, url: str, server: Any
) -> None:
    sent = gzip.compress(b'{"a": 1}')
    fetch(library, asynchronous, url, content=sent, headers={"content-encoding": "gzip"})
    assert server.got[-1] == sent


@both
def test_refused(library: Any, asynchronous: bool, url: str) -> None:
    response, calls = fetch(library, asynchronous, f"{url}/refused", content=b"x")
    assert response.status_code == 401
    assert calls.last.status == 401
    assert calls.last.response == response.content
    assert calls.last.complete


@both
def test_redirect_is_two_exchanges(library: Any, asynchronous: bool, url: str) -> None:
    _, calls = fetch(library, asynchronous, f"{url}/redirect", content=b"x", follow_redirects=True)
    assert [(c.status, c.request, c.response) for c in calls.calls] == [
        (307, b"x", b"over there"),
        (200, b"x", TEXT),
    ]


@both
def test_broken_off(library: Any, asynchronous: bool, url: str) -> None:
    error, calls = fetch(library, asynchronous, f"{url}/broken")
    assert isinstance(error, library.HTTPError)
    assert calls.last.response == TEXT
    assert not calls.last.complete


@both
def test_no_answer_is_no_exchange(library: Any, asynchronous: bool, free_port: Any) -> None:
    error, calls = fetch(library, asynchronous, f"http://127.0.0.1:{free_port()}/")
    assert isinstance(error, library.HTTPError)
    assert calls.calls == []
    assert calls.last is None


def test_no_request_id(library: Any, url: str) -> None:
    _, calls = fetch(library, False, f"{url}/nameless")
    assert calls.last.request_id is None
    assert calls.get("id-1") is None


def test_request_body_from_a_generator(library: Any, url: str, server: Any) -> None:
    def pieces() -> Iterator[bytes]:
        yield b"one "
        yield b"two"

    _, calls = fetch(library, False, url, content=pieces())
    assert server.got[-1] == calls.last.request == b"one two"

    async def later() -> AsyncIterator[bytes]:
        yield b"three "
        yield b"four"

    _, calls = fetch(library, True, url, content=later())
    assert server.got[-1] == calls.last.request == b"three four"


def test_request_longer_than_the_bound(library: Any, url: str) -> None:
    with library.Client(trust_env=False) as client:
        calls = aegis_c.capture(client, max_bytes=len(TEXT) + 5)
        client.post(url, content=iter([TEXT, b"and more"]))
    assert calls.last is not None
    assert calls.last.request == TEXT + b"and m"
    assert not calls.last.complete


def test_capture_that_begins_while_a_body_is_sent(library: Any, url: str, server: Any) -> None:
    with library.Client(trust_env=False) as client:

        def pieces() -> Iterator[bytes]:
            yield b"one "
            captures.append(aegis_c.capture(client))
            yield b"two"

        captures: list[Any] = []
        assert client.post(url, content=pieces()).content == TEXT
    assert server.got[-1] == b"one two"
    (call,) = captures[0].calls
    assert (call.request, call.response, call.complete) == (b"", TEXT, False)


def test_multipart_upload(library: Any, url: str, server: Any) -> None:
    _, calls = fetch(library, False, url, files={"f": ("name", b"content")})
    assert calls.last.request == server.got[-1]
    assert b"content" in calls.last.request


def test_stream_passes_piece_by_piece(library: Any, url: str) -> None:
    with library.Client(trust_env=False) as client, aegis_c.capture(client) as calls:
        with client.stream("POST", f"{url}/events") as response:
            seen = b""
            for chunk in response.iter_raw():
                assert calls.calls == []
                seen += chunk
        assert calls.last.response == seen == b"".join(EVENTS)
        assert calls.last.complete


def test_the_newest_of_an_id_is_found(library: Any, url: str) -> None:
    with library.Client(trust_env=False) as client, aegis_c.capture(client) as calls:
        for content in (b"first", b"second"):
            client.post(f"{url}/events", content=content)
    call = calls.get("stream")
    assert call is not None
    assert call.request == b"second"


def test_only_an_event_stream_ends_by_its_last_event(library: Any, url: str) -> None:
    error, calls = fetch(library, False, f"{url}/cut")
    assert isinstance(error, library.HTTPError)
    assert calls.last.response == EVENTS[-1]
    assert not calls.last.complete


def test_a_redirected_upload_is_kept_both_times(library: Any, url: str, server: Any) -> None:
    """307 sends the same multipart body again."""
    _, calls = fetch(
        library, False, f"{url}/redirect", files={"f": ("n", b"x")}, follow_redirects=True
    )
    assert [call.status for call in calls.calls] == [307, 200]
    assert [call.request for call in calls.calls] == server.got[-2:]
    assert server.got[-1] == server.got[-2]


def test_stream_left_early(library: Any, url: str) -> None:
    with library.Client(trust_env=False) as client, aegis_c.capture(client) as calls:
        with client.stream("POST", f"{url}/plain") as response:
            first = next(response.iter_bytes())
        assert calls.last.response.startswith(first)
        # All octets may have come in one piece, but the end was not seen.
        assert not calls.last.complete


@both
def test_response_made_in_memory(library: Any, asynchronous: bool) -> None:
    def answer(request: Any) -> Any:
        return library.Response(200, content=b"canned", headers={"x-request-id": "m"})

    async def later() -> Any:
        async with library.AsyncClient(transport=library.MockTransport(answer)) as client:
            calls = aegis_c.capture(client)
            assert (await client.post("http://nowhere/", content=b"q")).content == b"canned"
            return calls

    if asynchronous:
        calls = asyncio.run(later())
    else:
        with library.Client(transport=library.MockTransport(answer)) as client:
            calls = aegis_c.capture(client)
            assert client.post("http://nowhere/", content=b"q").content == b"canned"
    call = calls.get("m")
    assert call is not None
    assert (call.request, call.response, call.complete) == (b"q", b"canned", True)


def test_hooks_of_the_user_keep_working(library: Any, url: str, server: Any) -> None:
    seen: list[Any] = []

    def on_request(request: Any) -> None:
        request.headers["x-mark"] = "1"

    def on_response(response: Any) -> None:
        seen.append(response.read())

    hooks = {"request": [on_request], "response": [on_response]}
    with library.Client(trust_env=False, event_hooks=hooks) as client:
        with aegis_c.capture(client) as calls:
            client.post(url, content=b"x")
            assert seen == [TEXT]
            assert calls.last.response == TEXT
        client.post(url, content=b"y")  # after the block nothing is captured
        assert len(calls.calls) == 1
        assert client.event_hooks == hooks
        calls.close()


def test_bounded_by_calls(library: Any, url: str) -> None:
    with library.Client(trust_env=False) as client:
        calls = aegis_c.capture(client, max_calls=3)
        for i in range(5):
            client.post(url, content=b"%d" % i)
    assert [call.request for call in calls.calls] == [b"2", b"3", b"4"]


def test_bounded_by_bytes(library: Any, url: str) -> None:
    with library.Client(trust_env=False) as client:
        calls = aegis_c.capture(client, max_bytes=2 * len(TEXT) + 10)
        for i in range(5):
            client.post(url, content=b"%d" % i)
        assert [call.request for call in calls.calls] == [b"3", b"4"]
        small = aegis_c.capture(client, max_bytes=10)
        response = client.post(url, content=b"x")
    assert response.content == TEXT
    assert small.last is not None
    assert small.last.response == TEXT[:10]
    assert not small.last.complete


def test_threads_share_a_capture(library: Any, url: str) -> None:
    with library.Client(trust_env=False) as client:
        calls = aegis_c.capture(client)

        def work(name: int) -> None:
            for i in range(10):
                client.post(url, content=b"%d-%d" % (name, i))

        threads = [threading.Thread(target=work, args=(name,)) for name in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
    assert sorted(c.request for c in calls.calls) == sorted(
        b"%d-%d" % (name, i) for name in range(4) for i in range(10)
    )
    assert all(c.complete and c.response == TEXT for c in calls.calls)


@pytest.mark.parametrize("value", [None, "client", object()])
def test_other_objects_are_refused(value: Any) -> None:
    with pytest.raises(TypeError, match="httpx"):
        aegis_c.capture(value)


@pytest.mark.parametrize("bound", [{"max_calls": 0}, {"max_bytes": 0}])
def test_useless_bounds_are_refused(bound: dict[str, int]) -> None:
    with httpx.Client() as client, pytest.raises(ValueError, match="at least 1"):
        aegis_c.capture(client, **bound)


# ---- the official client ----------------------------------------------------------------------

ASK: dict[str, Any] = {
    "model": "aegis-ngram",
    "messages": [{"role": "user", "content": "a ledger"}],
    "seed": 1,
    "max_tokens": 8,
}


def http_clients() -> list[Any]:
    return [pytest.param(None, id="default")] + [
        pytest.param(library, id=library.__name__) for library in LIBRARIES
    ]


def text_of(events: bytes) -> str:
    """The reply's text, from the raw bytes of a stream."""
    lines = [line[6:] for line in events.split(b"\n") if line.startswith(b"data: {")]
    deltas = [c["delta"] for line in lines for c in json.loads(line)["choices"]]
    return "".join(delta.get("content", "") for delta in deltas)


@pytest.mark.parametrize("http", http_clients())
def test_openai_sync(model: ModelServer, http: Any) -> None:
    options = {} if http is None else {"http_client": http.Client(trust_env=False)}
    with openai.OpenAI(base_url=model.base_url, api_key="k", **options) as client:
        calls = aegis_c.capture(client)
        answer = client.chat.completions.create(**ASK)
        assert calls.last is not None
        assert json.loads(calls.last.request) == ASK
        body = json.loads(calls.last.response)
        assert body["choices"][0]["message"]["content"] == answer.choices[0].message.content

        stream = client.chat.completions.create(**ASK, stream=True)
        text = "".join(c.choices[0].delta.content or "" for c in stream)
        assert text == answer.choices[0].message.content == text_of(calls.last.response)
        assert calls.last.response.endswith(b"data: [DONE]\n\n")
        assert calls.last.complete

        with pytest.raises(openai.NotFoundError) as caught:
            client.chat.completions.create(**{**ASK, "model": "none"})
        assert calls.last.status == 404
        refused = calls.get(caught.value.response.headers["x-request-id"])
        assert refused is not None
        assert json.loads(refused.response)["error"]["code"] == "model_not_found"


@pytest.mark.parametrize("http", http_clients())
def test_openai_async(model: ModelServer, http: Any) -> None:
    async def run() -> None:
        options = {} if http is None else {"http_client": http.AsyncClient(trust_env=False)}
        async with openai.AsyncOpenAI(base_url=model.base_url, api_key="k", **options) as client:
            calls = aegis_c.capture(client)
            answers = await asyncio.gather(
                *(client.chat.completions.create(**{**ASK, "seed": i}) for i in range(6))
            )
            assert len(calls.calls) == 6
            for answer in answers:
                sent = [c for c in calls.calls if json.loads(c.response)["id"] == answer.id]
                assert len(sent) == 1

            stream = await client.chat.completions.create(**ASK, stream=True)
            text = "".join([c.choices[0].delta.content or "" async for c in stream])
            assert calls.last is not None
            assert text == text_of(calls.last.response)
            assert calls.last.complete

            with pytest.raises(openai.NotFoundError):
                await client.chat.completions.create(**{**ASK, "model": "none"})
            assert calls.last.status == 404

    asyncio.run(run())
