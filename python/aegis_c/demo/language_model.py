"""A word n-gram language model with true probabilities, small enough to train at every start.

Tokens are words with the space before them, numbers, punctuation or white space: joined, they
give back the text byte for byte. Probabilities are interpolated Witten-Bell estimates (Witten and
Bell 1991; Chen and Goodman 1998, section 2.5): each order is mixed with the next lower one in
proportion to how many different tokens followed the context, down to add-one unigrams:

    P(w | h) = (c(h, w) + T(h) * P(w | h')) / (c(h) + T(h))

where c counts, T(h) is the number of different tokens seen after h, and h' is h without its
oldest token. Every token of the vocabulary has a probability above zero and they sum to one.

A prompt steers the model by unigram rescaling (Gildea and Hofmann 1999): the rare words of the
prompt are `BOOST` times as likely as without it, and everything is divided by the new sum.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import islice

ORDER = 4  # a token depends on the three before it
BOOST = 12.0  # odds factor of a word that the prompt mentions
TOPIC_MAX = 32  # words of a prompt that steer: the rarest ones
TOPIC_RARE = 1 / 400  # a word more frequent than this says nothing about a topic
END = "<|end|>"  # how the end of a reply is named in top_logprobs

# Words of at most 16 letters, so that no input makes one huge token.
_TOKEN = re.compile(r" ?[^\W\d]{1,16}| ?\d{1,3}| ?[^\w\s]{1,4}|\s{1,8}")


def tokenize(text: str) -> list[str]:
    """The tokens of `text`; ``"".join(tokenize(text)) == text`` for every text."""
    return _TOKEN.findall(text)


class Distribution:
    """Probabilities of the next token: explicit for the likely ones, by a factor for the rest.

    `head` maps token ids to probabilities; every other token has ``scale`` times its unigram
    probability.
    """

    __slots__ = ("_model", "head", "scale")

    def __init__(self, model: LanguageModel, head: dict[int, float], scale: float) -> None:
        self._model = model
        self.head = head
        self.scale = scale

    def probability(self, token: int) -> float:
        """P(token), above 0 and at most 1."""
        known = self.head.get(token)
        return self.scale * self._model.unigram[token] if known is None else known

    def ranked(self) -> Iterator[tuple[float, int]]:
        """All (probability, token), most likely first, ties by token id; lazy and cheap to cut."""
        head, unigram, scale = self.head, self._model.unigram, self.scale
        likely = sorted((-p, token) for token, p in head.items())
        at = 0
        for token in self._model.by_unigram:
            if token in head:
                continue
            rest = (-scale * unigram[token], token)
            while at < len(likely) and likely[at] < rest:
                yield -likely[at][0], likely[at][1]
                at += 1
            yield -rest[0], token
        for p, token in islice(likely, at, None):
            yield -p, token


class LanguageModel:
    """The model of one text, whose paragraphs (separated by empty lines) are the training units.

    `tokens` is the vocabulary by id; id 0 is the end of a paragraph, and before the first token
    of one the context consists of ends. `unigram` holds P(token) without context, `by_unigram`
    the ids by falling unigram probability.
    """

    END_ID = 0

    def __init__(self, text: str) -> None:
        """Trains on `text`. Raises ValueError when there is nothing to learn from."""
        paragraphs = [tokenize(p) for p in re.split(r"\n\s*\n", text) if p.strip()]
        if not paragraphs:
            raise ValueError("the training text is empty")
        self.tokens = [END, *sorted({token for p in paragraphs for token in p})]
        self._ids = {token: i for i, token in enumerate(self.tokens) if i != self.END_ID}
        self._after: dict[tuple[int, ...], dict[int, int]] = {}
        counts = [1] * len(self.tokens)
        for paragraph in paragraphs:
            ids = [self.END_ID] * (ORDER - 1) + [self._ids[t] for t in paragraph] + [self.END_ID]
            for i in range(ORDER - 1, len(ids)):
                counts[ids[i]] += 1
                for n in range(1, ORDER):
                    seen = self._after.setdefault(tuple(ids[i - n : i]), {})
                    seen[ids[i]] = seen.get(ids[i], 0) + 1
        total = sum(counts)
        self.unigram = [count / total for count in counts]
        self.by_unigram = sorted(range(len(counts)), key=lambda i: (-counts[i], i))

    def topic(self, text: str) -> frozenset[int]:
        """The ids by which `text` steers: its rarest known words, with and without a space."""
        words = {token.strip() for token in tokenize(text)}
        forms = (form for word in words for form in (word, " " + word, " " + word.lower()))
        known = {self._ids[form] for form in forms if form in self._ids and form.strip().isalpha()}
        rare = sorted((self.unigram[i], i) for i in known if self.unigram[i] < TOPIC_RARE)
        return frozenset(i for _, i in rare[:TOPIC_MAX])

    def distribution(
        self, history: Sequence[int], topic: frozenset[int] = frozenset()
    ) -> Distribution:
        """P(. | history, topic); `history` are the ids of the paragraph so far, oldest first."""
        start = [self.END_ID] * (ORDER - 1)
        context = tuple([*start, *history[-(ORDER - 1) :]][-(ORDER - 1) :])
        head: dict[int, float] = {}
        scale = 1.0
        # A longer context is followed by no token that a shorter one was not followed by, so
        # the head is complete after the shortest.
        for n in range(1, ORDER):
            after = self._after.get(context[-n:])
            if after is None:
                break
            seen = sum(after.values())
            total, backoff = seen + len(after), len(after) / (seen + len(after))
            if n == 1:
                head = {token: self.unigram[token] for token in after}
            for token in head:
                head[token] = head[token] * backoff + after.get(token, 0) / total
            scale *= backoff
        if topic:
            for token in topic:
                head.setdefault(token, scale * self.unigram[token])
            norm = 1.0 + (BOOST - 1.0) * sum(head[token] for token in topic)
            head = {t: p * (BOOST if t in topic else 1.0) / norm for t, p in head.items()}
            scale /= norm
        return Distribution(self, head, scale)
