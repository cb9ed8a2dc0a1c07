"""Fitting heads on the features of videos: classifiers by cross-entropy, embeddings by pairs or triplets."""

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from featlib.config import Loss
from featlib.errors import StoppedError
from featlib.heads.losses import PAIR_LOSSES
from featlib.heads.modules import Classifier

Floats = npt.NDArray[np.float32]

_AT_ONCE = 64  # videos in a batch of an evaluation
_MOST_VALUES = 1 << 26  # and most values of it, padding included, where it is more than one video
_PAIRED = 256  # videos whose triplets are weighed together; memory grows with its third power


@dataclass(frozen=True)
class Videos:
    """Labelled videos: the steps of each, (T, D) with T at least 1, and its class as a number."""

    steps: Sequence[Floats]
    labels: npt.NDArray[np.int64]

    def __post_init__(self) -> None:
        if len(self.steps) != len(self.labels):
            raise ValueError(f"{len(self.steps)} videos, but {len(self.labels)} labels")
        if any(not len(s) for s in self.steps):
            raise ValueError("a video has no steps; leave it out")

    def __len__(self) -> int:
        return len(self.steps)


@dataclass(frozen=True)
class TrainSettings:
    """How a head is fitted.

    Args:
        batch_size: Videos in a batch; pairs and triplets are those of a batch.
        patience: Epochs without a better validation loss after which training ends.
        seed: Of the order of videos and of dropout; the head's first weights are drawn by whoever builds it.
    """

    loss: Loss = "cross_entropy"
    epochs: int = 100
    batch_size: int = 32
    learning_rate: float = 1e-3
    weight_decay: float = 1e-4
    patience: int = 10
    seed: int = 0


@dataclass(frozen=True)
class Epoch:
    """One line of the learning curve; losses are means over videos."""

    train_loss: float
    validation_loss: float


@dataclass
class Fit:
    """What training did.

    Args:
        best: Index of the epoch whose weights the module has now.
    """

    curve: list[Epoch] = field(default_factory=list)
    best: int = 0


def padded(steps: Sequence[Floats]) -> tuple[Tensor, Tensor]:
    """Videos as a batch (N, T, D), zero behind their ends, and their lengths (N,)."""
    lengths = torch.tensor([len(s) for s in steps])
    x = torch.zeros(len(steps), int(lengths.max()), steps[0].shape[1])
    for row, s in enumerate(steps):
        x[row, : len(s)] = torch.from_numpy(np.ascontiguousarray(s))
    return x, lengths


def fit(model: nn.Module, train: Videos, validation: Videos, settings: TrainSettings) -> Fit:
    """Fits ``model`` in place, a ``Classifier`` for cross-entropy and an ``Embedding`` for the others.

    It ends when the loss on ``validation`` has not become better for ``patience`` epochs, and leaves the weights of the
    best epoch. The same settings and data give the same weights on one machine.

    Raises:
        StoppedError: The loss is not finite any more.
        ValueError: There is nothing to learn from.
    """
    if not len(train) or not len(validation):
        raise ValueError(f"{len(train)} videos to train on and {len(validation)} to validate on; both need some")
    generator = torch.Generator().manual_seed(settings.seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay)

    def epoch() -> Epoch:
        train_loss = _epoch(model, train, settings, optimizer, generator)
        return Epoch(train_loss, _loss_of(model, validation, settings))

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        return until_no_better(model, epoch, epochs=settings.epochs, patience=settings.patience)


def until_no_better(model: nn.Module, epoch: Callable[[], Epoch], *, epochs: int, patience: int) -> Fit:
    """Calls ``epoch``, which changes ``model``, at most ``epochs`` times, and leaves the weights of the best one.

    It ends when the validation loss has not become better for ``patience`` epochs.

    Raises:
        StoppedError: A loss is not finite any more.
    """
    done, best_state = Fit(), copy.deepcopy(model.state_dict())
    for number in range(epochs):
        done.curve.append(epoch())
        if not np.isfinite([done.curve[number].train_loss, done.curve[number].validation_loss]).all():
            raise StoppedError(
                f"the loss is not finite after epoch {number + 1}; take a smaller --learning-rate, or inputs that are "
                "not so large"
            )
        if done.curve[number].validation_loss < done.curve[done.best].validation_loss or number == 0:
            done.best, best_state = number, copy.deepcopy(model.state_dict())
        if number - done.best >= patience:
            break
    model.load_state_dict(best_state)
    model.eval()
    return done


def _epoch(
    model: nn.Module,
    videos: Videos,
    settings: TrainSettings,
    optimizer: torch.optim.Optimizer,
    generator: torch.Generator,
) -> float:
    model.train()
    total = 0.0
    order = torch.randperm(len(videos), generator=generator).numpy()
    for rows in _batches(order, settings.batch_size):
        optimizer.zero_grad()
        loss = _loss(model, videos, rows, settings.loss)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        total += float(loss.detach()) * len(rows)
    return total / len(videos)


def _loss_of(model: nn.Module, videos: Videos, settings: TrainSettings) -> float:
    """The mean loss over ``videos``; pairs and triplets are those of large groups that are the same in every epoch."""
    model.eval()
    parts = list(_evaluated(videos.steps))
    if settings.loss != "cross_entropy":
        parts = list(_batches(np.random.default_rng(settings.seed).permutation(len(videos)), _PAIRED))
    with torch.inference_mode():
        return sum(float(_loss(model, videos, p, settings.loss)) * len(p) for p in parts) / len(videos)


def _loss(model: nn.Module, videos: Videos, rows: npt.NDArray[np.int64], loss: Loss) -> Tensor:
    x, lengths = padded([videos.steps[row] for row in rows])
    labels = torch.from_numpy(videos.labels[rows])
    if loss == "cross_entropy":
        return functional.cross_entropy(model(x, lengths), labels)
    return PAIR_LOSSES[loss](model(x, lengths).vector, labels)


def _batches(rows: npt.NDArray[np.int64], size: int) -> Iterator[npt.NDArray[np.int64]]:
    for start in range(0, len(rows), size):
        yield rows[start : start + size]


def _evaluated(steps: Sequence[Floats]) -> Iterator[npt.NDArray[np.int64]]:
    """Every video in turn, in batches that are bounded although all of one are padded to its longest."""
    start = longest = 0
    for place, video in enumerate(steps):
        longest, count = max(longest, len(video)), place - start
        if count and (count == _AT_ONCE or (count + 1) * longest * video.shape[1] > _MOST_VALUES):
            yield np.arange(start, place)
            start, longest = place, len(video)
    yield np.arange(start, len(steps))


def most_padded(num_videos: int, longest: int, size: int, batch_size: int) -> int:
    """Most values that ``fit`` and evaluations pad at once, of videos of up to ``longest`` steps of ``size`` values."""
    trained = min(num_videos, batch_size) * longest * size
    evaluated = min(min(num_videos, _AT_ONCE) * longest * size, max(_MOST_VALUES, longest * size))
    return max(trained, evaluated)


def probabilities(model: Classifier, steps: Sequence[Floats]) -> Floats:
    """Class probabilities (num_videos, num_classes)."""
    model.eval()
    found = []
    with torch.inference_mode():
        for rows in _evaluated(steps):
            found.append(model(*padded([steps[row] for row in rows])).softmax(1).numpy())
    return np.concatenate(found)


def vectors(head: nn.Module, steps: Sequence[Floats]) -> tuple[Floats, list[Floats | None]]:
    """The vector of each video (num_videos, size), and the weights of its steps from heads that weigh them."""
    head.eval()
    found: list[Floats] = []
    weights: list[Floats | None] = []
    with torch.inference_mode():
        for batch in _evaluated(steps):
            part = [steps[row] for row in batch]
            output = head(*padded(part))
            found.append(output.vector.numpy())
            rows = [None] * len(part) if output.weights is None else list(output.weights.numpy())
            weights += [None if w is None else w[: len(s)] for w, s in zip(rows, part, strict=True)]
    return np.concatenate(found), weights
