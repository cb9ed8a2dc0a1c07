"""CPU seconds of everything that a command starts, by what each process is for."""

import subprocess
import threading
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import psutil

_EVERY_S = 0.05
# What a process is for, by a word in its command line or title; the first that fits counts. Ray gives its workers
# titles, which change as they work, and the decoding processes are forks of one that is started from a boot line.
_ROLES = (
    ("_DecodeActor", "decode actor"),
    ("_ExtractActor", "extract actor"),
    ("_FlowActor", "flow actor"),
    ("StageWorker", "stage task"),
    ("nursery", "decoding process"),
    ("ray::", "Ray, its own actors and tasks"),
    ("/ray/", "Ray, its servers"),
)


@dataclass(frozen=True)
class Spent:
    """What a command cost.

    Args:
        cpu_s: By role, user and system seconds.
    """

    wall_s: float
    cpu_s: dict[str, float]
    stdout: str
    returncode: int


@dataclass
class _Seen:
    titles: set[str] = field(default_factory=set)
    cpu_s: float = 0.0


def watched(command: Sequence[str], env: dict[str, str] | None = None) -> Spent:
    """Runs a command and adds up its processes, also those that end while it runs.

    A process is looked at twenty times a second, so what one does in its last instants is not seen.
    """
    started = time.monotonic()
    seen: dict[tuple[int, float], _Seen] = defaultdict(_Seen)
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env) as process:
        done = threading.Event()
        watcher = threading.Thread(target=_watch, args=(process.pid, seen, done))
        watcher.start()
        stdout, _ = process.communicate()
        wall_s = time.monotonic() - started
        done.set()
        watcher.join()
    cpu_s: dict[str, float] = defaultdict(float)
    for (pid, _), one in seen.items():
        cpu_s["driver" if pid == process.pid else _role(one.titles)] += one.cpu_s
    return Spent(wall_s, dict(cpu_s), stdout, process.returncode)


def _watch(pid: int, seen: dict[tuple[int, float], _Seen], done: threading.Event) -> None:
    root = psutil.Process(pid)
    while not done.wait(_EVERY_S):
        try:
            family = [root, *root.children(recursive=True)]
        except psutil.NoSuchProcess:
            return
        for process in family:
            try:
                times = process.cpu_times()
                one = seen[process.pid, process.create_time()]
                one.titles.add(" ".join(process.cmdline()))
                one.cpu_s = times.user + times.system
            except psutil.Error:
                continue


def _role(titles: set[str]) -> str:
    return next((role for word, role in _ROLES if any(word in title for title in titles)), "other")
