"""RateLimiter, Limit, Plan, Decision, Reservation, ConcurrencyLimiter: behaviour and bad input."""

from __future__ import annotations

import gc
import os
import stat
import subprocess
import sys
import threading
import weakref
from pathlib import Path
from typing import Any

import pytest

import aegis_c
from aegis_c import ConcurrencyLimiter, Limit, LimitError, RateLimiter

pytestmark = pytest.mark.native
HOUR = 3600.0


@pytest.fixture(params=["cas", "mutex"])
def limiter(request: pytest.FixtureRequest) -> RateLimiter:
    """A limiter of each kind of slots; a machine without the instruction has only one."""
    if request.param == "cas" and not RateLimiter(slots=16).stats()["cas"]:
        pytest.skip("this CPU has no 128-bit compare-and-swap")
    return RateLimiter(slots=1024, sync=request.param)


def hourly(limiter: RateLimiter, burst: int = 5, name: str = "rph") -> Limit:
    """Slow enough that nothing drains during a test."""
    return limiter.limit(name, rate=burst, per=HOUR, burst=burst)


# ---- limits -----------------------------------------------------------------------------------


def test_acquire_counts_down_and_then_says_how_long_to_wait(limiter: RateLimiter) -> None:
    limit = hourly(limiter)
    assert [limit.acquire("k") for _ in range(5)] == [4, 3, 2, 1, 0]
    wait = -limit.acquire("k")
    assert HOUR / 5 - 60 < wait / 1e9 <= HOUR / 5
    assert limit.acquire("other", 5) == 0
    assert limit.acquire("third", cost=2) == 3
    assert limit.acquire(key="third", cost=2) == 1


def test_str_and_bytes_of_the_same_text_are_one_key(limiter: RateLimiter) -> None:
    limit = hourly(limiter)
    for key in ("a", "ä", "日本", "", "x" * 10_000, "\0"):
        assert limit.acquire(key, 5) == 0
        assert limit.acquire(key.encode()) < 0


def test_names_separate_keys_and_equal_names_share_them(limiter: RateLimiter) -> None:
    a, b, again = hourly(limiter, name="a"), hourly(limiter, name="b"), hourly(limiter, name="a")
    assert a.acquire("k", 5) == 0
    assert b.acquire("k", 5) == 0
    assert again.acquire("k") < 0


def test_check_decides_and_charges_nothing(limiter: RateLimiter) -> None:
    limit = hourly(limiter)
    for _ in range(3):
        decision = limit.check("k", 5)
        assert decision
        assert (decision.allowed, decision.limit, decision.remaining) == (True, 5, 5)
        assert (decision.retry_after, decision.reset_after, decision.name) == (0.0, 0.0, "rph")
        assert decision.each == ()
    limit.acquire("k", 3)
    decision = limit.check("k", 3)
    assert not decision
    assert decision.remaining == 2
    assert decision.retry_after == pytest.approx(HOUR / 5, abs=60)
    assert decision.reset_after == pytest.approx(HOUR * 3 / 5, abs=60)
    assert repr(decision).startswith("Decision(name='rph', allowed=False, limit=5, remaining=2, ")


def test_a_cost_of_zero_charges_nothing_and_is_no_way_round_the_limit(limiter: RateLimiter) -> None:
    limit = hourly(limiter)
    assert limit.acquire("k", 0) == 5
    limit.acquire("k", 5)
    assert limit.acquire("k", 0) < 0
    assert not limit.check("k", 0)
    assert not limit.reserve("k", 0).decision


@pytest.mark.parametrize("cost", [6, 2**63, 2**64, 10**30])
def test_a_cost_above_the_burst_raises(limiter: RateLimiter, cost: int) -> None:
    limit = hourly(limiter)
    for call in (limit.acquire, limit.check, limit.reserve):
        with pytest.raises(LimitError, match=r'never pass the limit "rph"; expected at most') as e:
            call("k", cost)
        assert e.value.advice
    assert limit.acquire("k", 5) == 0


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (("k", -1), ValueError),
        (("k", -(10**30)), ValueError),
        (("k", 1.5), TypeError),
        (("k", float("nan")), TypeError),
        (("k", None), TypeError),
        ((None,), TypeError),
        ((7,), TypeError),
        ((bytearray(b"k"),), TypeError),
        (("\ud800",), UnicodeEncodeError),
        ((), TypeError),
        (("k", 1, 1), TypeError),
    ],
)
def test_bad_arguments_of_acquire(
    limiter: RateLimiter, arguments: tuple[Any, ...], error: type[Exception]
) -> None:
    limit = hourly(limiter)
    for call in (limit.acquire, limit.check):
        with pytest.raises(error):
            call(*arguments)
    with pytest.raises(TypeError):
        limit.acquire("k", price=2)  # type: ignore[call-arg]
    with pytest.raises(TypeError):
        limit.acquire("k", key="k")  # type: ignore[misc]


@pytest.mark.parametrize(
    ("rate", "per", "burst", "error"),
    [
        (0, 1, 1, ValueError),
        (-1, 1, 1, ValueError),
        (1.0, 1, 1, TypeError),
        (float("nan"), 1, 1, TypeError),
        ("1", 1, 1, TypeError),
        (1, 0, 1, ValueError),
        (1, -1.0, 1, ValueError),
        (1, float("nan"), 1, ValueError),
        (1, float("inf"), 1, ValueError),
        (1, 1e-10, 1, ValueError),
        (1, 1e12, 1, ValueError),
        (1, "1", 1, TypeError),
        (1, 1, 0, ValueError),
        (1, 1, -5, ValueError),
        (1, 1, 2.0, TypeError),
        (1, 86400, 10**9, ValueError),  # 86 G seconds to come back
        (1, 1, 2**70, ValueError),
    ],
)
def test_bad_rates(rate: Any, per: Any, burst: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        RateLimiter(slots=16).limit("x", rate=rate, per=per, burst=burst)


def test_a_limit_needs_all_its_numbers() -> None:
    limiter = RateLimiter(slots=16)
    with pytest.raises(TypeError, match="burst"):
        limiter.limit("x", rate=1, per=1)  # type: ignore[call-arg]
    with pytest.raises(TypeError):
        limiter.limit(b"x", rate=1, per=1, burst=1)  # type: ignore[arg-type]
    limit = limiter.limit("x", rate=7, per=0.5, burst=9)
    assert (limit.name, limit.rate, limit.per, limit.burst) == ("x", 7, 0.5, 9)
    assert repr(limit) == "Limit('x', rate=7, per=0.5, burst=9)"


@pytest.mark.parametrize("name", ["Limit", "Plan", "Decision", "Reservation"])
def test_only_a_limiter_makes_these(name: str) -> None:
    with pytest.raises(TypeError, match="cannot create"):
        getattr(aegis_c, name)()


# ---- reservations -----------------------------------------------------------------------------


def test_settle_gives_back_what_was_not_used_and_charges_what_was_used_beyond(
    limiter: RateLimiter,
) -> None:
    limit = hourly(limiter, 1000)
    reservation = limit.reserve("k", 600)
    assert reservation.decision.remaining == 400
    assert (reservation.costs, reservation.settled) == ((600,), False)
    limit.settle(reservation, 100)
    assert reservation.settled
    assert limit.acquire("k", 0) == 900
    reservation = limit.reserve("k", 100)
    limit.settle(reservation, 2000)  # debt: later calls wait for it
    assert limit.acquire("k", 0) < -HOUR * 1e9
    assert limit.check("k").remaining == 0


def test_a_reservation_is_settled_once(limiter: RateLimiter) -> None:
    limit = hourly(limiter, 100)
    reservation = limit.reserve("k", 50)
    limit.settle(reservation, 0)
    for used in (0, 50):
        with pytest.raises(LimitError, match="settled before"):
            limit.settle(reservation, used)
    assert limit.acquire("k", 0) == 100


def test_a_refused_reservation_writes_nothing_and_cannot_be_settled(limiter: RateLimiter) -> None:
    limit = hourly(limiter, 100)
    limit.acquire("k", 60)
    before = limit.check("k", 0).remaining
    reservation = limit.reserve("k", 50)
    assert not reservation.decision.allowed
    assert reservation.decision.retry_after > 0
    with pytest.raises(LimitError, match="refused"):
        limit.settle(reservation, 0)
    assert limit.check("k", 0).remaining == before


def test_settle_refuses_what_is_not_its_own(limiter: RateLimiter) -> None:
    a, b = hourly(limiter, name="a"), hourly(limiter, name="b")
    reservation = a.reserve("k", 1)
    with pytest.raises(ValueError, match="another"):
        b.settle(reservation, 1)
    with pytest.raises(TypeError):
        a.settle(None, 1)  # type: ignore[arg-type]
    for used in (-1, 1.5, None):
        with pytest.raises((TypeError, ValueError)):
            a.settle(reservation, used)  # type: ignore[arg-type]
    a.settle(reservation, 1)  # bad numbers did not use it up


def test_threads_settle_one_reservation_once(limiter: RateLimiter) -> None:
    limit = hourly(limiter, 1000)
    reservation, errors = limit.reserve("k", 100), []
    barrier = threading.Barrier(4)

    def settle() -> None:
        barrier.wait()
        try:
            limit.settle(reservation, 0)
        except LimitError as error:
            errors.append(error)

    threads = [threading.Thread(target=settle) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(errors) == 3
    assert limit.acquire("k", 0) == 1000


# ---- plans ------------------------------------------------------------------------------------


def test_a_plan_reports_the_most_binding_limit_and_each(limiter: RateLimiter) -> None:
    requests, tokens = hourly(limiter, 10, "requests"), hourly(limiter, 1000, "tokens")
    plan = limiter.plan(requests, tokens)
    assert plan.limits == (requests, tokens)
    decision = plan.acquire(("k", "t"), (1, 500))
    assert (decision.allowed, decision.name, decision.remaining) == (True, "tokens", 500)
    assert [(d.name, d.remaining) for d in decision.each] == [("requests", 9), ("tokens", 500)]
    decision = plan.acquire(("k", "t"), (1, 600))
    assert (decision.allowed, decision.name, decision.remaining) == (False, "tokens", 500)
    assert [d.allowed for d in decision.each] == [True, False]
    assert requests.check("k", 0).remaining == 9  # all or nothing
    assert plan.acquire(("k", "t")).remaining == 499


def test_a_plan_reserves_and_settles_each_limit(limiter: RateLimiter) -> None:
    requests, tokens = hourly(limiter, 10, "requests"), hourly(limiter, 1000, "tokens")
    plan = limiter.plan(requests, tokens)
    reservation = plan.reserve(("k", "t"), (1, 500))
    assert reservation.costs == (1, 500)
    plan.settle(reservation, (1, 123))
    assert (requests.check("k", 0).remaining, tokens.check("t", 0).remaining) == (9, 877)
    reservation = plan.reserve(("k", "t"), (1, 500))
    plan.settle(reservation, 0)  # an error before the first byte: all back
    assert (requests.check("k", 0).remaining, tokens.check("t", 0).remaining) == (9, 877)
    with pytest.raises(LimitError, match="settled before"):
        plan.settle(reservation, 0)
    with pytest.raises(ValueError, match="another"):
        requests.settle(plan.reserve(("k", "t"), 1), 1)
    refused = plan.reserve(("k", "t"), (1, 900))
    assert not refused.decision
    with pytest.raises(LimitError, match="refused"):
        plan.settle(refused, 0)


def test_bad_plans(limiter: RateLimiter) -> None:
    a = hourly(limiter)
    other = hourly(RateLimiter(slots=16))
    for limits, error in (((), ValueError), ((a,) * 17, ValueError), ((a, other), ValueError),
                          ((a, None), TypeError)):  # fmt: skip
        with pytest.raises(error):
            limiter.plan(*limits)
    plan = limiter.plan(a, a)
    bad: list[tuple[Any, ...]] = [("kk",), (["k", "k"],), (("k",),), (("k", 1),), ()]
    bad += [(("k", "k"), costs) for costs in ((1,), (1, -1), [1, 1], 1.5)]
    bad += [(("k", "k"), 1, 1)]
    for arguments in bad:
        with pytest.raises((TypeError, ValueError)):
            plan.acquire(*arguments)
    with pytest.raises(LimitError, match='"rph"'):
        plan.acquire(("k", "k"), (1, 6))
    assert a.check("k", 0).remaining == 5


# ---- cases that other gateways got wrong ------------------------------------------------------


def test_five_concurrent_calls_do_not_use_6_6_times_a_limit_of_100(limiter: RateLimiter) -> None:
    """Five calls of 133 tokens each at once: one fits a limit of 150, the others are refused."""
    limit = hourly(limiter, 150)
    barrier, decisions = threading.Barrier(5), []

    def call() -> None:
        barrier.wait()
        decisions.append(limit.reserve("key", 133).decision.allowed)

    threads = [threading.Thread(target=call) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(decisions) == [False] * 4 + [True]


def test_a_settle_of_one_call_leaves_the_charges_of_others(limiter: RateLimiter) -> None:
    limit = hourly(limiter, 1000)
    mine = limit.reserve("shared", 400)
    assert limit.acquire("shared", 500) == 100  # another's
    limit.settle(mine, 0)
    assert limit.acquire("shared", 0) == 500


def test_early_cancels_do_not_evade_the_quota(limiter: RateLimiter) -> None:
    """Streams that end early are charged what was delivered, so ten of 100 are the quota."""
    limit = hourly(limiter, 1000)
    for _ in range(10):
        reservation = limit.reserve("key", 100)
        assert reservation.decision
        limit.settle(reservation, 100)
    assert not limit.reserve("key", 1).decision


def test_counters_do_not_start_anew_at_a_window_boundary() -> None:
    """A bucket has no windows: after its burst, a second's worth per second, and no more."""
    limit = RateLimiter(slots=16).limit("rps", rate=100, per=1.0, burst=10)
    admitted = sum(limit.acquire("k") >= 0 for _ in range(200_000))
    assert admitted < 10 + 100 * 30


# ---- tables -----------------------------------------------------------------------------------


def test_a_full_table_refuses_counts_and_never_admits_twice(limiter: RateLimiter) -> None:
    small = RateLimiter(slots=1, sync="cas" if limiter.stats()["cas"] else "mutex")
    limit = small.limit("x", rate=1, per=HOUR, burst=1)
    admitted = [key for key in map(str, range(200)) if limit.acquire(key) >= 0]
    assert len(admitted) == 16
    assert all(limit.acquire(key) < 0 for key in map(str, range(200)))
    stats = small.stats()
    assert (stats["slots"], stats["live"]) == (16, 16)
    assert stats["full"] >= 184
    reservation = small.limit("y", rate=1, per=HOUR, burst=1).reserve("new", 1)
    assert not reservation.decision
    assert 0 < reservation.decision.retry_after <= HOUR


def test_a_million_keys_would_fit_24_bytes_each() -> None:
    """The load of 1 M keys in 1.5 M slots, at a tenth of the size: nothing is refused."""
    limiter = RateLimiter(slots=150_000)
    limit = limiter.limit("x", rate=1, per=HOUR, burst=1)
    assert all(limit.acquire(f"user-{i}") == 0 for i in range(100_000))
    stats = limiter.stats()
    assert (stats["live"], stats["full"]) == (100_000, 0)
    assert stats["bytes"] <= 24 * 100_000 + 8192


def test_two_limiters_of_one_path_share_the_table(tmp_path: Path) -> None:
    path = tmp_path / "made" / "limits"
    a, b = RateLimiter(path, slots=64), RateLimiter(str(path), slots=9999)
    assert a.path == b.path == str(path)
    assert RateLimiter(slots=16).path is None
    assert a.stats()["slots"] == b.stats()["slots"] == 64  # the file's number
    assert hourly(a).acquire("k", 4) == 1
    assert hourly(b).acquire("k", 4) < 0
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    del a, b
    assert hourly(RateLimiter(os.fsencode(path))).acquire("k", 4) < 0  # and it stays


@pytest.mark.parametrize("make", [RateLimiter, ConcurrencyLimiter])
@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda data: data[:-1], "cut short"),
        (lambda data: data[:100], "too short"),
        (lambda data: b"", "too short"),
        (lambda data: b"#!/bin/sh\n" * 1000, "not a limiter table"),
        (lambda data: data[:8] + b"\x09" + data[9:], "another version"),
        (lambda data: data[:24] + b"\xff" + data[25:], "damaged"),
    ],
)
def test_bad_files_are_named_with_advice(make: Any, damage: Any, says: str, tmp_path: Path) -> None:
    path = tmp_path / "limits"
    make(path, slots=64)
    gc.collect()
    path.write_bytes(damage(path.read_bytes()))
    before = path.read_bytes()
    with pytest.raises(LimitError, match=says) as e:
        make(path, slots=64)
    assert e.value.file == str(path)
    assert e.value.advice is not None
    assert "remove it" in e.value.advice
    assert path.read_bytes() == before  # nothing is overwritten


def test_a_table_of_one_kind_is_not_opened_as_another(tmp_path: Path) -> None:
    path = tmp_path / "limits"
    RateLimiter(path, slots=16)
    with pytest.raises(LimitError, match=r"another kind; in .*; expected concurrency, found"):
        ConcurrencyLimiter(path)
    with pytest.raises(LimitError, match="in another way"):
        RateLimiter(path, sync="mutex" if RateLimiter(path).stats()["cas"] else "cas")


def test_bad_places(tmp_path: Path) -> None:
    def message(path: Any) -> str:
        with pytest.raises(LimitError) as e:
            RateLimiter(path, slots=16)
        assert e.value.advice
        return str(e.value)

    file = tmp_path / "file"
    file.write_text("")
    assert "Not a directory" in message(file / "limits")
    (tmp_path / "d").mkdir()
    assert "Is a directory" in message(tmp_path / "d")
    (tmp_path / "link").symlink_to(file)
    assert "symbolic link" in message(tmp_path / "link")
    wide = tmp_path / "wide"
    wide.mkdir(mode=0o755)
    assert "others can reach" in message(wide / "limits")
    private = tmp_path / "private"
    private.mkdir(mode=0o700)
    RateLimiter(private / "limits", slots=16)
    (private / "limits").chmod(0o640)
    assert "not this user's alone" in message(private / "limits")
    if os.geteuid() == 0:
        (private / "limits").chmod(0o600)
        os.chown(private / "limits", 65534, -1)
        assert "not this user's alone" in message(private / "limits")
        os.chown(private, 65534, -1)
        assert "others can reach" in message(private / "limits")
    for path, error in ((7.5, TypeError), ("a\0b", ValueError)):
        with pytest.raises(error):
            RateLimiter(path)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "options", [{"slots": 0}, {"slots": -1}, {"slots": 1 << 60}, {"sync": "lock"}]
)
def test_bad_options(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        RateLimiter(**options)


def test_a_full_tmpfs_is_an_error_with_advice_and_no_sigbus(tmp_path: Path) -> None:
    code = """
import os, sys
from aegis_c import LimitError, RateLimiter
path = sys.argv[1] + "/limits"
try:
    RateLimiter(path)
except LimitError as error:
    assert "No space left" in str(error) and "fewer slots" in error.advice, error
    assert os.listdir(sys.argv[1]) == []
else:
    sys.exit("opened 16 MiB in 1 MiB")
limit = RateLimiter(path, slots=32768).limit("x", rate=1, per=3600, burst=1)
with open(sys.argv[1] + "/rest", "wb", 0) as rest:  # now the tmpfs is full
    try:
        while rest.write(bytes(4096)):
            pass
    except OSError:
        pass
assert sum(limit.acquire(str(i)) == 0 for i in range(20000)) == 20000
print("fine")
"""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = f"mount -t tmpfs -o size=1m,mode=0700 none {folder}"
    shell = ["unshare", "--map-root-user", "--mount", "sh", "-c", f'{mount} || exit 77; "$@"', "sh"]
    done = subprocess.run(
        [*shell, sys.executable, "-c", code, str(folder)], capture_output=True, text=True
    )
    if done.returncode == 77 or "unshare" in done.stderr:
        pytest.skip(f"this machine lets no user mount a tmpfs: {done.stderr.strip()}")
    assert (done.stdout, done.stderr) == ("fine\n", "")


def test_the_module_does_not_link_libatomic() -> None:
    """Its fallback lock is private to a process: 128-bit operations must not come from there."""
    assert b"libatomic" not in Path(aegis_c._native.__file__).read_bytes()
    code = "import aegis_c; print(open('/proc/self/maps').read())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "_native" in done.stdout
    assert "libatomic" not in done.stdout


def test_objects_keep_what_they_need_and_no_more() -> None:
    class Marker(str):
        __slots__ = ("__weakref__",)

    limiter = RateLimiter(slots=16)
    limit = limiter.limit("x", rate=1, per=1.0, burst=3)
    plan = limiter.plan(limit, limit)
    reservation = plan.reserve(("a", "b"), 1)
    del limiter, limit
    gc.collect()
    plan.settle(reservation, 0)
    assert plan.limits[0].acquire("k") == 2
    key = Marker("key")
    gone = weakref.ref(key)
    plan.limits[0].acquire(key)
    del key
    assert gone() is None


# ---- concurrency ------------------------------------------------------------------------------


def test_enter_and_leave() -> None:
    limiter = ConcurrencyLimiter(slots=64)
    leases = [limiter.enter("k", 3) for _ in range(3)]
    assert all(leases)
    assert len(set(leases)) == 3
    assert limiter.enter("k", 3) == 0
    assert limiter.enter(b"k", 4) > 0
    assert limiter.enter("other", 1) > 0
    assert limiter.count("k") == 4
    assert limiter.leave(leases[0]) is True
    assert limiter.leave(leases[0]) is False
    assert limiter.leave(0) is False
    assert limiter.leave(-5) is False
    assert limiter.count("k") == 3
    assert limiter.reap() == 0
    stats = limiter.stats()
    assert (stats["in_flight"], stats["used"], stats["rows"]) == (4, 2, 1)


def test_a_closed_limiter_gives_back_what_it_held(tmp_path: Path) -> None:
    path = tmp_path / "calls"
    a, b = ConcurrencyLimiter(path, slots=64), ConcurrencyLimiter(path, slots=64)
    assert a.enter("k", 2)
    assert b.enter("k", 2)
    assert not b.enter("k", 2)
    del a
    assert b.enter("k", 2)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (("k",), TypeError),
        (("k", 0), ValueError),
        (("k", -1), ValueError),
        (("k", 1.0), TypeError),
        ((1, 1), TypeError),
        (("k", 1, 1), TypeError),
    ],
)
def test_bad_arguments_of_enter(arguments: tuple[Any, ...], error: type[Exception]) -> None:
    limiter = ConcurrencyLimiter(slots=16)
    with pytest.raises(error):
        limiter.enter(*arguments)
    with pytest.raises(TypeError):
        limiter.leave("1")  # type: ignore[arg-type]
    with pytest.raises(OverflowError):
        limiter.leave(1 << 70)
    for options in ({"slots": 0}, {"workers": 0}, {"workers": 1025}, {"slots": 1 << 40}):
        with pytest.raises(ValueError):  # noqa: PT011
            ConcurrencyLimiter(**options)  # type: ignore[arg-type]


def test_all_rows_taken_is_an_error_with_advice(tmp_path: Path) -> None:
    held = [ConcurrencyLimiter(tmp_path / "calls", workers=2, slots=16) for _ in range(2)]
    with pytest.raises(LimitError, match="all 2 rows") as e:
        ConcurrencyLimiter(tmp_path / "calls")
    assert e.value.advice is not None
    assert "workers=" in e.value.advice
    assert len(held) == 2
