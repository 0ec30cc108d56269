"""Where everything lies in a data directory: the one place that knows (docs/formats.md).

DIR/ledger/w0/            what may be published, one folder per shard
    checkpoint            signed tree head
    log.vkey              the log's verifier key
    tile/<L>/<N>[.p/<W>]  hashes
    tile/entries/...      entry bundles; for auditors
DIR/private/w0/           0700: log, lock, identity, log.key (0600), secrets, checkpoint copy
DIR/private/LOCK          held by the one gateway that uses the directory
"""

from __future__ import annotations

import errno
import fcntl
import os
import pwd
import re
from dataclasses import dataclass
from pathlib import Path

CHECKPOINT = "checkpoint"
VKEY = "log.vkey"
TILES = "tile"
TEMPORARY = ".tmp"
"""Name, in a shard's published folder, of a file that is being written."""

_SHARD = re.compile(r"w(0|[1-9][0-9]{0,3})", re.ASCII)


class LayoutError(Exception):
    """A path is not what a command needs.

    Attributes: what (was wrong), where (the path), expected, found, advice; "" where they do not
    apply. str() says all of it.
    """

    def __init__(
        self,
        what: str,
        where: object = "",
        *,
        expected: str = "",
        found: str = "",
        advice: str = "",
    ) -> None:
        self.what, self.where = what, str(where)
        self.expected, self.found, self.advice = expected, found, advice
        super().__init__(what, self.where, expected, found, advice)

    def __str__(self) -> str:
        head = f"{self.where}: {self.what}" if self.where else self.what
        names = ("expected", "found", "advice")
        parts = [(f"{name}:", getattr(self, name)) for name in names]
        return "\n".join([head, *(f"  {name:<10}{text}" for name, text in parts if text)])


_A_LOG = "a shard's published folder, the folder above it, or a data directory"


@dataclass(frozen=True)
class Shard:
    """One shard of the ledger: a log of its own, written by one worker."""

    name: str
    published: Path
    private: Path

    @property
    def checkpoint(self) -> Path:
        return self.published / CHECKPOINT

    @property
    def vkey(self) -> Path:
        return self.published / VKEY


@dataclass(frozen=True)
class DataDir:
    """The data directory of a gateway."""

    root: Path

    @property
    def ledger(self) -> Path:
        return self.root / "ledger"

    @property
    def private(self) -> Path:
        return self.root / "private"

    def shard(self, name: str = "w0") -> Shard:
        """The shard `name` (w0, w1, ...), whether it exists or not; ValueError for others."""
        if not _SHARD.fullmatch(name):
            raise ValueError(f"not the name of a shard: {name!r} (w0, w1, ...)")
        return Shard(name, self.ledger / name, self.private / name)

    def shards(self) -> list[Shard]:
        """The shards that exist, in part at least, in the order of their numbers."""
        names: set[str] = set()
        for half in (self.ledger, self.private):
            try:
                names.update(name for name in os.listdir(half) if _SHARD.fullmatch(name))
            except FileNotFoundError:
                continue
        return [self.shard(name) for name in sorted(names, key=lambda name: int(name[1:]))]

    def create(self) -> None:
        """Makes the directory and its two halves: `private` is closed to others (0700).

        Raises LayoutError when the directory is another user's or cannot be made or written.
        """
        for path in (self.root, self.private):
            if path.exists() and path.stat().st_uid != os.geteuid():
                owner = _user(path.stat().st_uid)
                raise LayoutError(
                    f"{path} belongs to user {owner}, but this process runs as "
                    f"{_user(os.geteuid())}; run it as {owner}, or give another directory"
                )
        try:
            self.root.mkdir(mode=0o750, parents=True, exist_ok=True)
            self.ledger.mkdir(mode=0o750, exist_ok=True)
            self.private.mkdir(mode=0o700, exist_ok=True)
            if self.private.stat().st_mode & 0o777 != 0o700:
                self.private.chmod(0o700)
        except OSError as error:
            raise _unusable(self.root, error) from None

    def lock(self) -> int:
        """Takes the directory for this gateway; returns the descriptor that holds the lock.

        Children share it: the lock ends with the last process that has it. Raises LayoutError
        naming the process that holds it, or what is in the way.
        """
        path = self.private / "LOCK"
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise _unusable(self.root, error) from None
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(fd, 32, 0).decode("ascii", "replace").strip()
            os.close(fd)
            raise LayoutError(
                f"{self.root} is in use by another gateway (pid {holder or 'unknown'}); "
                "stop that one, or give another directory"
            ) from None
        try:
            os.ftruncate(fd, 0)
            os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        except OSError as error:
            os.close(fd)
            raise _unusable(path, error) from None
        return fd


def _unusable(path: Path, error: OSError) -> LayoutError:
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    return LayoutError(
        "cannot be used as data directory",
        error.filename or path,
        expected="a directory that this user may write",
        found=error.strerror or str(error),
        advice=f"{'free some space' if full else 'make it writable'}, or give another one (--data)",
    )


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def published_folders(path: Path) -> list[Path]:
    """The published folders of the shards that `path` means.

    `path` is a shard's published folder, the folder that holds several of them, or a data
    directory. Raises LayoutError when it is none of these.
    """
    if not path.is_dir():
        what = "is not a directory" if path.exists() else "does not exist"
        raise LayoutError(what, path, expected=_A_LOG, advice="give the path of one of these")
    if _is_published(path):
        return [path]
    for parent in (path / "ledger", path):
        found = [p for p in parent.iterdir() if _is_published(p)] if parent.is_dir() else []
        if parent != path:  # a data directory: also what lost its published half
            found += [p for p in _unpublished(DataDir(path)) if p not in found]
        if found:
            return sorted(found, key=lambda p: (len(p.name), p.name))
    names = sorted(one.name for one in path.iterdir())[:5]
    raise LayoutError(
        "no log in it",
        path,
        expected=f"{_A_LOG}: a folder with `{CHECKPOINT}`, `{VKEY}` and `{TILES}`",
        found=", ".join(names) or "an empty folder",
        advice="nothing was published here yet, or this is not where the ledger lies",
    )


def one_shard(path: Path, name: str | None = None) -> Shard:
    """The one shard that `path`, a data directory or a published folder, and `name` mean.

    Raises LayoutError when it is none or when there are several.
    """
    folders = published_folders(path)
    if name is not None:
        folders = [folder for folder in folders if folder.name == name]
    if len(folders) != 1:
        names = ", ".join(folder.name for folder in folders) or "none of that name"
        raise LayoutError("one shard is needed", path, found=names, advice="give --shard NAME")
    folder = folders[0]
    return Shard(folder.name, folder, checkpoint_copy(folder).parent)


def checkpoint_copy(folder: Path) -> Path:
    """Where a ledger keeps the copy of the last checkpoint that it signed for `folder`."""
    if folder.parent.name == "ledger":
        return folder.parent.parent / "private" / folder.name / CHECKPOINT
    return folder.with_name(f"{folder.name}.private") / CHECKPOINT


def _unpublished(directory: DataDir) -> list[Path]:
    """Published folders, there or not, of the shards that have a private half to be seen."""
    try:
        shards = directory.shards()
    except OSError:
        return []  # an auditor need not see the private halves
    return [one.published for one in shards if os.path.lexists(one.private / "identity")]


def _is_published(path: Path) -> bool:
    names = (CHECKPOINT, VKEY, TILES)
    return path.is_dir() and any(os.path.lexists(path / name) for name in names)
