"""Receipts and the ledger's read interface over HTTP: content, access, hostile paths."""

import asyncio
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import upstream
from aegis_c import LedgerError
from aegis_c.ledger import fsck, shards, verify
from aegis_c.ledger.receipts import build_receipt
from gateway_rig import ADMIN, ASK, AUDITOR, KEY, KEYS, Reply, Rig, gateway, key, request, until

COLLEAGUE = "sk-colleague"  # another key of the caller's tenant
STRANGER = "sk-stranger"  # another tenant
EVERYBODY = [
    *KEYS,
    key(COLLEAGUE, "k4", "acme"),
    key(STRANGER, "k5", "other"),
]


async def get(rig: Rig, path: str, secret: str | None = KEY, *headers: str) -> Reply:
    return await rig.send(request(b"", path=path, method="GET", secret=secret, headers=headers))


async def receipt(rig: Rig, request_id: str, secret: str = KEY, query: str = "?wait=1") -> bytes:
    reply = await get(rig, f"/v1/receipts/{request_id}{query}", secret)
    assert reply.status == 200, reply.body
    assert reply.headers["content-type"] == "application/json"
    assert reply.headers["cache-control"] == "no-store"
    return reply.body


def trusted(rig: Rig) -> verify.VerifierKey:
    return verify.parse_vkey(rig.runtime.ledger.native.vkey)


def test_a_plain_call_is_proven_with_the_callers_own_bytes(tmp_path: Path) -> None:
    async def main() -> None:
        async with upstream.running() as up, gateway(tmp_path, up.url) as rig:
            body = json.dumps(ASK, indent=2).encode()
            reply = await rig.ask(body)
            raw = await receipt(rig, reply.headers["x-request-id"])
            result = verify.verify_receipt(raw, trusted(rig), request=body, response=reply.body)
            (one,) = result.entries
            assert one.entry["kind"] == "call"
            assert one.entry["tenant"] == "acme"
            assert result.bodies == {"request": len(body), "response": len(reply.body)}
            for wrong in ({"request": reply.body}, {"response": reply.body + b" "}):
                with pytest.raises(verify.VerificationError):
                    verify.verify_receipt(raw, trusted(rig), **wrong)

    asyncio.run(main())
    (report,) = fsck.fsck(tmp_path)  # every entry of the gateway fits the published schema
    assert report.problems == []


def test_a_stream_is_proven_from_intent_to_settle(tmp_path: Path) -> None:
    async def main() -> None:
        async with upstream.running() as up, gateway(tmp_path, up.url) as rig:
            body = json.dumps({**ASK, "stream": True}).encode()
            reply = await rig.ask(body)
            await rig.wait_for("settle")
            raw = await receipt(rig, reply.headers["x-request-id"])
            result = verify.verify_receipt(raw, trusted(rig), request=body, response=reply.body)
            kinds = [one.entry["kind"] for one in result.entries]
            assert kinds[:2] == ["intent", "settle"]
            only = await receipt(rig, reply.headers["x-request-id"], query="?wait=1&kind=settle")
            (item,) = json.loads(only)["entries"]
            assert item["kind"] == "settle"

    asyncio.run(main())


def test_the_tlog_proof_form(tmp_path: Path) -> None:
    async def main() -> None:
        async with upstream.running() as up, gateway(tmp_path, up.url) as rig:
            path = "/v1/receipts/" + (await rig.ask()).headers["x-request-id"]
            early = await get(rig, path, KEY, "Accept: text/plain")
            assert early.status == 409
            assert early.error["message"].endswith("?wait=1.")
            late = await get(rig, path + "?wait=1", KEY, "Accept: text/plain, */*")
            assert late.status == 200
            assert late.headers["content-type"] == "text/plain; charset=utf-8"
            item = json.loads((await get(rig, path)).body)["entries"][0]
            assert item["state"] == "published"
            assert late.body.decode() == item["proof"]
            given = item["entry"].encode()
            assert verify.verify_receipt(late.body, trusted(rig), entry=given).entries
            for accept in ("application/json, text/plain", "*/*", "", "text/html"):
                reply = await get(rig, path, KEY, f"Accept: {accept}")
                assert reply.headers["content-type"] == "application/json"

    asyncio.run(main())


def test_before_publication_the_receipt_says_how_far_it_got(tmp_path: Path) -> None:
    async def main() -> None:
        async with upstream.running() as up, gateway(tmp_path, up.url) as rig:
            asked = (await rig.ask()).headers["x-request-id"]
            raw = await receipt(rig, asked, query="")
            (item,) = json.loads(raw)["entries"]
            assert (item["state"], item["proof"]) == ("integrated", None)
            with pytest.raises(verify.VerificationError, match="not published yet"):
                verify.verify_receipt(raw, trusted(rig))
            assert verify.verify_receipt(await receipt(rig, asked), trusted(rig)).entries

    asyncio.run(main())


def test_only_the_key_its_tenant_and_an_admin_get_a_receipt(tmp_path: Path) -> None:
    async def main() -> None:
        async with (
            upstream.running() as up,
            gateway(tmp_path, up.url, keys=EVERYBODY) as rig,
        ):
            asked = (await rig.ask()).headers["x-request-id"]
            for secret in (KEY, COLLEAGUE, ADMIN):
                await receipt(rig, asked, secret)
            unknown = asked[:-1] + ("0" if asked[-1] != "0" else "1")
            nothing = await get(rig, f"/v1/receipts/{unknown}")
            assert nothing.status == 404
            for path in (asked, f"{asked}?kind=settle", f"{asked}?wait=1", "x", asked.upper()):
                for secret in (STRANGER, AUDITOR):
                    reply = await get(rig, f"/v1/receipts/{path}", secret)
                    assert reply.status == 404
                    assert reply.body == nothing.body
                    assert reply.headers.keys() == nothing.headers.keys()
            assert (await get(rig, f"/v1/receipts/{asked}", "sk-wrong")).status == 401
            assert (await get(rig, f"/v1/receipts/{asked}", None)).status == 401
            assert (await get(rig, f"/v1/receipts/{asked}?kind=party")).status == 400

    asyncio.run(main())


def test_only_the_callers_own_receipt_carries_salts(tmp_path: Path) -> None:
    overseer = "sk-overseer"  # admin of another tenant
    keys = [*EVERYBODY, key(overseer, "k6", "other", "admin")]

    async def main() -> None:
        async with upstream.running() as up, gateway(tmp_path, up.url, keys=keys) as rig:
            reply = await rig.ask()
            asked = reply.headers["x-request-id"]
            for secret in (KEY, COLLEAGUE):
                raw = await receipt(rig, asked, secret)
                assert json.loads(raw)["salts"].keys() == {"request", "response"}
                verify.verify_receipt(raw, trusted(rig), response=reply.body)
            nobody = await rig.ask(secret="sk-wrong")  # only an admin can ask for its receipt
            raw = await receipt(rig, nobody.headers["x-request-id"], overseer)
            verify.verify_receipt(raw, trusted(rig), response=nobody.body)
            raw = await receipt(rig, asked, overseer)
            assert json.loads(raw)["salts"] == {}
            assert verify.verify_receipt(raw, trusted(rig)).entries[0].entry["kind"] == "call"
            with pytest.raises(verify.FormatError, match="no salt"):
                verify.verify_receipt(raw, trusted(rig), response=reply.body)

    asyncio.run(main())


def test_a_strangers_404_takes_as_long_as_an_unknown_ids(tmp_path: Path) -> None:
    async def main() -> None:
        async with (
            upstream.running() as up,
            gateway(tmp_path, up.url, keys=EVERYBODY) as rig,
        ):
            asked = (await rig.ask()).headers["x-request-id"]
            unknown = asked[:-4] + "0000"

            async def seconds(request_id: str) -> float:
                started = time.perf_counter()
                assert (await get(rig, f"/v1/receipts/{request_id}", STRANGER)).status == 404
                return time.perf_counter() - started

            times: dict[str, list[float]] = {asked: [], unknown: []}
            for _ in range(40):
                for request_id in times:
                    times[request_id].append(await seconds(request_id))
            assert min(min(t) for t in times.values()) >= 0.015  # both wait for the next step
            known, other = (statistics.median(times[i]) for i in (asked, unknown))
            assert abs(known - other) < 0.005

    asyncio.run(main())


class Asked:
    """Stands for the other workers, of which none has the entry; counts what they are asked."""

    def __init__(self, steps: list[str]) -> None:
        self.steps = steps

    def is_from_sibling(self, scope: object) -> bool:
        return False

    async def ask(self, target: str, headers: dict[str, str], seconds: float) -> dict[int, None]:
        self.steps.append("siblings")
        return {1: None, 2: None}


@pytest.mark.parametrize("query", ["", "?wait=1", "?kind=settle"])
def test_a_strangers_404_takes_the_steps_of_an_unknown_ids(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, query: str
) -> None:
    """Over all shards: each is looked up once, and nobody waits for a publication."""
    steps: list[str] = []

    def counted(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            steps.append(name)
            return function(*arguments, **options)

        return call

    async def main() -> None:
        async with (
            upstream.running() as up,
            gateway(tmp_path, up.url, keys=EVERYBODY) as rig,
        ):
            asked = (await rig.ask()).headers["x-request-id"]
            ledger = rig.runtime.ledger
            monkeypatch.setattr(rig.runtime, "siblings", Asked(steps))
            monkeypatch.setattr(ledger, "find", counted("own", ledger.find))
            monkeypatch.setattr(ledger, "published", counted("wait", ledger.published))
            monkeypatch.setattr(shards, "find", counted("files", shards.find))
            for request_id in (asked, asked[:-4] + "0000", "unknown"):
                steps.clear()
                reply = await get(rig, f"/v1/receipts/{request_id}{query}", STRANGER)
                assert reply.status == 404
                assert steps == ["own", "siblings", "files"]
            steps.clear()
            assert (await get(rig, f"/v1/receipts/{asked}?wait=1")).status == 200
            assert steps == ["own", "wait"]

    asyncio.run(main())


def test_an_entry_that_rotted_is_no_receipt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        async with upstream.running() as up, gateway(tmp_path, up.url) as rig:
            asked = (await rig.ask()).headers["x-request-id"]
            await receipt(rig, asked)

            def rotted(_id: str) -> list[int]:
                raise LedgerError("entry differs from its hash")

            monkeypatch.setattr(rig.runtime.ledger, "find", rotted)
            reply = await get(rig, f"/v1/receipts/{asked}")
            assert reply.status == 503
            assert "cannot be read" in reply.error["message"]
            assert reply.headers["retry-after"] == "10"

    asyncio.run(main())


def test_a_refused_call_has_a_receipt_and_one_without_key_for_the_admin(tmp_path: Path) -> None:
    async def main() -> None:
        async with upstream.running() as up, gateway(tmp_path, up.url) as rig:
            refused = await rig.ask(b"{not json")
            assert refused.status == 400
            raw = await receipt(rig, refused.headers["x-request-id"])
            result = verify.verify_receipt(
                raw, trusted(rig), request=b"{not json", response=refused.body
            )
            assert result.entries[0].entry["kind"] == "rejection"

            nobody = await rig.ask(secret="sk-wrong")
            asked = nobody.headers["x-request-id"]
            assert (await get(rig, f"/v1/receipts/{asked}")).status == 404
            raw = await receipt(rig, asked, ADMIN)
            entry = verify.verify_receipt(raw, trusted(rig)).entries[0].entry
            assert (entry["kind"], entry["status"]) == ("rejection", 401)

    asyncio.run(main())


def test_receipts_outlive_a_restart(tmp_path: Path) -> None:
    async def main() -> None:
        async with upstream.running() as up:
            async with gateway(tmp_path, up.url) as rig:
                replies = [await rig.ask() for _ in range(3)]
                key_before = trusted(rig)
            async with gateway(tmp_path, up.url) as rig:
                assert trusted(rig) == key_before
                for reply in replies:
                    raw = await receipt(rig, reply.headers["x-request-id"], query="")
                    verify.verify_receipt(raw, key_before, response=reply.body)

    asyncio.run(main())


def test_another_subjects_salts_open_nothing(tmp_path: Path) -> None:
    async def main() -> None:
        async with upstream.running() as up, gateway(tmp_path, up.url) as rig:
            reply = await rig.ask()
            asked = reply.headers["x-request-id"]
            await receipt(rig, asked)
            ledger = rig.runtime.ledger
            built = build_receipt(
                ledger.native, asked, await ledger.find(asked), secret=b"another subject"
            )
            with pytest.raises(verify.VerificationError, match="or not its salt"):
                verify.verify_receipt(json.dumps(built).encode(), trusted(rig), response=reply.body)

    asyncio.run(main())


# ---- the ledger's read interface


async def published(rig: Rig, calls: int = 3) -> None:
    replies = [await rig.ask() for _ in range(calls)]
    await receipt(rig, replies[-1].headers["x-request-id"])


def files_of(data: Path) -> dict[str, bytes]:
    folder = data / "ledger/w0"
    names = (path for path in folder.rglob("*") if path.is_file() and path.name != "log.vkey")
    return {str(path.relative_to(folder)): path.read_bytes() for path in names}


@pytest.mark.parametrize("public", [False, True])
def test_the_whole_log_can_be_read_by_those_who_may(tmp_path: Path, public: bool) -> None:
    async def main() -> None:
        async with (
            upstream.running() as up,
            gateway(tmp_path, up.url, ledger={"public": public}) as rig,
        ):
            await published(rig)
            files = files_of(tmp_path)
            assert {"checkpoint", "tile/0/000.p/4", "tile/entries/000.p/4"} <= set(files)
            for name, content in files.items():
                path = f"/ledger/w0/{name}"
                for secret in (AUDITOR, ADMIN):
                    reply = await get(rig, path, secret)
                    assert (reply.status, reply.body) == (200, content)
                open_to_all = public and not name.startswith("tile/entries")
                for wrong, status in ((None, 401), ("sk-wrong", 401), (KEY, 403)):
                    reply = await get(rig, path, wrong)
                    assert reply.status == (200 if open_to_all else status), (name, wrong)
                caching = reply.headers.get("cache-control")
                if open_to_all:
                    immutable = "public, max-age=31536000, immutable"
                    assert caching == ("no-cache" if name == "checkpoint" else immutable)
                else:
                    assert caching is None or "public" not in caching
            secret_tile = await get(rig, "/ledger/w0/tile/entries/000.p/4", AUDITOR)
            assert secret_tile.headers["cache-control"].startswith("private")
            assert secret_tile.headers["content-type"] == "application/octet-stream"
            checkpoint = await get(rig, "/ledger/w0/checkpoint", AUDITOR)
            assert checkpoint.headers["content-type"] == "text/plain; charset=utf-8"
            assert verify.open_checkpoint(checkpoint.body, trusted(rig)).size == 4

            listing = await get(rig, "/ledger/", None if public else AUDITOR)
            native = rig.runtime.ledger.native
            shard: dict[str, Any] = {"name": "w0", "origin": native.origin, "vkey": native.vkey}
            assert json.loads(listing.body) == {
                "shards": [{**shard, "checkpoint": "w0/checkpoint"}]
            }
            assert (await get(rig, "/ledger/", KEY)).status == (200 if public else 403)

    asyncio.run(main())


HOSTILE = [
    "w0/log.vkey",
    "w0/checkpoint%0a",
    "w0%0a/checkpoint",
    "w0/",
    "w0",
    "w1/checkpoint",
    "w00/checkpoint",
    "W0/checkpoint",
    "../private/w0/log.key",
    "%2e%2e/private/w0/log.key",
    "w0/../../private/w0/log.key",
    "w0/%2e%2e/%2e%2e/private/w0/log.key",
    "w0/..%2f..%2fprivate/w0/log.key",
    "w0/tile/../../../private/w0/log.key",
    "w0/tile/0/../../checkpoint",
    "w0//etc/passwd",
    "w0/%2fetc/passwd",
    "w0/tile/0/000",
    "w0/tile/0/000.p/5",
    "w0/tile/0/000.p/0",
    "w0/tile/0/000.p/04",
    "w0/tile/0/000.p/256",
    "w0/tile/0/000.p",
    "w0/tile/0/000.p/4/",
    "w0/tile/0/000.p/4%00",
    "w0/tile/0/000.p/4%0a",
    "w0/tile/00/000.p/4",
    "w0/tile/0/0.p/4",
    "w0/tile/0/x000/000.p/4",
    "w0/tile/0/%D9%A0%D9%A0%D9%A0.p/4",
    "w0/tile/64/000",
    "w0/tile/-1/000",
    "w0/tile/entries",
    "w0/tile/0",
    "w0/" + "x" * 5000,
    "w0/tile/0/" + "x000/" * 300 + "000",
]


@pytest.mark.parametrize("path", HOSTILE)
def test_nothing_but_the_logs_own_files_is_served(tmp_path: Path, path: str) -> None:
    async def main() -> None:
        async with (
            upstream.running() as up,
            gateway(tmp_path, up.url, ledger={"public": True}) as rig,
        ):
            await published(rig)
            reply = await get(rig, f"/ledger/{path}", ADMIN)
            assert reply.status in (307, 404), reply.body
            if reply.status == 404:
                assert reply.error["message"]
            else:
                assert reply.headers["location"].endswith("/ledger/w0/")

    asyncio.run(main())


def test_a_directory_in_place_of_a_tile_is_a_clean_404(tmp_path: Path) -> None:
    async def main() -> None:
        async with upstream.running() as up, gateway(tmp_path, up.url) as rig:
            await published(rig)
            (tmp_path / "ledger/w0/tile/5/000").mkdir(parents=True)
            (tmp_path / "ledger/w0/tile/6").write_text("")
            for level in (5, 6):
                assert (await get(rig, f"/ledger/w0/tile/{level}/000", ADMIN)).status == 404

    asyncio.run(main())


def test_a_reader_by_http_alone_can_check_the_log(tmp_path: Path) -> None:
    """What an auditor does with any tool: fetch, rebuild, compare."""

    async def main() -> None:
        async with upstream.running() as up, gateway(tmp_path, up.url) as rig:
            await published(rig, 5)
            copy = tmp_path / "copy"
            names = ["checkpoint", "tile/0/000.p/6", "tile/entries/000.p/6"]
            for name in names:
                reply = await get(rig, f"/ledger/w0/{name}", AUDITOR)
                target = copy / name
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(reply.body)
            listing = json.loads((await get(rig, "/ledger/", AUDITOR)).body)
            (copy / "log.vkey").write_text(listing["shards"][0]["vkey"] + "\n")
            assert fsck.check_shard(copy, vkey=trusted(rig)).problems == []

    asyncio.run(main())


def test_reading_leaves_the_ledger_as_it_is(tmp_path: Path) -> None:
    async def main() -> None:
        async with upstream.running() as up, gateway(tmp_path, up.url) as rig:
            await published(rig)
            size = len(rig.runtime.ledger.native)
            await get(rig, "/ledger/w0/tile/7/000", ADMIN)
            await get(rig, "/v1/receipts/unknown", ADMIN)

            async def quiet() -> bool:
                return len(rig.runtime.ledger.native) == size

            await until(quiet)

    asyncio.run(main())
