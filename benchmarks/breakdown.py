"""A short job, second by second: what a person waits for between a command and its end."""

from collections.abc import Sequence
from statistics import median
from typing import Protocol

from benchmarks.figures import Figure
from benchmarks.programs import FEATLIB, Program, Ran

TITLE = "8 clips, command to exit"


class HasRuns(Protocol):
    """A program, and its runs over the clips once: featlib's short ones, the long ones of the others."""

    program: Program
    name: str
    short_runs: list[Ran]
    long_runs: list[Ran]


def figures(subjects: Sequence[HasRuns]) -> list[Figure]:
    """Seconds of the same eight clips for everybody, each in a fresh process."""
    return [
        Figure(TITLE, s.name, "s", tuple(r.whole_s for r in _once(s)), f"{len(_once(s)[-1].rows)} rows")
        for s in subjects
    ]


def lines(subjects: Sequence[HasRuns]) -> list[str]:
    """Where every second of featlib's went, a line a precision."""
    return [
        f"{s.name}, {TITLE}: " + ", ".join(f"{name} {seconds:.1f} s" for name, seconds in median_steps(_once(s)))
        for s in subjects
        if s.program is FEATLIB
    ]


def _once(subject: HasRuns) -> list[Ran]:
    return subject.short_runs if subject.program is FEATLIB else subject.long_runs


def median_steps(runs: Sequence[Ran]) -> list[tuple[str, float]]:
    """The steps of runs that took the same ones; of each its median."""
    found = [steps(run) for run in runs]
    names = [name for name, _ in found[0]]
    return [(name, median(dict(run).get(name, 0.0) for run in found)) for name in names]


def steps(run: Ran) -> list[tuple[str, float]]:
    """Consecutive stretches of one run, from command to exit; together they are all of it."""
    told = run.told
    moments = [(name, at) for name, at in told["moments"] if name != "result"]
    results = [at for name, at in told["moments"] if name == "result"]
    ends = [("Python and imports", told["started"]), *_named_by_what_ends(moments, told["started"])]
    if results:
        ends += [("until the first result", results[0]), ("until the last result", results[-1])]
    ends += [("publishing and summary", told["extracted"]), ("exit", run.began + run.whole_s)]
    found, before = [], run.began
    for name, at in ends:
        found.append((name, at - before))
        before = at
    return found


def _named_by_what_ends(moments: Sequence[tuple[str, float]], started: float) -> list[tuple[str, float]]:
    """A stage lasts until the next one begins; the last one's end is the first result."""
    names = ["before the first stage", *(name for name, _ in moments[:-1])]
    return [(name, at) for name, (_, at) in zip(names, moments, strict=True)]
