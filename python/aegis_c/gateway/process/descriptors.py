"""File descriptors: idle callers may not take those that a call needs on its way upstream."""

from __future__ import annotations

import resource
from typing import Final

from aegis_c.gateway.upstream_settings import Upstream

_OWN: Final = 64  # the ledger's files, shared memory, listeners, logs


def use_all() -> None:
    """Raise this process's soft limit to its hard one; workers inherit it."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def for_callers(upstream: Upstream) -> int:
    """Connections that callers may hold: what the limit leaves, but at least half of it."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    targets = upstream.targets or (upstream,)
    kept = _OWN + upstream.max_connections * len(targets)
    return max(soft // 2, soft - kept)
