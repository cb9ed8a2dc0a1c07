"""``python -m tests.torture``: the long version of what ``make test`` does a little of.

python -m tests.torture                                     # everything, as make torture
python -m tests.torture publishing --kills 900 --seed 0
python -m tests.torture publishing --seed 3 --phase grown --at 17 --after    # one kill, as a failure names it
python -m tests.torture faults --share 0.1 --stories 5
python -m tests.torture outage --seconds 60
python -m tests.torture rivals --kills 20                   # drivers started on one output at once, on every store
python -m tests.torture sleepers --kills 20                 # drivers that wake up when another has taken over
python -m tests.torture flips --kills 1000
python -m tests.torture job --kills 100
python -m tests.torture mutants --seed 4711 --kills 1
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from random import Random

from tests.servers import others
from tests.servers.swift import SwiftServer, user_environment
from tests.torture import faulty, flips, job, mutants
from tests.torture.publishing import Kill, Scene, Stage, Tellers, kills, stage_in
from tests.torture.story import PHASES
from tests.torture.tally import Tally

_KILLS_A_SCENE = 30
_SWIFT_SHARE = 10  # one kill in so many is played on an object store
_WITH_WORK = PHASES[:2]  # of any seed; the others may find nothing to do
Play = Callable[[Stage, Scene, Tellers, Random], list[str]]
_STORES = ("disk", "swift", *others.STORES)


def main(arguments: Sequence[str] | None = None) -> int:
    given = _parser().parse_args(arguments)
    started = time.monotonic()
    tallies = []
    with tempfile.TemporaryDirectory(prefix="featlib-torture-") as folder:
        for name in _PARTS if given.what == "all" else (given.what,):
            part = Path(folder) / name
            part.mkdir()
            tallies += _PARTS[name](given, part)
    for tally in tallies:
        print(tally.text())
    print(f"{time.monotonic() - started:.0f} s")
    return 1 if any(tally.failures for tally in tallies) else 0


@dataclass(frozen=True)
class _Place:
    """Where outputs are made, and how the store there is reached."""

    name: str
    output: str | None = None
    endpoint_url: str | None = None


@contextmanager
def _place(name: str, folder: Path) -> Iterator[_Place]:
    if name == "disk":
        yield _Place(name)
        return
    with (SwiftServer if name == "swift" else others.STORES[name])(folder / name) as server:
        os.environ.update(user_environment())
        yield _Place(name, f"s3://{server.bucket()}", server.endpoint_url)


def _stores(given: argparse.Namespace) -> list[str]:
    if given.store:
        return [given.store]
    missing = [name for name, server in others.STORES.items() if not server.is_installed()]
    for name in missing:
        print(f"{name} is not installed and is left out", file=sys.stderr)
    return [name for name in _STORES if name not in missing]


def _publishing(given: argparse.Namespace, folder: Path) -> list[Tally]:
    total = given.kills or 900
    on_swift = total // _SWIFT_SHARE
    shares = {given.store: total} if given.store else {"disk": total - on_swift, "swift": on_swift}
    if given.at is not None:
        shares = {given.store or "disk": 1}
    tallies = []
    for name, kills_there in shares.items():
        if not kills_there:
            continue
        with ExitStack() as stack:
            place = stack.enter_context(_place(name, folder))
            tally = Tally(f"kills of plan, stage, commit, publish and clean-up, on {name}")
            outputs = [place.output and f"{place.output}/{i}" for i in range(given.jobs)]
            stages = [
                stack.enter_context(stage_in(folder / f"{name}-{i}", output, place.endpoint_url))
                for i, output in enumerate(outputs)
            ]
            _play(stages, tally, kills_there, given, name)
            tallies.append(tally)
    return tallies


def _play(stages: Sequence[Stage], tally: Tally, total: int, given: argparse.Namespace, store: str) -> None:
    """Each stage plays stories of its own until all together have come to ``total`` kills."""
    if given.at is not None:
        scene = stages[0].scene(given.seed, given.phase)
        kill = Kill(given.seed, given.phase, given.at, given.after, given.again)
        tally.add(f"publishing --store {store} {kill}", *stages[0].play(scene, kill))
        return
    with ThreadPoolExecutor(len(stages)) as pool:
        for done in [
            pool.submit(_stories, stage, tally, total, given.seed + i, len(stages), store)
            for i, stage in enumerate(stages)
        ]:
            done.result()


def _stories(stage: Stage, tally: Tally, total: int, first_seed: int, step: int, store: str) -> None:
    for seed in count(first_seed, step):
        for phase in PHASES:
            scene = stage.scene(seed, phase)
            order = kills(scene, Random(f"kills {seed} {phase}"))
            for _, kill in zip(range(_KILLS_A_SCENE), order, strict=False):
                if tally.count >= total:
                    return
                tally.add(f"publishing --store {store} {kill}", *stage.play(scene, kill))


def _faults(given: argparse.Namespace, folder: Path) -> list[Tally]:
    tallies = []
    with _place("swift", folder) as place, stage_in(folder / "stage", place.output, place.endpoint_url) as stage:
        for share in (given.share,) if given.share else (0.1, 0.3):
            tally, stops = faulty.torture(stage, place.endpoint_url or "", given.stories, given.seed, share)
            print(f"{share:.0%} faults: {4 * given.stories} jobs came to their end, {stops} runs stopped before")
            tallies.append(tally)
    return tallies


def _outage(given: argparse.Namespace, folder: Path) -> list[Tally]:
    with _place("swift", folder) as place, stage_in(folder / "stage", place.output, place.endpoint_url) as stage:
        tally, stops = faulty.outage(stage, place.endpoint_url or "", given.seed, given.seconds)
    print(f"{given.seconds:g} s without a store: {len(PHASES)} jobs, {stops} of them stopped")
    return [tally]


def _rivals(given: argparse.Namespace, folder: Path) -> list[Tally]:
    def play(stage: Stage, scene: Scene, rival: Tellers, random: Random) -> list[str]:
        return stage.play_rivals(scene, rival, random.uniform(0.0, 1.0))

    return _of_two(given, folder, "rivals", "pairs of drivers started at once on one output", play)


def _sleepers(given: argparse.Namespace, folder: Path) -> list[Tally]:
    def play(stage: Stage, scene: Scene, rival: Tellers, random: Random) -> list[str]:
        return stage.play_sleeper(scene, rival, random.randrange(scene.num_features_put))

    return _of_two(given, folder, "sleepers", "drivers asleep for longer than their lease", play)


def _of_two(given: argparse.Namespace, folder: Path, name: str, what: str, play: Play) -> list[Tally]:
    """Plays stories with two drivers on every store, several at a time: drivers mostly wait for each other."""
    tallies = []
    for store in _stores(given):
        tally = Tally(f"{what}, on {store}")
        with _place(store, folder) as place, ThreadPoolExecutor(given.jobs) as pool:
            for done in [
                pool.submit(_pairs, given, folder, place, job, name, tally, play) for job in range(given.jobs)
            ]:
                done.result()
        tallies.append(tally)
    return tallies


def _pairs(
    given: argparse.Namespace, folder: Path, place: _Place, job: int, name: str, tally: Tally, play: Play
) -> None:
    """Plays one story in ``--jobs``."""
    own = folder / f"{place.name}-{job}"
    rival = Tellers(own / "rival")
    with stage_in(own / "stage", place.output and f"{place.output}/{job}", place.endpoint_url) as stage:
        for number in range(job, given.kills or 20, given.jobs):
            random = Random(f"{name} {given.seed} {number}")
            scene = stage.scene(given.seed + number, random.choice(_WITH_WORK))
            wrong = play(stage, scene, rival, random)
            tally.add(f"{name} --store {place.name} --seed {given.seed} --kills {number + 1}", 1, wrong)
    rival.close()


def _flips(given: argparse.Namespace, folder: Path) -> list[Tally]:
    total = given.kills or 1000
    with stage_in(folder / "stage") as stage:
        tallies = [flips.at_rest(stage, folder / "rest", total, given.seed)]
    with _place("swift", folder) as place:
        tallies.append(flips.in_flight(f"{place.output}/flips", place.endpoint_url or "", total, given.seed))
    return tallies


def _job(given: argparse.Namespace, folder: Path) -> list[Tally]:
    return [job.torture(folder / "job", given.kills or 100, given.seed)]


def _mutants(given: argparse.Namespace, folder: Path) -> list[Tally]:
    tally, outcomes = mutants.torture(folder, given.kills or 10_000, given.seed)
    print(outcomes.text())
    return [tally]


_PARTS: dict[str, Callable[[argparse.Namespace, Path], list[Tally]]] = {
    "publishing": _publishing,
    "faults": _faults,
    "outage": _outage,
    "rivals": _rivals,
    "sleepers": _sleepers,
    "flips": _flips,
    "mutants": _mutants,
    "job": _job,
}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.torture", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", nargs="?", choices=("all", *_PARTS), default="all")
    parser.add_argument("--kills", type=int, help="trials: kills, pairs, flips or mutants; default as in make torture")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2, help="at a time, of publishing and of two drivers")
    parser.add_argument("--phase", choices=PHASES)
    parser.add_argument("--at", type=int, help="one kill alone, at this operation")
    parser.add_argument("--after", action="store_true")
    parser.add_argument("--again", type=int)
    parser.add_argument("--store", choices=_STORES, help="one kind of store alone")
    parser.add_argument("--share", type=float, help="of requests that are spoilt; default 0.1 and then 0.3")
    parser.add_argument("--stories", type=int, default=5, help="jobs over media of a seed, each in four phases")
    parser.add_argument("--seconds", type=float, default=60.0, help="without any store")
    return parser


if __name__ == "__main__":
    sys.exit(main())
