"""Two-stream networks: an image network for one frame and the same one for a stack of optical flow."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from featlib.flow.inflation import inflated_first_conv

_FIRST_CONVOLUTION = {"alexnet": "features.0", "vgg": "features.0", "resnet": "conv1"}
_HEAD = {"alexnet": "classifier.6", "vgg": "classifier.6", "resnet": "fc"}
_STREAMS = ("spatial", "temporal")


class Fusion(nn.Module):
    """Two vectors (N, D) as one: side by side (N, 2 D), their mean, or a weighted mean ``A:B`` (spatial first).

    (Simonyan and Zisserman, "Two-Stream Convolutional Networks", NIPS 2014, average the streams or put them side by
    side for an SVM; Wang et al., "Temporal Segment Networks", ECCV 2016, weigh 1:1.5.)

    Raises:
        ValueError: ``how`` is none of these.
    """

    def __init__(self, how: str) -> None:
        super().__init__()
        self.shares = None if how == "concat" else _shares(how)

    def forward(self, spatial: Tensor, temporal: Tensor) -> Tensor:
        if self.shares is None:
            return torch.cat([spatial, temporal], dim=1)
        return spatial * self.shares[0] + temporal * self.shares[1]


def _shares(how: str) -> tuple[float, float]:
    if how == "mean":
        return 0.5, 0.5
    try:
        first, second = (float(part) for part in how.split(":"))
    except ValueError:
        first = second = -1.0
    if not (0 <= first < float("inf") and 0 <= second < float("inf") and first + second > 0):
        raise ValueError(f"{how!r} must be concat, mean, or two weights like 1:1.5")
    return first / (first + second), second / (first + second)


class TwoStream(nn.Module):
    """A stack (N, 3 + 2 L, H, W) of one RGB frame and L flows to class scores (N, num_classes).

    The feature is what ``fusion`` gives of the two penultimate vectors. Scores are fused in the same way, by their mean
    where features are concatenated; before the softmax, as in Temporal Segment Networks, where the paper of 2014
    averaged probabilities.

    Args:
        build: Constructor of the image network.
        family: ``alexnet``, ``vgg`` or ``resnet``.
        flows: L.
        fusion: ``concat``, ``mean`` or weights like ``1:1.5``.
    """

    def __init__(
        self,
        build: Callable[..., nn.Module],
        family: str,
        num_classes: int = 1000,
        flows: int = 10,
        fusion: str = "concat",
    ) -> None:
        super().__init__()
        self.spatial, self.spatial_head = _split(build(num_classes=num_classes), _HEAD[family])
        self.temporal, self.temporal_head = _split(build(num_classes=num_classes), _HEAD[family])
        _replace(self.temporal, _FIRST_CONVOLUTION[family], _for_flow(self.temporal, family, 2 * flows))
        self.fusion = Fusion(fusion)
        self.scores = Fusion("mean" if fusion == "concat" else fusion)

    def forward(self, x: Tensor) -> Tensor:
        spatial, temporal = self.spatial(x[:, :3]), self.temporal(x[:, 3:])
        self.fusion(spatial, temporal)
        scores: Tensor = self.scores(self.spatial_head(spatial), self.temporal_head(temporal))
        return scores


def two_stream_state(state: Mapping[str, Tensor], family: str, flows: int = 10) -> Mapping[str, Tensor]:
    """A state dict of both streams (``spatial.*``, ``temporal.*``), or of one RGB network for both, as this network's.

    The RGB network's first convolution is inflated for the temporal stream.
    """
    if not any(key.startswith(tuple(f"{s}." for s in _STREAMS)) for key in state):
        first = f"{_FIRST_CONVOLUTION[family]}.weight"
        state = {f"{stream}.{key}": value for stream in _STREAMS for key, value in state.items()}
        if f"temporal.{first}" in state:
            state = {**state, f"temporal.{first}": inflated_first_conv(state[f"temporal.{first}"], 2 * flows)}
    heads = {f"{stream}.{_HEAD[family]}.": f"{stream}_head." for stream in _STREAMS}
    return {_renamed(key, heads): value for key, value in state.items()}


def _renamed(key: str, heads: Mapping[str, str]) -> str:
    start = next((old for old in heads if key.startswith(old)), None)
    return key if start is None else heads[start] + key.removeprefix(start)


def _split(network: nn.Module, head: str) -> tuple[nn.Module, nn.Module]:
    """The network up to its last layer, and that layer."""
    last = network.get_submodule(head)
    _replace(network, head, nn.Identity())
    return network, last


def _replace(network: nn.Module, name: str, layer: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(network.get_submodule(parent), child, layer)


def _for_flow(network: nn.Module, family: str, channels: int) -> nn.Conv2d:
    rgb = network.get_submodule(_FIRST_CONVOLUTION[family])
    if not isinstance(rgb, nn.Conv2d):
        raise TypeError(f"{_FIRST_CONVOLUTION[family]} of {type(network).__name__} is no convolution")
    sizes = {"stride": rgb.stride, "padding": rgb.padding}
    flow = nn.Conv2d(channels, rgb.out_channels, rgb.kernel_size, bias=rgb.bias is not None, **sizes)  # type: ignore[arg-type]
    flow.weight = nn.Parameter(inflated_first_conv(rgb.weight.detach(), channels))
    if rgb.bias is not None:
        flow.bias = nn.Parameter(rgb.bias.detach())
    return flow
