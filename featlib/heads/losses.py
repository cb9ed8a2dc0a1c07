"""What metric embeddings learn from: pairs and triplets of vectors of unit length."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn import functional


def squared_distances(vectors: Tensor) -> Tensor:
    """(N, N) squared Euclidean distances; on unit vectors 2 - 2 cos, so both rank alike."""
    return torch.cdist(vectors, vectors, compute_mode="donot_use_mm_for_euclid_dist").square()


def contrastive_loss(vectors: Tensor, labels: Tensor, margin: float = 1.0) -> Tensor:
    """Hadsell, Chopra and LeCun (CVPR 2006) over all pairs of a batch.

    Pairs of one label cost their squared distance, others what they lack to ``margin``, squared; each half counts
    by its own number of pairs, so that the many unlike pairs do not drown the few alike.
    """
    upper = torch.ones(len(labels), len(labels), dtype=torch.bool, device=labels.device).triu(1)
    same = (labels[:, None] == labels[None]) & upper
    other = upper & ~same
    squared = squared_distances(vectors)
    distance = (squared + 1e-12).sqrt()
    return _mean(squared[same]) + _mean(functional.relu(margin - distance[other]).square())


def triplet_loss(vectors: Tensor, labels: Tensor, margin: float = 0.2) -> Tensor:
    """FaceNet's triplet loss (Schroff, Kalenichenko and Philbin, CVPR 2015) with semi-hard negatives.

    For each pair of one label the negative is the nearest one that lies further than the positive; where there is none,
    the furthest negative there is. Squared distances, ``margin`` 0.2.
    """
    squared = squared_distances(vectors)
    same = labels[:, None] == labels[None]
    anchors, positives = (same & ~torch.eye(len(labels), dtype=torch.bool, device=labels.device)).nonzero(as_tuple=True)
    keep = (~same).any(1)[anchors]
    anchors, positives = anchors[keep], positives[keep]
    to_positive = squared[anchors, positives]
    to_others = squared[anchors].masked_fill(same[anchors], torch.inf)
    further = to_others.masked_fill(to_others <= to_positive[:, None], torch.inf).min(1).values
    furthest = to_others.masked_fill(same[anchors], -torch.inf).max(1).values
    to_negative = torch.where(further.isinf(), furthest, further)
    return _mean(functional.relu(to_positive - to_negative + margin))


def _mean(values: Tensor) -> Tensor:
    """The mean; 0 of nothing, with a gradient."""
    return values.sum() / max(1, values.numel())


PAIR_LOSSES: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "contrastive": contrastive_loss,
    "triplet": triplet_loss,
}
