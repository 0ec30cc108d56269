"""Aegis: governance for LLM traffic, with receipts that anyone can check offline.

The native types live here; `aegis_c.gateway` is the gateway, `aegis_c.ledger` the asyncio
face of the ledger and its offline tools. Importing this package imports neither.
"""

from typing import TYPE_CHECKING, Any

from aegis_c._native import (
    AegisError,
    Baselines,
    Commitment,
    ConcurrencyLimiter,
    Decision,
    HandOver,
    JsonError,
    JsonScanner,
    Ledger,
    LedgerError,
    LedgerFull,
    Limit,
    LimitError,
    LoopWatch,
    MmrAccumulator,
    Plan,
    RateLimiter,
    ReplyAnalysis,
    RequestGuard,
    Reservation,
    VerificationError,
    WalCorruption,
    WalError,
    WalFull,
    WalLocked,
    WalPoisoned,
    WalReader,
    WalWriter,
    kernels,
    leaf_hash,
    node_hash,
    token_divergence,
    token_entropy,
    token_key,
    verify_consistency,
    verify_inclusion,
)

if TYPE_CHECKING:
    from aegis_c._capture import capture

__all__ = [
    "AegisError",
    "Baselines",
    "Commitment",
    "ConcurrencyLimiter",
    "Decision",
    "HandOver",
    "JsonError",
    "JsonScanner",
    "Ledger",
    "LedgerError",
    "LedgerFull",
    "Limit",
    "LimitError",
    "LoopWatch",
    "MmrAccumulator",
    "Plan",
    "RateLimiter",
    "ReplyAnalysis",
    "RequestGuard",
    "Reservation",
    "VerificationError",
    "WalCorruption",
    "WalError",
    "WalFull",
    "WalLocked",
    "WalPoisoned",
    "WalReader",
    "WalWriter",
    "capture",
    "kernels",
    "leaf_hash",
    "node_hash",
    "token_divergence",
    "token_entropy",
    "token_key",
    "verify_consistency",
    "verify_inclusion",
]

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """`aegis_c.capture` is loaded when it is first used: it is for clients, not gateways."""
    if name == "capture":
        from aegis_c._capture import capture

        return capture
    raise AttributeError(f"module 'aegis_c' has no attribute {name!r}")
