"""Draws replies from the language model: temperature, top_p, seed, stop sequences.

A reply is a run of pieces. A piece is text that is certain to belong to the reply, with the
tokens it came from; text that may still turn out to be the beginning of a stop sequence waits.
So a stream and a plain reply of one seed are the same text.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Literal

from aegis_c.demo.language_model import Distribution, LanguageModel


@dataclass(frozen=True, slots=True)
class TokenChoice:
    """One drawn token with the model's own probabilities, before temperature and top_p.

    `logprob` is natural; `top` are the most likely (token id, logprob) pairs, best first.
    """

    id: int
    logprob: float
    top: tuple[tuple[int, float], ...]


@dataclass(frozen=True, slots=True)
class Piece:
    """A certain part of a reply. A token cut in two by a stop sequence comes with its first part,
    so that every character of the reply has its token."""

    text: str
    tokens: tuple[TokenChoice, ...]


class Sampler:
    """Draws tokens at one temperature (0: always the most likely) and one top_p.

    A temperature t > 0 turns each probability p into p ** (1 / t), normalised; `top_p` then
    keeps the smallest set of most likely tokens that holds at least that share.
    """

    def __init__(
        self, model: LanguageModel, temperature: float, top_p: float, rng: random.Random
    ) -> None:
        self._model = model
        self._greedy = temperature == 0.0
        self._top_p = top_p
        self._rng = rng
        if not self._greedy:
            self._power = 1.0 / temperature
            self._umax = max(model.unigram)
            self._usum = math.fsum((u / self._umax) ** self._power for u in model.unigram)

    def draw(self, distribution: Distribution) -> int:
        """The id of the next token."""
        ranked = distribution.ranked()
        best, token = next(ranked)
        if self._greedy:
            return token
        power, umax, unigram = self._power, self._umax, self._model.unigram
        # Weights are relative to the best token's, so that no power underflows them all. The
        # tail's sum is that of all unigram weights without those of the head's tokens.
        in_head = math.fsum((unigram[t] / umax) ** power for t in distribution.head)
        tail = min(1.0, distribution.scale * umax / best) ** power * max(0.0, self._usum - in_head)
        total = tail + math.fsum((p / best) ** power for p in distribution.head.values())
        nucleus: list[tuple[float, int]] = [(1.0, token)]
        if self._top_p < 1.0:
            reached = 1.0
            while reached < self._top_p * total and (following := next(ranked, None)):
                reached += (following[0] / best) ** power
                nucleus.append(((following[0] / best) ** power, following[1]))
            total, ranked = reached, iter(())
        aim = self._rng.random() * total
        for weight, candidate in nucleus:
            aim -= weight
            token = candidate
            if aim < 0.0:
                return token
        for p, candidate in ranked:
            aim -= (p / best) ** power
            token = candidate
            if aim < 0.0:
                break
        return token  # rounding may leave a rest above the last token


class Reply:
    """One reply being drawn: iterate it for its pieces.

    Afterwards `finish` says why it ended (``stop``: the model's own end or a stop sequence;
    ``length``: `max_tokens` drawn) and `drawn` how many tokens were drawn, those of a stop
    sequence included, the end itself not.
    """

    def __init__(
        self,
        model: LanguageModel,
        sampler: Sampler,
        *,
        topic: frozenset[int],
        max_tokens: int,
        stop: tuple[str, ...] = (),
        top_logprobs: int = 0,
    ) -> None:
        self.finish: Literal["stop", "length"] | None = None
        self.drawn = 0
        self._model = model
        self._sampler = sampler
        self._topic = topic
        self._max_tokens = max_tokens
        self._stop = stop
        self._top = top_logprobs

    def __iter__(self) -> Iterator[Piece]:
        history: list[int] = []
        held: list[TokenChoice] = []  # tokens of the text that waits
        text = ""  # the text that waits
        while self.drawn < self._max_tokens:
            distribution = self._model.distribution(history, self._topic)
            token = self._sampler.draw(distribution)
            if token == self._model.END_ID:
                self.finish = "stop"
                break
            self.drawn += 1
            history.append(token)
            held.append(
                TokenChoice(
                    token,
                    math.log(distribution.probability(token)),
                    tuple((t, math.log(p)) for p, t in islice(distribution.ranked(), self._top)),
                )
            )
            text += self._model.tokens[token]
            cut = min((at for s in self._stop if (at := text.find(s)) >= 0), default=-1)
            if cut >= 0:
                self.finish = "stop"
                if cut:
                    yield Piece(text[:cut], tuple(self._until(held, cut)))
                return
            # Whole tokens leave as soon as no stop sequence can begin inside them.
            sure = len(text) - self._waiting(text)
            while held and len(self._model.tokens[held[0].id]) <= sure:
                first = held.pop(0)
                size = len(self._model.tokens[first.id])
                yield Piece(text[:size], (first,))
                text, sure = text[size:], sure - size
        else:
            self.finish = "length"
        if text:
            yield Piece(text, tuple(held))

    def _waiting(self, text: str) -> int:
        """Length of the longest end of `text` that begins one of the stop sequences."""
        longest = 0
        for stop in self._stop:
            for size in range(min(len(stop) - 1, len(text)), longest, -1):
                if stop.startswith(text[-size:]):
                    longest = size
                    break
        return longest

    def _until(self, held: list[TokenChoice], cut: int) -> Iterator[TokenChoice]:
        """The tokens that begin before character `cut` of the waiting text."""
        at = 0
        for choice in held:
            if at >= cut:
                return
            yield choice
            at += len(self._model.tokens[choice.id])
