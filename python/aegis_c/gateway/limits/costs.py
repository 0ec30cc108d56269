"""What a call may cost before it is made, and what it did cost afterwards: tokens and money."""

from __future__ import annotations

import re
from collections.abc import Mapping
from math import log2
from typing import Any, Final

from aegis_c.gateway.limits_settings import nano
from aegis_c.gateway.settings import Limits

_OCTETS_A_TOKEN: Final = 4
#: Members that hold media, by value or by address: they count as at most this many octets.
_MEDIA: Final = frozenset({"url", "data", "file_data", "image_url"})
_MEDIA_OCTETS: Final = 4000
_MAXIMA: Final = ("max_tokens", "max_completion_tokens", "max_output_tokens")
#: Members of a reply, or of an event of one, whose text the model wrote.
_WRITTEN: Final = re.compile(
    rb'"(?:content|text|arguments|refusal|reasoning_content|thinking|partial_json)"'
    rb'\s*:\s*"((?:[^"\\]|\\.)*)"'
)
_MILLION: Final = 10**6


def prompt_tokens(document: Mapping[str, Any]) -> int:
    """An estimate of a request's prompt: a token for every four octets of its texts.

    The one place that knows it; a counter of the model's own tokens can stand here instead.
    """
    octets = 0
    rest: list[Any] = [document]
    while rest:
        value = rest.pop()
        if type(value) is str:
            octets += len(value) if value.isascii() else len(value.encode("utf-8", "replace"))
        elif type(value) is list:
            rest += value
        elif type(value) is dict:
            for name, member in value.items():
                if type(member) is str and name in _MEDIA:
                    octets += min(len(member), _MEDIA_OCTETS)
                else:
                    rest.append(member)
    return octets // _OCTETS_A_TOKEN + 1


def output_maximum(document: Mapping[str, Any]) -> int | None:
    """The largest of the maxima that the caller sets for one answer, or None."""
    largest = 0
    for name in _MAXIMA:
        value = document.get(name)
        if type(value) is int and value > largest:
            largest = value
    return largest or None


def answers(document: Mapping[str, Any]) -> int:
    """How many answers the model is to write."""
    largest = 1
    for name in ("n", "best_of"):
        value = document.get(name)
        if type(value) is int and value > largest:
            largest = value
    return largest


def written_octets(text: bytes) -> int:
    """Octets that the model wrote in a reply, or in whole events of a stream."""
    return sum(map(len, _WRITTEN.findall(text)))


def written_tokens(octets: int) -> int:
    """An estimate of the tokens in that many octets."""
    return -(-octets // _OCTETS_A_TOKEN)


def reported(usage: Mapping[str, int] | None) -> tuple[int, int] | None:
    """(prompt, output) tokens as the upstream reports them, or None when it does not."""
    if usage is None:
        return None
    prompt = usage.get("prompt_tokens", usage.get("input_tokens"))
    output = usage.get("completion_tokens", usage.get("output_tokens"))
    total = usage.get("total_tokens")
    if prompt is None:
        if total is None:
            return None
        prompt = max(0, total - (output or 0))
    if output is None:
        output = 0 if total is None else max(0, total - prompt)
    return prompt, output


class Prices:
    """What tokens cost, in billionths of money; built once from the settings."""

    __slots__ = ("_models", "_others")

    def __init__(self, limits: Limits) -> None:
        self._others = _pair(limits.input_price, limits.output_price)
        self._models = {
            name: _pair(model.input_price, model.output_price)
            for name, model in limits.models.items()
            if model.input_price is not None
        }

    def of(self, model: str) -> tuple[int, int] | None:
        """Billionths per million (prompt, output) tokens; None for a model without prices."""
        return self._models.get(model, self._others)


def _pair(prompt: float | None, output: float | None) -> tuple[int, int] | None:
    return None if prompt is None or output is None else (nano(prompt), nano(output))


def price(prices: tuple[int, int], prompt: int, output: int) -> int:
    """Billionths for a call's tokens, rounded up."""
    return -(-(prompt * prices[0] + output * prices[1]) // _MILLION)


class Expected:
    """How much a model usually writes: a running 95th percentile of one answer's tokens.

    A histogram a model in steps of a quarter of an octave, whose counts are halved now and then,
    so that it follows what changes. Callers choose model names, so only so many are told apart.
    """

    _MODELS: Final = 256
    _ENOUGH: Final = 16  # answers, before which nothing is known
    _MANY: Final = 512  # answers, at which the counts are halved
    _STEPS: Final = 4 * 53

    def __init__(self) -> None:
        self._counts: dict[str, list[int]] = {}
        self._totals: dict[str, int] = {}
        self._known: dict[str, int] = {}

    def tokens(self, model: str) -> int | None:
        """At most as many in 95 of 100 answers; None while too few were seen."""
        return self._known.get(model)

    def observe(self, model: str, tokens: int) -> None:
        """One answer of ``model`` had ``tokens`` tokens."""
        counts = self._counts.get(model)
        if counts is None:
            if len(self._counts) >= self._MODELS:
                return
            counts = self._counts[model] = [0] * (self._STEPS + 1)
            self._totals[model] = 0
        step = 0 if tokens <= 1 else min(self._STEPS, 1 + int(4 * log2(tokens)))
        counts[step] += 1
        total = self._totals[model] = self._totals[model] + 1
        if total >= self._ENOUGH and total % 8 == 0:
            self._known[model] = self._percentile(counts, total)
        if total >= self._MANY:
            counts[:] = [count // 2 for count in counts]
            self._totals[model] = sum(counts)

    @staticmethod
    def _percentile(counts: list[int], total: int) -> int:
        seen = 0
        for step, count in enumerate(counts):
            seen += count
            if seen * 20 >= total * 19:
                return int(2 ** (step / 4))
        raise AssertionError("the counts do not add up to their total")
