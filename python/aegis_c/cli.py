"""The `aegis-c` command.

Exit status: 0 verified or done, 1 the check failed, 2 unusable input. Every command that
reports something takes --json. Heavy modules are imported by the commands that need them.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from aegis_c import AegisError, __version__, config_tools
from aegis_c.ledger import layout, verify, wal_tools

if TYPE_CHECKING:
    from aegis_c.ledger.rebuild import Progress
    from aegis_c.ledger.report import Report
    from aegis_c.ledger.tiles import TileReader

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
ledger_app = typer.Typer(no_args_is_help=True, help="Check, prove from and read a ledger.")
keys_app = typer.Typer(no_args_is_help=True, help="API keys of callers.")
app.add_typer(ledger_app, name="ledger")
app.add_typer(keys_app, name="keys")
app.add_typer(wal_tools.app, name="wal")
app.add_typer(config_tools.app, name="config")

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]
LogPath = Annotated[
    Path,
    typer.Argument(
        metavar="DIR",
        help="A shard's published folder, the folder above it, or the data directory.",
        show_default=False,
    ),
]
Vkey = Annotated[
    str | None,
    typer.Option("--vkey", metavar="KEY-OR-FILE", help="The log's verifier key, or its file."),
]


def main() -> None:
    """Entry point of the `aegis-c` command."""
    try:
        app()
    except verify.FormatError as error:
        _fail(error, UNUSABLE)
    except verify.VerificationError as error:
        _fail(error, FAILED)
    except (layout.LayoutError, AegisError, OSError) as error:
        _fail(error, UNUSABLE)
    except KeyboardInterrupt:
        raise SystemExit(130) from None


def _fail(error: Exception, status: int) -> NoReturn:
    """Says what went wrong in one block, as JSON when the command was asked for it."""
    if "--json" in sys.argv[1:]:
        members = ("what", "where", "expected", "found", "advice")
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
    from aegis_c.gateway.serve import run
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
    if not result.settled:
        print("note: a stream was begun and this receipt does not say how it ended")


def _read_input(path: str, what: str) -> bytes:
    return sys.stdin.buffer.read() if path == "-" else verify.read_file(path, what)


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
        "settled": result.settled,
    }


# ---------------------------------------------------------------- the ledger


@ledger_app.command()
def fsck(
    directory: LogPath,
    vkey: Vkey = None,
    checkpoint: Annotated[
        list[Path] | None,
        typer.Option(metavar="F", help="A checkpoint that you kept; may be repeated."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Rebuild a published log from its entries and compare every file with it."""
    from aegis_c.ledger import fsck as checks

    key = None if vkey is None else verify.load_vkey(vkey)
    folders = layout.published_folders(directory)
    reports = []
    for folder in folders:
        with _progress(f"{folder.name}: checking entries", quiet=as_json) as progress:
            kept = checkpoint or ()
            report = checks.check_shard(folder, vkey=key, checkpoints=kept, progress=progress)
            reports.append(report)
    ok = all(report.ok for report in reports)
    if as_json:
        _print_json({"ok": ok, "shards": [report.to_json() for report in reports]})
    else:
        for report in reports:
            _print_report(report, own_key=key is None)
    raise typer.Exit(VERIFIED if ok else FAILED)


def _print_report(report: Report, *, own_key: bool) -> None:
    if report.ok:
        print(f"whole: {report.folder}")
        print(f"  log        {report.origin}")
        print(f"  signed     tree of {report.size} entries, root {report.root}")
        print(f"  compared   {report.files} files, {report.octets} bytes of tiles and bundles")
        if report.checkpoints > 1:
            print(f"  contains   all {report.checkpoints} checkpoints that were kept")
        if own_key:
            print(f"  key        {report.vkey} (the folder's own: give --vkey to hold it")
            print("             against a key that you had from elsewhere)")
    else:
        print(f"DAMAGED: {report.folder}")
        for problem in report.problems:
            print("  " + str(problem).replace("\n", "\n  "))
    for note in report.notes:
        print(f"  note: {note}")


@contextmanager
def _progress(title: str, *, quiet: bool) -> Iterator[Progress | None]:
    """A progress bar for work of more than a second; plain lines when not on a terminal."""
    started = time.monotonic()
    if quiet:
        yield None
    elif sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import Progress as Bar

        with Bar(console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task(title, total=None, visible=False)

            def show(done: int, total: int) -> None:
                late = time.monotonic() - started > 1
                bar.update(task, completed=done, total=total, visible=late)

            yield show
    else:
        spoken = [started]

        def say(done: int, total: int) -> None:
            now = time.monotonic()
            if now - spoken[0] > 5:
                spoken[0] = now
                print(f"{title}: {done} of {total}", file=sys.stderr, flush=True)

        yield say


def _open_log(directory: Path, vkey: str | None) -> tuple[TileReader, verify.VerifierKey, bytes]:
    """A reader of the one shard that `directory` means; its key, its signed checkpoint."""
    from aegis_c.ledger.tiles import TileReader

    folders = layout.published_folders(directory)
    if len(folders) > 1:
        names = ", ".join(str(folder) for folder in folders)
        raise layout.LayoutError(f"{directory} holds several logs; name one of {names}")
    folder = folders[0]
    key = verify.load_vkey(vkey or str(folder / layout.VKEY))
    path = folder / layout.CHECKPOINT
    note = verify.read_file(str(path), "checkpoint")
    checkpoint = verify.open_checkpoint(note, key, str(path))
    return TileReader(folder, checkpoint.size), key, note


def _tiles(read: Callable[[], Any]) -> Any:
    """Runs what reads tiles; a damaged file becomes a failed check."""
    from aegis_c.ledger.tiles import TileError

    try:
        return read()
    except TileError as error:
        raise verify.VerificationError(
            error.what,
            error.path if error.offset is None else f"{error.path}, offset {error.offset}",
            advice="run `aegis-c ledger fsck` on this log",
        ) from None


@ledger_app.command()
def prove(
    directory: LogPath,
    index: Annotated[int | None, typer.Option(min=0, help="Index of the entry.")] = None,
    request_id: Annotated[str | None, typer.Option("--id", help="Or: its request id.")] = None,
    entry_file: Annotated[
        Path | None, typer.Option("--entry", metavar="F", help="Write the entry's bytes to F.")
    ] = None,
    vkey: Vkey = None,
    as_json: Json = False,
) -> None:
    """Print the tlog-proof of an entry against the published checkpoint.

    Needs the published files only: no key, no running gateway.
    """
    if (index is None) == (request_id is None):
        _fail(ValueError("give either --index or --id"), UNUSABLE)
    reader, key, note = _open_log(directory, vkey)
    if index is None:
        found = _tiles(lambda: [i for i, e in _matching(reader, {"id": request_id})])
        if not found:
            _fail(ValueError(f"no published entry has the id {request_id}"), UNUSABLE)
        if len(found) > 1 and not as_json:
            print(f"note: entries {found} have this id; this is the first", file=sys.stderr)
        index = found[0]
    if index >= reader.size:
        what = f"there is no entry {index}: the published log has {reader.size} entries"
        _fail(ValueError(what), UNUSABLE)
    entry, proof = _tiles(lambda: reader.prove(index, note))
    verify.verify_proof(proof, entry, key, f"{reader.folder}, entry {index}")
    if entry_file is not None:
        entry_file.write_bytes(entry)
    if as_json:
        _print_json({"index": index, "entry": entry.decode(), "proof": proof.decode()})
    else:
        sys.stdout.write(proof.decode())


def _matching(
    reader: TileReader, wanted: dict[str, str | None], start: int = 0, stop: int | None = None
) -> Iterator[tuple[int, bytes]]:
    """Entries whose members have the wanted values (None: any), in order."""
    filters = {name: value for name, value in wanted.items() if value is not None}
    for index, entry in reader.entries(start, stop):
        if filters:
            try:
                members = json.loads(entry)
            except ValueError:
                continue
            if any(members.get(name) != value for name, value in filters.items()):
                continue
        yield index, entry


@ledger_app.command()
def dump(
    directory: LogPath,
    start: Annotated[int, typer.Option("--from", min=0, help="First index.")] = 0,
    stop: Annotated[int | None, typer.Option("--to", min=0, help="Index to stop before.")] = None,
    request_id: Annotated[str | None, typer.Option("--id", help="Only this request id.")] = None,
    kind: Annotated[str | None, typer.Option(help="Only this kind.")] = None,
    tenant: Annotated[str | None, typer.Option(help="Only this tenant.")] = None,
    vkey: Vkey = None,
    as_json: Json = False,
) -> None:
    """Print published entries, one a line: index, tab, entry. --json: one object a line.

    They are printed as they are found; `fsck` says whether they are those that were logged.
    """
    reader, _, _ = _open_log(directory, vkey)
    wanted = {"id": request_id, "kind": kind, "tenant": tenant}

    def write() -> None:
        for index, entry in _matching(reader, wanted, start, stop):
            text = entry.decode("utf-8", "backslashreplace")
            if as_json:
                _print_json({"index": index, "entry": text})
            else:
                print(f"{index}\t{text}")

    try:
        _tiles(write)
    except BrokenPipeError:
        sys.stderr.close()  # `| head` went away: nothing to say, and nowhere to say it


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
