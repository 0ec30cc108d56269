"""The analyser's token statistics in plain Python: what one would write with math and dicts.

Entropy with bounds, surprisal, EMA, KL and Jensen-Shannon divergence of consecutive tokens aligned
by their octets, for lists that are given as dicts of logprobs. No windows, no drift.
"""

from __future__ import annotations

import math
from collections import Counter

VOCABULARY_MAX = 1 << 18
_TAIL = 1e-6
_LN2 = math.log(2)


def measure(tokens: list[dict[bytes, float]], drawn: list[float]) -> tuple[float, ...]:
    """Means of entropy (lower, upper), surprisal, KL and JS, and the last EMA; bits."""
    lower = upper = kl = js = ema = 0.0
    before: dict[bytes, float] | None = None
    for listed in tokens:
        p = {token: math.exp(x) for token, x in listed.items()}
        known = -sum(q * listed[token] for token, q in p.items()) / _LN2
        tail = max(0.0, 1.0 - sum(p.values()))
        low = high = known
        if tail > 0.0:
            low += tail * math.log2(1 / min(min(p.values()), tail))
            high += tail * math.log2((VOCABULARY_MAX - len(p)) / tail)
        lower += min(low, high)
        upper += high
        ema = low if before is None else ema + 0.1 * (low - ema)
        if before is not None:
            one, two = _divergence(p, before)
            kl += one
            js += two
        before = p
    n = len(tokens)
    surprisal = -sum(drawn) / _LN2
    return lower / n, upper / n, surprisal / n, kl / (n - 1), js / (n - 1), ema


def _divergence(p: dict[bytes, float], q: dict[bytes, float]) -> tuple[float, float]:
    p_tail = max(1.0 - sum(p.values()), _TAIL)
    q_tail = max(1.0 - sum(q.values()), _TAIL)
    p_only = [x for token, x in p.items() if token not in q]
    q_only = [x for token, x in q.items() if token not in p]
    p_share = min(min(p.values()), p_tail / (len(q_only) + 1))
    q_share = min(min(q.values()), q_tail / (len(p_only) + 1))
    log = math.log2
    pairs = [(x, q[token]) for token, x in p.items() if token in q]
    other = (p_tail - p_share * len(q_only), q_tail - q_share * len(p_only))
    kl = sum(x * log(x / y) for x, y in (*pairs, other))
    kl += sum(x * log(x / q_share) for x in p_only) + sum(
        p_share * log(p_share / y) for y in q_only
    )
    pairs += [
        (sum(p_only), q_share * len(p_only)),
        (p_share * len(q_only), sum(q_only)),
        other,
    ]
    js = 0.0
    for x, y in pairs:
        middle = (x + y) / 2
        js += (x * log(x / middle) if x > 0 else 0.0) + (y * log(y / middle) if y > 0 else 0.0)
    return kl, js / 2


def text_statistics(text: str) -> tuple[float, float]:
    """Entropy of the words, and the share of their 4-grams that came before."""
    words = text.lower().split()
    n = len(words)
    entropy = math.log2(n) - sum(c * math.log2(c) for c in Counter(words).values()) / n
    grams = set(zip(words, words[1:], words[2:], words[3:], strict=False))
    return entropy, 1 - len(grams) / (n - 3)
