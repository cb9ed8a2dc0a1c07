"""A network by torch alone: the other side of the conformance test, with nothing of featlib's engine in it."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from featlib.extractors.network import Network, StateDict
from featlib.spec import FlowInput, InputSpec

if TYPE_CHECKING:
    from featlib.extractors.resolve import ResolvedModel

UInt8Clips = npt.NDArray[np.uint8]  # (num_clips, frames in a clip, height, width, 3), RGB

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_LEARNED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def pictures(count: int, height: int, width: int) -> npt.NDArray[np.uint8]:
    """(count, height, width, 3): smooth pictures that differ from one another, as frames of a video do."""
    random = np.random.default_rng(3)
    coarse = torch.from_numpy(random.random((count, 3, 8, 8), dtype=np.float32))
    smooth = nn.functional.interpolate(coarse, (height, width), mode="bilinear")
    return np.ascontiguousarray((smooth * 255).to(torch.uint8).permute(0, 2, 3, 1).numpy())


def prepared(reads: InputSpec, clips: UInt8Clips) -> Tensor:
    """The preprocessing by hand, over 255, less the mean, over the deviation: (N, 3, H, W) or (N, 3, T, H, W)."""
    if reads.flow is not None:
        return _prepared_flow(reads, reads.flow, clips)
    values = clips[..., ::-1] if reads.order == "bgr" else clips
    scaled = (values / 255.0 - np.array(reads.mean)) / np.array(reads.std)
    x = torch.from_numpy(np.moveaxis(scaled, -1, 1).astype(np.float32))
    return x[:, :, 0].contiguous() if reads.kind == "frame" else x


def made_up_flow(first: UInt8Clips, second: UInt8Clips) -> npt.NDArray[np.float32]:
    """(..., H, W, 2): no motion, but smooth, different for every pair of frames and beyond what networks clip at."""
    return (second[..., :2].astype(np.float32) - first[..., :2].astype(np.float32)) / np.float32(8)


def _prepared_flow(reads: InputSpec, flow: FlowInput, clips: UInt8Clips) -> Tensor:
    """Made-up flow as the network reads it, the middle frame before it where it wants one."""
    fields = np.clip(made_up_flow(clips[:, :-1], clips[:, 1:]).astype(np.float64), -flow.bound, flow.bound)
    shares = (fields + flow.bound) / (2 * flow.bound)
    if flow.quantised:
        shares = np.rint(shares * 255) / 255
    values = torch.from_numpy(((shares - flow.mean) / flow.std).astype(np.float32)).permute(0, 4, 1, 2, 3)
    if not flow.with_rgb:
        return values
    middle = (clips[:, clips.shape[1] // 2] / 255.0 - np.array(reads.mean)) / np.array(reads.std)
    rgb = torch.from_numpy(middle.astype(np.float32)).permute(0, 3, 1, 2)
    channels = [values[:, axis, field] for field in range(values.shape[2]) for axis in (0, 1)]
    return torch.cat([rgb, torch.stack(channels, dim=1)], dim=1)


def settled_state(network: Network, seed: int, reads: InputSpec, clips: UInt8Clips) -> dict[str, Tensor]:
    """What ``network`` is when built after ``torch.manual_seed(seed)``, with batch norm statistics from ``clips``."""
    side = reads.crop[0] if reads.crop else 0
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        module = network.construct(network.random_settings(side, False)).eval()
        for norm in (m for m in module.modules() if isinstance(m, _NORMS)):
            norm.train()
            norm.momentum = 1.0
        module(prepared(reads, clips))
    state = {k: v for k, v in module.state_dict().items() if not k.startswith(network.unused)}
    return {k: v.clone(memory_format=torch.contiguous_format) for k, v in state.items()}


def forward(network: Network, resolved: "ResolvedModel", state: StateDict) -> Callable[[UInt8Clips], Tensor] | None:
    """The network's own module as a function from clips to features (N, ...); None when its layer is no module."""
    module = network.construct(resolved.settings).eval()
    own = module.state_dict()
    if own.keys() != state.keys():
        raise ValueError(f"the state dict and the module differ in {', '.join(sorted(own.keys() ^ state.keys())[:3])}")
    with torch.no_grad():
        for key, tensor in own.items():
            tensor.copy_(state[key])
    reads, layer = resolved.input, resolved.layer
    if layer == "penultimate":
        return lambda clips: _last_input(module, prepared(reads, clips))
    if layer in ("logits", "probabilities"):
        return lambda clips: _output(module, prepared(reads, clips), softmax=layer == "probabilities")
    if layer not in dict(module.named_modules()):
        return None
    return lambda clips: _value(module, layer, prepared(reads, clips))


def _output(module: nn.Module, x: Tensor, *, softmax: bool) -> Tensor:
    logits: Tensor = module(x).float()
    return logits.softmax(1) if softmax else logits


def _value(module: nn.Module, layer: str, x: Tensor) -> Tensor:
    """The output of the submodule ``layer``."""
    kept: list[Tensor] = []
    hook = module.get_submodule(layer).register_forward_hook(lambda _module, _args, out: kept.append(out.clone()))
    try:
        module(x)
    finally:
        hook.remove()
    return kept[-1].float()


def _last_input(module: nn.Module, x: Tensor) -> Tensor:
    """What the last linear or convolution layer reads in this very run, averaged over space and time: (N, D)."""
    last: list[tuple[nn.Module, Tensor]] = []

    def keep(layer: nn.Module, args: tuple[Tensor, ...]) -> None:
        last[:] = [(layer, args[0])]

    hooks = [m.register_forward_pre_hook(keep) for m in module.modules() if isinstance(m, _LEARNED)]
    try:
        module(x)
    finally:
        for hook in hooks:
            hook.remove()
    layer, values = last[0]
    channels = values.ndim - 1 if isinstance(layer, nn.Linear) else 1
    others = [d for d in range(1, values.ndim) if d != channels]
    return values.float().mean(dim=others) if others else values.float()
