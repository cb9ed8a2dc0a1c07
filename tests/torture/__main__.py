"""``python -m tests.torture``: the long version of what ``make test`` does a little of.

python -m tests.torture                                     # everything, as make torture
python -m tests.torture publishing --kills 1500 --seed 0
python -m tests.torture publishing --seed 3 --phase grown --at 'after list drivers 2'    # as a failure names it
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
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from random import Random

from tests.servers import others
from tests.servers.swift import SwiftServer, user_environment
from tests.torture import faulty, flips, job, mutants, resumes
from tests.torture.doom import Point
from tests.torture.kills import Coverage, kills, torture
from tests.torture.publishing import HOLD_S, Kill, Scene, Stage, Tellers, stage_in
from tests.torture.story import PHASES
from tests.torture.tally import Tally

_KILLS_A_SCENE = 30
_WHOLE = 800  # kills from which on each operation of the first story has its turn
_SWIFT_SHARE = 10  # one kill in so many is played on an object store
_WITH_WORK = PHASES[:2]  # of any seed; the others may find nothing to do
Play = Callable[[Stage, Scene, Tellers, Random], list[str]]
_STORES = ("disk", "swift", *others.STORES)


def main(arguments: Sequence[str] | None = None) -> int:
    given = _parser().parse_args(arguments)
    tallies = []
    with tempfile.TemporaryDirectory(prefix="featlib-torture-") as folder:
        for name in _PARTS if given.what == "all" else (given.what,):
            part, started = Path(folder) / name, time.monotonic()
            part.mkdir()
            made = _played(name, given, part)
            for tally in made:
                print(tally.text())
            print(f"{name}: {time.monotonic() - started:.0f} s", flush=True)
            tallies += made
    return 1 if any(tally.failures for tally in tallies) else 0


def _played(name: str, given: argparse.Namespace, folder: Path) -> list[Tally]:
    """One part; where it breaks off, that is a failure, and the next one is played."""
    try:
        return _PARTS[name](given, folder)
    except Exception as error:  # noqa: BLE001 - whatever it is, the other parts are worth playing
        traceback.print_exc()
        broken = Tally(f"{name}, which broke off")
        kills = f" --kills {given.kills}" if given.kills else ""
        broken.add(f"{name} --seed {given.seed}{kills}", 0, [f"{type(error).__name__}: {error}"])
        return [broken]


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
    if given.at is not None:
        return [_one_kill(given, folder)]
    total = given.kills or 1500
    on_swift = total // _SWIFT_SHARE
    shares = {given.store: total} if given.store else {"disk": total - on_swift, "swift": on_swift}
    tallies = []
    for name, kills_there in shares.items():
        if not kills_there:
            continue
        with ExitStack() as stack:
            place = stack.enter_context(_place(name, folder))
            tally = Tally(f"kills of plan, stage, commit, publish and clean-up, on {name}", kills_there)
            outputs = [place.output and f"{place.output}/{i}" for i in range(given.jobs)]
            stages = [
                stack.enter_context(stage_in(folder / f"{name}-{i}", output, place.endpoint_url))
                for i, output in enumerate(outputs)
            ]
            is_whole = name == "disk" and kills_there >= _WHOLE
            coverage = _play(stages, tally, given.seed, name, is_whole)
            print(f"{coverage.text()}, on {name}")
            if not coverage.missing:
                pass
            elif is_whole:
                tally.add(f"publishing --seed {given.seed}", 0, [f"never killed {kind}" for kind in coverage.missing])
            else:
                print(f"  not {', '.join(coverage.missing)}")
            tallies.append(tally)
    return tallies


def _one_kill(given: argparse.Namespace, folder: Path) -> Tally:
    name = given.store or "disk"
    again = Point.parse(given.again) if given.again else None
    tally = Tally(f"kills on {name}")
    with _place(name, folder) as place, stage_in(folder / name, place.output, place.endpoint_url) as stage:
        scene = stage.scene(given.seed, given.phase)
        kill = Kill(given.seed, given.phase, Point.parse(given.at), again, given.plain)
        torture(stage, scene, [kill], Random(0), tally, Coverage(), f"--store {name} ")
    return tally


def _play(stages: Sequence[Stage], tally: Tally, first_seed: int, store: str, is_whole: bool) -> Coverage:
    """The stages take one scene after the other until the tally is full.

    Args:
        is_whole: Every operation of the first story has its turn; of the others, and else, some.
    """
    coverage, taking = Coverage(), threading.Lock()
    scenes = ((seed, phase) for seed in count(first_seed) for phase in PHASES)
    there, hit = Counter[str](), Counter[str]()

    def stories(stage: Stage) -> None:
        while not tally.is_full:
            with taking:
                seed, phase = next(scenes)
            scene = stage.scene(seed, phase)
            random = Random(f"kills {seed} {phase}")
            chosen = kills(scene, random, coverage)
            is_first = is_whole and seed == first_seed
            if not is_first:
                chosen = chosen[:_KILLS_A_SCENE]
            were = torture(stage, scene, chosen, random, tally, coverage, f"--store {store} ", is_whole=is_first)
            if is_first:
                there[phase], hit[phase] = len(chosen), len(were)

    with ThreadPoolExecutor(len(stages)) as pool:
        for done in [pool.submit(stories, stage) for stage in stages]:
            done.result()
    if is_whole:
        print(f"of seed {first_seed}: killed before and after {hit.total()} of {there.total()} operations, each once")
    return coverage


def _faults(given: argparse.Namespace, folder: Path) -> list[Tally]:
    tallies, befell = [], faulty.Befell()
    with _place("swift", folder) as place, stage_in(folder / "stage", place.output, place.endpoint_url) as stage:
        for share in (given.share,) if given.share else (0.1, 0.3):
            tally, stops, met = faulty.torture(stage, place.endpoint_url or "", given.stories, given.seed, share)
            print(f"{share:.0%} faults: {4 * given.stories} jobs came to their end, {stops} runs stopped before")
            tallies.append(tally)
            befell += met
    print(faulty.matrix(befell))
    tallies[-1].add(f"faults --seed {given.seed} --stories {given.stories}", 0, faulty.lacking(befell))
    return tallies


def _outage(given: argparse.Namespace, folder: Path) -> list[Tally]:
    with _place("swift", folder) as place, stage_in(folder / "stage", place.output, place.endpoint_url) as stage:
        tally, stops = faulty.outage(stage, place.endpoint_url or "", given.seed, given.seconds)
    print(f"{given.seconds:g} s without a store: {len(PHASES)} jobs without Ray, {stops} of them stopped")
    return [tally, job.outage(folder / "job", given.seed, given.seconds)]


def _rivals(given: argparse.Namespace, folder: Path) -> list[Tally]:
    """Half of them must meet; the others may, and one comes when the other plans, works, publishes or clears up."""
    met = Counter[bool]()

    def play(stage: Stage, scene: Scene, rival: Tellers, random: Random) -> list[str]:
        delay_s, hold_s = random.choice(((random.uniform(0.0, 1.0), HOLD_S), (random.uniform(0.0, HOLD_S), 0.2)))
        has_met, wrong = stage.play_rivals(scene, rival, delay_s, hold_s)
        met[has_met] += 1
        return wrong

    tallies = _of_two(given, folder, "rivals", "pairs of drivers on one output", play)
    print(f"{met[True]} pairs met, {met[False]} came one after the other")
    return tallies


def _sleepers(given: argparse.Namespace, folder: Path) -> list[Tally]:
    slept = Counter[str]()

    def play(stage: Stage, scene: Scene, rival: Tellers, random: Random) -> list[str]:
        kind = random.choice(sorted({point.kind for point in scene.committed}))
        point = random.choice([point for point in scene.committed if point.kind == kind])
        slept[kind] += 1
        return [f"slept {point}: {line}" for line in stage.play_sleeper(scene, rival, point)]

    tallies = _of_two(given, folder, "sleepers", "drivers asleep for longer than their lease", play)
    print("slept: " + ", ".join(f"{kind} {n}" for kind, n in sorted(slept.items())))
    return tallies


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
    """Plays one story in ``--jobs``, or that of ``--at`` alone."""
    own = folder / f"{place.name}-{job}"
    rival = Tellers(own / "rival")
    numbers = range(job, given.kills or 20, given.jobs)
    if given.at is not None:
        numbers = range(int(given.at), int(given.at) + (job == 0))
    with stage_in(own / "stage", place.output and f"{place.output}/{job}", place.endpoint_url) as stage:
        for number in numbers:
            random = Random(f"{name} {given.seed} {number}")

            def one(random: Random = random, number: int = number) -> tuple[int, list[str]]:
                scene = stage.scene(given.seed + number, random.choice(_WITH_WORK))
                return 1, play(stage, scene, rival, random)

            tally.trial(f"{name} --store {place.name} --seed {given.seed} --at {number}", one)
    rival.close()


def _flips(given: argparse.Namespace, folder: Path) -> list[Tally]:
    total = given.kills or 1000
    with stage_in(folder / "stage") as stage:
        at_rest = flips.at_rest(stage, folder / "rest", total, given.seed)
        on_disk, ends = resumes.after_kills(stage, max(1, total // 5), given.seed)
    print(f"what came of flips in what killed runs left, on a disk:\n{resumes.told(ends)}")
    with _place("swift", folder) as place, stage_in(folder / "swift-stage", place.output, place.endpoint_url) as stage:
        url = place.endpoint_url or ""
        in_flight, line = flips.in_flight(f"{place.output}/flips", url, folder, total, given.seed)
        on_swift, ends = resumes.after_kills(stage, max(1, total // 50), given.seed, url)
    print(f"on swift:\n{resumes.told(ends)}\nin flight, {line}")
    return [at_rest, on_disk, in_flight, on_swift]


def _job(given: argparse.Namespace, folder: Path) -> list[Tally]:
    if given.at is not None:
        return [job.torture(folder / "job", 1, given.seed, int(given.at))]
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
    parser.add_argument(
        "--at", help="one trial alone: its number, or of publishing where it dies: 'after rename plan 0'"
    )
    parser.add_argument("--again", help="where the next run of that trial dies, too")
    parser.add_argument(
        "--plain",
        action="store_true",
        help="in that trial a run that neither retries nor replaces comes before the next",
    )
    parser.add_argument("--store", choices=_STORES, help="one kind of store alone")
    parser.add_argument("--share", type=float, help="of requests that are spoilt; default 0.1 and then 0.3")
    parser.add_argument("--stories", type=int, default=5, help="jobs over media of a seed, each in four phases")
    parser.add_argument("--seconds", type=float, default=60.0, help="without any store")
    return parser


if __name__ == "__main__":
    sys.exit(main())
