"""One driver at a time: only one process plans and publishes a dataset of an output.

A driver puts a claim, waits long enough for a claim of the same second to be visible, and lists: the earliest claim
(store time, then id) whose driver lives works, the others leave. It lists again before the plan and before each
publish. A driver lives while its heartbeat changes; one whose process is gone from this very machine is dead at once.

Another one is only taken for dead when it has been silent for ``LEASE_S``, which is longer than ``GUARDED_S``, the
deadline of a request and the time-out of its last try together. Before it puts anything for good, a driver makes sure
that it has not been silent for longer than ``GUARDED_S``, or else that it was not taken for dead; so what it puts
arrives before anybody takes over. What no store without conditional writes can exclude: a machine that sleeps, or a
single request of which bytes keep trickling, for longer than the lease.
"""

import contextlib
import hashlib
import json
import os
import socket
import threading
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from featlib.errors import StoppedError, TransientError
from featlib.layout import Keys
from featlib.storage import Store

BEAT_S = 5.0
GUARDED_S = 30.0
LEASE_S = 200.0
LOOK_S = 1.0
"""How often a driver that waits looks for a beat of the one before it."""

SETTLE_S = 1.5
"""S3 stamps whole seconds: two claims of one second are told apart by id, so both must be listed."""

_PUT_TRIES = 5
"""A store may stamp a claim with the time at which a slow put began; others have settled by then. So it is put anew."""


@dataclass(frozen=True)
class Host:
    """Where a process runs: enough to say that it is gone."""

    name: str
    boot: str
    pid: int
    started: str

    @classmethod
    def here(cls) -> "Host":
        return cls(socket.gethostname(), _boot(), os.getpid(), _started(os.getpid()) or "")

    @classmethod
    def told(cls, body: bytes) -> "Host | None":
        """Of ``to_json``; None when it says something else, for instance because a bit was flipped."""
        try:
            fields = json.loads(body)
            host = cls(fields["name"], fields["boot"], fields["pid"], fields["started"])
        except (ValueError, KeyError, TypeError):
            return None
        return host if host.to_json() == body else None

    def to_json(self) -> bytes:
        """With its own SHA-256."""
        fields = vars(self)
        digest = hashlib.sha256(json.dumps(fields).encode()).hexdigest()
        return json.dumps({**fields, "sha256": digest}).encode()

    def is_dead(self) -> bool:
        """Whether the process ran on this machine and is gone; False when it cannot be told."""
        if not self.boot or self.boot != _boot():
            return False
        started = _started(self.pid)
        if started is None:
            return _is_gone(self.pid)
        return bool(self.started) and started != self.started


def _now() -> float:
    """Seconds that go on while the machine sleeps, where the system counts them."""
    boot_time = getattr(time, "CLOCK_BOOTTIME", None)
    return time.monotonic() if boot_time is None else time.clock_gettime(boot_time)


def _boot() -> str:
    """This boot of this machine, and its process namespace; empty when the system does not say."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot}:{Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


def _started(pid: int) -> str | None:
    """When a process started, in clock ticks since boot; ``ended`` of one that did; None when it cannot be read."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    fields = stat.rpartition(")")[2].split()
    return "ended" if fields[0] in ("Z", "X") else fields[19]


def _is_gone(pid: int) -> bool:
    """Whether there is no such process. Those of other users may be hidden from ``/proc``, but not from signals."""
    try:
        os.kill(pid, 0)
    except OSError as error:
        return isinstance(error, ProcessLookupError)
    return False


class Claim:
    """This process's claim on a dataset; a context manager that beats and, at the end, gives the claim back.

    Raises:
        StoppedError: Another driver works on this dataset.
    """

    def __init__(self, store: Store, keys: Keys) -> None:
        self._store, self._keys = store, keys
        self.id = uuid.uuid4().hex[:12]
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="featlib-heartbeat", daemon=True)
        self._claimed_at = self._beat_at = 0.0
        self._is_in_doubt = False
        self._beats = 0
        self._beating = threading.Lock()

    def __enter__(self) -> "Claim":
        body = Host.here().to_json()
        for _ in range(_PUT_TRIES):
            self._claimed_at = time.monotonic()
            self._store.put(self._key("claim"), body)
            if time.monotonic() - self._claimed_at < SETTLE_S / 2:
                break
        self._claimed_at = time.monotonic()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join(timeout=2 * BEAT_S)
        try:
            self._remove(self.id)
        except TransientError:
            if error is None:
                raise

    def _key(self, ending: str, driver: str | None = None) -> str:
        return f"{self._keys.drivers}/{driver or self.id}.{ending}"

    def _beat(self) -> None:
        while not self._stop.is_set():
            # A store that is away shows no claims of others either; the next beat tries again. What else it or its
            # client may say (no space, no rights, no fresh credentials) is said of what the job puts, too.
            with contextlib.suppress(Exception):
                self._put_beat()
            self._stop.wait(BEAT_S)

    def _put_beat(self) -> None:
        with self._beating:
            begun = _now()
            if self._beat_at and begun - self._beat_at > GUARDED_S:
                self._is_in_doubt = True
            self._beats += 1
            self._store.put(self._key("alive"), str(self._beats).encode())
            self._beat_at = begun

    def settle(self) -> None:
        """Waits until competing claims must be visible, then makes sure that this driver is the one that works."""
        time.sleep(max(0.0, self._claimed_at + SETTLE_S - time.monotonic()))
        for driver in self._earlier():
            self._outlive(driver)

    def check(self) -> None:
        """Makes sure, without waiting, that no earlier claim has turned up."""
        earlier = self._earlier()
        if earlier:
            raise self._other(earlier[0])

    def guard(self) -> None:
        """Makes sure, before something is put for good, that nobody takes this driver for dead before it arrives.

        Costs nothing while the heart beats. A driver that was cut off or asleep looks whether it was buried meanwhile.

        Raises:
            StoppedError: It was, and another driver works; or the claim was given back.
        """
        if self._stop.is_set():
            raise StoppedError("this driver has given its claim back; run the same command again to go on")
        if _now() - self._beat_at > GUARDED_S:
            self._put_beat()
        if self._is_in_doubt:
            self._is_in_doubt = False  # before the look: the heart may come into doubt anew meanwhile
            try:
                self.check()
            except BaseException:
                self._is_in_doubt = True
                raise

    def _earlier(self) -> list[str]:
        claims = [o for o in self._store.list(self._keys.drivers) if o.key.endswith(".claim")]
        order = sorted((o.modified, o.key.rpartition("/")[2].removesuffix(".claim")) for o in claims)
        ids = [driver for _, driver in order]
        if self.id not in ids:
            raise StoppedError(
                f"the claim of this driver ({self.id}) is gone from {self._store.url}: another driver took over; "
                "run the same command again if none works"
            )
        return [driver for driver in ids[: ids.index(self.id)] if not self._is_dead(driver)]

    def _is_dead(self, driver: str) -> bool:
        try:
            host = Host.told(self._store.get(self._key("claim", driver)))
        except FileNotFoundError:
            return True
        if host is None or not host.is_dead():
            return False
        self._bury(driver)
        return True

    def _outlive(self, driver: str) -> None:
        """Waits for a sign of life of another driver; without one within the lease it is dead.

        Only time in which the store answers counts: while it is away, nobody can beat.
        """
        before, silent_s = self._pulse(driver), 0.0
        while silent_s < LEASE_S:
            looked_at = time.monotonic()
            self._stop.wait(LOOK_S)
            if self._pulse(driver) != before or driver not in self._earlier():
                break
            silent_s += min(time.monotonic() - looked_at, 2 * LOOK_S)
        else:
            self._bury(driver)
            time.sleep(BEAT_S + 2 * LOOK_S)
            if self._pulse(driver):  # it beat while it was buried: it lives, and stops by itself when it sees that
                raise self._other(driver)
            return
        if driver in self._earlier():
            raise self._other(driver)

    def _pulse(self, driver: str) -> bytes:
        try:
            return self._store.get(self._key("alive", driver))
        except FileNotFoundError:
            return b""

    def _bury(self, driver: str) -> None:
        self._remove(driver)

    def _remove(self, driver: str) -> None:
        """The claim goes last: where this is cut, somebody still sees that there is something to remove."""
        self._store.delete([self._key("alive", driver)])
        self._store.delete([self._key("claim", driver)])

    def _other(self, driver: str) -> StoppedError:
        try:
            host = Host.told(self._store.get(self._key("claim", driver)))
        except FileNotFoundError:
            host = None
        where = f" (pid {host.pid} on {host.name})" if host is not None else ""
        return StoppedError(
            f"driver {driver}{where} is at work on dataset {self._keys.dataset} in {self._store.url}; "
            "wait until it ends, then run the same command again"
        )
