"""The line or the variable that gives a setting."""

from __future__ import annotations

import string
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aegis_c.gateway.settings import SettingsError, load_settings
from aegis_c.gateway.settings_file import Lines, variable_of

TEXT = '''# comment with [brackets] and a = 1
port = 1
host = """
[not.a.table]
x = 1
""" # = "
[upstream]  # [no]
url = 'http://x/#[a]'
"quoted.name" = 1
dotted . "in ner".deep = { a = 1, b = [1, 2], c = "}" }
list = [
  # comment ]
  { rate = 1,  per = "x" },
  { rate = 2 }, "]", [ 3,
    4 ],
]
[[keys]]
id = "a"
[keys.sub]
x = 1
[[keys]]
id = "b"
[[keys.roles]]
r = 1
[[keys.roles]]
r = 2
last = """a\\"""b"""
after = true'''


def test_every_form_of_a_key_has_its_line() -> None:
    tomllib.loads(TEXT)
    lines = Lines(TEXT)
    expected: dict[tuple[str | int, ...], int] = {
        ("port",): 2,
        ("host",): 3,
        ("upstream",): 7,
        ("upstream", "url"): 8,
        ("upstream", "quoted.name"): 9,
        ("upstream", "dotted", "in ner", "deep", "c"): 10,
        ("upstream", "dotted", "in ner", "deep", "b", 1): 10,
        ("upstream", "list", 0, "per"): 13,
        ("upstream", "list", 1, "rate"): 14,
        ("upstream", "list", 3, 1): 15,
        ("keys", 0, "id"): 18,
        ("keys", 0, "sub", "x"): 20,
        ("keys", 1): 21,
        ("keys", 1, "id"): 22,
        ("keys", 1, "roles", 0, "r"): 24,
        ("keys", 1, "roles", 1, "r"): 26,
        ("keys", 1, "roles", 1, "after"): 28,
    }
    assert {path: lines.exact(path) for path in expected} == expected
    assert lines.exact(("x",)) is None
    assert lines.exact(("not",)) is None
    assert lines.nearest(("keys", 1, "roles", 1, "missing")) == 25
    assert lines.nearest(("nothing",)) is None


_names = st.text(string.ascii_letters + "-_ .\"'#[]=é", min_size=1, max_size=4)
_values = st.recursive(
    st.integers() | st.booleans() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_names, inner, max_size=3),
    max_leaves=6,
)


def _quoted(text: str) -> str:
    return '"' + "".join(f"\\U{ord(c):08x}" for c in text) + '"'


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return str(value)
    if isinstance(value, str):
        return _quoted(value)
    if isinstance(value, list):
        return "[\n" + ",\n".join(_toml(item) for item in value) + " # ]\n]"
    return "{" + ", ".join(f"{_quoted(k)} = {_toml(v)}" for k, v in value.items()) + "}"


@given(st.dictionaries(_names, _values, min_size=1, max_size=4))
def test_whatever_stands_between_keys_their_lines_are_right(document: dict[str, Any]) -> None:
    text, expected = "", {}
    for name, value in document.items():
        expected[(name,)] = text.count("\n") + 1
        text += f"{_quoted(name)} = {_toml(value)} # = [\n"
    try:
        tomllib.loads(text)
    except tomllib.TOMLDecodeError:  # a surrogate, which TOML has no way to write
        return
    lines = Lines(text)
    assert {path: lines.exact(path) for path in expected} == expected


def test_faults_name_the_line_or_the_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "aegis.toml"
    file.write_text("port = 1\n\n[upstream]\nurll = 'x'\n[[keys]]\nid = 'k'\ntenant = 't'\n")
    with pytest.raises(SettingsError) as caught:
        load_settings(file)
    assert "line 4: upstream.urll: unknown key" in str(caught.value)
    assert "line 5: keys.0.sha256: Field required" in str(caught.value)
    monkeypatch.setenv("AEGIS_UPSTREAM__URLL", "y")
    with pytest.raises(SettingsError) as caught:
        load_settings(file)
    assert "AEGIS_UPSTREAM__URLL: upstream.urll: unknown key" in str(caught.value)


def test_the_variable_of_a_path() -> None:
    environment = {"AEGIS_LIMITS": "{}", "aegis_upstream__url": "x"}
    assert variable_of(("limits", "key", "requests"), environment) == "AEGIS_LIMITS"
    assert variable_of(("upstream", "url"), environment) == "aegis_upstream__url"
    assert variable_of(("upstream", "name"), environment) is None
    assert variable_of((), environment) is None


def test_a_file_that_changes_while_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is read once: the line of a fault is looked up in the text that has the fault."""
    file = tmp_path / "aegis.toml"
    read = Path.read_bytes

    def read_and_change(path: Path) -> bytes:
        data = read(path)
        path.write_text("port = [")  # no TOML: a walk over it need not come to an end
        return data

    file.write_text("\nprot = 1\n")
    monkeypatch.setattr(Path, "read_bytes", read_and_change)
    with pytest.raises(SettingsError, match=r"line 2: prot: unknown key"):
        load_settings(file)


def test_files_that_are_no_settings(tmp_path: Path) -> None:
    file = tmp_path / "aegis.toml"
    for data, words in ((b"port = [", r"aegis\.toml: "), (b"a = '\xff'", "not UTF-8")):
        file.write_bytes(data)
        with pytest.raises(SettingsError, match=words):
            load_settings(file)
    with pytest.raises(SettingsError, match="no such settings file"):
        load_settings(tmp_path)
