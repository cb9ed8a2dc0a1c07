"""Which kills are played, and which kinds of operations they hit."""

import threading
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from random import Random

from tests.torture.doom import Point, points
from tests.torture.publishing import Kill, Scene, Stage
from tests.torture.tally import Tally


class Coverage:
    """Which kinds of operations runs consist of, and before and after which of them runs were killed."""

    def __init__(self) -> None:
        self._there, self._hit = set[str](), set[str]()
        self._lock = threading.Lock()

    def expect(self, operations: Sequence[str]) -> None:
        with self._lock:
            self._there |= {point.kind for point in points(operations)}

    def hit(self, point: Point) -> None:
        with self._lock:
            self._hit.add(point.kind)

    def has(self, kind: str) -> bool:
        return kind in self._hit

    @property
    def missing(self) -> list[str]:
        return sorted(self._there - self._hit)

    def text(self) -> str:
        return f"killed before and after operations of {len(self._hit & self._there)} of {len(self._there)} kinds"


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
) -> None:
    """Plays kills until the tally is full; every third time the next run is killed as well, at one of all operations
    that it takes.

    Args:
        how: Arguments for the command that repeats one.
    """
    coverage.expect(scene.operations)
    for number, kill in enumerate(chosen):
        if tally.is_full:
            return
        operations = _play_one(stage, scene, kill, tally, coverage, how)
        coverage.expect(operations)
        if number % 3 == 2 and operations and not tally.is_full:
            again = random.choice(list(points(operations)))
            _play_one(stage, scene, replace(kill, again=again), tally, coverage, how)


def _play_one(stage: Stage, scene: Scene, kill: Kill, tally: Tally, coverage: Coverage, how: str) -> tuple[str, ...]:
    """Gives the operations of the last run."""
    operations: tuple[str, ...] = ()

    def play() -> tuple[int, list[str]]:
        nonlocal operations
        played = stage.play(scene, kill)
        operations = played.operations
        for point in played.hit:
            coverage.hit(point)
        return len(played.hit), played.wrong

    tally.trial(f"publishing {how}{kill}", play)
    return operations
