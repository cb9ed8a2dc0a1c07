"""Runs the programs of the benchmark, each in a fresh process, and reads what they wrote."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.features import NO_ROWS, Rows, read_rows
from benchmarks.jobs import Job

ROOT = Path(__file__).parents[1]
MOST_S = 1800.0


@dataclass(frozen=True)
class Program:
    """A module that takes a job.

    Args:
        needs: A package that it cannot do without.
    """

    name: str
    module: str
    needs: str = ""

    @property
    def lacks(self) -> str:
        """What is missing and how to get it; empty when nothing is."""
        if not self.needs or importlib.util.find_spec(self.needs):
            return ""
        return f"no {self.needs} here: pip install {self.needs}, or make bench"


LOOP = Program("loop", "benchmarks.peers.loop")
RAY_DATA = Program("Ray Data program", "benchmarks.peers.ray_program", "ray")
DAFT = Program("Daft program", "benchmarks.peers.daft_program", "daft")
FEATLIB = Program("featlib", "benchmarks.peers.featlib_program")
PEERS = (LOOP, RAY_DATA, DAFT)


@dataclass(frozen=True)
class Ran:
    """One run of a program.

    Args:
        whole_s: From command to exit.
        told: What it printed; ``loaded``, ``started`` and ``done`` are moments.
        began: The moment of the command.
    """

    rows: Rows
    whole_s: float
    began: float
    told: dict[str, Any] = field(default_factory=dict)


def run(program: Program, job: Job, *, reads_rows: bool = True) -> Ran:
    """Runs ``program`` in a process of its own; its output folder is emptied before.

    Args:
        reads_rows: False when its output is not the features of one network.

    Raises:
        RuntimeError: It failed; the end of what it said is in the message.
    """
    output = Path(job.output)
    shutil.rmtree(output, ignore_errors=True)
    output.mkdir(parents=True)
    path = job.save(output.with_suffix(".json"))
    began, clock = time.time(), time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", program.module, str(path)],
        cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=MOST_S, check=False,
    )  # fmt: skip
    whole_s = time.monotonic() - clock
    if done.returncode:
        raise RuntimeError(f"{program.name} failed over {len(job.clips)} clips: {done.stderr[-2000:]}")
    return Ran(read_rows(output) if reads_rows else NO_ROWS, whole_s, began, json.loads(done.stdout.splitlines()[-1]))


def environment() -> dict[str, str]:
    """Of a program: it finds this package, and nothing of it reports to anybody."""
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    quiet = {"RAY_USAGE_STATS_ENABLED": "0", "DAFT_ANALYTICS_ENABLED": "0", "DAFT_PROGRESS_BAR": "0"}
    return {**os.environ, **quiet, "PYTHONPATH": os.pathsep.join(paths)}
