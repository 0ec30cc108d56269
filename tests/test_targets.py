"""Which upstream serves a call, when one is left alone, when a call is asked again."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from email.utils import formatdate
from pathlib import Path
from time import time
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import upstream
from aegis_c.gateway.errors import unavailable
from aegis_c.gateway.hot.breaker import Breaker
from aegis_c.gateway.hot.retry import Retries, retry_after
from aegis_c.gateway.hot.targets import Target, Targets
from aegis_c.gateway.upstream_settings import Breaker as BreakerSettings
from aegis_c.gateway.upstream_settings import Retry
from gateway_rig import ASK, Rig, gateway, request, run, until
from gateway_rig import settings as given_settings
from reference.breaker import SlowBreaker, slow_turns
from upstream import Exchange, Script, delta

# -- the breaker -------------------------------------------------------------------------------

BREAKER = BreakerSettings(window=8.0, min_calls=4, failure_rate=0.5, open_for=3.0, open_max=10.0)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from([0.0, 0.25, 0.5, 1.0, 3.0, 9.0]),  # time that passes, exact in binary
            st.sampled_from(["enter", "ok", "fail", "fail", "fail", "leave"]),
            st.integers(0, 5),
        ),
        max_size=80,
    )
)
def test_the_breaker_is_its_slow_twin(steps: list[tuple[float, str, int]]) -> None:
    breaker = Breaker(BREAKER)
    twin = SlowBreaker(8.0, 4, 0.5, 3.0, 10.0)
    now = 1000.0
    running: list[tuple[int, Any]] = []
    for passed, what, which in steps:
        now += passed
        assert breaker.ready(now) == twin.ready(now)
        assert (breaker.state(now) == "closed") == (twin.name == "closed")
        if what == "enter" or not running:
            if breaker.ready(now):
                running.append((breaker.enter(), twin.enter()))
            continue
        period, ticket = running.pop(which % len(running))
        if what == "ok":
            breaker.succeeded(period, now)
            twin.outcome(ticket, True, now)
        elif what == "fail":
            breaker.failed(period, now)
            twin.outcome(ticket, False, now)
        else:
            breaker.leave(period)
            twin.outcome(ticket, None, now)
        if twin.name == "open":
            assert breaker.wait(now) == max(0.0, twin.until - now)


def test_a_breaker_opens_tries_once_and_closes() -> None:
    breaker = Breaker(BREAKER)
    stragglers = [breaker.enter() for _ in range(2)]
    for _ in range(4):
        breaker.failed(breaker.enter(), 0.0)
    assert (breaker.state(0.0), breaker.ready(2.9), breaker.opened) == ("open", False, 1)
    breaker.succeeded(stragglers[0], 1.0)  # began before: says nothing of now
    assert breaker.state(1.0) == "open"
    assert breaker.ready(3.0)
    trial = breaker.enter()
    assert (breaker.state(3.0), breaker.ready(3.0)) == ("half-open", False)
    breaker.succeeded(stragglers[1], 3.0)
    assert not breaker.ready(3.0)
    breaker.failed(trial, 3.0)
    assert (breaker.ready(8.9), breaker.ready(9.0)) == (False, True)  # twice as long
    breaker.leave(breaker.enter())  # its caller left: somebody else may try
    assert breaker.ready(9.0)
    breaker.succeeded(breaker.enter(), 9.0)
    assert breaker.state(9.0) == "closed"


def test_a_breaker_that_is_switched_off_never_opens() -> None:
    breaker = Breaker(BreakerSettings(enabled=False, min_calls=1))
    for _ in range(100):
        breaker.failed(breaker.enter(), 0.0)
    assert breaker.ready(0.0)


# -- turns -------------------------------------------------------------------------------------


class IdlePool:
    """Stands for a pool where no connection matters."""

    def request_head(self, method: bytes, path: bytes) -> bytes:
        return method + path


def target(name: str, weight: int = 1, tier: int = 0, models: tuple[str, ...] = ("*",)) -> Target:
    pool: Any = IdlePool()
    return Target(name, pool, Breaker(BREAKER), weight, tier, models)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 12), min_size=1, max_size=6))
def test_turns_are_those_of_the_slow_twin(weights: list[int]) -> None:
    targets = [target(str(i), weight) for i, weight in enumerate(weights)]
    choice = Targets([*targets, target("other", models=("other",))])  # more than one: no shortcut
    count = 3 * sum(weights)
    turns = [choice.choose("m", 0.0) for _ in range(count)]
    assert [targets.index(t) for t in turns if t is not None] == slow_turns(weights, count)
    for i, weight in enumerate(weights):
        assert turns.count(targets[i]) == 3 * weight


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_only_who_can_serve_is_chosen_and_nobody_starves(data: st.DataObject) -> None:
    """Targets come and go at will; whoever stays gets at least its share of the turns."""
    weights = data.draw(st.lists(st.integers(1, 5), min_size=2, max_size=5))
    tiers = [data.draw(st.integers(0, 2)) for _ in weights]
    targets = [target(str(i), w, t) for i, (w, t) in enumerate(zip(weights, tiers, strict=True))]
    choice = Targets(targets)
    served = 0
    turns = 50
    for _ in range(turns):
        down = data.draw(st.sets(st.integers(1, len(targets) - 1)))
        tried = [targets[i] for i in down]
        chosen = choice.choose(None, 0.0, tried)
        assert chosen is not None and chosen not in tried
        up = [t for t in targets if t not in tried]
        assert chosen.tier == min(t.tier for t in up)
        served += chosen is targets[0]
    lowest = [t for t in targets if t.tier <= targets[0].tier]
    if min(t.tier for t in targets) == targets[0].tier:
        share = turns * targets[0].weight / sum(t.weight for t in lowest)
        assert served >= int(share) - sum(weights)


def test_models_and_breakers_narrow_the_choice() -> None:
    a, b = target("a", models=("gpt-*", "o?")), target("b", tier=1)
    choice = Targets([a, b])
    assert choice.choose("gpt-4.1", 0.0) is a
    assert choice.choose("o3", 0.0) is a
    assert choice.choose("o33", 0.0) is b
    assert choice.choose("GPT-4", 0.0) is b, "names of models are exact"
    assert choice.choose("gpt-4", 0.0, [a]) is b
    assert choice.choose("gpt-4", 0.0, [a, b]) is None
    for _ in range(4):
        a.breaker.failed(a.breaker.enter(), 0.0)
    assert choice.choose("gpt-4", 0.0) is b
    assert choice.choose("gpt-4", 3.0) is a
    only = Targets([target("c", models=("x",))])
    assert only.choose("y", 0.0) is None and not only.serves("y")
    assert only.choose("x", 0.0) is only.all[0]


# -- retries -----------------------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.booleans(), max_size=400),
    st.floats(0, 1),
    st.integers(0, 20),
)
def test_retries_stay_within_their_budget(steps: list[bool], share: float, reserve: int) -> None:
    """However calls and failures are mixed: never more retries than the reserve and the share."""
    retries = Retries(Retry(attempts=10, budget=share, reserve=reserve))
    calls = 0
    for again in steps:
        if not again:
            retries.call()
            calls += 1
        elif retries.may(0):
            retries.take()
        assert retries.made <= reserve + share * calls + 1e-6


def test_waits_grow_with_full_jitter_and_keep_to_retry_after() -> None:
    bounds: list[tuple[float, float]] = []

    def high(low: float, top: float) -> float:
        bounds.append((low, top))
        return top

    retries = Retries(Retry(backoff=0.25, max_wait=3.0), high)
    assert [retries.wait(n, None) for n in range(6)] == [0.25, 0.5, 1.0, 2.0, 3.0, 3.0]
    assert all(low == 0.0 for low, _ in bounds), "full jitter begins at zero"
    assert retries.wait(0, 2.0) == 2.25
    assert retries.wait(0, 3.0) == 3.0
    assert retries.wait(0, 3.001) is None
    assert Retries(Retry(), random.Random(1).uniform).wait(0, None) != Retries(
        Retry(), random.Random(2).uniform
    ).wait(0, None)


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({b"retry-after": b"3"}, 3.0),
        ({b"retry-after": b"0.5"}, 0.5),
        ({b"retry-after-ms": b"250", b"retry-after": b"3"}, 0.25),
        ({b"retry-after-ms": b"x", b"retry-after": b"3"}, 3.0),
        ({b"retry-after": b"-1"}, None),
        ({b"retry-after": b"nan"}, None),
        ({b"retry-after": b"inf"}, None),
        ({b"retry-after": b"1e999"}, None),
        ({b"retry-after": b"9" * 100}, None),
        ({b"retry-after": b"soon"}, None),
        ({b"retry-after": b"\xff"}, None),
        ({b"retry-after": b"Thu, 01 Jan 1970 00:00:00 GMT"}, 0.0),
        ({b"retry-after": b"Thu, 99 Jan 1970 00:00:00 GMT"}, None),
    ],
)
def test_what_retry_after_means(headers: dict[bytes, bytes], seconds: float | None) -> None:
    assert retry_after(headers) == seconds


def test_retry_after_as_a_date() -> None:
    found = retry_after({b"retry-after": formatdate(time() + 60, usegmt=True).encode()})
    assert found is not None and 55 < found <= 60


def test_which_answers_may_come_again() -> None:
    retries = Retries(Retry())
    assert retries.put_off(429, {})
    assert retries.put_off(503, {b"retry-after": b"1"})
    for status, headers in (
        (400, {b"retry-after": b"1"}),
        (500, {}),
        (503, {}),
        (429, {b"x-should-retry": b"false"}),
    ):
        assert not retries.put_off(status, headers)
    assert Retries(Retry(statuses=frozenset({500}))).put_off(500, {})


# -- whole calls -------------------------------------------------------------------------------

STREAM = {**ASK, "stream": True}
FAST = {"backoff": 0.01, "max_wait": 0.5}


def status(code: int, *headers: str) -> Script:
    async def script(exchange: Exchange) -> None:
        await exchange.answer({"error": {"message": "no"}}, f"{code} X", headers)

    return script


def once(first: Script, then: Script = upstream.answer) -> Script:
    state = SimpleNamespace(asked=0)

    async def script(exchange: Exchange) -> None:
        state.asked += 1
        await (first if state.asked == 1 else then)(exchange)

    return script


async def reset(exchange: Exchange) -> None:
    exchange.reset()


async def hang(exchange: Exchange) -> None:
    await exchange.gone()


Ups = dict[str, upstream.Upstream]


@asynccontextmanager
async def behind(
    data: Path,
    scripts: dict[str, Script],
    *,
    tiers: bool = False,
    options: Callable[[str], dict[str, Any]] = lambda _: {},
    **given: Any,
) -> AsyncIterator[tuple[Rig, Ups]]:
    """A gateway before one scripted upstream per name; ``tiers`` makes each a fallback."""
    async with AsyncExitStack() as stack:
        ups = {
            name: await stack.enter_async_context(upstream.running(script))
            for name, script in scripts.items()
        }
        targets = [
            {"name": name, "url": up.url, "tier": i if tiers else 0, **options(name)}
            for i, (name, up) in enumerate(ups.items())
        ]
        table = {"targets": targets, "retry": FAST, "breaker": {"min_calls": 4}, **given}
        yield await stack.enter_async_context(gateway(data, None, upstream=table)), ups


async def outcome(rig: Rig, body: dict[str, Any] = ASK) -> tuple[int, str | None]:
    """Status of the reply, and who answered as the entry says."""
    reply = await rig.ask(body)
    await rig.settled()
    made = [e for e in await rig.entries() if e["id"] == reply.headers["x-request-id"]]
    assert len({e.get("provider") for e in made}) == 1
    return reply.status, made[0].get("provider")


def test_calls_are_spread_by_weight_and_entries_name_who_answered(tmp_path: Path) -> None:
    async def main() -> None:
        weights = {"a": 3, "b": 1}
        async with behind(
            tmp_path,
            {"a": upstream.answer, "b": upstream.answer},
            options=lambda name: {"weight": weights[name], "api_key": f"key-{name}"},
        ) as (rig, ups):
            found = [await outcome(rig, body) for body in (ASK, STREAM) * 4]
            assert found.count((200, "a")) == 6 and found.count((200, "b")) == 2
            assert (len(ups["a"].exchanges), len(ups["b"].exchanges)) == (6, 2)
            for name, up in ups.items():
                for exchange in up.exchanges:
                    assert exchange.headers["authorization"] == f"Bearer key-{name}"
                    assert exchange.headers["host"] == f"127.0.0.1:{up.port}"

    run(main())


@pytest.mark.parametrize(
    ("first", "again"),
    [
        (status(429), True),
        (status(429, "Retry-After: 0"), True),
        (status(503, "Retry-After-Ms: 1"), True),
        (status(429, "Retry-After: 3600"), True),  # not here, but another target may be asked
        (status(429, "X-Should-Retry: false"), False),
        (status(503), False),
        (status(500), False),
        (status(400), False),
        (reset, False),
    ],
)
def test_a_fallback_is_asked_only_when_the_first_one_did_nothing(
    tmp_path: Path, first: Script, again: bool
) -> None:
    async def main() -> None:
        for i, body in enumerate((ASK, STREAM)):
            async with behind(
                tmp_path / str(i), {"main": first, "spare": upstream.answer}, tiers=True
            ) as (rig, ups):
                code, name = await outcome(rig, body)
                assert (name, len(ups["spare"].exchanges)) == (
                    ("spare", 1) if again else ("main", 0)
                )
                assert (code == 200) == again
                assert len(ups["main"].exchanges) == 1, "asked twice"
                assert rig.runtime.retries.made == int(again)
                if again:
                    assert ups["main"].exchanges[0].body == ups["spare"].exchanges[0].body
                kinds = [e["kind"] for e in await rig.entries()]
                assert len(kinds) == 2 + (body is STREAM and again), "one outcome a call"

    run(main())


def test_a_target_that_is_down_is_passed_over_and_left_alone(tmp_path: Path) -> None:
    """Connections refused: the fallback answers every call, and soon nobody knocks any more."""

    async def main() -> None:
        async with behind(
            tmp_path, {"main": upstream.answer, "spare": upstream.answer}, tiers=True
        ) as (rig, _):
            main_target = rig.runtime.targets.all[0]
            dialer = main_target.pool._dialer
            port, dialer._port = dialer._port, 1  # nobody listens there
            for _ in range(8):
                assert await outcome(rig) == (200, "spare")
            assert rig.runtime.retries.made == 4
            breaker = main_target.breaker
            assert (breaker.opened, rig.runtime.breaker_states()["main"]) == (1, 2.0)
            metrics = (await rig.ask(b"", method="GET", path="/metrics", secret="sk-admin")).body
            assert b'aegis_target_breaker{target="main"} 2.0' in metrics
            assert b'aegis_target_opened_total{target="main"} 1.0' in metrics
            dialer._port = port
            breaker._until = 0.0  # the time is over
            assert await outcome(rig) == (200, "main")
            assert rig.runtime.breaker_states() == {"main": 0.0, "spare": 0.0}

    run(main())


def test_an_only_target_that_fails_is_left_alone_and_comes_back(tmp_path: Path) -> None:
    async def main() -> None:
        async with upstream.running(status(500)) as up:
            table = {"retry": FAST, "breaker": {"min_calls": 5, "open_for": 30.0}}
            async with gateway(tmp_path, up.url, upstream=table) as rig:
                for _ in range(5):
                    assert (await rig.ask()).status == 500
                for body in (ASK, STREAM):
                    reply = await rig.ask(body)
                    assert (reply.status, reply.error["code"]) == (503, "upstream_unavailable")
                    assert 25 <= int(reply.headers["retry-after"]) <= 30
                assert len(up.exchanges) == 5
                entry = (await rig.entries("rejection"))[-1]
                assert (entry["reason"], entry["stage"]) == ("upstream_unavailable", "upstream")
                up.script = upstream.answer
                rig.runtime.targets.all[0].breaker._until = 0.0
                assert (await rig.ask()).status == 200
                assert (await rig.ask()).status == 200

    run(main())


def test_a_wait_is_not_rounded_up_by_the_clock() -> None:
    now = 0.1
    while (wait := (now + 30.0) - now) <= 30.0:
        now *= 1.37
    assert dict(unavailable(wait).headers)[b"retry-after"] == b"30"


def test_one_target_is_asked_again_after_a_wait(tmp_path: Path) -> None:
    async def main() -> None:
        async with (
            upstream.running() as up,
            gateway(tmp_path, up.url, upstream={"retry": FAST}) as rig,
        ):
            for first in (status(429), status(503, "Retry-After-Ms: 20")):
                for body in (ASK, STREAM):
                    up.script = once(first)
                    sent = len(up.exchanges)
                    assert (await rig.ask(body)).status == 200
                    assert len(up.exchanges) == sent + 2
            made = rig.runtime.retries.made
            up.script = status(429, "Retry-After: 7")  # longer than anybody waits here
            reply = await rig.ask()
            assert (reply.status, reply.headers["retry-after"]) == (429, "7")
            up.script = status(429)  # as often as the settings say, then as it is
            sent = len(up.exchanges)
            assert (await rig.ask()).status == 429
            assert (len(up.exchanges) - sent, rig.runtime.retries.made - made) == (3, 2)
            up.script = status(429)
            for _ in range(10):
                assert (await rig.ask()).status == 429
            assert rig.runtime.retries.exhausted > 0
            assert rig.runtime.retries.made <= 10 + 0.1 * 18

    run(main())


def test_a_caller_that_leaves_between_two_attempts(tmp_path: Path) -> None:
    """Nobody is asked for a caller that is gone."""

    async def main() -> None:
        slow = {"backoff": 0.01, "max_wait": 30.0}
        async with (
            upstream.running(status(429, "Retry-After: 29")) as up,
            gateway(tmp_path, up.url, upstream={"retry": slow}) as rig,
        ):
            async with rig.client() as client:
                await client.write(request())
                await up.asked(1)
                await asyncio.sleep(0.05)
            await rig.settled()
            entry = (await rig.entries())[-1]
            assert (entry["status"], entry["reason"]) == (499, "client_gone")
            assert len(up.exchanges) == 1 and rig.runtime.targets.stats()["busy"] == 0

    run(main())


def test_a_stream_that_began_is_never_begun_again(tmp_path: Path) -> None:
    async def breaks(exchange: Exchange) -> None:
        await exchange.begin_stream()
        await exchange.chunk(delta("one"))
        await asyncio.sleep(0.02)
        exchange.reset()

    async def main() -> None:
        async with behind(tmp_path, {"main": breaks, "spare": upstream.answer}, tiers=True) as (
            rig,
            ups,
        ):
            for _ in range(4):
                reply = await rig.ask(STREAM)
                assert reply.body.count(b"data: ") == 2 and b"upstream_error" in reply.body
            assert len(ups["spare"].exchanges) == 0
            await rig.settled()
            assert {e["provider"] for e in await rig.entries("settle")} == {"main"}
            assert rig.runtime.targets.all[0].breaker.opened == 1  # what breaks off counts
            assert await outcome(rig, STREAM) == (200, "spare")

    run(main())


def test_models_decide_who_may_serve(tmp_path: Path) -> None:
    def listing(*names: str) -> Script:
        async def script(exchange: Exchange) -> None:
            if exchange.request_line.startswith("GET"):
                data = [{"id": name, "object": "model"} for name in names]
                await exchange.answer({"object": "list", "data": data})
            else:
                await exchange.answer()

        return script

    models = {"a": ["gpt-*"], "b": ["claude-*", "gpt-4"]}

    async def main() -> None:
        async with behind(
            tmp_path,
            {"a": listing("gpt-4", "gpt-5", "tts"), "b": listing("claude-1", "gpt-4", "gpt-5")},
            options=lambda name: {"models": models[name]},
        ) as (rig, ups):
            assert await outcome(rig, {**ASK, "model": "gpt-5"}) == (200, "a")
            assert await outcome(rig, {**ASK, "model": "claude-3"}) == (200, "b")
            reply = await rig.ask({**ASK, "model": "llama"})
            assert (reply.status, reply.error["code"]) == (404, "model_not_found")
            assert reply.error["param"] == "model"
            assert (await rig.entries("rejection"))[-1]["reason"] == "model_not_found"
            listed = json.loads((await rig.ask(b"", method="GET", path="/v1/models")).body)
            assert [m["id"] for m in listed["data"]] == ["gpt-4", "gpt-5", "claude-1"]
            ups["a"].script = reset
            listed = json.loads((await rig.ask(b"", method="GET", path="/v1/models")).body)
            assert [m["id"] for m in listed["data"]] == ["claude-1", "gpt-4"]

    run(main())


def test_a_hanging_target_is_not_asked_twice(tmp_path: Path) -> None:
    async def main() -> None:
        async with behind(
            tmp_path,
            {"main": hang, "spare": upstream.answer},
            tiers=True,
            first_byte_timeout=0.2,
        ) as (rig, ups):
            assert await outcome(rig) == (504, "main")
            assert len(ups["main"].exchanges) == 1 and not ups["spare"].exchanges

    run(main())


def test_a_reload_leaves_a_call_between_two_attempts_its_targets(tmp_path: Path) -> None:
    """Who waits to ask again asks whom it would have asked; the next call goes elsewhere."""

    async def main() -> None:
        async with upstream.running() as old, upstream.running() as new:
            old.script = once(status(503, "Retry-After-Ms: 300"))
            table = {"retry": {"max_wait": 2.0, "backoff": 0.01}, "name": "old"}
            async with gateway(tmp_path, old.url, upstream=table) as rig:
                asking = asyncio.ensure_future(outcome(rig))
                await old.asked(1)
                await asyncio.sleep(0.1)
                rig.runtime.reload(given_settings(tmp_path, new.url, upstream={"name": "new"}))
                assert (await rig.ask()).status == 200
                assert await asking == (200, "old")
                assert (len(old.exchanges), len(new.exchanges)) == (2, 1)

                async def old_is_closed() -> bool:
                    return old.open == 0

                await until(old_is_closed)
                assert {e.get("provider") for e in await rig.entries("call")} == {"old", "new"}

    run(main())
