"""What files a tiled log of given entries consists of, byte by byte (c2sp.org/tlog-tiles).

Every hash is taken straight from the formula of the specification, tile n of level l being
MTH(D[(n * 256 + i) * 256**l : (n * 256 + i + 1) * 256**l]) for i from 0.
"""

from collections.abc import Sequence
from pathlib import Path

from . import ed25519, note
from .tree import mth


def index_path(n: int) -> str:
    """5 -> 005, 1234067 -> x001/x234/067."""
    groups: list[str] = []
    while True:
        n, group = divmod(n, 1000)
        groups.insert(0, f"{group:03d}")
        if n == 0:
            break
    return "/".join([f"x{group}" for group in groups[:-1]] + groups[-1:])


def tile_widths(size: int, level: int) -> list[int]:
    """Widths of the tiles of a level: full ones, then at most one partial."""
    hashes = size // 256**level
    full, partial = divmod(hashes, 256)
    return [256] * full + ([partial] if partial else [])


def log_files(entries: Sequence[bytes]) -> dict[str, bytes]:
    """Path (relative to the log's prefix) -> content, without the checkpoint."""
    files = {}
    size = len(entries)
    for n, width in enumerate(tile_widths(size, 0)):
        suffix = "" if width == 256 else f".p/{width}"
        bundle = b"".join(
            len(entry).to_bytes(2, "big") + entry for entry in entries[n * 256 : n * 256 + width]
        )
        files[f"tile/entries/{index_path(n)}{suffix}"] = bundle
    level = 0
    while size >= 256**level:
        span = 256**level
        for n, width in enumerate(tile_widths(size, level)):
            suffix = "" if width == 256 else f".p/{width}"
            starts = [(n * 256 + i) * span for i in range(width)]
            hashes = [mth(entries[start : start + span]) for start in starts]
            files[f"tile/{level}/{index_path(n)}{suffix}"] = b"".join(hashes)
        level += 1
    return files


def signed_log(entries: Sequence[bytes], origin: str, seed: bytes) -> dict[str, bytes]:
    """All files of a published log: tiles, bundles, checkpoint, log.vkey."""
    files = log_files(entries)
    files["checkpoint"] = note.checkpoint(origin, len(entries), mth(entries), seed)
    files["log.vkey"] = (note.vkey(origin, ed25519.public_key(seed)) + "\n").encode()
    return files


def write_files(folder: Path, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
