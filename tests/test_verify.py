"""The offline verifier: against the reference, against other libraries, against hostile input."""

import ast
import base64
import importlib.util
import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from hypothesis import given, settings
from hypothesis import strategies as st

import aegis_c
import aegis_c.ledger.verify as v
from aegis_c import cli, verify_consistency
from aegis_c.ledger import entry_schema
from aegis_c.ledger.advice import _ADVICE, advise
from aegis_c.ledger.verify import FormatError, VerificationError
from logs import entry, request_id
from reference import commitment, ed25519, note, proof_text, tree

VECTORS = Path(__file__).parent / "vectors"
PUBLISHED: dict[str, Any] = json.loads((VECTORS / "published.json").read_text())
SEED = bytes(range(32))
ORIGIN = "aegis.example/golden/w0"
KEY = v.parse_vkey(note.vkey(ORIGIN, ed25519.public_key(SEED)))
LEAVES = [b"leaf %d" % i for i in range(70)]
TREE = tree.Tree(LEAVES)


def golden(name: str) -> bytes:
    return (VECTORS / name).read_bytes()


# ---- the module itself


def test_it_imports_nothing_but_the_standard_library() -> None:
    source = Path(v.__file__).read_text()
    for statement in ast.walk(ast.parse(source)):
        if isinstance(statement, ast.Import):
            names = [alias.name for alias in statement.names]
        elif isinstance(statement, ast.ImportFrom):
            assert statement.level == 0
            names = [str(statement.module)]
        else:
            continue
        assert all(name.split(".")[0] in sys.stdlib_module_names for name in names), names


def test_it_runs_alone_in_an_isolated_interpreter(tmp_path: Path) -> None:
    shutil.copy(v.__file__, tmp_path / "verify.py")

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-I", "-S", str(tmp_path / "verify.py"), *arguments]
        return subprocess.run(command, capture_output=True, text=True, cwd=VECTORS, check=False)

    bodies = ["--request", "request.body", "--response", "stream.response.body"]
    good = run("stream.receipt.json", "--vkey", "log.vkey", *bodies)
    assert good.returncode == 0, good.stdout + good.stderr
    assert "verified: settle 3" in good.stdout
    assert "verified: response, 62 bytes" in good.stdout
    proof = run("call.tlog-proof", "--vkey", "log.vkey", "--entry", "call.entry.json")
    assert proof.returncode == 0
    wrong = run("call.receipt.json", "--vkey", "log.vkey", "--request", "call.response.body")
    assert wrong.returncode == 1
    assert "NOT VERIFIED" in wrong.stdout
    assert run("log.vkey", "--vkey", "log.vkey").returncode == 2
    assert run("call.receipt.json", "--vkey", "missing").returncode == 2


def test_an_auditor_can_read_it_in_ten_minutes() -> None:
    """Code of sections 1 to 7, without blank lines, comments, docstrings and the command."""
    source = Path(v.__file__).read_text()
    core = source[: source.index("# ---- 8.")]
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
    texts: set[int] = set()
    for node in ast.walk(ast.parse(core)):
        for child in getattr(node, "body", []) if isinstance(node, documented) else []:
            if isinstance(child, ast.Expr) and isinstance(child.value, ast.Constant):
                texts.update(range(child.lineno, (child.end_lineno or child.lineno) + 1))
    lines = enumerate(core.splitlines(), 1)
    code = [line for number, line in lines if number not in texts and line.strip()]
    code = [line for line in code if not line.strip().startswith(("#", "import ", "from "))]
    assert len(code) <= 300


def test_the_command_also_holds_a_proven_entry_against_the_schema(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = entry(1, usage="none")
    point = note.checkpoint(ORIGIN, 1, tree.mth([raw]), SEED)
    item = {"index": 0, "kind": "call", "entry": raw.decode()}
    item["proof"] = proof_text.proof_text(0, [], point).decode()
    head = {"id": request_id(1), "origin": ORIGIN, "vkey": "", "salts": {}}
    file = tmp_path / "receipt"
    file.write_text(json.dumps({**head, "entries": [item]}))
    assert v.verify_receipt(file.read_bytes(), KEY).entries[0].index == 0
    monkeypatch.setattr(sys, "argv", ["aegis-c", "verify", str(file), "--vkey", str(KEY)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    assert "entry 0\n  expected: an object" in capsys.readouterr().err


def test_errors_say_what_where_expected_found_and_advice() -> None:
    with pytest.raises(VerificationError) as caught:
        v.verify_inclusion(bytes(32), 5, 7, bytes(32), [], "receipt, entry 5")
    error = caught.value
    assert (error.where, error.expected, error.found) == ("receipt, entry 5", "3", "0")
    assert "number of hashes" in error.what
    assert advise(error).advice
    assert str(error).splitlines()[1:3] == ["  where:    receipt, entry 5", "  expected: 3"]


def test_each_piece_of_advice_belongs_to_an_error_of_the_verifier() -> None:
    source = Path(v.__file__).read_text()
    for what in _ADVICE:
        words = what.replace("not the request", "not the {role}")
        words = words.replace("not the response", "not the {role}")
        assert words.removesuffix(" commits").removeprefix("cannot read the verifier key") in source


# ---- Ed25519


@pytest.mark.parametrize("vector", PUBLISHED["ed25519"]["vectors"])
def test_ed25519_vectors_of_the_rfc(vector: dict[str, str]) -> None:
    public, message, signature = (
        bytes.fromhex(vector[name]) for name in ("public", "message", "signature")
    )
    assert v.ed25519_verify(public, message, signature)
    assert not v.ed25519_verify(public, message + b"\x00", signature)


def test_ed25519_agrees_with_another_library_and_refuses_every_flipped_bit() -> None:
    private = Ed25519PrivateKey.generate()
    public = private.public_key().public_bytes_raw()
    for length in (0, 1, 32, 111, 112, 1000):
        message = os.urandom(length)
        assert v.ed25519_verify(public, message, private.sign(message))
    signature = private.sign(b"message")
    for bit in range(0, 512, 3):
        broken = bytearray(signature)
        broken[bit // 8] ^= 1 << bit % 8
        assert not v.ed25519_verify(public, b"message", bytes(broken)), bit


def test_ed25519_strictness() -> None:
    """What lax implementations accept: S + L, other encodings, keys of small order."""
    private = Ed25519PrivateKey.from_private_bytes(SEED)
    public = private.public_key().public_bytes_raw()
    signature = private.sign(b"m")
    s = int.from_bytes(signature[32:], "little") + ed25519.L
    assert not v.ed25519_verify(public, b"m", signature[:32] + s.to_bytes(32, "little"))
    for wrong in (b"", signature[:63], signature + b"\x00", bytes(64)):
        assert not v.ed25519_verify(public, b"m", wrong)
    for wrong in (b"", public[:31], public + b"\x00"):
        assert not v.ed25519_verify(wrong, b"m", signature)

    # The identity as key: R = [S]B verifies for every message where this is not refused.
    identity = (1).to_bytes(32, "little")
    assert ed25519.verify(identity, b"any", ed25519.encode(ed25519.B) + (1).to_bytes(32, "little"))
    assert not v.ed25519_verify(
        identity, b"any", ed25519.encode(ed25519.B) + (1).to_bytes(32, "little")
    )
    for y in (ed25519.p, ed25519.p + 1):  # y not below p
        assert v.decode_point(y.to_bytes(32, "little")) is None
    negative_zero = (1 | 1 << 255).to_bytes(32, "little")  # x = 0 with the sign bit
    assert v.decode_point(negative_zero) is None


# ---- Merkle proofs


def test_every_proof_of_small_trees_is_accepted() -> None:
    for size in range(1, 34):
        root = TREE.root(size)
        for index in range(size):
            path = TREE.inclusion_path(index, size)
            v.verify_inclusion(v.leaf_hash(LEAVES[index]), index, size, root, path)


def test_every_damaged_inclusion_proof_of_small_trees_is_refused() -> None:
    for size in range(1, 18):
        root = TREE.root(size)
        for index in range(size):
            leaf, path = v.leaf_hash(LEAVES[index]), TREE.inclusion_path(index, size)
            wrong: list[tuple[bytes, int, int, bytes, list[bytes]]] = [
                (v.leaf_hash(b"other"), index, size, root, path),
                (leaf, index, size, bytes(32), path),
                (leaf, index, size, root, [*path, bytes(32)]),
                (leaf, index, size, root, [bytes(32), *path]),
                (leaf, size, size, root, path),
                (leaf, -1, size, root, path),
                (leaf, index, 0, root, path),
            ]
            wrong += [(leaf, i, size, root, path) for i in range(size) if i != index]
            wrong += [(leaf, index, size, root, path[:i] + path[i + 1 :]) for i in range(len(path))]
            for i in range(len(path)):
                broken = list(path)
                broken[i] = bytes([broken[i][0] ^ 1]) + broken[i][1:]
                wrong.append((leaf, index, size, root, broken))
            for case in wrong:
                with pytest.raises(VerificationError):
                    v.verify_inclusion(*case)


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_verification_agrees_with_the_reference_on_altered_proofs(data: st.DataObject) -> None:
    """Whatever is asked, both implementations of RFC 9162 give one answer."""
    size = data.draw(st.integers(1, 70))
    old = data.draw(st.integers(0, size))
    proof = TREE.consistency_proof(old, size)
    path = TREE.inclusion_path(min(old, size - 1), size)
    claimed_old = data.draw(st.sampled_from([old, old + 1, max(old - 1, 0), 0, size]))
    claimed_size = data.draw(st.sampled_from([size, size + 1, max(size - 1, 1), size * 2]))
    for hashes in (proof, path):
        for _ in range(data.draw(st.integers(0, 2))):
            change = data.draw(st.sampled_from(["drop", "add", "flip", "swap"]))
            at = data.draw(st.integers(0, max(len(hashes) - 1, 0)))
            if change == "add":
                hashes.insert(at, TREE.root(data.draw(st.integers(0, 70))))
            elif hashes and change == "drop":
                del hashes[at]
            elif hashes and change == "flip":
                hashes[at] = v.leaf_hash(hashes[at])
            elif hashes:
                hashes[at], hashes[0] = hashes[0], hashes[at]

    def accepts(check: Callable[..., None], *arguments: object) -> bool:
        try:
            check(*arguments)
        except (VerificationError, aegis_c.VerificationError):
            return False
        return True

    roots = TREE.root(old), TREE.root(size)
    assert accepts(
        verify_consistency, claimed_old, claimed_size, *roots, proof
    ) == tree.verify_consistency(claimed_old, claimed_size, *roots, proof)
    leaf = v.leaf_hash(LEAVES[min(old, size - 1)])
    arguments = (leaf, claimed_old, claimed_size, roots[1], path)
    assert accepts(v.verify_inclusion, *arguments) == tree.verify_inclusion(*arguments)


# ---- notes and checkpoints


@pytest.mark.parametrize("vector", PUBLISHED["notes"], ids=lambda x: x["vkey"].split("+")[0])
def test_notes_of_other_implementations(vector: dict[str, Any]) -> None:
    key = v.parse_vkey(vector["vkey"])
    assert str(key) == vector["vkey"]
    data = vector["note"].encode()
    text = v.open_note(data, key)
    assert vector["note"].startswith(text + "\n")
    if "checkpoint" in vector:
        point = vector["checkpoint"]
        checkpoint = v.open_checkpoint(data, key, origin=point["origin"])
        assert (checkpoint.size, base64.b64encode(checkpoint.root).decode()) == (
            point["size"],
            point["root"],
        )
        with pytest.raises(VerificationError, match="another log"):
            v.open_checkpoint(data, key)
    for offset in range(0, len(text.encode()) - 1, 7):
        broken = bytearray(data)
        broken[offset] ^= 1
        with pytest.raises(VerificationError):
            v.open_note(bytes(broken), key)


TEXT = "a line\n\nafter an empty line\n"
SIGNED = note.sign(TEXT, ORIGIN, SEED)
LINE = SIGNED.decode().removeprefix(TEXT + "\n")
OTHER_SEED = bytes(32)
OTHER_PUBLIC = ed25519.public_key(OTHER_SEED)


def line(name: str, key_id: bytes, signature: bytes = bytes(64)) -> str:
    return note.signature_line(name, key_id, signature)


def test_a_note_is_split_at_its_last_empty_line() -> None:
    assert v.open_note(SIGNED, KEY) == TEXT
    assert v.open_note(note.sign("x\n\n", ORIGIN, SEED), KEY) == "x\n\n"
    assert v.open_note(note.sign("\n", ORIGIN, SEED), KEY) == "\n"


def test_unknown_signatures_are_ignored_and_many_are_accepted() -> None:
    own_id = note.key_id(ORIGIN, KEY.public_key)
    others = [
        line("witness.example", b"\x01\x02\x03\x04"),
        line(ORIGIN, b"\x01\x02\x03\x04"),  # the name alone
        line("witness.example", own_id),  # the id alone
        line("grease.example", b"\xff\xff\xff\xff", b"x"),
        line("pq.example", b"\x00\x00\x00\x06", bytes(2428)),
    ]
    for lines in (others + [LINE], [LINE] + others, others * 4 + [LINE], [LINE] * 3):
        assert v.open_note((TEXT + "\n" + "".join(lines)).encode(), KEY) == TEXT
    with pytest.raises(VerificationError, match="not signed by the given key") as caught:
        v.open_note((TEXT + "\n" + "".join(others)).encode(), KEY)
    assert not isinstance(caught.value, FormatError)


def test_a_wrong_signature_of_the_known_key_rejects_the_note() -> None:
    own_id = note.key_id(ORIGIN, KEY.public_key)
    bad = line(ORIGIN, own_id, bytes(64))
    for lines in ([bad], [LINE, bad], [bad, LINE]):
        with pytest.raises(VerificationError, match="wrong signature"):
            v.open_note((TEXT + "\n" + "".join(lines)).encode(), KEY)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\n",
        b"text\n",
        b"text\n\n",
        SIGNED[:-1],
        SIGNED.replace(b"\n\n\xe2", b"\n\xe2"),
        SIGNED.replace(b"\n", b"\r\n"),
        SIGNED.replace(b"a line", b"a\x00line"),
        SIGNED.replace(b"a line", b"a\tline"),
        SIGNED.replace(b"a line", b"a\xffline"),
        SIGNED.replace("\u2014".encode(), b"-"),
        SIGNED.replace("\u2014 ".encode(), "\u2014".encode()),
        SIGNED.replace(b"w0 ", b"w0  "),
        SIGNED + b"\n",
        SIGNED + b"trailing\n",
        SIGNED + "\u2014 a+b AAAAAAAA\n".encode(),
        SIGNED + "\u2014 a b AAAAAAAA\n".encode(),
        SIGNED + "\u2014 a\u00a0b AAAAAAAA\n".encode(),
        SIGNED + "\u2014 name AAAA\n".encode(),
        SIGNED + "\u2014 name AAAAAB==\n".encode(),
        SIGNED + "\u2014 name AAAAAAA\n".encode(),
        SIGNED + "\u2014 name AAAA AAAA\n".encode(),
        SIGNED + "\u2014 name A_AAAAAA\n".encode(),
        SIGNED + "\u2014 name \n".encode(),
        SIGNED + line("n", b"1234").encode() * 100,
    ],
)
def test_malformed_notes_are_refused_as_such(data: bytes) -> None:
    with pytest.raises(FormatError):
        v.open_note(data, KEY)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "name",
        "name+00000000",
        f"+{str(KEY).split('+', 1)[1]}",
        str(KEY).replace("+", " +", 1),
        str(KEY).replace(KEY.key_id.hex(), "00000000"),
        str(KEY).replace(KEY.key_id.hex(), KEY.key_id.hex().upper()),
        str(KEY)[:-1],
        str(KEY) + "A",
        str(KEY).replace(ORIGIN, "another.example"),
        "n+"
        + note.key_id("n", bytes(32), b"\x04").hex()
        + "+"
        + "BAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=",
        "n+00000000+AQ==",
    ],
)
def test_malformed_verifier_keys_are_refused(text: str) -> None:
    with pytest.raises(FormatError):
        v.parse_vkey(text)


def test_a_verifier_key_may_be_given_as_a_file(tmp_path: Path) -> None:
    file = tmp_path / "log.vkey"
    file.write_text(f"{KEY}\n")
    assert v.load_vkey(str(file)) == v.load_vkey(str(KEY)) == KEY
    file.write_bytes(b"\xff\xfe")
    for bad in (str(file), str(tmp_path), str(tmp_path / "no"), "\x00", "x" * 5000):
        with pytest.raises(FormatError):
            v.load_vkey(bad)


def checkpoint_note(*lines: str) -> bytes:
    return note.sign("".join(one + "\n" for one in lines), ORIGIN, SEED)


ROOT = base64.b64encode(TREE.root(70)).decode()


def test_checkpoints() -> None:
    point = v.open_checkpoint(checkpoint_note(ORIGIN, "70", ROOT), KEY)
    assert (point.origin, point.size, point.root, point.extensions) == (
        ORIGIN,
        70,
        TREE.root(70),
        (),
    )
    with_extension = checkpoint_note(ORIGIN, "70", ROOT, "an extension", "another")
    assert v.open_checkpoint(with_extension, KEY).extensions == ("an extension", "another")
    empty = base64.b64encode(v.EMPTY_ROOT).decode()
    assert v.open_checkpoint(checkpoint_note(ORIGIN, "0", empty), KEY).size == 0
    with pytest.raises(VerificationError, match="another log"):
        v.open_checkpoint(checkpoint_note("another.example/log", "70", ROOT), KEY)
    with pytest.raises(VerificationError, match="empty tree"):
        v.open_checkpoint(checkpoint_note(ORIGIN, "0", ROOT), KEY)


@pytest.mark.parametrize(
    "lines",
    [
        (ORIGIN,),
        (ORIGIN, "70"),
        ("", "70", ROOT),
        (ORIGIN, "", ROOT),
        (ORIGIN, "70", ""),
        (ORIGIN, "70", ROOT, ""),
        (ORIGIN, "070", ROOT),
        (ORIGIN, "+70", ROOT),
        (ORIGIN, "-1", ROOT),
        (ORIGIN, "7_0", ROOT),
        (ORIGIN, "\u0667\u0660", ROOT),
        (ORIGIN, " 70", ROOT),
        (ORIGIN, "70.0", ROOT),
        (ORIGIN, str(1 << 63), ROOT),
        (ORIGIN, "9" * 5000, ROOT),
        (ORIGIN, "70", ROOT[:-1]),
        (ORIGIN, "70", ROOT[:40]),
        (ORIGIN, "70", ROOT + ROOT),
    ],
)
def test_malformed_checkpoints_are_refused_though_signed(lines: tuple[str, ...]) -> None:
    with pytest.raises(FormatError):
        v.open_checkpoint(checkpoint_note(*lines), KEY)


# ---- tlog-proofs

CHECKPOINT = note.checkpoint(ORIGIN, 70, TREE.root(70), SEED)
PROOF = proof_text.proof_text(5, TREE.inclusion_path(5, 70), CHECKPOINT)


def test_tlog_proofs() -> None:
    index, checkpoint = v.verify_proof(PROOF, LEAVES[5], KEY)
    assert (index, checkpoint.size) == (5, 70)
    extra = proof_text.proof_text(5, TREE.inclusion_path(5, 70), CHECKPOINT, b"more")
    assert v.verify_proof(extra, LEAVES[5], KEY)[0] == 5
    single = proof_text.proof_text(0, [], note.checkpoint(ORIGIN, 1, tree.mth([b"only"]), SEED))
    assert v.verify_proof(single, b"only", KEY)[0] == 0
    for wrong in (LEAVES[6], b"", LEAVES[5] + b"\n"):
        with pytest.raises(VerificationError, match="not in the signed tree"):
            v.verify_proof(PROOF, wrong, KEY)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        PROOF.replace(b"@v1", b"@v2"),
        PROOF.replace(b"index 5", b"index 05"),
        PROOF.replace(b"index 5", b"index -5"),
        PROOF.replace(b"index 5", b"index five"),
        PROOF.replace(b"index 5", b"Index 5"),
        PROOF.replace(b"index 5\n", b""),
        PROOF.replace(b"index 5\n", b"extra !\nindex 5\n"),
        PROOF.replace(b"index 5\n", b"index 5\nAAAA\n"),
        PROOF.replace(b"index 5\n", b"index 5\n" + b"A" * 43 + b"=\n" * 1 + b"x\n"),
        PROOF.replace(b"index 5\n", b"index 5\n" + (b"A" * 43 + b"=\n") * 64),
        PROOF.replace(b"\n", b"\r\n"),
        PROOF[: PROOF.index(b"\n\n")],
        b"\n\n" + PROOF,
        PROOF + b"\n",
    ],
)
def test_malformed_proofs_are_refused(data: bytes) -> None:
    with pytest.raises(FormatError):
        v.verify_proof(data, LEAVES[5], KEY)


def test_every_truncation_and_flipped_byte_of_a_proof_is_refused() -> None:
    for length in range(len(PROOF)):
        with pytest.raises(VerificationError):
            v.verify_proof(PROOF[:length], LEAVES[5], KEY)
    for offset in range(len(PROOF)):
        broken = bytearray(PROOF)
        broken[offset] ^= 1 << offset % 8
        with pytest.raises(VerificationError):
            v.verify_proof(bytes(broken), LEAVES[5], KEY)


# ---- receipts


def verify_golden(name: str, **bodies: bytes) -> v.Verified:
    return v.verify_receipt(golden(name), KEY, **bodies)


def test_golden_receipts() -> None:
    assert golden("log.vkey").decode() == f"{KEY}\n"
    call = verify_golden(
        "call.receipt.json",
        request=golden("request.body"),
        response=golden("call.response.body"),
    )
    assert [(e.index, e.entry["kind"]) for e in call.entries] == [(1, "call")]
    assert call.bodies == {"request": 72, "response": 70}
    stream = verify_golden(
        "stream.receipt.json",
        request=golden("request.body"),
        response=golden("stream.response.body"),
    )
    assert [(e.index, e.entry["kind"]) for e in stream.entries] == [(2, "intent"), (3, "settle")]
    proof = verify_golden("call.tlog-proof", entry=golden("call.entry.json"))
    assert proof.entries[0].entry["status"] == 200


def test_salts_agree_with_the_reference() -> None:
    secret = bytes(range(100, 132))
    receipt = json.loads(golden("call.receipt.json"))
    for role in ("request", "response"):
        salt = commitment.salt(secret, receipt["id"], role)
        assert base64.b64encode(salt).decode() == receipt["salts"][role]


def altered(change: Callable[[dict[str, Any]], object], name: str = "call.receipt.json") -> bytes:
    receipt = json.loads(golden(name))
    change(receipt)
    return json.dumps(receipt).encode()


BODIES = {"request": b"request.body", "response": b"call.response.body"}


def swap_salts(receipt: dict[str, Any]) -> None:
    salts = receipt["salts"]
    salts["request"], salts["response"] = salts["response"], salts["request"]


@pytest.mark.parametrize(
    ("change", "says", "status"),
    [
        (swap_salts, "not the request that was recorded", 1),
        (lambda r: r["entries"][0].update(index=2), "`index`", 1),
        (lambda r: r["entries"][0].update(kind="intent"), "`kind`", 1),
        (lambda r: r["entries"][0].update(kind=7), "`kind`", 1),
        (lambda r: r.update(id=request_id(1)), "`id`", 1),
        (lambda r: r.update(origin="another.example"), "another log", 1),
        (lambda r: r["entries"][0].update(proof=None, state="durable"), "not published", 1),
        (lambda r: r["entries"][0].update(entry="{}"), "not in the signed tree", 1),
        (lambda r: r["entries"].append(r["entries"][0]), "out of order", 2),
        (lambda r: r["entries"].clear(), "no entries", 2),
        (lambda r: r["salts"].clear(), "no salt", 2),
        (lambda r: r["salts"].update(request="AAAA"), "wrong length", 2),
        (lambda r: r["salts"].update(request=5), "base64", 2),
        (lambda r: r.pop("salts"), "`salts`", 2),
        (lambda r: r.pop("entries"), "`entries`", 2),
        (lambda r: r.update(entries={}), "`entries`", 2),
        (lambda r: r.update(entries=[7]), "object", 2),
        (lambda r: r["entries"][0].pop("index"), "`index`", 2),
        (lambda r: r["entries"][0].update(index=True), "`index`", 2),
        (lambda r: r["entries"][0].update(entry=7), "`entry`", 2),
        (lambda r: r["entries"][0].update(entry="\ud800"), "surrogate", 2),
        (lambda r: r["entries"][0].update(proof="x"), "tlog-proof", 2),
    ],
)
def test_altered_receipts(change: Callable[[Any], object], says: str, status: int) -> None:
    bodies = {role: golden(name.decode()) for role, name in BODIES.items()}
    with pytest.raises(VerificationError, match=says) as caught:
        v.verify_receipt(altered(change), KEY, **bodies)
    assert isinstance(caught.value, FormatError) == (status == 2)


def test_wrong_bodies_are_refused() -> None:
    body = golden("request.body")
    for wrong in (b"", body[:-1], body + b"\n", body.replace(b"m", b"M", 1)):
        with pytest.raises(VerificationError, match="not the request that was recorded"):
            verify_golden("call.receipt.json", request=wrong)
    rejected = altered(lambda r: r["entries"].pop(1), "stream.receipt.json")
    with pytest.raises(VerificationError, match="no entry of this receipt commits to a response"):
        v.verify_receipt(rejected, KEY, response=b"")


def test_a_settle_that_names_another_entry_is_refused() -> None:
    def other(number: int, **members: object) -> bytes:
        return entry(1, **members)

    log = [
        other(1, kind="call"),
        other(1, kind="intent"),
        other(1, kind="settle", of=0, status="done"),
        other(1, kind="settle", of=3, status="done"),
        other(1, kind="analysis", of=1, analysis={}),
    ]
    note_bytes = note.checkpoint(ORIGIN, len(log), tree.mth(log), SEED)

    def receipt(*indices: int) -> bytes:
        items = [
            {
                "index": i,
                "kind": json.loads(log[i])["kind"],
                "entry": log[i].decode(),
                "proof": proof_text.proof_text(i, tree.inclusion_path(i, log), note_bytes).decode(),
            }
            for i in indices
        ]
        head = {"id": request_id(1), "origin": ORIGIN, "vkey": "", "salts": {}}
        return json.dumps({**head, "entries": items}).encode()

    assert v.verify_receipt(receipt(1, 4), KEY).entries[1].index == 4
    for indices in ((0, 2), (3,)):
        with pytest.raises(VerificationError, match="settle that refers to the wrong entry"):
            v.verify_receipt(receipt(*indices), KEY)
    assert v.verify_receipt(receipt(2), KEY)  # the entry it names is not in this receipt


def test_a_log_that_signed_two_trees_of_one_size_is_exposed() -> None:
    receipt = json.loads(golden("stream.receipt.json"))
    second = receipt["entries"][1]
    forged = [b"other", b"history", b"of", second["entry"].encode(), b"five"]
    point = note.checkpoint(ORIGIN, 5, tree.mth(forged), SEED)
    second["proof"] = proof_text.proof_text(3, tree.inclusion_path(3, forged), point).decode()
    with pytest.raises(VerificationError, match="two different trees"):
        v.verify_receipt(json.dumps(receipt).encode(), KEY)


def test_no_flipped_byte_of_a_receipt_changes_what_is_proven() -> None:
    whole = golden("call.receipt.json")
    proven = verify_golden("call.receipt.json").entries
    refused = 0
    for offset in range(len(whole)):
        broken = bytearray(whole)
        broken[offset] ^= 1 << offset % 7
        try:
            result = v.verify_receipt(bytes(broken), KEY)
        except VerificationError:
            refused += 1
        else:  # white space, the salts, or a member that proves nothing
            assert result.entries == proven
    assert refused > len(whole) * 0.7


def test_the_command_and_the_module_alone_agree_on_thousands_of_mutated_receipts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also with what the native code and another library say of those that verify."""
    spec = importlib.util.spec_from_file_location("alone", v.__file__)
    assert spec is not None and spec.loader is not None
    alone = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "alone", alone)
    spec.loader.exec_module(alone)
    dice = random.Random(11)
    wholes = [golden(name) for name in ("call.receipt.json", "stream.receipt.json")]
    tokens = [b"", b'"', b"0", b"1", b"A", b"null", b"{}", b",", b"\\u0041", b"\\n", b" ", b"\xff"]
    file, vkey = tmp_path / "receipt", str(VECTORS / "log.vkey")
    statuses = []
    for round_ in range(1500):
        data = bytearray(dice.choice(wholes))
        for _ in range(min(round_, dice.randint(1, 2))):
            at = dice.randrange(len(data))
            data[at : at + dice.randint(0, 2)] = dice.choice(tokens)
        file.write_bytes(data)
        by_module = alone.main([str(file), "--vkey", vkey])
        if round_ % 40 == 0:  # the command is slow to start
            monkeypatch.setattr(sys, "argv", ["aegis-c", "verify", str(file), "--vkey", vkey])
            with pytest.raises(SystemExit) as ended:
                cli.main()
            assert (ended.value.code or 0) == by_module, bytes(data)
        statuses.append(by_module)
        if by_module == 0:
            assert_proven_by_others(bytes(data))
    capsys.readouterr()
    assert {0, 1, 2} == set(statuses)


def assert_proven_by_others(data: bytes) -> None:
    """Inclusion by the native code, the signature by another library."""
    for item in json.loads(data)["entries"]:
        head, _, signed = item["proof"].partition("\n\n")
        path = [base64.b64decode(one) for one in head.split("\n")[2:]]
        text, _, signature = signed.rpartition("\n\n")
        _, size, root = text.split("\n")[:3]
        leaf = aegis_c.leaf_hash(item["entry"].encode())
        aegis_c.verify_inclusion(leaf, item["index"], int(size), base64.b64decode(root), path)
        raw = base64.b64decode(signature.split(" ")[2])
        public = Ed25519PublicKey.from_public_bytes(KEY.public_key)
        public.verify(raw[4:], (text + "\n").encode())


def test_every_truncation_of_a_receipt_is_unusable() -> None:
    whole = golden("call.receipt.json").rstrip()
    for length in range(len(whole)):
        with pytest.raises(FormatError):
            v.verify_receipt(whole[:length], KEY)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"null",
        b"\xff",
        b"\xef\xbb\xbf{}",
        b'{"id":"a","id":"b"}',
        b'{"id":NaN}',
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b"1" * 10_000,
        golden("call.tlog-proof"),
    ],
)
def test_input_that_is_no_receipt_is_unusable(data: bytes) -> None:
    with pytest.raises(FormatError):
        v.verify_receipt(data, KEY)


def test_arguments_that_do_not_belong_together() -> None:
    proof, given_entry = golden("call.tlog-proof"), golden("call.entry.json")
    with pytest.raises(FormatError, match="salts"):
        v.verify_receipt(proof, KEY, entry=given_entry, request=b"")
    with pytest.raises(FormatError, match="carries its own"):
        v.verify_receipt(golden("call.receipt.json"), KEY, entry=given_entry)


# ---- the schema of entries

SCHEMA = json.loads((Path(__file__).parents[1] / "docs/entry.schema.json").read_text())
BODY = {"bytes": 3, "commitment": "A" * 43 + "="}
SAMPLES: list[dict[str, Any]] = [
    json.loads(entry(0)),
    json.loads(entry(1, kind="intent", request=BODY, model={"asked": "m", "asked_sha256": "x"})),
    json.loads(entry(2, kind="settle", of=1, status="done", events=2, response=BODY)),
    json.loads(entry(3, kind="rejection", reason="r", stage="auth", suppressed=1, status=401)),
    json.loads(entry(4, kind="analysis", of=0, analysis={"available": False})),
    json.loads(entry(5, kind="admin", event="genesis", policy="0" * 64)),
]
VALUES: list[Any] = [
    *(None, True, False, 0, 1, -1, 200, 99, 600, 1.5, "", "x", "done", "call", "settle", "é" * 128),
    *([], {}, {"asked": 1}, {"asked": "a", "answered": "b"}, BODY, {**BODY, "bytes": -1}),
    *({**BODY, "commitment": "A" * 44}, {"bytes": 1}, "0" * 64, "G" * 64, "x" * 257),
    *(request_id(9), request_id(9).upper(), "2026-01-02T03:04:05.123456Z", "2026-01-02T03:04:05Z"),
]
NAMES = [*SCHEMA["properties"], "status", "tenant_sha256", "anything"]


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda s: s["kind"])
def test_the_checker_and_the_published_schema_agree(sample: dict[str, Any]) -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    validator = jsonschema.Draft202012Validator(SCHEMA)
    accepted = refused = 0

    def compare(members: dict[str, Any]) -> None:
        nonlocal accepted, refused
        valid = validator.is_valid(members)
        try:
            assert entry_schema.parse_entry(json.dumps(members).encode()) == members
            ours = True
        except FormatError:
            ours = False
        assert ours == valid, members
        accepted += ours
        refused += not ours

    compare(sample)
    assert accepted == 1
    for name in NAMES:
        compare({key: value for key, value in sample.items() if key != name})
        for value in VALUES:
            compare({**sample, name: value})
    assert accepted > 50
    assert refused > 300


def test_the_schema_names_every_member_that_the_checker_knows() -> None:
    assert set(entry_schema.MEMBERS) == set(SCHEMA["properties"])
    assert SCHEMA["properties"]["kind"]["enum"] == list(entry_schema.KINDS)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"[]", "one JSON object"),
        (b"not json", "not JSON"),
        (b"\xff", "UTF-8"),
        (entry(0)[:-1] + b',"v":1}', "duplicate"),
        (entry(0, note="x" * 70_000), "too large"),
        (entry(0, tenant="é" * 129), "`tenant`"),
        (entry(0, tenant="\ud800" * 300), "`tenant`"),
    ],
)
def test_entries_that_are_refused(data: bytes, says: str) -> None:
    with pytest.raises(FormatError, match=says):
        entry_schema.parse_entry(data)


@given(st.binary(max_size=400))
@settings(max_examples=300, deadline=None)
def test_no_input_causes_anything_but_a_typed_error(data: bytes) -> None:
    for check in (
        lambda: v.verify_receipt(data, KEY),
        lambda: v.verify_receipt(b"c2sp.org/tlog-proof@v1\nindex " + data, KEY, entry=b""),
        lambda: v.open_checkpoint(data, KEY),
        lambda: entry_schema.parse_entry(data),
        lambda: v.load_vkey(data.decode("latin-1")),
    ):
        with pytest.raises(FormatError):
            check()
