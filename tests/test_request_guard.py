"""RequestGuard against a slow clear twin, and against itself at every split of its input."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aegis_c import RequestGuard
from native import check_no_leak
from reference import request_guard as reference

pytestmark = pytest.mark.native

Found = tuple[list[bytes], tuple[int, str, int] | None]


def run(pieces: list[bytes], guard: RequestGuard | None = None) -> Found:
    """The complete messages, and the violation, of a connection that arrives in these pieces."""
    guard = guard or RequestGuard()
    messages: list[bytes] = []
    open_message = b""
    for piece in pieces:
        for part, last in guard.feed(piece):
            assert part
            open_message += part
            if last:
                messages.append(open_message)
                open_message = b""
        if guard.state == "refused":
            break
    violation = guard.violation
    assert (violation is not None) == (guard.state == "refused")
    if violation is None:
        return messages, None
    assert guard.feed(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n") == []
    status, code, text, offset = violation
    assert text.endswith(".")
    return messages, (status, code, offset)


GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
POST = b"POST /v1/x HTTP/1.1\r\nHost: a:80\r\nContent-Length: 5\r\n\r\nhello"
CHUNKED = (
    b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: Chunked\r\n\r\n"
    b"5\r\nhello\r\n00a\r\n0123456789\r\n0\r\n\r\n"
)
STREAMS = [
    GET,
    POST,
    CHUNKED,
    GET + POST + CHUNKED + b"\r\n" + GET,
    b"\r\n" + GET + b"\r\n",
    b"GET / HTTP/1.0\r\n\r\n",
    b"GET http://a:80/x HTTP/1.1\r\nhost:  A:80 \r\n\r\n" + POST,
    b"OPTIONS * HTTP/1.1\r\nHost: [::1]:80\r\nX: \xff\t y\r\nEmpty:\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-Continue\r\nContent-Length: 1\r\n\r\nx" + GET,
    b"HEAD / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\nConnection: keep-alive\r\n\r\n" + GET,
    b"POST / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, HTTP2-Settings , te\r\nUpgrade: h2c\r\n"
    b"HTTP2-Settings: AAMAAABkAAQAAP__\r\nTE: trailers\r\nContent-Length: 5\r\n\r\nhello",
    b"GET / HTTP/1.1\r\nHost: a\r\nconnection:upgrade\r\nUpgrade: websocket\r\n\r\n",
    # refused
    b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n" + GET,
    b"GET / HTTP/1.1\r\nHost: a\r\nUpgrade: h2c\r\n\r\n" + GET,
    b"GET / HTTP/1.0\r\n\r\n\r\nG",
    b"GET / HTTP/1.1\nHost: a\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\n\nGET",
    b"GET / HTTP/1.1\r\nHost: a\rX: b\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nX: \0\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\n folded\r\n\r\n",
    b"GET / HTTP/1.1\r\n Host: a\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost : a\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nContent_Length: 3\r\n\r\n",
    POST[:-5] + b"hello" + b"smuggled",
    CHUNKED.replace(b"5\r\n", b"5;x=y\r\n"),
    CHUNKED.replace(b"5\r\n", b"5 \r\n"),
    CHUNKED.replace(b"5\r\n", b"0x5\r\n"),
    CHUNKED.replace(b"5\r\n", b"\r\n"),
    CHUNKED.replace(b"5\r\n", b"5\n"),
    CHUNKED.replace(b"hello\r\n", b"hello\n"),
    CHUNKED.replace(b"hello\r\n", b"helloX\r\n"),
    CHUNKED.replace(b"5\r\n", b"8000000000000000\r\n"),
    CHUNKED.replace(b"5\r\n", b"00000000000000005\r\n"),
    CHUNKED[:-2] + b"Trailer: x\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"\r\rGET",
    b"\r\n\r\n" + GET,
    b"GET / HTTP/1.1\r\nHost: a\r\n" + b"X: y\r\n" * 99 + b"\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\n" + b"X: y\r\n" * 100 + b"\r\n",
]


@pytest.mark.parametrize("stream", STREAMS)
def test_every_split(stream: bytes) -> None:
    whole = run([stream])
    assert whole == reference.read(stream)
    assert run([bytes([octet]) for octet in stream]) == whole
    for i in range(1, len(stream)):
        assert run([stream[:i], stream[i:]]) == whole, i
    for i in range(len(stream)):  # a stream that is cut has no more messages
        messages, violation = run([stream[:i]])
        assert messages == whole[0][: len(messages)]
        assert violation is None or violation == whole[1]


def test_the_size_of_a_head_is_exact() -> None:
    for size in (16383, 16384, 16385):
        filler = b"x" * (size - len(GET) - len(b"A: \r\n"))
        stream = GET[:-2] + b"A: " + filler + b"\r\n\r\n"
        assert len(stream) == size
        whole = run([stream])
        assert whole == reference.read(stream)
        assert (whole[1] is None) == (size <= 16384)
        assert run([stream[:9000], stream[9000:]]) == whole
        assert run([stream[i : i + 100] for i in range(0, size, 100)]) == whole
    endless = run([b"GET / HTTP/1.1\r\nHost: a\r\nA: " + b"x" * 1_000_000])
    assert endless == ([], (431, "request_head_too_large", 16384))
    small = RequestGuard(head_bytes=64, fields=2)
    assert run([b"GET / HTTP/1.1\r\nHost: a\r\nA: b\r\nC: d\r\n\r\n"], small)[1] == (
        (431, "request_head_too_large", 31)
    )


METHOD = st.sampled_from(
    ["GET", "POST", "HEAD", "PUT", "DELETE", "OPTIONS", "CONNECT", "get", "PRI"]
)
TARGET = st.sampled_from(
    [
        "/",
        "/v1/x?y=%20",
        "*",
        "http://a/",
        "HTTP://A:80/x",
        "http://u@a/",
        "a:80",
        "/a#b",
        "/\\",
        "//a",
    ]
)
VERSION = st.sampled_from(
    ["HTTP/1.1", "HTTP/1.1", "HTTP/1.1", "HTTP/1.0", "HTTP/1.2", "HTTP/2.0", ""]
)
FIELD = st.sampled_from(
    [
        "Host: a",
        "Host: a",
        "Host: A:80",
        "Host:",
        "Host: a,b",
        "Host: u@a",
        "Host: [::1]",
        "Host: a:x",
        "Content-Length: 5",
        "Content-Length: 5",
        "Content-Length: 0",
        "Content-Length: +5",
        "Content-Length: 05",
        "Content-Length: 5, 5",
        "Content-Length: 99999999999999999999",
        "Content-Length: 0x5",
        "Content-Length: 5 5",
        "Content-Length:",
        "content_length: 5",
        "Transfer-Encoding: chunked",
        "Transfer-Encoding: CHUNKED",
        "Transfer-Encoding: gzip, chunked",
        "Transfer-Encoding: chunked, chunked",
        "Transfer-Encoding: xchunked",
        "Transfer-Encoding : chunked",
        "Transfer-Encoding: \x0bchunked",
        "transfer_encoding: chunked",
        "Transfer-Encoding:",
        "Expect: 100-continue",
        "Expect: 100-Continue",
        "Expect: 200-ok",
        "Connection: close",
        "Connection: keep-alive, close",
        "Connection: Content-Length",
        "Connection: x, Authorization",
        "Connection: Upgrade",
        "Connection: Upgrade, HTTP2-Settings",
        "Upgrade: h2c",
        "Upgrade: websocket",
        "HTTP2-Settings: AAA",
        "X: y",
        "X : y",
        " X: y",
        "X",
        ": y",
        "X:",
        "X: \x7f",
        "X: \xe9",
        "X\xe9: y",
    ]
)
BODY = st.sampled_from(
    [
        b"",
        b"",
        b"hello",
        b"5\r\nhello\r\n0\r\n\r\n",
        b"0\r\n\r\n",
        b"5\r\nhell",
        b"3\r\nhello\r\n0\r\n\r\n",
    ]
)


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    line = f"{draw(METHOD)} {draw(TARGET)} {draw(VERSION)}"
    fields = draw(st.lists(FIELD, max_size=5))
    end = draw(st.sampled_from(["\r\n"] * 12 + ["\n", "\r", "\r\n\t"]))
    return end.join([line, *fields]).encode("latin-1") + b"\r\n\r\n" + draw(BODY)


@st.composite
def sane(draw: st.DrawFn) -> bytes:
    """A request that is accepted more often than not."""
    body = draw(st.sampled_from(["", "length", "chunked"]))
    lines = [f"{'POST' if body else 'GET'} / HTTP/1.1", "Host: a"]
    lines += draw(st.lists(FIELD.filter(lambda f: f[0] in "CUXH" and ":" in f), max_size=1))
    if body == "length":
        return "\r\n".join([*lines, "Content-Length: 5", "", "hello"]).encode("latin-1")
    if body == "chunked":
        chunk = "5\r\nhello\r\n0\r\n\r\n"
        return "\r\n".join([*lines, "Transfer-Encoding: chunked", "", chunk]).encode("latin-1")
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


STREAM = st.lists(sane() | requests(), min_size=1, max_size=3).map(b"".join)


@given(STREAM, st.data())
def test_streams(stream: bytes, data: st.DataObject) -> None:
    whole = run([stream])
    assert whole == reference.read(stream)
    cuts = sorted(data.draw(st.sets(st.integers(1, max(1, len(stream) - 1)), max_size=4)))
    pieces = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    assert run([piece for piece in pieces if piece]) == whole


@given(STREAM, st.data())
def test_streams_with_a_change(stream: bytes, data: st.DataObject) -> None:
    octets = bytearray(stream)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(octets)))
        piece = data.draw(
            st.binary(min_size=1, max_size=2)
            | st.sampled_from([b"\r\n", b"\n", b"\r", b" ", b":", b"\0"])
        )
        if data.draw(st.booleans()):
            octets[at : at + len(piece)] = piece
        else:
            octets[at:at] = piece
    changed = bytes(octets)
    assert run([changed]) == reference.read(changed)
    assert run([bytes([octet]) for octet in changed]) == reference.read(changed)


def test_a_body_is_passed_on_as_it_comes() -> None:
    guard = RequestGuard()
    head = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n"
    assert guard.feed(head[:20]) == []
    assert guard.state == "head"
    assert guard.feed(head[20:] + b"01234") == [(head, False), (b"01234", False)]
    assert guard.state == "body"
    assert guard.feed(b"56789" + GET) == [(b"56789", True), (GET, True)]
    assert (guard.state, guard.violation) == ("idle", None)
    assert guard.feed(b"") == []
    whole = head + b"0123456789"
    assert guard.feed(whole)[0][0] is whole  # not copied


def test_an_upgrade_waits_for_its_answer() -> None:
    offer = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n"
    guard = RequestGuard()
    guard.feed(offer)
    guard.answered()
    assert guard.feed(GET) == [(GET, True)]
    guard.feed(offer)
    assert guard.feed(b"PRI") == []
    assert guard.violation == (400, "invalid_header", "Bytes follow an offer to upgrade.", 0)
    websocket = offer.replace(b"h2c", b"WebSocket")
    assert RequestGuard(keep_websocket=True).feed(websocket) == [(websocket, True)]
    assert RequestGuard().feed(websocket) == [(GET, True)]
    assert RequestGuard(keep_websocket=True).feed(offer) == [(GET, True)]


def test_arguments() -> None:
    for wrong in ({"head_bytes": 63}, {"head_bytes": 1 << 21}, {"fields": 0}, {"fields": 10**5}):
        with pytest.raises(ValueError, match="head_bytes must be"):
            RequestGuard(**wrong)
    with pytest.raises(TypeError, match="must be bytes, not bytearray"):
        RequestGuard().feed(bytearray(GET))  # type: ignore[arg-type]


def test_nothing_leaks() -> None:
    def calls() -> None:
        for stream in STREAMS[:16]:
            run([stream[:30], stream[30:]])
        RequestGuard().feed(GET[:9])
        RequestGuard().feed(POST[:-2])

    check_no_leak(calls, 50)
