"""Published logs as the command line opens them: which folders, which keys, which entries.

Needs the published files only. Everything here reads; nothing is written.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import layout, verify
from .tiles import TileError, TileReader, read_file


@dataclass(frozen=True)
class Log:
    """One published log as of its signed checkpoint."""

    name: str
    reader: TileReader
    key: verify.VerifierKey
    note: bytes
    checkpoint: verify.Checkpoint

    def check(self, index: int, entry: bytes) -> None:
        """Proves that `entry` is what the signed tree has at `index`. VerificationError."""
        head, path = self.checkpoint, self.reader.inclusion_path(index)
        where = f"{self.reader.folder}, entry {index}"
        leaf = verify.leaf_hash(entry)
        verify.verify_inclusion(leaf, index, head.size, head.root, path, where)

    def prove(self, index: int) -> tuple[bytes, bytes]:
        """An entry and its tlog-proof, which is verified before it is given away."""
        if index >= self.reader.size:
            size = self.reader.size
            what = f"there is no entry {index}: the published log has {size} entries"
            where, expected = str(self.reader.folder), f"an index below {size}"
            error = verify.FormatError(what, where, expected, index)
            error.advice = "an entry is published within 10 s; look at the size in `checkpoint`"
            raise error
        entry, proof = self.reader.prove(index, self.note)
        verify.verify_proof(proof, entry, self.key, f"{self.reader.folder}, entry {index}")
        return entry, proof


def load_keys(values: Sequence[str]) -> list[verify.VerifierKey]:
    """The verifier keys that are given: each a key, or a file with one or more, a line each."""
    keys = []
    for value in values:
        path = Path(value)
        try:
            lines = read_file(path).decode().splitlines() if path.is_file() else [value]
        except (OSError, UnicodeDecodeError, ValueError):
            lines = [value]
        keys += [verify.load_vkey(line) for line in lines if line.strip()]
    return keys


def key_of(folder: Path, keys: Sequence[verify.VerifierKey]) -> verify.VerifierKey | None:
    """Which of the given keys is meant for a folder: the one of its name, else the first."""
    try:
        name = read_file(folder / layout.VKEY).decode().partition("+")[0]
    except (OSError, UnicodeDecodeError):
        name = ""
    return next((key for key in keys if key.name == name), keys[0] if keys else None)


def open_logs(directory: Path, keys: Sequence[verify.VerifierKey]) -> list[Log]:
    """Every log that `directory` means. LayoutError, FormatError, VerificationError."""
    return [_open(folder, keys) for folder in layout.published_folders(directory)]


def open_log(directory: Path, keys: Sequence[verify.VerifierKey]) -> Log:
    """The one log that `directory` means; LayoutError when there are several."""
    folders = layout.published_folders(directory)
    if len(folders) > 1:
        names = ", ".join(str(folder) for folder in folders)
        advice = "give the folder of one of them"
        raise layout.LayoutError("holds several logs", directory, found=names, advice=advice)
    return _open(folders[0], keys)


def _open(folder: Path, keys: Sequence[verify.VerifierKey]) -> Log:
    key = key_of(folder, keys) or verify.load_vkey(str(folder / layout.VKEY))
    path = folder / layout.CHECKPOINT
    try:
        note = read_file(path)
    except OSError as error:
        found = error.strerror or error
        raise verify.FormatError("cannot read the checkpoint", str(path), found=found) from None
    checkpoint = verify.open_checkpoint(note, key, str(path))
    return Log(folder.name, TileReader(folder, checkpoint.size), key, note, checkpoint)


@dataclass(frozen=True)
class Query:
    """Which entries are wanted: members with these values, a time, a piece of text."""

    members: dict[str, str | int]
    since: str = ""
    until: str = ""
    text: str = ""

    def matches(self, entry: bytes) -> bool:
        """Whether an entry is wanted; one that is no JSON object is not."""
        if self.text and self.text.encode() not in entry:
            return False
        for value in self.members.values():  # most entries are told by their octets
            if json.dumps(value, ensure_ascii=False).encode() not in entry and b"\\" not in entry:
                return False
        try:
            found = json.loads(entry)
        except ValueError:
            return False
        return isinstance(found, dict) and self._fits(found)

    def _fits(self, found: dict[str, Any]) -> bool:
        time = str(found.get("time", ""))
        if time < self.since or (self.until and time >= self.until):
            return False
        return all(_member(found, name) == value for name, value in self.members.items())


def _member(entry: dict[str, Any], name: str) -> Any:
    """A member of an entry; `model` is the name that was asked for."""
    value = entry.get(name)
    return value.get("asked") if name == "model" and isinstance(value, dict) else value


def matching(
    log: Log,
    query: Query,
    start: int = 0,
    stop: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Iterator[tuple[int, bytes]]:
    """Entries that a query wants, in order."""
    everything = query == Query({})
    for index, entry in log.reader.entries(start, stop):
        if progress is not None and index % 4096 == 0:
            progress(index, log.reader.size)
        if everything or query.matches(entry):
            yield index, entry


def damaged(error: TileError) -> verify.VerificationError:
    """What a file that cannot be read means for a command that only reads: a failed check."""
    where = error.path if error.offset is None else f"{error.path}, offset {error.offset}"
    found = verify.VerificationError(error.what, where)
    found.advice = "run `aegis-c ledger fsck` on this log"
    return found
