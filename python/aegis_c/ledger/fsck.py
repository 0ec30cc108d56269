"""Checks a published log against itself and against its signed checkpoint.

Everything is rebuilt from the entry bundles alone (rebuild.py): leaf hashes, every tile of every
level, the root, which must be the signed one, and the root of every checkpoint that was kept.

Only the published files are needed, nothing is written. A log that grows meanwhile is checked
as far as the checkpoint that was read first.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from . import layout
from .rebuild import Progress, Rebuild
from .report import MAX_PROBLEMS, Problem, Report, TooManyProblems
from .tiles import read_file
from .verify import Checkpoint, VerificationError, VerifierKey, open_checkpoint, parse_vkey

_CATCH_UP_SECONDS = 2.0
"""How long a live log's published checkpoint may lag behind the copy of the one just signed."""


def fsck(
    path: Path,
    *,
    vkey: VerifierKey | None = None,
    checkpoints: Sequence[Path] = (),
    progress: Progress | None = None,
) -> list[Report]:
    """Checks every shard that `path` means (layout.published_folders); one report each.

    Without `vkey` each log is held against the log.vkey that lies beside it, which proves
    that the log is whole, not whose it is. Raises layout.LayoutError.
    """
    return [
        check_shard(folder, vkey=vkey, checkpoints=checkpoints, progress=progress)
        for folder in layout.published_folders(path)
    ]


def check_shard(
    folder: Path,
    *,
    vkey: VerifierKey | None = None,
    checkpoints: Sequence[Path] = (),
    progress: Progress | None = None,
) -> Report:
    """Checks the published folder of one shard.

    `checkpoints` are files with signed checkpoints that somebody kept; the ledger's own copy
    beside the folder joins them where it can be read. The log must contain each of them.
    """
    report = Report(str(folder))
    try:
        signed = _signed_checkpoint(folder, vkey, report)
        if signed is not None:
            key, checkpoint = signed
            kept = _kept_checkpoints(folder, key, checkpoints, report)
            newest = max((one.size for _, one in kept), default=0)
            checkpoint = _caught_up(folder, key, checkpoint, newest)
            report.size, report.root = checkpoint.size, checkpoint.root.hex()
            Rebuild(folder, checkpoint, report, progress).run(kept)
    except TooManyProblems:
        report.notes.append(f"stopped after {MAX_PROBLEMS} problems")
    report.problems.sort(key=lambda p: (p.entry is None, p.entry or 0))
    return report


def _signed_checkpoint(
    folder: Path, vkey: VerifierKey | None, report: Report
) -> tuple[VerifierKey, Checkpoint] | None:
    """Reads log.vkey and checkpoint; None when there is nothing to hold the files against."""
    name = layout.VKEY
    try:
        data = read_file(folder / name)
        own = parse_vkey(data.decode("utf-8", "replace"), name)
        if data != f"{own}\n".encode():
            report.add(Problem(name, "not one line", expected=f"{own}\\n"))
        if vkey is not None and own != vkey:
            what = "not the verifier key that was given"
            report.add(Problem(name, what, expected=str(vkey), found=str(own)))
        key = vkey or own
        name = layout.CHECKPOINT
        checkpoint = open_checkpoint(read_file(folder / name), key, name)
    except OSError as error:
        what = str(error.strerror)
        if isinstance(error, FileNotFoundError):
            what = "is missing: nothing was published yet, or it was removed"
        report.add(Problem(name, what))
        return None
    except VerificationError as error:
        report.add(_problem_of(error, name))
        return None
    report.origin, report.vkey = checkpoint.origin, str(key)
    report.files += 2
    report.checkpoints += 1
    return key, checkpoint


def _problem_of(error: VerificationError, name: str) -> Problem:
    what = error.what if error.where == name else f"{error.what} ({error.where})"
    return Problem(name, what, expected=error.expected, found=error.found)


def _kept_checkpoints(
    folder: Path, key: VerifierKey, given: Sequence[Path], report: Report
) -> list[tuple[str, Checkpoint]]:
    """The checkpoints that the log must contain, each with the name of its file."""
    kept = []
    for path in (layout.checkpoint_copy(folder), *given):
        try:
            kept.append((str(path), open_checkpoint(read_file(path), key, str(path))))
        except OSError as error:
            if path in given:
                report.add(Problem(str(path), error.strerror or str(error)))
        except VerificationError as error:
            report.add(_problem_of(error, str(path)))
    return kept


def _caught_up(folder: Path, key: VerifierKey, checkpoint: Checkpoint, size: int) -> Checkpoint:
    """The published checkpoint once it has `size` entries, or the last one that was seen: a
    log that is being written keeps its copy a moment before it publishes."""
    until = time.monotonic() + _CATCH_UP_SECONDS
    while checkpoint.size < size and time.monotonic() < until:
        time.sleep(0.05)
        try:
            note = read_file(folder / layout.CHECKPOINT)
            checkpoint = open_checkpoint(note, key, layout.CHECKPOINT)
        except (OSError, VerificationError):
            break
    return checkpoint
