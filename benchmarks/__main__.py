"""``python -m benchmarks``: measures featlib beside other things on this machine, in one run."""

import argparse
import importlib
import importlib.util
import inspect
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from types import FunctionType, ModuleType
from typing import cast

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
    **{
        name: f"benchmarks.{name}"
        for name in ("decode", "forward", "scale", "cpu")
        if importlib.util.find_spec(f"benchmarks.{name}")
    },
}
"""By name, the function that measures, or a module whose public functions from a setting to an outcome all do.

Without names on the command line they run in this order."""


def workload(name: str) -> Workload:
    """The function behind a name."""
    path, _, function = WORKLOADS[name].partition(":")
    module = importlib.import_module(path)
    if function:
        return cast(Workload, getattr(module, function))
    return partial(_one_after_the_other, workloads_of(module))


def workloads_of(module: ModuleType) -> list[Workload]:
    """The public functions of a module that take a setting and give an outcome.

    Raises:
        ValueError: There is none.
    """
    functions = [
        f for n, f in inspect.getmembers(module, inspect.isfunction) if n[0] != "_" and _is_workload(f, module)
    ]
    if not functions:
        raise ValueError(f"{module.__name__} has no function from a Setting to an Outcome")
    return sorted(functions, key=lambda f: f.__code__.co_firstlineno)


def _is_workload(function: FunctionType, module: ModuleType) -> bool:
    signature = inspect.signature(function, eval_str=True)
    takes = [p.annotation for p in signature.parameters.values()]
    return function.__module__ == module.__name__ and takes == [Setting] and signature.return_annotation is Outcome


def _one_after_the_other(workloads: Sequence[Workload], setting: Setting) -> Outcome:
    """All of several workloads, each in a scratch of its own."""
    outcomes = []
    for i, measure in enumerate(workloads):
        scratch = setting.scratch / str(i)
        scratch.mkdir()
        outcomes.append(measure(replace(setting, scratch=scratch)))
    return Outcome(
        tuple(f for o in outcomes for f in o.figures),
        tuple(t for o in outcomes for t in o.targets),
        tuple(c for o in outcomes for c in o.checks),
    )


def main(arguments: Sequence[str] | None = None) -> int:
    given = _parser().parse_args(arguments)
    unknown = set(given.names) - set(WORKLOADS)
    if unknown:
        raise SystemExit(f"no workload {', '.join(sorted(unknown))}; there are {', '.join(WORKLOADS)}")
    machine = this_machine()
    with tempfile.TemporaryDirectory(prefix="featlib-bench-") as scratch:
        clips, material = _clips(given, Path(scratch))
        head = "\n".join(filter(None, [machine.text(), f"clips: {material}; {given.rounds} rounds", machine.warning]))
        print(head, flush=True)
        options = dict(pair.split("=", 1) for pair in given.option)
        result = Result(machine, material, given.small)
        for name in given.names or WORKLOADS:
            say(name)
            folder = Path(scratch) / name
            folder.mkdir()
            result.run(name, Setting(clips, folder, given.rounds, given.small, options))
            shutil.rmtree(folder)
            result.save(given.json)
    print(f"\n{result.text()}\n\n{given.json}")
    return 1 if result.failures else 0


class Result:
    """What is known so far. A workload that fails is told of at the end; it does not take the others along."""

    def __init__(self, machine: Machine, clips: str, is_small: bool) -> None:
        self._about = {"machine": asdict(machine), "clips": clips, "small": is_small}
        self.outcomes: dict[str, Outcome] = {}
        self.failures: dict[str, str] = {}

    def run(self, name: str, setting: Setting) -> None:
        try:
            self.outcomes[name] = workload(name)(setting)
        except Exception as error:  # noqa: BLE001 — told of in the table, and by the exit code
            self.failures[name] = f"{type(error).__name__}: {error}"
            say(f"{name} FAILED: {self.failures[name]}")

    def save(self, path: Path) -> None:
        """Writes JSON; after each workload, because a run of an hour may be broken off."""
        path.parent.mkdir(parents=True, exist_ok=True)
        outcomes = {name: outcome.to_dict() for name, outcome in self.outcomes.items()}
        path.write_text(json.dumps({**self._about, "workloads": outcomes, "failures": self.failures}, indent=2) + "\n")

    def text(self) -> str:
        failed = [f"FAILED {name}: {error}" for name, error in self.failures.items()]
        return "\n".join([table.text(list(self.outcomes.values())), *failed])


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


if __name__ == "__main__":
    sys.exit(main())
