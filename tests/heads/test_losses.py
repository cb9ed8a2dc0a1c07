"""Losses and metrics against the same thing counted by loops, and by hand."""

import itertools

import numpy as np
import pytest
import torch

from featlib.heads.losses import contrastive_loss, squared_distances, triplet_loss
from featlib.heads.metrics import confusion, mean_average_precision, neighbour_agreement, recall_at_1, top_k

LABELS = torch.tensor([0, 0, 1, 1, 2, 0])


def unit_vectors(seed: int = 0) -> torch.Tensor:
    vectors = torch.randn(6, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.nn.functional.normalize(vectors, dim=1)


def test_euclidean_and_cosine_rank_alike_on_unit_vectors() -> None:
    vectors = unit_vectors()
    squared = squared_distances(vectors)
    assert torch.allclose(squared, 2 - 2 * vectors @ vectors.T, atol=1e-9)
    others = list(range(1, 6))
    by_distance = sorted(others, key=lambda i: float(squared[0, i]))
    assert by_distance == sorted(others, key=lambda i: -float(vectors[0] @ vectors[i]))


@pytest.mark.parametrize("seed", range(5))
def test_triplet_loss_takes_semi_hard_negatives(seed: int) -> None:
    vectors = unit_vectors(seed)
    terms = []
    for a, p in itertools.permutations(range(6), 2):
        if LABELS[a] != LABELS[p]:
            continue
        positive = float((vectors[a] - vectors[p]).square().sum())
        negatives = [float((vectors[a] - vectors[n]).square().sum()) for n in range(6) if LABELS[n] != LABELS[a]]
        further = [n for n in negatives if n > positive]
        terms.append(max(0.0, positive - (min(further) if further else max(negatives)) + 0.2))
    assert float(triplet_loss(vectors, LABELS)) == pytest.approx(np.mean(terms), rel=1e-9)


def test_contrastive_loss_by_hand() -> None:
    vectors = torch.tensor([[0.0, 0.0], [0.6, 0.8], [0.3, 0.4]])
    labels = torch.tensor([0, 0, 1])
    alike, unlike = 1.0, [(1 - 0.5) ** 2, (1 - 0.5) ** 2]
    assert float(contrastive_loss(vectors, labels)) == pytest.approx(alike + np.mean(unlike), rel=1e-5)


@pytest.mark.parametrize("loss", [triplet_loss, contrastive_loss])
def test_a_batch_of_one_class_has_a_finite_gradient(loss: object) -> None:
    vectors = torch.ones(3, 4, requires_grad=True)
    assert callable(loss)
    value = loss(vectors / 2, torch.zeros(3, dtype=torch.int64))
    value.backward()
    assert torch.isfinite(value)
    assert vectors.grad is not None
    assert torch.isfinite(vectors.grad).all()


def test_metrics_by_hand() -> None:
    scores = np.array([[0.7, 0.2, 0.1], [0.5, 0.4, 0.1], [0.1, 0.3, 0.6], [0.2, 0.5, 0.3]])
    labels = np.array([0, 1, 2, 2])
    assert top_k(scores, labels, 1) == 0.5
    assert top_k(scores, labels, 2) == 1.0
    # class 0: first of its ranking. class 1: scores .5 .4 .3 .2, second. class 2: .6 .3, first and second.
    assert mean_average_precision(scores, labels) == pytest.approx((1 + 1 / 2 + 1) / 3)
    table = confusion(scores.argmax(1), labels, 3)
    assert table.tolist() == [[1, 0, 0], [1, 0, 0], [0, 1, 1]]


def test_a_constant_guess_earns_nothing_in_whatever_order_the_rows_come() -> None:
    """Where rows of one score were ranked as they come, sorted labels would make class 0 perfect."""
    labels = np.array([0, 0, 1, 1, 1, 2])
    same = np.full((6, 3), 1 / 3)
    assert top_k(same, labels, 1) == pytest.approx(2 / 6), "argmax says class 0"
    assert top_k(same, labels, 1) == np.trace(confusion(same.argmax(1), labels, 3)) / 6
    assert top_k(same, labels, 2) == pytest.approx(5 / 6)
    for order in (labels, labels[::-1]):
        assert mean_average_precision(same, order) == pytest.approx((2 / 6 + 3 / 6 + 1 / 6) / 3)
    assert top_k(np.full((6, 3), np.nan), np.full(6, 2), 1) == 0.0


def average_precision(scores: list[float], hits: list[bool]) -> float:
    """By its definition: the sum over thresholds of the precision there, times the recall gained there."""
    total, recall_before = 0.0, 0.0
    for threshold in sorted(set(scores), reverse=True):
        chosen = [hit for score, hit in zip(scores, hits, strict=True) if score >= threshold]
        precision, recall = sum(chosen) / len(chosen), sum(chosen) / sum(hits)
        total += precision * (recall - recall_before)
        recall_before = recall
    return total


@pytest.mark.parametrize("seed", range(5))
def test_metrics_by_their_definitions(seed: int) -> None:
    """Scores of few values, so that many are equal."""
    random = np.random.default_rng(seed)
    scores, labels = random.integers(0, 6, (40, 4)) / 6, random.integers(0, 4, 40)
    parts = [average_precision(scores[:, c].tolist(), (labels == c).tolist()) for c in range(4)]
    assert mean_average_precision(scores, labels) == pytest.approx(np.mean(parts), rel=1e-12)
    ranks = [
        sorted(range(4), key=lambda c: (-row[c], c)).index(label) for row, label in zip(scores, labels, strict=True)
    ]
    for k in (1, 2, 3, 4, 5):
        assert top_k(scores, labels, k) == np.mean([rank < k for rank in ranks])
    predicted = scores.argmax(1)
    for true, guess in itertools.product(range(4), repeat=2):
        count = sum(1 for t, p in zip(labels, predicted, strict=True) if (t, p) == (true, guess))
        assert confusion(predicted, labels, 4)[true, guess] == count


def test_neighbours_agree_on_unit_vectors_and_not_on_others() -> None:
    vectors = np.random.default_rng(0).normal(size=(1200, 8)).astype(np.float32)
    assert neighbour_agreement(vectors) < 0.9
    units = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    assert neighbour_agreement(units) > 0.999
    distances = np.linalg.norm(vectors[:, None].astype(np.float64) - vectors[None], axis=2)
    np.fill_diagonal(distances, np.inf)
    labels = np.arange(1200) % 5
    assert recall_at_1(vectors, labels) == (labels[distances.argmin(1)] == labels).mean()


def test_recall_at_1_by_hand() -> None:
    vectors = np.array([[0.0], [1.0], [10.0], [2.0]])
    assert recall_at_1(vectors, np.array([0, 0, 1, 1])) == 0.75  # only the last one's nearest is of the other class
