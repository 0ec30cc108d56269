"""What a model's reply says about the model: certainty, repetition, change.

The measuring is native (`aegis_c.ReplyAnalysis`, `aegis_c/core/text/`), without the GIL for
long replies, in memory that does not grow with them. With `top_logprobs`: Shannon entropy of
every token with bounds, KL and Jensen-Shannon divergence from the token before. With `logprobs`
alone: surprisals. Always, of the text: entropy of its words, repetition, compression, loops,
change of script. The formulas are in `docs/formats.md`.

An analysis is a dict of finite numbers, names and positions that fits an entry; no text of the
reply is in it::

    {"available": true, "method": "top_logprobs" | "logprobs" | "text",
     "findings": [{"kind", "reason", "value", "threshold", "at"}, ...], ...statistics}
    {"available": false, "reason": "empty reply" | "not a JSON object" | ..., "findings": []}
"""

from __future__ import annotations

from typing import Any

from aegis_c import Baselines, ReplyAnalysis


class ResponseAnalyser:
    """Analyses replies, whole or as they stream. Safe to share between threads; never raises."""

    def __init__(self, baselines: Baselines | None = None) -> None:
        """`baselines`: what is ordinary for each model so far; nothing yet when left out."""
        self._baselines = Baselines() if baselines is None else baselines

    def analyse(self, body: bytes, *, model: str, session: str | None = None) -> dict[str, Any]:
        """The analysis of a plain reply, which `model` (as the caller named it) gave."""
        reply = self.reply(model=model, session=session)
        reply.feed(body)
        return reply.finish()

    def reply(self, *, model: str, session: str | None = None) -> ReplyStream:
        """One plain reply, fed in pieces."""
        return ReplyStream(self._baselines, model, session, events=False)

    def stream(self, *, model: str, session: str | None = None) -> ReplyStream:
        """One streamed reply, fed as its events go out."""
        return ReplyStream(self._baselines, model, session, events=True)


class ReplyStream:
    """One reply under way: its bytes in their order, cut anywhere. Never raises."""

    __slots__ = ("_analysis", "_reason", "feed")

    def __init__(
        self, baselines: Baselines, model: str, session: str | None, *, events: bool
    ) -> None:
        self._reason = ""
        try:
            self._analysis = ReplyAnalysis(
                baselines,
                model=_encodable(model),
                session=None if session is None else _encodable(session),
                events=events,
            )
            self.feed = self._analysis.feed
        except MemoryError:
            self._reason = "no memory to analyse it"
            self.feed = _ignore

    def finish(self) -> dict[str, Any]:
        """The analysis of all that was fed. Once."""
        if self._reason:
            return {"available": False, "reason": self._reason, "findings": []}
        try:
            return self._analysis.finish()
        except MemoryError:
            return {"available": False, "reason": "no memory to analyse it", "findings": []}


def _encodable(text: str) -> str:
    """The text without lone surrogates, which no UTF-8 has."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


def _ignore(data: bytes) -> None:
    pass
