"""The guided tour behind ``aegis-c demo``: calls, receipts, offline verification, tampering.

Everything is real: the gateway is a process of ``aegis-c serve`` with a settings file and keys,
the caller is the official `openai` client, verification is ``aegis-c verify`` in processes of its
own after the gateway has stopped. A step that does not come out as it must ends the tour with
exit status 1.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import re
import secrets
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape

from aegis_c._capture import Captured, capture
from aegis_c.demo.chat_request import MODEL_ID

if TYPE_CHECKING:
    from openai import OpenAI

DONE, FAILED, UNUSABLE = 0, 1, 2
_START_SECONDS = 30.0
_STOP_SECONDS = 30.0
_QUESTION = "What does a receipt prove?"


class TourError(Exception):
    """A step did not come out as it must; the text says which and how."""


@dataclass(slots=True)
class Call:
    """One call of the tour and what belongs to it."""

    name: str
    captured: Captured
    key: str  # the API key that may read its receipt
    files: dict[str, Path]  # receipt, request, response
    committed: tuple[str, ...] = ()  # the bodies that its entries commit to


def run(data: Path | None, keep: bool) -> int:
    """Runs the tour and prints it; returns the exit status (0; 1 failed; 2 unusable).

    `data` is a new or empty directory for all files, which then stay; without it they lie in a
    temporary directory, removed at the end unless `keep`.
    """
    if find_spec("openai") is None:
        return _refuse("the demo calls the gateway with the official client, which is not "
                       "installed: pip install 'aegis-c[demo]'")  # fmt: skip
    try:
        if data is None:
            folder = Path(tempfile.mkdtemp(prefix="aegis-demo-"))
        else:
            folder = data.absolute()
            folder.mkdir(0o700, parents=True, exist_ok=True)
            if any(folder.iterdir()):
                return _refuse(f"{data} is not empty; name a new directory")
    except OSError as error:
        return _refuse(f"{data}: {error.strerror or error}")
    kept = keep or data is not None
    try:
        return _Tour(folder, kept).run()
    finally:
        if not kept:
            shutil.rmtree(folder, ignore_errors=True)


def _refuse(message: str) -> int:
    print(f"aegis-c demo: {message}", file=sys.stderr)
    return UNUSABLE


class _Tour:
    """The steps, in order; `folder` holds everything they make."""

    def __init__(self, folder: Path, kept: bool) -> None:
        self._folder = folder
        self._kept = kept
        self._ledger = folder / "gateway" / "ledger"
        self._vkey = self._ledger / "w0" / "log.vkey"
        self._step = 0
        # A terminal that cannot show what the model says must not end the tour.
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="backslashreplace")
        # Colours on a terminal, the same lines without them elsewhere.
        self._console = Console(highlight=False, soft_wrap=True, emoji=False)

    def run(self) -> int:
        started = time.monotonic()
        try:
            calls = self._call_the_gateway()
            self._verify(calls)
            self._tamper()
            self._summary(calls, time.monotonic() - started)
        except TourError as error:
            self._console.print(f"\n[bold red]FAILED[/]: {escape(str(error))}")
            if self._kept:
                self._say(f"the files are in {self._folder}")
            return FAILED
        return DONE

    # -- output ------------------------------------------------------------------------------

    def _title(self, text: str) -> None:
        self._step += 1
        self._console.print(f"\n[bold cyan]{self._step}. {escape(text)}[/]")

    def _say(self, text: str) -> None:
        self._console.print("   " + escape(text))

    def _good(self, text: str) -> None:
        self._console.print(f"   [green]{escape(text)}[/]")

    def _entry(self, index: int, text: str) -> None:
        self._console.print(f"   [dim]entry {index}: {escape(text)}[/]")

    # -- calls -------------------------------------------------------------------------------

    def _call_the_gateway(self) -> list[Call]:
        """Starts the gateway, makes the five calls, fetches their receipts, stops it."""
        keys = {role: "aegis-" + secrets.token_urlsafe(32) for role in ("caller", "admin")}
        self._title("A gateway, with the built-in model behind it")
        with self._gateway(self._settings(keys)) as url:
            self._say(f"aegis-c serve listens on {url}")
            self._say(f"the model is {MODEL_ID}: a small n-gram model, trained just now on the")
            self._say("project's own docs; expect their words, not their sense")
            from openai import DefaultHttpxClient, OpenAI

            # No proxy of the environment: everything stays on this machine.
            http = DefaultHttpxClient(trust_env=False)
            with OpenAI(
                base_url=f"{url}/v1", api_key=keys["caller"], max_retries=0, http_client=http
            ) as client:
                calls = self._calls(client, http, keys)
                self._receipts(http, url, calls)
        return calls

    def _settings(self, keys: dict[str, str]) -> Path:
        """Writes the settings file of the gateway; the keys stand in it as hashes only."""
        lines = ["# Settings of the demo's gateway: aegis-c serve --config <this file>"]
        lines += ['host = "127.0.0.1"', "port = 0"]
        lines.append(f"data = {json.dumps(str(self._folder / 'gateway'))}")
        lines += ["", "[evidence]", 'analysis = "all"']
        for role, key in keys.items():
            digest = hashlib.sha256(key.encode()).hexdigest()
            lines += ["", "[[keys]]", f'id = "demo-{role}"', f'sha256 = "{digest}"']
            lines += ['tenant = "demo"' if role == "caller" else 'tenant = "operator"']
            lines.append(f'roles = ["{role}"]')
        path = self._folder / "aegis.toml"
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        secret = self._folder / "keys.txt"
        secret.touch(mode=0o600)
        secret.write_text("".join(f"{role} {key}\n" for role, key in keys.items()))
        return path

    @contextlib.contextmanager
    def _gateway(self, settings: Path) -> Iterator[str]:
        """The gateway as a process; yields its address, and stops it in an orderly way."""
        log = self._folder / "gateway.log"
        environment = {k: v for k, v in os.environ.items() if not k.startswith("AEGIS_")}
        with log.open("wb") as errors:
            process = subprocess.Popen(
                [sys.executable, "-m", "aegis_c.cli", "serve", "--config", str(settings)],
                stdout=subprocess.PIPE,
                stderr=errors,
                env=environment,
            )
        # A gateway that hangs at start is ended, which ends the reading below.
        timer = threading.Timer(_START_SECONDS, process.kill)
        timer.start()
        try:
            assert process.stdout is not None
            for line in process.stdout:
                if found := re.search(rb"listening on (http://[^;\s]+)", line):
                    break
            else:
                raise TourError(f"the gateway did not start: {_tail(log)}")
            timer.cancel()
            yield found[1].decode()
            process.terminate()
            try:
                status = process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                raise TourError("the gateway did not stop when asked to") from None
            if status != 0:
                raise TourError(f"the gateway ended with status {status}: {_tail(log)}")
        finally:
            timer.cancel()
            if process.poll() is None:
                process.kill()
            with process:
                pass  # closes the pipe and waits

    def _calls(self, client: OpenAI, http: Any, keys: dict[str, str]) -> list[Call]:
        import openai

        exchanges = capture(client)
        calls: list[Call] = []

        def took(name: str, status: int, key: str = "caller") -> None:
            captured = exchanges.last
            if captured is None or any(call.captured is captured for call in calls):
                raise TourError(f"{name}: the exchange was not captured")
            if captured.status != status or captured.request_id is None:
                raise TourError(f"{name}: expected {status} with an x-request-id, got {captured}")
            calls.append(Call(name, captured, keys[key], self._keep(name, captured)))

        ask: dict[str, Any] = {
            "model": MODEL_ID,
            "messages": [{"role": "user", "content": _QUESTION}],
            "max_tokens": 60,
            "temperature": 0.6,
        }
        try:
            self._title(f"Two calls with the official openai client: {_QUESTION}")
            answer = client.chat.completions.create(**ask, logprobs=True, top_logprobs=5)
            took("plain", 200)
            self._say(f"plain:    {answer.choices[0].message.content}")
            self._console.print("   streamed: ", end="")
            for chunk in client.chat.completions.create(
                **ask, stream=True, stream_options={"include_usage": True}
            ):
                for choice in chunk.choices:
                    self._console.print(escape(choice.delta.content or ""), end="")
            self._console.print()
            took("stream", 200)

            self._title("Three calls that are refused")
            wrong = client.with_options(api_key="not-a-key")
            try:
                wrong.chat.completions.create(**ask)
            except openai.AuthenticationError as error:
                self._say(f"wrong key:     401 {_message(error.body)}")
            took("wrong-key", 401, "admin")
            try:
                client.chat.completions.create(**{**ask, "model": "no-such-model"})
            except openai.NotFoundError as error:
                self._say(f"unknown model: 404 {_message(error.body)}")
            took("unknown-model", 404)
            # The client would never send this, so it goes by the HTTP client below it.
            refused = http.post(
                f"{client.base_url}chat/completions",
                content=b"this is not JSON",
                headers={
                    "authorization": f"Bearer {keys['caller']}",
                    "content-type": "application/json",
                },
            )
            self._say(f"not JSON:      400 {_message(refused.json())}")
            took("not-json", 400)
        except openai.OpenAIError as error:
            log = _tail(self._folder / "gateway.log")
            raise TourError(f"a call failed: {error}\n{log}") from error
        return calls

    def _keep(self, name: str, captured: Captured) -> dict[str, Path]:
        """Writes the caller's own octets of one exchange."""
        folder = self._folder / "calls"
        folder.mkdir(exist_ok=True)
        files = {part: folder / f"{name}.{part}" for part in ("request", "response")}
        files["request"].write_bytes(captured.request)
        files["response"].write_bytes(captured.response)
        return {**files, "receipt": folder / f"{name}.receipt.json"}

    def _receipts(self, http: Any, url: str, calls: list[Call]) -> None:
        self._title("What the ledger says of each, from its receipt")
        for call in calls:
            address = f"{url}/v1/receipts/{call.captured.request_id}?wait=1"
            reply = http.get(address, headers={"authorization": f"Bearer {call.key}"}, timeout=40)
            if reply.status_code != 200:
                raise TourError(f"{call.name}: no receipt: {reply.status_code} {reply.text}")
            call.files["receipt"].write_bytes(reply.content)
            receipt = reply.json()
            who = ", with the admin key" if call.name == "wrong-key" else ""
            self._say(f"{call.name}: receipt {receipt['id']}{who}")
            for item in receipt["entries"]:
                if item["proof"] is None:
                    raise TourError(f"{call.name}: entry {item['index']} was not published in time")
                self._entry(item["index"], item["entry"])
            logged = [json.loads(item["entry"]) for item in receipt["entries"]]
            call.committed = tuple(
                role for role in ("request", "response") if any(role in entry for entry in logged)
            )
            if "response" not in call.committed:
                raise TourError(f"{call.name}: no entry commits to its response")
        stranger = http.get(
            f"{url}/v1/receipts/{calls[0].captured.request_id}",
            headers={"authorization": "Bearer not-a-key"},
        )
        if stranger.status_code != 401:
            raise TourError(f"a stranger's request for a receipt got {stranger.status_code}")

    # -- proofs ------------------------------------------------------------------------------

    def _verify(self, calls: list[Call]) -> None:
        self._title("The gateway is stopped; each receipt is verified offline")
        self._say("with `aegis-c verify RECEIPT --vkey KEY --request F --response F`, where F are")
        self._say("the caller's own copies of both bodies, kept by aegis_c.capture:")
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            results = list(pool.map(self._verify_one, calls))
        for call, result in zip(calls, results, strict=True):
            if result.returncode != 0:
                raise TourError(f"{call.name} did not verify:\n{result.stdout}{result.stderr}")
            found = json.loads(result.stdout)
            expected = {role: len(getattr(call.captured, role)) for role in call.committed}
            if not (found["ok"] and found["settled"] and found["bodies"] == expected):
                raise TourError(f"{call.name}: verified something else: {result.stdout}")
            indices = ", ".join(str(entry["index"]) for entry in found["entries"])
            bodies = ", ".join(f"{role} {size} bytes" for role, size in expected.items())
            self._good(f"verified: {call.name:13}  entries {indices}; {bodies}")
            if "request" not in call.committed:
                self._say(
                    "          (refused before its body was read: there is no request to log)"
                )
        # The same check must refuse a body that differs in one bit.
        plain = calls[0]
        forged = bytearray(plain.captured.response)
        forged[len(forged) // 2] ^= 1
        path = self._folder / "calls" / "plain.forged"
        path.write_bytes(forged)
        result = self._verify_one(replace(plain, files={**plain.files, "response": path}))
        if result.returncode != 1:
            raise TourError(f"a forged response was not refused:\n{result.stdout}{result.stderr}")
        error = json.loads(result.stdout)["error"]
        self._good("refused:  plain, one bit of its response changed:")
        self._quote(f"{error['what']} ({error['where']})")

    def _verify_one(self, call: Call) -> subprocess.CompletedProcess[str]:
        """`aegis-c verify` with the receipt and each body that an entry commits to."""
        command = ["verify", str(call.files["receipt"]), "--vkey", str(self._vkey), "--json"]
        for role in call.committed:
            command += [f"--{role}", str(call.files[role])]
        return _aegis(command)

    def _tamper(self) -> None:
        self._title("One byte of a copied ledger is changed")
        result = _aegis(["ledger", "fsck", str(self._ledger), "--vkey", str(self._vkey)])
        if result.returncode != 0:
            raise TourError(f"fsck of the ledger failed:\n{result.stdout}{result.stderr}")
        self._good("aegis-c ledger fsck, the ledger as it is: whole")
        copy = self._folder / "tampered"
        shutil.copytree(self._ledger, copy)
        bundle = next(p for p in sorted(copy.rglob("tile/entries/**/*")) if p.is_file())
        octets = bytearray(bundle.read_bytes())
        at = octets.index(b'"status":401,') + len(b'"status":')
        octets[at] ^= 6  # 401 becomes 201: as if the intruder had been let in
        bundle.chmod(0o600)
        bundle.write_bytes(octets)
        self._say(f"byte {at} of {bundle.relative_to(self._folder)}: status 401 becomes 201")
        result = _aegis(["ledger", "fsck", str(copy), "--vkey", str(self._vkey)])
        where = str(bundle.relative_to(copy / "w0"))
        if result.returncode != 1 or where not in result.stdout:
            raise TourError(f"fsck did not find the change:\n{result.stdout}{result.stderr}")
        self._good("aegis-c ledger fsck, the changed copy: refused, and it says where:")
        self._quote(result.stdout)

    def _quote(self, text: str) -> None:
        for line in text.strip().splitlines():
            self._console.print(f"     [yellow]{escape(line)}[/]")

    def _summary(self, calls: list[Call], seconds: float) -> None:
        self._title(f"Proven, in {seconds:.1f} s")
        for line in (
            f"{len(calls)} calls, answered and refused, each left entries in a signed Merkle log;",
            "each receipt shows, without the gateway, that its entries are in the log that was",
            "signed, and that the bodies the caller holds are those that were logged;",
            "one changed bit in a body, or one changed byte in the ledger, is found.",
        ):
            self._say(line)
        if not self._kept:
            self._say("The files were temporary; --data DIR keeps them.")
            return
        self._say("")
        self._say(f"files in     {self._folder}")
        self._say("  calls/     request, response and receipt of each call")
        self._say(
            "  gateway/   ledger (publishable) and private files; its key is ledger/w0/log.vkey"
        )
        self._say("  tampered/  the changed copy of the ledger")
        self._say("  aegis.toml, keys.txt   the gateway's settings; the two API keys")
        self._say(f"go on with   aegis-c serve --config {self._folder / 'aegis.toml'}")


def _aegis(arguments: list[str]) -> subprocess.CompletedProcess[str]:
    """Runs `aegis-c` with these arguments in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "aegis_c.cli", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def _message(body: object) -> str:
    """The text of an OpenAI-shaped error, with or without its outer member."""
    error = body.get("error", body) if isinstance(body, dict) else {}
    return str(error.get("message", body)) if isinstance(error, dict) else str(body)


def _tail(log: Path) -> str:
    """The last lines of the gateway's log."""
    return "\n".join(log.read_text(errors="replace").splitlines()[-20:])
