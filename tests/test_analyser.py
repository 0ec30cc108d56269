"""The reply analyser: by hand, against slow twins, in any cut, and on whatever upstreams send."""

from __future__ import annotations

import array
import json
import math
import os
import random
import threading
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from benchmarks import test_entropy as bench
from benchmarks import twin_entropy
from hypothesis import given, settings
from hypothesis import strategies as st

from aegis_c import Baselines, ReplyAnalysis, token_divergence, token_entropy, token_key
from aegis_c.demo import corpus
from aegis_c.demo.language_model import LanguageModel
from aegis_c.demo.sampler import Reply, Sampler
from aegis_c.gateway.background.analyser import ResponseAnalyser
from native import check_no_leak, counts_while, ignore
from reference import entropy as twin

VOCABULARY_MAX = twin.VOCABULARY_MAX


def ln(*probabilities: float) -> list[float]:
    return [math.log(p) for p in probabilities]


def listed(*probabilities: float) -> dict[bytes, float]:
    return {b"t%d" % i: math.log(p) for i, p in enumerate(probabilities)}


def token(logprob: Any, *alternatives: Any, name: str = "t0") -> dict[str, Any]:
    """A token record whose list has the tokens t0, t1, ... with these logprobs."""
    top = [{"token": f"t{i}", "logprob": value} for i, value in enumerate(alternatives)]
    return {"token": name, "logprob": logprob, "bytes": None, "top_logprobs": top}


def body(*content: Any, text: str | None = None) -> bytes:
    choice = {"index": 0, "logprobs": {"content": list(content), "refusal": None}}
    if text is not None:
        choice["message"] = {"role": "assistant", "content": text}
    return json.dumps({"choices": [choice]}).encode()


def events(*texts: str) -> bytes:
    parts = [{"choices": [{"index": 0, "delta": {"content": t}}]} for t in texts]
    return b"".join(b"data: %s\n\n" % json.dumps(p).encode() for p in parts) + b"data: [DONE]\n\n"


def analyse(reply: bytes) -> dict[str, Any]:
    return ResponseAnalyser().analyse(reply, model="m", session=None)


def text_of(text: str) -> dict[str, Any]:
    analysis = ReplyAnalysis()
    analysis.text(text.encode())
    found: dict[str, Any] = analysis.finish()["text"]
    return found


def kinds(analysis: dict[str, Any]) -> list[str]:
    return [finding["kind"] for finding in analysis["findings"]]


# ---- one token, by hand ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("probabilities", "bits"),
    [
        ([1.0], 0.0),
        ([0.5, 0.5], 1.0),
        ([0.25] * 4, 2.0),
        ([0.5, 0.25, 0.25], 1.5),
        ([0.5, 0.25, 0.125, 0.125], 1.75),
        ([1 / 20] * 20, math.log2(20)),
        ([1 / 300] * 300, math.log2(300)),
    ],
)
def test_complete_lists_have_their_exact_entropy(probabilities: list[float], bits: float) -> None:
    bounds = token_entropy(listed(*probabilities))
    assert bounds is not None
    # Rounding leaves a tail of at most 1e-12, which weighs next to nothing.
    assert bounds == pytest.approx((bits, bits, 0.0), abs=1e-9)


def test_tail_by_hand() -> None:
    """p = 1/2, 1/4 listed; a quarter is unseen, in tokens of at most 1/4 each."""
    bounds = token_entropy(listed(0.5, 0.25))
    upper = 1.0 + 0.25 * math.log2((VOCABULARY_MAX - 2) / 0.25)
    assert bounds == pytest.approx((0.5 + 0.5 + 0.25 * 2, upper, 0.25))


def test_drawn_token_outside_the_list_counts() -> None:
    """p = 1/2, 1/4 listed, the drawn one has 1/8: an eighth is unseen, at most 1/8 each."""
    result = analyse(body(token(math.log(0.125), *ln(0.5, 0.25), name="x")))
    assert result["mean"] == pytest.approx(0.5 + 0.5 + 3 / 8 + 3 / 8)
    assert (result["tail"], result["surprisal_mean"]) == (0.125, 3.0)
    result = analyse(body(token(math.log(0.25), *ln(0.5, 0.25), name="t1")))
    assert (result["tail"], result["surprisal_mean"]) == (0.25, 2.0)


def test_divergence_by_hand() -> None:
    half, other = {b"a": math.log(0.5), b"b": math.log(0.5)}, {b"c": 0.0}
    found = token_divergence(half, half)
    assert found == pytest.approx((0.0, 0.0), abs=1e-9)
    found = token_divergence({b"a": 0.0}, other)  # nothing in common: 1 bit, but for the floor
    assert found is not None
    assert found[1] == pytest.approx(1.0, abs=1e-4)
    # P = (3/4, 1/4), Q = (1/4, 3/4): KL = 1/2 log2 3, JS = 1 - H(1/4)
    kl, js = token_divergence(
        {b"a": math.log(0.75), b"b": math.log(0.25)},
        {b"a": math.log(0.25), b"b": math.log(0.75)},
    ) or (0.0, 0.0)
    quarter = -0.25 * math.log2(0.25) - 0.75 * math.log2(0.75)
    assert kl == pytest.approx(0.5 * math.log2(3), abs=1e-5)
    assert js == pytest.approx(1 - quarter, abs=1e-5)


def test_tokens_are_told_apart_by_their_octets() -> None:
    """Half a character has the replacement character as its text: `bytes` says which half."""

    def one(octets: list[int]) -> dict[str, Any]:
        record = {"token": "\ufffd", "bytes": octets, "logprob": 0.0}
        return {**record, "top_logprobs": [record]}

    assert analyse(body(one([0xE2]), one([0xE2])))["js_mean"] == pytest.approx(0.0, abs=1e-5)
    assert analyse(body(one([0xE2]), one([0xE3])))["js_mean"] == pytest.approx(1.0, abs=1e-3)
    assert token_key(b"a") != token_key(b"b") != token_key(b"")


# ---- one token, against the twin ---------------------------------------------------------------

mappings = st.dictionaries(
    st.binary(min_size=1, max_size=2), st.floats(-30, 0.001), min_size=1, max_size=25
)


def near_the_edge(*lists: dict[bytes, float]) -> bool:
    """Where rounding decides whether it is a distribution at all."""
    return any(
        abs(math.fsum(map(math.exp, one.values())) - bound) < 1e-9
        for one in lists
        for bound in (1.0, 1.001)
    )


@settings(max_examples=150)
@given(mappings, mappings, st.booleans())
def test_entropy_and_divergence_are_the_formulas(
    now: dict[bytes, float], before: dict[bytes, float], scale: bool
) -> None:
    if scale:  # random lists are seldom distributions

        def normal(one: dict[bytes, float]) -> dict[bytes, float]:
            total = math.log(math.fsum(map(math.exp, one.values())) * 1.1)
            return {t: x - total for t, x in one.items()}

        now, before = normal(now), normal(before)
    if near_the_edge(now, before):
        return
    expected = twin.token_entropy(now)
    found = token_entropy(now)
    assert (found is None) == (expected is None)
    if found is not None and expected is not None:
        assert found == pytest.approx(expected, rel=1e-9, abs=1e-9)
    apart, twins = token_divergence(now, before), twin.token_divergence(now, before)
    assert (apart is None) == (twins is None)
    if apart is not None and twins is not None:
        assert apart == pytest.approx(twins, rel=1e-7, abs=1e-7)
        assert 0 <= apart[1] <= 1


@given(
    st.lists(st.integers(1, 1_000_000), min_size=2, max_size=60),
    st.integers(1, 20),
)
def test_bounds_hold_for_the_whole_distribution(weights: list[int], k: int) -> None:
    """Whatever the full distribution is, its true entropy lies between the bounds."""
    total = sum(weights)
    p = sorted((w / total for w in weights), reverse=True)
    true = -sum(x * math.log2(x) for x in p)
    bounds = token_entropy(listed(*p[:k]))
    assert bounds is not None
    assert bounds[0] - 1e-9 <= true <= bounds[1] + 1e-9
    assert 0 <= bounds[2] <= 1


def test_bounds_hold_on_the_built_in_model() -> None:
    """top-20 of the built-in model, whose whole distributions are known."""
    model = LanguageModel(corpus.load())
    for seed in range(3):
        sampler = Sampler(model, 1.0, 1.0, random.Random(seed))
        reply = Reply(model, sampler, topic=frozenset(), max_tokens=30, top_logprobs=20)
        history: list[int] = []
        for choice in (choice for piece in reply for choice in piece.tokens):
            whole = [p for p, _ in model.distribution(history).ranked()]
            true = -sum(p * math.log2(p) for p in whole)
            bounds = token_entropy({b"%d" % t: p for t, p in choice.top})
            assert bounds is not None
            assert bounds[0] - 1e-9 <= true <= bounds[1] + 1e-9
            history.append(choice.id)


# ---- the sequence ------------------------------------------------------------------------------


def replies(xs: list[float], cuts: list[int]) -> list[dict[str, Any]]:
    """Analyses of the replies of one session whose tokens have these entropies, 0 to 1 bit."""
    baselines = Baselines()
    found = []
    for start, end in zip([0, *cuts], [*cuts, len(xs)], strict=True):
        analysis = ReplyAnalysis(baselines, model="m", session="s")
        for x in xs[start:end]:
            # two tokens, p and 1 - p, have every entropy from 0 to 1; found by halving
            low, high = 0.0, 0.5
            for _ in range(60):
                p = (low + high) / 2
                bits = -p * math.log2(p) - (1 - p) * math.log2(1 - p)
                low, high = (p, high) if bits < x else (low, p)
            logprobs = array.array("d", [math.log(1 - high), math.log(high)])
            keys = array.array("Q", [1, 2])
            analysis.tokens(
                logprobs.tobytes(), keys.tobytes(), logprobs[:1].tobytes(), keys[:1].tobytes()
            )
        found.append(analysis.finish())
    return found


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 300), st.integers(0, 2**32), st.floats(0, 1), st.floats(0, 1))
def test_sequences_are_the_formulas(n: int, seed: int, level: float, cut: float) -> None:
    rng = random.Random(seed)
    xs = [min(1.0, max(1e-6, rng.random() * (1.0 if i < n / 2 else level))) for i in range(n)]
    at = int(cut * n)
    cuts = [at] if 0 < at < n else []
    *_, last = replies(xs, cuts)
    own = xs[at:] if cuts else xs
    assert last["count"] == len(own)
    assert last["mean"] == pytest.approx(math.fsum(own) / len(own), abs=2e-6)
    assert (last["ema"], last["ema_min"]) == pytest.approx(twin.ema(own), abs=2e-6)
    window = twin.window_min(own)
    assert ("window_min" in last) == (window is not None)
    if window is not None:
        assert last["window_min"] == pytest.approx(window[0], abs=2e-6)
        begins = last["window_at"]
        assert math.fsum(own[begins : begins + 32]) / 32 == pytest.approx(window[0], abs=2e-6)
    expected = twin.drift(xs, len(xs) - len(own))
    assert last["drift"] == pytest.approx(expected, rel=1e-4, abs=1e-4)


def test_sessions_and_models_do_not_mix() -> None:
    calm, wild = body(*[token(0.0, 0.0)] * 200), body(*[token(-2.0, *ln(*[0.125] * 8))] * 200)
    one = ResponseAnalyser()
    assert kinds(one.analyse(calm, model="m", session="s")) == []
    assert kinds(one.analyse(wild, model="m", session="t")) == []
    assert kinds(one.analyse(wild, model="n", session="s")) == []
    assert kinds(one.analyse(wild, model="m", session=None)) == []
    (drift,) = one.analyse(wild, model="m", session="s")["findings"]
    assert drift["kind"] == "drift" and "larger" in drift["reason"] and drift["at"] <= 200


def test_collapse_by_hand() -> None:
    before, after = token(-2.0, *ln(*[0.25] * 4)), token(0.0, 0.0)
    assert kinds(analyse(body(*[before] * 100))) == []
    assert (
        kinds(analyse(body(*[after] * 100))) == []
    )  # certain from the start: it fell from nothing
    found = analyse(body(*[before] * 64, *[after] * 40))
    (collapse,) = (f for f in found["findings"] if f["kind"] == "collapse")
    assert (collapse["value"], collapse["threshold"], collapse["at"]) == (0.0, 0.2, 64)
    assert collapse["reason"].startswith("mean entropy fell from 2 to 0 bits")


def test_surprisals_alone_are_measured() -> None:
    content = [{"token": "a", "logprob": math.log(0.25), "bytes": None, "top_logprobs": []}] * 40
    found = analyse(body(*content))
    assert (found["method"], found["surprisals"], found["surprisal_mean"]) == ("logprobs", 40, 2.0)
    assert found["ema"] == 2.0 and "mean" not in found


# ---- the text ----------------------------------------------------------------------------------


def test_text_by_hand() -> None:
    found = text_of("the cat saw the dog; the dog saw the cat")
    assert found["words"] == 10
    # the: 4; cat, saw, dog: 2 each
    assert found["entropy"] == pytest.approx(0.4 * math.log2(2.5) + 0.6 * math.log2(5), abs=1e-6)
    assert found["scripts"] == {"latin": 30}
    found = text_of("one two three four five one two three four")
    assert found["repetition"] == pytest.approx(1 / 6, abs=1e-6)
    found = text_of("abcd" * 100)
    assert (found["loop"], found["compression"]) == (400, (4 + 3) / 400)
    assert "loop" not in text_of("-" * 2000) and text_of("-" * 2000)["signs"] == 2000


words = st.lists(
    st.sampled_from(["alpha", "beta", "Gamma", "δέλτα", "жизнь", "東京", "42", "x", "ภาษา"]),
    max_size=80,
)
separators = st.sampled_from([" ", ", ", "\n\n", " — ", "!"])


@settings(max_examples=60)
@given(words, separators, st.integers(1, 4))
def test_text_statistics_are_the_formulas(chosen: list[str], separator: str, times: int) -> None:
    text = separator.join(chosen * times)
    if not text:
        return
    found, items = text_of(text), twin.words(text)
    assert found["words"] == len(items)
    assert found["entropy"] == pytest.approx(twin.histogram_entropy(items), abs=2e-6)
    share = twin.repetition(items)  # of which a bounded memory forgets a little
    assert share - 0.1 <= found["repetition"] <= share + 2e-6
    compression, loop = twin.parse(text.encode())
    assert found["compression"] == pytest.approx(compression, abs=2e-6)
    assert found.get("loop", 0) == loop


@settings(max_examples=60)
@given(st.binary(max_size=400), st.integers(1, 40))
def test_compression_is_the_formula_on_any_octets(data: bytes, times: int) -> None:
    analysis = ReplyAnalysis()
    analysis.text(data * times)
    found = analysis.finish()
    if data:
        compression, loop = twin.parse(data * times)
        assert found["text"]["compression"] == pytest.approx(compression, abs=2e-6)
        assert found["text"].get("loop", 0) == loop
        text = (data * times).decode("utf-8", "replace")
        assert (found["text"].get("damaged", 0) > 0) == ("\ufffd" in text)


def test_a_change_of_script_is_found_where_it_begins() -> None:
    assert kinds(analyse(body(text="Plain words. " + "ж" * 20))) == []  # none had settled before
    text = "These are plain words of one script. Это уже совсем другие слова."
    (finding,) = analyse(body(text=text))["findings"]
    assert (finding["kind"], finding["reason"]) == (
        "script",
        "script changes from latin to cyrillic at octet `at`",
    )
    assert text.encode()[finding["at"] :].decode().startswith("Это")
    assert kinds(analyse(body(text="Das Wort жизнь heißt Leben, und so weiter."))) == []


def test_a_loop_says_where_and_how_often() -> None:
    text = "Once upon a time there was a king. " + "He said so again. " * 12
    (finding,) = (f for f in analyse(body(text=text))["findings"] if f["kind"] == "loop")
    assert finding["reason"] == "18 octets 12 times in a row from octet `at`"
    # the ". " before it is part of the loop
    assert (finding["at"], finding["value"], finding["threshold"]) == (33, 218.0, 96.0)


# ---- cuts, framing, providers ------------------------------------------------------------------

MIXED = "Grüße, 世界! " + "so it goes and so it goes and " * 9 + '\U0001f600 "quoted" \\ ünd\n'


def cut(feed: Callable[[bytes], object], data: bytes, sizes: list[int]) -> None:
    at = 0
    for size in sizes:
        feed(data[at : at + size])
        at += size
    feed(data[at:])


@settings(max_examples=40)
@given(st.data(), st.booleans(), st.booleans())
def test_every_cut_gives_the_same(data: st.DataObject, ascii_only: bool, stream: bool) -> None:
    content = [token(-3 - 0.1 * i, *ln(0.5, 0.3), name=f"t{i}") for i in range(40)]
    choice = {"index": 0, "message": {"content": MIXED}, "logprobs": {"content": content}}
    reply = json.dumps({"choices": [choice]}, ensure_ascii=ascii_only).encode()
    if stream:
        reply = b": ping\r\n\r\nevent: x\r\ndata: %s\r\n\r\ndata: [DONE]\n\n" % reply
    sizes = data.draw(st.lists(st.integers(0, len(reply) // 2), max_size=8))
    whole, parts = (ReplyAnalysis(events=stream) for _ in range(2))
    whole.feed(reply)
    cut(parts.feed, reply, sizes)
    expected = whole.finish()
    assert parts.finish() == expected
    assert (expected["count"], kinds(expected)) == (40, ["loop"])
    assert expected["text"]["octets"] == len(MIXED.encode())


def test_octet_by_octet() -> None:
    for stream, reply in (
        (False, body(token(-0.5, *ln(0.6, 0.1)), text=MIXED)),
        (True, events(MIXED)),
    ):
        whole, parts = (ReplyAnalysis(events=stream) for _ in range(2))
        whole.feed(reply)
        for i in range(len(reply)):
            parts.feed(reply[i : i + 1])
        assert parts.finish() == whole.finish()


def test_a_stream_is_analysed_like_its_plain_reply() -> None:
    content = [token(math.log(0.5), *ln(0.5, 0.25)), token(-0.1, *ln(0.9, 0.05), name="x")]
    stream = ResponseAnalyser().stream(model="m", session=None)
    for one in content:
        stream.feed(b"data: %s\n\n" % body(one))
    stream.feed(b'data: {"choices":[],"usage":{"total_tokens":5}}\n\ndata: [DONE]\n\n')
    assert stream.finish() == analyse(body(*content))


HELLO = "hello big world"
PART = {"type": "output_text", "text": HELLO}
PIECES = ("hello b", "ig world")
NEITHER = "neither text nor logprobs"


@pytest.mark.parametrize(
    "reply",
    [
        {"choices": [{"index": 0, "message": {"content": HELLO}}]},
        {"choices": [{"index": 0, "message": {"content": [PART]}}]},
        {"choices": [{"index": 0, "text": HELLO}]},
        {"content": [{"type": "text", "text": "hello big "}, {"type": "text", "text": "world"}]},
        {"output": [{"type": "message", "content": [PART]}]},
    ],
    ids=["chat", "parts", "completion", "anthropic", "responses"],
)  # fmt: skip
def test_the_text_of_every_provider_is_read(reply: dict[str, Any]) -> None:
    found = analyse(json.dumps({"id": "text", "usage": {"content": "no"}, **reply}).encode())
    assert (found["method"], found["text"]["words"]) == ("text", 3)


@pytest.mark.parametrize(
    "parts",
    [
        [{"choices": [{"index": 0, "delta": {"content": t}}]} for t in PIECES],
        [{"delta": {"type": "text_delta", "text": t}} for t in PIECES],
        [{"type": "response.output_text.delta", "delta": t} for t in PIECES],
    ],
    ids=["chat", "anthropic", "responses"],
)  # fmt: skip
def test_the_streams_of_every_provider_are_read(parts: list[dict[str, Any]]) -> None:
    stream = ResponseAnalyser().stream(model="m")
    for part in parts:
        stream.feed(b"event: x\ndata: %s\n\n" % json.dumps(part).encode())
    assert stream.finish()["text"]["words"] == 3


def test_choices_follow_each_other_in_a_body_and_only_the_first_is_read_of_a_stream() -> None:
    one, two = token(0.0, 0.0), token(-0.7, *ln(0.5, 0.5))
    choices = [{"index": i, "logprobs": {"content": [t]}} for i, t in enumerate((one, two))]
    result = analyse(json.dumps({"choices": choices}).encode())
    assert (result["count"], result["mean"], result["max"], result["choices"]) == (2, 0.5, 1.0, 2)
    assert "js_mean" not in result  # two choices are not consecutive
    stream = ResponseAnalyser().stream(model="m")
    for choice in choices:
        stream.feed(b"data: %s\n\n" % json.dumps({"choices": [choice]}).encode())
    result = stream.finish()
    assert (result["count"], result["mean"], result["choices"]) == (1, 0.0, 2)
    assert result["other_tokens"] == 1


# ---- what cannot be analysed -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (b"", "empty reply"),
        (b"not json", "not a JSON object"),
        (b"\xff\xfe", "not a JSON object"),
        (b"[1, 2]", "not a JSON object"),
        (b"null", "not a JSON object"),
        (b'{"choices": [' + b"[" * 100_000, NEITHER),
        (b"{}", NEITHER),
        (b'{"choices": null}', NEITHER),
        (b'{"choices": [null, 5, {"logprobs": null}, {"logprobs": 1}]}', NEITHER),
        (b'{"choices": [{"logprobs": {"content": {"a": 1}}}]}', NEITHER),
        (body(), NEITHER),
        (body(None, 7, "x", []), NEITHER),
        (body(token("low")), NEITHER),
        (body(token(None, "low")), "no usable top_logprobs"),
        (body(token(None, None)), "no usable top_logprobs"),
        (body(token(None, True)), "no usable top_logprobs"),
        (body(token(None, 0.5)), "no usable top_logprobs"),
        (body(token(None, -0.1, -0.1)), "no usable top_logprobs"),
        (body(token(None, 10**400)), "no usable top_logprobs"),
        (body(token(None, math.nan)), "no usable top_logprobs"),
        (body(token(math.nan, math.inf)), "no usable top_logprobs"),
        (body(token(None, -math.inf, math.nan)), "no usable top_logprobs"),
    ],
)  # fmt: skip
def test_what_cannot_be_analysed_says_why(reply: bytes, reason: str) -> None:
    found = analyse(reply)
    assert (found["available"], found["reason"], found["findings"]) == (False, reason, [])
    stream = ResponseAnalyser().stream(model="m")
    stream.feed(b": nothing but a heartbeat\n\n")
    assert stream.finish()["reason"] == "no events"


def test_what_is_damaged_is_counted_beside_the_rest() -> None:
    good, bad, bare = token(0.0, 0.0), token(0, "x"), {"token": "a", "logprob": -1.0}
    result = analyse(body(good, bad, bare, good))
    assert (result["count"], result["skipped"], result["unlisted"]) == (2, 1, 1)
    assert "js_mean" not in result  # the two good ones are not consecutive
    assert analyse(body(good, good)[:-3])["damaged"] == 1
    for text in ("{damaged", '{"choices": 5 5}', "{} {}", '{"choices": [}'):
        stream = ResponseAnalyser().stream(model="m")
        stream.feed(b"data: %s\n\n" % text.encode() + b"data: %s\n\n" % body(good))
        found = stream.finish()
        assert (found["count"], found["damaged"]) == (1, 1), text
    result = analyse(body(token(math.nan, 0.0), token(0.5, 0.0), token(-math.inf, 0.0)))
    assert (result["count"], result["impossible"]) == (3, 3)


def test_impossible_tokens_have_no_weight() -> None:
    """-9999 is how OpenAI writes 'practically impossible'; some servers write -Infinity."""
    with_rest = analyse(body(token(0.0, 0.0, -9999.0, -9999, -math.inf)))
    assert (with_rest["mean"], with_rest["mean_upper"]) == (0.0, 0.0)
    some = token_entropy({b"a": math.log(0.5), b"b": -math.inf})
    assert some is not None and some[0] == pytest.approx(1.0)
    assert all(math.isfinite(x) for x in some)
    assert all(
        map(math.isfinite, token_divergence({b"a": 0.0, b"b": -math.inf}, {b"b": 0.0}) or ())
    )


def test_thousands_of_logprobs() -> None:
    result = analyse(body(*[token(-9.0, *ln(*[1 / 5000] * 5000))] * 2))
    assert result["mean"] == pytest.approx(math.log2(5000), abs=1e-4)
    assert analyse(body(*[token(-0.7, *ln(0.5, 0.5))] * 20_000))["count"] == 20_000


def test_a_reply_of_ten_megabytes() -> None:
    block = "".join(random.Random(1).choices("abcdefgh \n", k=100_000))
    found = analyse(body(text=block * 100))
    assert found["text"]["octets"] == 10_000_000
    assert set(kinds(found)) <= {"repetition", "compression"}


def test_the_twin_of_the_benchmark_measures_the_same() -> None:
    tokens = bench.TOKENS[200]
    drawn = [next(iter(one.values())) for one in tokens]
    twins = twin_entropy.measure(tokens, drawn)
    analysis = ReplyAnalysis()
    analysis.tokens(*bench.arrays(tokens))
    found, read = analysis.finish(), analyse(bench.body(200))
    names = ("mean", "mean_upper", "surprisal_mean", "kl_mean", "js_mean", "ema")
    for one in (found, read):  # from arrays, and from the JSON
        assert [one[name] for name in names] == pytest.approx(twins, abs=2e-6)


def test_arrays_that_do_not_go_together_are_refused() -> None:
    analysis, eight = ReplyAnalysis(), bytes(8)
    for arrays in (
        (eight, b"", eight, eight),
        (eight, eight, eight, b""),
        (b"x", b"x", eight, eight),
        (eight, eight, b"", b""),
        (eight * 3, eight * 3, eight * 2, eight * 2),
    ):
        with pytest.raises(ValueError, match="logprobs"):
            analysis.tokens(*arrays)
    analysis.tokens(b"", b"", b"", b"")
    assert analysis.finish()["reason"] == "empty reply"
    for call in (lambda: analysis.feed(b""), analysis.finish, lambda: analysis.text(b"")):
        with pytest.raises(ValueError, match="finished"):
            call()


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(
                ["choices", "logprobs", "content", "top_logprobs", "logprob", "token", "bytes"]
                + ["delta", "message", "text", "index", "output"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=25,
)


@settings(max_examples=60)
@given(json_values, json_values, json_values)
def test_any_json_is_reported(one: Any, two: Any, three: Any) -> None:
    logprobs = {"content": [one, two, {"top_logprobs": three, "logprob": 0}]}
    listed_one = [{"top_logprobs": [{"logprob": one}], "token": two}]
    for value in (
        one,
        {"choices": one},
        {"choices": [{"logprobs": logprobs}]},
        {"choices": [{"logprobs": {"content": listed_one}, "message": {"content": three}}]},
    ):
        text = json.dumps(value).encode()
        found = analyse(text)
        check(found)
        if isinstance(value, dict):  # well-formed: nothing is damaged
            assert "damaged" not in found


@given(st.binary(max_size=200), st.booleans())
def test_any_bytes_are_reported(data: bytes, stream: bool) -> None:
    one = ResponseAnalyser()
    for session in (None, "s", "\ud800"):
        found = one.stream(model="\udfff", session=session)
        found.feed(b"data: " + data)
        check(found.finish())
        check(one.analyse(b'{"choices":[{"text":"' + data, model="m", session=session))


def check(result: dict[str, Any]) -> None:
    """A small, finite, encodable result, whatever came in."""
    assert len(msgspec.json.encode(result)) < 2048
    assert isinstance(result["findings"], list)
    if not result["available"]:
        assert result["reason"]

    def finite(value: object) -> bool:
        if isinstance(value, dict):
            return all(map(finite, value.values()))
        if isinstance(value, list):
            return all(map(finite, value))
        return not isinstance(value, float) or math.isfinite(value)

    assert finite(result)


# ---- baselines ---------------------------------------------------------------------------------


def uniform(bits: int) -> bytes:
    return body(*[token(None, *ln(*[0.5**bits] * 2**bits))] * 40)


@settings(max_examples=10, deadline=None)
@given(st.lists(st.integers(0, 6), min_size=1, max_size=40), st.floats(0, 1))
def test_quantiles_are_the_formula(levels: list[int], part: float) -> None:
    baselines = Baselines()
    analyser = ResponseAnalyser(baselines)
    for bits in levels:
        analyser.analyse(uniform(bits), model="m")
    found = baselines.quantile("m", "entropy", part)
    assert found == pytest.approx(twin.quantile(levels, part), rel=1e-6)
    exact = sorted(levels)[math.floor(part * (len(levels) - 1))]
    assert found == pytest.approx(exact, rel=0.0501, abs=1e-9)
    assert baselines.quantile("n", "entropy", part) is None
    for bad in (("m", "x", 0.5), ("m", "entropy", 1.5), ("m", "entropy", math.nan)):
        with pytest.raises(ValueError, match="statistic"):
            baselines.quantile(*bad)


def test_thresholds_adapt_to_the_model_within_bounds() -> None:
    analyser = ResponseAnalyser()
    assert kinds(analyser.analyse(uniform(9), model="m")) == ["entropy"]  # above 8 bits
    for _ in range(200):
        analyser.analyse(uniform(4), model="m")
    found = analyser.analyse(uniform(9), model="m")
    assert kinds(found) == []  # twice what is ordinary here is no finding: 2.5 times would be
    for _ in range(200):
        analyser.analyse(uniform(1), model="calm")
    (finding,) = analyser.analyse(uniform(4), model="calm")["findings"]
    assert finding["threshold"] == 3.0  # never less
    assert kinds(analyser.analyse(uniform(4), model="m")) == []


def test_more_models_than_there_is_room_for() -> None:
    baselines = Baselines()
    analyser = ResponseAnalyser(baselines)
    for i in range(70):
        analyser.analyse(uniform(1), model=f"m{i}", session=f"s{i}")
    assert baselines.quantile("m0", "entropy", 0.5) is None
    assert baselines.quantile("m69", "entropy", 0.5) is not None


# ---- threads, forks, leaks ---------------------------------------------------------------------


def test_threads_share_an_analyser() -> None:
    baselines = Baselines()
    analyser = ResponseAnalyser(baselines)
    reply = body(*[token(-0.7, *ln(0.5, 0.5))] * 300, text=MIXED * 100)
    found: list[dict[str, Any]] = []

    def run(i: int) -> None:
        found.extend(analyser.analyse(reply, model="m", session=str(i)) for _ in range(20))

    threads = [threading.Thread(target=run, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 80 and all(one["mean"] == 1.0 for one in found)
    assert baselines.quantile("m", "entropy", 1.0) == pytest.approx(1.0, rel=0.05)


def test_other_threads_keep_their_pace() -> None:
    reply = body(text=MIXED * 30_000)
    assert counts_while(lambda: analyse(reply)) > 1000


def test_a_fork_does_not_share() -> None:
    baselines, analysis = Baselines(), ReplyAnalysis()
    child = os.fork()
    if child == 0:
        refused = 0
        for call in (
            lambda: baselines.quantile("m", "entropy", 0.5),
            lambda: analysis.feed(b"x"),
            lambda: ReplyAnalysis(baselines),
        ):
            try:
                call()
            except RuntimeError:
                refused += 1
        os._exit(refused)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3


def test_nothing_leaks_from_analyses() -> None:
    baselines, reply = Baselines(), body(token(-0.5, *ln(0.6, 0.1)), text=MIXED)

    def one() -> None:
        analysis = ReplyAnalysis(baselines, model="m", session="s", events=True)
        analysis.feed(events(MIXED))
        analysis.finish()
        ReplyAnalysis().feed(reply)
        ResponseAnalyser(baselines).analyse(reply, model="m")
        ignore(TypeError, lambda: ReplyAnalysis(5))()  # type: ignore[arg-type]
        ignore(TypeError, lambda: analysis.feed("x"))()  # type: ignore[arg-type]
        token_entropy({b"a": -1.0})
        ignore(TypeError, lambda: token_entropy({1: 2}))()  # type: ignore[dict-item]
        token_divergence({b"a": -1.0}, {b"b": -1.0})

    check_no_leak(one, times=60)
