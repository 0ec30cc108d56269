"""The governance gateway: an OpenAI-compatible proxy that leaves evidence of every call."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aegis_c.gateway.app import create_app
    from aegis_c.gateway.settings import Settings

__all__ = ["Settings", "create_app"]


def __getattr__(name: str) -> Any:
    """Load the application only when it is asked for: importing a part stays light."""
    if name == "create_app":
        from aegis_c.gateway.app import create_app

        return create_app
    if name == "Settings":
        from aegis_c.gateway.settings import Settings

        return Settings
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
