"""I3D: Inception-v1 inflated to three dimensions (Carreira and Zisserman, "Quo Vadis, Action Recognition?", CVPR
2017)."""

from collections.abc import Sequence

import torch
import torch.fx
from torch import Tensor, nn
from torch.nn import functional

_BATCH_NORM_EPS = 1e-3

# Output channels of the convolutions in a block, as in Inception-v1 (Szegedy et al. 2015, table 1): 1x1; 1x1 and 3x3;
# 1x1 and 3x3 (5x5 in the paper, 3x3 in the published code); 1x1 after the pool.
_BLOCKS: dict[str, tuple[int, int, int, int, int, int]] = {
    "Mixed_3b": (64, 96, 128, 16, 32, 32),
    "Mixed_3c": (128, 128, 192, 32, 96, 64),
    "Mixed_4b": (192, 96, 208, 16, 48, 64),
    "Mixed_4c": (160, 112, 224, 24, 64, 64),
    "Mixed_4d": (128, 128, 256, 24, 64, 64),
    "Mixed_4e": (112, 144, 288, 32, 64, 64),
    "Mixed_4f": (256, 160, 320, 32, 128, 128),
    "Mixed_5b": (256, 160, 320, 32, 128, 128),
    "Mixed_5c": (384, 192, 384, 48, 128, 128),
}


def same_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """What TensorFlow's "SAME" puts before and behind an axis of ``size``: the odd one goes behind."""
    outputs = -(-size // stride)
    total = max(0, (outputs - 1) * stride + kernel - size)
    return total // 2, total - total // 2


def pad_same(x: Tensor, kernel: Sequence[int], stride: Sequence[int]) -> Tensor:
    """``x`` (N, C, T, H, W) with the zeros of "SAME" around it."""
    pads = [same_padding(size, k, s) for size, k, s in zip(x.shape[2:], kernel, stride, strict=True)]
    return functional.pad(x, [n for pair in reversed(pads) for n in pair])


torch.fx.wrap("pad_same")  # one node of the graph that layers are named in: its arithmetic needs real sizes


class Unit3D(nn.Module):
    """Convolution with "SAME" padding, batch norm, ReLU; the last one of the network is a convolution alone."""

    def __init__(
        self,
        channels: int,
        planes: int,
        kernel: tuple[int, int, int] = (1, 1, 1),
        stride: tuple[int, int, int] = (1, 1, 1),
        *,
        bare: bool = False,
    ) -> None:
        super().__init__()
        self.kernel, self.stride = kernel, stride
        self.conv3d = nn.Conv3d(channels, planes, kernel, stride, bias=bare)
        self.bn = None if bare else nn.BatchNorm3d(planes, eps=_BATCH_NORM_EPS)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv3d(pad_same(x, self.kernel, self.stride))
        return x if self.bn is None else functional.relu(self.bn(x))


class MaxPoolSame(nn.MaxPool3d):
    """Max pooling with "SAME" padding; what it reads has been through a ReLU, so a zero never wins wrongly."""

    def __init__(self, kernel: tuple[int, int, int], stride: tuple[int, int, int]) -> None:
        super().__init__(kernel, stride)
        self.kernel, self.steps = kernel, stride

    def forward(self, x: Tensor) -> Tensor:
        pooled: Tensor = super().forward(pad_same(x, self.kernel, self.steps))
        return pooled


class InceptionBlock(nn.Module):
    """Four branches side by side, joined over channels."""

    def __init__(self, channels: int, planes: tuple[int, int, int, int, int, int]) -> None:
        super().__init__()
        one, narrow_b, wide_b, narrow_c, wide_c, pooled = planes
        self.b0 = Unit3D(channels, one)
        self.b1a = Unit3D(channels, narrow_b)
        self.b1b = Unit3D(narrow_b, wide_b, (3, 3, 3))
        self.b2a = Unit3D(channels, narrow_c)
        self.b2b = Unit3D(narrow_c, wide_c, (3, 3, 3))
        self.b3a = MaxPoolSame((3, 3, 3), (1, 1, 1))
        self.b3b = Unit3D(channels, pooled)

    def forward(self, x: Tensor) -> Tensor:
        branches = [self.b0(x), self.b1b(self.b1a(x)), self.b2b(self.b2a(x)), self.b3b(self.b3a(x))]
        return torch.cat(branches, dim=1)


class I3D(nn.Module):
    """Clips (N, channels, T, 224, 224) in [-1, 1] to class scores (N, num_classes), averaged over time.

    The names of the submodules are those of the public PyTorch weights, which follow the published TensorFlow
    checkpoints. ``time`` gives what the classifier reads at each of its (T - 1) // 8 steps: (N, steps, 1024).

    Args:
        channels: 3 for RGB, 2 for optical flow (x, y).
    """

    def __init__(self, num_classes: int = 400, channels: int = 3) -> None:
        super().__init__()
        self.Conv3d_1a_7x7 = Unit3D(channels, 64, (7, 7, 7), (2, 2, 2))
        self.MaxPool3d_2a_3x3 = MaxPoolSame((1, 3, 3), (1, 2, 2))
        self.Conv3d_2b_1x1 = Unit3D(64, 64)
        self.Conv3d_2c_3x3 = Unit3D(64, 192, (3, 3, 3))
        self.MaxPool3d_3a_3x3 = MaxPoolSame((1, 3, 3), (1, 2, 2))
        self.Mixed_3b = InceptionBlock(192, _BLOCKS["Mixed_3b"])
        self.Mixed_3c = InceptionBlock(256, _BLOCKS["Mixed_3c"])
        self.MaxPool3d_4a_3x3 = MaxPoolSame((3, 3, 3), (2, 2, 2))
        self.Mixed_4b = InceptionBlock(480, _BLOCKS["Mixed_4b"])
        self.Mixed_4c = InceptionBlock(512, _BLOCKS["Mixed_4c"])
        self.Mixed_4d = InceptionBlock(512, _BLOCKS["Mixed_4d"])
        self.Mixed_4e = InceptionBlock(512, _BLOCKS["Mixed_4e"])
        self.Mixed_4f = InceptionBlock(528, _BLOCKS["Mixed_4f"])
        self.MaxPool3d_5a_2x2 = MaxPoolSame((2, 2, 2), (2, 2, 2))
        self.Mixed_5b = InceptionBlock(832, _BLOCKS["Mixed_5b"])
        self.Mixed_5c = InceptionBlock(832, _BLOCKS["Mixed_5c"])
        self.avg_pool = nn.AvgPool3d((2, 7, 7), stride=1)
        self.time = TimeSteps()
        self.dropout = nn.Dropout(0.5)
        self.logits = Unit3D(1024, num_classes, bare=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.MaxPool3d_2a_3x3(self.Conv3d_1a_7x7(x))
        x = self.MaxPool3d_3a_3x3(self.Conv3d_2c_3x3(self.Conv3d_2b_1x1(x)))
        x = self.MaxPool3d_4a_3x3(self.Mixed_3c(self.Mixed_3b(x)))
        x = self.Mixed_4f(self.Mixed_4e(self.Mixed_4d(self.Mixed_4c(self.Mixed_4b(x)))))
        x = self.Mixed_5c(self.Mixed_5b(self.MaxPool3d_5a_2x2(x)))
        steps = self.time(self.avg_pool(x))
        x = self.dropout(steps).transpose(1, 2)[..., None, None]
        scores: Tensor = self.logits(x).mean(dim=(2, 3, 4))
        return scores


class TimeSteps(nn.Module):
    """(N, C, T, H, W) to (N, T, C), averaged over what is left of space."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(dim=(3, 4)).transpose(1, 2)
