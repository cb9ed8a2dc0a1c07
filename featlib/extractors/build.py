"""A resolved model becomes a module: what an actor does once, before its first batch."""

from collections.abc import Sequence

import safetensors.torch
from torch import Tensor

from featlib.extractors import probe, registry, state_dict
from featlib.extractors.layers import Cut, cut
from featlib.extractors.resolve import ResolvedModel

MEAN_VOLUME = "input.mean_volume"
"""Key in a payload beside the weights: the mean of each pixel of a clip."""


def build(resolved: ResolvedModel, payload: bytes, layers: Sequence[str] = ()) -> Cut:
    """The network with its weights, cut at layers: eval mode, on the CPU, nothing to be trained.

    The module reads (N, C, H, W) or (N, C, T, H, W) in float32 and gives one float32 tensor a layer, (N, *shape).

    Args:
        layers: Their names; empty for the model's own layer alone.

    Raises:
        RuntimeError: The payload is not that of this model.
    """
    network = probe.skeleton(registry.network(resolved.network), resolved.settings)
    state = {k: v for k, v in safetensors.torch.load(payload).items() if k != MEAN_VOLUME}
    missing, unexpected = state_dict.assign(network, state)
    if missing or unexpected:
        raise RuntimeError(f"the payload is not of {resolved.network}: {', '.join([*missing, *unexpected][:3])}")
    network.eval().requires_grad_(False)
    return cut(network, layers or (resolved.layer,), resolved.last_layer).eval()


def mean_volume(payload: bytes) -> Tensor | None:
    """The mean of each pixel that goes with a model, (3, T, H, W) in 0..255; None when it has none."""
    header = payload[8 : 8 + int.from_bytes(payload[:8], "little")]  # names come first, in JSON
    return safetensors.torch.load(payload)[MEAN_VOLUME] if f'"{MEAN_VOLUME}"'.encode() in header else None
