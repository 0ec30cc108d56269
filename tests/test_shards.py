"""Receipts out of shards that nobody serves: found, proven and opened from their files alone."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

import upstream
from aegis_c import Ledger, LedgerError
from aegis_c.ledger import shards, verify
from aegis_c.ledger.layout import DataDir
from aegis_c.ledger.receipts import build_receipt
from gateway_rig import ADMIN, KEY, KEYS, Reply, Rig, gateway, key, request
from logs import entry, request_id

STRANGER = "sk-stranger"
REQUEST, RESPONSE = b'{"ask":1}', b'{"answer":2}'


def fill(data: Path, name: str, first: int, count: int) -> str:
    """A closed shard with `count` calls, every other one with an analysis; its verifier key."""
    shard = DataDir(data).shard(name)
    with Ledger(shard.published, origin=f"aegis.example/{name}", private=shard.private) as ledger:
        for number in range(first, first + count):
            index = ledger.submit(entry(number, tenant="acme", key="k1"), REQUEST, RESPONSE)
            if number % 2:
                ledger.submit(entry(number, kind="analysis", tenant="acme", of=index, analysis={}))
        ledger.wait(len(ledger) - 1, "published", 30)
        return ledger.vkey


@pytest.fixture
def data(tmp_path: Path) -> Path:
    DataDir(tmp_path).create()
    return tmp_path


def test_a_read_only_shard_gives_the_receipt_that_its_ledger_gives(data: Path) -> None:
    vkey = verify.parse_vkey(fill(data, "w1", 0, 300))
    fill(data, "w2", 1000, 3)
    directory = DataDir(data)
    for number, kinds in ((7, ["call", "analysis"]), (298, ["call"])):
        ((source, indices),) = shards.find(directory, request_id(number), but="w0")
        receipt = build_receipt(source, request_id(number), indices)
        raw = json.dumps(receipt).encode()
        result = verify.verify_receipt(raw, vkey, request=REQUEST, response=RESPONSE)
        assert [one.entry["kind"] for one in result.entries] == kinds
        with Ledger(source.shard.published, private=source.shard.private) as ledger:
            assert ledger.find(request_id(number)) == indices
            assert build_receipt(ledger, request_id(number), indices) == receipt
    assert shards.find(directory, request_id(7), but="w1") == []
    assert shards.find(directory, request_id(999), but="w0") == []
    for wrong in ("", "x", request_id(0xAB).upper(), "\0"):
        assert shards.find(directory, wrong, but="w0") == []


@pytest.mark.parametrize("name", ["tile/entries/000", "tile/0/000", "checkpoint", "log.vkey"])
def test_a_damaged_shard_gives_an_error_and_never_a_receipt(data: Path, name: str) -> None:
    fill(data, "w1", 0, 300)
    path = data / "ledger/w1" / name
    whole = path.read_bytes()
    ((good, indices),) = shards.find(DataDir(data), request_id(2), but="w0")
    proof = good.receipt(indices[0])
    for change in (b"", whole[:-1], whole.replace(b"acme", b"acmf"), bytes(len(whole))):
        path.write_bytes(change)
        try:
            found = shards.find(DataDir(data), request_id(2), but="w0")
            proofs = [source.receipt(index) for source, some in found for index in some]
        except LedgerError:
            continue
        assert proofs in ([], [proof])
    path.write_bytes(whole)
    path.unlink()
    path.mkdir()  # as unreadable as can be
    if name != "checkpoint":
        with pytest.raises(LedgerError):
            shards.ReadOnlyShard.open(DataDir(data).shard("w1")).receipt(indices[0])


async def get(rig: Rig, path: str, secret: str, *headers: str) -> Reply:
    return await rig.send(request(b"", path=path, method="GET", secret=secret, headers=headers))


def test_the_gateway_answers_for_a_shard_that_no_worker_serves(data: Path) -> None:
    vkey = verify.parse_vkey(fill(data, "w3", 0, 300))
    keys: list[Any] = [*KEYS, key(STRANGER, "k5", "other")]

    async def main() -> None:
        async with upstream.running() as up, gateway(data, up.url, keys=keys) as rig:
            path = f"/v1/receipts/{request_id(7)}"
            # an admin of another tenant gets the proofs, but no salts to open the bodies with
            for secret, response in ((KEY, RESPONSE), (ADMIN, None)):
                reply = await get(rig, path, secret)
                assert reply.status == 200
                assert bool(json.loads(reply.body)["salts"]) == (secret == KEY)
                found = verify.verify_receipt(reply.body, vkey, response=response)
                assert len(found.entries) == 2
            only = await get(rig, path + "?kind=analysis&wait=1", KEY)
            assert [item["kind"] for item in json.loads(only.body)["entries"]] == ["analysis"]
            proof = await get(rig, path, KEY, "Accept: text/plain")
            item = json.loads((await get(rig, path, KEY)).body)["entries"][0]
            assert proof.body.decode() == item["proof"]
            unknown = await get(rig, f"/v1/receipts/{request_id(999)}", KEY)
            stranger = await get(rig, path, STRANGER)
            assert (unknown.status, unknown.body) == (404, stranger.body)
            assert stranger.headers.keys() == unknown.headers.keys()

            bundle = data / "ledger/w3/tile/entries/000"
            whole = bundle.read_bytes()
            bundle.write_bytes(whole.replace(b"acme", b"acmf", 1))
            assert (await get(rig, f"/v1/receipts/{request_id(0)}", KEY)).status == 503
            (data / "ledger/w3/tile/0/000").write_bytes(bytes(8192))
            reply = await get(rig, f"/v1/receipts/{request_id(2)}", KEY)
            assert reply.status == 503
            assert reply.headers["retry-after"] == "10"

    asyncio.run(main())
