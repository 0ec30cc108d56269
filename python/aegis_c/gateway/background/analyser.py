"""What a reply says about its model's certainty: Shannon entropy of every token, in bits.

For replies with ``top_logprobs``. One token's distribution is known for k tokens only, with
p_i = exp(logprob_i); what is missing is the tail's mass r = 1 - sum(p_i), spread over tokens that
were not listed. So its entropy is bounded from both sides:

    known = -sum(p_i * log2(p_i))
    lower = known + r * log2(1 / min(q, r))      q = the smallest p_i of the list
    upper = known + r * log2((V - k) / r)        V = VOCABULARY_MAX

Lower: no token outside the list is more likely than the last one in it, nor than the tail as a
whole, so each of them adds at least log2(1 / min(q, r)) bits per unit of mass. Upper: entropy is
largest when the tail is spread evenly over everything else a vocabulary can hold; where rounded
logprobs leave a tail that would not fit below q, the smaller bound stands for both. The token
that was drawn counts as listed when it is not (it adds to the sum, not to q).

`mean` and `max` are of the lower bounds: figures that hold whatever the tail looks like.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Final

import msgspec

VOCABULARY_MAX: Final = 1 << 18  # tokens; the largest vocabularies in use have about 200,000
REPLY_MAX: Final = 8 << 20  # octets; a longer reply is reported as not analysed
_SUM_SLACK: Final = 1e-3  # rounded logprobs may sum to slightly more than 1
_LN2: Final = math.log(2)


class _Reply(msgspec.Struct):
    """The one member that matters, unchecked: what is inside is looked at piece by piece."""

    choices: Any = None


_decode = msgspec.json.Decoder(_Reply).decode


def analyse(reply: bytes | list[bytes]) -> dict[str, Any]:
    """The `analysis` member of an entry, for one reply. Never raises.

    `reply` is the body of a plain answer, or the JSON texts of a stream's events. The result is
    ``{"available": false, "reason": ...}`` or, in bits unless said otherwise::

        {"available": true, "method": "top_logprobs",
         "count": tokens that were measured (of all choices),
         "mean": ..., "max": ...,               lower bounds
         "mean_upper": ..., "max_upper": ...,   upper bounds
         "tail": mean probability mass outside the lists,
         "skipped": tokens without a usable list}       absent when 0
    """
    if isinstance(reply, bytes):
        if not reply:
            return _unavailable("empty reply")
        texts = [reply]
    else:
        texts = [text for text in reply if text.strip() != b"[DONE]"]
    if sum(map(len, texts)) > REPLY_MAX:
        return _unavailable(f"longer than {REPLY_MAX} octets")
    lower: list[float] = []
    upper: list[float] = []
    tails: list[float] = []
    skipped = unlisted = damaged = 0
    for text in texts:
        try:
            choices = _decode(text).choices
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            damaged += 1
            continue
        for token in _tokens(choices):
            listed = token.get("top_logprobs")
            if not isinstance(listed, list) or not listed:
                unlisted += 1
                continue
            logprobs, drawn = _logprobs(token, listed)
            bounds = None if logprobs is None else entropy_bounds(logprobs, drawn)
            if bounds is None:
                skipped += 1
                continue
            lower.append(bounds[0])
            upper.append(bounds[1])
            tails.append(bounds[2])
    if not lower:
        if damaged:
            return _unavailable("not a JSON object")
        return _unavailable("no usable top_logprobs" if skipped else "no top_logprobs")
    count = len(lower)
    result = {
        "available": True,
        "method": "top_logprobs",
        "count": count,
        "mean": _round(math.fsum(lower) / count),
        "max": _round(max(lower)),
        "mean_upper": _round(math.fsum(upper) / count),
        "max_upper": _round(max(upper)),
        "tail": _round(math.fsum(tails) / count),
    }
    if skipped or unlisted or damaged:
        result["skipped"] = skipped + unlisted + damaged
    return result


class ResponseAnalyser:
    """Analyses replies, whole or as they stream. Safe to share between threads; never raises."""

    def analyse(self, body: bytes, *, model: str, session: str | None = None) -> dict[str, Any]:
        """The analysis of a plain reply: ``available``, ``findings``, statistics."""
        return {"findings": [], **analyse(body)}

    def stream(self, *, model: str, session: str | None = None) -> ReplyStream:
        """One streamed reply, of ``model`` as the caller asked for it."""
        return ReplyStream()


class ReplyStream:
    """The events of one reply, in their order; belongs to one caller at a time."""

    def __init__(self) -> None:
        self._held = bytearray()
        self._events: list[bytes] = []
        self._bytes = 0

    def feed(self, events: bytes) -> None:
        """The next bytes of the stream, cut anywhere."""
        self._held += events
        *lines, rest = self._held.split(b"\n")
        self._held = bytearray(rest)
        for line in lines:
            text = line.removeprefix(b"data:")
            if text != line and b'"top_logprobs"' in text and self._bytes <= REPLY_MAX:
                self._events.append(bytes(text).strip())
                self._bytes += len(text)

    def finish(self) -> dict[str, Any]:
        """The analysis of all that was fed."""
        return {"findings": [], **analyse(self._events)}


def entropy_bounds(
    logprobs: list[float], drawn: float | None = None
) -> tuple[float, float, float] | None:
    """(lower, upper, tail) for one token: bits, bits, probability mass.

    `logprobs` are natural and not empty; -inf means probability 0. `drawn` is that of the drawn
    token when it is not among them. None when they are no part of any distribution: NaN, a
    probability above 1, or a sum above 1.
    """
    known = [*logprobs] if drawn is None else [*logprobs, drawn]
    # `not <=` is true for NaN as well.
    if any(not value <= _SUM_SLACK for value in known):
        return None
    p = [math.exp(value) for value in known]
    total = math.fsum(p)
    if total > 1 + _SUM_SLACK:
        return None
    entropy = max(0.0, -math.fsum(x * value for x, value in zip(p, known, strict=True) if x) / _LN2)
    tail = max(0.0, 1.0 - total)
    if tail == 0.0:
        return entropy, entropy, 0.0
    least = math.exp(min(logprobs)) or tail  # a list that ends in 0 says nothing of its tail
    rest = max(1, VOCABULARY_MAX - len(known))
    lower = entropy + tail * math.log2(1 / min(least, tail))
    upper = entropy + tail * math.log2(rest / tail)
    return min(lower, upper), upper, tail


def _tokens(choices: object) -> Iterator[dict[str, Any]]:
    """The per-token records of all choices, of whatever shape the rest is."""
    for choice in choices if isinstance(choices, list) else ():
        logprobs = choice.get("logprobs") if isinstance(choice, dict) else None
        content = logprobs.get("content") if isinstance(logprobs, dict) else None
        for token in content if isinstance(content, list) else ():
            yield token if isinstance(token, dict) else {}


def _logprobs(token: dict[str, Any], listed: list[Any]) -> tuple[list[float] | None, float | None]:
    """The list's logprobs, None when one is no number; and the drawn token's, if not listed."""
    name = token.get("token")
    absent = True
    values = []
    for other in listed:
        value = _number(other.get("logprob")) if isinstance(other, dict) else None
        if value is None:
            return None, None
        values.append(value)
        if other.get("token") == name:
            absent = False
    return values, _number(token.get("logprob")) if absent else None


def _number(value: object) -> float | None:
    if isinstance(value, float):
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            return None
    return None


def _round(bits: float) -> float:
    return round(bits, 6)


def _unavailable(reason: str) -> dict[str, Any]:
    return {"available": False, "reason": reason}
