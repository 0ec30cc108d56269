"""The audit ledger: the asyncio face of the native log, receipts, and offline checks.

`AsyncLedger` writes; `fsck` and `verify` check what was written, the latter without any
native code. Offline tools are imported from their modules: `aegis_c.ledger.fsck`.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .asyncio_ledger import AsyncLedger

__all__ = ["AsyncLedger"]


def __getattr__(name: str) -> Any:
    """Loaded when first used: the offline tools need no event loop and no msgspec."""
    if name == "AsyncLedger":
        from .asyncio_ledger import AsyncLedger

        return AsyncLedger
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
