"""``python -m tests.torture``: the long version of what ``make test`` does a little of.

python -m tests.torture                                     # everything, as make torture
python -m tests.torture publishing --kills 900 --seed 0
python -m tests.torture publishing --seed 3 --phase grown --at 17 --after    # one kill, as a failure names it
python -m tests.torture job --kills 100
python -m tests.torture mutants --seed 4711 --kills 1
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from itertools import count
from pathlib import Path
from random import Random

from tests.servers.swift import SwiftServer
from tests.torture import job, mutants
from tests.torture.publishing import Kill, Stage, kills, stage_in
from tests.torture.story import PHASES
from tests.torture.tally import Tally

_KILLS_A_SCENE = 30
_SWIFT_SHARE = 10  # one kill in so many is played on an object store


def main(arguments: Sequence[str] | None = None) -> int:
    given = _parser().parse_args(arguments)
    started = time.monotonic()
    tallies = []
    with tempfile.TemporaryDirectory(prefix="featlib-torture-") as folder:
        if given.what in ("publishing", "all"):
            tallies += _publishing(given, Path(folder))
        if given.what in ("job", "all"):
            tallies.append(job.torture(Path(folder) / "job", given.kills or 100, given.seed))
        if given.what in ("mutants", "all"):
            tallies.append(mutants.torture(Path(folder) / "mutants", given.kills or 10_000, given.seed))
    for tally in tallies:
        print(tally.text())
    print(f"{time.monotonic() - started:.0f} s")
    return 1 if any(tally.failures for tally in tallies) else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.torture", description=__doc__)
    parser.add_argument("what", nargs="?", choices=("all", "publishing", "job", "mutants"), default="all")
    parser.add_argument("--kills", type=int, help="how many (900 of publishing, 100 of the job, 10,000 mutants)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2, help="processes at a time")
    parser.add_argument("--phase", choices=PHASES)
    parser.add_argument("--at", type=int, help="one kill alone, at this operation")
    parser.add_argument("--after", action="store_true")
    parser.add_argument("--again", type=int)
    parser.add_argument("--store", choices=("disk", "swift"), help="one kind of store alone")
    return parser


def _publishing(given: argparse.Namespace, folder: Path) -> list[Tally]:
    total = given.kills or 900
    on_swift = {"disk": 0, "swift": total, None: total // _SWIFT_SHARE}[given.store]
    tallies = []
    with ExitStack() as stack:
        if total > on_swift:
            tally = Tally("kills of plan, stage, commit, publish and clean-up, on a disk")
            stages = [stack.enter_context(stage_in(folder / f"disk-{i}")) for i in range(given.jobs)]
            _play(stages, tally, total - on_swift, given)
            tallies.append(tally)
        if (on_swift and given.at is None) or given.store == "swift":
            server = stack.enter_context(SwiftServer(folder / "swift"))
            os.environ.update(server.environment())
            tally = Tally("the same, on OpenStack Swift by its S3 API")
            stages = [
                stack.enter_context(stage_in(folder / f"swift-{i}", f"s3://{server.bucket()}", server.endpoint_url))
                for i in range(given.jobs)
            ]
            _play(stages, tally, on_swift, given)
            tallies.append(tally)
    return tallies


def _play(stages: Sequence[Stage], tally: Tally, total: int, given: argparse.Namespace) -> None:
    """Each stage plays stories of its own until all together have come to ``total`` kills."""
    if given.at is not None:
        scene = stages[0].scene(given.seed, given.phase)
        kill = Kill(given.seed, given.phase, given.at, given.after, given.again)
        tally.add(str(kill), *stages[0].play(scene, kill))
        return
    with ThreadPoolExecutor(len(stages)) as pool:
        for done in [
            pool.submit(_stories, stage, tally, total, given.seed + i, len(stages)) for i, stage in enumerate(stages)
        ]:
            done.result()


def _stories(stage: Stage, tally: Tally, total: int, first_seed: int, step: int) -> None:
    for seed in count(first_seed, step):
        for phase in PHASES:
            scene = stage.scene(seed, phase)
            order = kills(scene, Random(f"kills {seed} {phase}"))
            for _, kill in zip(range(_KILLS_A_SCENE), order, strict=False):
                if tally.count >= total:
                    return
                tally.add(f"publishing {kill}", *stage.play(scene, kill))


if __name__ == "__main__":
    sys.exit(main())
