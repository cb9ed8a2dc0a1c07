"""A network cut at the layer whose values are the features."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from featlib.errors import ConfigError
from featlib.extractors.light_torchvision import feature_extraction
from featlib.extractors.registry import near

_END = "end"
NAMED_LAYERS = ("penultimate", "logits", "probabilities")
_LEARNED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


class Cut(nn.Module):
    """A network whose outputs are the values of some of its layers, all from one forward pass, in float32.

    ``penultimate`` is the input of the last learned layer, averaged over space and time: (N, D). ``logits`` is the
    network's own output, ``probabilities`` a softmax over its classes. A node of the graph keeps the shape it has.
    """

    def __init__(self, network: nn.Module, layers: Sequence[str], last_layer: str) -> None:
        super().__init__()
        self.layers = tuple(layers)
        self._pooled: Tensor | None = None
        self._channels_first = not isinstance(network.get_submodule(last_layer), nn.Linear)
        nodes = [layer for layer in self.layers if layer not in NAMED_LAYERS]
        self._nodes = {node: node for node in nodes}
        if nodes and len(nodes) < len(self.layers):
            network, last_layer = _Whole(network), f"network.{last_layer}"
            self._nodes = {node: f"network.{node}" for node in nodes} | {_END: _END}
        self.network = _extractor(network, list(self._nodes.values())) if nodes else network
        if "penultimate" in self.layers:
            self.network.get_submodule(last_layer).register_forward_pre_hook(self._keep, with_kwargs=True)

    def _keep(self, module: nn.Module, args: tuple[Tensor, ...], kwargs: Mapping[str, Tensor]) -> None:
        """Pools at once: what comes later may write into the tensor."""
        features = (args[0] if args else next(iter(kwargs.values()))).float()
        if features.ndim > 2:
            others = range(2, features.ndim) if self._channels_first else range(1, features.ndim - 1)
            features = features.mean(dim=tuple(others))
        self._pooled = features.clone()

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        out = self.network(x)
        values = {name: out[node] for name, node in self._nodes.items()} if self._nodes else {_END: out}
        pooled, self._pooled = self._pooled, None
        return tuple(self._value(layer, values, pooled) for layer in self.layers)

    def _value(self, layer: str, values: Mapping[str, Tensor], pooled: Tensor | None) -> Tensor:
        if layer == "penultimate":
            if pooled is None:
                raise RuntimeError("the last learned layer was not reached in this forward pass")
            return pooled
        if layer not in NAMED_LAYERS:
            return values[layer].float()
        logits = values[_END].float()
        return logits.softmax(dim=1) if layer == "probabilities" else logits


class _Whole(nn.Module):
    """A network whose output has a name in the graph."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.end = nn.Identity()
        self.training = network.training

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.end(self.network(x))
        return out


def _extractor(network: nn.Module, nodes: Sequence[str]) -> nn.Module:
    """``network`` as a module that gives a dictionary of the values of ``nodes``.

    Where there are several, each is copied as soon as it is there: layers behind it may write into it (an in-place
    ReLU does), and a feature must not depend on what else is asked for.
    """
    wanted = {node: node for node in nodes}
    extractor = feature_extraction.create_feature_extractor(network, wanted, suppress_diff_warning=True)
    if len(nodes) > 1:
        graph = extractor.graph
        (output,) = (node for node in graph.nodes if node.op == "output")
        kept = {}
        for name, node in output.args[0].items():
            with graph.inserting_after(node):
                kept[name] = graph.call_method("clone", (node,))
        output.args = (kept,)
        graph.lint()
        extractor.graph = graph
    return extractor  # type: ignore[no-any-return]


def cut(network: nn.Module, layers: Sequence[str], last_layer: str) -> Cut:
    """``network`` as a module whose outputs are the features: each a named layer or a graph node.

    Raises:
        ConfigError: The network has no such node; names close to it are listed.
    """
    nodes = [layer for layer in layers if layer not in NAMED_LAYERS]
    known = node_names(network) if nodes else []
    for layer in nodes:
        if layer not in known:
            listing = f"use {', '.join(NAMED_LAYERS)} or a node like {', '.join(known[-4:-1])}"
            raise ConfigError(f"--layer {layer}: no such layer; {near(layer, known, listing=listing)}")
    return Cut(network, layers, last_layer)


def node_names(network: nn.Module) -> list[str]:
    """Names that ``--layer`` takes: graph nodes, and modules for the last node inside them, in graph order."""
    names: dict[str, None] = {}
    for node in _graph_nodes(network):
        parts = node.split(".")
        names.update((".".join(parts[:depth]), None) for depth in range(1, len(parts) + 1))
    return list(names)


def _graph_nodes(network: nn.Module) -> list[str]:
    """Nodes of the network's graph in eval mode, in order.

    Raises:
        ConfigError: What the network does depends on values, so it has no graph.
    """
    try:
        nodes: list[str] = feature_extraction.get_graph_node_names(network, suppress_diff_warning=True)[1]
    except Exception as error:  # tracing calls the network with stand-ins, on which its code may fail in any way
        reason = " ".join(str(error).split())[:160]
        what = f"{type(network).__name__} cannot be traced ({reason})"
        raise ConfigError(f"--layer: {what}; use {', '.join(NAMED_LAYERS)}") from error
    return nodes


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
