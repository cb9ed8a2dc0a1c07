"""Which kills are played, and which kinds of operations they hit."""

import threading
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from random import Random

from tests.torture.doom import Point, points
from tests.torture.publishing import Kill, Played, Scene, Stage
from tests.torture.tally import Tally


class Coverage:
    """Which kinds of operations runs consist of, and before and after which of them runs of which seeds were killed."""

    def __init__(self) -> None:
        self._there, self._hit = set[str](), dict[str, set[int]]()
        self._lock = threading.Lock()

    def expect(self, operations: Sequence[str]) -> None:
        with self._lock:
            self._there |= {point.kind for point in points(operations)}

    def hit(self, point: Point, seed: int) -> None:
        with self._lock:
            self._hit.setdefault(point.kind, set()).add(seed)

    def has(self, kind: str) -> bool:
        return kind in self._hit

    @property
    def missing(self) -> list[str]:
        return sorted(self._there - self._hit.keys())

    def text(self) -> str:
        seeds = min((len(self._hit.get(kind, ())) for kind in self._there), default=0)
        hit = len(self._there & self._hit.keys())
        return f"killed before and after operations of {hit} of {len(self._there)} kinds, each in {seeds} seeds or more"


def kills(scene: Scene, random: Random, coverage: Coverage) -> list[Kill]:
    """Every operation of a scene, before and after: kinds that were not hit yet first, one of each kind before a second
    of any, otherwise in an order of chance."""
    order = list(points(scene.operations))
    random.shuffle(order)
    seen, ranks = Counter[str](), dict[Point, tuple[bool, int]]()
    for point in order:
        ranks[point] = coverage.has(point.kind), seen[point.kind]
        seen[point.kind] += 1
    return [Kill(scene.story.seed, scene.story.phase, point) for point in sorted(order, key=ranks.__getitem__)]


def torture(
    stage: Stage,
    scene: Scene,
    chosen: Iterable[Kill],
    random: Random,
    tally: Tally,
    coverage: Coverage,
    how: str = "",
    *,
    is_whole: bool = False,
) -> set[Point]:
    """Plays kills until the tally is full; every third time the next run is killed as well, at one of all operations
    that it takes, and every third time a run that neither retries nor replaces comes before the next.

    Args:
        how: Arguments for the command that repeats one.
        is_whole: All of them, however full the tally is.

    Returns:
        Where the first run of each was killed.
    """
    hit = set[Point]()
    coverage.expect(scene.operations)
    for number, kill in enumerate(chosen):
        if tally.is_full and not is_whole:
            break
        played = _play_one(stage, scene, replace(kill, is_plain=kill.is_plain or number % 3 == 1), tally, coverage, how)
        hit |= {kill.at} & set(played.hit)
        coverage.expect(played.operations)
        if number % 3 == 2 and played.operations and (is_whole or not tally.is_full):
            again = random.choice(list(points(played.operations)))
            _play_one(stage, scene, replace(kill, again=again), tally, coverage, how)
    return hit


def _play_one(stage: Stage, scene: Scene, kill: Kill, tally: Tally, coverage: Coverage, how: str) -> Played:
    played = Played((), [])

    def play() -> tuple[int, list[str]]:
        nonlocal played
        played = stage.play(scene, kill)
        for point in played.hit:
            coverage.hit(point, kill.seed)
        return len(played.hit), played.wrong

    tally.trial(f"publishing {how}{kill}", play)
    return played
