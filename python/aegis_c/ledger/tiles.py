"""Tiles and entry bundles of a published log, read from its files (c2sp.org/tlog-tiles).

Paths, the parser of bundles, and proofs made from tiles alone: a published folder, or a
copy of it, needs no key and no lock to answer for itself.
"""

from __future__ import annotations

import base64
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from .verify import EMPTY_ROOT, TLOG_PROOF, node_hash

WIDTH = 256
"""Hashes in a full tile, entries in a full bundle."""
ENTRIES = -1
"""Stands for the level of the entry bundles, whose numbers and widths are those of level 0."""

MAX_FILE = WIDTH * (2 + 65_535)
"""Octets of the largest file of a log: a full bundle of entries of the largest size."""

_PATH = re.compile(
    r"tile/(entries|[0-9]|[1-5][0-9]|6[0-3])/((?:x(?!000)[0-9]{3}/(?:x[0-9]{3}/)*)?[0-9]{3})"
    r"(?:\.p/([1-9]|[1-9][0-9]|1[0-9][0-9]|2[0-4][0-9]|25[0-5]))?",
    re.ASCII,
)


class TileError(Exception):
    """A file of the log is missing, has a wrong length, or cannot be parsed.

    Attributes: path (relative to the log), offset (octet, or None), what, index (the first
    entry that is concerned, or None).
    """

    def __init__(
        self, path: str, what: str, *, offset: int | None = None, index: int | None = None
    ) -> None:
        self.path = path
        self.what = what
        self.offset = offset
        self.index = index
        at = "" if offset is None else f" at offset {offset}"
        super().__init__(f"{path}{at}: {what}")


def read_file(path: Path) -> bytes:
    """The octets of a log's file. OSError for what is none: a folder, a pipe (which would be
    waited for), a file that is too large."""
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(0, "is not a regular file", str(path))
        data = file.read(MAX_FILE + 1)
    if len(data) > MAX_FILE:
        raise OSError(0, f"has more than {MAX_FILE} octets", str(path))
    return data


@dataclass(frozen=True, order=True)
class Tile:
    """The name of a tile or bundle: level, number within the level, width (256: full)."""

    level: int
    number: int
    width: int = WIDTH

    @property
    def path(self) -> str:
        """`tile/<L>/<N>[.p/<W>]`, relative to the log."""
        groups = [f"{self.number % 1000:03}"]
        rest = self.number // 1000
        while rest:
            groups.insert(0, f"x{rest % 1000:03}")
            rest //= 1000
        level = "entries" if self.level == ENTRIES else str(self.level)
        suffix = "" if self.width == WIDTH else f".p/{self.width}"
        return f"tile/{level}/{'/'.join(groups)}{suffix}"


def parse_path(path: str) -> Tile | None:
    """The tile or bundle that a path names; None for anything but its one spelling."""
    match = _PATH.fullmatch(path)
    if match is None:
        return None
    level, number, width = match.groups()
    return Tile(
        ENTRIES if level == "entries" else int(level),
        int(number.replace("x", "").replace("/", "")),
        int(width) if width else WIDTH,
    )


def tiles_of(size: int, level: int) -> Iterator[Tile]:
    """The tiles of one level (or the bundles) that a log of `size` entries must have."""
    full, partial = divmod(size >> 8 * max(level, 0), WIDTH)
    for number in range(full):
        yield Tile(level, number)
    if partial:
        yield Tile(level, full, partial)


def levels_of(size: int) -> int:
    """Number of levels of hash tiles in a log of `size` entries."""
    return (size.bit_length() + 7) // 8


def bundle_records(data: bytes, tile: Tile) -> Iterator[tuple[int, bytes]]:
    """(offset, entry) of a bundle: `tile.width` times a 16-bit length and that many octets.

    Raises TileError where the bundle does not go on so.
    """
    offset = 0
    for index in range(tile.number * WIDTH, tile.number * WIDTH + tile.width):
        end = offset + 2 + int.from_bytes(data[offset : offset + 2], "big")
        if offset + 2 > len(data) or end > len(data):
            raise TileError(tile.path, "ends inside an entry", offset=offset, index=index)
        yield offset, data[offset + 2 : end]
        offset = end
    if offset != len(data):
        what = f"{len(data) - offset} octets too many"
        raise TileError(tile.path, what, offset=offset, index=index)


def parse_bundle(data: bytes, tile: Tile) -> list[bytes]:
    """The entries of a bundle. Raises TileError."""
    return [entry for _, entry in bundle_records(data, tile)]


def bundle_prefix(data: bytes, count: int) -> bytes:
    """The first `count` records of a bundle, as far as it has them."""
    offset = 0
    for _ in range(count):
        offset += 2 + int.from_bytes(data[offset : offset + 2], "big")
    return data[:offset]


def fold(hashes: list[bytes]) -> bytes:
    """Root of the tree over adjacent complete subtrees of one height (RFC 6962, MTH)."""
    if not hashes:
        return EMPTY_ROOT
    peaks: list[tuple[int, bytes]] = []
    for leaf in hashes:
        height = 0
        while peaks and peaks[-1][0] == height:
            leaf = node_hash(peaks.pop()[1], leaf)
            height += 1
        peaks.append((height, leaf))
    root = peaks.pop()[1]
    while peaks:
        root = node_hash(peaks.pop()[1], root)
    return root


@dataclass
class TileReader:
    """Reads a published log of a given size; every file is looked up at most once.

    Nothing is verified here: what comes out is as good as the files. Errors: TileError.
    """

    folder: Path
    size: int
    _cache: dict[Tile, list[bytes]] = field(default_factory=dict)

    def read(self, tile: Tile) -> bytes:
        """The octets of a tile or bundle; a partial one may be taken from the full file."""
        try:
            return read_file(self.folder / tile.path)
        except FileNotFoundError:
            if tile.width == WIDTH:
                raise TileError(tile.path, "is missing") from None
        except OSError as error:
            raise TileError(tile.path, error.strerror or str(error)) from None
        full = Tile(tile.level, tile.number)
        try:
            data = read_file(self.folder / full.path)
        except OSError:
            raise TileError(tile.path, "is missing") from None
        if tile.level == ENTRIES:
            return bundle_prefix(data, tile.width)
        return data[: tile.width * 32]

    def _tile_at(self, level: int, number: int) -> Tile:
        held = (self.size >> 8 * max(level, 0)) - number * WIDTH
        return Tile(level, number, min(held, WIDTH))

    def hashes(self, level: int, number: int) -> list[bytes]:
        """The hashes of tile `number` of `level`."""
        tile = self._tile_at(level, number)
        if tile not in self._cache:
            data = self.read(tile)
            if len(data) != tile.width * 32:
                raise TileError(tile.path, f"{len(data)} octets, not {tile.width * 32}")
            self._cache[tile] = [data[i : i + 32] for i in range(0, len(data), 32)]
        return self._cache[tile]

    def entries(self, start: int = 0, stop: int | None = None) -> Iterator[tuple[int, bytes]]:
        """(index, entry) from `start` up to, without, `stop` (the size by default)."""
        stop = self.size if stop is None else min(stop, self.size)
        for number in range(start // WIDTH, -(-stop // WIDTH)):
            tile = self._tile_at(ENTRIES, number)
            first = number * WIDTH
            for index, entry in enumerate(parse_bundle(self.read(tile), tile), first):
                if start <= index < stop:
                    yield index, entry

    def root(self, start: int, stop: int) -> bytes:
        """MTH(D[start:stop]) for the ranges of RFC 6962's recursion: `start` is a multiple
        of the largest power of two that is below the length, or of the length."""
        length = stop - start
        if length.bit_count() == 1:
            height = length.bit_length() - 1
            level, rest = divmod(height, 8)
            first = start >> 8 * level
            number, position = divmod(first, WIDTH)
            hashes = self.hashes(level, number)[position : position + (1 << rest)]
            return fold(hashes)
        split = 1 << (length - 1).bit_length() - 1
        return node_hash(self.root(start, start + split), self.root(start + split, stop))

    def inclusion_path(self, index: int) -> list[bytes]:
        """Sibling hashes of leaf `index`, leaf to root (RFC 6962 section 2.1.1)."""
        path = []
        start, stop = 0, self.size
        while stop - start > 1:
            split = start + (1 << (stop - start - 1).bit_length() - 1)
            if index < split:
                path.append(self.root(split, stop))
                stop = split
            else:
                path.append(self.root(start, split))
                start = split
        return path[::-1]

    def prove(self, index: int, note: bytes) -> tuple[bytes, bytes]:
        """An entry and its tlog-proof against the signed checkpoint `note`."""
        entry = next(entry for _, entry in self.entries(index, index + 1))
        hashes = [base64.b64encode(sibling).decode() for sibling in self.inclusion_path(index)]
        head = "\n".join([TLOG_PROOF, f"index {index}", *hashes])
        return entry, head.encode() + b"\n\n" + note

    def consistency_proof(self, old_size: int) -> list[bytes]:
        """Proof that the first `old_size` leaves are a prefix (RFC 6962 section 2.1.2)."""
        if old_size in (0, self.size):
            return []
        proof = []
        start, stop, whole = 0, self.size, True
        while old_size != stop:
            split = start + (1 << (stop - start - 1).bit_length() - 1)
            if old_size <= split:
                proof.append(self.root(split, stop))
                stop = split
            else:
                proof.append(self.root(start, split))
                start, whole = split, False
        if not whole:
            proof.append(self.root(start, stop))
        return proof[::-1]
