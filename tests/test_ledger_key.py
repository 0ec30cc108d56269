"""The log's key as a setting: a file, or the PEM text itself in a variable."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

import aegis_c
import upstream
from aegis_c.gateway.settings import Settings, load_settings
from aegis_c.gateway.settings_file import SettingsError
from gateway_rig import gateway


@pytest.fixture
def pem(tmp_path: Path) -> str:
    with aegis_c.Ledger(tmp_path / "made", private=tmp_path / "made.private"):
        return (tmp_path / "made.private" / "log.key").read_text()


def test_the_gateway_signs_with_the_key_in_a_variable(
    tmp_path: Path, pem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AEGIS_LEDGER__KEY_PEM", pem)
    secret = load_settings().ledger.key_pem
    assert secret is not None and secret.get_secret_value() == pem

    async def main() -> None:
        async with (
            upstream.running() as up,
            gateway(tmp_path / "data", up.url, ledger={"key_pem": pem}) as rig,
        ):
            assert (await rig.ask()).status == 200

    asyncio.run(main())
    made, used = (
        (folder / "log.vkey").read_text().rpartition("+")[2]
        for folder in (tmp_path / "made", tmp_path / "data" / "ledger" / "w0")
    )
    assert made == used
    assert not (tmp_path / "data" / "private" / "w0" / "log.key").exists()


def test_the_key_is_never_shown_and_no_part_of_the_policy(pem: str) -> None:
    with_key = Settings.model_validate({"ledger": {"key_pem": pem}})
    assert with_key.policy() == Settings().policy()
    line = pem.splitlines()[1]
    assert line not in repr(with_key)
    assert line not in with_key.model_dump_json()


def test_a_file_and_a_text_are_one_too_many(pem: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AEGIS_LEDGER__KEY_PEM", pem)
    monkeypatch.setenv("AEGIS_LEDGER__KEY_FILE", "/nowhere")
    with pytest.raises(SettingsError, match="key_file or key_pem, not both") as caught:
        load_settings()
    assert pem.splitlines()[1] not in str(caught.value)
