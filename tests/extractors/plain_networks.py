"""What torchvision does not have, written out in plain functions over a state dict: the truth of conformance tests.

Nothing of featlib takes part. Pads are constants read in the published definitions for even sizes, and each network
has the variants that ports get wrong, so that tests can show that they would be noticed.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

State = Mapping[str, Tensor]


@dataclass(frozen=True)
class Plain:
    """A network beside featlib's: its input side, its preprocessing of uint8 (N, T, H, W, 3), its feature.

    Args:
        mean: Per channel of values in 0..255, in the order of the network's channels.
        std: Likewise.
        bgr: The network reads blue first.
    """

    side: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    bgr: bool
    feature: Callable[[State, Tensor], Tensor]

    def input(self, clips: Tensor) -> Tensor:
        values = clips.double()[..., [2, 1, 0]] if self.bgr else clips.double()
        scaled = (values - torch.tensor(self.mean).double()) / torch.tensor(self.std).double()
        return scaled.permute(0, 4, 1, 2, 3).float().contiguous()


def c3d_pool5(x: Tensor) -> Tensor:
    """Caffe rounds the number of outputs up: the last window hangs over the edge."""
    return functional.max_pool3d(functional.pad(x, (0, 1, 0, 1), value=-torch.inf), 2)


def c3d_pool5_of_ports(x: Tensor) -> Tensor:
    return functional.max_pool3d(x, 2, padding=(0, 1, 1))


def c3d(state: State, x: Tensor, pool5: Callable[[Tensor], Tensor] = c3d_pool5) -> Tensor:
    """fc6 after its ReLU."""
    for names, pool in (
        (("conv1",), lambda y: functional.max_pool3d(y, (1, 2, 2))),
        (("conv2",), lambda y: functional.max_pool3d(y, 2)),
        (("conv3a", "conv3b"), lambda y: functional.max_pool3d(y, 2)),
        (("conv4a", "conv4b"), lambda y: functional.max_pool3d(y, 2)),
        (("conv5a", "conv5b"), pool5),
    ):
        for name in names:
            x = functional.conv3d(x, state[f"{name}.weight"], state[f"{name}.bias"], padding=1).clamp(min=0)
        x = pool(x)
    return functional.linear(x.flatten(1), state["fc6.weight"], state["fc6.bias"]).clamp(min=0)


# TensorFlow's "SAME" on even sizes, by kernel and stride: before, behind.
SAME = {(1, 1): (0, 0), (3, 1): (1, 1), (7, 2): (2, 3), (3, 2): (0, 1), (2, 2): (0, 0), (1, 2): (0, 0)}
SYMMETRIC = {**SAME, (7, 2): (3, 3), (3, 2): (1, 1)}
_POOLS = {"2a": ((1, 3, 3), (1, 2, 2)), "4a": ((3, 3, 3), (2, 2, 2)), "5a": ((2, 2, 2), (2, 2, 2))}


@dataclass(frozen=True)
class PlainI3D:
    pads: Mapping[tuple[int, int], tuple[int, int]]
    eps: float = 1e-3

    def __call__(self, state: State, x: Tensor) -> Tensor:
        """The mean over time of what the classifier reads: (N, 1024)."""
        x = self._pool(self._unit(state, "Conv3d_1a_7x7", x, 2), *_POOLS["2a"])
        x = self._unit(state, "Conv3d_2c_3x3", self._unit(state, "Conv3d_2b_1x1", x))
        x = self._pool(x, *_POOLS["2a"])
        for block in ("3b", "3c", "4a", "4b", "4c", "4d", "4e", "4f", "5a", "5b", "5c"):
            x = self._pool(x, *_POOLS[block]) if block in _POOLS else self._block(state, f"Mixed_{block}", x)
        return functional.avg_pool3d(x, (2, 7, 7), stride=1).mean(dim=(2, 3, 4))

    def _block(self, state: State, name: str, x: Tensor) -> Tensor:
        pooled = self._pool(x, (3, 3, 3), (1, 1, 1))
        branches = (
            self._unit(state, f"{name}.b0", x),
            self._unit(state, f"{name}.b1b", self._unit(state, f"{name}.b1a", x)),
            self._unit(state, f"{name}.b2b", self._unit(state, f"{name}.b2a", x)),
            self._unit(state, f"{name}.b3b", pooled),
        )
        return torch.cat(branches, 1)

    def _unit(self, state: State, name: str, x: Tensor, stride: int = 1) -> Tensor:
        weight = state[f"{name}.conv3d.weight"]
        x = functional.conv3d(self._padded(x, weight.shape[2:], (stride,) * 3), weight, stride=stride)
        mean, var = state[f"{name}.bn.running_mean"], state[f"{name}.bn.running_var"]
        scale = state[f"{name}.bn.weight"] / torch.sqrt(var + self.eps)
        shift = state[f"{name}.bn.bias"] - mean * scale
        return (x * scale[:, None, None, None] + shift[:, None, None, None]).clamp(min=0)

    def _pool(self, x: Tensor, kernel: tuple[int, ...], stride: tuple[int, ...]) -> Tensor:
        return functional.max_pool3d(self._padded(x, kernel, stride), kernel, stride)

    def _padded(self, x: Tensor, kernel: tuple[int, ...], stride: tuple[int, ...]) -> Tensor:
        pads = [self.pads[k, s] for k, s in zip(kernel, stride, strict=True)]
        return functional.pad(x, [n for pair in reversed(pads) for n in pair])


def factorised3d(state: State, x: Tensor) -> Tensor:
    def layer(name: str, x: Tensor) -> Tensor:
        weight = state[f"{name}.0.weight"]
        x = functional.conv3d(x, weight, padding=tuple(k // 2 for k in weight.shape[2:]))
        norm = [state[f"{name}.1.{part}"] for part in ("running_mean", "running_var", "weight", "bias")]
        return functional.batch_norm(x, *norm).clamp(min=0)

    x = functional.max_pool3d(layer("stem", x), (1, 2, 2))
    for i in range(3):
        x = functional.max_pool3d(layer(f"stages.{i}.1", layer(f"stages.{i}.0", x)), 2)
    return x.mean(dim=(2, 3, 4))


_KINETICS = (0.43216 * 255, 0.394666 * 255, 0.37645 * 255), (0.22803 * 255, 0.22145 * 255, 0.216989 * 255)

PLAIN = {
    "c3d": Plain(112, (90.0, 98.0, 102.0), (1.0, 1.0, 1.0), True, c3d),
    "i3d_rgb": Plain(224, (127.5,) * 3, (127.5,) * 3, False, PlainI3D(SAME)),
    "factorised3d": Plain(112, *_KINETICS, False, factorised3d),
}
