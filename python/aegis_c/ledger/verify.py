"""Offline verification of receipts: all that an auditor has to trust, in one file.

Standard library only, no native code; it imports nothing else of this package and runs alone:

    python verify.py RECEIPT --vkey KEY-OR-FILE [--entry F] [--request F] [--response F]

What a verified receipt proves: the holder of the log's key signed a tree head, and the entry,
byte for byte, is the leaf at the stated index of that tree (RFC 6962). With the salts in the
receipt and the bodies in hand: these bodies, byte for byte, are those that the entry commits to.
Of an entry it reads what this needs; the form of all its members is entry_schema.py's to check
(`aegis-c verify` does both), or any JSON Schema tool's, with docs/entry.schema.json.

How to read it: `check` stands where evidence must hold, `need` where input must have a form. Begin
with `verify_receipt` and follow it down. Section 2 is the textbook's Ed25519: hold it against RFC
8032, or put a library of yours in its place. The formats are in docs/formats.md. In order:
1 errors, 2 Ed25519, 3 Merkle tree, 4 signed notes and checkpoints, 5 tlog-proofs, 6 entries,
7 receipts, 8 the command.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import hmac
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

# ---- 1. errors


class VerificationError(Exception):
    """A check failed: the evidence does not prove what it claims."""

    def __init__(self, what: str, where: str = "", expected: Any = None, found: Any = None) -> None:
        self.what, self.where, self.advice = what, where, ""
        self.expected = None if expected is None else str(expected)
        self.found = None if found is None else str(found)
        super().__init__(what, where, self.expected, self.found)

    def __str__(self) -> str:
        names = ("where", "expected", "found", "advice")
        parts = [(f"{name}:", getattr(self, name)) for name in names]
        return "\n".join([self.what, *(f"  {name:<10}{text}" for name, text in parts if text)])


class FormatError(VerificationError):
    """The input is not what it should be, so nothing could be checked."""


def check(holds: bool, what: str, where: str, expected: Any = None, found: Any = None) -> None:
    if not holds:
        raise VerificationError(what, where, expected, found)


def need(holds: bool, what: str, where: str, expected: Any = None, found: Any = None) -> None:
    if not holds:
        raise FormatError(what, where, expected, found)


def show(data: Any) -> str:
    """A short printable form of untrusted input."""
    return ascii(data) if len(data) <= 60 else f"{data[:60]!a}... ({len(data)} in all)"


def utf8(data: bytes, where: str) -> str:
    text = data.decode("utf-8", "surrogateescape")
    bad = next((i for i, char in enumerate(text) if "\ud800" <= char <= "\udfff"), None)
    need(bad is None, "not valid UTF-8", f"{where}, character {bad}")
    return text


def base64_bytes(text: Any, where: str, size: int | None = None) -> bytes:
    """Decodes standard base64 (RFC 4648 section 4); the canonical spelling only."""
    try:
        raw = base64.b64decode(str(text), validate=True)
    except ValueError:
        raw = b""
    what = "not standard base64"  # or not the one way to write these bytes
    need(base64.b64encode(raw).decode() == text, what, where, found=show(str(text)))
    need(size in (None, len(raw)), "wrong length", where, f"{size} bytes", len(raw))
    return raw


def number(text: str, where: str) -> int:
    good = re.fullmatch(r"0|[1-9][0-9]{0,18}", text, re.ASCII) and int(text) < 1 << 63
    need(bool(good), "not a number", where, "a decimal without leading zero", show(text))
    return int(text)


# ---- 2. Ed25519: RFC 8032 section 5.1.7, strictly (S < L, canonical points, no cofactor)

P, L = 2**255 - 19, 2**252 + 27742317777372353535851937790883648493
D, ROOT_OF_MINUS_1 = -121665 * pow(121666, -1, P) % P, pow(2, (P - 1) // 4, P)
BASE_X = 15112221349535400772501151409588531511454012693041857206046113283949847762202
Point = tuple[int, int, int, int]
"""X, Y, Z, T with x = X/Z, y = Y/Z, xy = T/Z on -x^2 + y^2 = 1 + D x^2 y^2 over GF(P)."""
BASE: Point = (BASE_X, 4 * pow(5, -1, P) % P, 1, BASE_X * 4 * pow(5, -1, P) % P)
ZERO: Point = (0, 1, 1, 0)


def add(p: Point, q: Point) -> Point:
    a, b = (p[1] - p[0]) * (q[1] - q[0]), (p[1] + p[0]) * (q[1] + q[0])
    c, d = 2 * p[3] * q[3] * D, 2 * p[2] * q[2]
    e, f, g, h = b - a, d - c, d + c, b + a
    return e * f % P, g * h % P, f * g % P, e * h % P


def multiply(scalar: int, point: Point) -> Point:
    result = ZERO
    while scalar:
        result = add(result, point) if scalar & 1 else result
        point, scalar = add(point, point), scalar >> 1
    return result


def encode_point(point: Point) -> bytes:
    x, y = (part * pow(point[2], -1, P) % P for part in point[:2])
    return (y | (x & 1) << 255).to_bytes(32, "little")


def decode_point(data: bytes) -> Point | None:
    """The point; None unless the 32 bytes are its one canonical encoding."""
    sign, y = divmod(int.from_bytes(data, "little"), 1 << 255)
    u, v = (y * y - 1) % P, (D * y * y + 1) % P
    x = u * pow(v, 3, P) * pow(u * pow(v, 7, P), (P - 5) // 8, P) % P
    x = x * ROOT_OF_MINUS_1 % P if v * x * x % P == -u % P else x
    x = P - x if x & 1 != sign else x
    return (x, y, 1, x * y % P) if y < P and x < P and v * x * x % P == u else None


def ed25519_verify(public_key: bytes, message: bytes, signature: bytes) -> bool:
    """Whether the 64 bytes are a signature of the key. Keys of small order are refused."""
    key = decode_point(public_key) if len(public_key) == 32 else None
    s = int.from_bytes(signature[32:], "little")
    if key is None or len(signature) != 64 or s >= L:
        return False
    if encode_point(multiply(8, key)) == encode_point(ZERO):
        return False
    digest = hashlib.sha512(signature[:32] + public_key + message).digest()
    minus_key = (P - key[0], key[1], key[2], P - key[3])
    r = add(multiply(s, BASE), multiply(int.from_bytes(digest, "little") % L, minus_key))
    return encode_point(r) == signature[:32]


# ---- 3. Merkle tree: RFC 6962 section 2.1, RFC 9162 section 2.1.3.2

EMPTY_ROOT = hashlib.sha256(b"").digest()


def leaf_hash(entry: bytes) -> bytes:
    return hashlib.sha256(b"\x00" + entry).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(b"\x01" + left + right).digest()


def verify_inclusion(
    leaf: bytes, index: int, size: int, root: bytes, path: Sequence[bytes], where: str = "proof"
) -> None:
    """Proves that the hash `leaf` is leaf `index` of the tree (`size`, `root`). `path` are the
    sibling hashes, leaf to root; which side each is on follows from index and size alone."""
    below = f"an index below the size {size}"
    check(0 <= index < size, "index outside the tree", where, below, index)
    inner = (index ^ (size - 1)).bit_length()  # levels below where the last leaf's path joins
    length = inner + (index >> inner).bit_count()
    check(len(path) == length, "wrong number of hashes in the proof", where, length, len(path))
    for level, sibling in enumerate(path):
        left = level >= inner or index >> level & 1
        leaf = node_hash(sibling, leaf) if left else node_hash(leaf, sibling)
    what = "the entry is not in the signed tree: the proof leads to another root"
    check(leaf == root, what, where, root.hex(), leaf.hex())


# ---- 4. signed notes and checkpoints: c2sp.org/signed-note, c2sp.org/tlog-checkpoint


@dataclass(frozen=True)
class VerifierKey:
    """An Ed25519 verifier key of a log: its name, 4-byte id and 32-byte public key."""

    name: str
    key_id: bytes
    public_key: bytes

    def __str__(self) -> str:
        material = base64.b64encode(b"\x01" + self.public_key).decode()
        return f"{self.name}+{self.key_id.hex()}+{material}"


@dataclass(frozen=True)
class Checkpoint:
    """A signed tree head: origin, number of leaves, 32-byte root, extension lines."""

    origin: str
    size: int
    root: bytes
    extensions: tuple[str, ...] = ()


NAME = r"([^\s+\x00-\x1f]+)"
"""A key name: no white space, no plus sign, no control character."""


def parse_vkey(text: str, where: str = "verifier key") -> VerifierKey:
    """Parses `<name>+<8 hex digits>+<base64 of 0x01 || public key>`."""
    parts = re.findall(rf"\A{NAME}\+([^+]*)\+(.+)\Z", text.strip())
    need(parts != [], "not a verifier key", where, "<name>+<8 hex digits>+<base64>", show(text))
    name, key_id, encoded = parts[0]
    raw = base64_bytes(encoded, where, 33)
    need(raw[0] == 1, "not an Ed25519 verifier key", where, "type 1", f"type {raw[0]}")
    digest = hashlib.sha256(name.encode() + b"\n" + raw).digest()[:4]
    what = "the key id does not belong to this name and key"
    need(digest.hex() == key_id, what, where, digest.hex(), show(key_id))
    return VerifierKey(name, digest, raw[1:])


def open_note(note: bytes, key: VerifierKey, where: str = "signed note") -> str:
    """The text of a note with a good signature of `key`; those of other keys are ignored."""
    text = utf8(note, where)
    bad = next((char for char in text if char < " " and char != "\n"), "")
    need(not bad, "control character in a signed note", where, found=ascii(bad))
    head, separator, tail = text.rpartition("\n\n")
    shape = "text, an empty line, signature lines, each ended by a newline"
    need(separator != "" and tail[-1:] == "\n", "not a signed note", where, shape, show(note))
    body, lines = head + "\n", tail[:-1].split("\n")
    need(len(lines) <= 100, "too many signatures", where, "at most 100", len(lines))
    verified, shape = False, "em dash, space, key name, space, base64"
    for count, line in enumerate(lines, 1):
        here = f"{where}, signature line {count}"
        parts = re.findall(rf"\A\u2014 {NAME} (\S*)\Z", line)
        need(parts != [], "malformed signature line", here, shape, show(line))
        name, raw = parts[0][0], base64_bytes(parts[0][1], here)
        need(len(raw) >= 5, "signature too short", here, "5 bytes", len(raw))
        if (name, raw[:4]) == (key.name, key.key_id):
            good = ed25519_verify(key.public_key, body.encode(), raw[4:])
            check(good, "wrong signature", here, f"a signature of {key}")
            verified = True
    signers = show(", ".join(line.split(" ")[1] for line in lines))
    what = "not signed by the given key"
    check(verified, what, where, f"a signature of {key}", f"signatures of {signers}")
    return body


def open_checkpoint(
    note: bytes, key: VerifierKey, where: str = "checkpoint", *, origin: str | None = None
) -> Checkpoint:
    """Verifies a signed checkpoint. Its origin must be `origin`, by default the key's name."""
    text = open_note(note, key, where)
    lines = text[:-1].split("\n")
    shape = "non-empty lines: origin, size, root"
    need(len(lines) >= 3 and "" not in lines, "not a checkpoint", where, shape, show(text))
    size = number(lines[1], f"{where}, size")
    root = base64_bytes(lines[2], f"{where}, root", 32)
    empty = size > 0 or root == EMPTY_ROOT
    check(empty, "wrong root for the empty tree", where, EMPTY_ROOT.hex(), root.hex())
    expected = key.name if origin is None else origin
    check(lines[0] == expected, "checkpoint of another log", where, expected, show(lines[0]))
    return Checkpoint(lines[0], size, root, tuple(lines[3:]))


# ---- 5. proofs: c2sp.org/tlog-proof

TLOG_PROOF = "c2sp.org/tlog-proof@v1"


def verify_proof(
    data: bytes, entry: bytes, key: VerifierKey, where: str = "tlog-proof"
) -> tuple[int, Checkpoint]:
    """Verifies a tlog-proof of `entry`; returns its index and the signed checkpoint."""
    head, separator, note = data.partition(b"\n\n")
    first, *lines = utf8(head, where).split("\n")
    shape = f"{TLOG_PROOF}, index, hashes, an empty line, a signed checkpoint"
    need(separator != b"" and first == TLOG_PROOF, "not a tlog-proof", where, shape, show(data))
    if lines and lines[0].startswith("extra "):
        base64_bytes(lines.pop(0)[6:], f"{where}, extra line")
    index_line, *hashes = lines or [""]
    need(index_line.startswith("index "), "no index line", where, "index <n>", show(index_line))
    index = number(index_line[6:], f"{where}, index line")
    need(len(hashes) <= 63, "too many hashes", where, "at most 63", len(hashes))
    path = [base64_bytes(line, f"{where}, hash {i}", 32) for i, line in enumerate(hashes, 1)]
    checkpoint = open_checkpoint(note, key, f"{where}, checkpoint")
    verify_inclusion(leaf_hash(entry), index, checkpoint.size, checkpoint.root, path, where)
    return index, checkpoint


# ---- 6. entries: one JSON object each


def parse_json(data: bytes, where: str) -> Any:
    """Parses JSON (RFC 8259) strictly: UTF-8, no duplicate member, no NaN or Infinity."""

    def members(items: list[tuple[str, Any]]) -> dict[str, Any]:
        names = [name for name, _ in items]
        need(len(set(names)) == len(names), "duplicate member in JSON", where, found=show(names))
        return dict(items)

    def no_number(name: str) -> None:
        need(False, "not a JSON number", where, found=name)

    text = utf8(data, where)
    try:
        return json.loads(text, object_pairs_hook=members, parse_constant=no_number)
    except RecursionError:
        raise FormatError("JSON nested too deeply", where) from None
    except ValueError as error:  # JSONDecodeError; an integer of too many digits
        raise FormatError("not JSON", where, found=error) from None


def member(item: dict[str, Any], name: str, kind: type, where: str) -> Any:
    need(type(item.get(name)) is kind, f"member `{name}` is missing or of the wrong type", where)
    return item[name]


def read_entry(data: bytes, where: str = "entry") -> dict[str, Any]:
    """An entry, checked as far as evidence depends on it."""
    need(len(data) <= 65_535, "entry too large", where, "at most 65535 bytes", len(data))
    entry = parse_json(data, where)
    need(type(entry) is dict, "an entry is one JSON object", where, found=show(data))
    need(member(entry, "v", int, where) == 1, "`v` is not 1", where, found=entry["v"])
    for name in ("kind", "id"):
        member(entry, name, str, where)
    need(type(entry.get("of", 0)) is int, "`of` is not an index", where)
    for role in entry.keys() & {"request", "response"}:
        body = member(entry, role, dict, where)
        member(body, "bytes", int, f"{where}, {role}")
        member(body, "commitment", str, f"{where}, {role}")
    return entry  # type: ignore[no-any-return]


# ---- 7. receipts: the JSON form and the tlog-proof form


@dataclass(frozen=True)
class VerifiedEntry:
    """An entry whose inclusion was proven, and the checkpoint that proves it."""

    index: int
    entry: dict[str, Any]
    checkpoint: Checkpoint


@dataclass
class Verified:
    """What a receipt proved: its entries in index order; octets of each body that matched."""

    key: VerifierKey
    entries: list[VerifiedEntry] = field(default_factory=list)
    bodies: dict[str, int] = field(default_factory=dict)


def verify_receipt(
    data: bytes,
    key: VerifierKey,
    *,
    entry: bytes | None = None,
    request: bytes | None = None,
    response: bytes | None = None,
) -> Verified:
    """Verifies a receipt in either form, and the bodies that are given.

    A tlog-proof needs `entry`, the entry's exact bytes; the JSON form carries them, and the
    salts that `request` and `response` need. Raises VerificationError or FormatError.
    """
    bodies = {"request": request, "response": response}
    if data.startswith(b"c2sp.org/"):
        what = "a tlog-proof carries no salts, so bodies cannot be checked against it"
        need(request is None and response is None, what, "receipt")
        if entry is None:
            raise FormatError("a tlog-proof does not carry the entry", "receipt")
        index, checkpoint = verify_proof(data, entry, key)
        return Verified(key, [VerifiedEntry(index, read_entry(entry), checkpoint)])
    need(entry is None, "an entry was given, but a JSON receipt carries its own", "entry")
    receipt = parse_json(data, "receipt")
    what = "a receipt is a JSON object or a tlog-proof"
    need(isinstance(receipt, dict), what, "receipt", found=show(data))
    kinds = {"id": str, "origin": str, "salts": dict, "entries": list}
    parts = (member(receipt, name, kind, "receipt") for name, kind in kinds.items())
    request_id, origin, salts, items = parts
    salts = {role: base64_bytes(salts[role], f"receipt, {role} salt", 32) for role in salts}
    check(origin == key.name, "receipt of another log", "receipt", key.name, show(origin))
    result = Verified(key)
    for position, item in enumerate(items):
        where = f"receipt, entries[{position}]"
        need(isinstance(item, dict), "an object is expected", where)
        one = verify_item(item, request_id, key, where)
        ordered = not result.entries or result.entries[-1].index < one.index
        need(ordered, "entries out of order", where, found=f"index {one.index}")
        result.entries.append(one)
    need(result.entries != [], "the receipt has no entries", "receipt")
    verify_together(result.entries)
    for role, octets in bodies.items():
        if octets is not None:
            verify_body(result, role, salts, octets)
    return result


def verify_item(
    item: dict[str, Any], request_id: str, key: VerifierKey, where: str
) -> VerifiedEntry:
    """One of the entries: its proof, and that the receipt speaks of this one."""
    index = member(item, "index", int, where)
    what = "not published yet: no signed tree covers this entry"
    check(item.get("proof") is not None, what, where, found=f"state {show(str(item.get('state')))}")
    try:
        raw, proof = (member(item, name, str, where).encode() for name in ("entry", "proof"))
    except UnicodeEncodeError:
        raise FormatError("a lone surrogate stands in the text", where) from None
    proven, checkpoint = verify_proof(proof, raw, key, f"{where}, proof")
    entry = read_entry(raw, f"{where}, entry")
    claimed = {"index": index, "id": request_id, "kind": item.get("kind")}
    for name, value in claimed.items():
        true, what = (entry | {"index": proven})[name], "is not that of the proven entry"
        check(value == true, f"the receipt's `{name}` {what}", where, true, show(str(value)))
    return VerifiedEntry(proven, entry, checkpoint)


def verify_together(entries: list[VerifiedEntry]) -> None:
    """One tree for one size; a settle closes an intent before it, an analysis speaks of an
    entry before it."""
    roots: dict[int, bytes] = {}
    kinds = {one.index: one.entry["kind"] for one in entries}
    allowed = {"settle": ("intent",), "analysis": ("call", "intent", "settle")}
    for one in entries:
        kind, of, head = one.entry["kind"], one.entry.get("of"), one.checkpoint
        root, where = roots.setdefault(head.size, head.root), f"entry {one.index}"
        what = "the log signed two different trees of one size"
        check(root == head.root, what, where, root.hex(), head.root.hex())
        if kind in allowed and of is not None:
            good = 0 <= of < one.index and kinds.get(of, allowed[kind][0]) in allowed[kind]
            expected = f"the index of an earlier {' or '.join(allowed[kind])}"
            check(good, f"a {kind} that refers to the wrong entry", where, expected, of)


def verify_body(result: Verified, role: str, salts: dict[str, bytes], octets: bytes) -> None:
    """The body is, in length and commitment, the one that every entry with this role names."""
    claims = [(one.index, one.entry[role]) for one in result.entries if role in one.entry]
    check(claims != [], f"no entry of this receipt commits to a {role}", "receipt")
    need(role in salts, f"the receipt carries no salt for the {role}", "receipt, salts")
    found = base64.b64encode(hmac.digest(salts[role], octets, "sha256")).decode()
    for index, claim in claims:
        size, where = claim["bytes"], f"entry {index}, {role}"
        what = f"not the {role} that was recorded"
        check(size == len(octets), f"{what}: other length", where, f"{size} bytes", len(octets))
        expected = claim["commitment"]
        check(found == expected, f"{what}, or not its salt", where, expected, found)
    result.bodies[role] = len(octets)


# ---- 8. the command


def load_vkey(text: str) -> VerifierKey:
    """The verifier key that `text` is, or that the file named `text` holds."""
    if re.fullmatch(r"[^+\n]+\+[0-9a-f]{8}\+[A-Za-z0-9+/=]+\n?", text):
        return parse_vkey(text)
    return parse_vkey(utf8(read_file(text, "verifier key")[:4096], show(text)), show(text))


def read_file(path: str, what: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except (OSError, ValueError) as error:
        found = getattr(error, "strerror", None) or error
        raise FormatError(f"cannot read the {what}", show(path), found=found) from None


def main(arguments: list[str] | None = None) -> int:
    """0 verified, 1 a check failed, 2 unusable input."""
    parser = argparse.ArgumentParser(description="Verify a receipt offline.")
    parser.add_argument("receipt", help="JSON receipt or tlog-proof")
    parser.add_argument("--vkey", required=True, help="the log's verifier key, or its file")
    names = ("entry", "request", "response")
    for name in names:
        parser.add_argument(f"--{name}", metavar="F", help=f"file with the {name}'s exact bytes")
    options = vars(parser.parse_args(arguments))
    try:
        given = {name: read_file(options[name], name) for name in names if options[name]}
        receipt = read_file(options["receipt"], "receipt")
        result = verify_receipt(receipt, load_vkey(options["vkey"]), **given)
    except VerificationError as error:
        print(f"NOT VERIFIED: {error}")
        return 2 if isinstance(error, FormatError) else 1
    for one in result.entries:
        head = one.checkpoint
        print(f"verified: {one.entry['kind']} {one.index} in {head.origin} of size {head.size}")
    for role, size in result.bodies.items():
        print(f"verified: {role}, {size} bytes")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
