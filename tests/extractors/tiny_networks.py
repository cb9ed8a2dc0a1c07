"""Small networks of a user's own, right and wrong ones."""

import torch
from torch import Tensor, nn
from torch.nn import functional

import featlib

FRAMES = featlib.InputSpec(
    "frame", featlib.PixelSpec(resize=(40,), crop=(32, 32)), mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3)
)
CLIPS = featlib.InputSpec(
    "clip", featlib.PixelSpec(resize=(20, 24), crop=(16, 16), antialias=False), mean=(0.5,) * 3, std=(0.25,) * 3
)


class Tiny(nn.Module):
    """Two convolutions with batch norm and dropout; the classifier has 7 outputs unless told otherwise."""

    def __init__(self, num_classes: int = 7) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, stride=2)
        self.norm = nn.BatchNorm2d(8)
        self.second = nn.Conv2d(8, 16, 3, stride=2)
        self.dropout = nn.Dropout(0.5)
        self.head = nn.Linear(16, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(functional.relu(self.norm(self.first(x))))
        out: Tensor = self.head(self.dropout(functional.relu(x).mean(dim=(2, 3))))
        return out


class TinyClips(nn.Module):
    """One 3D convolution; it cannot be told the number of classes."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv3d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool3d(1), nn.Flatten())
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.body(x))
        return out


class DropoutLeftOn(Tiny):
    """Forgets to say when it trains."""

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.second(functional.relu(self.norm(self.first(x)))))
        out: Tensor = self.head(functional.dropout(x.mean(dim=(2, 3)), 0.5))
        return out


class NormAlwaysTrains(Tiny):
    """Its batch norm stays in train mode whatever it is told."""

    def train(self, mode: bool = True) -> "NormAlwaysTrains":
        super().train(mode)
        self.norm.train()
        return self


class NormOfTheBatch(Tiny):
    """Its batch norm keeps no statistics, so it takes those of the batch."""

    def __init__(self, num_classes: int = 7) -> None:
        super().__init__(num_classes)
        self.norm = nn.BatchNorm2d(8, track_running_stats=False)


class Neighbours(Tiny):
    """Takes the mean of the batch off."""

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = super().forward(x - 0.5 * x.mean(dim=0, keepdim=True))
        return out


class LooksAhead(Tiny):
    """Adds a little of the next clip in the batch."""

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = super().forward(x + 0.01 * x.roll(-1, dims=0))
        return out


class Float64(Tiny):
    """Gives its scores in double precision."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).double()


class AllFloat64(Tiny):
    """Computes in double precision, given weights of it."""

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = super().forward(x.double()).float()
        return out


class Random(Tiny):
    """Adds noise to its input."""

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = super().forward(x + 1e-3 * torch.randn_like(x))
        return out


class Blind(Tiny):
    """Looks at nothing."""

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = super().forward(x * 0 + 1)
        return out


class CountsCalls(Tiny):
    """Remembers in a buffer how often it was called."""

    def __init__(self, num_classes: int = 7) -> None:
        super().__init__(num_classes)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        out: Tensor = super().forward(x)
        return out


class ForgetsItsClasses(Tiny):
    """Takes the number of classes and pays no heed."""

    def __init__(self, num_classes: int = 7) -> None:
        super().__init__()


class Branches(Tiny):
    """Does what its input's values say, so it has no graph of layers."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x if len(x.shape) == 4 and bool(x.is_floating_point()) else -x)


tiny = featlib.own_network("tiny", Tiny, FRAMES)
tiny_clips = featlib.own_network("tiny_clips", TinyClips, CLIPS, sampling=featlib.ClipSampling(frames=4, hop=2))


def family() -> list[featlib.Network]:
    """Two networks."""
    return [tiny, tiny_clips]
