"""Offline verification of receipts: all that an auditor has to trust, in one file.

Standard library only. It imports nothing else of this package, so it also runs alone:

    python verify.py RECEIPT --vkey KEY-OR-FILE [--entry F] [--request F] [--response F]

What a verified receipt proves: the holder of the log's key signed a tree head, and the
entry, byte for byte, is the leaf at the stated index of that tree (an RFC 6962 Merkle tree).
With the salts in the receipt and the bodies in hand it also proves that these bodies, byte
for byte, are the ones the entry commits to.

The sections below follow the formats (docs/formats.md describes them for a reader who wants
to write another verifier):

    1. errors           what was wrong, where, expected, found, what to do
    2. Ed25519          RFC 8032, section 5.1.7
    3. Merkle proofs    RFC 6962, section 2.1; RFC 9162, sections 2.1.3.2 and 2.1.4.2
    4. signed notes     c2sp.org/signed-note, c2sp.org/tlog-checkpoint
    5. proofs           c2sp.org/tlog-proof
    6. entries          one JSON object each; commitments to the bodies (HMAC-SHA-256)
    7. receipts         the JSON form and the tlog-proof form
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

MAX_ENTRY = 65_535
"""Octets of the longest entry: a bundle stores the length in 16 bits."""
MAX_PATH = 63
"""Hashes of the longest proof accepted: sizes have at most 63 bits."""
MAX_SIGNATURES = 100
"""Signature lines accepted in one note; the specification demands at least 16."""

# ---------------------------------------------------------------- 1. errors


class VerificationError(Exception):
    """A check failed: the evidence does not prove what it claims.

    Attributes: what (the failed check), where (the part of the input), expected and found
    (None where the check compares nothing), advice (what to do next).
    """

    def __init__(
        self,
        what: str,
        where: str = "",
        *,
        expected: object = None,
        found: object = None,
        advice: str = "",
    ) -> None:
        self.what = what
        self.where = where
        self.expected = None if expected is None else str(expected)
        self.found = None if found is None else str(found)
        self.advice = advice
        super().__init__(what, where, self.expected, self.found, advice)

    def __str__(self) -> str:
        lines = [self.what]
        parts = ("where", self.where), ("expected", self.expected), ("found", self.found)
        for label, value in (*parts, ("advice", self.advice)):
            if value:
                lines.append(f"  {label + ':':<10}{value}")
        return "\n".join(lines)


class FormatError(VerificationError):
    """The input is not what it should be, so nothing could be checked."""


def _show(data: bytes | str, limit: int = 60) -> str:
    """A short printable form of untrusted input, for messages."""
    text = ascii(data if len(data) <= limit else data[:limit])
    return text if len(data) <= limit else f"{text}... ({len(data)} in all)"


def _utf8(data: bytes, where: str) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise FormatError(
            "not valid UTF-8", f"{where}, offset {error.start}", found=_show(data[error.start :], 8)
        ) from None


def _base64(text: object, where: str, size: int | None = None) -> bytes:
    """Decodes standard base64 (RFC 4648 section 4); the canonical spelling only."""
    try:
        raw = base64.b64decode(str(text), validate=True)
    except (binascii.Error, ValueError):
        raw = b""
    if base64.b64encode(raw).decode() != text:
        raise FormatError("not standard base64", where, found=_show(str(text)))
    if size is not None and len(raw) != size:
        raise FormatError("wrong length", where, expected=f"{size} bytes", found=len(raw))
    return raw


def _decimal(text: str, where: str) -> int:
    if not re.fullmatch(r"0|[1-9][0-9]{0,18}", text, re.ASCII) or int(text) >= 1 << 63:
        raise FormatError(
            "not a number", where, expected="a decimal without leading zero", found=_show(text)
        )
    return int(text)


# ---------------------------------------------------------------- 2. Ed25519
# Points of the curve -x^2 + y^2 = 1 + d x^2 y^2 over GF(P) in extended coordinates
# (X, Y, Z, T) with x = X/Z, y = Y/Z, x*y = T/Z (RFC 8032 section 5.1.4).

_P = 2**255 - 19
_L = 2**252 + 27742317777372353535851937790883648493
_D = -121665 * pow(121666, -1, _P) % _P
_SQRT_M1 = pow(2, (_P - 1) // 4, _P)

_Point = tuple[int, int, int, int]
_IDENTITY: _Point = (0, 1, 1, 0)


def _add(p: _Point, q: _Point) -> _Point:
    a = (p[1] - p[0]) * (q[1] - q[0]) % _P
    b = (p[1] + p[0]) * (q[1] + q[0]) % _P
    c = 2 * p[3] * q[3] * _D % _P
    d = 2 * p[2] * q[2] % _P
    e, f, g, h = b - a, d - c, d + c, b + a
    return e * f % _P, g * h % _P, f * g % _P, e * h % _P


def _multiply(scalar: int, point: _Point) -> _Point:
    result = _IDENTITY
    while scalar:
        if scalar & 1:
            result = _add(result, point)
        point = _add(point, point)
        scalar >>= 1
    return result


def _encode(point: _Point) -> bytes:
    inverse = pow(point[2], -1, _P)
    x, y = point[0] * inverse % _P, point[1] * inverse % _P
    return (y | (x & 1) << 255).to_bytes(32, "little")


def _decode(data: bytes) -> _Point | None:
    """The point that the 32 bytes encode; None unless they are its one canonical encoding."""
    number = int.from_bytes(data, "little")
    y, sign = number & ((1 << 255) - 1), number >> 255
    if y >= _P:
        return None
    u, v = (y * y - 1) % _P, (_D * y * y + 1) % _P
    x = u * pow(v, 3, _P) * pow(u * pow(v, 7, _P), (_P - 5) // 8, _P) % _P
    if v * x * x % _P == -u % _P:
        x = x * _SQRT_M1 % _P
    if v * x * x % _P != u or (x == 0 and sign):
        return None
    if x & 1 != sign:
        x = _P - x
    return x, y, 1, x * y % _P


_BASE_X = 15112221349535400772501151409588531511454012693041857206046113283949847762202
_BASE_Y = 4 * pow(5, -1, _P) % _P
_BASE: _Point = (_BASE_X, _BASE_Y, 1, _BASE_X * _BASE_Y % _P)


def ed25519_verify(public_key: bytes, message: bytes, signature: bytes) -> bool:
    """Whether `signature` (64 bytes) over `message` is by `public_key` (32 bytes).

    RFC 8032 section 5.1.7 in its strict reading: S < L, canonical points, the equation
    without cofactor ([S]B = R + [k]A). Keys of small order, for which anybody can make
    signatures, are refused.
    """
    if len(public_key) != 32 or len(signature) != 64:
        return False
    key = _decode(public_key)
    s = int.from_bytes(signature[32:], "little")
    if key is None or s >= _L or _encode(_multiply(8, key)) == _encode(_IDENTITY):
        return False
    digest = hashlib.sha512(signature[:32] + public_key + message).digest()
    k = int.from_bytes(digest, "little") % _L
    minus_key = (_P - key[0], key[1], key[2], _P - key[3])
    return _encode(_add(_multiply(s, _BASE), _multiply(k, minus_key))) == signature[:32]


# ---------------------------------------------------------------- 3. Merkle proofs

EMPTY_ROOT = hashlib.sha256(b"").digest()
"""Root of the tree without leaves."""


def leaf_hash(entry: bytes) -> bytes:
    """SHA-256(0x00 || entry), 32 bytes."""
    return hashlib.sha256(b"\x00" + entry).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """SHA-256(0x01 || left || right), 32 bytes."""
    return hashlib.sha256(b"\x01" + left + right).digest()


def inclusion_path_length(index: int, size: int) -> int:
    """Number of hashes that prove leaf `index` in a tree of `size` leaves."""
    inner = (index ^ (size - 1)).bit_length()
    return inner + (index >> inner).bit_count()


def verify_inclusion(
    leaf: bytes, index: int, size: int, root: bytes, path: Sequence[bytes], where: str = "proof"
) -> None:
    """Proves that the leaf hash `leaf` is leaf `index` of the tree (`size`, `root`).

    `path` holds the sibling hashes, leaf to root; all structure follows from index and
    size (RFC 9162 section 2.1.3.2). Raises VerificationError.
    """
    if not 0 <= index < size:
        raise VerificationError(
            "index outside the tree",
            where,
            expected=f"an index below the tree size {size}",
            found=index,
            advice="fetch the receipt again; this one is for another tree",
        )
    if len(path) != inclusion_path_length(index, size):
        raise VerificationError(
            "wrong number of hashes in the proof",
            where,
            expected=inclusion_path_length(index, size),
            found=len(path),
            advice="the proof was cut or belongs to another index or tree; fetch it again",
        )
    fn, sn, r = index, size - 1, leaf
    for sibling in path:
        if fn & 1 or fn == sn:
            r = node_hash(sibling, r)
            while not fn & 1 and fn:
                fn >>= 1
                sn >>= 1
        else:
            r = node_hash(r, sibling)
        fn >>= 1
        sn >>= 1
    if r != root:
        raise VerificationError(
            "the entry is not in the signed tree: the proof leads to another root",
            where,
            expected=root.hex(),
            found=r.hex(),
            advice="entry, index or proof was changed, or belongs to another log",
        )


def verify_consistency(
    old_size: int,
    new_size: int,
    old_root: bytes,
    new_root: bytes,
    proof: Sequence[bytes],
    where: str = "consistency proof",
) -> None:
    """Proves that the tree (`old_size`, `old_root`) is a prefix of (`new_size`, `new_root`).

    RFC 9162 section 2.1.4.2. The empty tree is a prefix of every tree (empty proof).
    Raises VerificationError.
    """

    def fail(what: str, expected: object, found: object) -> VerificationError:
        advice = "the log shows two histories, or the proof belongs to other sizes"
        return VerificationError(what, where, expected=expected, found=found, advice=advice)

    if not 0 <= old_size <= new_size:
        raise fail("sizes out of order", f"0 <= old size <= {new_size}", old_size)
    if old_size == 0 and old_root != EMPTY_ROOT:
        raise fail("wrong root for the empty tree", EMPTY_ROOT.hex(), old_root.hex())
    if old_size in (0, new_size):
        if proof:
            raise fail("wrong number of hashes in the proof", 0, len(proof))
        if old_size == new_size and old_root != new_root:
            raise fail("two roots for one size", old_root.hex(), new_root.hex())
        return
    # Below the lowest set bit the old tree is a complete subtree: it needs no hash.
    fn, sn = old_size - 1, new_size - 1
    while fn & 1:
        fn >>= 1
        sn >>= 1
    length = inclusion_path_length(fn, sn + 1) + (fn != 0)
    if len(proof) != length:
        raise fail("wrong number of hashes in the proof", length, len(proof))
    rest = list(proof)
    fr = sr = rest.pop(0) if fn else old_root
    for c in rest:
        if fn & 1 or fn == sn:
            fr, sr = node_hash(c, fr), node_hash(c, sr)
            while not fn & 1 and fn:
                fn >>= 1
                sn >>= 1
        else:
            sr = node_hash(sr, c)
        fn >>= 1
        sn >>= 1
    if fr != old_root:
        raise fail("the proof leads to another old root", old_root.hex(), fr.hex())
    if sr != new_root:
        raise fail("the proof leads to another new root", new_root.hex(), sr.hex())


# ---------------------------------------------------------------- 4. signed notes


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


def _is_key_name(name: str) -> bool:
    return bool(name) and "+" not in name and not any(c.isspace() or c < " " for c in name)


def parse_vkey(text: str, where: str = "verifier key") -> VerifierKey:
    """Parses `<name>+<8 hex digits>+<base64 of 0x01 || public key>`; one line."""
    parts = text.strip().split("+", 2)
    if len(parts) != 3 or not _is_key_name(parts[0]):
        raise FormatError(
            "not a verifier key",
            where,
            expected="<name>+<8 hex digits>+<base64>",
            found=_show(text),
            advice="use the line in the log's log.vkey, obtained on a way you trust",
        )
    name, key_id, raw = parts[0], parts[1], _base64(parts[2], where)
    if raw[:1] != b"\x01" or len(raw) != 33:
        raise FormatError(
            "not an Ed25519 verifier key",
            where,
            expected="33 bytes that begin with 0x01",
            found=f"{len(raw)} bytes, {_show(raw[:1])}",
        )
    digest = hashlib.sha256(name.encode() + b"\n" + raw).digest()[:4]
    if digest.hex() != key_id:
        raise FormatError(
            "the key id does not belong to this name and key",
            where,
            expected=digest.hex(),
            found=_show(key_id),
            advice="the verifier key was changed or mistyped; copy it again",
        )
    return VerifierKey(name, digest, raw[1:])


def open_note(note: bytes, key: VerifierKey, where: str = "signed note") -> str:
    """Returns the text of a note that carries a good signature of `key`.

    Signatures of other keys are ignored. Raises FormatError for what is no note, else
    VerificationError: no signature of `key`, or one that is wrong.
    """
    text = _utf8(note, where)
    for offset, char in enumerate(text):
        if char < " " and char != "\n":
            raise FormatError(
                "control character in a signed note",
                f"{where}, character {offset}",
                found=ascii(char),
            )
    split = text.rfind("\n\n")
    if split < 0 or not text.endswith("\n") or split + 2 == len(text):
        raise FormatError(
            "not a signed note",
            where,
            expected="text, an empty line, signature lines, each ended by a newline",
            found=_show(note),
            advice="it may have been cut short; fetch it again",
        )
    body, lines = text[: split + 1], text[split + 2 : -1].split("\n")
    if len(lines) > MAX_SIGNATURES:
        raise FormatError(
            "too many signatures", where, expected=f"at most {MAX_SIGNATURES}", found=len(lines)
        )
    verified = False
    for number, line in enumerate(lines, 1):
        here = f"{where}, signature line {number}"
        parts = line.split(" ")
        if len(parts) != 3 or parts[0] != "\u2014" or not _is_key_name(parts[1]):
            raise FormatError(
                "malformed signature line",
                here,
                expected="em dash, space, key name, space, base64",
                found=_show(line),
            )
        raw = _base64(parts[2], here)
        if len(raw) < 5:
            raise FormatError("signature too short", here, expected="5 bytes", found=len(raw))
        if (parts[1], raw[:4]) != (key.name, key.key_id):
            continue
        if not ed25519_verify(key.public_key, body.encode(), raw[4:]):
            raise VerificationError(
                "wrong signature",
                here,
                expected=f"a signature of {key}",
                advice="the note or its signature was changed, or another key made it",
            )
        verified = True
    if not verified:
        found = ", ".join(line.split(" ")[1] for line in lines)
        raise VerificationError(
            "not signed by the given key",
            where,
            expected=f"a signature of {key}",
            found=f"signatures of {_show(found)}",
            advice="use the key of the log that issued this, or the receipt of the right log",
        )
    return body


def parse_checkpoint(text: str, where: str = "checkpoint") -> Checkpoint:
    """Parses the text of a checkpoint: origin, size, root, extension lines."""
    lines = text.split("\n")
    if lines.pop() != "" or len(lines) < 3 or "" in lines:
        raise FormatError(
            "not a checkpoint",
            where,
            expected="non-empty lines: origin, size, root",
            found=_show(text),
        )
    size = _decimal(lines[1], f"{where}, size")
    root = _base64(lines[2], f"{where}, root", 32)
    if size == 0 and root != EMPTY_ROOT:
        raise VerificationError(
            "wrong root for the empty tree", where, expected=EMPTY_ROOT.hex(), found=root.hex()
        )
    return Checkpoint(lines[0], size, root, tuple(lines[3:]))


def open_checkpoint(
    note: bytes, key: VerifierKey, where: str = "checkpoint", *, origin: str | None = None
) -> Checkpoint:
    """Verifies a signed checkpoint. Its origin must be `origin`, by default the key's name."""
    checkpoint = parse_checkpoint(open_note(note, key, where), where)
    expected = key.name if origin is None else origin
    if checkpoint.origin != expected:
        raise VerificationError(
            "checkpoint of another log", where, expected=expected, found=_show(checkpoint.origin)
        )
    return checkpoint


# ---------------------------------------------------------------- 5. proofs

TLOG_PROOF = "c2sp.org/tlog-proof@v1"
"""First line of a tlog-proof."""


@dataclass(frozen=True)
class Proof:
    """A parsed tlog-proof: index, sibling hashes leaf to root, the signed checkpoint."""

    index: int
    path: tuple[bytes, ...]
    checkpoint: bytes
    extra: bytes | None = None


def parse_proof(data: bytes, where: str = "tlog-proof") -> Proof:
    """Parses a tlog-proof; nothing of it is verified yet."""
    head, separator, note = data.partition(b"\n\n")
    lines = _utf8(head, where).split("\n")
    if not separator or lines[0] != TLOG_PROOF:
        raise FormatError(
            "not a tlog-proof",
            where,
            expected=f"{TLOG_PROOF}, index, hashes, an empty line, a signed checkpoint",
            found=_show(data),
            advice="it may have been cut short; fetch it again",
        )
    del lines[0]
    extra = None
    if lines and lines[0].startswith("extra "):
        extra = _base64(lines.pop(0)[6:], f"{where}, extra line")
    if not lines or not lines[0].startswith("index "):
        raise FormatError(
            "no index line", where, expected="index <n>", found=_show(lines[0] if lines else "")
        )
    index = _decimal(lines.pop(0)[6:], f"{where}, index line")
    if len(lines) > MAX_PATH:
        raise FormatError(
            "too many hashes", where, expected=f"at most {MAX_PATH}", found=len(lines)
        )
    path = tuple(_base64(line, f"{where}, hash {i}", 32) for i, line in enumerate(lines, 1))
    return Proof(index, path, note, extra)


def verify_proof(
    data: bytes, entry: bytes, key: VerifierKey, where: str = "tlog-proof"
) -> tuple[int, Checkpoint]:
    """Verifies a tlog-proof of `entry`; returns its index and the signed checkpoint."""
    proof = parse_proof(data, where)
    checkpoint = open_checkpoint(proof.checkpoint, key, f"{where}, checkpoint")
    verify_inclusion(
        leaf_hash(entry), proof.index, checkpoint.size, checkpoint.root, proof.path, where
    )
    return proof.index, checkpoint


# ---------------------------------------------------------------- 6. entries

KINDS = ("call", "intent", "settle", "rejection", "analysis", "admin")
ENDINGS = (
    *("done", "client_gone", "upstream_error", "timeout"),
    *("shutdown", "internal_error", "abandoned"),
)
"""Values of `status` in an entry of kind settle: how a stream ended. A plain reply has its own."""
ROLES = ("request", "response")

_ID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", re.ASCII)
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", re.ASCII)
_SHA256 = re.compile(r"[0-9a-f]{64}", re.ASCII)
_COMMITMENT = re.compile(r"[A-Za-z0-9+/]{43}=", re.ASCII)


def _matches(pattern: re.Pattern[str]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, str) and pattern.fullmatch(value) is not None


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and len(value.encode("utf-8", "replace")) <= 256


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


def _is_model(value: Any) -> bool:
    names = ("asked", "answered")
    return isinstance(value, dict) and all(_is_text(value[n]) for n in names if n in value)


def _is_body(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and _is_count(value.get("bytes"))
        and _matches(_COMMITMENT)(value.get("commitment"))
    )


# What a member must be, in words and as a check.
_TEXT = ("a text of at most 256 bytes", _is_text)
_COUNT = ("an integer >= 0", _is_count)
_OBJECT = ("an object", lambda value: isinstance(value, dict))
_DIGEST = ("64 hex digits", _matches(_SHA256))
_BODY = ("an object with `bytes` and `commitment` (32 bytes in base64)", _is_body)
_STATUS = ("an HTTP status", lambda value: type(value) is int and 100 <= value <= 599)
_ENDING = (
    f"an HTTP status or one of {', '.join(ENDINGS)}",
    lambda value: _STATUS[1](value) or value in ENDINGS,
)

# Members not named here are allowed and kept.
_MEMBERS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "v": ("1", lambda value: type(value) is int and value == 1),
    "kind": (f"one of {', '.join(KINDS)}", lambda value: value in KINDS),
    "id": ("a UUID in lower case", _matches(_ID)),
    "time": ("YYYY-MM-DDThh:mm:ss.ffffffZ", _matches(_TIME)),
    "policy": _DIGEST,
    "model": ("an object with texts `asked`, `answered`", _is_model),
    "root": ("32 bytes in base64", _matches(_COMMITMENT)),
    "request": _BODY,
    "response": _BODY,
    **dict.fromkeys(("client_id", "session", "tenant", "key", "endpoint", "provider"), _TEXT),
    **dict.fromkeys(("event", "reason", "stage"), _TEXT),
    **dict.fromkeys(("of", "events", "suppressed", "size"), _COUNT),
    **dict.fromkeys(("usage", "firewall", "limits", "timing", "analysis"), _OBJECT),
}
# Members that an entry of a kind must have, beside v, kind, id and time.
_REQUIRED: dict[str, tuple[str, ...]] = {
    "call": ("status",),
    "intent": (),
    "settle": ("status",),
    "rejection": ("status", "reason", "stage"),
    "analysis": ("of", "analysis"),
    "admin": ("event",),
}


def parse_json(data: bytes, where: str) -> Any:
    """Parses JSON (RFC 8259) strictly: UTF-8, no duplicate member, no NaN or Infinity."""

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(items)
        if len(result) != len(items):
            names = [name for name, _ in items]
            twice = next(name for name in names if names.count(name) > 1)
            raise FormatError("duplicate member in JSON", where, found=_show(twice))
        return result

    def constant(name: str) -> Any:
        raise FormatError("not a JSON number", where, found=name)

    try:
        return json.loads(_utf8(data, where), object_pairs_hook=pairs, parse_constant=constant)
    except RecursionError:
        raise FormatError("JSON nested too deeply", where) from None
    except ValueError as error:  # JSONDecodeError; an integer of too many digits
        raise FormatError("not JSON", where, found=f"{error}") from None


def parse_entry(data: bytes, where: str = "entry") -> dict[str, Any]:
    """Checks the bytes of an entry against the published schema (docs/entry.schema.json)."""
    if len(data) > MAX_ENTRY:
        raise FormatError(
            "entry too large", where, expected=f"at most {MAX_ENTRY} bytes", found=len(data)
        )
    entry = parse_json(data, where)
    if not isinstance(entry, dict):
        raise FormatError("an entry is one JSON object", where, found=_show(data))
    kind = entry.get("kind")
    own = _REQUIRED.get(kind, ()) if isinstance(kind, str) else ()
    for name in ("v", "kind", "id", "time", *own):
        if name not in entry:
            raise FormatError(f"member `{name}` is missing", where)
    for name, value in entry.items():
        rule = _MEMBERS.get(name)
        if name == "status":
            rule = _ENDING if kind == "settle" else _STATUS
        elif rule is None and name.endswith("_sha256"):
            rule = _DIGEST
        if rule is not None and not rule[1](value):
            found = _show(json.dumps(value))
            raise FormatError(f"member `{name}` is not valid", where, expected=rule[0], found=found)
    return entry


def derive_salt(secret: bytes, request_id: str, role: str) -> bytes:
    """The 32-byte salt of one body; the operator keeps `secret`, a receipt carries the salt.

    HMAC-SHA-256(secret, "aegis/salt/v1" || the id's 16 bytes || role in 8 bytes).
    """
    raw = bytes.fromhex(request_id.replace("-", ""))
    label = role.encode().ljust(8, b"\x00")
    return hmac.digest(secret, b"aegis/salt/v1" + raw + label, "sha256")


def commitment(salt: bytes, octets: bytes) -> bytes:
    """HMAC-SHA-256(salt, octets): what an entry says about a body. 32 bytes."""
    return hmac.digest(salt, octets, "sha256")


def verify_body(entry: dict[str, Any], role: str, salt: bytes, octets: bytes, where: str) -> None:
    """Checks that `octets` is the body (role `request` or `response`) the entry commits to."""
    claim = entry[role]
    if claim["bytes"] != len(octets):
        raise VerificationError(
            f"not the {role} that was recorded: other length",
            where,
            expected=f"{claim['bytes']} bytes",
            found=f"{len(octets)} bytes",
            advice="give the exact bytes that went over the wire",
        )
    found = base64.b64encode(commitment(salt, octets)).decode()
    if found != claim["commitment"]:
        raise VerificationError(
            f"not the {role} that was recorded, or not its salt",
            where,
            expected=f"commitment {claim['commitment']}",
            found=found,
            advice="give the exact bytes that went over the wire, and an unchanged receipt",
        )


# ---------------------------------------------------------------- 7. receipts


@dataclass(frozen=True)
class VerifiedEntry:
    """An entry whose inclusion was proven, and the checkpoint that proves it."""

    index: int
    entry: dict[str, Any]
    checkpoint: Checkpoint


@dataclass
class Verified:
    """What a receipt proved: its entries in index order, and which bodies were checked."""

    key: VerifierKey
    entries: list[VerifiedEntry] = field(default_factory=list)
    bodies: dict[str, int] = field(default_factory=dict)
    """Role -> number of octets, for each body that was given and matched."""

    @property
    def settled(self) -> bool:
        """False when a stream was begun and this receipt does not say how it ended."""
        settled = {e.entry.get("of") for e in self.entries if e.entry["kind"] == "settle"}
        intents = {e.index for e in self.entries if e.entry["kind"] == "intent"}
        return intents <= settled


def is_proof(data: bytes) -> bool:
    """Whether a receipt is in the tlog-proof form (else it should be JSON)."""
    return data.startswith(b"c2sp.org/")


def verify_receipt(
    data: bytes,
    key: VerifierKey,
    *,
    entry: bytes | None = None,
    request: bytes | None = None,
    response: bytes | None = None,
) -> Verified:
    """Verifies a receipt in either form, and the bodies that are given.

    A tlog-proof needs `entry`, the exact bytes of the entry; the JSON form carries them,
    and the salts that `request` and `response` need. Raises VerificationError for a check
    that failed, FormatError for input that cannot be used.
    """
    if not is_proof(data):
        if entry is not None:
            raise FormatError("an entry was given, but a JSON receipt carries its own", "entry")
        return _verify_json(data, key, {"request": request, "response": response})
    if request is not None or response is not None:
        raise FormatError(
            "a tlog-proof carries no salts, so bodies cannot be checked against it",
            "receipt",
            advice="fetch the JSON form of the receipt",
        )
    if entry is None:
        raise FormatError(
            "a tlog-proof does not carry the entry", "receipt", advice="give the entry's bytes too"
        )
    index, checkpoint = verify_proof(data, entry, key)
    return Verified(key, [VerifiedEntry(index, parse_entry(entry), checkpoint)])


def _member(receipt: dict[str, Any], name: str, kind: type, where: str) -> Any:
    value = receipt.get(name)
    if type(value) is not kind:
        raise FormatError(f"member `{name}` is missing or of the wrong type", where)
    return value


def _verify_json(data: bytes, key: VerifierKey, bodies: dict[str, bytes | None]) -> Verified:
    receipt = parse_json(data, "receipt")
    if not isinstance(receipt, dict):
        raise FormatError(
            "a receipt is a JSON object or a tlog-proof", "receipt", found=_show(data)
        )
    request_id = _member(receipt, "id", str, "receipt")
    origin = _member(receipt, "origin", str, "receipt")
    items = _member(receipt, "entries", list, "receipt")
    salts = {
        role: _base64(text, f"receipt, {role} salt", 32)
        for role, text in _member(receipt, "salts", dict, "receipt").items()
    }
    if origin != key.name:
        raise VerificationError(
            "receipt of another log",
            "receipt",
            expected=key.name,
            found=_show(origin),
            advice="use the verifier key of the log that issued the receipt",
        )
    if not items:
        raise FormatError("the receipt has no entries", "receipt")
    result = Verified(key)
    roots: dict[int, bytes] = {}
    for number, item in enumerate(items):
        where = f"receipt, entries[{number}]"
        if not isinstance(item, dict):
            raise FormatError("an object is expected", where)
        one = _verify_item(item, request_id, key, where)
        if result.entries and one.index <= result.entries[-1].index:
            raise FormatError("entries out of order", where, found=f"index {one.index}")
        seen = roots.setdefault(one.checkpoint.size, one.checkpoint.root)
        if seen != one.checkpoint.root:
            raise VerificationError(
                "the log signed two different trees of one size",
                where,
                expected=seen.hex(),
                found=one.checkpoint.root.hex(),
                advice="keep this receipt: it proves that the log shows two histories",
            )
        result.entries.append(one)
    _check_references(result)
    for role, octets in bodies.items():
        if octets is not None:
            _verify_bodies(result, role, salts, octets)
    return result


def _verify_item(
    item: dict[str, Any], request_id: str, key: VerifierKey, where: str
) -> VerifiedEntry:
    index = _member(item, "index", int, where)
    if item.get("proof") is None:
        raise VerificationError(
            "not published yet: no signed tree covers this entry",
            where,
            found=f"state {_show(str(item.get('state')))}",
            advice="fetch the receipt again with ?wait=1",
        )
    text = _member(item, "entry", str, where)
    proof = _member(item, "proof", str, where)
    try:
        raw, proof_bytes = text.encode("utf-8"), proof.encode("utf-8")
    except UnicodeEncodeError:
        raise FormatError("a lone surrogate stands in the text", where) from None
    proven, checkpoint = verify_proof(proof_bytes, raw, key, f"{where}, proof")
    entry = parse_entry(raw, f"{where}, entry")
    claims = ("index", index, proven), ("id", request_id, entry["id"])
    for name, claimed, found in (*claims, ("kind", item.get("kind"), entry["kind"])):
        if claimed != found:
            raise VerificationError(
                f"the receipt's `{name}` is not that of the proven entry",
                where,
                expected=found,
                found=_show(str(claimed)),
            )
    return VerifiedEntry(proven, entry, checkpoint)


def _check_references(result: Verified) -> None:
    """A settle closes an intent before it; an analysis speaks of an entry before it."""
    kinds = {one.index: one.entry["kind"] for one in result.entries}
    allowed = {"settle": ("intent",), "analysis": ("call", "intent", "settle")}
    for one in result.entries:
        kind, of = one.entry["kind"], one.entry.get("of")
        if kind not in allowed or of is None:
            continue
        if not of < one.index or (of in kinds and kinds[of] not in allowed[kind]):
            raise VerificationError(
                f"a {kind} that refers to the wrong entry",
                f"entry {one.index}, member `of`",
                expected=f"the index of an earlier {' or '.join(allowed[kind])}",
                found=of,
            )


def _verify_bodies(result: Verified, role: str, salts: dict[str, bytes], octets: bytes) -> None:
    claims = [one for one in result.entries if role in one.entry]
    if not claims:
        raise VerificationError(
            f"no entry of this receipt commits to a {role}",
            "receipt",
            advice=f"do not give a {role}, or fetch the receipt again after the call has ended",
        )
    if role not in salts:
        raise FormatError(f"the receipt carries no salt for the {role}", "receipt, salts")
    for one in claims:
        verify_body(one.entry, role, salts[role], octets, f"entry {one.index}, {role}")
    result.bodies[role] = len(octets)


def load_vkey(text: str) -> VerifierKey:
    """The verifier key that `text` is, or that the file named `text` holds."""
    if re.fullmatch(r"[^+\n]+\+[0-9a-f]{8}\+[A-Za-z0-9+/=]+\n?", text):
        return parse_vkey(text)
    try:
        with open(text, encoding="utf-8") as file:
            return parse_vkey(file.read(4096), text)
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise FormatError(
            "neither a verifier key nor a readable file that holds one",
            _show(text),
            found=getattr(error, "strerror", None) or error,
            advice="give the line in the log's log.vkey, or the path of that file",
        ) from None


def read_file(path: str, what: str) -> bytes:
    """The bytes of an input file; FormatError when it cannot be read."""
    try:
        with open(path, "rb") as file:
            return file.read()
    except (OSError, ValueError) as error:
        raise FormatError(
            f"cannot read the {what}", path, found=getattr(error, "strerror", None) or error
        ) from None


def main(arguments: list[str] | None = None) -> int:
    """The verifier as a command of its own: 0 verified, 1 a check failed, 2 unusable input."""
    import argparse

    parser = argparse.ArgumentParser(description="Verify a receipt offline.")
    parser.add_argument("receipt", help="JSON receipt or tlog-proof")
    parser.add_argument("--vkey", required=True, help="the log's verifier key, or its file")
    for name in ("entry", *ROLES):
        parser.add_argument(f"--{name}", metavar="F", help=f"file with the {name}'s exact bytes")
    options = parser.parse_args(arguments)
    try:
        files = {name: getattr(options, name) for name in ("entry", *ROLES)}
        given = {name: read_file(path, name) for name, path in files.items() if path}
        receipt = read_file(options.receipt, "receipt")
        result = verify_receipt(receipt, load_vkey(options.vkey), **given)
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
