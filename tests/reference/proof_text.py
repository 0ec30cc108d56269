"""The tlog-proof text (c2sp.org/tlog-proof)."""

import base64


def proof_text(
    index: int, path: list[bytes], checkpoint: bytes, extra: bytes | None = None
) -> bytes:
    lines = ["c2sp.org/tlog-proof@v1"]
    if extra is not None:
        lines.append("extra " + base64.b64encode(extra).decode())
    lines.append(f"index {index}")
    lines += [base64.b64encode(sibling).decode() for sibling in path]
    return "\n".join(lines).encode() + b"\n\n" + checkpoint
