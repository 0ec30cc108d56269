"""Slow, plain twins of the statistics in aegis_c/core/text/, from their definitions.

Floats and dictionaries; whole inputs at once. Where the native code hashes and forgets words and
4-grams, the twin remembers them all.
"""

from __future__ import annotations

import math
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence

VOCABULARY_MAX = 1 << 18
SLACK = 1e-3
TAIL_LEAST = 1e-6
P_LEAST = 1e-12


def token_entropy(
    listed: Mapping[bytes, float], drawn: tuple[bytes, float] | None = None
) -> tuple[float, float, float] | None:
    """(lower, upper, tail) of one token's list: bits, bits, mass."""
    known = dict(listed)
    if not listed or any(not x <= SLACK for x in listed.values()):
        return None
    if drawn is not None and drawn[0] not in known:
        if not drawn[1] <= SLACK:
            return None
        known[drawn[0]] = drawn[1]
    p = {token: math.exp(x) for token, x in known.items()}
    total = math.fsum(p.values())
    if total > 1 + SLACK:
        return None
    bits = max(0.0, -math.fsum(p[t] * known[t] / math.log(2) for t in p if p[t] > 0))
    tail = max(0.0, 1.0 - total)
    if tail == 0.0:
        return bits, bits, 0.0
    least = math.exp(min(listed.values())) or tail
    upper = bits + tail * math.log2(max(1, VOCABULARY_MAX - len(p)) / tail)
    lower = bits + tail * math.log2(1 / min(least, tail))
    return min(lower, upper), upper, tail


def _sides(
    listed: Mapping[bytes, float], other: Mapping[bytes, float]
) -> tuple[dict[bytes, float], float]:
    """Masses of all tokens of both lists and of any other token, summing to 1."""
    p = {token: math.exp(x) for token, x in listed.items()}
    r = max(1.0 - math.fsum(p.values()), TAIL_LEAST)
    missing = [token for token in other if token not in p]
    least = max(math.exp(min(listed.values())), P_LEAST)
    e = min(least, r / (len(missing) + 1))
    masses = {token: max(x, P_LEAST) for token, x in p.items()}
    total = math.fsum(masses.values()) + r
    masses |= dict.fromkeys(missing, e)
    return (
        {token: x / total for token, x in masses.items()},
        (r - len(missing) * e) / total,
    )


def _kl(p: Sequence[float], q: Sequence[float]) -> float:
    return math.fsum(a * math.log2(a / b) for a, b in zip(p, q, strict=True) if a > 0)


def token_divergence(
    now: Mapping[bytes, float], before: Mapping[bytes, float]
) -> tuple[float, float] | None:
    """(KL, JS) in bits of the token's list from the one before."""
    if token_entropy(now) is None or token_entropy(before) is None:
        return None
    p, p_other = _sides(now, before)
    q, q_other = _sides(before, now)
    tokens = list(p)
    kl = _kl([*(p[t] for t in tokens), p_other], [*(q[t] for t in tokens), q_other])

    def grouped(side: Mapping[bytes, float], other: float) -> list[float]:
        shared = [side[t] for t in tokens if t in now and t in before]
        only_now = math.fsum(side[t] for t in tokens if t not in before)
        only_before = math.fsum(side[t] for t in tokens if t not in now)
        return [*shared, only_now, only_before, other]

    a, b = grouped(p, p_other), grouped(q, q_other)
    middle = [(x + y) / 2 for x, y in zip(a, b, strict=True)]
    js = (_kl(a, middle) + _kl(b, middle)) / 2
    return max(0.0, kl), min(1.0, max(0.0, js))


# ---- a reply as a sequence of numbers ----------------------------------------------------------

WINDOW, REFERENCE, BLOCK, WEIGHT, DRIFT_SLACK, DEVIATION_LEAST = 32, 64, 16, 0.1, 1.5, 0.05


def ema(xs: Sequence[float]) -> tuple[float, float]:
    """(last, least) of the exponential moving average."""
    values = [xs[0]]
    for x in xs[1:]:
        values.append(values[-1] + WEIGHT * (x - values[-1]))
    return values[-1], min(values)


def window_min(xs: Sequence[float]) -> tuple[float, int] | None:
    """(mean, where it begins) of the window with the least mean, not counting the start."""
    starts = range(WINDOW, len(xs) - WINDOW + 1)
    return min(((math.fsum(xs[i : i + WINDOW]) / WINDOW, i) for i in starts), default=None)


def drift(session: Sequence[float], before: int) -> float:
    """The largest CUSUM of a session's numbers, of which `before` came in earlier replies."""
    start = session[:REFERENCE]
    if len(start) < REFERENCE:
        return 0.0
    mean = math.fsum(start) / REFERENCE
    deviation = math.sqrt(math.fsum((x - mean) ** 2 for x in start) / (REFERENCE - 1))
    deviation = max(deviation, DEVIATION_LEAST)
    up = down = largest = 0.0
    for end in range(REFERENCE + BLOCK, len(session) + 1, BLOCK):
        block = math.fsum(session[end - BLOCK : end]) / BLOCK
        z = (block - mean) / (deviation / math.sqrt(BLOCK))
        up, down = max(0.0, up + z - DRIFT_SLACK), max(0.0, down - z - DRIFT_SLACK)
        if end > before:
            largest = max(largest, up, down)
    return largest


# ---- a reply as a text -------------------------------------------------------------------------

GRAM = 4
LZ_WINDOW, LZ_LEAST, LZ_MATCH, LOOP_TIMES = 8192, 4, 3, 4


def words(text: str) -> list[str]:
    """The words of a text in Latin, Greek, Cyrillic, Han, kana and Thai."""
    found: list[str] = []
    inside = False
    for c in text:
        name = unicodedata.name(c, "")
        single = name.startswith(("CJK UNIFIED", "HIRAGANA LETTER", "KATAKANA LETTER", "THAI CH"))
        letter = (c.isascii() and c.isalnum()) or (not c.isascii() and c.isalpha())
        if single or not letter:
            inside = False
        if single:
            found.append(c)
        elif letter:
            lower = c.lower() if c.isascii() else c
            if inside:
                found[-1] += lower
            else:
                found.append(lower)
            inside = True
    return found


def histogram_entropy(items: Sequence[object]) -> float:
    """Bits an item."""
    n = len(items)
    return -math.fsum(c / n * math.log2(c / n) for c in Counter(items).values()) if n else 0.0


def repetition(items: Sequence[object]) -> float:
    """Share of 4-grams that came before."""
    grams = [tuple(items[i : i + GRAM]) for i in range(len(items) - GRAM + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def parse(text: bytes) -> tuple[float, int]:
    """(compression, octets of the longest loop with letters)."""
    last: dict[int, int] = {}  # hash of four octets -> the position after their last place
    literals = matches = fresh = longest = 0
    distance = length = letters = 0

    def is_letter(c: int) -> bool:
        return c >= 0x80 or chr(c).isalpha()

    for i, c in enumerate(text):
        four = text[i - 3 : i + 1] if i >= 3 else b""
        head = (int.from_bytes(four, "big") * 0x9E3779B1 & 0xFFFFFFFF) >> 21
        if distance and text[i - distance] == c:
            length += 1
            letters += is_letter(c)
        else:
            distance = 0
            literals += 1
            fresh = min(LZ_LEAST, fresh + 1)
            place = last.get(head, 0) if fresh == LZ_LEAST else 0
            near = i + 1 - place <= LZ_WINDOW - LZ_LEAST
            if place and near and text[place - 4 : place] == four:
                distance, length, fresh = i + 1 - place, LZ_LEAST, 0
                letters = sum(map(is_letter, four))
                literals -= LZ_LEAST
                matches += 1
        if distance and length >= (LOOP_TIMES - 1) * distance and 4 * letters >= length:
            longest = max(longest, length + distance)
        if four:
            last[head] = i + 1
    return ((literals + LZ_MATCH * matches) / len(text) if text else 1.0), longest


# ---- quantiles ---------------------------------------------------------------------------------

ERROR, LEAST, BINS = 0.05, 1e-4, 169


def quantile(values: Sequence[float], part: float) -> float:
    """What the sketch says, from all the values."""
    growth = (1 + ERROR) / (1 - ERROR)
    x = sorted(values)[math.floor(part * (len(values) - 1))]
    if x < LEAST:
        return 0.0
    at = min(math.ceil(math.log(x / LEAST) / math.log(growth)) + 1, BINS - 1)
    return LEAST * growth ** (at - 1) * 2 / (1 + growth)
