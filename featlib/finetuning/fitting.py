"""The training loop: batches of clips, one optimizer, early stopping on the validation loss."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from featlib.config import Loss
from featlib.finetuning.network import Trainee
from featlib.heads.losses import PAIR_LOSSES
from featlib.heads.training import Epoch, Fit, until_no_better
from featlib.inference import Normalisation, exact_arithmetic

Floats = npt.NDArray[np.float32]
Indices = npt.NDArray[np.int64]

_OF_ONE_CLASS = 4  # neighbours in a batch of pairs, so that every clip has a partner in it
_WEIGHED = 256  # clips whose pairs and triplets are weighed together; memory grows with the third power


@dataclass(frozen=True)
class LabelledClips:
    """Clips of one split.

    Args:
        frames: uint8 (num_frames, height, width, 3) in RGB.
        frame_idx: (num_clips, frames in a clip), rows of ``frames``.
        labels: (num_clips,) classes as numbers.
        videos: (num_clips,) which video a clip is of.
    """

    frames: npt.NDArray[np.uint8]
    frame_idx: Indices
    labels: Indices
    videos: Indices

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class FitSettings:
    """How a network is trained; the values of ``FinetuneConfig`` of the same names."""

    loss: Loss
    optimizer: Literal["sgd", "adam"]
    learning_rate: float
    momentum: float
    weight_decay: float
    epochs: int
    batch_size: int
    patience: int
    flip: bool
    seed: int


@dataclass(frozen=True)
class Evaluation:
    """What a network gives for clips.

    Args:
        loss: The mean over the clips.
        values: (num_clips, num_classes) probabilities, or (num_clips, D) unit vectors.
    """

    loss: float
    values: Floats


@dataclass
class Trainer:
    """A network on its device, and what changes it."""

    trainee: Trainee
    settings: FitSettings
    normalise: Normalisation
    device: torch.device
    random: np.random.Generator = field(init=False)
    optimizer: torch.optim.Optimizer = field(init=False)

    def __post_init__(self) -> None:
        self.random = np.random.default_rng(self.settings.seed)
        self.optimizer = make_optimizer(self.trainee, self.settings)

    def fit(self, train: LabelledClips, validation: LabelledClips, on_epoch: Callable[[int, Epoch], None]) -> Fit:
        """Trains the network in place and leaves the weights of the best epoch.

        The same settings and data give the same weights on one machine.

        Args:
            on_epoch: Told the number of each epoch, from 1, and what came out.

        Raises:
            StoppedError: The loss is not finite any more.
        """
        numbers = iter(range(1, self.settings.epochs + 1))

        def epoch() -> Epoch:
            done = Epoch(self._epoch(train), self.evaluate(validation).loss)
            on_epoch(next(numbers), done)
            return done

        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(self.settings.seed)
            return until_no_better(
                self.trainee.network, epoch, epochs=self.settings.epochs, patience=self.settings.patience
            )

    def _epoch(self, train: LabelledClips) -> float:
        """One pass over all clips; gives the mean loss on the way."""
        total = 0.0
        with self.trainee.learning() as output, exact_arithmetic(self.device):
            for rows in batches(train.labels, self.settings.batch_size, self.settings.loss, self.random):
                self.optimizer.zero_grad()
                loss = self._loss(self._forward(output, train, rows, flip=self.settings.flip), train.labels[rows])
                loss.backward()  # type: ignore[no-untyped-call]
                self.optimizer.step()
                total += float(loss.detach()) * len(rows)
        return total / len(train)

    def evaluate(self, clips: LabelledClips) -> Evaluation:
        """Loss and outputs in eval mode; pairs and triplets are those of large groups, the same every time."""
        size = self.settings.batch_size
        parts = [np.arange(start, min(start + size, len(clips))) for start in range(0, len(clips), size)]
        with torch.inference_mode(), exact_arithmetic(self.device):
            found = torch.cat([self._forward(self.trainee.output, clips, rows).cpu() for rows in parts])
            total = 0.0
            same = np.random.default_rng(self.settings.seed)
            for rows in batches(clips.labels, _WEIGHED, self.settings.loss, same):
                total += float(self._loss(found[torch.from_numpy(rows)], clips.labels[rows])) * len(rows)
        values = found.softmax(1) if self.settings.loss == "cross_entropy" else found
        return Evaluation(total / len(clips), values.numpy())

    def _forward(self, output: torch.nn.Module, clips: LabelledClips, rows: Indices, *, flip: bool = False) -> Tensor:
        """Class scores, or unit vectors."""
        pixels = torch.from_numpy(clips.frames[clips.frame_idx[rows]]).to(self.device)
        if flip:
            mirrored = torch.from_numpy(self.random.random(len(rows)) < 0.5).to(self.device)
            pixels[mirrored] = pixels[mirrored].flip(3)
        values: Tensor = output(self.normalise(pixels))
        return values if self.settings.loss == "cross_entropy" else functional.normalize(values, dim=1)

    def _loss(self, values: Tensor, labels: Indices) -> Tensor:
        wanted = torch.from_numpy(labels).to(values.device)
        if self.settings.loss == "cross_entropy":
            return functional.cross_entropy(values, wanted)
        return PAIR_LOSSES[self.settings.loss](values, wanted)


def make_optimizer(trainee: Trainee, settings: FitSettings) -> torch.optim.Optimizer:
    """The optimizer over what the plan trains; momentum is of SGD, Adam's weight decay is decoupled."""
    rate, decay = settings.learning_rate, settings.weight_decay
    if settings.optimizer == "sgd":
        return torch.optim.SGD(trainee.parameters(), rate, momentum=settings.momentum, weight_decay=decay)
    return torch.optim.AdamW(trainee.parameters(), rate, weight_decay=decay)


def batches(labels: Indices, size: int, loss: Loss, random: np.random.Generator) -> Iterator[Indices]:
    """Every row once, in batches of nearly one size (a last batch of one clip has no statistics to normalise by).

    For pairs and triplets a batch holds several clips of each of several classes, else most of many classes would
    have no partner in it, or, of few, no opponent.
    """
    order = random.permutation(len(labels))
    if loss != "cross_entropy":
        order = _mixed(labels, order, random)
    yield from np.array_split(order, -(-len(labels) // size))


def _mixed(labels: Indices, order: Indices, random: np.random.Generator) -> Indices:
    """``order`` with neighbours, four by four, of one class, and the fours of each class spread evenly."""
    groups: list[Indices] = []
    places: list[float] = []
    for label in np.unique(labels):
        mine = order[labels[order] == label]
        of_class = np.array_split(mine, -(-len(mine) // _OF_ONE_CLASS))
        start = random.random()
        places += [(number + start) / len(of_class) for number in range(len(of_class))]
        groups += of_class
    return np.concatenate([groups[n] for n in np.argsort(places, kind="stable")])
