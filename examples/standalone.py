"""The gateway as an application of its own, under any ASGI server.

    uvicorn --factory examples.standalone:app

Settings come from AEGIS_* variables (AEGIS_UPSTREAM__URL, AEGIS_DATA, ...) or from the TOML file
that AEGIS_CONFIG names. Without an upstream the built-in demonstration model answers.
`aegis-c serve` does the same with a server tuned for it.
"""

from __future__ import annotations

from fastapi import FastAPI

from aegis_c.gateway import create_app


def app() -> FastAPI:
    """The application; settings are read when the server asks for it, not at import."""
    return create_app()
