"""Stores that answer wrongly: the job without Ray behind a proxy that spoils a share of all requests."""

import threading
import time
from collections.abc import Sequence
from random import Random

from tests.servers.faults import Fault, FaultProxy
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
_MOST_RUNS = 8


class Weather:
    """Which fault befalls a request: the script of a ``FaultProxy``.

    Bits are flipped in objects alone: no checksum of S3 covers a listing; where that matters, TLS does.

    Args:
        share: Of all requests, 0 to 1.
        kinds: What befalls them, all alike.
        outage_at: Number of the request at which the store goes away; None: never.
        outage_s: For how long.
    """

    def __init__(
        self,
        seed: int,
        share: float,
        outage_at: int | None = None,
        outage_s: float = 0.0,
        *,
        kinds: Sequence[Fault] = KINDS,
    ) -> None:
        self._random, self._share, self._kinds = Random(f"weather {seed}"), share, kinds
        self._outage_at, self._outage_s, self._back_at = outage_at, outage_s, 0.0
        self._lock = threading.Lock()
        self.count = 0
        self.faults = 0

    def __call__(self, method: str, path: str) -> Fault | None:
        with self._lock:
            self.count += 1
            if self.count == self._outage_at:
                self._back_at = time.monotonic() + self._outage_s
            fault = self._fault(method, path)
            self.faults += fault is not None
        return fault

    def _fault(self, method: str, path: str) -> Fault | None:
        if time.monotonic() < self._back_at:
            return "reset"
        if self._random.random() >= self._share:
            return None
        kind = self._random.choice(self._kinds)
        if kind == "truncate" and method != "GET":  # other answers have no body
            return "reset"
        if not kind.startswith("flip"):
            return kind
        flips: dict[str, Fault] = {"PUT": "flip_request", "GET": "flip_answer"}
        return flips.get(method, "reset") if _is_object(path) else "reset"


def _is_object(path: str) -> bool:
    place, _, query = path.partition("?")
    return "/" in place.strip("/") and "list-type" not in query and "delete" not in query


def spoilt(stage: Stage, upstream: str, seed: int, phase: str, weather: Weather) -> tuple[int, int, list[str]]:
    """Plays one story in some weather; gives the faults that befell it, the runs it took, and what was wrong."""
    runs, wrong = through(stage, stage.scene(seed, phase), upstream, weather)
    return weather.faults, runs, wrong


def through(stage: Stage, scene: Scene, upstream: str, weather: Weather) -> tuple[int, list[str]]:
    """Plays a scene in some weather; gives the runs it took, and what was wrong."""
    with FaultProxy(upstream, weather) as proxy:
        return stage.play_through(scene, proxy.endpoint_url, _MOST_RUNS)


def torture(stage: Stage, upstream: str, stories: int, first_seed: int, share: float) -> tuple[Tally, int]:
    """Plays stories in all phases at one share of faults; gives the tally of faults, and how often a run stopped."""
    tally = Tally(f"faults of the store, {share:.0%} of all requests, all kinds")
    stops = 0
    for seed in range(first_seed, first_seed + stories):
        for phase in PHASES:
            faults, runs, wrong = spoilt(stage, upstream, seed, phase, Weather(seed, share))
            stops += runs - 1
            if share <= 0.1 and runs > 1:
                wrong.append(f"stopped {runs - 1} times")
            tally.add(f"faults --seed {seed} --share {share} --stories 1", faults, wrong)
    return tally, stops


def outage(
    stage: Stage, upstream: str, seed: int, outage_s: float, phases: Sequence[str] = PHASES
) -> tuple[Tally, int]:
    """No store at all for a while in the middle of a job of each phase; none may stop."""
    tally = Tally(f"requests in {outage_s:g} s without any store")
    stops = 0
    for phase in phases:
        at = Random(f"outage {seed} {phase}").randint(8, 30)  # behind the first contact, which gives up sooner
        faults, runs, wrong = spoilt(stage, upstream, seed, phase, Weather(seed, 0.0, at, outage_s))
        stops += runs - 1
        if runs > 1:
            wrong.append(f"stopped {runs - 1} times")
        if not faults:
            wrong.append("no request fell into the outage")
        tally.add(f"outage --seed {seed} --seconds {outage_s:g}", faults, wrong)
    return tally, stops
