"""One point of ``benchmarks.scale`` in a process of its own: what it costs is what this process and its workers took.

    python -m benchmarks.scale_points SUBJECT MANIFEST OUTPUT

Prints one JSON object: seconds of the clock from the first unit on, CPU seconds of this process and of all processes
below it, and the most memory that this process held.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from unittest import mock

import psutil  # type: ignore[import-untyped,unused-ignore]

from benchmarks.stubs import DECODE, NETWORK
from featlib.config import ExtractConfig, ModelConfig
from featlib.progress import SilentReporter
from featlib.start import RayStart
from featlib.summary import Summary

DATASET = "scale"
OBJECT_STORE_MB = 512

Costs = dict[str, float]


class _Planned(Exception):  # noqa: N818 - not an error
    """Everything is ready for the first item to be decoded."""


class _Stages(SilentReporter):
    """Writes down when each stage of a job began."""

    def __init__(self) -> None:
        self.began: dict[str, float] = {}

    def stage(self, text: str) -> None:
        self.began.setdefault(text, time.perf_counter())


class _UntilPlanned(_Stages):
    def stage(self, text: str) -> None:
        super().stage(text)
        if text == "starting Ray":
            raise _Planned


def config(manifest: str, output: str) -> ExtractConfig:
    """One job of the stub network."""
    return ExtractConfig(
        manifest=(manifest,),
        output=output,
        dataset=DATASET,
        models=(ModelConfig(network=NETWORK, label="stub", weights="random:0"),),
        device="cpu",
        object_store_mb=OBJECT_STORE_MB,
    )


def plan(manifest: str, output: str) -> Costs:
    """The job up to where it needs Ray, without the start of one beside it."""
    with suppress(_Planned), mock.patch.object(RayStart, "begin"):
        _job(manifest, output, _UntilPlanned())
    return {}


def run(manifest: str, output: str) -> Costs:
    """The whole job; where everything is published, that is a resume with nothing to do."""
    stages = _Stages()
    summary = _job(manifest, output, stages)
    ended = time.perf_counter()
    found = {"ok": float(summary.media.get("ok", 0)), "rows": float(sum(summary.rows.values()))}
    if "extracting" in stages.began:
        found["extract_s"] = ended - stages.began["extracting"]
    return found | {f"busy_{name.split()[0]}_s": s for name, s in summary.seconds.busy.items()}


def _job(manifest: str, output: str, shown: SilentReporter) -> Summary:
    from featlib.job import run_job

    return run_job(config(manifest, output), shown, lambda name, what: None, DECODE)


def obvious(manifest: str, output: str) -> Costs:
    """The Ray Data program that one writes first, over the same manifest and with the same stubs."""
    import ray

    from benchmarks.obvious_scale import program

    ray.init(include_dashboard=False, log_to_driver=False, object_store_memory=OBJECT_STORE_MB << 20)
    started = time.perf_counter()
    program(manifest, output)
    return {"extract_s": time.perf_counter() - started}


SUBJECTS: dict[str, Callable[[str, str], Costs]] = {"plan": plan, "run": run, "obvious": obvious}


def _cpu_s() -> tuple[float, float]:
    """Of this process, and of all that it started."""
    mine, below = psutil.Process().cpu_times(), 0.0
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            below += times.user + times.system + times.children_user + times.children_system
    return mine.user + mine.system, below + mine.children_user + mine.children_system


def _peak_mb() -> float:
    """``VmHWM``: ``ru_maxrss`` would count what the parent held before this program was started."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM:"))


def main(subject: str, manifest: str, output: str) -> None:
    found = SUBJECTS[subject](manifest, output)
    driver_cpu_s, workers_cpu_s = _cpu_s()
    costs = {"driver_cpu_s": driver_cpu_s, "workers_cpu_s": workers_cpu_s, "peak_mb": _peak_mb()}
    print(json.dumps(costs | found), flush=True)
    os._exit(0)  # Ray takes seconds to end, which nobody asked for


if __name__ == "__main__":
    main(*sys.argv[1:])
