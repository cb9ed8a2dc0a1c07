"""What a benchmark gives: figures measured side by side, and how the ones of interest compare with a target."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from math import nan
from pathlib import Path
from statistics import median
from typing import Any, Protocol


@dataclass(frozen=True)
class Figure:
    """One subject in one workload.

    Args:
        workload: Such as ``ResNet-50 fp32``.
        subject: ``featlib``, ``limit``, or the name of a peer.
        unit: Such as ``frames/s``; say so where it is a CPU second.
        rounds: What each round gave; the figure is their median. Empty for what could not be measured here; the note
            says why.
        note: What a reader must know beside it, such as the seconds of its start.
        is_part: It is part of a sum, or counts something else than its neighbours: no ratio to them means anything.
    """

    workload: str
    subject: str
    unit: str
    rounds: tuple[float, ...]
    note: str = ""
    is_part: bool = False

    @property
    def value(self) -> float:
        return median(self.rounds) if self.rounds else nan


@dataclass(frozen=True)
class Target:
    """A ratio that is aimed at.

    Args:
        measured: Over 1 is better; the ratio of two figures of the same run.
        wanted: The ratio to reach.
        says: The ratio in words, such as ``featlib over the best peer``.
    """

    workload: str
    says: str
    measured: float
    wanted: float

    @property
    def is_reached(self) -> bool:
        return self.measured >= self.wanted


@dataclass(frozen=True)
class Outcome:
    """What one workload gave.

    Args:
        checks: What was found equal, such as ``features of featlib and the loop: relative L2 2e-7``; a workload
            whose results are not equal raises instead.
    """

    figures: tuple[Figure, ...]
    targets: tuple[Target, ...] = ()
    checks: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Setting:
    """How a workload is run.

    Args:
        clips: Folder of clips; real ones where there are some, else generated.
        scratch: An empty folder for what the workload writes.
        rounds: How often everything is measured, interleaved.
        is_small: Only the check that results are equal, over as little as that needs; times mean nothing.
        options: Of single workloads.
    """

    clips: Path
    scratch: Path
    rounds: int = 3
    is_small: bool = False
    options: dict[str, str] = field(default_factory=dict)


class Workload(Protocol):
    """A function that measures one row of the table, such as ``benchmarks.decode:dense``."""

    def __call__(self, setting: Setting) -> Outcome: ...


def interleaved(subjects: Sequence[tuple[str, Callable[[], float]]], rounds: int) -> dict[str, tuple[float, ...]]:
    """Calls every subject once a round, in turn, so that what else the machine does strikes all alike.

    Returns:
        By subject, what its calls gave.
    """
    measured: dict[str, list[float]] = {name: [] for name, _ in subjects}
    for _ in range(rounds):
        for name, measure in subjects:
            measured[name].append(measure())
    return {name: tuple(values) for name, values in measured.items()}
