"""Limits through the gateway: who is charged, what is charged, what callers are told."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path
from typing import Any

import openai
import pytest

import upstream
from aegis_c.gateway.hot.source import Source
from aegis_c.gateway.limits import costs
from aegis_c.gateway.limits.fields import duration
from aegis_c.gateway.settings import Settings
from gateway_rig import ADMIN, ASK, AUDITOR, KEY, KEYS, Rig, key, request, run
from limits_rig import in_flight, limited, slow, used
from upstream import DONE, Exchange, delta

STREAM = {**ASK, "stream": True}
PROMPT = costs.prompt_tokens(ASK)
USAGE = 5  # total tokens of the scripted upstream's answers


def rate(units: int, per: str = "day", **more: int) -> dict[str, Any]:
    return {"rate": units, "per": per, **more}


def asking(**members: Any) -> dict[str, Any]:
    return {**ASK, **members}


# -- what callers are told ---------------------------------------------------------------------


def test_every_reply_tells_the_limits_and_the_most_binding_one(tmp_path: Path) -> None:
    limits = {
        "key": {"requests": [rate(10), rate(5, "minute")], "tokens": rate(1000)},
        "total": {"requests": rate(100)},
    }

    async def main() -> None:
        async with upstream.running() as up, limited(tmp_path, up.url, limits) as rig:
            reply = await rig.ask()
            assert reply.status == 200
            headers = reply.headers
            assert headers["ratelimit-policy"] == (
                '"key-requests-day";q=10;w=86400, "key-requests-minute";q=5;w=60, '
                '"key-tokens-day";q=1000;qu="tokens";w=86400, "total-requests-day";q=100;w=86400'
            )
            reserved = PROMPT + 256
            tokens_left = 1000 - reserved
            seconds = 86_400 * reserved // 1000
            assert headers["ratelimit"] in [
                f'"key-tokens-day";r={tokens_left};t={t}' for t in (seconds, seconds + 1)
            ]
            assert headers["x-ratelimit-limit-requests"] == "5"
            assert headers["x-ratelimit-remaining-requests"] == "4"
            assert re.fullmatch(r"1[12](\.\d+)?s", headers["x-ratelimit-reset-requests"])
            assert headers["x-ratelimit-limit-tokens"] == "1000"
            assert headers["x-ratelimit-remaining-tokens"] == str(tokens_left)
            assert re.fullmatch(r"\d+h\d+m\d+s", headers["x-ratelimit-reset-tokens"])
            # Replies that this stage never saw tell them too, and charge nothing.
            for refused in (
                await rig.ask(b"{"),
                await rig.ask({**ASK, "messages": []}),
                await rig.ask(method="GET"),
            ):
                assert refused.status >= 400
            assert (await rig.ask(b"{")).headers["x-ratelimit-remaining-requests"] == "4"
            unknown = await rig.ask(secret="sk-nobody")
            assert unknown.status == 401
            assert unknown.headers["ratelimit-policy"] == '"total-requests-day";q=100;w=86400'
            assert unknown.headers["x-ratelimit-remaining-requests"] == "99"
            streamed = await rig.ask(STREAM)
            assert streamed.headers["x-ratelimit-remaining-requests"] == "3"
            assert used(rig, "key-requests-day", "k1", rate(10)) == 2

    run(main())


def test_a_refusal_is_a_429_in_openais_shape_with_an_entry(tmp_path: Path) -> None:
    limits = {"key": {"requests": [rate(2, "minute"), rate(100)]}}

    async def main() -> None:
        async with upstream.running() as up, limited(tmp_path, up.url, limits) as rig:
            for _ in range(2):
                assert (await rig.ask()).status == 200
            reply = await rig.ask()
            assert reply.status == 429
            assert (reply.error["type"], reply.error["code"]) == ("requests", "rate_limit_exceeded")
            assert "requests per minute of this API key" in reply.error["message"]
            wait = int(reply.headers["retry-after-ms"])
            assert 20_000 < wait <= 30_000
            assert int(reply.headers["retry-after"]) == -(-wait // 1000)
            assert "x-should-retry" not in reply.headers
            assert re.fullmatch(r'"key-requests-minute";r=0;t=\d+', reply.headers["ratelimit"])
            assert reply.headers["x-ratelimit-remaining-requests"] == "0"
            entry = (await rig.entries())[-1]
            assert (entry["kind"], entry["status"], entry["stage"]) == ("rejection", 429, "limits")
            assert entry["reason"] == "rate_limit_exceeded"
            assert entry["limits"]["limit"] == "key-requests-minute"
            assert 0 < entry["limits"]["retry_after_ms"] <= 30_000
            assert (entry["tenant"], entry["key"]) == ("acme", "k1")
            assert used(rig, "key-requests-day", "k1", rate(100)) == 2  # all or nothing
            assert len(up.exchanges) == 2
            text = rig.runtime.metrics.text().decode()
            assert 'aegis_limit_refusals_total{limit="key-requests-minute"} 1.0' in text
            assert 'aegis_limit_keys{state="live"} 2.0' in text
            client = openai.AsyncOpenAI(base_url=rig.base_url, api_key=KEY, max_retries=0)
            async with client:
                with pytest.raises(openai.RateLimitError) as caught:
                    await client.chat.completions.create(
                        model="scripted-1", messages=[{"role": "user", "content": "Hi"}]
                    )
            assert caught.value.code == "rate_limit_exceeded"

    run(main())


def test_a_client_that_retries_as_it_is_told_gets_through(tmp_path: Path) -> None:
    limits = {"key": {"requests": rate(2, "second", burst=1)}}

    async def main() -> None:
        async with upstream.running() as up, limited(tmp_path, up.url, limits) as rig:
            client = openai.AsyncOpenAI(base_url=rig.base_url, api_key=KEY, max_retries=3)
            async with client:
                for _ in range(2):
                    await client.chat.completions.create(
                        model="scripted-1", messages=[{"role": "user", "content": "Hi"}]
                    )
            assert len(up.exchanges) == 2
            assert len(await rig.entries("rejection")) == 1

    run(main())


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (1e-10, "0s"),
        (0.0001, "1ms"),
        (0.02, "20ms"),
        (0.9991, "1s"),
        (1, "1s"),
        (7.66, "7.66s"),
        (59.9999, "1m0s"),
        (360, "6m0s"),
        (864.2, "14m25s"),
        (3600, "1h0m0s"),
        (93_789.5, "26h3m10s"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_what_can_never_pass_says_so(tmp_path: Path) -> None:
    limits = {
        "key": {"tokens": rate(500, burst=400)},
        "models": {"scripted-1": {"input_price": 1.0, "output_price": 10.0}},
        "tenant": {"budget": {"amount": 0.004}},
    }

    async def main() -> None:
        async with upstream.running() as up, limited(tmp_path, up.url, limits) as rig:
            reply = await rig.ask(asking(max_tokens=200, n=2))
            assert (reply.status, reply.error["type"]) == (429, "tokens")
            assert "can never pass" in reply.error["message"]
            assert f"needs {PROMPT + 400}, and at most 400" in reply.error["message"]
            assert reply.headers["x-should-retry"] == "false"
            assert "retry-after" not in reply.headers
            reply = await rig.ask(asking(max_tokens=500))  # money is reserved in full
            assert (reply.error["type"], reply.error["code"]) == ("insufficient_quota",) * 2
            assert "in millionths" in reply.error["message"]
            assert reply.headers["x-should-retry"] == "false"
            assert not up.exchanges
            assert used(rig, "key-tokens-day", "k1", rate(500, burst=400)) == 0
            assert (await rig.ask(asking(max_tokens=100))).status == 200

    run(main())


# -- who is charged ----------------------------------------------------------------------------


def test_limits_by_key_tenant_model_and_in_total(tmp_path: Path) -> None:
    keys = [*KEYS, key("sk-2", "k5", "acme"), key("sk-3", "k6", "other")]
    limits = {
        "key": {"requests": rate(4)},
        "keys": {"k5": {"requests": rate(2)}},
        "tenant": {"requests": rate(5)},
        "tenants": {"other": {}},
        "model": {"requests": rate(3)},
        "models": {"big": {"requests": rate(1)}, "priced": {"max_output": 5}},
        "total": {"requests": rate(9)},
    }

    async def main() -> None:
        async with upstream.running() as up, limited(tmp_path, up.url, limits, keys=keys) as rig:

            async def ask(secret: str, model: str) -> str | None:
                reply = await rig.ask(asking(model=model), secret=secret)
                if reply.status == 200:
                    return None
                assert reply.status == 429
                return (await rig.entries())[-1]["limits"]["limit"]

            assert await ask(KEY, "a") is None
            assert await ask(KEY, "a") is None
            assert await ask("sk-2", "a") is None
            assert await ask("sk-2", "a") == "model-requests-day"
            assert await ask("sk-2", "b") is None
            assert await ask("sk-2", "c") == "key-requests-day"  # its own is 2
            assert await ask(KEY, "big") is None
            assert await ask("sk-3", "big") == "model-requests-day"
            assert await ask(KEY, "c") == "tenant-requests-day"  # k1 and k5 share it
            for model in ("priced", "d", "e"):
                assert await ask("sk-3", model) is None
            assert await ask("sk-3", "f") is None
            assert await ask(ADMIN, "g") == "total-requests-day"
            assert len(up.exchanges) == 9

    run(main())


@pytest.mark.parametrize(
    ("trusted", "header", "fields", "source"),
    [
        ([], "x-forwarded-for", ["X-Forwarded-For: 9.9.9.9"], "127.0.0.1"),
        (["127.0.0.0/8"], "x-forwarded-for", [], "127.0.0.1"),
        (["127.0.0.0/8"], "x-forwarded-for", ["X-Forwarded-For: 8.8.8.8, 9.9.9.9"], "9.9.9.9"),
        (
            ["127.0.0.0/8", "10.0.0.0/8"],
            "x-forwarded-for",
            ["X-Forwarded-For: 1.1.1.1,8.8.8.8", "X-Forwarded-For: 10.1.2.3:99, 127.0.0.2"],
            "8.8.8.8",
        ),
        (["127.0.0.1/32"], "x-forwarded-for", ["X-Forwarded-For: 8.8.8.8, what"], "127.0.0.1"),
        (["127.0.0.1/32"], "x-forwarded-for", ["Forwarded: for=9.9.9.9"], "127.0.0.1"),
        (["127.0.0.1/32"], "forwarded", ["X-Forwarded-For: 9.9.9.9"], "127.0.0.1"),
        (
            ["127.0.0.1/32"],
            "forwarded",
            ['Forwarded: for=1.1.1.1, For="[2001:db8:1:2:3::4]:47011";proto=https;by=9.9.9.9'],
            "2001:db8:1:2::/64",
        ),
        (["127.0.0.1/32"], "forwarded", ["Forwarded: for=1.1.1.1, proto=https"], "127.0.0.1"),
        (["127.0.0.1/32"], "forwarded", ["Forwarded: for=1.1.1.1, for=_hidden"], "127.0.0.1"),
        (["127.0.0.1/32"], "forwarded", ['Forwarded: for=1.1.1.1, for="8.8.8.8'], "127.0.0.1"),
        (
            ["127.0.0.1/32", "2001:db8::/32"],
            "x-forwarded-for",
            ["X-Forwarded-For: 2001:dead:1:2::1, 2001:db8::9, ::ffff:127.0.0.1"],
            "2001:dead:1:2::/64",
        ),
    ],
)
def test_the_address_is_the_right_most_one_that_is_not_trusted(
    trusted: list[str], header: str, fields: list[str], source: str
) -> None:
    headers = []
    for field in fields:
        name, _, value = field.partition(": ")
        headers.append((name.lower().encode(), value.encode()))
    proxies = Settings(trusted_proxies=trusted, forwarded_header=header)  # type: ignore[arg-type]
    scope = {"type": "http", "client": ("127.0.0.1", 1), "headers": headers}
    assert Source(proxies.trusted_proxies, proxies.forwarded_header).of(scope) == source


def test_a_proxy_on_the_unix_socket_is_trusted_by_name() -> None:
    scope = {"client": None, "headers": [(b"x-forwarded-for", b"192.0.2.9")]}
    assert Source(("unix",), "x-forwarded-for").of(scope) == "192.0.2.9"
    assert Source((), "x-forwarded-for").of(scope) == "local"


def test_limits_by_address(tmp_path: Path) -> None:
    limits = {"ip": {"requests": slow(1)}}

    async def main() -> None:
        proxies = {"trusted_proxies": ["127.0.0.1"]}
        async with upstream.running() as up, limited(tmp_path, up.url, limits, **proxies) as rig:
            for address, status in (
                ("192.0.2.1", 200),
                ("192.0.2.1", 429),
                ("192.0.2.2", 200),
                ("2001:db8:1:2:3::4", 200),
                ("2001:db8:1:2:ffff::5", 429),  # the same /64
                ("2001:db8:1:3:3::4", 200),
            ):
                reply = await rig.ask(headers=(f"X-Forwarded-For: 203.0.113.5, {address}",))
                assert (address, reply.status) == (address, status)

    run(main())


# -- tokens and money --------------------------------------------------------------------------


def test_tokens_are_settled_by_what_the_upstream_reports(tmp_path: Path) -> None:
    limits = {"key": {"tokens": slow(10_000)}, "reserve": "max"}

    async def main() -> None:
        async with upstream.running() as up, limited(tmp_path, up.url, limits) as rig:
            reply = await rig.ask(asking(max_tokens=3000))
            assert reply.headers["x-ratelimit-remaining-tokens"] == str(10_000 - PROMPT - 3000)
            assert used(rig, "key-tokens-day", "k1", slow(10_000)) == USAGE
            entry = (await rig.entries("call"))[0]
            assert entry["limits"] == {
                "limit": "key-tokens-day",
                "remaining": 10_000 - PROMPT - 3000,
                "reserved_tokens": PROMPT + 3000,
                "used_tokens": USAGE,
            }
            await rig.ask(STREAM)
            await rig.settled()
            assert used(rig, "key-tokens-day", "k1", slow(10_000)) == 2 * USAGE
            intent, settle = (await rig.entries())[-2:]
            assert "used_tokens" not in intent["limits"]
            assert settle["limits"]["used_tokens"] == USAGE
            text = rig.runtime.metrics.text().decode()
            assert f'aegis_limit_tokens_total{{state="used"}} {2 * USAGE}.0' in text

    run(main())


def test_the_whole_maximum_is_reserved_when_asked_for(tmp_path: Path) -> None:
    limits = {
        "key": {"tokens": slow(100_000)},
        "reserve": "max",
        "models": {"small": {"max_output": 100}},
    }
    cases: list[tuple[dict[str, Any], int]] = [
        ({}, 4096),
        ({"max_tokens": 7}, 7),
        ({"max_completion_tokens": 7}, 7),
        ({"max_tokens": 900, "max_output_tokens": 2}, 900),
        ({"max_tokens": 10, "n": 3}, 30),
        ({"max_tokens": None, "n": 2}, 8192),
        ({"model": "small"}, 100),
        ({"model": "small", "max_tokens": 300}, 300),
    ]

    async def main() -> None:
        async with upstream.running() as up, limited(tmp_path, up.url, limits) as rig:
            for members, output in cases:
                body = asking(**members)
                await rig.ask(body)
                record = (await rig.entries("call"))[-1]["limits"]
                assert record["reserved_tokens"] == costs.prompt_tokens(body) + output, members

    run(main())


def test_what_a_model_usually_needs_is_reserved_and_an_overshoot_is_a_debt(tmp_path: Path) -> None:
    completion = 40

    async def script(exchange: Exchange) -> None:
        usage = {
            "prompt_tokens": 3,
            "completion_tokens": completion,
            "total_tokens": 3 + completion,
        }
        await exchange.answer({**upstream.REPLY, "usage": usage})

    async def main() -> None:
        nonlocal completion
        limits = {"key": {"tokens": rate(10_000)}}
        async with upstream.running(script) as up, limited(tmp_path, up.url, limits) as rig:

            async def reserved(**members: Any) -> int:
                body = asking(**members)
                await rig.ask(body)
                record = (await rig.entries("call"))[-1]["limits"]
                tokens: int = record["reserved_tokens"] - costs.prompt_tokens(body)
                return tokens

            assert await reserved() == 256  # nothing is known yet
            assert await reserved(max_tokens=9) == 9  # never more than the caller's maximum
            for _ in range(14):
                await reserved()
            assert 40 <= await reserved() <= 48  # the 95th percentile, by quarters of an octave
            assert 120 <= await reserved(n=3) <= 144
            assert await reserved(max_tokens=20) == 20
            completion = 9900
            assert (await rig.ask()).status == 200  # far more than was reserved
            assert (await rig.ask()).status == 429  # a debt that this call waits for
            assert rig.runtime.limits is not None
            assert rig.runtime.limits.tokens["used"] > 10_000

    run(main())


def test_money_is_reserved_in_full_and_settled_to_the_billionth(tmp_path: Path) -> None:
    limits = {
        "tenant": {"budget": {"amount": 0.0001, "burst": 1.0}},
        "models": {"scripted-1": {"input_price": 0.15, "output_price": 0.6, "max_output": 1000}},
    }

    async def main() -> None:
        async with upstream.running() as up, limited(tmp_path, up.url, limits) as rig:
            reply = await rig.ask()
            assert 'qu="micro-money"' in reply.headers["ratelimit-policy"]
            assert reply.headers["ratelimit"].startswith('"tenant-budget-day";r=999')
            record = (await rig.entries("call"))[0]["limits"]
            assert record["reserved_nano"] == PROMPT * 150 + 1000 * 600
            assert record["used_nano"] == 3 * 150 + 2 * 600
            nanos = {"rate": 10**5, "per": "day", "burst": 10**9}  # of which one drains a second
            assert 1600 < used(rig, "tenant-budget-day", "acme", nanos) <= 1650
            reply = await rig.ask(asking(model="unknown"))
            assert (reply.status, reply.error["code"]) == (403, "model_not_priced")
            assert reply.headers["x-should-retry"] == "false"
            assert len(up.exchanges) == 1

    run(main())


def test_errors_of_the_upstream_cost_no_tokens(tmp_path: Path) -> None:
    """Its own failures cost nothing at all; what it refuses was still a request."""
    limits = {"key": {"requests": slow(10), "tokens": slow(10_000)}}
    status = ""

    async def script(exchange: Exchange) -> None:
        await exchange.answer({"error": {"message": "no"}}, status)

    async def main() -> None:
        nonlocal status
        async with upstream.running(script) as up, limited(tmp_path, up.url, limits) as rig:
            for status, requests in (("500 Oh", 0), ("400 Bad Request", 1), ("429 Slow Down", 2)):
                reply = await rig.ask()
                assert reply.status == int(status[:3])
                assert used(rig, "key-requests-day", "k1", slow(10)) == requests
                assert used(rig, "key-tokens-day", "k1", slow(10_000)) == 0

    run(main())


def test_a_failure_before_the_first_byte_gives_everything_back(tmp_path: Path) -> None:
    limits = {"key": {"requests": slow(10), "tokens": slow(10_000), "concurrency": 1}}

    async def reset(exchange: Exchange) -> None:
        exchange.reset()

    async def silent_stream(exchange: Exchange) -> None:
        await exchange.begin_stream()
        exchange.reset()

    async def main() -> None:
        async with upstream.running(reset) as up, limited(tmp_path, up.url, limits) as rig:
            for body, script in ((ASK, reset), (STREAM, reset), (STREAM, silent_stream)):
                up.script = script
                reply = await rig.ask(body)
                assert reply.status == (200 if script is silent_stream else 502)
                await rig.settled()
                assert used(rig, "key-requests-day", "k1", slow(10)) == 0
                assert used(rig, "key-tokens-day", "k1", slow(10_000)) == 0
                assert in_flight(rig) == 0

    run(main())


def test_without_a_report_the_charge_is_what_was_written(tmp_path: Path) -> None:
    limits = {"key": {"tokens": slow(10_000)}}
    text = 'It wrote \\"this\\". ' * 10
    plain = dict(upstream.REPLY)
    del plain["usage"]

    async def script(exchange: Exchange) -> None:
        if json.loads(exchange.body).get("stream"):
            await exchange.begin_stream()
            for _ in range(5):
                await exchange.chunk(delta(text))
            await exchange.chunk(DONE)
            await exchange.chunk(b"")
        else:
            await exchange.answer(plain)

    async def main() -> None:
        async with upstream.running(script) as up, limited(tmp_path, up.url, limits) as rig:
            await rig.ask()
            assert used(rig, "key-tokens-day", "k1", slow(10_000)) == PROMPT + 2  # "Hello."
            before = used(rig, "key-tokens-day", "k1", slow(10_000))
            await rig.ask(STREAM)
            await rig.settled()
            written = 5 * len(json.dumps(text)[1:-1])
            spent = used(rig, "key-tokens-day", "k1", slow(10_000)) - before
            assert spent == costs.prompt_tokens(STREAM) + -(-written // 4)

    run(main())


# -- calls at a time ---------------------------------------------------------------------------


def test_calls_at_a_time_by_key_and_by_model(tmp_path: Path) -> None:
    release = asyncio.Event()
    limits = {"key": {"concurrency": 2}, "models": {"slow": {"concurrency": 1}}}

    async def script(exchange: Exchange) -> None:
        await release.wait()
        await exchange.answer()

    async def main() -> None:
        async with upstream.running(script) as up, limited(tmp_path, up.url, limits) as rig:
            running = [asyncio.create_task(rig.ask(asking(model="slow")))]
            await up.asked(1)
            reply = await rig.ask(asking(model="slow"), secret=AUDITOR)
            assert (reply.status, reply.error["code"]) == (429, "concurrency_limit_exceeded")
            assert "this model may have 1" in reply.error["message"]
            assert reply.headers["retry-after"] == "1"
            policy = reply.headers["ratelimit-policy"]
            assert policy == (
                '"key-concurrency";q=2;qu="concurrent-requests", '
                '"model-concurrency";q=1;qu="concurrent-requests"'
            )
            assert reply.headers["ratelimit"] == '"model-concurrency";r=0'
            running.append(asyncio.create_task(rig.ask()))
            await up.asked(2)
            reply = await rig.ask()
            assert "this API key may have 2" in reply.error["message"]
            assert in_flight(rig) == 3  # the first call holds a place of each limit
            release.set()
            assert [r.status for r in await asyncio.gather(*running)] == [200, 200]
            assert in_flight(rig) == 0
            assert (await rig.ask(secret=ADMIN)).headers["ratelimit"] == '"key-concurrency";r=1'

    run(main())


def test_no_ending_leaks_a_place_or_a_reservation(tmp_path: Path) -> None:
    """Callers leave at every point; what stays charged are only calls that reached the model."""
    limits = {
        "key": {"requests": slow(1000), "tokens": slow(1_000_000), "concurrency": 500},
        "model": {"concurrency": 500},
    }

    async def script(exchange: Exchange) -> None:
        await asyncio.sleep(0.01)
        if json.loads(exchange.body).get("stream"):
            await exchange.begin_stream()
            for i in range(10):
                await exchange.chunk(delta(str(i)))
                await asyncio.sleep(0.003)
            await exchange.chunk(DONE)
            await exchange.chunk(b"")
        else:
            await exchange.answer()

    async def one(rig: Rig, i: int) -> None:
        async with rig.client() as client:
            data = request(STREAM if i % 2 else ASK)
            await client.write(data if i % 5 else data[: len(data) - i % 40 - 1])
            await asyncio.sleep(i * 0.0007)
            client.writer.transport.abort()

    async def main() -> None:
        async with upstream.running(script) as up, limited(tmp_path, up.url, limits) as rig:
            await asyncio.gather(*(one(rig, i) for i in range(80)))
            await rig.settled()
            assert in_flight(rig) == 0
            forwarded = len(up.exchanges)
            assert 0 < used(rig, "key-requests-day", "k1", slow(1000)) <= forwarded
            charged = sum(
                entry["limits"].get("used_tokens", entry["limits"]["reserved_tokens"])
                for entry in await rig.entries()
                if "limits" in entry
                and entry["kind"] in ("call", "settle", "rejection")
                and entry.get("stage") != "body"
            )
            assert used(rig, "key-tokens-day", "k1", slow(1_000_000)) == charged

    run(main())


def test_a_shutdown_gives_back_what_it_cut_off(tmp_path: Path) -> None:
    limits = {"key": {"requests": slow(10), "tokens": slow(10_000), "concurrency": 3}}

    async def script(exchange: Exchange) -> None:
        await exchange.gone()

    async def main() -> None:
        async with upstream.running(script) as up:
            quick = {"shutdown_deadline": 0.2}
            async with limited(tmp_path, up.url, limits, **quick) as rig:
                asked = asyncio.create_task(rig.ask())
                await up.asked(1)
            assert (await asked).status == 503
            async with limited(tmp_path, up.url, limits) as rig:
                assert used(rig, "key-requests-day", "k1", slow(10)) == 0
                assert used(rig, "key-tokens-day", "k1", slow(10_000)) == 0
                assert in_flight(rig) == 0

    run(main())


# -- nothing configured ------------------------------------------------------------------------


def test_without_limits_there_are_no_tables_and_no_headers(tmp_path: Path) -> None:
    async def main() -> None:
        async with upstream.running() as up, limited(tmp_path, up.url, {}) as rig:
            reply = await rig.ask()
            assert not [name for name in reply.headers if "ratelimit" in name]
            assert rig.runtime.limits is None
            assert not (tmp_path / "shm").exists()
            assert "limits" not in (await rig.entries("call"))[0]

    run(main())
