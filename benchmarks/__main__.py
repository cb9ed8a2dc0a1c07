"""``python -m benchmarks``: measures featlib beside other things on this machine, in one run."""

import argparse
import importlib
import importlib.util
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from benchmarks import table
from benchmarks.clips import make_clips
from benchmarks.figures import Outcome, Setting, Workload
from benchmarks.machine import Machine, this_machine
from benchmarks.progress import say

WORKLOADS = {
    "resnet50": "benchmarks.pipelines:resnet50",
    "r3d_18": "benchmarks.pipelines:r3d_18",
    "r2plus1d_18": "benchmarks.pipelines:r2plus1d_18",
    "three_models": "benchmarks.decode_once:three_models",
    "quality": "benchmarks.quality:bf16_classes",
    "gpu": "benchmarks.gpu:forward",
}
"""By name, where it is found; those without arguments run in this order."""


def workload(name: str) -> Workload:
    """The function behind a name."""
    module, _, function = WORKLOADS[name].partition(":")
    found: Workload = getattr(importlib.import_module(module), function)
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    given = _parser().parse_args(arguments)
    machine = this_machine()
    with tempfile.TemporaryDirectory(prefix="featlib-bench-") as scratch:
        clips, material = _clips(given, Path(scratch))
        head = "\n".join(filter(None, [machine.text(), f"clips: {material}; {given.rounds} rounds", machine.warning]))
        print(head, flush=True)
        options = dict(pair.split("=", 1) for pair in given.option)
        outcomes = {}
        for name in given.names or WORKLOADS:
            say(name)
            folder = Path(scratch) / name
            folder.mkdir()
            outcomes[name] = workload(name)(Setting(clips, folder, given.rounds, given.small, options))
            _save(given.json, machine, material, given.small, outcomes)
    print(f"\n{table.text(list(outcomes.values()))}\n\n{given.json}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(WORKLOADS)}; all when none is given")
    parser.add_argument("--rounds", type=int, default=3, help="how often everything is measured (default 3)")
    parser.add_argument("--small", action="store_true", help="only whether results are equal; times mean nothing")
    parser.add_argument("--json", type=Path, default=Path("bench/results.json"), metavar="FILE")
    parser.add_argument(
        "--clips", type=Path, metavar="FOLDER", help="real clips; else FEATLIB_TEST_MEDIA, else generated"
    )
    parser.add_argument("--option", action="append", default=[], metavar="NAME=VALUE", help="of single workloads")
    return parser


def _clips(given: argparse.Namespace, scratch: Path) -> tuple[Path, str]:
    """The folder of the clips, and what they are."""
    folder = given.clips or os.environ.get("FEATLIB_TEST_MEDIA")
    if given.small or not folder:
        kind = {"count": 2, "num_frames": 24, "small": True} if given.small else {}
        return make_clips(scratch / "clips", **kind), "generated"
    return Path(folder), f"real ones of {folder}"


def _save(path: Path, machine: Machine, material: str, is_small: bool, outcomes: dict[str, Outcome]) -> None:
    """What is known so far, after each workload: a run of an hour may be broken off."""
    path.parent.mkdir(parents=True, exist_ok=True)
    result = {
        "machine": asdict(machine),
        "clips": material,
        "small": is_small,
        "workloads": {name: outcome.to_dict() for name, outcome in outcomes.items()},
    }
    path.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    sys.exit(main())
