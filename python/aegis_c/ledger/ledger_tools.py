"""`aegis-c ledger`: check, prove from, read and search published logs.

Every command takes one shard's published folder, the folder above it, or the data directory.
Exit status: 0 verified or done, 1 the check failed, 2 unusable input.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import layout, published, verify
from .published import Query
from .tiles import TileError

if TYPE_CHECKING:
    from .rebuild import Progress
    from .report import Report

app = typer.Typer(no_args_is_help=True, help="Check, prove from, read and search a ledger.")

_VERIFIED, _FAILED = 0, 1

Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]
LogPath = Annotated[
    Path,
    typer.Argument(
        metavar="DIR",
        help="A shard's published folder, the folder above it, or the data directory.",
        show_default=False,
    ),
]
Vkeys = Annotated[
    list[str] | None,
    typer.Option(
        "--vkey",
        metavar="KEY-OR-FILE",
        help="The log's verifier key, or a file of such keys, one a line; may be repeated.",
    ),
]
RequestId = Annotated[str | None, typer.Option("--id", help="Only this request id.")]
Kind = Annotated[str | None, typer.Option(help="Only this kind.")]
Tenant = Annotated[str | None, typer.Option(help="Only this tenant.")]


def _print_json(value: Any) -> None:
    print(json.dumps(value))


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


@contextmanager
def _reading() -> Iterator[None]:
    """Around what reads tiles and prints: damage is a failed check; a reader may go away."""
    try:
        yield
    except TileError as error:
        raise published.damaged(error) from None
    except BrokenPipeError:
        sys.stderr.close()  # `| head` went away: nothing to say, and nowhere to say it


# ---- fsck


@app.command()
def fsck(
    directory: LogPath,
    vkey: Vkeys = None,
    checkpoint: Annotated[
        list[Path] | None,
        typer.Option(metavar="F", help="A checkpoint that you kept; may be repeated."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Rebuild a published log from its entries and compare every file with it."""
    from . import fsck as checks

    keys = published.load_keys(vkey or [])
    folders = layout.published_folders(directory)
    reports = []
    for folder in folders:
        with _progress(f"{folder.name}: checking entries", quiet=as_json) as progress:
            key = published.key_of(folder, keys)
            kept = checkpoint or ()
            report = checks.check_shard(folder, vkey=key, checkpoints=kept, progress=progress)
            reports.append(report)
    ok = all(report.ok for report in reports)
    if as_json:
        _print_json({"ok": ok, "shards": [report.to_json() for report in reports]})
    else:
        for report in reports:
            _print_report(report, own_key=not keys)
    raise typer.Exit(_VERIFIED if ok else _FAILED)


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


# ---- prove


@app.command()
def prove(
    directory: LogPath,
    index: Annotated[int | None, typer.Option(min=0, help="Index of the entry.")] = None,
    request_id: Annotated[str | None, typer.Option("--id", help="Or: its request id.")] = None,
    entry_file: Annotated[
        Path | None, typer.Option("--entry", metavar="F", help="Write the entry's bytes to F.")
    ] = None,
    vkey: Vkeys = None,
    as_json: Json = False,
) -> None:
    """Print the tlog-proof of an entry against the published checkpoint.

    Needs the published files only: no key, no running gateway.
    """
    keys = published.load_keys(vkey or [])
    with _reading():
        if index is not None and request_id is None:
            log = published.open_log(directory, keys)
        elif request_id is not None and index is None:
            log, index = _first(published.open_logs(directory, keys), request_id, quiet=as_json)
        else:
            raise verify.FormatError("give either --index or --id")
        entry, proof = log.prove(index)
        if entry_file is not None:
            entry_file.write_bytes(entry)
        if as_json:
            members = {"shard": log.name, "index": index, "entry": entry.decode()}
            _print_json({**members, "proof": proof.decode()})
        else:
            sys.stdout.write(proof.decode())


def _first(logs: list[published.Log], request_id: str, *, quiet: bool) -> tuple[published.Log, int]:
    """The first entry of a request, whichever shard it lies in."""
    query = Query({"id": request_id})
    for log in logs:
        found = [index for index, _ in published.matching(log, query)]
        if len(found) > 1 and not quiet:
            print(f"note: entries {found} have this id; this is the first", file=sys.stderr)
        if found:
            return log, found[0]
    raise verify.FormatError(f"no published entry has the id {request_id}")


# ---- dump and search


@app.command()
def dump(
    directory: LogPath,
    start: Annotated[int, typer.Option("--from", min=0, help="First index.")] = 0,
    stop: Annotated[int | None, typer.Option("--to", min=0, help="Index to stop before.")] = None,
    request_id: RequestId = None,
    kind: Kind = None,
    tenant: Tenant = None,
    vkey: Vkeys = None,
    as_json: Json = False,
) -> None:
    """Print published entries, one a line: index, tab, entry. --json: one object a line.

    They are printed as they are found; `fsck` says whether they are those that were logged.
    With several shards the shard's name stands first.
    """
    query = _query(id=request_id, kind=kind, tenant=tenant)
    logs = published.open_logs(directory, published.load_keys(vkey or []))
    with _reading():
        for log in logs:
            for index, entry in published.matching(log, query, start, stop):
                _print_entry(log, index, entry, named=len(logs) > 1, as_json=as_json)


@app.command()
def search(
    directory: LogPath,
    request_id: RequestId = None,
    client_id: Annotated[str | None, typer.Option(help="Only this id of the client's.")] = None,
    session: Annotated[str | None, typer.Option(help="Only this session.")] = None,
    kind: Kind = None,
    tenant: Tenant = None,
    key: Annotated[str | None, typer.Option(help="Only this key (its id).")] = None,
    model: Annotated[str | None, typer.Option(help="Only this model, as asked for.")] = None,
    status: Annotated[str | None, typer.Option(help="Only this status, number or word.")] = None,
    since: Annotated[str, typer.Option(help="From this time on (ISO 8601, UTC).")] = "",
    until: Annotated[str, typer.Option(help="Before this time.")] = "",
    text: Annotated[str, typer.Option(help="Only with this text, anywhere in the entry.")] = "",
    limit: Annotated[int | None, typer.Option(min=1, help="Stop after so many.")] = None,
    vkey: Vkeys = None,
    as_json: Json = False,
) -> None:
    """Find published entries in all shards; each that is printed is proven to be in the log.

    One a line: shard, tab, index, tab, entry. --json: one object a line.
    """
    query = _query(
        *(since, until, text),
        id=request_id,
        client_id=client_id,
        session=session,
        kind=kind,
        tenant=tenant,
        key=key,
        model=model,
        status=int(status) if status is not None and status.isdecimal() else status,
    )
    logs = published.open_logs(directory, published.load_keys(vkey or []))
    left = sys.maxsize if limit is None else limit
    with _reading():
        for log in logs:
            with _progress(f"{log.name}: searching", quiet=as_json) as progress:
                for index, entry in published.matching(log, query, progress=progress):
                    log.check(index, entry)
                    _print_entry(log, index, entry, named=True, as_json=as_json)
                    left -= 1
                    if left == 0:
                        return


def _query(
    since: str = "", until: str = "", text: str = "", /, **members: str | int | None
) -> Query:
    wanted = {name: value for name, value in members.items() if value is not None}
    return Query(wanted, since, until, text)


def _print_entry(
    log: published.Log, index: int, entry: bytes, *, named: bool, as_json: bool
) -> None:
    text = entry.decode("utf-8", "backslashreplace")
    if as_json:
        _print_json({"shard": log.name, "index": index, "entry": text})
    else:
        print(f"{log.name}\t{index}\t{text}" if named else f"{index}\t{text}")


# ---- accept-rollback


@app.command("accept-rollback")
def accept_rollback(
    directory: Annotated[
        Path,
        typer.Argument(metavar="DIR", help="The data directory, or a shard's published folder."),
    ],
    shard: Annotated[
        str | None, typer.Option(help="The shard (w0, w1, ...), when there are several.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Go on with a log that is older than, or differs from, what was signed last.

    The one command that changes a log, and only one that refuses to open because of that. First
    look for a newer copy to restore. The break is recorded as an entry; what was signed before is
    kept in the private folder. Stop the gateway first.
    """
    from . import rollback

    try:
        done = rollback.accept(layout.one_shard(directory, shard))
    except rollback.NothingToAccept as error:
        raise verify.FormatError(str(error)) from None
    if as_json:
        _print_json({"ok": True, **asdict(done)})
        return
    print(f"accepted: {done.shard} goes on with {done.size} entries")
    print(f"  given up   tree of {done.lost_size} entries, root {done.lost_root}")
    print(f"  recorded   in entry {done.entry} (admin, rollback)")
    print(f"  kept       {done.kept}")
    print("  next       run `aegis-c ledger fsck`; tell those who hold receipts")
