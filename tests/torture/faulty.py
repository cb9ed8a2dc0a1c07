"""Stores that answer wrongly: the job without Ray behind a proxy that spoils a share of all requests."""

import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from random import Random
from typing import get_args

from tests.servers.faults import Fault, FaultProxy, Turns
from tests.torture.publishing import Scene, Stage
from tests.torture.story import PHASES
from tests.torture.tally import Tally

KINDS: tuple[Fault, ...] = (
    "slow_down",
    "internal_error",
    "reset",
    "truncate",
    "lost_reply",
    "short_stall",
    "flip_request",
    "flip_answer",
)
READS, WRITES = ("GET", "HEAD"), ("PUT", "POST")
"""Methods: of an object or a listing, of what is said of an object; of a put, of a deletion."""

Befell = Counter[tuple[str, Fault]]
"""How often which fault came upon which method."""

_WITH_BODY = ("GET", "POST")  # answers to others are empty
_MOST_RUNS = 8
_ENOUGH_FAULTS = 300


class Weather:
    """Which fault befalls a request: the script of a ``FaultProxy``.

    What befalls a request follows from the seed, its method, its path without ids of chance, and how often it came:
    not from when it comes. Answers without a body are reset where they should be truncated. Bits are flipped in objects
    alone: no checksum of S3 covers a listing; where that matters, TLS does.

    Args:
        share: Of all requests, 0 to 1.
        outage_at: Number of the request at which the store goes away; None: never.
        outage_s: For how long.
        kinds: What befalls them, all alike.
    """

    def __init__(
        self,
        seed: object,
        share: float,
        outage_at: int | None = None,
        outage_s: float = 0.0,
        *,
        kinds: Sequence[Fault] = KINDS,
    ) -> None:
        self.seed = seed
        self._turns, self._share, self._kinds = Turns(f"weather {seed}"), share, kinds
        self._outage_at, self._outage_s, self._back_at = outage_at, outage_s, 0.0
        self._lock = threading.Lock()
        self.count = 0
        self.befell: Befell = Counter()

    @property
    def faults(self) -> int:
        """How many there were."""
        return self.befell.total()

    def __call__(self, method: str, path: str) -> Fault | None:
        random = self._turns.next(method, path)
        with self._lock:
            self.count += 1
            if self.count == self._outage_at:
                self._back_at = time.monotonic() + self._outage_s
            fault = self._fault(random, method, path)
            if fault is not None:
                self.befell[method, fault] += 1
        return fault

    def _fault(self, random: Random, method: str, path: str) -> Fault | None:
        if time.monotonic() < self._back_at:
            return "reset"
        if random.random() >= self._share:
            return None
        kind = random.choice(self._kinds)
        if kind == "truncate" and method not in _WITH_BODY:
            return "reset"
        if not kind.startswith("flip"):
            return kind
        flips: dict[str, Fault] = {"PUT": "flip_request", "GET": "flip_answer"}
        return flips.get(method, "reset") if _is_object(path) else "reset"


def _is_object(path: str) -> bool:
    place, _, query = path.partition("?")
    return "/" in place.strip("/") and "list-type" not in query and "delete" not in query


def matrix(befell: Mapping[tuple[str, Fault], int]) -> str:
    """A line a kind of fault, a column a method."""
    methods = (*READS, *WRITES)
    kinds = [kind for kind in get_args(Fault) if any(befell.get((method, kind)) for method in methods)]
    lines = [f"{'':>15}" + "".join(f"{method:>7}" for method in methods)]
    lines += [f"{kind:>15}" + "".join(f"{befell.get((method, kind), 0):7}" for method in methods) for kind in kinds]
    return "\n".join(lines)


def lacking(befell: Mapping[tuple[str, Fault], int]) -> list[str]:
    """Kinds of faults that came upon no read, or upon no write; none are missed before there were enough faults."""
    if sum(befell.values()) < _ENOUGH_FAULTS:
        return []
    ways = [("read", READS, kind) for kind in KINDS if kind != "flip_request"]
    ways += [("write", WRITES, kind) for kind in KINDS if kind != "flip_answer"]
    return [f"no {way} met {kind}" for way, methods, kind in ways if not any(befell.get((m, kind)) for m in methods)]


def spoilt(stage: Stage, upstream: str, seed: int, phase: str, weather: Weather) -> tuple[int, int, list[str]]:
    """Plays one story in some weather; gives the faults that befell it, the runs it took, and what was wrong."""
    runs, wrong = through(stage, stage.scene(seed, phase), upstream, weather)
    return weather.faults, runs, wrong


def through(stage: Stage, scene: Scene, upstream: str, weather: Weather) -> tuple[int, list[str]]:
    """Plays a scene in some weather; gives the runs it took, and what was wrong."""
    with FaultProxy(upstream, weather, weather.seed) as proxy:
        return stage.play_through(scene, proxy.endpoint_url, _MOST_RUNS)


def torture(stage: Stage, upstream: str, stories: int, first_seed: int, share: float) -> tuple[Tally, int, Befell]:
    """Plays stories in all phases at one share of faults; gives the tally of faults, how often a run stopped, and which
    faults came upon which requests."""
    tally = Tally(f"faults of the store, {share:.0%} of all requests, all kinds")
    stops, befell = 0, Befell()
    for seed in range(first_seed, first_seed + stories):
        for phase in PHASES:
            weather = Weather(f"{seed} {phase}", share)

            def play(seed: int = seed, phase: str = phase, weather: Weather = weather) -> tuple[int, list[str]]:
                nonlocal stops
                faults, runs, wrong = spoilt(stage, upstream, seed, phase, weather)
                stops += runs - 1
                if share <= 0.1 and runs > 1:
                    wrong.append(f"stopped {runs - 1} times")
                return faults, wrong

            tally.trial(f"faults --seed {seed} --share {share} --stories 1", play)
            befell += weather.befell
    return tally, stops, befell


def outage(
    stage: Stage, upstream: str, seed: int, outage_s: float, phases: Sequence[str] = PHASES
) -> tuple[Tally, int]:
    """No store at all for a while in the middle of a job of each phase; none may stop."""
    tally = Tally(f"requests in {outage_s:g} s without any store")
    stops = 0
    for phase in phases:

        def play(phase: str = phase) -> tuple[int, list[str]]:
            nonlocal stops
            at = Random(f"outage {seed} {phase}").randint(8, 30)  # behind the first contact, which gives up sooner
            faults, runs, wrong = spoilt(stage, upstream, seed, phase, Weather(f"{seed} {phase}", 0.0, at, outage_s))
            stops += runs - 1
            if runs > 1:
                wrong.append(f"stopped {runs - 1} times")
            return faults, wrong if faults else [*wrong, "no request fell into the outage"]

        tally.trial(f"outage --seed {seed} --seconds {outage_s:g}", play)
    return tally, stops
