"""The audit ledger: the asyncio face of the native log, receipts, and offline checks."""
