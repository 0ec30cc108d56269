"""The Ledger and Commitment types from Python: formulas, stages, threads, forks, endings."""

from __future__ import annotations

import base64
import hmac
import json
import os
import select
import signal
import subprocess
import sys
import textwrap
import threading
import uuid
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

import aegis_c
from native import SECRET, entry_meta, filled_ledger

pytestmark = pytest.mark.native


def twin(
    secret: bytes, identity: uuid.UUID, role: Literal["request", "response"], body: bytes
) -> tuple[bytes, bytes]:
    """(salt, commitment) as docs/formats.md defines them."""
    label = b"aegis/salt/v1" + identity.bytes + role.encode().ljust(8, b"\0")
    salt = hmac.digest(secret, label, "sha256")
    return salt, hmac.digest(salt, body, "sha256")


@given(
    secret=st.binary(min_size=1, max_size=100),
    identity=st.uuids(),
    role=st.sampled_from(["request", "response"]),
    chunks=st.lists(st.binary(max_size=300), max_size=8),
)
def test_commitment_equals_its_twin(
    secret: bytes, identity: uuid.UUID, role: Literal["request", "response"], chunks: list[bytes]
) -> None:
    body = b"".join(chunks)
    salt, digest = twin(secret, identity, role, body)
    for form in (str(identity), identity.bytes):
        commitment = aegis_c.Commitment(secret, form, role)
        for chunk in chunks:
            commitment.update(chunk)
        assert commitment.finish() == (len(body), digest)
        assert commitment.finish() == (len(body), digest)
        assert commitment.salt == salt


def test_commitment_from_many_threads_takes_every_octet() -> None:
    commitment = aegis_c.Commitment(SECRET, b"i" * 16, "request")
    chunk = b"\0" * 30_000

    def work() -> None:
        for _ in range(50):
            commitment.update(chunk)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    size = 8 * 50 * len(chunk)
    expected = twin(SECRET, uuid.UUID(bytes=b"i" * 16), "request", b"\0" * size)[1]
    assert commitment.finish() == (size, expected)


def test_submit_finishes_the_entry(tmp_path: Path) -> None:
    identity = uuid.UUID(int=5)
    meta = json.dumps({"v": 1, "id": str(identity), "é": "ü"}, ensure_ascii=False).encode()
    with aegis_c.Ledger(tmp_path / "log") as ledger:
        request = ledger.commitment(str(identity), "request", secret=SECRET)
        request.update(b"question")
        ledger.submit(meta, request, None)
        ledger.submit(meta, b"question", b"answer", secret=SECRET)
        ledger.submit(meta)
        ledger.wait(2, "integrated", 30)
        expected = {
            role: {
                "bytes": len(body),
                "commitment": base64.b64encode(twin(SECRET, identity, role, body)[1]).decode(),
            }
            for role, body in (("request", b"question"), ("response", b"answer"))
        }
        first, second, third = (json.loads(ledger.entry(i)) for i in range(3))
        plain = json.loads(meta)
        assert first == plain | {"request": expected["request"]}
        assert second == plain | expected
        assert third == plain
        assert list(second) == ["v", "id", "é", "request", "response"]
        with pytest.raises(ValueError, match="finished"):
            request.update(b"more")


def test_an_empty_secret_is_refused(tmp_path: Path) -> None:
    identity = str(uuid.uuid4())
    with aegis_c.Ledger(tmp_path / "w0") as ledger:
        with pytest.raises(ValueError, match="secret is empty"):
            ledger.commitment(identity, "request", secret=b"")
        with pytest.raises(ValueError, match="secret is empty"):
            ledger.salt(identity, "request", secret=b"")
        with pytest.raises(ValueError, match="secret is empty"):
            ledger.submit(entry_meta(0), b"question", secret=b"")
        assert len(ledger) == 0


@pytest.mark.parametrize("option", ["publish_gap_us", "publish_max_us"])
def test_publishing_is_not_put_off_for_ever(tmp_path: Path, option: str) -> None:
    with pytest.raises(ValueError, match="more than a day"):
        aegis_c.Ledger(tmp_path / "w0", **{option: -1})  # type: ignore[arg-type]


def test_the_default_secret_is_kept(tmp_path: Path) -> None:
    identity = str(uuid.UUID(int=6))
    with aegis_c.Ledger(tmp_path / "log") as ledger:
        salt = ledger.salt(identity, "request")
        assert ledger.commitment(identity, "request").salt == salt
        assert ledger.salt(identity, "response") != salt
        assert ledger.salt(identity, "request", secret=SECRET) != salt
    secret_file = tmp_path / "log.private" / "subject.secret"
    assert secret_file.stat().st_mode & 0o777 == 0o600
    assert twin(secret_file.read_bytes(), uuid.UUID(int=6), "request", b"")[0] == salt
    with aegis_c.Ledger(tmp_path / "log") as ledger:
        assert ledger.salt(identity, "request") == salt


def test_stages_move_in_order_and_wake_the_descriptor(tmp_path: Path) -> None:
    with aegis_c.Ledger(tmp_path / "log", publish_gap_us=0) as ledger:
        assert not select.select([ledger.fileno()], [], [], 0)[0]
        for n in range(600):
            assert ledger.submit(entry_meta(n)) == n
        ledger.want(599, "published")
        sizes = (0, 0, 0)
        while sizes[2] < 600:
            assert select.select([ledger.fileno()], [], [], 30)[0], "no wake-up"
            seen = ledger.drain()
            assert all(new >= old for new, old in zip(seen, sizes, strict=True))
            assert seen[0] >= seen[1] >= seen[2]
            sizes = seen
        ledger.drain()
        assert not select.select([ledger.fileno()], [], [], 0)[0]
        assert (ledger.size, *sizes) == (600, 600, 600, 600)
        assert len(ledger) == 600


def test_an_entry_that_nobody_awaits_becomes_durable_soon(tmp_path: Path) -> None:
    with aegis_c.Ledger(tmp_path / "log", max_delay_us=1000) as ledger:
        ledger.submit(b"{}")
        assert select.select([ledger.fileno()], [], [], 30)[0]
        assert ledger.durable_size == 1


def test_submit_from_many_threads(tmp_path: Path) -> None:
    seen: list[list[int]] = [[] for _ in range(8)]
    with aegis_c.Ledger(tmp_path / "log") as ledger:

        def work(mine: list[int]) -> None:
            mine.extend(ledger.submit(entry_meta(n), b"q", b"r") for n in range(200))

        threads = [threading.Thread(target=work, args=(mine,)) for mine in seen]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(i for mine in seen for i in mine) == list(range(1600))
        assert all(mine == sorted(mine) for mine in seen)
        ledger.wait(1599, "published", 60)
        for mine in seen:
            numbers = [json.loads(ledger.entry(i))["n"] for i in mine]
            assert numbers == list(range(200))


def test_a_full_ring_refuses_and_recovers(tmp_path: Path) -> None:
    """Entries of the largest size fill a small ring faster than any disk takes them."""
    large = b'{"a":"' + b"x" * 65_000 + b'"}'
    with aegis_c.Ledger(tmp_path / "log", ring_bytes=256 << 10) as ledger:
        with pytest.raises(aegis_c.LedgerFull, match="no room"):
            all(ledger.submit(large) >= 0 for _ in range(100_000))
        taken = len(ledger)
        assert taken >= 3
        assert len(ledger) == taken
        ledger.wait(taken - 1, "integrated", 60)
        assert ledger.submit(large) == taken
    with aegis_c.Ledger(tmp_path / "log") as ledger:
        assert len(ledger) == taken + 1


def test_a_closed_ledger_says_so(tmp_path: Path) -> None:
    ledger = filled_ledger(tmp_path, 3)
    ledger.close()
    ledger.close()
    for call in (
        lambda: ledger.submit(b"{}"),
        lambda: ledger.size,
        lambda: len(ledger),
        ledger.drain,
        lambda: ledger.entry(0),
    ):
        with pytest.raises(aegis_c.LedgerError, match="closed"):
            call()


def test_close_while_other_threads_work(tmp_path: Path) -> None:
    ledger = aegis_c.Ledger(tmp_path / "log")
    accepted: list[int] = []
    endings: list[str] = []

    def work() -> None:
        while True:
            try:
                accepted.append(ledger.submit(b"{}"))
            except aegis_c.LedgerFull:
                pass
            except aegis_c.LedgerError as error:
                endings.append(str(error))
                return

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    while len(accepted) < 500:
        pass
    ledger.close()
    for thread in threads:
        thread.join()
    assert endings == ["ledger is closed"] * 4
    with aegis_c.Ledger(tmp_path / "log") as again:
        assert len(again) == len(accepted)


@pytest.mark.forks
def test_fork(tmp_path: Path) -> None:
    script = textwrap.dedent(
        """
        import os, sys, aegis_c
        ledger = aegis_c.Ledger(sys.argv[1])
        ledger.submit(b"{}")
        child = os.fork()
        if child == 0:
            try:
                ledger.submit(b"{}")
            except aegis_c.LedgerError as error:
                assert "parent" in str(error), error
                ledger.close()
                sys.exit(7)
            sys.exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
        ledger.submit(b"{}")
        ledger.close()
        """
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path / "log")], check=True, timeout=60)
    with aegis_c.Ledger(tmp_path / "log") as ledger:
        assert len(ledger) == 2


@pytest.mark.parametrize("ending", ["return", "raise", "os._exit", "kill"])
def test_ends_of_a_process(tmp_path: Path, ending: str) -> None:
    """However a process ends, everything that submit returned is there afterwards."""
    script = textwrap.dedent(
        f"""
        import os, signal, sys, aegis_c
        ledger = aegis_c.Ledger(sys.argv[1])
        for n in range(1000):
            ledger.submit(b"{{}}")
        ledger.wait(499, "durable", 30)
        print(ledger.durable_size, flush=True)
        match {ending!r}:
            case "raise": raise SystemExit(3)
            case "os._exit": os._exit(0)
            case "kill": os.kill(os.getpid(), signal.SIGKILL)
        """
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script, str(tmp_path / "log")],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == {"raise": 3, "kill": -signal.SIGKILL}.get(ending, 0), done.stderr
    assert int(done.stdout) >= 500
    with aegis_c.Ledger(tmp_path / "log") as ledger:
        assert len(ledger) == 1000
        assert ledger.stats()["ring_lost"] is False


def test_where_things_lie_and_with_which_modes(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        filled_ledger(tmp_path, 300).close()
    finally:
        os.umask(before)
    found = {
        str(path.relative_to(tmp_path)): oct(path.stat().st_mode & 0o7777)
        for path in sorted(tmp_path.rglob("*"))
        if ".p/" not in str(path) and not path.name.endswith(".p")
    }
    # The spare segment: there when the helper thread was quicker than the end.
    assert found.pop("private/w0/wal/wal-0000000000000002.seg", "0o600") == "0o600"
    assert found == {
        "ledger": "0o750",
        "ledger/w0": "0o750",
        "ledger/w0/checkpoint": "0o640",
        "ledger/w0/log.vkey": "0o640",
        "ledger/w0/tile": "0o750",
        "ledger/w0/tile/0": "0o750",
        "ledger/w0/tile/0/000": "0o640",
        "ledger/w0/tile/1": "0o750",
        "ledger/w0/tile/entries": "0o750",
        "ledger/w0/tile/entries/000": "0o640",
        "private": "0o700",
        "private/w0": "0o700",
        "private/w0/LOCK": "0o600",
        "private/w0/checkpoint": "0o600",
        "private/w0/ids": "0o700",
        "private/w0/ids/00000000.tail": "0o600",
        "private/w0/identity": "0o600",
        "private/w0/log.key": "0o600",
        "private/w0/subject.secret": "0o600",
        "private/w0/wal": "0o700",
        "private/w0/wal/LOCK": "0o600",
        "private/w0/wal/LOG": "0o600",
        "private/w0/wal/wal-0000000000000001.seg": "0o600",
    }


def test_arguments_of_the_constructor(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="origin"):
        aegis_c.Ledger(tmp_path / "log", origin="has space")
    with aegis_c.Ledger(
        tmp_path / "a", origin="example.org/a", private=tmp_path / "p", key=tmp_path / "k.pem"
    ) as ledger:
        assert ledger.origin == "example.org/a"
        assert ledger.vkey.startswith("example.org/a+")
        assert ledger.path == str(tmp_path / "a")
        assert (tmp_path / "k.pem").exists()
        assert (tmp_path / "p" / "identity").exists()
    with pytest.raises(aegis_c.LedgerError, match="another origin") as caught:
        aegis_c.Ledger(
            tmp_path / "a", origin="example.org/b", private=tmp_path / "p", key=tmp_path / "k.pem"
        )
    assert (caught.value.expected, caught.value.found) == ("example.org/b", "example.org/a")
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(aegis_c.LedgerError, match="mkdir"):
        aegis_c.Ledger(tmp_path / "file" / "log")


def test_the_key_itself_in_place_of_a_file(tmp_path: Path) -> None:
    """It signs like the file that it came from, and is refused as such; no file is made of it."""

    def opened(name: str, pem: str) -> aegis_c.Ledger:
        return aegis_c.Ledger(tmp_path / name, private=tmp_path / "p" / name, key_pem=pem)

    with aegis_c.Ledger(tmp_path / "a", private=tmp_path / "p" / "a") as ledger:
        vkey = ledger.vkey
    file = tmp_path / "p" / "a" / "log.key"
    pem = file.read_text()
    file.unlink()
    with opened("a", pem) as ledger:
        assert ledger.vkey == vkey
        ledger.submit(b"{}")
        ledger.wait(0, "published")
    assert not file.exists()
    with opened("new", pem) as ledger:
        assert ledger.vkey.rpartition("+")[2] == vkey.rpartition("+")[2]  # the same key
    assert not (tmp_path / "p" / "new" / "log.key").exists()
    with aegis_c.Ledger(tmp_path / "b", private=tmp_path / "p" / "b"):
        pass
    other = (tmp_path / "p" / "b" / "log.key").read_text()
    for wrong, says in ((other, "another log"), (pem[:60], "PEM"), ("", "PEM")):
        with pytest.raises(aegis_c.LedgerError, match=says) as caught:
            opened("a", wrong)
        assert pem.splitlines()[1] not in str(caught.value)
        assert getattr(caught.value, "advice", "")
    with pytest.raises(aegis_c.AegisError, match="never made anew"):
        aegis_c.Ledger(tmp_path / "a", private=tmp_path / "p" / "a")
