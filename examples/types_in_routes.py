"""The native types in routes of one's own: a tamper-evident guest book, without the gateway.

    uvicorn --factory examples.types_in_routes:app

Every entry goes into a Merkle tree (RFC 6962) in memory; a guest gets the proof that the entry is
in the book, and anyone can check that today's book continues yesterday's.
"""

from __future__ import annotations

from fastapi import FastAPI, HTTPException
from pydantic import BaseModel, Field

from aegis_c import MmrAccumulator, VerificationError, leaf_hash, verify_inclusion


class Entry(BaseModel):
    """What a guest writes."""

    text: str = Field(max_length=1000)


class Claim(Entry):
    """That an entry is in the book: all hashes in hex."""

    index: int
    size: int
    root: str
    proof: list[str]


def app() -> FastAPI:
    """The guest book."""
    book = MmrAccumulator()
    api = FastAPI(title="Guest book")

    @api.post("/entries")
    async def sign(entry: Entry) -> dict[str, object]:
        """Write an entry; returns its place in the book and the book's new root."""
        index = book.append(entry.text.encode())
        return {"index": index, "size": len(book), "root": book.root().hex()}

    @api.get("/entries/{index}/proof")
    async def proof(index: int, size: int | None = None) -> dict[str, object]:
        """The path from an entry to the root of the book as it was with `size` entries."""
        size = len(book) if size is None else size
        try:
            path = book.inclusion_proof(index, size)
            root = book.root(size)
        except (IndexError, ValueError) as error:
            raise HTTPException(404, str(error)) from None
        return {"size": size, "root": root.hex(), "proof": [node.hex() for node in path]}

    @api.post("/check")
    async def check(claim: Claim) -> dict[str, object]:
        """Whether `text` is entry `index` of the book with that size and root."""
        try:
            path = [bytes.fromhex(node) for node in claim.proof]
            leaf = leaf_hash(claim.text.encode())
            verify_inclusion(leaf, claim.index, claim.size, bytes.fromhex(claim.root), path)
        except (VerificationError, ValueError) as error:
            return {"verified": False, "reason": str(error)}
        return {"verified": True}

    @api.get("/consistency/{old_size}")
    async def consistency(old_size: int) -> dict[str, object]:
        """Proof that the book of now only continues the book with `old_size` entries."""
        try:
            path = book.consistency_proof(old_size)
        except (IndexError, ValueError) as error:
            raise HTTPException(404, str(error)) from None
        return {
            "old_size": old_size,
            "size": len(book),
            "root": book.root().hex(),
            "proof": [node.hex() for node in path],
        }

    return api
