"""A network whose device is lost over a white picture: everything that its process asks of it later fails, too."""

import torch
from torch import Tensor, nn

import featlib

_is_lost = False


class Poisoned(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        global _is_lost
        if x.device.type == "cpu":  # not where shapes are looked at
            _is_lost = _is_lost or bool((x == 1).flatten(1).all(dim=1).any())
            if _is_lost:
                raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")
        out: Tensor = self.head(self.body(x))
        return out


_PIXELS = featlib.PixelSpec(resize=(40,), crop=(32, 32))
net = featlib.own_network("poisoned", Poisoned, featlib.InputSpec("frame", _PIXELS, mean=(0, 0, 0), std=(1, 1, 1)))
