"""Settings: file, environment, arguments; what cannot be used is named."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator  # type: ignore[import-untyped]
from pydantic import SecretStr
from typer.testing import CliRunner

from aegis_c import cli
from aegis_c.gateway.settings import Settings, SettingsError, keys_of, load_settings
from aegis_c.gateway.shards import open_shard
from aegis_c.ledger.layout import DataDir

DIGEST = "a" * 64


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    for name in list(os.environ):
        if name.startswith("AEGIS_"):
            monkeypatch.delenv(name)


def write(directory: Path, text: str) -> Path:
    path = directory / "aegis.toml"
    path.write_text(text)
    return path


def test_precedence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Arguments over environment over file over defaults, key by key."""
    file = write(
        tmp_path,
        f"""
        host = "127.0.0.2"
        port = 1
        [upstream]
        url = "http://file/v1"
        name = "file"
        connect_timeout = 1
        [[keys]]
        id = "k"
        sha256 = "{DIGEST}"
        tenant = "t"
        """,
    )
    monkeypatch.setenv("AEGIS_PORT", "2")
    monkeypatch.setenv("AEGIS_UPSTREAM__NAME", "env")
    monkeypatch.setenv("AEGIS_UPSTREAM__API_KEY", "sk-hidden")
    settings = load_settings(file, port=3, host=None, upstream={"url": "https://argument/v1/"})
    assert settings.host == "127.0.0.2"
    assert settings.port == 3
    assert settings.upstream.url == "https://argument/v1"
    assert settings.upstream.name == "env"
    assert settings.upstream.connect_timeout == 1
    assert settings.upstream.api_key == SecretStr("sk-hidden")
    assert settings.keys[0].roles == {"caller"}
    assert settings.limits == Settings().limits
    monkeypatch.setenv("AEGIS_CONFIG", str(file))
    assert load_settings().port == 2
    assert "sk-hidden" not in repr(settings)


def test_keys_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AEGIS_KEYS", f'[{{"id":"k","sha256":"{DIGEST}","tenant":"t"}}]')
    assert load_settings().keys[0].tenant == "t"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("prot = 1", "prot: unknown key"),
        ("[upstream]\nurll = 'x'", "upstream.urll: unknown key"),
        ("[[keys]]\nid = 'k'\nsecret = 'x'", "keys.0.secret: unknown key"),
        ("port = 'abc'", "port: "),
        ("port = 70000", "port: "),
        ("[upstream]\nurl = 'ftp://x'", "upstream.url: must be http://"),
        ("[upstream]\nurl = 'http://u:p@x/v1'", "upstream.url: must not carry a user"),
        ("[upstream]\nurl = 'http://x/v1?a=b'", "upstream.url: must not carry a query"),
        ("[upstream]\nurl = 'unix:relative.sock'", "upstream.url: must be unix:/path"),
        ("[upstream]\nurl = 'unix:/a?b:/c?d'", "upstream.url: must be unix:/path"),
        ("[upstream]\nproxy = 'socks5://x'", "upstream.proxy: must be http://"),
        ("[upstream]\nproxy = 'http://u:p@x'", "upstream.proxy: must not carry a user"),
        ("[upstream]\nproxy_login = 'u'", "upstream.proxy_login: must be user:password"),
        ("[upstream]\napi_key_file = '/nowhere'", "api_key_file /nowhere cannot be read"),
        ("[upstream]\napi_key = 'a'\napi_key_file = '/etc/hosts'", "not both"),
        ('[upstream]\nurl = "http://x/\\r\\nX: y"', "upstream.url: must be printable"),
        ('[upstream]\napi_key = "a\\r\\nX: y"', "upstream.api_key: must be printable"),
        ("[upstream]\nconnect_timeout = 0", "upstream.connect_timeout: "),
        (
            "[evidence]\nmode = 'writeahead'",
            "evidence.mode: Input should be 'background', 'durable'",
        ),
        ("[upstream]\nheartbeat = -1", "upstream.heartbeat: "),
        ("[evidence]\non_failure = 'ignore'", "evidence.on_failure: "),
        ("[ledger]\norigin = 'a b'", "ledger.origin: "),
        (f"[[keys]]\nid='a b'\nsha256='{DIGEST}'\ntenant='t'", "keys.0.id: "),
        ("[[keys]]\nid='k'\nsha256='sk-plain'\ntenant='t'", "keys.0.sha256: must be the 64"),
        (f"[[keys]]\nid='k'\nsha256='{DIGEST}'\ntenant='t'\nroles=['root']", "keys.0.roles"),
        (
            f"[[keys]]\nid='k'\nsha256='{DIGEST}'\ntenant='t'\n" * 2,
            "the id 'k' is given twice",
        ),
        ("[limits]\nmax_in_flight = 60000", "needs ledger.ring_bytes >= "),
        ("port =", "aegis.toml: "),
        ("port = 1\nport = 2", "aegis.toml: "),
    ],
)
def test_faults_in_a_file(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load_settings(write(tmp_path, text))
    assert words in str(caught.value)
    assert "aegis.toml" in str(caught.value)


def test_a_secret_is_never_shown_in_a_fault(tmp_path: Path) -> None:
    with pytest.raises(SettingsError) as caught:
        load_settings(write(tmp_path, "[upstream]\napi_key = 'top secret'"))
    assert "top secret" not in str(caught.value)
    with pytest.raises(SettingsError) as caught:
        load_settings(write(tmp_path, "[[keys]]\nid='k'\nsha256='sk-secret'\ntenant='t'"))
    assert "sk-secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("AEGIS_PROT", "1", "AEGIS_PROT: unknown setting"),
        ("AEGIS_UPSTREAM__URLL", "x", "upstream.urll: unknown key"),
        ("AEGIS_PORT", "abc", "port: "),
        ("AEGIS_KEYS", "{", "keys"),
    ],
)
def test_faults_in_the_environment(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, words: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError) as caught:
        load_settings()
    assert words in str(caught.value)


def test_switches_of_the_build_are_no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AEGIS_DEBUG", "AEGIS_NO_APT", "AEGIS_SANITIZE", "AEGIS_TEST_SEED"):
        monkeypatch.setenv(name, "1")
    load_settings()


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="no such settings file"):
        load_settings(tmp_path / "none.toml")


def test_the_policy_hash_follows_what_governs_and_no_secret() -> None:
    def policy(**values: Any) -> str:
        return Settings(**values).policy()

    key = {"id": "k", "sha256": DIGEST, "tenant": "t"}
    base = policy(keys=[key])
    assert len(base) == 64
    assert policy(keys=[key], port=1, data=Path("x"), host="::1") == base
    assert policy(keys=[{**key, "sha256": "b" * 64}]) == base
    assert policy(keys=[key], upstream={"api_key": "x"}) == base
    assert policy(keys=[{**key, "roles": ["caller", "auditor"]}]) == policy(
        keys=[{**key, "roles": ["auditor", "caller"]}]
    )
    different = [
        policy(),
        policy(keys=[{**key, "tenant": "u"}]),
        policy(keys=[{**key, "roles": ["admin"]}]),
        policy(keys=[key], upstream={"url": "http://x/v1"}),
        policy(keys=[key], limits={"max_json_depth": 9}),
        policy(keys=[key], evidence={"on_failure": "serve"}),
    ]
    assert len({base, *different}) == 7


def test_loopback() -> None:
    for host in ("127.0.0.1", "127.9.9.9", "::1", "localhost"):
        assert Settings(host=host).loopback_only()
    for host in ("0.0.0.0", "::", "192.0.2.1", "example.org"):
        assert not Settings(host=host).loopback_only()
    assert Settings(host="0.0.0.0", uds=Path("x")).loopback_only()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("prot = 1", "line 1: prot: unknown key (did you mean port?)"),
        ("[upstream]\nurll = 'x'", "line 2: upstream.urll: unknown key (did you mean url?)"),
        (
            f"[[keys]]\nid='k'\nsha256='{DIGEST}'\ntenent='t'",
            "line 4: keys.0.tenent: unknown key (did you mean tenant?)",
        ),
        ("zzz = 1", "line 1: zzz: unknown key"),
    ],
)
def test_the_nearest_name_is_offered(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load_settings(write(tmp_path, text))
    assert words in str(caught.value)
    assert ("did you mean" in str(caught.value)) == ("did you mean" in words)


def test_the_nearest_variable_is_offered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AEGIS_PROT", "1")
    with pytest.raises(SettingsError, match=r"did you mean AEGIS_PORT\?"):
        load_settings()


LIMIT_SETS = ("key", "tenant", "model", "ip", "total", "tenants", "models")  # described once


def leaves(path: tuple[str, ...] = ()) -> list[str]:
    """Every setting's whole name; of an array of tables, and of a set of limits, its name alone."""
    found = []
    for key in keys_of(path):
        inner = keys_of((*path, key))
        array = key in ("keys", "targets") or (path == ("limits",) and key in LIMIT_SETS)
        found += [".".join((*path, key))] if array or not inner else leaves((*path, key))
    return found


def test_every_setting_is_documented() -> None:
    """In a table of docs/operations.md, in full or after its table's name in the same cell."""
    text = (Path(__file__).parent.parent / "docs" / "operations.md").read_text()
    documented = set()
    for line in text.splitlines():
        if line.startswith("| `"):
            table = ""
            for name in re.findall(r"`([^`]+)`", line.split("|")[1]):
                if "." in name:
                    table = name.rpartition(".")[0] + "."
                documented |= {name, table + name}
    assert len(leaves()) > 30
    assert [name for name in leaves() if name not in documented] == []


def test_the_config_commands(tmp_path: Path) -> None:
    file = write(
        tmp_path,
        f"""
        [upstream]
        url = "http://x/v1"
        api_key = "very-secret"
        [[keys]]
        id = "k"
        sha256 = "{DIGEST}"
        tenant = "t"
        """,
    )
    runner = CliRunner()
    checked = runner.invoke(cli.app, ["config", "check", "--config", str(file), "--json"])
    assert checked.exit_code == 0
    policy = load_settings(file).policy()
    assert json.loads(checked.stdout) == {"ok": True, "policy": policy}

    shown = runner.invoke(cli.app, ["config", "show", "--config", str(file)])
    assert shown.exit_code == 0
    assert policy in shown.stdout
    assert "very-secret" not in shown.stdout
    values = tomllib.loads(shown.stdout)
    assert values["upstream"]["url"] == "http://x/v1"
    assert values["limits"] == Settings().limits.model_dump(mode="json", exclude_none=True)
    assert values["keys"][0]["tenant"] == "t"

    schema = json.loads(runner.invoke(cli.app, ["config", "schema"]).stdout)
    Draft202012Validator.check_schema(schema)
    validator = Draft202012Validator(schema)
    validator.validate(tomllib.loads(file.read_text()))
    assert list(validator.iter_errors({"prot": 1}))


def test_config_check_of_a_faulty_file(tmp_path: Path) -> None:
    file = write(tmp_path, "port = 1\nprot = 2\n[limits]\nmax_in_flight = 0\n")
    clean = {k: v for k, v in os.environ.items() if not k.startswith("AEGIS_")}
    command = [sys.executable, "-m", "aegis_c.cli", "config", "check", "--config", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, env=clean)
    assert done.returncode == 2
    assert "line 2: prot: unknown key" in done.stderr
    assert "line 4: limits.max_in_flight: " in done.stderr
    assert "Traceback" not in done.stderr


def test_one_key_file_signs_for_every_shard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AEGIS_LEDGER__KEY_FILE", str(tmp_path / "log.pem"))
    settings = load_settings()
    assert settings.ledger.key_file == tmp_path / "log.pem"

    async def keys() -> list[str]:
        found = []
        for name in ("w0", "w1"):
            shard = DataDir(tmp_path / "data").shard(name)
            async with open_shard(settings, shard, 1 << 20) as ledger:
                found.append(ledger.native.vkey)
            assert not (shard.private / "log.key").exists()
        return found

    first, second = asyncio.run(keys())
    assert first != second  # each log has a name of its own
    assert first.rpartition("+")[2] == second.rpartition("+")[2]
    assert (tmp_path / "log.pem").stat().st_mode & 0o777 == 0o600
