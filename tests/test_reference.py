"""The reference implementation against published vectors and another library."""

import base64
import json
import os
from pathlib import Path
from typing import Any

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from reference import commitment, ed25519, note, tiles, tree
from vectors import make

VECTORS = Path(__file__).parent / "vectors"
PUBLISHED: dict[str, Any] = json.loads((VECTORS / "published.json").read_text())


@pytest.mark.parametrize("vector", PUBLISHED["ed25519"]["vectors"])
def test_ed25519_vectors_of_the_rfc(vector: dict[str, str]) -> None:
    seed, public, message, signature = (
        bytes.fromhex(vector[name]) for name in ("seed", "public", "message", "signature")
    )
    assert ed25519.public_key(seed) == public
    assert ed25519.sign(seed, message) == signature
    assert ed25519.verify(public, message, signature)
    assert not ed25519.verify(public, message + b"x", signature)


@pytest.mark.parametrize("length", [0, 1, 63, 64, 200])
def test_ed25519_agrees_with_another_library(length: int) -> None:
    seed, message = os.urandom(32), os.urandom(length)
    other = Ed25519PrivateKey.from_private_bytes(seed)
    assert ed25519.sign(seed, message) == other.sign(message)
    assert ed25519.public_key(seed) == other.public_key().public_bytes_raw()


def test_roots_and_a_consistency_proof_of_the_ct_project() -> None:
    data = PUBLISHED["tree"]
    leaves = [bytes.fromhex(leaf) for leaf in data["leaves"]]
    for size, root in enumerate(data["roots"], 1):
        assert tree.mth(leaves[:size]).hex() == root
    for case in data["consistency"]:
        proof = tree.consistency_proof(case["old"], leaves[: case["new"]])
        assert [node.hex() for node in proof] == case["proof"]
    assert tree.mth([]).hex().startswith("e3b0c44298fc1c149afb")


@pytest.mark.parametrize("vector", PUBLISHED["notes"], ids=lambda v: v["vkey"].split("+")[0])
def test_notes_of_other_implementations(vector: dict[str, Any]) -> None:
    name, key_id, material = vector["vkey"].split("+", 2)
    public = base64.b64decode(material)[1:]
    assert note.vkey(name, public) == vector["vkey"]
    assert note.key_id(name, public).hex() == key_id
    text = note.verify(vector["note"].encode(), name, public)
    assert text is not None and vector["note"].startswith(text + "\n")
    if "seed" in vector:
        seed = bytes.fromhex(vector["seed"])
        assert note.sign(text, name, seed).decode() == vector["note"]
    if "checkpoint" in vector:
        point = vector["checkpoint"]
        root = base64.b64decode(point["root"])
        assert note.checkpoint_text(point["origin"], point["size"], root) == text
    with pytest.raises(InvalidSignature):
        Ed25519PublicKey.from_public_bytes(public).verify(bytes(64), text.encode())


def test_tile_paths_and_widths_of_the_specification() -> None:
    assert tiles.index_path(1234067) == "x001/x234/067"
    assert tiles.index_path(5) == "005"
    assert tiles.index_path(1000) == "x001/000"
    assert tiles.tile_widths(256, 0) == [256]
    assert tiles.tile_widths(256, 1) == [1]
    widths = [tiles.tile_widths(70_000, level) for level in range(3)]
    assert widths == [[256] * 273 + [112], [256, 17], [1]]


def test_hmac_of_rfc_4231() -> None:
    key, data = b"Jefe", b"what do ya want for nothing?"
    expected = "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"
    assert commitment.hmac_sha256(key, data).hex() == expected
    expected = "60e431591ee0b67f0d8a26aacbf5b77f8e0bc6213728c5140546040f0ee37f54"
    data = b"Test Using Larger Than Block-Size Key - Hash Key First"
    assert commitment.hmac_sha256(b"\xaa" * 131, data).hex() == expected


def test_golden_files_are_what_the_reference_makes() -> None:
    for name, content in make.golden().items():
        assert (VECTORS / name).read_bytes() == content, name


def test_the_formats_document_shows_a_golden_checkpoint_and_every_member() -> None:
    docs = Path(__file__).parents[1] / "docs"
    text = (docs / "formats.md").read_text()
    golden = (VECTORS / "call.tlog-proof").read_text().partition("\n\n")[2]
    shown = "".join(f"    {line}\n" if line else "\n" for line in golden.splitlines())
    assert shown in text
    for member in json.loads((docs / "entry.schema.json").read_text())["properties"]:
        assert f"`{member}`" in text, member
