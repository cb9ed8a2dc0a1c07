"""What is said of a trained head: its figures by split, as a table, as files and as a picture."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import nn

from featlib.heads.figures import table_csv
from featlib.heads.metrics import confusion, mean_average_precision, neighbour_agreement, recall_at_1, top_k
from featlib.heads.modules import Classifier
from featlib.heads.training import Fit, Videos, probabilities, vectors

_SHOWN_CLASSES = 20  # a larger confusion matrix is only written
_HEADINGS = {
    "videos": "videos",
    "top_1": "top-1",
    "top_5": "top-5",
    "mean_average_precision": "mAP",
    "recall_at_1": "recall@1",
    "neighbour_agreement": "Euclidean = cosine",
}

Counts = npt.NDArray[np.int64]
Figures = Mapping[str, float | None]


@dataclass(frozen=True)
class Evaluation:
    """How a head does on one split.

    Args:
        figures: By name; None where it says nothing (a retrieval needs two videos).
        confusion: (num_classes, num_classes), rows are labels, columns predictions; None of embeddings.
    """

    num_videos: int
    figures: Figures
    confusion: Counts | None


def evaluate(module: nn.Module, videos: Videos, num_classes: int) -> Evaluation:
    """Top-1, top-5, mean average precision and confusion of a classifier; of an embedding recall at 1, and how often
    the nearest neighbour by Euclidean distance is that by cosine."""
    if isinstance(module, Classifier):
        scores = probabilities(module, videos.steps)
        figures: Figures = {
            "top_1": top_k(scores, videos.labels, 1),
            "top_5": top_k(scores, videos.labels, 5),
            "mean_average_precision": mean_average_precision(scores, videos.labels),
        }
        return Evaluation(len(videos), figures, confusion(scores.argmax(1), videos.labels, num_classes))
    embedded, _ = vectors(module, videos.steps)
    alone = len(videos) < 2
    figures = {
        "recall_at_1": None if alone else recall_at_1(embedded, videos.labels),
        "neighbour_agreement": None if alone else neighbour_agreement(embedded),
    }
    return Evaluation(len(videos), figures, None)


@dataclass(frozen=True)
class TrainSummary:
    """What ``featlib train`` did; what the command prints.

    Args:
        title: The head and what it reads.
        head: URL of the saved head.
        sha256: Of it.
        evaluations: By split.
        notes: What a person should know besides, a line each.
    """

    title: str
    head: str
    sha256: str
    classes: tuple[str, ...]
    fit: Fit
    evaluations: Mapping[str, Evaluation]
    notes: tuple[str, ...]

    @property
    def exit_code(self) -> int:
        """0: a training that ends has done all of it."""
        return 0

    def to_dict(self) -> dict[str, Any]:
        """For JSON; also what ``metrics.json`` holds."""
        return {
            "title": self.title,
            "head": self.head,
            "head_sha256": self.sha256,
            "classes": list(self.classes),
            "epochs": len(self.fit.curve),
            "best_epoch": self.fit.best + 1,
            "splits": {name: {"videos": e.num_videos, **e.figures} for name, e in self.evaluations.items()},
            "notes": list(self.notes),
        }

    def text(self) -> str:
        """The summary for a person."""
        best = self.fit.curve[self.fit.best]
        lines = [
            f"{self.title}: {len(self.classes)} classes",
            f"  epoch {self.fit.best + 1} of {len(self.fit.curve)} is the best: validation loss "
            f"{best.validation_loss:.4f}, training loss {best.train_loss:.4f}",
            *_aligned(self._figures()),
            *self._confusion(),
            *(f"  {note}" for note in self.notes),
            f"  head: {self.head}",
        ]
        return "\n".join(lines)

    def _figures(self) -> list[list[str]]:
        splits = self.to_dict()["splits"]
        names = list(next(iter(splits.values())))
        rows = [[split, *(_number(row[name]) for name in names)] for split, row in splits.items()]
        return [["split", *(_HEADINGS[name] for name in names)], *rows]

    def _confusion(self) -> list[str]:
        split = next(name for name in ("test", "val") if name in self.evaluations)
        table = self.evaluations[split].confusion
        if table is None:
            return []
        if len(self.classes) > _SHOWN_CLASSES:
            return [f"  confusion of {len(self.classes)} classes: confusion.csv"]
        rows = [[label, *map(str, row)] for label, row in zip(self.classes, table.tolist(), strict=True)]
        return [
            f"  confusion on {split}, a row a label, a column a prediction:",
            *_aligned([["", *self.classes], *rows]),
        ]


def _number(value: float | None) -> str:
    return "-" if value is None else str(value) if isinstance(value, int) else f"{value:.3f}"


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table: the first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    cells = ([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))] for row in rows)
    return [f"    {'  '.join(line)}".rstrip() for line in cells]


def confusion_csv(evaluations: Mapping[str, Evaluation], classes: Sequence[str]) -> bytes | None:
    """The confusion matrix of each split, a row a label, a column a prediction; None of embeddings."""
    rows = [
        [split, label, *row]
        for split, e in evaluations.items()
        if e.confusion is not None
        for label, row in zip(classes, e.confusion.tolist(), strict=True)
    ]
    return table_csv([["split", "label", *classes], *rows]) if rows else None
