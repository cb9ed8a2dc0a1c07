"""Shapes, sizes and costs of a network without its weights: the network is run on tensors that hold no data."""

import warnings
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from featlib.errors import ConfigError
from featlib.extractors import layers
from featlib.extractors.network import Network, Settings
from featlib.spec import InputSpec

Shape = tuple[int, ...]
_MOST_FRAMES = 64  # how far the search for a network's shortest clip goes


@dataclass(frozen=True)
class Probe:
    """What a run without data tells.

    Args:
        last_layer: Name of the last learned layer in order of execution.
        num_classes: Outputs of that layer.
        feature_shape: Of one frame or clip.
        parameters: Learned numbers of the whole network.
        used: Names in the state dict on which the feature depends.
    """

    last_layer: str
    num_classes: int
    feature_shape: Shape
    parameters: int
    used: frozenset[str]


class _EmptyHoldsNoData(TorchFunctionMode):
    """Makes ``torch.empty`` give tensors without data.

    Layers allocate their weights with it. Tensors with values (``arange`` and the like) stay real: some
    constructors compute their architecture with them, so the meta device as a whole would not do.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        replaced = {"device": "meta"} if func is torch.empty else {}
        return func(*args, **{**(kwargs or {}), **replaced})


def skeleton(network: Network, settings: Settings) -> nn.Module:
    """The network in eval mode with no data in its learned weights, ready to have a state dict assigned."""
    with _EmptyHoldsNoData(), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return network.construct(settings).eval()


def side(reads: InputSpec) -> int:
    """Height of the network's input."""
    return reads.crop[0] if reads.crop else 0


def input_shape(reads: InputSpec, frames: int) -> Shape:
    """(C, H, W) for a frame or a stack of flow, (C, T, H, W) for a clip of T frames or flows."""
    if reads.crop is None:
        raise ConfigError("a preprocessing without a crop has no fixed input size; use one with a centre crop")
    if reads.flow is not None:
        flows = frames - 1
        return (3 + 2 * flows, *reads.crop) if reads.flow.with_rgb else (2, flows, *reads.crop)
    return (3, *reads.crop) if reads.kind == "frame" else (3, frames, *reads.crop)


@lru_cache(maxsize=256)
def probe(network: Network, settings: Settings, shape: Shape, layer: str) -> Probe:
    """Runs ``network``, cut at ``layer``, on an input of ``shape`` without the batch dimension.

    Raises:
        ConfigError: The network does not take this size, has no such layer, or the layer's value has no batch.
    """
    return _probe(network, settings, shape, layer, nullcontext())


def probe_and_count(network: Network, settings: Settings, shape: Shape, layer: str) -> tuple[Probe, int]:
    """As ``probe``, and the floating-point operations for one input; a multiply-add counts as two."""
    counter = FlopCounterMode(display=False)
    return _probe(network, settings, shape, layer, counter), int(counter.get_total_flops())


def _probe(
    network: Network, settings: Settings, shape: Shape, layer: str, first_run: AbstractContextManager[object]
) -> Probe:
    module = skeleton(network, settings).to("meta")
    try:
        with first_run:
            last_layer = layers.last_learned_layer(module, _batch(1, shape))
    except ConfigError:
        raise
    except Exception as error:  # a user's network may raise anything
        size = "x".join(map(str, shape[1:]))
        raise ConfigError(f"{network.name} does not take an input of {size} ({_first_line(error)})") from error
    extractor = layers.cut(module, [layer], last_layer)
    feature_shape = _feature_shape(extractor, shape, f"{network.name}: --layer {layer}")
    parameters = sum(p.numel() for p in module.parameters())
    last = module.get_submodule(last_layer)
    num_classes = int(last.out_features if isinstance(last, nn.Linear) else last.out_channels)  # type: ignore[arg-type]
    return Probe(last_layer, num_classes, feature_shape, parameters, _used(module, extractor, layer, last_layer))


def _feature_shape(extractor: layers.Cut, shape: Shape, what: str) -> Shape:
    # Two batch sizes tell whether the first dimension is the batch; the named layers are known to keep it.
    sizes = (2,) if extractor.layers[0] in layers.NAMED_LAYERS else (2, 3)
    shapes = []
    for size in sizes:
        with torch.inference_mode():
            try:
                shapes.append(tuple(extractor(_batch(size, shape))[0].shape))
            except Exception as error:  # a user's network may do anything
                reason = _first_line(error)
                raise ConfigError(f"{what} is no tensor of any batch ({reason}); choose another layer") from error
    if any(s[:1] != (size,) or s[1:] != shapes[0][1:] for s, size in zip(shapes, sizes, strict=True)):
        raise ConfigError(f"{what} does not have one value for each frame or clip; choose another layer")
    if len(shapes[0]) < 2:
        raise ConfigError(f"{what} is a single number; choose another layer")
    return shapes[0][1:]


def channel_axis(network: Network, settings: Settings, shape: Shape, layer: str) -> int | None:
    """Which axis of a map of three or more is that of the channels: the one that a larger picture leaves as it is.

    None for vectors and steps (their channels are the last axis), and where the network takes no other size or more
    than one axis stays.
    """
    feature_shape = probe(network, settings, shape, layer).feature_shape
    if len(feature_shape) < 3:
        return None
    *others, height, width = shape
    if network.kind == "clip" and network.exact_frames is None:
        others[-1] *= 2
    try:
        larger = probe(network, settings, (*others, 2 * height, 2 * width), layer).feature_shape
    except ConfigError:
        return None
    same = [axis for axis, (a, b) in enumerate(zip(feature_shape, larger, strict=True)) if a == b]
    return same[0] if len(same) == 1 else None


def _used(module: nn.Module, extractor: layers.Cut, layer: str, last_layer: str) -> frozenset[str]:
    if layer not in layers.NAMED_LAYERS:
        return frozenset(name.removeprefix("network.") for name in extractor.state_dict())
    skip = f"{last_layer}." if layer == "penultimate" else "\0"
    return frozenset(name for name in module.state_dict() if not name.startswith(skip))


def check_frames(network: Network, settings: Settings, reads: InputSpec, frames: int) -> None:
    """Whether a clip of ``frames`` frames can go through.

    Raises:
        ConfigError: It cannot; the message says how many frames can.
    """
    exact = network.exact_frames
    if exact is not None and frames != exact:
        raise ConfigError(f"{network.name}: frames={frames}, but it takes exactly {exact}; use frames={exact}")
    if exact is not None or _runs(network, settings, input_shape(reads, frames)):
        return
    longer = range(frames + 1, _MOST_FRAMES + 1)
    least = next((n for n in longer if _runs(network, settings, input_shape(reads, n))), None)
    if least is not None:
        raise ConfigError(f"{network.name}: frames={frames}, but it needs at least {least}; use frames={least}")


def _runs(network: Network, settings: Settings, shape: Shape) -> bool:
    try:
        probe(network, settings, shape, "penultimate")
    except ConfigError:
        return False
    return True


def _batch(size: int, shape: Shape) -> Tensor:
    return torch.empty((size, *shape), device="meta")


def _first_line(error: Exception) -> str:
    return " ".join(str(error).split())[:160]
