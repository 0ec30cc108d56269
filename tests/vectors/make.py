"""Writes the golden files beside it with the reference implementation.

    PYTHONPATH=tests python tests/vectors/make.py

A test holds the files against what this makes, so that neither can change alone.
"""

import json
from pathlib import Path
from typing import Any

from reference import ed25519, note, receipt

ORIGIN = "aegis.example/golden/w0"
SEED = bytes(range(32))
SECRET = bytes(range(100, 132))
CALL, STREAM = "01900000-0000-7000-8000-000000000001", "01900000-0000-7000-8000-000000000002"
REQUEST = '{"model":"m","messages":[{"role":"user","content":"Où est la gare ?"}]}'.encode()
REPLY = b'{"choices":[{"message":{"role":"assistant","content":"Tout droit."}}]}'
EVENTS = b'data: {"choices":[{"delta":{"content":"Hi"}}]}\n\ndata: [DONE]\n\n'


def log_entries() -> list[bytes]:
    """Five entries: genesis, a call, a stream (intent, settle), a rejection."""

    def entry(
        kind: str,
        identifier: str,
        request: bytes | None = None,
        response: bytes | None = None,
        **members: object,
    ) -> bytes:
        head = {"v": 1, "kind": kind, "id": identifier}
        time = {"time": "2026-01-02T03:04:05.000006Z"}
        late = {name: value for name, value in members.items() if name not in ("of", "event")}
        early = {name: value for name, value in members.items() if name in ("of", "event")}
        return receipt.with_bodies(head | early | time | late, SECRET, request, response)

    caller: dict[str, Any] = {"tenant": "acme", "key": "ci", "endpoint": "/v1/chat/completions"}
    refused = "01900000-0000-7000-8000-000000000003"
    return [
        entry("admin", "01900000-0000-7000-8000-000000000000", event="genesis"),
        entry("call", CALL, REQUEST, REPLY, **caller, model={"asked": "m"}, status=200),
        entry("intent", STREAM, REQUEST, **caller, model={"asked": "m"}, status=200),
        entry("settle", STREAM, None, EVENTS, of=2, **caller, status="done", events=2),
        entry("rejection", refused, b"{", status=400, reason="invalid_json", stage="body"),
    ]


def golden() -> dict[str, bytes]:
    """File name -> content."""
    entries = log_entries()
    files = {
        "log.vkey": (note.vkey(ORIGIN, ed25519.public_key(SEED)) + "\n").encode(),
        "call.entry.json": entries[1],
        "call.tlog-proof": receipt.tlog_proof(entries, 1, ORIGIN, SEED),
        "request.body": REQUEST,
        "call.response.body": REPLY,
        "stream.response.body": EVENTS,
    }
    for name, identifier in (("call", CALL), ("stream", STREAM)):
        value = receipt.json_receipt(entries, identifier, ORIGIN, SEED, SECRET)
        text = json.dumps(value, indent=1, ensure_ascii=False) + "\n"
        files[f"{name}.receipt.json"] = text.encode()
    return files


if __name__ == "__main__":
    for name, content in golden().items():
        (Path(__file__).parent / name).write_bytes(content)
