"""Heads learn what pooling cannot: real training, a few seconds each, on three seeds (two of them in `make long`)."""

import numpy as np
import pytest
import torch
from torch import nn

from featlib.heads import training
from featlib.heads.metrics import recall_at_1, top_k
from featlib.heads.modules import TCN, Attention, Classifier, Embedding, Mean, Recurrent
from featlib.heads.training import TrainSettings, Videos, fit, padded, probabilities, vectors
from featlib.train_config import TrainConfig
from tests.heads.videos import D, many_classes, moving, planted

SEEDS = [0, *(pytest.param(seed, marks=pytest.mark.long) for seed in (1, 2))]
_SETTINGS = tuple(TrainSettings.__dataclass_fields__)


def order_heads() -> dict[str, nn.Module]:
    return {kind: Recurrent(D, kind, 32) for kind in ("rnn", "lstm", "gru")} | {"tcn": TCN(D, 32, blocks=3)}


def trained(head: nn.Module, train: Videos, classes: int, seed: int) -> Classifier:
    model = Classifier(head, classes)
    fit(model, train, moving(60, 100 + seed), TrainSettings(epochs=60, learning_rate=5e-3, seed=seed))
    return model


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", ["rnn", "lstm", "gru", "tcn"])
def test_order_is_learned(name: str, seed: int) -> None:
    torch.manual_seed(seed)
    model = trained(order_heads()[name], moving(200, seed), 2, seed)
    test = moving(200, 200 + seed)
    assert top_k(probabilities(model, test.steps), test.labels, 1) >= 0.95


@pytest.mark.parametrize("seed", SEEDS)
def test_the_mean_of_a_video_knows_no_order(seed: int) -> None:
    torch.manual_seed(seed)
    model = trained(Mean(D), moving(200, seed), 2, seed)
    test = moving(200, 200 + seed)
    assert 0.4 <= top_k(probabilities(model, test.steps), test.labels, 1) <= 0.6


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("bright", [True, False])
@pytest.mark.parametrize("kind", ["attention", "gated", "hard_attention"])
def test_attention_finds_the_planted_step(kind: str, bright: bool, seed: int) -> None:
    """With the settings that a head has when nobody says anything, also where the steps have nothing in common."""
    given = {"head": "attention", "gated": True} if kind == "gated" else {"head": kind}
    own = TrainConfig.model_validate(
        {"output": "o", "dataset": "d", "features": "a", "out": "h", "seed": seed, **given}
    )
    torch.manual_seed(own.seed)
    head = Attention(D, own.hidden or 0, gated=own.gated, hard=own.head == "hard_attention")
    model = Classifier(head, 3)
    (train, _), (validation, _), (test, places) = (
        planted(n, 10 * seed + i, bright=bright) for i, n in enumerate((600, 150, 200))
    )
    fit(model, train, validation, TrainSettings(**{name: getattr(own, name) for name in _SETTINGS}))
    _, weights = vectors(head, test.steps)
    found = np.array([int(np.argmax(w)) for w in weights if w is not None])
    assert (found == places)[places >= 0].mean() >= 0.9


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("loss", ["triplet", "contrastive"])
def test_an_embedding_lifts_retrieval_of_unseen_classes(loss: str, seed: int) -> None:
    torch.manual_seed(seed)
    head = Embedding(16, 128, 16)
    train, validation = many_classes(range(60), 8, seed), many_classes(range(60, 75), 8, 50 + seed)
    unseen = many_classes(range(75, 100), 8, 90 + seed)
    before = recall_at_1(np.stack([s.mean(0) for s in unseen.steps]), unseen.labels)
    settings = TrainSettings(loss=loss, epochs=60, batch_size=160, learning_rate=3e-3, seed=seed)
    fit(head, train, validation, settings)
    after = recall_at_1(vectors(head, unseen.steps)[0], unseen.labels)
    assert before < 0.6
    assert after >= 0.9


def test_training_twice_gives_the_same_weights_and_keeps_the_best_epoch() -> None:
    results = []
    for _ in range(2):
        torch.manual_seed(0)
        model = Classifier(TCN(D, 8, blocks=2), 2)
        done = fit(model, moving(40, 0), moving(20, 1), TrainSettings(epochs=12, patience=3))
        results.append((done.curve, model.state_dict()))
        losses = [epoch.validation_loss for epoch in done.curve]
        assert done.best == int(np.argmin(losses))
        assert len(losses) == 12 or len(losses) == done.best + 4
    assert results[0][0] == results[1][0]
    assert all(torch.equal(a, b) for a, b in zip(results[0][1].values(), results[1][1].values(), strict=True))


def test_one_long_video_does_not_make_every_batch_of_an_evaluation_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """150 videos of 3 steps and one of 5000: padded together, 64 of them would be 320 000 steps."""
    random = np.random.default_rng(0)
    lengths = [3] * 80 + [5000] + [3] * 70
    steps = [random.normal(size=(n, D)).astype(np.float32) for n in lengths]
    torch.manual_seed(0)
    model = Classifier(Recurrent(D, "gru", 4), 2)
    with torch.inference_mode():
        alone = torch.cat([model.eval()(torch.from_numpy(s)[None], torch.tensor([len(s)])).softmax(1) for s in steps])
    monkeypatch.setattr(training, "_MOST_VALUES", 10_000 * D)
    sizes = []
    monkeypatch.setattr(training, "padded", lambda part: sizes.append(len(part)) or padded(part))
    np.testing.assert_allclose(probabilities(model, steps), alone.numpy(), rtol=1e-5)
    assert sizes == [64, 16, 2, 64, 5]
    assert training.most_padded(151, 5000, D, batch_size=1) == 10_000 * D
    assert training.most_padded(151, 5000, D, batch_size=32) == 32 * 5000 * D
    assert training.most_padded(151, 20_000, D, batch_size=1) == 20_000 * D


def test_nothing_to_learn_from_is_said() -> None:
    with pytest.raises(ValueError, match="0 videos to train on and 2 to validate on"):
        fit(Classifier(Mean(D), 2), Videos([], np.array([], dtype=np.int64)), moving(2, 0), TrainSettings())
    with pytest.raises(ValueError, match="a video has no steps"):
        Videos([np.zeros((0, D), np.float32)], np.array([0]))
