"""Rebuilds a published log from its entry bundles and compares every file with it.

The native pass (aegis_c/core/log/audit.h) tells which full tiles are in order, on every core;
what it flags is looked at here, slowly and with words. Where files disagree, the signed root
decides which of them is wrong: the hashes are followed from the root downwards, so a damaged
tile is told from a damaged bundle, and an entry that was rewritten together with its hashes is
still found.
"""

from __future__ import annotations

import itertools
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from aegis_c import MmrAccumulator, leaf_hash
from aegis_c._native import _audit_tiles

from . import layout
from .entry_schema import parse_entry
from .report import MAX_PROBLEMS, Problem, Report
from .tiles import (
    ENTRIES,
    WIDTH,
    Tile,
    TileError,
    TileReader,
    bundle_prefix,
    bundle_records,
    levels_of,
    parse_path,
    read_file,
    tiles_of,
)
from .verify import EMPTY_ROOT, Checkpoint, VerificationError, node_hash

_CHUNK = 64
"""Tiles of one call of the native pass: 16,384 entries, some 16 ms."""

Progress = Callable[[int, int], None]
"""Called with (entries checked, entries in all)."""


def _fold(hashes: Iterable[bytes]) -> bytes:
    """Root of the tree over adjacent complete subtrees of one height."""
    tree = MmrAccumulator(proofs=False)
    for one in hashes:
        tree.append_hash(one)
    return tree.root()


def _edge_root(edges: list[list[bytes]]) -> bytes:
    """Root of the tree whose incomplete tiles, lowest level first, are `edges`."""
    root: bytes | None = None
    for hashes in edges:
        stop = len(hashes)
        while stop:  # complete subtrees, right to left
            start = stop & (stop - 1)
            peak = _fold(hashes[start:stop])
            root = peak if root is None else node_hash(peak, root)
            stop = start
    return EMPTY_ROOT if root is None else root


def _split(data: bytes) -> list[bytes]:
    return [data[i : i + 32] for i in range(0, len(data), 32)]


@dataclass
class Rebuild:
    """One run over the files of a shard."""

    folder: Path
    checkpoint: Checkpoint
    report: Report
    progress: Progress | None
    # computed[level][i]: hash i of a level as the bundles give it; None where they cannot
    # be read. Level 0 holds the incomplete tile only: the others are not kept.
    computed: list[list[bytes | None]] = field(default_factory=list)
    suspects: list[Tile] = field(default_factory=list)
    broken: dict[Tile, TileError] = field(default_factory=dict)
    damaged: set[str] = field(default_factory=set)

    def run(self, kept: Sequence[tuple[str, Checkpoint]] = ()) -> None:
        self.size = self.checkpoint.size
        self.levels = levels_of(self.size)
        self.reader = TileReader(self.folder, self.size)
        self._read_bundles()
        self._compute_levels()
        edges = self._trusted_edges()
        if edges is None:
            self._report_disagreement()
        else:
            self._check_tiles(edges)
        self._check_other_files()
        for name, checkpoint in kept:
            self._check_kept(name, checkpoint)

    # -- pass 1: every bundle, and level 0 beside it

    def _read_bundles(self) -> None:
        self.computed = [[] for _ in range(max(self.levels, 1) + 1)]
        for first, flags, roots, octets in self._native_pass(self.size // WIDTH):
            self.report.octets += octets
            for at, flag in enumerate(flags):
                if flag:
                    leaves = self._read_bundle(Tile(ENTRIES, first + at))
                    self.computed[1].append(None if leaves is None else _fold(leaves))
                else:
                    self.computed[1].append(roots[at * 32 : at * 32 + 32])
            good = flags.count(0)
            self.report.files += good
            self.report.entries += good * WIDTH
            self._show_progress()
        width = self.size % WIDTH
        if width:
            leaves = self._read_bundle(Tile(ENTRIES, self.size // WIDTH, width))
            self.computed[0] = [*leaves] if leaves else [None] * width
        self._show_progress()

    def _native_pass(self, tiles: int) -> Iterator[tuple[int, bytes, bytes, int]]:
        """(first tile, a flag a tile, a root a tile, octets of the bundles in order) for all
        full tiles, in order; as many chunks at a time as there are cores for us."""
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
        running: deque[tuple[int, Future[tuple[bytes, bytes, int]]]] = deque()
        with ThreadPoolExecutor(cores, "fsck") as pool:
            try:
                for first in range(0, tiles, _CHUNK):
                    count = min(_CHUNK, tiles - first)
                    future = pool.submit(_audit_tiles, self.folder, first, count)
                    running.append((first, future))
                    if len(running) > 2 * cores:
                        at, future = running.popleft()
                        yield at, *future.result()
                while running:
                    at, future = running.popleft()
                    yield at, *future.result()
            finally:
                pool.shutdown(cancel_futures=True)

    def _show_progress(self) -> None:
        if self.progress is not None:
            self.progress(self.report.entries, self.size)

    def _read_bundle(self, bundle: Tile) -> list[bytes] | None:
        """Leaf hashes of a bundle; notes it when its tile is not the same."""
        leaves = self._bundle_hashes(bundle)
        tile = Tile(0, bundle.number, bundle.width)
        if leaves is None or leaves != self._stored(tile):
            self.suspects.append(tile)
        return leaves

    def _bundle_hashes(self, bundle: Tile) -> list[bytes] | None:
        """Leaf hashes of a bundle's entries; None when it is broken (pass 2 says how)."""
        leaves = []
        try:
            data = self.reader.read(bundle)
            for offset, entry in bundle_records(data, bundle):
                leaves.append(leaf_hash(entry))
                self._check_schema(bundle, offset, bundle.number * WIDTH + len(leaves) - 1, entry)
        except TileError as error:
            self.broken[bundle] = error
            if len(self.broken) >= MAX_PROBLEMS:
                self._report_broken()
            return None
        self.report.entries += len(leaves)
        self.report.files += 1
        self.report.octets += len(data)
        return leaves

    def _check_schema(self, bundle: Tile, offset: int, index: int, entry: bytes) -> None:
        try:
            parse_entry(entry)
        except VerificationError as error:
            what = error.what if error.where == "entry" else f"{error.what} ({error.where})"
            self._problem(bundle, what, offset, index, error.expected, error.found)

    def _stored(self, tile: Tile) -> list[bytes] | None:
        """The hashes in a tile's file; None when it is missing or has a wrong length."""
        try:
            data = self.reader.read(tile)
        except TileError:
            return None
        return _split(data) if len(data) == tile.width * 32 else None

    def _compute_levels(self) -> None:
        for level in range(1, self.levels):
            hashes = self.computed[level]
            for start in range(0, len(hashes) - WIDTH + 1, WIDTH):
                full = hashes[start : start + WIDTH]
                known = [one for one in full if one is not None]
                self.computed[level + 1].append(_fold(known) if len(known) == WIDTH else None)

    # -- who is right: the signed root decides

    def _edge(self, level: int) -> Tile | None:
        count = self.size >> 8 * level
        return Tile(level, count // WIDTH, count % WIDTH) if count % WIDTH else None

    def _trusted_edges(self) -> dict[int, list[bytes]] | None:
        """Incomplete tile of each level, as the signed root confirms it; None: it does not.

        Each is what the bundles give, what its file holds, or what the files below it give;
        where these differ, the combination that leads to the signed root is the true one.
        """
        choices = []
        for level in range(self.levels):
            edge = self._edge(level)
            options: list[list[bytes]] = [[]]
            if edge is not None:
                hashes = self.computed[level][-edge.width :]
                sources: list[Sequence[bytes | None] | None]
                sources = [hashes, self._stored(edge), self._below(edge)]
                options = []
                for source in sources:
                    known = [one for one in source or [] if one is not None]
                    if len(known) == edge.width and known not in options:
                        options.append(known)
            choices.append(options)
        for edges in itertools.product(*choices):
            if _edge_root(list(edges)) == self.checkpoint.root:
                return dict(enumerate(edges))
        return None

    def _below(self, tile: Tile) -> list[bytes | None]:
        """The hashes of a tile as the files of the full tiles below it give them."""
        if tile.level == 0:
            return []
        children = range(tile.number * WIDTH, tile.number * WIDTH + tile.width)
        stored = (self._stored(Tile(tile.level - 1, number)) for number in children)
        return [None if one is None else _fold(one) for one in stored]

    def _report_disagreement(self) -> None:
        edges = []
        for level in range(self.levels):
            edge = self._edge(level)
            hashes = self.computed[level][-edge.width :] if edge is not None else []
            edges.append([one for one in hashes if one is not None])
        known = all(one is not None for hashes in self.computed for one in hashes)
        self.report.add(
            Problem(
                layout.CHECKPOINT,
                "entries and tiles lead to another root than the signed one",
                expected=self.checkpoint.root.hex(),
                found=_edge_root(edges).hex() if known else None,
            )
        )
        self._report_broken()
        for tile in self.suspects:
            what = "tile and entries disagree; which of them is wrong cannot be told"
            self._problem(tile, what, entry=tile.number * WIDTH)

    def _report_broken(self) -> None:
        for bundle, error in self.broken.items():
            index = error.index or bundle.number * WIDTH
            self._problem(bundle, error.what, error.offset, index)

    # -- pass 2: from the root downwards

    def _check_tiles(self, edges: dict[int, list[bytes]]) -> None:
        trusted_above: list[bytes | None] = []
        for level in range(self.levels - 1, 0, -1):
            trusted: list[bytes | None] = []
            for tile in tiles_of(self.size, level):
                if tile.width < WIDTH:
                    hashes: list[bytes] | None = edges[level]
                    self._compare(tile, edges[level])
                else:
                    start = tile.number * WIDTH
                    known = [h for h in self.computed[level][start : start + WIDTH] if h]
                    hashes = self._judge(tile, known, trusted_above[tile.number])
                trusted += hashes if hashes is not None else [None] * tile.width
            trusted_above = trusted
        suspects = {tile.number for tile in self.suspects}
        for tile in tiles_of(self.size, 0):
            full = tile.width == WIDTH
            above = trusted_above[tile.number] if full else None
            computed = self.computed[1][tile.number] if full else None
            if tile.number in suspects or (full and computed != above):
                self._check_leaves(tile, edges[0] if not full else None, above)
            else:
                self.report.files += 1
                self.report.octets += tile.width * 32

    def _judge(self, tile: Tile, computed: list[bytes], above: bytes | None) -> list[bytes] | None:
        """The true hashes of a full tile, whose root is `above`; reports a wrong file."""
        stored = self._stored(tile)
        if len(computed) == WIDTH and (above is None or _fold(computed) == above):
            self._compare(tile, computed)
            return computed
        if stored is not None and above is not None and _fold(stored) == above:
            self.report.files += 1
            self.report.octets += WIDTH * 32
            return stored
        entry = tile.number * WIDTH << 8 * tile.level
        what = "does not hash to the tile above it, and neither do the entries"
        if stored is None:
            what = "is missing or has a wrong length, and the entries do not replace it"
        self._problem(tile, what, entry=entry, expected=above.hex() if above else None)
        return None

    def _check_leaves(self, tile: Tile, edge: list[bytes] | None, above: bytes | None) -> None:
        """Names what is wrong where a bundle and its hashes disagree."""
        bundle = Tile(ENTRIES, tile.number, tile.width)
        error = self.broken.get(bundle)
        records = []
        try:
            for offset, entry in bundle_records(self.reader.read(bundle), bundle):
                records.append((offset, leaf_hash(entry)))
        except TileError as again:
            error = again
        if edge is not None:
            self._compare(tile, edge)
        hashes = edge or self._judge(tile, [leaf for _, leaf in records], above) or []
        first = tile.number * WIDTH
        for index, ((offset, leaf), true) in enumerate(zip(records, hashes, strict=False), first):
            if leaf != true:
                what = "not the entry that was logged"
                self._problem(bundle, what, offset, index, f"leaf hash {true.hex()}", leaf.hex())
                if error is not None:
                    return  # a length is wrong: all that follows is out of step
        if error is not None:
            self._problem(bundle, error.what, error.offset, error.index or first)

    def _compare(self, tile: Tile, hashes: list[bytes]) -> None:
        """Compares a tile's file with its true hashes."""
        expected = b"".join(hashes)
        try:
            found = self.reader.read(tile)
        except TileError as error:
            self._problem(tile, error.what, entry=tile.number * WIDTH << 8 * tile.level)
            return
        self.report.files += 1
        self.report.octets += len(found)
        self._compare_bytes(tile, expected, found)

    def _compare_bytes(self, tile: Tile, expected: bytes, found: bytes) -> None:
        if found == expected:
            return
        pairs = zip(expected, found, strict=False)
        differs = (at for at, (a, b) in enumerate(pairs) if a != b)
        offset = next(differs, min(len(expected), len(found)))
        start = offset - offset % 32
        self._problem(
            tile,
            "wrong length" if len(found) != len(expected) else "wrong hash",
            offset=offset,
            entry=tile.number * WIDTH + offset // 32 << 8 * max(tile.level, 0),
            expected=expected[start : start + 32].hex() or "end of file",
            found=found[start : start + 32].hex() or "end of file",
        )

    # -- files that nothing above asked for

    def _check_other_files(self) -> None:
        newer = 0
        for name, is_link in sorted(_walk(str(self.folder))):
            if name in (layout.CHECKPOINT, layout.VKEY, layout.TEMPORARY):
                continue
            tile = parse_path(name)
            if is_link or tile is None:
                if os.path.lexists(self.folder / name):
                    self.report.add(Problem(name, "does not belong into a published log"))
                continue
            held = (self.size >> 8 * max(tile.level, 0)) - tile.number * WIDTH
            if tile.width > held:
                newer += 1
            elif tile.width < min(held, WIDTH):
                self._check_old_partial(tile, min(held, WIDTH))
        if newer:
            self.report.notes.append(
                f"{newer} files are newer than the checkpoint and were not checked"
            )

    def _check_old_partial(self, tile: Tile, width: int) -> None:
        """A partial tile of an earlier checkpoint is a prefix of the present one."""
        present = Tile(tile.level, tile.number, width)
        if present.path in self.damaged:
            return
        try:
            whole = self.reader.read(present)
            found = read_file(self.folder / tile.path)
        except (TileError, FileNotFoundError):
            return  # reported above; or collected meanwhile
        except OSError as error:
            self._problem(tile, error.strerror or str(error))
            return
        self.report.files += 1
        self.report.octets += len(found)
        if tile.level != ENTRIES:
            self._compare_bytes(tile, whole[: tile.width * 32], found)
        elif found != bundle_prefix(whole, tile.width):
            self._problem(tile, "not a prefix of the later bundle", entry=tile.number * WIDTH)

    # -- checkpoints that were kept

    def _check_kept(self, name: str, kept: Checkpoint) -> None:
        """The first `kept.size` entries of this log must lead to the root that was signed."""
        self.report.checkpoints += 1
        if kept.size > self.size:
            what = "the log is older than a checkpoint that was signed before: it was rolled back"
            expected = f"at least the {kept.size} entries of {name}"
            problem = Problem(layout.CHECKPOINT, what, None, self.size, expected, f"{self.size}")
            self.report.add(problem)
            return
        try:
            root = self.reader.root(0, kept.size) if kept.size else EMPTY_ROOT
        except TileError:
            return  # reported above
        if root != kept.root and self.report.ok:
            what = f"this log is not the one that this checkpoint of {kept.size} entries was for"
            self.report.add(Problem(name, what, expected=kept.root.hex(), found=root.hex()))

    def _problem(
        self,
        tile: Tile,
        what: str,
        offset: int | None = None,
        entry: int | None = None,
        expected: str | None = None,
        found: str | None = None,
    ) -> None:
        self.damaged.add(tile.path)
        self.report.add(Problem(tile.path, what, offset, entry, expected, found))


def _walk(folder: str, below: str = "") -> Iterator[tuple[str, bool]]:
    """(relative name, whether it is a link) of all that lies below `folder` and is no folder."""
    try:
        with os.scandir(folder) as found:
            for one in found:
                if one.is_dir(follow_symlinks=False):
                    yield from _walk(one.path, f"{below}{one.name}/")
                else:
                    yield below + one.name, one.is_symlink()
    except FileNotFoundError:
        return  # collected meanwhile
