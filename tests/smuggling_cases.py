"""What tests/test_smuggling.py sends: requests that two parsers could read differently, and legal
ones that a strict guard must not lose. Every name is that of the attack, or of what is legal."""

from __future__ import annotations

Saw = tuple[str, str, bytes]  # method, path and body, as the application got them


def request(line: str, *fields: str, body: bytes = b"", host: str = "Host: a") -> bytes:
    lines = [f"{line} HTTP/1.1", *([host] if host else []), *fields, "", ""]
    return "\r\n".join(lines).encode("latin-1") + body


def with_length(path: str, body: bytes, *fields: str) -> bytes:
    return request(f"POST {path}", f"Content-Length: {len(body)}", *fields, body=body)


CHUNKED = "Transfer-Encoding: chunked"
HIDDEN = b"GET /hidden HTTP/1.1\r\nHost: a\r\n\r\n"
END = request("GET /end", "Connection: close")
SAW_END = ("GET", "/end", b"")

HEADER, TWICE, BODY = "invalid_header", "duplicate_header", "invalid_body"
FORM, METHOD, LARGE = "malformed_request", "method_not_supported", "request_head_too_large"

# What, the bytes, and the code of the refusal: nothing of it may reach the application.
REFUSED: list[tuple[str, bytes, str]] = [
    # framing by two lengths
    ("CL.TE", request("POST /", "Content-Length: 4", CHUNKED, body=b"0\r\n\r\n" + HIDDEN), HEADER),
    ("TE.CL", request("POST /", CHUNKED, "Content-Length: 4", body=b"0\r\n\r\n" + HIDDEN), HEADER),
    ("CL.CL equal", request("POST /", "Content-Length: 1", "Content-Length: 1", body=b"x"), TWICE),
    ("CL.CL", request("POST /", "Content-Length: 1", "Content-Length: 9", body=b"x"), TWICE),
    ("CL list", request("POST /", "Content-Length: 1, 1", body=b"x"), HEADER),
    *(
        (f"CL {value!r}", request("POST /", f"Content-Length: {value}", body=b"x"), HEADER)
        for value in (
            "+1",
            "-1",
            "0x1",
            "01",
            "1_0",
            "1 ;",
            "1.0",
            "",
            "\xb9",
            "1e1",
            "99999999999999999999",
        )
    ),
    # transfer codings
    *(
        (
            f"TE {value!r}",
            request("POST /", f"Transfer-Encoding: {value}", body=b"0\r\n\r\n"),
            HEADER,
        )
        for value in (
            "gzip, chunked",
            "chunked, identity",
            "identity",
            "xchunked",
            "chunked;q=1",
            '"chunked"',
            "",
            "chunked\xa0",
        )
    ),
    ("TE twice", request("POST /", CHUNKED, CHUNKED, body=b"0\r\n\r\n"), TWICE),
    (
        "TE twice, one hidden",
        request("POST /", CHUNKED, "transfer-encoding: x", body=b"0\r\n\r\n"),
        TWICE,
    ),
    (
        "TE with vertical tab",
        request("POST /", "Transfer-Encoding: \x0bchunked", body=b"0\r\n\r\n"),
        FORM,
    ),
    ("TE in HTTP/1.0", b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", HEADER),
    ("TE.0", request("POST /", CHUNKED, body=HIDDEN), BODY),
    # names that hide
    ("space before colon", request("POST /", "Content-Length : 1", body=b"x"), HEADER),
    ("tab before colon", request("POST /", "Transfer-Encoding\t: chunked"), HEADER),
    ("underscore in CL", request("POST /", "Content_Length: 1", body=b"x"), HEADER),
    ("underscore in TE", request("POST /", "transfer_encoding: chunked"), HEADER),
    ("no token", request("POST /", "Transfer Encoding: chunked"), HEADER),
    ("not ASCII", request("POST /", "Transf\xe9r-Encoding: chunked"), HEADER),
    ("empty name", request("GET /", ": x"), HEADER),
    ("no colon", request("GET /", "Transfer-Encoding"), HEADER),
    ("folded", request("POST /", "X: y", " Content-Length: 1", body=b"x"), HEADER),
    ("folded with tab", request("POST /", "Transfer-Encoding:", "\tchunked"), HEADER),
    ("space on the first field", request("GET /", host=" Host: a"), HEADER),
    # line ends and control characters
    ("bare LF in the request line", b"GET / HTTP/1.1\nHost: a\r\n\r\n", FORM),
    ("bare LF in a field", request("GET /", "X: y\nContent-Length: 5"), FORM),
    ("bare LF at the end", b"GET / HTTP/1.1\r\nHost: a\r\n\n" + HIDDEN, FORM),
    ("bare CR in a field", request("GET /", "X: y\rContent-Length: 5"), FORM),
    ("CR CR LF", b"GET / HTTP/1.1\r\r\nHost: a\r\n\r\n", FORM),
    ("NUL in a value", request("GET /", "X: a\0b"), FORM),
    ("DEL in a value", request("GET /", "X: a\x7fb"), FORM),
    ("NUL in a name", request("GET /", "X\0: a"), FORM),
    # the request line
    ("HTTP/1.2", b"GET / HTTP/1.2\r\nHost: a\r\n\r\n", FORM),
    ("HTTP/2", b"GET / HTTP/2.0\r\nHost: a\r\n\r\n", FORM),
    ("HTTP/0.9", b"GET /\r\n\r\n", FORM),
    ("lower-case version", b"GET / http/1.1\r\nHost: a\r\n\r\n", FORM),
    ("two spaces", b"GET  / HTTP/1.1\r\nHost: a\r\n\r\n", FORM),
    ("space behind", b"GET / HTTP/1.1 \r\nHost: a\r\n\r\n", FORM),
    ("space in the target", b"GET /a b HTTP/1.1\r\nHost: a\r\n\r\n", FORM),
    ("tab in the target", b"GET /a\tb HTTP/1.1\r\nHost: a\r\n\r\n", FORM),
    ("fragment", request("GET /a#b"), FORM),
    ("backslash", request("GET /a\\b"), FORM),
    ("bytes in the target", b"GET /\xc3\xa9 HTTP/1.1\r\nHost: a\r\n\r\n", FORM),
    ("no path", request("GET a"), FORM),
    ("asterisk", request("GET *"), FORM),
    *(
        (method, request(f"{method} /"), METHOD)
        for method in ("TRACE", "PRI", "get", "GETx", "PROPFIND", "POST,GET")
    ),
    ("CONNECT", request("CONNECT a:80"), METHOD),
    ("HTTP/2 preface", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", METHOD),
    ("TLS", b"\x16\x03\x01\x00\xa5\x01", FORM),
    ("two empty lines", b"\r\n\r\n" + END, FORM),
    # Host
    ("no Host", request("GET /", host=""), HEADER),
    ("two Hosts", request("GET /", "Host: a"), TWICE),
    *(
        (f"Host {value!r}", request("GET /", host=f"Host: {value}"), HEADER)
        for value in (
            "",
            "a,b",
            "u@a",
            "a/b",
            "a b",
            "a:b",
            "a:80:80",
            "[::1",
            "a?b",
            "a#b",
            "\xe9",
            ":80",
        )
    ),
    ("Host unlike the target", request("GET http://b/"), HEADER),
    ("Host unlike the target's port", request("GET http://a:81/"), HEADER),
    ("user in the target", request("GET http://u:p@a/"), FORM),
    ("other scheme", request("GET ftp://a/"), FORM),
    # bodies that do not belong
    *(
        (
            f"CL.0 {method}",
            request(f"{method} /", f"Content-Length: {len(HIDDEN)}", body=HIDDEN),
            BODY,
        )
        for method in ("GET", "HEAD", "DELETE", "OPTIONS")
    ),
    ("chunked GET", request("GET /", CHUNKED, body=b"0\r\n\r\n"), BODY),
    ("0.CL", request("POST /", "Expect: 100-continue", body=HIDDEN), HEADER),
    ("Expect without a body", request("GET /", "Expect: 100-continue"), HEADER),
    (
        "Expect with length 0",
        request("POST /", "Expect: 100-continue", "Content-Length: 0"),
        HEADER,
    ),
    (
        "Expect something else",
        request("POST /", "Expect: y 100-continue", "Content-Length: 1"),
        HEADER,
    ),
    ("Expect twice", request("POST /", *["Expect: 100-continue"] * 2, "Content-Length: 1"), HEADER),
    # Connection
    *(
        (
            f"Connection {value!r}",
            request("POST /", f"Connection: {value}", "Content-Length: 0"),
            HEADER,
        )
        for value in (
            "Content-Length",
            "close, HOST",
            "x,authorization",
            "transfer_encoding",
            "cookie",
        )
    ),
    # chunks
    *(
        (
            f"chunk {chunk!r}",
            request("POST /", CHUNKED, body=chunk + b"\r\n0\r\n\r\n" + HIDDEN),
            BODY,
        )
        for chunk in (
            b"1;x=y\r\nx",
            b"1;\r\nx",
            b"1 \r\nx",
            b" 1\r\nx",
            b"0x1\r\nx",
            b"+1\r\nx",
            b"-1\r\nx",
            b"1\nx",
            b"1\rXx",
            b"1\r\nxx",
            b"\r\nx",
            b"g\r\nx",
            b"1\r\n\r\n",
            b"8000000000000000\r\nx",
            b"00000000000000001\r\nx",
            b"1\t\r\nx",
            b"1,1\r\nx",
        )
    ),
    ("chunk data ends with LF", request("POST /", CHUNKED, body=b"1\r\nx\n0\r\n\r\n"), BODY),
    ("trailers", request("POST /", CHUNKED, body=b"0\r\nContent-Length: 5\r\n\r\n"), BODY),
    ("last chunk ends with LF", request("POST /", CHUNKED, body=b"0\r\n\n"), BODY),
    # sizes
    ("large head", request("GET /", "X: " + "x" * 16384), LARGE),
    ("many fields", request("GET /", *["X: y"] * 100), LARGE),
]

# What, the bytes, what the application sees, and the statuses that come back.
SEQUENCES: list[tuple[str, list[bytes], list[Saw], list[int]]] = [
    # legal traffic
    ("keep-alive", [request("GET /a"), END], [("GET", "/a", b""), SAW_END], [200, 200]),
    (
        "pipelining",
        [request("GET /a") + with_length("/b", b"xyz") + END],
        [("GET", "/a", b""), ("POST", "/b", b"xyz"), SAW_END],
        [200] * 3,
    ),
    (
        "sixteen pipelined",
        [b"".join(request(f"GET /{i}") for i in range(15)) + END],
        [*(("GET", f"/{i}", b"") for i in range(15)), SAW_END],
        [200] * 16,
    ),
    (
        "chunked",
        [request("POST /c", CHUNKED, body=b"3\r\nabc\r\n000a\r\n0123456789\r\n0\r\n\r\n") + END],
        [("POST", "/c", b"abc0123456789"), SAW_END],
        [200, 200],
    ),
    (
        "a body that looks like a request",
        [with_length("/a", HIDDEN) + END],
        [("POST", "/a", HIDDEN), SAW_END],
        [200, 200],
    ),
    (
        "Expect: 100-continue",
        [request("POST /e", "Expect: 100-continue", "Content-Length: 3"), b"abc", END],
        [("POST", "/e", b"abc"), SAW_END],
        [100, 200, 200],
    ),
    (
        "Content-Length: 0",
        [request("GET /z", "Content-Length: 0") + END],
        [("GET", "/z", b""), SAW_END],
        [200] * 2,
    ),
    ("POST without a body", [request("POST /z") + END], [("POST", "/z", b""), SAW_END], [200] * 2),
    (
        "an empty line between",
        [request("GET /a") + b"\r\n" + END],
        [("GET", "/a", b""), SAW_END],
        [200] * 2,
    ),
    ("HTTP/1.0", [b"GET /old HTTP/1.0\r\n\r\n"], [("GET", "/old", b"")], [200]),
    (
        "HTTP/1.0 with a body",
        [b"POST /old HTTP/1.0\r\nContent-Length: 1\r\n\r\nx"],
        [("POST", "/old", b"x")],
        [200],
    ),
    (
        "absolute target",
        [request("GET http://A/abs", "Connection: close")],
        [("GET", "/abs", b"")],
        [200],
    ),
    (
        "long head",
        [request("GET /long", "Cookie: " + "x" * 16000, "Connection: close")],
        [("GET", "/long", b"")],
        [200],
    ),
    (
        "many fields",
        [request("GET /f", *["X: y"] * 98, "Connection: close")],
        [("GET", "/f", b"")],
        [200],
    ),
    (
        "byte by byte",
        [bytes([b]) for b in with_length("/s", b"xy")] + [END],
        [("POST", "/s", b"xy"), SAW_END],
        [200] * 2,
    ),
    (
        "offers of h2c keep their body, and the connection",
        [
            with_length(
                "/j",
                b"body",
                "Connection: Upgrade, HTTP2-Settings",
                "Upgrade: h2c",
                "HTTP2-Settings: AAMAAABkAAQAAP__",
            ),
            END,
        ],
        [("POST", "/j", b"body"), SAW_END],
        [200, 200],
    ),
    (
        "an offer of a WebSocket",
        [request("GET /w", "Connection: Upgrade", "Upgrade: websocket"), END],
        [("GET", "/w", b""), SAW_END],
        [200] * 2,
    ),
    # sequences that are cut
    (
        "bytes behind an offer to upgrade",
        [request("GET /u", "Connection: Upgrade", "Upgrade: h2c") + HIDDEN],
        [("GET", "/u", b"")],
        [200],
    ),
    ("bytes behind Connection: close", [END + HIDDEN], [SAW_END], [200]),
    (
        "bytes behind HTTP/1.0",
        [b"GET /old HTTP/1.0\r\n\r\n" + HIDDEN],
        [("GET", "/old", b"")],
        [200],
    ),
    (
        "a bad request behind a good one: no 400 inside its response",
        [request("GET /a") + b"BAD\r\n\r\n" + HIDDEN],
        [("GET", "/a", b"")],
        [200],
    ),
    (
        "a bad request after an answer",
        [request("GET /a"), b"BAD\r\n\r\n" + HIDDEN],
        [("GET", "/a", b"")],
        [200, 400],
    ),
    (
        "CL.0 in sequence",
        [request("GET /a") + request("GET /b", f"Content-Length: {len(HIDDEN)}", body=HIDDEN)],
        [("GET", "/a", b"")],
        [200],
    ),
    (
        "pause: the body comes late",
        [request("POST /p", "Content-Length: 5"), b"hel", b"lo" + END],
        [("POST", "/p", b"hello"), SAW_END],
        [200, 200],
    ),
    (
        "a chunk that breaks later",
        [request("POST /p", CHUNKED, body=b"1\r\nx\r\n"), b"1;\r\n" + HIDDEN],
        [],
        [400],
    ),
    (
        "a chunk that breaks later, behind another request",
        [request("GET /a") + request("POST /p", CHUNKED, body=b"1\r\nx\r\n"), b"1;\r\n" + HIDDEN],
        [("GET", "/a", b"")],
        [200, 400],
    ),
]
