from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from featlib.errors import StoppedError
from featlib.finetuning.fitting import Evaluation, FitSettings, LabelledClips, Trainer, batches
from featlib.finetuning.network import Plan, Trainee
from featlib.finetuning.scores import confusion_of, scores
from featlib.inference import Normalisation
from featlib.spec import InputSpec, PixelSpec

READS = InputSpec("clip", PixelSpec((4, 6), (4, 6)), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
FRAMES = np.random.default_rng(0).integers(0, 256, (20, 4, 6, 3), np.uint8)


def settings(**values: Any) -> FitSettings:
    defaults = {"loss": "cross_entropy", "optimizer": "sgd", "learning_rate": 0.1, "momentum": 0.9, "weight_decay": 0.0}
    more = {"epochs": 3, "batch_size": 4, "patience": 3, "flip": False, "seed": 0}
    return FitSettings(**{**defaults, **more, **values})  # type: ignore[arg-type]


def trainer(network: nn.Module, **values: Any) -> Trainer:
    names = tuple(name for name, _ in network.named_modules())
    plan = Plan(names, frozenset(dict(network.named_parameters())), names, True)
    cpu = torch.device("cpu")
    return Trainer(Trainee(network.eval(), network, plan, ()), settings(**values), Normalisation(READS, cpu), cpu)


def clips(labels: list[int]) -> LabelledClips:
    count = len(labels)
    frame_idx = np.stack([np.arange(count), np.arange(count)[::-1]], axis=1)
    return LabelledClips(FRAMES, frame_idx, np.array(labels), np.arange(count) // 2)


def test_batches_hold_every_clip_once_and_are_of_nearly_one_size() -> None:
    labels = np.arange(33) % 3
    parts = list(batches(labels, 16, "cross_entropy", np.random.default_rng(0)))
    assert [len(p) for p in parts] == [11, 11, 11]
    assert sorted(np.concatenate(parts)) == list(range(33))
    again = list(batches(labels, 16, "cross_entropy", np.random.default_rng(1)))
    assert not np.array_equal(np.concatenate(parts), np.concatenate(again))


@pytest.mark.parametrize(("counts", "size"), [([16, 16], 8), ([40, 8], 24), ([8] * 30, 16)])
def test_batches_of_pairs_have_partners_and_opponents(counts: list[int], size: int) -> None:
    labels = np.repeat(np.arange(len(counts)), counts)
    for seed in range(20):
        parts = list(batches(labels, size, "contrastive", np.random.default_rng(seed)))
        assert sorted(np.concatenate(parts)) == list(range(len(labels)))
        for part in parts:
            _, of_class = np.unique(labels[part], return_counts=True)
            assert len(of_class) >= 2
            assert of_class.max() >= 2


def test_clips_are_mirrored_whole_and_about_half_of_them() -> None:
    many = LabelledClips(FRAMES, np.tile([[0, 1]], (200, 1)), np.zeros(200, np.int64), np.arange(200))
    plain = torch.from_numpy(FRAMES[[0, 1]]).permute(3, 0, 1, 2) / 255
    found = _seen(many, flip=True)
    mirrored = [torch.equal(x, plain.flip(3)) for x in found]
    assert all(m or torch.equal(x, plain) for m, x in zip(mirrored, found, strict=True))
    assert 60 < sum(mirrored) < 140
    assert all(torch.equal(x, plain) for x in _seen(many, flip=False))


def _seen(many: LabelledClips, *, flip: bool) -> torch.Tensor:
    """What a network reads in one epoch: (num_clips, 3, T, height, width)."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 2 * 4 * 6, 2))
    read: list[torch.Tensor] = []
    network.register_forward_pre_hook(lambda m, args: read.append(args[0]) if m.training else None)
    trainer(network, flip=flip, epochs=1).fit(many, many, lambda number, epoch: None)
    return torch.cat(read)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_weight_decay_shrinks_by_rate_times_decay(optimizer: str) -> None:
    """Adam's decay is decoupled: coupled to a gradient of zero it would be a whole step of 0.1."""
    network = nn.Linear(1, 1, bias=False)
    found = trainer(network, optimizer=optimizer, learning_rate=0.1, weight_decay=0.5)
    with torch.no_grad():
        network.weight.fill_(1.0)
    network.weight.grad = torch.zeros(1, 1)
    found.optimizer.step()
    assert float(network.weight.detach()) == pytest.approx(0.95)


def test_a_step_of_sgd_is_that_of_the_textbook() -> None:
    """One batch, one epoch: w - rate * gradient of the mean cross-entropy, by autograd on plain tensors."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 2 * 4 * 6, 2))
    weight, bias = (p.detach().clone().requires_grad_() for p in network.parameters())
    data = clips([0, 1, 1, 0])
    x = torch.from_numpy(FRAMES[data.frame_idx]).permute(0, 4, 1, 2, 3).flatten(1) / 255
    scores_of = x @ weight.T + bias
    loss = (scores_of.logsumexp(1) - scores_of[torch.arange(4), torch.tensor([0, 1, 1, 0])]).mean()
    loss.backward()
    done = trainer(network, epochs=1).fit(data, data, lambda number, epoch: None)
    assert done.curve[0].train_loss == pytest.approx(float(loss.detach()), rel=1e-6)
    torch.testing.assert_close(network[1].weight.detach(), (weight - 0.1 * weight.grad).detach())
    torch.testing.assert_close(network[1].bias.detach(), (bias - 0.1 * bias.grad).detach())


def test_vectors_have_length_one() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 2 * 4 * 6, 5))
    found = trainer(network, loss="triplet").evaluate(clips([0, 0, 1, 1]))
    np.testing.assert_allclose(np.linalg.norm(found.values, axis=1), 1, rtol=1e-6)


def test_training_that_diverges_says_so() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 2 * 4 * 6, 2), nn.Linear(2, 2), nn.Linear(2, 2))
    data = clips([0, 1] * 4)
    with pytest.raises(StoppedError, match="the loss is not finite after epoch 1; take a smaller --learning-rate"):
        trainer(network, learning_rate=1e25).fit(data, data, lambda number, epoch: None)


def test_early_stopping_keeps_the_best_epoch() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 2 * 4 * 6, 2))
    told: list[int] = []
    made = trainer(network, epochs=50, patience=2, learning_rate=0.5)
    other = clips([1, 0] * 4)  # what is learned is wrong there
    done = made.fit(clips([0, 1] * 4), other, lambda number, epoch: told.append(number))
    losses = [epoch.validation_loss for epoch in done.curve]
    assert done.best == int(np.argmin(losses))
    assert len(losses) == done.best + 3 < 50
    assert told == list(range(1, len(losses) + 1))
    assert made.evaluate(other).loss == losses[done.best]


def test_a_video_is_judged_by_the_mean_of_its_clips() -> None:
    values = np.array([[0.9, 0.1], [0.4, 0.6], [0.45, 0.55], [0.1, 0.9], [0.6, 0.4], [0.45, 0.55]], np.float32)
    data = LabelledClips(
        FRAMES, np.zeros((6, 1), np.int64), np.array([0, 0, 0, 1, 1, 0]), np.array([7, 7, 7, 9, 9, 11])
    )
    found = scores(Evaluation(0.5, values), data, "cross_entropy")
    assert found["videos"] == 3
    assert found["clips"] == 6
    assert found["top_1"] == pytest.approx(2 / 3)  # 0.583 for 0, 0.65 for 1, and one mistake
    assert found["clip_top_1"] == pytest.approx(2 / 6)
    assert confusion_of(Evaluation(0.5, values), data, 2).tolist() == [[1, 1], [0, 1]]


def test_recall_is_of_videos_not_of_neighbouring_clips() -> None:
    """Two clips of one video lie side by side, but its nearest other video is of the other class."""
    vectors = np.array([[1, 0], [0.99, 0.1], [0.9, 0.4], [-1, 0], [0, -1], [0, -0.99]], np.float32)
    data = LabelledClips(FRAMES, np.zeros((6, 1), np.int64), np.array([0, 0, 1, 0, 1, 1]), np.array([0, 0, 1, 2, 3, 3]))
    assert scores(Evaluation(0.5, vectors), data, "triplet")["recall_at_1"] == 0.0
