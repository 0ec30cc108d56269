"""The `aegis-c` command.

Exit status: 0 verified or done, 1 the check failed, 2 unusable input. Every command that
reports something takes --json. Heavy modules are imported by the commands that need them.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from aegis_c import AegisError, __version__, config_tools
from aegis_c.ledger import advice, entry_schema, layout, ledger_tools, verify, wal_tools

VERIFIED = 0
FAILED = 1
UNUSABLE = 2

app = typer.Typer(
    name="aegis-c",
    help="Governance gateway for LLM traffic, with receipts that anyone can verify offline.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
keys_app = typer.Typer(no_args_is_help=True, help="API keys of callers.")
app.add_typer(ledger_tools.app, name="ledger")
app.add_typer(keys_app, name="keys")
app.add_typer(wal_tools.app, name="wal")
app.add_typer(config_tools.app, name="config")

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]


def main() -> None:
    """Entry point of the `aegis-c` command."""
    try:
        app()
    except verify.FormatError as error:
        _fail(advice.advise(error), UNUSABLE)
    except verify.VerificationError as error:
        _fail(advice.advise(error), FAILED)
    except (layout.LayoutError, AegisError, OSError) as error:
        _fail(error, UNUSABLE)
    except KeyboardInterrupt:
        raise SystemExit(130) from None


def _fail(error: Exception, status: int) -> NoReturn:
    """Says what went wrong in one block, as JSON when the command was asked for it."""
    if "--json" in sys.argv[1:]:
        members = ("what", "where", "file", "offset", "index", "expected", "found", "advice")
        known = {name: getattr(error, name, None) for name in members}
        known["what"] = known["what"] or str(error)
        print(json.dumps({"ok": False, "error": {k: v for k, v in known.items() if v}}))
    else:
        title = "NOT VERIFIED" if status == FAILED else "error"
        print(f"{title}: {error}", file=sys.stderr)
    raise SystemExit(status)


def _print_json(value: Any) -> None:
    print(json.dumps(value))


@app.callback(invoke_without_command=True)
def _options(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        print(f"aegis-c {__version__}")
        raise typer.Exit


# ---------------------------------------------------------------- running


@app.command()
def serve(
    config: Annotated[Path | None, typer.Option(help="Settings file (TOML).")] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="Port; 0 takes a free one.")] = None,
    uds: Annotated[Path | None, typer.Option(help="Unix socket to listen on instead.")] = None,
    data: Annotated[Path | None, typer.Option(help="Data directory.")] = None,
    upstream: Annotated[
        str | None,
        typer.Option(metavar="URL", help="OpenAI-compatible base URL; none: a built-in model."),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(metavar="N", help="Processes that share the port.")
    ] = None,
) -> None:
    """Run the gateway. Options win over AEGIS_* variables, these over the settings file."""
    try:
        from aegis_c.gateway.serve import run
    except ImportError as error:
        _fail(error, UNUSABLE)
    from aegis_c.gateway.settings import SettingsError, load_settings

    options = {
        "host": host,
        "port": port,
        "uds": uds,
        "data": data,
        "upstream": None if upstream is None else {"url": upstream},
        "workers": workers,
    }
    try:
        settings = load_settings(config, **options)
    except SettingsError as error:
        _fail(error, UNUSABLE)
    raise typer.Exit(run(settings, lambda: load_settings(config, **options)))


@app.command()
def demo(
    data: Annotated[Path | None, typer.Option(help="Directory for the files it makes.")] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Keep the files.")] = False,
) -> None:
    """Show the whole road once: calls, receipts, verification, a tampered ledger."""
    from aegis_c.demo.guided import run

    raise typer.Exit(run(data, keep))


# ---------------------------------------------------------------- verifying


@app.command("verify")
def verify_command(
    receipt: Annotated[str, typer.Argument(help="JSON receipt or tlog-proof; - reads stdin.")],
    vkey: Annotated[
        str,
        typer.Option("--vkey", metavar="KEY-OR-FILE", help="The log's verifier key, or its file."),
    ],
    entry: Annotated[
        str | None, typer.Option(metavar="F", help="The entry's exact bytes (for a tlog-proof).")
    ] = None,
    request: Annotated[
        str | None, typer.Option(metavar="F", help="The request body's exact bytes.")
    ] = None,
    response: Annotated[
        str | None, typer.Option(metavar="F", help="The response body's exact bytes.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Verify a receipt offline: signature, inclusion, schema, and the bodies that are given."""
    given = {"entry": entry, "request": request, "response": response}
    bodies = {name: _read_input(path, name) for name, path in given.items() if path is not None}
    key = verify.load_vkey(vkey)
    result = verify.verify_receipt(_read_input(receipt, "receipt"), key, **bodies)
    for one in result.entries:
        entry_schema.check_schema(one.entry, f"entry {one.index}")
    if as_json:
        _print_json(_verified_json(result))
        return
    for one in result.entries:
        head, body = one.checkpoint, one.entry
        print(f"verified: entry {one.index} ({body['kind']}) is in {head.origin}")
        print(f"  logged as  {body['id']} at {body['time']}")
        print(f"  signed     tree of {head.size} entries, root {head.root.hex()}")
    for role, size in result.bodies.items():
        print(f"verified: the {role} is the one that was logged, all {size} bytes")
    if not _is_settled(result):
        print("note: a stream was begun and this receipt does not say how it ended")


def _read_input(path: str, what: str) -> bytes:
    return sys.stdin.buffer.read() if path == "-" else verify.read_file(path, what)


def _is_settled(result: verify.Verified) -> bool:
    """False when a stream was begun and the receipt does not say how it ended."""
    settled = {one.entry.get("of") for one in result.entries if one.entry["kind"] == "settle"}
    intents = {one.index for one in result.entries if one.entry["kind"] == "intent"}
    return intents <= settled


def _verified_json(result: verify.Verified) -> dict[str, Any]:
    return {
        "ok": True,
        "vkey": str(result.key),
        "entries": [
            {
                "index": one.index,
                "entry": one.entry,
                "origin": one.checkpoint.origin,
                "size": one.checkpoint.size,
                "root": one.checkpoint.root.hex(),
            }
            for one in result.entries
        ],
        "bodies": result.bodies,
        "settled": _is_settled(result),
    }


# ---------------------------------------------------------------- keys


@keys_app.command("create")
def create_key(
    name: Annotated[str, typer.Option("--id", help="The key's name in entries.")] = "key-1",
    tenant: Annotated[str, typer.Option(help="Whose key it is.")] = "default",
    role: Annotated[
        list[str] | None, typer.Option(help="caller, auditor or admin; may be repeated.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Make an API key. The key is shown this once; the settings keep only its hash."""
    from pydantic import ValidationError

    from aegis_c.gateway.settings import ApiKey

    key = "aegis-" + secrets.token_urlsafe(32)
    digest = hashlib.sha256(key.encode()).hexdigest()
    roles = role or ["caller"]
    try:
        ApiKey.model_validate({"id": name, "sha256": digest, "tenant": tenant, "roles": roles})
    except ValidationError as error:
        first = error.errors()[0]
        option = "--" + str(first["loc"][0]).removesuffix("s")
        _fail(ValueError(f"{option}: {first['msg']}, not {first['input']!r}"), UNUSABLE)
    lines = [
        "[[keys]]",
        f"id = {json.dumps(name)}",
        f'sha256 = "{digest}"',
        f"tenant = {json.dumps(tenant)}",
        f"roles = {json.dumps(sorted(set(roles)))}",
    ]
    if as_json:
        _print_json({"key": key, "id": name, "sha256": digest, "tenant": tenant, "roles": roles})
        return
    print(f"key (shown only now): {key}\n\nadd to the settings file:\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
