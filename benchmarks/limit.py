"""The limit: the time that decoding and the forward passes alone need on all cores of this machine."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.jobs import Job
from benchmarks.programs import ROOT, environment

_MOST_PROCESSES = 16
DECODERS = ("plain", "featlib")


@dataclass(frozen=True)
class Parts:
    """What one row costs, in seconds of one core, all cores being busy.

    Args:
        decoder: Whose decoding was the fastest.
    """

    decode_s: float
    forward_s: float
    decoder: str

    def rate(self, cores: int) -> float:
        """Rows a second that no program on these cores can exceed, short of doing something else."""
        return cores / (self.decode_s + self.forward_s)


class Limit:
    """Processes that together keep every core busy with one thing; made by ``limit_of``."""

    def __init__(self, processes: Sequence["subprocess.Popen[str]"], cores: int, said: Path = Path(os.devnull)) -> None:
        self._processes, self._said = processes, said
        self.cores = cores

    def ask(self, order: str) -> list[dict[str, float]]:
        """Sends an order to all processes at once and waits for all answers.

        Raises:
            RuntimeError: One of them ended.
        """
        for process in self._processes:
            print(order, file=process.stdin, flush=True)
        return [self._answer(process, order) for process in self._processes]

    def _answer(self, process: "subprocess.Popen[str]", order: str) -> dict[str, float]:
        line = process.stdout.readline() if process.stdout else ""
        if not line:
            raise RuntimeError(f"the limit's process ended at {order!r}: {self._said.read_text()[-2000:]}")
        answer: dict[str, float] = json.loads(line)
        return answer

    def parts(self, precision: str) -> Parts:
        """One measurement; the network must have been prepared in this precision."""
        costs = {who: _cost(self.ask(f"decode {who}")) for who in DECODERS}
        decoder = min(costs, key=costs.__getitem__)
        # Processes may have several threads each: what one row costs is that of a core, not of a process.
        rate = sum(a["rows"] / a["seconds"] for a in self.ask(f"forward {precision}"))
        return Parts(costs[decoder], self.cores / rate, decoder)


def _cost(answers: Sequence[dict[str, float]]) -> float:
    return sum(a["seconds"] for a in answers) / sum(a["rows"] for a in answers)


@contextmanager
def limit_of(job: Job, scratch: Path, *, compiles: bool = True, most: int = _MOST_PROCESSES) -> Iterator[Limit]:
    """Starts the processes: one a core, of one thread, as long as they are not too many; else all cores are shared."""
    cores = len(os.sched_getaffinity(0))
    count = min(cores, most)
    path = job.save(scratch / "limit.json")
    word = "compiled" if compiles else "as-is"
    threads = [cores // count + (i < cores % count) for i in range(count)]
    command = [sys.executable, "-m", "benchmarks.limit_worker", str(path)]
    kept = {"TORCHINDUCTOR_CACHE_DIR": str(scratch / "compiled")}
    said = scratch / "limit.log"
    with said.open("w") as log:
        processes = [
            subprocess.Popen([*command, str(n), word], cwd=ROOT, env={**environment(), **kept}, text=True,
                             stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log)
            for n in threads
        ]  # fmt: skip
    try:
        limit = Limit(processes, cores, said)
        for process in processes:
            limit._answer(process, "start")
        yield limit
    finally:
        for process in processes:
            process.kill()
            process.wait()
