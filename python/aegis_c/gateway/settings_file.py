"""Where a setting stands: the line of a TOML file that gives a key, or the variable that does.

``tomllib`` reads values but forgets lines. :class:`Lines` walks a text that it has accepted and
notes where each key begins, through tables, arrays of tables, dotted keys, inline tables and
arrays over several lines, so that a fault can name its line.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping

Path = tuple[str | int, ...]

_SPACE = re.compile(r"[ \t]*")
_BLANK = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
_BARE = re.compile(r"[A-Za-z0-9_-]+")
_STRING = re.compile(
    r'"""(?:[^"\\]|\\[\s\S]|"(?!""))*"{3,5}'
    r"|'''(?:[^']|'(?!''))*'{3,5}"
    r'|"(?:[^"\\\n]|\\.)*"'
    r"|'[^'\n]*'"
)
_SCALAR = re.compile(r"[^,\]}#\n]*")


class SettingsError(Exception):
    """The settings cannot be used; the text says which key, why, and what is expected."""


class Lines:
    """The lines, counted from 1, of the keys of one TOML text that ``tomllib`` accepts."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._lines: dict[Path, int] = {}
        self._arrays: dict[Path, int] = {}  # arrays of tables: how many so far
        self._line = 1
        self._counted = 0  # characters of which the newlines are in _line
        self._document()

    def exact(self, path: Path) -> int | None:
        """The line where ``path`` itself is given, or None.

        A single table may stand where a list of tables is meant, so a 0 in the path may be absent.
        """
        line = self._lines.get(path)
        return self._lines.get(tuple(p for p in path if p != 0)) if line is None else line

    def nearest(self, path: Path) -> int | None:
        """The line of ``path`` or of the closest table around it, or None."""
        while path and path not in self._lines:
            path = path[:-1]
        return self._lines.get(path)

    def _document(self) -> None:
        table: Path = ()
        while True:
            self._skip(_BLANK)
            if self._at >= len(self._text):
                return
            if self._text.startswith("[", self._at):
                table = self._header()
            else:
                self._pair(table)

    def _header(self) -> Path:
        """``[a.b]`` or ``[[a.b]]``: the path of the table that begins."""
        brackets = 2 if self._text.startswith("[[", self._at) else 1
        self._at += brackets
        names = self._key()
        self._at += brackets
        path: Path = ()
        for name in names[:-1]:
            path = self._last((*path, name))
        path = (*path, names[-1])
        if brackets == 2:
            count = self._arrays.get(path, 0)
            self._arrays[path] = count + 1
            self._note(path)
            path = (*path, count)
        self._note(path)
        return path

    def _last(self, path: Path) -> Path:
        """A header inside an array of tables means its latest element."""
        count = self._arrays.get(path)
        return path if count is None else (*path, count - 1)

    def _pair(self, table: Path) -> None:
        """``a.b = value``."""
        for name in self._key():
            table = (*table, name)
            self._note(table)
        self._at += 1  # the equals sign
        self._value(table)

    def _key(self) -> list[str]:
        names = []
        while True:
            self._skip(_SPACE)
            start = self._at
            if self._text[start] in "\"'":
                self._skip(_STRING)
                names.append(tomllib.loads("k = " + self._text[start : self._at])["k"])
            else:
                self._skip(_BARE)
                names.append(self._text[start : self._at])
            self._skip(_SPACE)
            if not self._text.startswith(".", self._at):
                return names
            self._at += 1

    def _value(self, path: Path) -> None:
        self._skip(_SPACE)
        first = self._text[self._at]
        if first in "\"'":
            self._skip(_STRING)
        elif first == "[":
            self._items(path, "]")
        elif first == "{":
            self._items(path, "}")
        else:
            self._skip(_SCALAR)

    def _items(self, path: Path, closing: str) -> None:
        """The elements of an array, or the pairs of an inline table."""
        self._at += 1
        index = 0
        while True:
            self._skip(_BLANK)
            if self._text[self._at] == closing:
                self._at += 1
                return
            if closing == "]":
                self._note((*path, index))
                self._value((*path, index))
                index += 1
            else:
                self._pair(path)
            self._skip(_BLANK)
            if self._text[self._at] == ",":
                self._at += 1

    def _skip(self, pattern: re.Pattern[str]) -> None:
        match = pattern.match(self._text, self._at)
        if match is not None:
            self._at = match.end()

    def _note(self, path: Path) -> None:
        self._line += self._text.count("\n", self._counted, self._at)
        self._counted = self._at
        self._lines.setdefault(path, self._line)


def variable_of(path: Path, environment: Mapping[str, str] = os.environ) -> str | None:
    """The ``AEGIS_*`` variable that gives ``path`` or a table around it, or None."""
    known = {name.upper(): name for name in environment}
    for end in range(len(path), 0, -1):
        name = "AEGIS_" + "__".join(str(part) for part in path[:end]).upper()
        if name in known:
            return known[name]
    return None
