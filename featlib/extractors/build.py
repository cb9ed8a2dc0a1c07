"""A resolved model becomes a module: what an actor does once, before its first batch."""

from collections.abc import Sequence

import safetensors.torch
from torch import Tensor, nn

from featlib.extractors import probe, registry, state_dict
from featlib.extractors.layers import Cut, cut
from featlib.extractors.network import Settings
from featlib.extractors.resolve import ResolvedModel
from featlib.extractors.weights import MEAN_VOLUME
from featlib.models.detection import RegionDetector


def build(resolved: ResolvedModel, payload: bytes, layers: Sequence[str] = ()) -> Cut:
    """The network with its weights, cut at layers: eval mode, on the CPU, nothing to be trained.

    The module reads (N, C, H, W) or (N, C, T, H, W) in float32 and gives one float32 tensor a layer, (N, *shape).

    Args:
        layers: Their names; empty for the model's own layer alone.

    Raises:
        RuntimeError: The payload is not that of this model.
    """
    network = _loaded(resolved.network, resolved.settings, payload)
    return cut(network, layers or (resolved.layer,), resolved.last_layer).eval()


def _loaded(name: str, settings: Settings, payload: bytes) -> nn.Module:
    described = registry.network(name)
    network = probe.skeleton(described, settings)
    state = {k: v for k, v in safetensors.torch.load(payload).items() if k != MEAN_VOLUME}
    missing, unexpected = state_dict.assign(network, state)
    if any(buffer.is_meta for buffer in network.buffers()):  # in no state dict: the constructor alone fills it
        network = described.construct(settings)
        state_dict.assign(network, state)
    if missing or unexpected:
        raise RuntimeError(f"the payload is not of {name}: {', '.join([*missing, *unexpected][:3])}")
    return network.eval().requires_grad_(False)


def mean_volume(payload: bytes) -> Tensor | None:
    """The mean of each pixel that goes with a model, (3, T, H, W) in 0..255; None when it has none."""
    header = payload[8 : 8 + int.from_bytes(payload[:8], "little")]  # names come first, in JSON
    return safetensors.torch.load(payload)[MEAN_VOLUME] if f'"{MEAN_VOLUME}"'.encode() in header else None


def build_detector(resolved: ResolvedModel, payload: bytes) -> RegionDetector:
    """The detector with its weights: eval mode, on the CPU, nothing to be trained.

    Raises:
        RuntimeError: The payload is not that of this detector.
    """
    if resolved.regions is None:
        raise ValueError(f"{resolved.network} is no detector")
    network = _loaded(resolved.detector, resolved.settings, payload)
    return RegionDetector(network, resolved.regions).eval()
