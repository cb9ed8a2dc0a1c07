"""A resolved model becomes a module: what an actor does once, before its first batch."""

import safetensors.torch
from torch import nn

from featlib.extractors import layers, probe, registry, state_dict
from featlib.extractors.resolve import ResolvedModel


def build(resolved: ResolvedModel, payload: bytes) -> nn.Module:
    """The network with its weights, cut at its layer: eval mode, on the CPU, nothing to be trained.

    The module reads (N, 3, H, W) or (N, 3, T, H, W) in float32 and gives (N, *feature_shape) in float32.

    Raises:
        RuntimeError: The payload is not that of this model.
    """
    described, state = registry.network(resolved.network), safetensors.torch.load(payload)
    network = probe.skeleton(described, resolved.settings)
    missing, unexpected = state_dict.assign(network, state)
    if any(buffer.is_meta for buffer in network.buffers()):  # in no state dict: the constructor alone fills it
        network = described.construct(resolved.settings)
        state_dict.assign(network, state)
    if missing or unexpected:
        raise RuntimeError(f"the payload is not of {resolved.network}: {', '.join([*missing, *unexpected][:3])}")
    network.eval().requires_grad_(False)
    return layers.cut(network, resolved.layer, resolved.last_layer).eval()
