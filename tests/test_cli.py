"""The `aegis-c` command, as a user meets it: output, exit status, errors without a traceback."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest

from aegis_c.ledger import fsck
from logs import ORIGIN, SEED, damaged_copy, entries, entry, request_id, write_log
from reference import ed25519, note, tiles, tree

VKEY = note.vkey(ORIGIN, ed25519.public_key(SEED))


def aegis(*arguments: str | Path, stdin: bytes = b"") -> subprocess.CompletedProcess[str]:
    """Runs the command in a process of its own."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("AEGIS_")}
    done = subprocess.run(
        [sys.executable, "-m", "aegis_c.cli", *map(str, arguments)],
        input=stdin,
        capture_output=True,
        timeout=60,
        env=environment,
        check=False,
    )
    result = subprocess.CompletedProcess(
        done.args, done.returncode, done.stdout.decode(), done.stderr.decode()
    )
    assert "Traceback" not in result.stderr, result.stderr
    return result


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_log(tmp_path_factory.mktemp("log") / "data/ledger/w0", 300)


@pytest.fixture(scope="module")
def receipt(log: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tlog-proof of entry 7, and the entry, as `ledger prove` writes them."""
    folder = tmp_path_factory.mktemp("receipt")
    done = aegis("ledger", "prove", log, "--index", "7", "--entry", folder / "entry.json")
    assert done.returncode == 0, done.stderr
    (folder / "proof").write_text(done.stdout)
    return {"proof": folder / "proof", "entry": folder / "entry.json"}


def test_help_names_the_commands_and_imports_no_server() -> None:
    done = aegis("--help")
    assert done.returncode == 0
    for name in ("serve", "demo", "verify", "ledger", "keys"):
        assert name in done.stdout
    loaded = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys, aegis_c.cli; print([m for m in ('fastapi', 'uvicorn', 'asyncio', 'ssl',"
            " 'aegis_c.gateway', 'aegis_c.demo') if m in sys.modules])",
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    assert loaded.stdout.strip() == "[]"


def test_version() -> None:
    assert re.fullmatch(r"aegis-c \d+\.\d+\.\d+\n", aegis("--version").stdout)


# ---- verify


def test_verify_a_tlog_proof(receipt: dict[str, Path], tmp_path: Path) -> None:
    vkey = tmp_path / "log.vkey"
    vkey.write_text(VKEY + "\n")
    for key in (VKEY, str(vkey)):
        done = aegis("verify", receipt["proof"], "--vkey", key, "--entry", receipt["entry"])
        assert done.returncode == 0, done.stderr
        assert "entry 7 (call)" in done.stdout
        assert request_id(7) in done.stdout
    done = aegis(
        *("verify", "-", "--vkey", VKEY, "--entry", receipt["entry"], "--json"),
        stdin=receipt["proof"].read_bytes(),
    )
    shown = json.loads(done.stdout)
    assert shown["ok"] is True
    assert shown["entries"][0]["index"] == 7
    assert shown["entries"][0]["root"] == tree.mth(entries(300)).hex()


def test_verify_says_what_is_wrong_and_exits_1(receipt: dict[str, Path], tmp_path: Path) -> None:
    other = tmp_path / "other.json"
    other.write_bytes(entries(300)[8])
    done = aegis("verify", receipt["proof"], "--vkey", VKEY, "--entry", other)
    assert done.returncode == 1
    assert "NOT VERIFIED: the entry is not in the signed tree" in done.stderr
    for part in ("where:", "expected:", "found:", "advice:"):
        assert part in done.stderr
    foreign = note.vkey(ORIGIN, ed25519.public_key(bytes(32)))
    command = ("verify", receipt["proof"], "--vkey", foreign, "--entry", receipt["entry"])
    assert aegis(*command).returncode == 1
    shown = json.loads(aegis(*command, "--json").stdout)
    assert shown["ok"] is False
    assert "not signed" in shown["error"]["what"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["missing-file", "--vkey", VKEY], "missing-file"),
        (["{proof}", "--vkey", "nonsense"], "verifier key"),
        (["{proof}", "--vkey", VKEY.replace("+", "-", 1)], "verifier key"),
        (["{proof}", "--vkey", VKEY], "entry"),
        (["{proof}", "--vkey", VKEY, "--request", "{entry}"], "salts"),
        (["{entry}", "--vkey", VKEY], "receipt"),
        (["{proof}"], "--vkey"),
        (["/", "--vkey", VKEY], "cannot read"),
    ],
)
def test_unusable_input_exits_2(receipt: dict[str, Path], arguments: list[str], says: str) -> None:
    done = aegis("verify", *(a.format(**receipt) for a in arguments))
    assert done.returncode == 2, done.stderr
    assert says in done.stderr
    assert done.stdout == ""


# ---- ledger


def test_fsck_passes_a_whole_log_by_any_of_its_paths(log: Path) -> None:
    for path in (log, log.parent, log.parent.parent):
        done = aegis("ledger", "fsck", path)
        assert done.returncode == 0, done.stderr
        assert "whole" in done.stdout
        assert tree.mth(entries(300)).hex() in done.stdout
    done = aegis("ledger", "fsck", log, "--vkey", VKEY, "--json")
    shown = json.loads(done.stdout)
    assert shown["ok"] is True
    assert shown["shards"][0]["size"] == 300
    assert shown["shards"][0]["problems"] == []


@pytest.mark.parametrize(
    ("name", "offset", "says"),
    [
        ("tile/entries/000", 500, "entry 3"),
        ("tile/entries/001.p/44", 1, "entry 256"),
        ("tile/0/000", 8191, "offset 8191, entry 255"),
        ("tile/1/000.p/1", 0, "offset 0, entry 0"),
        ("checkpoint", 40, "checkpoint"),
    ],
)
def test_fsck_names_the_damage_and_exits_1(
    log: Path, tmp_path: Path, name: str, offset: int, says: str
) -> None:
    def flip(data: bytes) -> bytes:
        return data[:offset] + bytes([data[offset] ^ 1]) + data[offset + 1 :]

    copy = damaged_copy(log, tmp_path / "w0", name, flip)
    done = aegis("ledger", "fsck", copy)
    assert done.returncode == 1
    assert "DAMAGED" in done.stdout
    assert name in done.stdout
    assert says in done.stdout
    shown = json.loads(aegis("ledger", "fsck", copy, "--json").stdout)
    assert shown["shards"][0]["problems"][0]["file"] == name


def test_fsck_with_another_key_fails(log: Path) -> None:
    other = note.vkey(ORIGIN, ed25519.public_key(bytes(32)))
    assert aegis("ledger", "fsck", log, "--vkey", other).returncode == 1


@pytest.mark.parametrize("make", ["missing", "empty", "file"])
@pytest.mark.parametrize("command", ["fsck", "prove", "dump"])
def test_a_directory_without_a_log_exits_2(tmp_path: Path, make: str, command: str) -> None:
    path = tmp_path / "there"
    if make == "empty":
        path.mkdir()
    elif make == "file":
        path.write_text("x")
    more = ["--index", "0"] if command == "prove" else []
    done = aegis("ledger", command, path, *more)
    assert done.returncode == 2
    assert str(path) in done.stderr


SLOW_CLOCK = (  # every look at the clock is three seconds later
    "import sys, time; from aegis_c import cli; clock = [0.0];"
    "time.monotonic = lambda: clock.__setitem__(0, clock[0] + 3) or clock[0];"
    "sys.argv = ['aegis-c', 'ledger', 'fsck', sys.argv[1]]; cli.main()"
)


def test_a_long_check_prints_plain_lines_when_nobody_watches(tmp_path: Path) -> None:
    command = [sys.executable, "-c", SLOW_CLOCK, str(write_log(tmp_path / "w0", 1000))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0
    assert re.search(r"w0: checking entries: \d+ of 1000", done.stderr)


def test_a_long_check_shows_a_bar_on_a_terminal(tmp_path: Path) -> None:
    command = [sys.executable, "-c", SLOW_CLOCK, str(write_log(tmp_path / "w0", 1000))]
    terminal, side = os.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=side, env=environment) as process:
        os.close(side)
        shown = b""
        try:
            while chunk := os.read(terminal, 65536):
                shown += chunk
        except OSError:  # the other side is gone
            pass
        os.close(terminal)
        assert process.stdout is not None
        assert process.stdout.read().startswith(b"whole")
    assert process.returncode == 0
    assert "w0: checking entries" in shown.decode()
    assert "%" in shown.decode()


def test_prove_by_id_and_its_errors(log: Path, tmp_path: Path) -> None:
    done = aegis("ledger", "prove", log, "--id", request_id(299), "--json")
    assert json.loads(done.stdout)["index"] == 299
    for arguments, says in (
        (["--index", "300"], "300 entries"),
        (["--id", request_id(300)], request_id(300)),
        ([], "--index or --id"),
        (["--index", "1", "--id", request_id(1)], "--index or --id"),
    ):
        done = aegis("ledger", "prove", log, *arguments)
        assert done.returncode == 2
        assert says in done.stderr
    copy = damaged_copy(log, tmp_path / "w0", "tile/0/000", lambda d: b"\x00" * len(d))
    assert aegis("ledger", "prove", copy, "--index", "5").returncode == 1
    shutil.rmtree(copy / "tile/0")
    done = aegis("ledger", "prove", copy, "--index", "5")
    assert done.returncode == 1
    assert "tile/0/" in done.stderr


def test_dump_filters_and_survives_a_closed_pipe(log: Path, tmp_path: Path) -> None:
    done = aegis("ledger", "dump", log, "--from", "254", "--to", "258")
    lines = [line.split("\t") for line in done.stdout.splitlines()]
    assert [int(index) for index, _ in lines] == [254, 255, 256, 257]
    assert [entry.encode() for _, entry in lines] == entries(300)[254:258]
    done = aegis("ledger", "dump", log, "--id", request_id(4), "--json")
    assert [json.loads(line)["index"] for line in done.stdout.splitlines()] == [4]
    assert aegis("ledger", "dump", log, "--kind", "settle").stdout == ""
    assert len(aegis("ledger", "dump", log, "--tenant", "acme").stdout.splitlines()) == 300

    big = tmp_path / "big/w0"
    tiles.write_files(big, tiles.signed_log(entries(3000), ORIGIN, SEED))
    with subprocess.Popen(
        [sys.executable, "-m", "aegis_c.cli", "ledger", "dump", str(big)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert b"Traceback" not in process.stderr.read()


def test_several_shards_must_be_named_for_prove(tmp_path: Path) -> None:
    for name in ("w0", "w1"):
        write_log(tmp_path / "ledger" / name, 3)
    done = aegis("ledger", "prove", tmp_path, "--index", "0")
    assert done.returncode == 2
    assert "w1" in done.stderr
    assert aegis("ledger", "fsck", tmp_path).returncode == 0


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data directory with two shards of different keys, and the file of both keys."""
    data = tmp_path_factory.mktemp("shards")
    write_log(data / "ledger/w0", 3)
    other = [
        entry(7, kind="intent", session="s1", model={"asked": "gpt-x"}),
        entry(7, kind="settle", of=0, status="done", time="2026-03-01T00:00:00.000000Z"),
        entry(8, tenant="other", status=429, note="naïve"),
    ]
    seed = b"w1" * 16
    files = tiles.signed_log(other, "aegis.example/test/w1", seed)
    tiles.write_files(data / "ledger/w1", files)
    keys = [(data / "ledger" / name / "log.vkey").read_text() for name in ("w0", "w1")]
    (data / "keys").write_text("\n".join(keys))
    return data


def test_every_tool_takes_the_directory_of_several_shards(shards: Path) -> None:
    for path in (shards, shards / "ledger"):
        done = aegis("ledger", "fsck", path, "--vkey", shards / "keys")
        assert done.returncode == 0, done.stdout
        done = aegis("ledger", "prove", path, "--id", request_id(8), "--json")
        found = json.loads(done.stdout)
        assert (found["shard"], found["index"]) == ("w1", 2)
        lines = aegis("ledger", "dump", path).stdout.splitlines()
        assert [line.split("\t")[:2] for line in lines[2:4]] == [["w0", "2"], ["w1", "0"]]
    other = f"{shards}/ledger/w1/log.vkey"
    assert aegis("ledger", "fsck", shards, "--vkey", other).returncode == 1


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        ([], ["w0 0", "w0 1", "w0 2", "w1 0", "w1 1", "w1 2"]),
        (["--id", request_id(7)], ["w1 0", "w1 1"]),
        (["--session", "s1"], ["w1 0"]),
        (["--model", "gpt-x"], ["w1 0"]),
        (["--status", "429"], ["w1 2"]),
        (["--status", "done", "--kind", "settle"], ["w1 1"]),
        (["--tenant", "other"], ["w1 2"]),
        (["--since", "2026-02"], ["w1 1"]),
        (["--until", "2026-02", "--kind", "call", "--limit", "2"], ["w0 0", "w0 1"]),
        (["--text", "na\\u00efve"], ["w1 2"]),
        (["--tenant", "nobody"], []),
        (["--status", "200", "--text", request_id(1)], ["w0 1"]),
    ],
)
def test_search_finds_in_all_shards(shards: Path, arguments: list[str], found: list[str]) -> None:
    done = aegis("ledger", "search", shards, *arguments)
    assert (done.returncode, done.stderr) == (0, "")
    assert [" ".join(line.split("\t")[:2]) for line in done.stdout.splitlines()] == found
    lines = aegis("ledger", "search", shards, *arguments, "--json").stdout.splitlines()
    objects = [json.loads(line) for line in lines]
    assert [f"{one['shard']} {one['index']}" for one in objects] == found


def test_search_proves_what_it_prints(shards: Path, tmp_path: Path) -> None:
    copy = damaged_copy(
        shards / "ledger/w1",
        tmp_path / "w1",
        "tile/entries/000.p/3",
        lambda d: d.replace(b"429", b"428"),
    )
    done = aegis("ledger", "search", copy, "--status", "428")
    assert done.returncode == 1
    assert "w1, entry 2" in done.stderr
    assert done.stdout == ""


# ---- keys and serve


def test_keys_create_gives_lines_that_the_settings_accept(tmp_path: Path) -> None:
    done = aegis("keys", "create", "--id", "ci", "--tenant", "acme", "--role", "auditor")
    assert done.returncode == 0, done.stderr
    key = re.search(r"key \(shown only now\): (\S+)", done.stdout)
    assert key is not None
    table = tomllib.loads(done.stdout[done.stdout.index("[[keys]]") :])
    (made,) = table["keys"]
    assert made["id"] == "ci"
    assert made["roles"] == ["auditor"]
    from hashlib import sha256

    from aegis_c.gateway.settings import load_settings

    assert made["sha256"] == sha256(key[1].encode()).hexdigest()
    file = tmp_path / "aegis.toml"
    file.write_text(done.stdout[done.stdout.index("[[keys]]") :])
    assert load_settings(file).keys[0].tenant == "acme"
    again = json.loads(aegis("keys", "create", "--json").stdout)
    assert again["key"] != key[1]


@pytest.mark.parametrize("arguments", [["--id", "a b"], ["--role", "king"], ["--tenant", ""]])
def test_keys_create_refuses_what_the_settings_would(arguments: list[str]) -> None:
    done = aegis("keys", "create", *arguments)
    assert done.returncode == 2
    assert arguments[0] in done.stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--config", "missing.toml"], "missing.toml"),
        (["--port", "70000"], "port"),
        (["--upstream", "ftp://x"], "upstream"),
        (["--workers", "0"], "workers"),
        (["--host", "0.0.0.0"], "key"),
        (["--port", "none"], "--port"),
    ],
)
def test_serve_refuses_unusable_settings(tmp_path: Path, arguments: list[str], says: str) -> None:
    done = aegis("serve", "--data", tmp_path / "data", *arguments)
    assert done.returncode == 2, done.stderr
    assert says in done.stderr


def test_serve_answers_and_stops_on_a_signal(tmp_path: Path) -> None:
    """The command as it is deployed; afterwards its ledger is whole."""
    import urllib.request

    command = [sys.executable, "-m", "aegis_c.cli", "serve", "--port", "0", "--data"]
    with subprocess.Popen(
        [*command, str(tmp_path / "data")],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        assert process.stdout is not None
        try:
            address = None
            deadline = time.monotonic() + 60
            while address is None and time.monotonic() < deadline:
                line = process.stdout.readline()
                assert line, "the server ended"
                found = re.search(r"http://127\.0\.0\.1:\d+", line)
                address = found and "listening" in line and found[0]
            with urllib.request.urlopen(f"{address}/health", timeout=10) as reply:
                assert reply.status == 200
        finally:
            process.terminate()
        assert process.wait(30) == 0
    (report,) = fsck.fsck(tmp_path / "data")
    assert report.problems == []
    assert report.size >= 1
