"""Ed25519 (RFC 8032) in affine coordinates: sign and verify, nothing clever.

Point addition is the complete twisted Edwards formula of RFC 8032 section 5.1, with a modular
inversion per addition. It takes a tenth of a second per signature.
"""

import hashlib

p = 2**255 - 19
L = 2**252 + 27742317777372353535851937790883648493
d = (-121665 * pow(121666, p - 2, p)) % p

Point = tuple[int, int]


def add(a: Point, b: Point) -> Point:
    (x1, y1), (x2, y2) = a, b
    t = d * x1 * x2 * y1 * y2 % p
    x3 = (x1 * y2 + y1 * x2) * pow(1 + t, p - 2, p)
    y3 = (y1 * y2 + x1 * x2) * pow(1 - t, p - 2, p)
    return x3 % p, y3 % p


def multiply(n: int, point: Point) -> Point:
    if n == 0:
        return (0, 1)
    half = multiply(n // 2, point)
    double = add(half, half)
    return add(double, point) if n % 2 else double


def recover_x(y: int, sign: int) -> int | None:
    """x of the point with this y whose lowest bit is `sign`; None when there is none."""
    x2 = (y * y - 1) * pow(d * y * y + 1, p - 2, p) % p
    x = pow(x2, (p + 3) // 8, p)
    if x * x % p != x2:
        x = x * pow(2, (p - 1) // 4, p) % p
    if x * x % p != x2 or (x == 0 and sign == 1):
        return None
    return x if x % 2 == sign else p - x


B: Point = (recover_x(4 * pow(5, p - 2, p) % p, 0) or 0, 4 * pow(5, p - 2, p) % p)


def encode(point: Point) -> bytes:
    x, y = point
    return (y + (x % 2) * 2**255).to_bytes(32, "little")


def decode(data: bytes) -> Point | None:
    n = int.from_bytes(data, "little")
    sign, y = divmod(n, 2**255)
    if len(data) != 32 or y >= p:
        return None
    x = recover_x(y, sign)
    return None if x is None else (x, y)


def expand(seed: bytes) -> tuple[int, bytes]:
    """The secret scalar and the prefix (RFC 8032 section 5.1.5)."""
    h = hashlib.sha512(seed).digest()
    a = int.from_bytes(h[:32], "little")
    a = a & ~7 & ~(1 << 255) | (1 << 254)
    return a, h[32:]


def public_key(seed: bytes) -> bytes:
    return encode(multiply(expand(seed)[0], B))


def sign(seed: bytes, message: bytes) -> bytes:
    a, prefix = expand(seed)
    r = int.from_bytes(hashlib.sha512(prefix + message).digest(), "little") % L
    big_r = encode(multiply(r, B))
    k = int.from_bytes(hashlib.sha512(big_r + public_key(seed) + message).digest(), "little")
    return big_r + ((r + k * a) % L).to_bytes(32, "little")


def verify(public: bytes, message: bytes, signature: bytes) -> bool:
    """RFC 8032 section 5.1.7, without the cofactor."""
    if len(signature) != 64:
        return False
    a, r = decode(public), decode(signature[:32])
    s = int.from_bytes(signature[32:], "little")
    if a is None or r is None or s >= L:
        return False
    k = int.from_bytes(hashlib.sha512(signature[:32] + public + message).digest(), "little") % L
    return multiply(s, B) == add(r, multiply(k, a))
