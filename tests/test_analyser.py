"""The reply analyser: entropy by hand, against a slow twin, and on whatever upstreams send."""

from __future__ import annotations

import json
import math
import random
from decimal import Decimal, getcontext
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aegis_c.demo import corpus
from aegis_c.demo.language_model import LanguageModel
from aegis_c.demo.sampler import Reply, Sampler
from aegis_c.gateway.background.analyser import (
    REPLY_MAX,
    VOCABULARY_MAX,
    ResponseAnalyser,
    analyse,
    entropy_bounds,
)

getcontext().prec = 40
LOG2 = Decimal(2).ln()


def token(logprob: Any, *listed: Any, name: str = "t0") -> dict[str, Any]:
    """A token record whose list has the tokens t0, t1, ... with these logprobs."""
    top = [{"token": f"t{i}", "logprob": value} for i, value in enumerate(listed)]
    return {"token": name, "logprob": logprob, "bytes": None, "top_logprobs": top}


def body(*content: Any) -> bytes:
    choice = {"index": 0, "logprobs": {"content": list(content), "refusal": None}}
    return json.dumps({"choices": [choice]}).encode()


def ln(*probabilities: float) -> list[float]:
    return [math.log(p) for p in probabilities]


# ---- by hand --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("probabilities", "bits"),
    [
        ([1.0], 0.0),
        ([0.5, 0.5], 1.0),
        ([0.25] * 4, 2.0),
        ([0.5, 0.25, 0.25], 1.5),
        ([0.5, 0.25, 0.125, 0.125], 1.75),
        ([1 / 20] * 20, math.log2(20)),
    ],
)
def test_complete_lists_have_their_exact_entropy(probabilities: list[float], bits: float) -> None:
    bounds = entropy_bounds(ln(*probabilities))
    assert bounds is not None
    assert bounds[0] == pytest.approx(bits, abs=1e-9)
    # Rounding leaves a tail of at most 1e-15, which weighs next to nothing.
    assert bounds[1] == pytest.approx(bits, abs=1e-9)
    assert bounds[2] == pytest.approx(0.0, abs=1e-12)


def test_tail_by_hand() -> None:
    """p = 1/2, 1/4 listed; a quarter is unseen, in tokens of at most 1/4 each."""
    bounds = entropy_bounds(ln(0.5, 0.25))
    assert bounds is not None
    assert bounds[0] == pytest.approx(0.5 + 0.5 + 0.25 * 2)
    assert bounds[1] == pytest.approx(1.0 + 0.25 * math.log2((VOCABULARY_MAX - 2) / 0.25))
    assert bounds[2] == pytest.approx(0.25)


def test_drawn_token_outside_the_list_counts() -> None:
    """p = 1/2, 1/4 listed, the drawn one has 1/8: an eighth is unseen, at most 1/8 each."""
    bounds = entropy_bounds(ln(0.5, 0.25), math.log(0.125))
    assert bounds is not None
    assert bounds[0] == pytest.approx(0.5 + 0.5 + 0.125 * 3 + 0.125 * 3)
    assert bounds[2] == pytest.approx(0.125)
    outside = body(token(math.log(0.125), *ln(0.5, 0.25), name="other"))
    inside = body(token(math.log(0.25), *ln(0.5, 0.25), name="t1"))
    assert analyse(outside)["mean"] == pytest.approx(1.75, abs=1e-6)
    assert analyse(inside)["mean"] == pytest.approx(1.5, abs=1e-6)


def test_whole_reply_by_hand() -> None:
    reply = body(token(0.0, 0.0), token(math.log(0.5), *ln(0.5, 0.5)), token(-1, *ln(*[0.25] * 4)))
    assert analyse(reply) == {
        "available": True,
        "method": "top_logprobs",
        "count": 3,
        "mean": 1.0,
        "max": 2.0,
        "mean_upper": 1.0,
        "max_upper": 2.0,
        "tail": 0.0,
    }


# ---- against a slow twin --------------------------------------------------------------------


def twin(logprobs: list[float], drawn: float | None) -> tuple[Decimal, Decimal, Decimal] | None:
    """The docstring's formulas in forty digits."""
    known = [Decimal(x) for x in logprobs] + ([] if drawn is None else [Decimal(drawn)])
    p = [x.exp() for x in known]
    if max(known) > Decimal("0.001") or sum(p) > Decimal("1.001"):
        return None
    bits = sum((-x * lp / LOG2 for x, lp in zip(p, known, strict=True)), Decimal(0))
    bits = max(bits, Decimal(0))
    tail = max(Decimal(0), 1 - sum(p))
    if tail == 0:
        return bits, bits, tail
    least = min(Decimal(min(logprobs)).exp(), tail)
    lower = bits + tail * (1 / least).ln() / LOG2
    upper = bits + tail * ((VOCABULARY_MAX - len(p)) / tail).ln() / LOG2
    return min(lower, upper), upper, tail


lists = st.lists(st.floats(-30, 0.01), min_size=1, max_size=25)


@given(lists, st.none() | st.floats(-30, 0.01))
def test_bounds_are_the_formulas(logprobs: list[float], drawn: float | None) -> None:
    expected, found = twin(logprobs, drawn), entropy_bounds(logprobs, drawn)
    sure = sum(Decimal(x).exp() for x in [*logprobs, *([] if drawn is None else [drawn])])
    if abs(sure - Decimal("1.001")) < Decimal("1e-9"):
        return  # on the edge of what is taken, where rounding decides
    assert (found is None) == (expected is None)
    if found is not None and expected is not None:
        assert found == pytest.approx(tuple(map(float, expected)), rel=1e-9, abs=1e-9)


@given(
    st.lists(st.integers(1, 1_000_000), min_size=2, max_size=60),
    st.integers(1, 20),
    st.data(),
)
def test_bounds_hold_for_the_whole_distribution(
    weights: list[int], k: int, data: st.DataObject
) -> None:
    """Whatever the full distribution is, its true entropy lies between the bounds."""
    total = sum(weights)
    p = sorted((w / total for w in weights), reverse=True)
    true = -sum(x * math.log2(x) for x in p)
    k = min(k, len(p))
    drawn = data.draw(st.integers(0, len(p) - 1))
    bounds = entropy_bounds(ln(*p[:k]), math.log(p[drawn]) if drawn >= k else None)
    assert bounds is not None
    assert bounds[0] <= true + 1e-9
    assert true <= bounds[1] + 1e-9
    assert 0 <= bounds[2] <= 1


def test_real_replies_of_the_model() -> None:
    """top-20 of the built-in model, whose whole distributions are known."""
    model = LanguageModel(corpus.load())
    for seed in range(5):
        reply = Reply(
            model,
            Sampler(model, 1.0, 1.0, random.Random(seed)),
            topic=frozenset(),
            max_tokens=40,
            top_logprobs=20,
        )
        history: list[int] = []
        for piece in reply:
            for choice in piece.tokens:
                whole = [p for p, _ in model.distribution(history).ranked()]
                true = -sum(p * math.log2(p) for p in whole)
                listed = [logprob for _, logprob in choice.top]
                absent = choice.id not in {t for t, _ in choice.top}
                bounds = entropy_bounds(listed, choice.logprob if absent else None)
                assert bounds is not None
                assert bounds[0] - 1e-9 <= true <= bounds[1] + 1e-9
                history.append(choice.id)


# ---- plain and streamed, and what cannot be analysed ------------------------------------------


def test_a_stream_is_analysed_like_its_plain_reply() -> None:
    content = [token(math.log(0.5), *ln(0.5, 0.25)), token(-0.1, *ln(0.9, 0.05), name="x")]
    events = [body(one) for one in content]
    usage = b'{"choices":[],"usage":{"total_tokens":5}}'
    assert analyse([*events, usage, b"[DONE]"]) == analyse(body(*content))


def test_streams_are_cut_anywhere() -> None:
    content = [token(math.log(0.5), *ln(0.5, 0.25)), token(-0.1, *ln(0.9, 0.05), name="x")]
    events = b"".join(b"data: %s\n\n" % one for one in [*map(body, content), b"[DONE]"])
    analyser = ResponseAnalyser()
    whole = analyser.analyse(body(*content), model="m", session=None)
    assert whole["available"] and whole["findings"] == []
    for size in (1, 2, 7, 1000):
        stream = analyser.stream(model="m", session="s")
        for at in range(0, len(events), size):
            stream.feed(events[at : at + size])
        assert stream.finish() == whole


def test_choices_count_together() -> None:
    one, two = token(0.0, 0.0), token(-0.7, *ln(0.5, 0.5))
    choices = [{"logprobs": {"content": [one]}}, {"logprobs": {"content": [two]}}]
    result = analyse(json.dumps({"choices": choices}).encode())
    assert (result["count"], result["mean"], result["max"]) == (2, 0.5, 1.0)


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (b"", "empty reply"),
        (b"not json", "not a JSON object"),
        (b"\xff\xfe", "not a JSON object"),
        (b"[1, 2]", "not a JSON object"),
        (b"null", "not a JSON object"),
        (b'{"choices": [{"logprobs": {"content": [{"logprob": NaN}]}}]}', "not a JSON object"),
        (
            b'{"choices": [{"logprobs": {"content": [{"logprob": -Infinity}]}}]}',
            "not a JSON object",
        ),
        (b'{"choices": [' + b"[" * 100_000, "not a JSON object"),
        (b"{}", "no top_logprobs"),
        (b'{"choices": null}', "no top_logprobs"),
        (b'{"choices": [null, 5, {"logprobs": null}, {"logprobs": []}]}', "no top_logprobs"),
        (b'{"choices": [{"logprobs": {"content": {"a": 1}}}]}', "no top_logprobs"),
        (body(), "no top_logprobs"),
        (body({"token": "a", "logprob": -1.0}), "no top_logprobs"),
        (body(None, 7, "x", []), "no top_logprobs"),
        (body(token(-1.0)), "no top_logprobs"),
        (body(token(-1.0, "low")), "no usable top_logprobs"),
        (body(token(-1.0, None)), "no usable top_logprobs"),
        (body(token(-1.0, True)), "no usable top_logprobs"),
        (body(token(-1.0, 0.5)), "no usable top_logprobs"),
        (body(token(-1.0, -0.1, -0.1)), "no usable top_logprobs"),
        (body(token(-1.0, 10**400)), "no usable top_logprobs"),
        (body({"token": "a", "logprob": -1, "top_logprobs": [5, None]}), "no usable top_logprobs"),
        ([], "no top_logprobs"),
        ([b"", b"x"], "not a JSON object"),
        (b" " * (REPLY_MAX + 1), f"longer than {REPLY_MAX} octets"),
        ([b" " * 1000] * (REPLY_MAX // 1000 + 1), f"longer than {REPLY_MAX} octets"),
    ],
)
def test_what_cannot_be_analysed_says_why(reply: Any, reason: str) -> None:
    assert analyse(reply) == {"available": False, "reason": reason}


def test_unusable_tokens_are_counted_beside_the_usable() -> None:
    good, bad, bare = token(0.0, 0.0), token(0, "x"), {"token": "a", "logprob": -1.0}
    result = analyse(body(good, bad, bare, good))
    assert (result["count"], result["skipped"], result["mean"]) == (2, 2, 0.0)
    for reply in (body(good, bare), body(good, bad), [body(good), b"{damaged", b"[DONE]"]):
        assert analyse(reply)["skipped"] == 1


def test_impossible_tokens_have_no_weight() -> None:
    """-9999 is how OpenAI writes 'practically impossible'; -inf cannot be JSON, but a number."""
    with_rest = analyse(body(token(0.0, 0.0, -9999.0, -9999)))
    assert (with_rest["mean"], with_rest["mean_upper"]) == (0.0, 0.0)
    assert entropy_bounds([0.0, -math.inf]) == (0.0, 0.0, 0.0)
    some = entropy_bounds([math.log(0.5), -math.inf])
    assert some is not None
    assert some[:1] == pytest.approx((1.0,))
    assert all(math.isfinite(x) for x in some)


@pytest.mark.parametrize("value", [math.nan, math.inf, 1.0])
def test_no_distribution_has_these(value: float) -> None:
    assert entropy_bounds([-1.0, value]) is None
    assert entropy_bounds([-1.0], value) is None


def test_thousands_of_logprobs() -> None:
    result = analyse(body(token(-9.0, *ln(*[1 / 5000] * 5000))))
    assert result["mean"] == pytest.approx(math.log2(5000), abs=1e-4)
    assert analyse(body(*[token(-0.7, *ln(0.5, 0.5))] * 20_000))["count"] == 20_000


def test_tokens_that_are_not_utf8() -> None:
    """Half a character has the replacement character as its text; the numbers count."""
    listed = [{"token": "\ufffd", "bytes": [0xE2], "logprob": math.log(0.5)}] * 2
    record = {"token": "\ufffd", "bytes": [0xE2], "logprob": -0.7, "top_logprobs": listed}
    assert analyse(body(record))["mean"] == 1.0


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["choices", "logprobs", "content", "top_logprobs", "logprob", "token"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=25,
)


@given(json_values, json_values, json_values)
def test_any_json_is_reported(one: Any, two: Any, three: Any) -> None:
    for value in (
        one,
        {"choices": one},
        {"choices": [{"logprobs": {"content": [one, two, {"top_logprobs": three, "logprob": 0}]}}]},
        {
            "choices": [
                {"logprobs": {"content": [{"top_logprobs": [{"logprob": one}], "token": two}]}}
            ]
        },
    ):
        text = json.dumps(value).encode()
        for reply in (text, [text, text]):
            check(analyse(reply))


@given(st.binary(max_size=200))
def test_any_bytes_are_reported(data: bytes) -> None:
    check(analyse(data))
    check(analyse([data, data]))


def check(result: dict[str, Any]) -> None:
    """A small, finite, encodable result, whatever came in."""
    assert len(msgspec.json.encode(result)) < 300
    if not result["available"]:
        assert result["reason"]
        return
    assert result["count"] >= 1
    numbers = [result[name] for name in ("mean", "max", "mean_upper", "max_upper", "tail")]
    assert all(math.isfinite(x) and x >= 0 for x in numbers)
    assert result["mean"] <= result["max"] + 1e-6
    assert result["mean"] <= result["mean_upper"] + 1e-6
