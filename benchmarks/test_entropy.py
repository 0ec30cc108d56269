"""The reply analyser: statistics of decoded tokens, of text, of whole bodies, of one event.

`python -m pytest benchmarks/test_entropy.py`. Decoded tokens beside a pure-Python twin and, where
numpy is installed, entropies alone in numpy; whole bodies beside the JSON parse that a Python
analyser would have to begin with.
"""

from __future__ import annotations

import array
import importlib.util
import json
import math
import random
import zlib
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from aegis_c import ReplyAnalysis, token_key
from aegis_c.gateway.background.analyser import ResponseAnalyser
from benchmarks import twin_entropy

K = 20  # alternatives of a token
VOCABULARY = 60  # tokens that the lists are drawn from: a third of a list is in the next one


def lists(n: int) -> list[dict[bytes, float]]:
    """`n` random lists, the most likely token first, with a tail of 5 %."""
    rng = random.Random(n)
    made = []
    for _ in range(n):
        names = [b" tok%d" % i for i in rng.sample(range(VOCABULARY), K)]
        weights = sorted((rng.random() ** 3 + 1e-4 for _ in names), reverse=True)
        total = math.fsum(weights) / 0.95
        made.append({name: math.log(w / total) for name, w in zip(names, weights, strict=True)})
    return made


TOKENS = {n: lists(n) for n in (200, 2000)}


def arrays(tokens: list[dict[bytes, float]]) -> tuple[bytes, bytes, bytes, bytes]:
    logprobs = array.array("d", [x for one in tokens for x in one.values()]).tobytes()
    keys = array.array("Q", [token_key(t) for one in tokens for t in one]).tobytes()
    drawn = array.array("d", [next(iter(one.values())) for one in tokens]).tobytes()
    drawn_keys = array.array("Q", [token_key(next(iter(one))) for one in tokens]).tobytes()
    return logprobs, keys, drawn, drawn_keys


def native(n: int) -> Callable[[], object]:
    given, analysis = arrays(TOKENS[n]), ReplyAnalysis()
    return lambda: analysis.tokens(*given)


def twin(n: int) -> Callable[[], object]:
    tokens = TOKENS[n]
    drawn = [next(iter(one.values())) for one in tokens]
    return lambda: twin_entropy.measure(tokens, drawn)


def numpy_entropies(n: int) -> Callable[[], object]:
    import numpy as np

    table = np.array([list(one.values()) for one in TOKENS[n]])

    def run() -> object:
        p = np.exp(table)
        return -(p * table).sum(axis=1) / math.log(2)

    return run


ROWS: dict[str, Callable[[int], Callable[[], object]]] = {
    "aegis-c, all statistics": native,
    "pure Python, all but windows and drift": twin,
}
if importlib.util.find_spec("numpy") is not None:
    ROWS["numpy, entropies of the lists alone"] = numpy_entropies


@pytest.mark.parametrize("n", TOKENS)
@pytest.mark.parametrize("row", ROWS)
def test_decoded_tokens(benchmark: BenchmarkFixture, row: str, n: int) -> None:
    benchmark.group = f"analyser: {n} decoded tokens of {K} alternatives"
    benchmark.extra_info |= {"row": row, "baseline": row.startswith("pure")}
    benchmark(ROWS[row](n))


def body(n: int) -> bytes:
    """A chat completion as OpenAI sends it, with `bytes` of every token."""
    content: list[dict[str, Any]] = []
    for one in TOKENS[n]:
        top = [{"token": t.decode(), "logprob": x, "bytes": list(t)} for t, x in one.items()]
        content.append({**top[0], "top_logprobs": top})
    text = "".join(token["token"] for token in content)
    choice = {"index": 0, "message": {"role": "assistant", "content": text}}
    choice |= {"logprobs": {"content": content, "refusal": None}, "finish_reason": "stop"}
    return json.dumps({"id": "x", "model": "m", "choices": [choice]}).encode()


def prose(octets: int) -> str:
    rng = random.Random(1)
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = ["".join(rng.choices(letters, k=rng.randint(2, 9))) for _ in range(3000)]
    text = " ".join(words[min(2999, int(rng.paretovariate(0.8)))] for _ in range(octets // 4))
    return text[:octets]


PROSE = prose(10_000)
TEXT_ONLY = json.dumps({"choices": [{"index": 0, "message": {"content": PROSE}}]}).encode()
LONG = json.dumps({"choices": [{"index": 0, "message": {"content": prose(50_000) * 20}}]}).encode()
BODIES = {
    "200 tokens of 20": body(200),
    "2,000 tokens of 20": body(2000),
    "10 kB of text": TEXT_ONLY,
    "1 MB of text": LONG,
}


def readers() -> dict[str, Callable[[bytes], object]]:
    analyser = ResponseAnalyser()
    return {
        "aegis-c, read and analysed": lambda data: analyser.analyse(data, model="m"),
        "msgspec, parsed only": msgspec.json.Decoder().decode,
        "json, parsed only": json.loads,
    }


@pytest.mark.parametrize("name", BODIES)
@pytest.mark.parametrize("row", readers())
def test_bodies(benchmark: BenchmarkFixture, row: str, name: str) -> None:
    benchmark.group = "analyser: whole bodies"
    benchmark.extra_info |= {"row": f"{name}, {len(BODIES[name]):,} octets: {row}"}
    benchmark(readers()[row], BODIES[name])


TEXTS: dict[str, Callable[[], object]] = {
    "aegis-c, all statistics": lambda: ReplyAnalysis().text(PROSE.encode()),
    "pure Python, entropy and 4-grams": lambda: twin_entropy.text_statistics(PROSE),
    "zlib, compressed size alone": lambda: zlib.compress(PROSE.encode(), 1),
}


@pytest.mark.parametrize("row", TEXTS)
def test_text(benchmark: BenchmarkFixture, row: str) -> None:
    benchmark.group = "analyser: 10 kB of text"
    benchmark.extra_info |= {"row": row, "baseline": row.startswith("pure")}
    benchmark(TEXTS[row])


EVENT = b"data: " + json.dumps(
    {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": "m",
        "choices": [{"index": 0, "delta": {"content": " hello"}, "finish_reason": None}],
    }
).encode() + b"\n\n"  # fmt: skip


def test_event(benchmark: BenchmarkFixture) -> None:
    benchmark.group = "analyser: one event of a stream"
    feed = ResponseAnalyser().stream(model="m").feed
    benchmark.extra_info |= {"row": f"{len(EVENT)} octets", "calls": 200}

    def many() -> None:
        for _ in range(200):
            feed(EVENT)

    benchmark(many)
