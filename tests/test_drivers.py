"""One driver at a time, whatever becomes of the others."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import pytest

from featlib import drivers
from featlib.drivers import Claim, Host
from featlib.errors import ConfigError, StoppedError
from featlib.layout import Keys
from featlib.storage import Store, StoreOptions, s3
from tests.servers.faults import flipped

KEYS = Keys("d")
LEASE_S = drivers.LEASE_S


@pytest.fixture(autouse=True)
def _short_times(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drivers, "SETTLE_S", 0.05)
    monkeypatch.setattr(drivers, "BEAT_S", 0.1)
    monkeypatch.setattr(drivers, "LEASE_S", 1.2)
    monkeypatch.setattr(drivers, "LOOK_S", 0.1)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "out"))


def _claims(store: Store) -> list[str]:
    return [o.key for o in store.list(KEYS.drivers) if o.key.endswith(".claim")]


def _foreign_claim(store: Store, driver: str, stamp: float = 1.0) -> None:
    store.put(f"{KEYS.drivers}/{driver}.claim", Host("elsewhere", "another machine", 1, "0").to_json())
    os.utime(Path(store.url) / KEYS.drivers / f"{driver}.claim", (stamp, stamp))


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drivers put their claims without having found each other."""
    monkeypatch.setattr(Claim, "_outlive_all", lambda claim: drivers.now())


def test_a_driver_alone_works_and_leaves_nothing_behind(store: Store) -> None:
    with Claim(store, KEYS) as claim:
        claim.settle()
        claim.check()
        assert _claims(store) == [f"{KEYS.drivers}/{claim.id}.claim"]
    assert store.list(KEYS.drivers) == []


def test_the_later_driver_leaves_with_the_name_of_the_earlier(store: Store) -> None:
    with Claim(store, KEYS) as first:
        first.settle()
        with pytest.raises(StoppedError, match=f"driver {first.id}.*pid {os.getpid()}.*dataset d") as caught:
            Claim(store, KEYS).__enter__()
        assert "\n" not in str(caught.value)
        first.confirm()
    assert store.list(KEYS.drivers) == []


@pytest.mark.parametrize("ahead_s", [-60.0, 60.0])
def test_who_finds_a_claim_is_later_whatever_the_clocks_say(
    store: Store, monkeypatch: pytest.MonkeyPatch, ahead_s: float
) -> None:
    """And the one that works never meets a claim that seems to be earlier than its own."""
    outlive, seen = Claim._outlive, list[list[str]]()

    def look(claim: Claim, driver: str) -> None:
        first.confirm()
        seen.append(_claims(store))
        outlive(claim, driver)

    monkeypatch.setattr(Claim, "_outlive", look)
    with Claim(store, KEYS) as first:
        first.settle()
        stamp = time.time() + ahead_s
        os.utime(Path(store.url) / _claims(store)[0], (stamp, stamp))
        with pytest.raises(StoppedError, match=f"driver {first.id}"):
            Claim(store, KEYS).__enter__()
        assert seen == [_claims(store)], "its own only"
        first.confirm()


def test_who_was_slow_to_put_its_claim_looks_anew_who_came_meanwhile(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that has settled before this claim arrived, stamped by a clock that is ahead."""
    put, real, passed, beats = Store.put, drivers.now, list[float](), count()

    def slow(self: Store, key: str, data: bytes) -> None:
        if key.endswith(".claim") and not passed:
            passed.append(10.0)
            _foreign_claim(store, "aaa", stamp=time.time() + 60)
        put(self, key, data)

    monkeypatch.setattr(Store, "put", slow)
    monkeypatch.setattr(drivers, "now", lambda: real() + sum(passed))
    monkeypatch.setattr(Claim, "_pulse", lambda claim, driver: str(next(beats)).encode())
    with pytest.raises(StoppedError, match="driver aaa"):
        Claim(store, KEYS).__enter__()
    assert _claims(store) == [f"{KEYS.drivers}/aaa.claim"]


def test_of_two_that_did_not_find_each_other_the_later_leaves(store: Store, at_once: None) -> None:
    with Claim(store, KEYS) as first, Claim(store, KEYS) as second:
        first.settle()
        with pytest.raises(StoppedError, match=f"driver {first.id}.*pid {os.getpid()}.*dataset d") as caught:
            second.settle()
        assert "\n" not in str(caught.value)
        with pytest.raises(StoppedError, match=first.id):
            second.check()
        first.check()
    assert store.list(KEYS.drivers) == []


def test_other_datasets_do_not_matter(store: Store) -> None:
    with Claim(store, Keys("other")) as other, Claim(store, KEYS) as mine:
        mine.settle()
        other.settle()
        claims = {o.key.rpartition("/")[2] for o in store.list("_featlib") if o.key.endswith(".claim")}
        assert claims == {f"{other.id}.claim", f"{mine.id}.claim"}, "both work at once"


def test_when_the_earlier_ends_the_later_works(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """It ends between two looks of the one that waits for it."""
    monkeypatch.setattr(drivers, "BEAT_S", 1000.0)
    first, looks = Claim(store, KEYS), list[str]()
    pulse = Claim._pulse

    def look(claim: Claim, driver: str) -> bytes:
        looks.append(driver)
        if len(looks) == 2:
            first.__exit__(None, None, None)
        return pulse(claim, driver)

    monkeypatch.setattr(Claim, "_pulse", look)
    first.__enter__()
    with Claim(store, KEYS) as second:
        second.settle()
        second.check()
    assert looks == [first.id] * 2, "it waited for the earlier one, and no longer than that lived"


def test_a_claim_removed_under_our_feet_stops_us(store: Store) -> None:
    with Claim(store, KEYS) as claim:
        claim.settle()
        store.delete(_claims(store))
        with pytest.raises(StoppedError, match="gone"):
            claim.check()


def test_equal_store_times_are_told_apart_by_id(store: Store, at_once: None) -> None:
    with Claim(store, KEYS) as one, Claim(store, KEYS) as two:
        for key in _claims(store):
            os.utime(Path(store.url) / key, (5.0, 5.0))
        first, second = sorted((one, two), key=lambda c: c.id)
        first.check()
        with pytest.raises(StoppedError, match=first.id):
            second.check()


def test_a_claim_of_another_host_that_beats_is_respected(store: Store) -> None:
    _foreign_claim(store, "aaa")
    stop = threading.Event()

    def beat() -> None:
        count = 0
        while not stop.wait(0.05):
            count += 1
            store.put(f"{KEYS.drivers}/aaa.alive", str(count).encode())

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        with pytest.raises(StoppedError, match=r"driver aaa .*elsewhere"):
            Claim(store, KEYS).__enter__()
    finally:
        stop.set()
        thread.join()
    assert f"{KEYS.drivers}/aaa.claim" in _claims(store)


def test_a_claim_of_another_host_that_no_longer_beats_is_taken_over(store: Store) -> None:
    _foreign_claim(store, "aaa")
    store.put(f"{KEYS.drivers}/aaa.alive", b"17")
    with Claim(store, KEYS) as claim:
        claim.settle()
        claim.check()
        assert [o.key for o in store.list(KEYS.drivers) if "/aaa." in o.key] == []


def test_a_driver_that_wakes_up_while_it_is_buried_is_left_alone(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """It beats once more between the last look and the burial: then both stop, rather than both work."""
    _foreign_claim(store, "aaa")
    store.put(f"{KEYS.drivers}/aaa.alive", b"17")
    bury = Claim._bury

    def wake(claim: Claim, driver: str) -> None:
        bury(claim, driver)
        store.put(f"{KEYS.drivers}/{driver}.alive", b"18")

    monkeypatch.setattr(Claim, "_bury", wake)
    with pytest.raises(StoppedError, match="driver aaa"):
        Claim(store, KEYS).__enter__()


def test_time_without_an_answer_of_the_store_is_no_silence(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    _foreign_claim(store, "aaa")
    store.put(f"{KEYS.drivers}/aaa.alive", b"17")
    looks = 0
    pulse = Claim._pulse

    def slow(claim: Claim, driver: str) -> bytes:
        nonlocal looks
        looks += 1
        if looks == 2:
            time.sleep(2 * drivers.LEASE_S)
        return pulse(claim, driver)

    monkeypatch.setattr(Claim, "_pulse", slow)
    with Claim(store, KEYS) as claim:
        claim.settle()
    assert looks > drivers.LEASE_S / (2 * drivers.LOOK_S), "one long wait is worth no more than a short one"


def test_beats_without_a_claim_are_removed(store: Store) -> None:
    """Whoever is told to remove a damaged claim leaves its heartbeat."""
    store.put(f"{KEYS.drivers}/gone.alive", b"17")
    with Claim(store, KEYS) as claim:
        claim.settle()
        assert store.stat(f"{KEYS.drivers}/gone.alive") is None
        assert store.stat(f"{KEYS.drivers}/{claim.id}.claim") is not None
        claim.check()
    assert store.list(KEYS.drivers) == []


def test_a_driver_that_was_silent_looks_before_it_puts(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drivers, "BEAT_S", 1000.0)
    with Claim(store, KEYS) as claim:
        claim.settle()
        store.delete(_claims(store))
        claim.guard()  # it has beaten just now: nobody takes it for dead, whatever the store lists
        monkeypatch.setattr(drivers, "GUARDED_S", 0.0)
        with pytest.raises(StoppedError, match="another driver took over"):
            claim.guard()


@pytest.mark.parametrize("clock", ["_beat_at", "_beat_wall"])
def test_a_beat_after_a_long_silence_takes_no_doubt_away(store: Store, clock: str) -> None:
    """The heart may beat again before anything is put; the driver may have been buried before that all the same. Of a
    machine that was paused only the wall's clock says so."""
    with Claim(store, KEYS) as claim:
        claim.settle()
        with claim._beating:
            setattr(claim, clock, getattr(claim, clock) - 2 * drivers.GUARDED_S)
        store.delete(_claims(store))
        claim._put_beat()
        for _ in range(2):
            with pytest.raises(StoppedError, match="another driver took over"):
                claim.guard()
        _foreign_claim(store, claim.id)  # as if it had never been gone
        claim.guard()
        store.delete(_claims(store))
        claim.guard()  # no doubt any more


def test_a_first_beat_that_comes_late_leaves_doubt(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    claim, real = Claim(store, KEYS), drivers.now
    claim._beating.acquire()
    with claim:
        claim.settle()
        store.delete(_claims(store))
        monkeypatch.setattr(drivers, "now", lambda: real() + 2 * drivers.GUARDED_S)
        claim._beating.release()
        with pytest.raises(StoppedError, match="another driver took over"):
            claim.guard()


def test_a_commit_is_looked_at_though_the_heart_beats(store: Store) -> None:
    """A machine may have been paused, and its clocks know nothing of it."""
    with Claim(store, KEYS) as claim:
        claim.settle()
        claim.confirm()
        store.delete(_claims(store))
        claim.guard()
        with pytest.raises(StoppedError, match="another driver took over"):
            claim.confirm()
    with pytest.raises(StoppedError, match="given its claim back"):
        claim.confirm()


@pytest.mark.parametrize("at", ["put", "beat"])
def test_who_is_stopped_while_it_claims_leaves_no_claim(store: Store, monkeypatch: pytest.MonkeyPatch, at: str) -> None:
    """Its process may live on, as in a notebook; the next driver would wait for it."""
    claim = Claim(store, KEYS)
    owner, name = (Store, "put") if at == "put" else (claim._thread, "start")
    call: Callable[..., None] = getattr(owner, name)

    def interrupted(*arguments: object) -> None:
        call(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(owner, name, interrupted)
    with pytest.raises(KeyboardInterrupt):
        claim.__enter__()
    assert store.list(KEYS.drivers) == []
    assert not claim._thread.is_alive()


def test_a_driver_that_gave_its_claim_back_puts_no_more(store: Store) -> None:
    """A thread of it may still be at work when somebody is impatient."""
    with Claim(store, KEYS) as claim:
        claim.settle()
        claim.guard()
    with pytest.raises(StoppedError, match="given its claim back"):
        claim.guard()


@pytest.mark.parametrize(
    "error", [ConfigError("no rights"), StoppedError("no space left"), RuntimeError("credentials are still expired")]
)
def test_the_heart_outlives_a_put_that_is_refused(
    store: Store, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    beat, beats = Claim._put_beat, list[int]()
    enough = threading.Event()

    def refused_once(claim: Claim) -> None:
        beats.append(1)
        if len(beats) == 2:
            raise error
        beat(claim)
        if len(beats) > 3:
            enough.set()

    monkeypatch.setattr(Claim, "_put_beat", refused_once)
    with Claim(store, KEYS):
        assert enough.wait(20)


def test_no_request_outlives_the_lease() -> None:
    """One that begins as late as the guard allows is given up, and its last try answered, before the lease ends."""
    last_try_s = s3._CONNECT_TIMEOUT_S + s3._READ_TIMEOUT_S
    assert drivers.GUARDED_S + StoreOptions().deadline_s + last_try_s <= LEASE_S


def test_a_claim_that_cannot_be_read_is_not_thought_dead_at_once(store: Store) -> None:
    store.put(f"{KEYS.drivers}/aaa.claim", b"{")
    os.utime(Path(store.url) / f"{KEYS.drivers}/aaa.claim", (1.0, 1.0))
    assert not Claim(store, KEYS)._is_dead("aaa")
    with Claim(store, KEYS) as claim:
        claim.settle()


def test_no_flipped_bit_makes_a_driver_that_lives_dead(store: Store) -> None:
    """Another number of the process, or another time of its start, would."""
    with Claim(store, KEYS) as first:
        path = Path(store.url) / KEYS.drivers / f"{first.id}.claim"
        whole = path.read_bytes()
        other = Claim(store, KEYS)
        for bit in range(8 * len(whole)):
            path.write_bytes(flipped(whole, bit))
            assert not other._is_dead(first.id), f"bit {bit} of {whole!r}"
        path.write_bytes(whole)
        assert Host.told(whole) == Host.here()


_CHILD = """
import sys
from featlib import drivers
from featlib.layout import Keys
from featlib.storage import Store
drivers.SETTLE_S = float(sys.argv[2])
drivers.BEAT_S = 0.2
claim = drivers.Claim(Store(sys.argv[1]), Keys("d"))
print("up", flush=True)
sys.stdin.readline()
try:
    with claim:
        claim.settle()
        print("won", claim.id, flush=True)
        sys.stdin.readline()
except drivers.StoppedError as error:
    print("lost", error, flush=True)
"""


def _child(store: Store, settle_s: float) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", _CHILD, store.url, str(settle_s)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def _say(child: "subprocess.Popen[str]") -> None:
    assert child.stdin is not None
    child.stdin.write("\n")
    child.stdin.flush()


def _hear(child: "subprocess.Popen[str]") -> str:
    assert child.stdout is not None
    return child.stdout.readline().strip()


@pytest.fixture
def children(store: Store) -> Iterator[list["subprocess.Popen[str]"]]:
    started: list[subprocess.Popen[str]] = []
    yield started
    for child in started:
        child.kill()
        child.communicate()


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_a_killed_driver_of_this_host_is_buried_at_once(
    store: Store, children: list["subprocess.Popen[str]"], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drivers, "LEASE_S", 10_000.0)
    child = _child(store, 0.0)
    children.append(child)
    assert _hear(child) == "up"
    _say(child)
    assert _hear(child).startswith("won")
    with pytest.raises(StoppedError):
        Claim(store, KEYS).__enter__()
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert len(_claims(store)) == 1
    with Claim(store, KEYS) as claim:
        claim.settle()
        assert _claims(store) == [f"{KEYS.drivers}/{claim.id}.claim"]


def test_of_eight_that_start_together_one_works(store: Store, children: list["subprocess.Popen[str]"]) -> None:
    children.extend(_child(store, 1.0) for _ in range(8))
    assert [_hear(child) for child in children] == ["up"] * 8
    for child in children:
        _say(child)
    said = [_hear(child) for child in children]
    winners = [text.split()[1] for text in said if text.startswith("won")]
    assert len(winners) == 1, said
    assert sum(text.startswith("lost") for text in said) == 7


def test_a_process_knows_its_own_life(monkeypatch: pytest.MonkeyPatch) -> None:
    here = Host.here()
    assert not here.is_dead()
    assert not Host("x", "another boot", 2**22 - 1, "1").is_dead()
    if here.boot:
        assert Host(here.name, here.boot, here.pid, "another start").is_dead()
    monkeypatch.setattr(drivers, "_boot", lambda: "")
    assert not Host(here.name, "", here.pid, "another start").is_dead()


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_a_process_that_proc_hides_is_not_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    """So are those of other users where /proc is mounted with hidepid; signals tell whether there is one."""
    here = Host.here()
    monkeypatch.setattr(drivers, "_started", lambda pid: None)
    assert not here.is_dead()
    assert Host(here.name, here.boot, 2**22 - 1, "1").is_dead(), "no process has this number"

    def not_ours(pid: int, number: int) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "kill", not_ours)
    assert not Host(here.name, here.boot, 2**22 - 1, "1").is_dead()
