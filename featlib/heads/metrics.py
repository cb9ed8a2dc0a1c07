"""How good predictions and embeddings are: top-k, mean average precision, confusion, recall at 1."""

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating]
Labels = npt.NDArray[np.int64]

_BLOCK = 1024  # rows that are held against all others at once


def top_k(scores: Floats, labels: Labels, k: int) -> float:
    """Share of rows of ``scores`` (N, classes) whose label is among the ``k`` best.

    Of equal scores the first classes count as better, as in ``argmax``, so that a constant guess earns nothing.
    """
    best = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return float((best == labels[:, None]).any(1).mean())


def mean_average_precision(scores: Floats, labels: Labels) -> float:
    """Mean over the classes that occur of the average precision of ranking all rows by that class's score.

    Rows of one score are taken in together, so that the order in which they come does not matter.
    """
    found = []
    for label in np.unique(labels):
        order = np.argsort(-scores[:, label], kind="stable")
        ranked, hits = scores[order, label], labels[order] == label
        ends = np.append(np.flatnonzero(ranked[1:] != ranked[:-1]), len(ranked) - 1)
        recalled = np.cumsum(hits)[ends]
        found.append((np.diff(recalled, prepend=0) * recalled / (ends + 1)).sum() / hits.sum())
    return float(np.mean(found))


def confusion(predicted: Labels, labels: Labels, num_classes: int) -> npt.NDArray[np.int64]:
    """(num_classes, num_classes): rows are true labels, columns predictions."""
    table = np.zeros((num_classes, num_classes), dtype=np.int64)
    np.add.at(table, (labels, predicted), 1)
    return table


def recall_at_1(vectors: Floats, labels: Labels) -> float:
    """Share of rows whose nearest other row, by Euclidean distance, has the same label; at least two rows."""
    exact = vectors.astype(np.float64)
    return float((labels[_nearest(exact, (exact**2).sum(1))] == labels).mean())


def neighbour_agreement(vectors: Floats) -> float:
    """Share of rows whose nearest other row is the same by Euclidean distance and by cosine; 1 on unit vectors."""
    exact = vectors.astype(np.float64)
    units = exact / np.linalg.norm(exact, axis=1, keepdims=True)
    by_distance, by_cosine = _nearest(exact, (exact**2).sum(1)), _nearest(units, np.ones(len(units)))
    return float((by_distance == by_cosine).mean())


def _nearest(rows: npt.NDArray[np.float64], squares: npt.NDArray[np.float64]) -> Labels:
    """(N,) the other row y of each row x at the smallest x.x - 2 x.y + y.y; ``squares`` are y.y."""
    nearest = np.empty(len(rows), np.int64)
    for start in range(0, len(rows), _BLOCK):
        closeness = rows[start : start + _BLOCK] @ rows.T - squares / 2
        closeness[np.arange(len(closeness)), np.arange(start, start + len(closeness))] = -np.inf
        nearest[start : start + _BLOCK] = closeness.argmax(1)
    return nearest
