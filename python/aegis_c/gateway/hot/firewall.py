"""The firewall stage: judges what a prompt says before it goes upstream.

No rule set ships yet, and the stage says so: a Firewall without rules has ``active`` False, the
hot path then skips it, and no entry claims that anything was judged.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol


class Rule(Protocol):
    """One judgement of a request's decoded body."""

    name: str

    def judge(self, document: dict[str, Any]) -> bool:
        """True when the request must not be forwarded."""


class Firewall:
    """The configured rules, asked in order; built once."""

    __slots__ = ("_rules", "active")

    def __init__(self, rules: Sequence[Rule] = ()) -> None:
        self._rules = tuple(rules)
        self.active = bool(self._rules)

    def judge(self, document: dict[str, Any]) -> str | None:
        """The name of the first rule that refuses, or None. Callers are never told which."""
        for rule in self._rules:
            if rule.judge(document):
                return rule.name
        return None
