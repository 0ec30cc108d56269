"""Salts and commitments (docs/formats.md), with HMAC written out from RFC 2104."""

import hashlib
import uuid


def hmac_sha256(key: bytes, message: bytes) -> bytes:
    if len(key) > 64:
        key = hashlib.sha256(key).digest()
    key = key.ljust(64, b"\x00")
    inner = hashlib.sha256(bytes(b ^ 0x36 for b in key) + message).digest()
    return hashlib.sha256(bytes(b ^ 0x5C for b in key) + inner).digest()


def salt(secret: bytes, request_id: str, role: str) -> bytes:
    name = {"request": b"request\x00", "response": b"response"}[role]
    return hmac_sha256(secret, b"aegis/salt/v1" + uuid.UUID(request_id).bytes + name)


def commitment(secret: bytes, request_id: str, role: str, octets: bytes) -> bytes:
    return hmac_sha256(salt(secret, request_id, role), octets)
