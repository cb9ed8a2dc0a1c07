"""One driver at a time: only one process plans and publishes a dataset of an output.

A driver lists, and leaves where another one lives; so it is later than all whom it finds, whatever the clocks say that
stamp claims. Else it puts a claim, waits long enough for a claim of the same second to be visible, and lists again:
of those that did not find each other the earliest (store time, then id) whose driver lives works, the others leave.
A driver lives while its heartbeat changes; one whose process is gone from this very machine is dead at once.

Another one is only taken for dead when it has been silent for ``LEASE_S``, which is longer than ``GUARDED_S``, the
deadline of a request and the time-out of its last try together. Before it puts anything for good, a driver makes sure
that it has not been silent for longer than ``GUARDED_S``, or else that it was not taken for dead; so what it puts
arrives before anybody takes over. Before a commit, and before it removes anything, it always looks: a machine that was
paused does not know it before somebody sets its clock. What no store without conditional writes can exclude: a machine
that sleeps between that look and the end of its request, or a single request of which bytes keep trickling, for longer
than the lease.
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
from featlib.storage.retry import now

BEAT_S = 5.0
GUARDED_S = 30.0
LEASE_S = 200.0
LOOK_S = 1.0
"""How often a driver that waits looks for a beat of the one before it."""

SETTLE_S = 1.5
"""S3 stamps whole seconds: two claims of one second are told apart by id, so both must be listed."""

_PUT_TRIES = 5
"""A store may stamp a claim with the time at which a slow put began; others have settled by then. So it is taken back
and put anew."""


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
        self._claimed_at = 0.0
        self._beat_at = self._beat_wall = 0.0  # by ``now`` and by the clock of the wall
        self._is_in_doubt = False
        self._beats = 0
        self._beating = threading.Lock()

    def __enter__(self) -> "Claim":
        try:
            self._put_claim()
            self._thread.start()
        except BaseException:  # of a process that lives on, as in a notebook, a claim left behind would be waited for
            with contextlib.suppress(Exception):
                self._give_back()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._give_back()
        except TransientError:
            if error is None:
                raise

    def _give_back(self) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout=2 * BEAT_S)
        self._remove(self.id)

    def _put_claim(self) -> None:
        body = Host.here().to_json()
        for number in range(_PUT_TRIES):
            if number:
                self._remove(self.id)
            alone_at = self._outlive_all()
            self._sign_of_life(now(), time.time())
            self._store.put(self._key("claim"), body)
            if now() - alone_at < SETTLE_S / 2:
                break
        self._claimed_at = now()

    def _outlive_all(self) -> float:
        """Waits until nobody has a claim; gives the time before the listing that showed it.

        Raises:
            StoppedError: Another driver lives.
        """
        while True:
            listed_at = now()
            others = [driver for driver in self._claims() if not self._is_dead(driver)]
            if not others:
                return listed_at
            for driver in others:
                self._outlive(driver)

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
            begun = now(), time.time()
            if self._is_silent():
                self._is_in_doubt = True
            self._beats += 1
            self._store.put(self._key("alive"), str(self._beats).encode())
            self._sign_of_life(*begun)

    def _sign_of_life(self, at: float, wall: float) -> None:
        """Notes when the store was last shown that this driver lives: by its claim, then by its beats."""
        self._beat_at, self._beat_wall = at, wall

    def _is_silent(self) -> bool:
        """Whether the last sign of life is long ago. While a machine is paused only the wall's clock goes on, once it
        is set right."""
        return max(now() - self._beat_at, time.time() - self._beat_wall) > GUARDED_S

    def settle(self) -> None:
        """Waits until competing claims must be visible, then makes sure that this driver is the one that works."""
        time.sleep(max(0.0, self._claimed_at + SETTLE_S - now()))
        earlier = self._earlier()
        for driver in earlier:
            self._outlive(driver)
        if earlier:
            self.check()
        self._remove_beats()

    def _remove_beats(self) -> None:
        """Those of drivers whose claim is gone: somebody removed a damaged one, or a late beat came behind it."""
        keys = [o.key for o in self._store.list(self._keys.drivers)]
        claimed = {key.removesuffix(".claim") for key in keys if key.endswith(".claim")}
        beats = [key for key in keys if key.endswith(".alive") and key.removesuffix(".alive") not in claimed]
        if beats:
            self._store.delete(beats)

    def check(self) -> None:
        """Makes sure, without waiting, that the claim stands and no earlier one has turned up."""
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
        if self._is_silent():
            self._put_beat()
        if self._is_in_doubt:
            self._is_in_doubt = False  # before the look: the heart may come into doubt anew meanwhile
            try:
                self.check()
            except BaseException:
                self._is_in_doubt = True
                raise

    def confirm(self) -> None:
        """``guard`` with a look at the store, whatever the clocks say: before a commit, and before anything is removed.

        Raises:
            StoppedError: As ``guard`` and ``check``.
        """
        self.guard()
        self.check()

    def _claims(self) -> list[str]:
        """Ids of all drivers with a claim, the earliest first."""
        claims = [o for o in self._store.list(self._keys.drivers) if o.key.endswith(".claim")]
        order = sorted((o.modified, o.key.rpartition("/")[2].removesuffix(".claim")) for o in claims)
        return [driver for _, driver in order]

    def _earlier(self) -> list[str]:
        ids = self._claims()
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
            if self._pulse(driver) != before or self._is_dead(driver):
                break
            silent_s += min(time.monotonic() - looked_at, 2 * LOOK_S)
        else:
            self._bury(driver)
            time.sleep(BEAT_S + 2 * LOOK_S)
            if self._pulse(driver):  # it beat while it was buried: it lives, and stops by itself when it sees that
                raise self._other(driver)
            return
        if not self._is_dead(driver):
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
