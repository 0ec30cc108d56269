"""`aegis-c config`: are the settings usable, what is in force, what can be set."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from aegis_c.gateway.settings import Settings

app = typer.Typer(no_args_is_help=True, help="Check and show the settings.")

Config = Annotated[Path | None, typer.Option(help="Settings file (TOML).")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]


@app.command()
def check(config: Config = None, as_json: Json = False) -> None:
    """Say whether the gateway would start with these settings, and every fault if not."""
    settings = _load(config, as_json)
    if as_json:
        print(json.dumps({"ok": True, "policy": settings.policy()}))
    else:
        print(f"usable: {_sources(config)}\n  policy     {settings.policy()}")


@app.command()
def show(config: Config = None, as_json: Json = False) -> None:
    """Print the settings in force, defaults included; secrets are not shown."""
    settings = _load(config, as_json)
    values = settings.model_dump(mode="json")
    if as_json:
        print(json.dumps(values))
        return
    print(f"# {_sources(config)}\n# policy {settings.policy()}")
    print("\n".join(_toml(values)))


@app.command()
def schema() -> None:
    """Print the JSON schema of the settings file."""
    from aegis_c.gateway.settings import Settings

    print(json.dumps(Settings.model_json_schema(), indent=2))


def _load(config: Path | None, as_json: bool) -> Settings:
    from aegis_c.gateway.settings import SettingsError, load_settings

    try:
        return load_settings(config)
    except SettingsError as error:
        if as_json:
            print(json.dumps({"ok": False, "error": {"what": str(error)}}))
        else:
            print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(2) from None


def _sources(config: Path | None) -> str:
    from aegis_c.gateway.settings import given_by

    return ", ".join(given_by(config)) or "defaults alone"


def _toml(values: dict[str, Any], table: str = "") -> list[str]:
    """``values`` as lines of TOML; what has no value is a comment."""
    lines, tables = [], []
    for key, value in values.items():
        if isinstance(value, dict):
            tables += ["", f"[{table}{key}]", *_toml(value, f"{table}{key}.")]
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            for item in value:
                tables += ["", f"[[{table}{key}]]", *_toml(item, f"{table}{key}.")]
        elif value is None:
            lines.append(f"# {key} is not set")
        else:
            lines.append(f"{key} = {json.dumps(value, ensure_ascii=False)}")
    return lines + tables
