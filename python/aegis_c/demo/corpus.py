"""Gathers `corpus.txt`, the training text of the built-in model, from the project's own docs.

An installed package has no docs beside it, so the gathered text ships with it. In a checkout,

    python -m aegis_c.demo.corpus

writes it anew: the prose paragraphs of README.md and docs/*.md (no code, no tables, no headings,
no markup), then those of the module docstrings. A test says when it has gone stale.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

PATH = Path(__file__).with_name("corpus.txt")


def load() -> str:
    """The training text: paragraphs of one line each, separated by empty lines."""
    return PATH.read_text(encoding="utf-8")


def gather(root: Path) -> list[str]:
    """The paragraphs of the docs and module docstrings under `root`, a checkout."""
    found: dict[str, None] = {}  # each paragraph once, in order
    for path in [root / "README.md", *sorted((root / "docs").glob("*.md"))]:
        if path.is_file():
            found.update(dict.fromkeys(_markdown(path.read_text(encoding="utf-8"))))
    for path in sorted((root / "python").rglob("*.py")):
        docstring = ast.get_docstring(ast.parse(path.read_bytes())) or ""
        found.update(dict.fromkeys(_docstring(docstring)))
    return list(found)


def _markdown(text: str) -> Iterator[str]:
    """Prose of one Markdown file: paragraphs and list items as plain text."""
    text = re.sub(r"^(```|~~~).*?^\1\s*$", "\n", text, flags=re.M | re.S)
    text = re.sub(r"^(#.*|\s*\|.*|<.*|!\[.*|\s*[-=]{3,}\s*)$", "\n", text, flags=re.M)
    text = re.sub(r"^( {4,}|\t).*$", "", text, flags=re.M)
    text = re.sub(r"^\s*([-*+]|\d+\.) ", "\n\n", text, flags=re.M)
    text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", text)
    yield from _sentences(re.split(r"\n\s*\n", text))


def _docstring(text: str) -> Iterator[str]:
    """Prose of one docstring: no indented blocks, no directives."""
    blocks = re.split(r"\n\s*\n", re.sub(r"^\s*([-*+]|\d+\.) ", "\n\n", text, flags=re.M))
    yield from _sentences(b for b in blocks if not re.search(r"^( {4}|>>>|\.\. )|::$", b, re.M))


def _sentences(blocks: Iterator[str] | list[str]) -> Iterator[str]:
    """Blocks that read as prose, on one line each, without emphasis and code marks."""
    for block in blocks:
        line = " ".join(re.sub(r"``?|\*\*", "", block).split())
        if re.match(r"[A-Z]", line) and re.search(r"[.!?]$", line) and line.count(" ") >= 5:
            yield line


def main() -> int:
    """Writes corpus.txt of the checkout that this module lies in."""
    root = Path(__file__).resolve().parents[3]
    if not (root / "pyproject.toml").is_file():
        print(f"{root}: not a checkout of the project; nothing to gather from", file=sys.stderr)
        return 2
    paragraphs = gather(root)
    PATH.write_text("\n\n".join(paragraphs) + "\n", encoding="utf-8")
    print(f"{PATH.name}: {len(paragraphs)} paragraphs, {PATH.stat().st_size} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
