"""What a check of a published log reports."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

MAX_PROBLEMS = 100
"""Problems listed for one shard; a check stops looking after that many."""


class TooManyProblems(Exception):
    """The report is full: the check ends here."""


@dataclass(frozen=True)
class Problem:
    """Something wrong with a published log.

    file is relative to the log's folder; offset is the first wrong octet in it (of a bundle:
    where the wrong entry's record begins), entry the index of the first entry concerned.
    """

    file: str
    what: str
    offset: int | None = None
    entry: int | None = None
    expected: str | None = None
    found: str | None = None

    def __str__(self) -> str:
        at = "" if self.offset is None else f", offset {self.offset}"
        at += "" if self.entry is None else f", entry {self.entry}"
        lines = [f"{self.file}{at}: {self.what}"]
        lines += [f"  expected: {self.expected}"] if self.expected else []
        lines += [f"  found:    {self.found}"] if self.found else []
        return "\n".join(lines)


@dataclass
class Report:
    """What a check of one shard found. `ok` when there is no problem."""

    folder: str
    origin: str = ""
    vkey: str = ""
    size: int = 0
    root: str = ""
    entries: int = 0
    files: int = 0
    octets: int = 0
    checkpoints: int = 0
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return not self.problems

    def add(self, problem: Problem) -> None:
        """Adds a problem. Raises TooManyProblems with the last one that is listed."""
        self.problems.append(problem)
        if len(self.problems) >= MAX_PROBLEMS:
            raise TooManyProblems

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "ok": self.ok}
