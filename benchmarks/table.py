"""The table that a person reads: one row a subject, ratios side by side, and what was found equal."""

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence

from benchmarks.figures import Figure, Outcome, Target

_LIMIT = "limit"
_RATE = re.compile(r"/ ?(CPU )?s\b")


def text(outcomes: Sequence[Outcome]) -> str:
    """Everything that was measured."""
    figures = [f for outcome in outcomes for f in outcome.figures]
    targets = [t for outcome in outcomes for t in outcome.targets]
    checks = [c for outcome in outcomes for c in outcome.checks]
    parts = [_columns(("workload", "subject", "value", "unit", "of the best", "rounds", "note"), _figure_rows(figures))]
    if targets:
        parts.append(_columns(("workload", "ratio", "measured", "target", ""), map(_target_row, targets)))
    return "\n\n".join([*parts, "\n".join(f"checked: {check}" for check in checks)]).rstrip()


def ratios(figures: Sequence[Figure]) -> list[float]:
    """Of each figure to the best of its workload in the same unit: 1 is the best, less is worse.

    The limit of a rate may exceed 1. Parts of a sum, and what is alone, are not compared.
    """
    best: dict[tuple[str, str], float] = {}
    subjects = Counter((f.workload, f.unit) for f in figures if f.rounds and not f.is_part)
    for figure in figures:
        if figure.rounds and not figure.is_part and not figure.subject.startswith(_LIMIT):
            key = figure.workload, figure.unit
            known = best.get(key)
            better = known is None or (figure.value < known if _is_time(figure) else figure.value > known)
            best[key] = figure.value if better else known or figure.value
    return [
        math.nan
        if figure.is_part or subjects[figure.workload, figure.unit] < 2
        else _ratio(figure, best.get((figure.workload, figure.unit), math.nan))
        for figure in figures
    ]


def _ratio(figure: Figure, best: float) -> float:
    if not figure.rounds or not best or not figure.value:
        return math.nan
    return best / figure.value if _is_time(figure) else figure.value / best


def _is_time(figure: Figure) -> bool:
    """Whether less is better: everything but so much a second."""
    return not _RATE.search(figure.unit)


def _figure_rows(figures: Sequence[Figure]) -> Iterable[Sequence[str]]:
    for figure, ratio in zip(figures, ratios(figures), strict=True):
        rounds = " ".join(number(value) for value in figure.rounds)
        to_best = "" if math.isnan(ratio) and figure.rounds else number(ratio)
        yield figure.workload, figure.subject, number(figure.value), figure.unit, to_best, rounds, figure.note


def _target_row(target: Target) -> Sequence[str]:
    verdict = "reached" if target.is_reached else "n/a" if math.isnan(target.measured) else "NOT REACHED"
    return target.workload, target.says, number(target.measured), number(target.wanted), verdict


def number(value: float) -> str:
    """Three digits that count; n/a for what was not measured."""
    if math.isnan(value):
        return "n/a"
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _columns(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Cells in columns; the numbers to the right, the last column as it comes."""
    cells = [tuple(head), *map(tuple, rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(head))]
    right = {i for i, name in enumerate(head) if name in ("value", "of the best", "measured", "target")}
    lines = [
        "  ".join(c.rjust(w) if i in right else c.ljust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True)))
        for row in cells
    ]
    return "\n".join(line.rstrip() for line in [lines[0], "-" * min(110, len(lines[0])), *lines[1:]])
