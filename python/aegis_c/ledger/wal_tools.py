"""`aegis-c wal`: look at a write-ahead log, and save what can be saved of a damaged one.

verify and dump read only, also beside a live writer. salvage writes into a new directory.
accept-tail is the one command that changes a log, and copies it first. Exit status: 0 done or
verified, 1 the check failed, 2 unusable input.
"""

from __future__ import annotations

import base64
import json
import shutil
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from aegis_c import AegisError, WalError, WalReader, WalWriter

app = typer.Typer(name="wal", help="Verify, dump and mend write-ahead logs.", no_args_is_help=True)

_FAILED, _UNUSABLE = 1, 2

Directory = Annotated[Path, typer.Argument(help="The directory that holds the file LOG.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


def _describe(error: BaseException) -> dict[str, Any]:
    """What an error says, as JSON members; those that do not apply are absent."""
    names = ("file", "offset", "seq", "expected", "found", "advice")
    detail = {name: getattr(error, name, None) for name in names}
    return {"error": str(error)} | {k: v for k, v in detail.items() if v is not None}


def _fail(error: BaseException, as_json: bool, status: int) -> NoReturn:
    if as_json:
        print(json.dumps({"ok": False} | _describe(error)))
    else:
        print(f"aegis-c wal: {error}", file=sys.stderr)
    raise typer.Exit(status)


def _status_of(error: AegisError) -> int:
    """2 when there is no log to look at, 1 when there is and it does not hold."""
    return _UNUSABLE if type(error) is WalError else _FAILED


@app.command()
def verify(directory: Directory, as_json: AsJson = False) -> None:
    """Check every live segment: headers, checksums, chain, sequence. Changes nothing."""
    try:
        found = WalReader.verify(directory)
    except AegisError as error:
        _fail(error, as_json, _status_of(error))
    except OSError as error:
        _fail(error, as_json, _UNUSABLE)
    if as_json:
        print(json.dumps({"ok": True} | found))
        return
    for segment in found["segments"]:
        print(
            f"segment {segment['segment']:>6}  sequence {segment['first_seq']} to"
            f" {segment['last_seq']}  {segment['valid_bytes']} bytes  epoch {segment['epoch']}"
        )
    print(found["notes"].strip())
    if found["live"]:
        print("a writer holds the log: its tail may be in motion")
    print("ok")


@app.command()
def dump(
    directory: Directory,
    start: Annotated[int, typer.Option("--from", help="First sequence number.")] = 0,
    archived: Annotated[bool, typer.Option(help="Read the archive as well.")] = False,
) -> None:
    """Print records as JSON lines: seq, and `text` (UTF-8) or else `base64`."""
    try:
        with WalReader(directory, from_seq=start, archived=archived) as reader:
            for seq, payload in reader:
                print(json.dumps(_record(seq, payload), ensure_ascii=False))
    except IndexError as error:
        _fail(error, False, _UNUSABLE)
    except AegisError as error:
        _fail(error, False, _status_of(error))


def _record(seq: int, payload: bytes) -> dict[str, Any]:
    try:
        return {"seq": seq, "text": payload.decode()}
    except UnicodeDecodeError:
        return {"seq": seq, "base64": base64.b64encode(payload).decode()}


def _segments(directory: Path) -> Iterator[tuple[int, Path]]:
    """Numbers and paths of segments in the directory and its archive, in order."""
    found = {}
    for folder in (directory / "archive", directory):
        for path in folder.glob("wal-" + "[0-9a-f]" * 16 + ".seg"):
            if path.is_file():
                found[int(path.name[4:20], 16)] = path
    yield from sorted(found.items())


def gaps(numbers: Iterable[int]) -> list[tuple[int, int]]:
    """Ranges (first, last) missing between ascending numbers."""
    missing, previous = [], None
    for number in numbers:
        if previous is not None and number > previous + 1:
            missing.append((previous + 1, number - 1))
        previous = number
    return missing


@app.command()
def salvage(
    directory: Directory,
    to: Annotated[Path, typer.Option("--to", help="A new directory for what is found.")],
    as_json: AsJson = False,
) -> None:
    """Read on past holes: whole records to TO/records.jsonl, what is lost to TO/report.json."""
    segments = list(_segments(directory)) if directory.is_dir() else []
    if not segments:
        _fail(WalError(f"no segments in {directory}"), as_json, _UNUSABLE)
    wal_id = 0
    log = directory / "LOG"
    if log.is_file() and (head := log.read_bytes()[:16])[:7] == b"AGWALOG" and len(head) == 16:
        wal_id = int.from_bytes(head[8:16], "little")
    try:
        to.mkdir(parents=True)
    except FileExistsError:
        what = f"{to} is there already: salvage writes into a new directory. Name another one"
        _fail(WalError(what), as_json, _UNUSABLE)
    except OSError as error:
        _fail(error, as_json, _UNUSABLE)
    seen: dict[int, int] = {}
    unreadable: list[dict[str, str]] = []
    with (to / "records.jsonl").open("w") as out:
        for number, path in segments:
            try:
                data = path.read_bytes()
            except OSError as error:
                unreadable.append({"file": str(path), "error": str(error)})
                continue
            for _offset, seq, payload in WalReader.salvage(data, number, wal_id):
                if seq not in seen:
                    seen[seq] = number
                    out.write(json.dumps(_record(seq, payload), ensure_ascii=False) + "\n")
    numbers = sorted(seen)
    report = {
        "records": len(numbers),
        "first_seq": numbers[0] if numbers else None,
        "last_seq": numbers[-1] if numbers else None,
        "lost": gaps(numbers),
        "unreadable": unreadable,
    }
    (to / "report.json").write_text(json.dumps(report, indent=2) + "\n")
    if as_json:
        print(json.dumps({"ok": not report["lost"] and not unreadable} | report))
    else:
        print(f"{len(numbers)} records in {to / 'records.jsonl'}; the log is unchanged")
        for first, last in gaps(numbers):
            print(f"lost: sequence {first} to {last}")
        for item in unreadable:
            print(f"unreadable: {item['file']}: {item['error']}")
    if report["lost"] or unreadable:
        raise typer.Exit(_FAILED)


@app.command("accept-tail")
def accept_tail(
    directory: Directory,
    at: Annotated[int, typer.Option("--at", help="Offset that `wal verify` names.")],
    expect_seq: Annotated[int, typer.Option("--expect-seq", help="Last sequence to keep.")],
    as_json: AsJson = False,
) -> None:
    """Go on without what follows a damaged place in the last segment, after making a copy.

    The order is recorded in the header of the next segment. It is refused unless offset and
    sequence are those of the damage.
    """
    if not (directory / "LOG").is_file():
        _fail(WalError(f"no log in {directory}"), as_json, _UNUSABLE)
    copy = directory.with_name(f"{directory.name}.before-accept-{at}-{expect_seq}")
    try:
        shutil.copytree(directory, copy)
    except OSError as error:
        _fail(error, as_json, _UNUSABLE)
    try:
        with WalWriter(directory, accept_tail=(at, expect_seq)) as wal:
            kept = wal.durable_seq
    except (AegisError, ValueError) as error:
        shutil.rmtree(copy)
        _fail(error, as_json, _FAILED)
    if as_json:
        print(json.dumps({"ok": True, "last_seq": kept, "copy": str(copy)}))
    else:
        print(f"the log ends at sequence {kept}; the state before is in {copy}")
