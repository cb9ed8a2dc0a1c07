"""The network that is trained: what it starts from, which of its layers learn, and how it is saved."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import safetensors.torch
import torch
from torch import Tensor, nn

from featlib.errors import ConfigError
from featlib.extractors import layers, probe, registry, state_dict
from featlib.extractors.metadata import WeightsMetadata
from featlib.extractors.network import Network, Settings
from featlib.extractors.resolve import ResolvedModel


@dataclass(frozen=True)
class Layers:
    """A network's modules in the order in which they begin to run; ``""`` is the network itself.

    Args:
        order: Every module that runs.
        learned: Those with parameters, and the names of these in the state dict. Parameters of a module that never
            runs itself (the projection inside an attention) count for the module around it that does.
    """

    order: tuple[str, ...]
    learned: Mapping[str, tuple[str, ...]]


def find_layers(network: nn.Module, x: Tensor) -> Layers:
    """The layers of ``network``, found by letting it read ``x``."""
    order: dict[str, None] = {}
    hooks = [
        module.register_forward_pre_hook(lambda _module, _args, name=name: order.setdefault(name))
        for name, module in network.named_modules()
    ]
    try:
        with torch.inference_mode():
            network(x)
    finally:
        for hook in hooks:
            hook.remove()
    learned: dict[str, list[str]] = {name: [] for name in order}
    for parameter, _ in network.named_parameters():
        owner = parameter.rpartition(".")[0]
        while owner not in order:
            owner = owner.rpartition(".")[0]
        learned[owner].append(parameter)
    return Layers(tuple(order), {name: tuple(mine) for name, mine in learned.items() if mine})


@dataclass(frozen=True)
class Plan:
    """What becomes of each part of a network.

    Args:
        layers: Names of the learned layers that are trained, in order.
        parameters: Names of what the optimizer changes.
        train_mode: Modules in train mode while it learns: the trained layers, and whatever runs behind the last
            frozen one (dropout); all others stay in eval mode, so that what they compute is what they will compute.
        trains_last: Whether the loss depends on the last layer; that of an embedding does not.
    """

    layers: tuple[str, ...]
    parameters: frozenset[str]
    train_mode: tuple[str, ...]
    trains_last: bool


def make_plan(found: Layers, unfreeze: str, last_layer: str, *, trains_last: bool) -> Plan | None:
    """Which layers ``all`` or ``last:N`` means; None when the loss depends on fewer than N."""
    candidates = [name for name in found.learned if trains_last or name != last_layer]
    wanted = len(candidates) if unfreeze == "all" else int(unfreeze.removeprefix("last:"))
    if wanted > len(candidates):
        return None
    trained = candidates[len(candidates) - wanted :]
    parameters = frozenset(p for name in trained for p in found.learned[name])
    frozen = candidates[: len(candidates) - wanted]
    if not frozen:
        return Plan(tuple(trained), parameters, found.order, trains_last)
    behind = found.order.index(frozen[-1]) + 1
    modes = (name for place, name in enumerate(found.order) if name in trained or place >= behind)
    return Plan(tuple(trained), parameters, tuple(modes), trains_last)


@dataclass(frozen=True)
class Trainee:
    """A network that learns.

    Args:
        output: The same network, cut where the loss looks: class scores (N, num_classes), or vectors (N, D).
        settings: Constructor arguments that give this network.
    """

    network: nn.Module
    output: nn.Module
    plan: Plan
    settings: Settings

    def parameters(self) -> list[nn.Parameter]:
        """What the optimizer changes."""
        return [p for p in self.network.parameters() if p.requires_grad]

    @contextmanager
    def learning(self) -> Iterator[nn.Module]:
        """``output`` with the modes of the plan; back in eval mode afterwards."""
        try:
            for name in self.plan.train_mode:
                self.network.get_submodule(name).training = True
            yield self.output
        finally:
            self.network.eval()


class _OneLayer(layers.Cut):
    """A network cut at one layer, whose output is that value alone."""

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x)[0]


def plan_for(resolved: ResolvedModel, unfreeze: str, *, trains_last: bool) -> Plan:
    """The plan for a model, made without its weights.

    Raises:
        ConfigError: It has fewer layers than are to be trained.
    """
    network = registry.network(resolved.network)
    x = torch.empty((1, *probe.input_shape(resolved.input, resolved.frames)), device="meta")
    found = find_layers(probe.skeleton(network, resolved.settings).to("meta"), x)
    plan = make_plan(found, unfreeze, resolved.last_layer, trains_last=trains_last)
    if plan is None:
        count = len(found.learned) - (not trains_last)
        behind = "" if trains_last else " in front of its last one"
        raise ConfigError(
            f"--unfreeze {unfreeze}: {network.name} has {count} learned layers{behind}; give all, or last:N with N "
            f"up to {count}"
        )
    return plan


def start(resolved: ResolvedModel, payload: bytes, plan: Plan, *, num_classes: int | None, seed: int) -> Trainee:
    """The network with its weights, ready to learn: on the CPU, eval mode, gradients for the trained layers only.

    It is built as from a file, since that is how the result will be read (torchvision's Inception, for one, differs).

    Args:
        num_classes: Of a new last layer, drawn by ``seed`` as the network's constructor draws it; None keeps the old. A
            network whose constructor takes no ``num_classes`` must have as many already.

    Raises:
        RuntimeError: The payload is not that of this model.
    """
    network = registry.network(resolved.network)
    settings = _settings(network, resolved, num_classes or resolved.num_classes)
    tensors = safetensors.torch.load(payload)
    last = f"{resolved.last_layer}."
    if num_classes is not None:
        tensors = {k: v for k, v in tensors.items() if not k.startswith(last)}
    module = _constructed(network, settings, seed)
    missing, unexpected = state_dict.assign(module, tensors)
    lost = [k for k in missing if num_classes is None or not k.startswith(last)]
    if lost or unexpected:
        raise RuntimeError(f"the payload is not of {network.name}: {', '.join([*lost, *unexpected][:3])}")
    module.eval()
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(name in plan.parameters)
    output = _OneLayer(module, ["logits" if plan.trains_last else "penultimate"], resolved.last_layer)
    return Trainee(module, output.eval(), plan, settings)


def _settings(network: Network, resolved: ResolvedModel, num_classes: int) -> Settings:
    settings = network.settings(probe.side(resolved.input), True)
    return (*settings, ("num_classes", num_classes)) if network.takes_num_classes else settings


def _constructed(network: Network, settings: Settings, seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return network.constructor(**dict(settings))


def as_safetensors(trainee: Trainee, metadata: WeightsMetadata) -> bytes:
    """The complete state dict as the bytes of a file that ``--weights`` takes."""
    state = {name: tensor.cpu() for name, tensor in state_dict.complete(trainee.network).items()}
    data: bytes = safetensors.torch.save(state, metadata=metadata.to_safetensors())
    return data


def preset_enum(resolved: ResolvedModel) -> str:
    """Full enum name of a preset that makes the model's input: one of its own network where there is one."""
    first = registry.network(resolved.network)
    networks = (first, *(registry.network(name) for name in registry.names()))
    return next(p.enum for network in networks for p in network.pretrained if p.input == resolved.input)
