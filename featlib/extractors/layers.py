"""A network cut at the layer whose values are the features."""

import torch
from torch import Tensor, nn

from featlib.errors import ConfigError
from featlib.extractors.light_torchvision import feature_extraction
from featlib.extractors.registry import near

NAMED_LAYERS = ("penultimate", "logits", "probabilities")
_LEARNED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


class Penultimate(nn.Module):
    """The input of ``last_layer``, averaged over space and time: (N, ...) gives (N, D) in float32."""

    def __init__(self, network: nn.Module, last_layer: str) -> None:
        super().__init__()
        self.network = network
        self._input: Tensor | None = None
        last = network.get_submodule(last_layer)
        self._channels_first = not isinstance(last, nn.Linear)
        last.register_forward_pre_hook(self._keep)

    def _keep(self, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        self._input = args[0]

    def forward(self, x: Tensor) -> Tensor:
        self.network(x)
        features, self._input = self._input, None
        if features is None:
            raise RuntimeError("the last learned layer was not reached in this forward pass")
        features = features.float()
        if features.ndim == 2:
            return features
        others = range(2, features.ndim) if self._channels_first else range(1, features.ndim - 1)
        return features.mean(dim=tuple(others))


class Logits(nn.Module):
    """The network's own output, in float32; as probabilities after a softmax over the classes."""

    def __init__(self, network: nn.Module, *, softmax: bool) -> None:
        super().__init__()
        self.network = network
        self.softmax = softmax

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.network(x).float()
        return logits.softmax(dim=1) if self.softmax else logits


class Node(nn.Module):
    """The value of one node of the network's graph, in float32, in the shape the network gives it."""

    def __init__(self, network: nn.Module, node: str) -> None:
        super().__init__()
        self.graph = feature_extraction.create_feature_extractor(network, {node: "feature"}, suppress_diff_warning=True)

    def forward(self, x: Tensor) -> Tensor:
        feature: Tensor = self.graph(x)["feature"]
        return feature.float()


def cut(network: nn.Module, layer: str, last_layer: str) -> nn.Module:
    """``network`` as a module whose output is the feature: ``layer`` is a named layer or a graph node.

    Raises:
        ConfigError: The network has no such node; names close to it are listed.
    """
    if layer == "penultimate":
        return Penultimate(network, last_layer)
    if layer in NAMED_LAYERS:
        return Logits(network, softmax=layer == "probabilities")
    nodes = node_names(network)
    if layer not in nodes:
        listing = f"use {', '.join(NAMED_LAYERS)} or a node like {', '.join(nodes[-4:-1])}"
        raise ConfigError(f"--layer {layer}: no such layer; {near(layer, nodes, listing=listing)}")
    return Node(network, layer)


def node_names(network: nn.Module) -> list[str]:
    """Names that ``--layer`` takes: graph nodes, and modules for the last node inside them, in graph order.

    Raises:
        ConfigError: What the network does depends on values, so it has no graph.
    """
    try:
        nodes = feature_extraction.get_graph_node_names(network, suppress_diff_warning=True)[1]
    except Exception as error:  # tracing calls the network with stand-ins, on which its code may fail in any way
        reason = " ".join(str(error).split())[:160]
        what = f"{type(network).__name__} cannot be traced ({reason})"
        raise ConfigError(f"--layer: {what}; use {', '.join(NAMED_LAYERS)}") from error
    names: dict[str, None] = {}
    for node in nodes:
        parts = node.split(".")
        names.update((".".join(parts[:depth]), None) for depth in range(1, len(parts) + 1))
    return list(names)


def last_learned_layer(network: nn.Module, x: Tensor) -> str:
    """Name of the linear or convolution layer that runs last when ``network`` reads ``x``."""
    order: list[str] = []
    hooks = [
        module.register_forward_pre_hook(lambda _module, _args, name=name: order.append(name))
        for name, module in network.named_modules()
        if isinstance(module, _LEARNED)
    ]
    try:
        with torch.inference_mode():
            network(x)
    finally:
        for hook in hooks:
            hook.remove()
    if not order:
        raise ConfigError(f"{type(network).__name__} runs no linear or convolution layer; features are cut at those")
    return order[-1]
