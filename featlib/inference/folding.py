"""Batch norm folded into the convolution before it: the same function with one operation less."""

from collections import Counter
from typing import cast

import torch
from torch import Tensor, fx, nn

from featlib.extractors.layers import Cut

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d
_Norm = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d


def fold_batch_norm(module: Cut) -> int:
    """Folds every batch norm that directly follows a convolution into it, in place; gives their number.

    One is left as it is where the convolution's own value is asked for or read elsewhere, where either runs more than
    once, and everywhere in a network that cannot be traced.
    """
    if not any(isinstance(m, _NORMS) for m in module.network.modules()):
        return 0
    traced = _traced(module.network)
    if traced is None:
        return 0
    modules = dict(traced.named_modules())
    calls = Counter(node.target for node in traced.graph.nodes if node.op == "call_module")
    folded = 0
    for node in list(traced.graph.nodes):
        if _is_foldable(node, modules, calls):
            _fold(traced, node, modules)
            folded += 1
    traced.delete_all_unused_submodules()  # the norms, whose parameters would be cast and exported along
    traced.graph.lint()
    traced.recompile()
    module.network = traced
    return folded


class _Tracer(fx.Tracer):
    """Keeps convolutions whole that networks derive from torch's only to add something beside the arithmetic."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return _is_convolution(m) or super().is_leaf_module(m, module_qualified_name)


def _is_convolution(module: nn.Module) -> bool:
    """Whether a module computes what torch's convolution does; a subclass may do more."""
    kind = next((k for k in _CONVOLUTIONS if isinstance(module, k)), None)
    if kind is None or "weight" not in module._parameters:  # a parametrised weight is computed anew at each call
        return False
    return all(getattr(type(module), n) is getattr(kind, n) for n in ("forward", "_conv_forward"))


def _traced(network: nn.Module) -> fx.GraphModule | None:
    if isinstance(network, fx.GraphModule):
        return network
    tracer = _Tracer()
    try:
        graph = tracer.trace(network)
        return fx.GraphModule(tracer.root, graph, type(network).__name__)
    except Exception:  # noqa: BLE001 - tracing calls the network with stand-ins, on which its code may fail in any way
        return None


def _is_foldable(node: fx.Node, modules: dict[str, nn.Module], calls: Counter[object]) -> bool:
    """Whether a node is a batch norm in eval mode whose input is a convolution that nothing else reads."""
    if node.op != "call_module" or len(node.args) != 1 or node.kwargs:
        return False
    norm, source = modules[str(node.target)], node.args[0]
    if type(norm) not in _NORMS or norm.running_mean is None or norm.training:  # a subclass may do more
        return False
    if not isinstance(source, fx.Node) or source.op != "call_module" or len(source.users) != 1:
        return False
    convolution = modules[str(source.target)]
    has_hooks = any(m._forward_pre_hooks or m._forward_hooks for m in (norm, convolution))
    once = calls[node.target] == calls[source.target] == 1
    return _is_convolution(convolution) and once and not has_hooks


def _fold(traced: fx.GraphModule, node: fx.Node, modules: dict[str, nn.Module]) -> None:
    (source,) = node.all_input_nodes
    convolution, norm = modules[str(source.target)], modules[str(node.target)]
    _absorb(cast(_Convolution, convolution), cast(_Norm, norm))
    node.replace_all_uses_with(source)
    traced.graph.erase_node(node)


def _absorb(convolution: _Convolution, norm: _Norm) -> None:
    """Scales the filters and moves the bias by the statistics, in float64; the values stay what they were."""
    mean = cast(Tensor, norm.running_mean).double()
    deviation = (cast(Tensor, norm.running_var).double() + norm.eps).sqrt()
    scale = (torch.ones_like(mean) if norm.weight is None else norm.weight.double()) / deviation
    bias = torch.zeros_like(mean) if convolution.bias is None else convolution.bias.double()
    moved = (bias - mean) * scale + (0 if norm.bias is None else norm.bias.double())
    per_filter = scale.reshape(-1, *(1,) * (convolution.weight.ndim - 1))
    convolution.weight = _frozen(convolution.weight.double() * per_filter, convolution.weight)
    convolution.bias = _frozen(moved, convolution.weight)


def _frozen(values: Tensor, like: Tensor) -> nn.Parameter:
    return nn.Parameter(values.to(like.dtype), requires_grad=False)
