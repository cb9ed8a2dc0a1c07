"""How good predictions and embeddings are: top-k, mean average precision, confusion, recall at 1."""

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating]
Labels = npt.NDArray[np.int64]


def top_k(scores: Floats, labels: Labels, k: int) -> float:
    """Share of rows of ``scores`` (N, classes) whose label is among the ``k`` best; of equal scores all count."""
    own = scores[np.arange(len(labels)), labels]
    return float(((scores > own[:, None]).sum(1) < k).mean())


def mean_average_precision(scores: Floats, labels: Labels) -> float:
    """Mean over the classes that occur of the average precision of ranking all rows by that class's score."""
    found = []
    for label in np.unique(labels):
        order = np.argsort(-scores[:, label], kind="stable")
        hits = labels[order] == label
        precision = np.cumsum(hits) / np.arange(1, len(hits) + 1)
        found.append(precision[hits].mean())
    return float(np.mean(found))


def confusion(predicted: Labels, labels: Labels, num_classes: int) -> npt.NDArray[np.int64]:
    """(num_classes, num_classes): rows are true labels, columns predictions."""
    table = np.zeros((num_classes, num_classes), dtype=np.int64)
    np.add.at(table, (labels, predicted), 1)
    return table


def recall_at_1(vectors: Floats, labels: Labels) -> float:
    """Share of rows whose nearest other row, by Euclidean distance, has the same label."""
    squared = (vectors.astype(np.float64) ** 2).sum(1)
    distances = squared[:, None] + squared[None] - 2 * vectors.astype(np.float64) @ vectors.astype(np.float64).T
    np.fill_diagonal(distances, np.inf)
    return float((labels[distances.argmin(1)] == labels).mean())
