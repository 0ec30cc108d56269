"""Signed notes, verifier keys and checkpoints (c2sp.org/signed-note, c2sp.org/tlog-checkpoint)."""

import base64
import hashlib

from . import ed25519

ED25519 = b"\x01"


def key_id(name: str, public: bytes, kind: bytes = ED25519) -> bytes:
    return hashlib.sha256(name.encode() + b"\n" + kind + public).digest()[:4]


def vkey(name: str, public: bytes) -> str:
    material = base64.b64encode(ED25519 + public).decode()
    return f"{name}+{key_id(name, public).hex()}+{material}"


def signature_line(name: str, identifier: bytes, signature: bytes) -> str:
    return f"\u2014 {name} {base64.b64encode(identifier + signature).decode()}\n"


def sign(text: str, name: str, seed: bytes) -> bytes:
    """The note `text` (ends in a newline) with one Ed25519 signature of (`name`, `seed`)."""
    assert text.endswith("\n")
    public = ed25519.public_key(seed)
    signature = ed25519.sign(seed, text.encode())
    return (text + "\n" + signature_line(name, key_id(name, public), signature)).encode()


def verify(note: bytes, name: str, public: bytes) -> str | None:
    """The text if the key (`name`, `public`) signed it and no signature of it is wrong."""
    whole = note.decode()
    if any(ord(c) < 0x20 and c != "\n" for c in whole):
        return None
    text, separator, signatures = whole.rpartition("\n\n")
    if not separator or not signatures.endswith("\n"):
        return None
    text += "\n"
    good = False
    for line in signatures[:-1].split("\n"):
        dash, line_name, body = line.split(" ")
        raw = base64.b64decode(body, validate=True)
        if dash != "\u2014" or len(raw) < 5:
            return None
        if line_name == name and raw[:4] == key_id(name, public):
            if not ed25519.verify(public, text.encode(), raw[4:]):
                return None
            good = True
    return text if good else None


def checkpoint_text(origin: str, size: int, root: bytes) -> str:
    return f"{origin}\n{size}\n{base64.b64encode(root).decode()}\n"


def checkpoint(origin: str, size: int, root: bytes, seed: bytes) -> bytes:
    """A signed checkpoint whose key name is the origin."""
    return sign(checkpoint_text(origin, size, root), origin, seed)
