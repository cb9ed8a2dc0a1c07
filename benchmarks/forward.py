"""Forward passes alone: featlib's engine against a loop written by hand around the same network, compiled by torch.

The loop knows nothing of featlib: torchvision's constructor, its preset's arithmetic, batch norm folded by torch, and
``torch.compile`` with frozen weights. Both run in this process, on one thread, over the same pictures, in turn; what is
counted is CPU time, so other work on the machine takes nothing away from either.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torchvision.models import get_model, get_model_weights

from benchmarks.figures import Figure, Outcome, Setting, Target, interleaved
from benchmarks.machine import this_machine

WANTED = 0.97
"""Of the bare loop; what the engine does beside the network must not cost more."""
_ALLOWED = {"fp32": 2e-5, "bf16": 2e-2}  # bf16 rounds to 8 bits, at other places in each
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
_ITEMS = {"frame": 16, "clip": 4}
_SEED = 0

Pixels = npt.NDArray[np.uint8]  # (num_items, T, H, W, 3)
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Loop:
    """Something that turns pixels into features, and how many items it takes at once."""

    run: Callable[[Pixels], Floats]
    batch_size: int


def forward(setting: Setting) -> Outcome:
    """ResNet-50, R3D-18 and R(2+1)D-18 in fp32 and bf16; ``options``: ``networks``, ``precisions``, ``threads``."""
    threads = torch.get_num_threads()
    torch.set_num_threads(int(setting.options.get("threads", "1")))
    networks = "resnet18" if setting.is_small else setting.options.get("networks", "resnet50,r3d_18,r2plus1d_18")
    precisions = "fp32" if setting.is_small else setting.options.get("precisions", "fp32,bf16")
    try:
        found = [_measured(n, p, setting) for n in networks.split(",") for p in precisions.split(",")
                 if p != "bf16" or this_machine().bf16]  # fmt: skip
    finally:
        torch.set_num_threads(threads)
    figures = tuple(figure for one in found for figure in one.figures)
    return Outcome(
        figures, tuple(t for one in found for t in one.targets), tuple(c for one in found for c in one.checks)
    )


def _measured(network: str, precision: str, setting: Setting) -> Outcome:
    started = time.process_time()
    engine = _engine(network, precision, is_compiled=not setting.is_small)
    engine_s, started = time.process_time() - started, time.process_time()
    bare = _bare(network, precision, engine.batch_size, is_compiled=not setting.is_small)
    pixels = _pixels(network)
    workload = f"{network} {precision}"
    check = _same(workload, bare.run(pixels), engine.run(pixels), _ALLOWED[precision])
    bare_s = time.process_time() - started
    subjects = [("limit", _rate(bare, pixels)), ("featlib", _rate(engine, pixels))]
    rounds = interleaved(subjects, setting.rounds)
    unit = f"{'clips' if pixels.shape[1] > 1 else 'frames'}/CPU s"
    notes = {
        "limit": f"batch {bare.batch_size}, made in {bare_s:.0f} CPU s",
        "featlib": f"made in {engine_s:.0f} CPU s",
    }
    figures = tuple(Figure(workload, name, unit, rounds[name], notes[name]) for name, _ in subjects)
    target = Target(workload, "featlib over the bare loop", figures[1].value / figures[0].value, WANTED)
    return Outcome(figures, (target,), (check,))


def _rate(loop: Loop, pixels: Pixels) -> Callable[[], float]:
    def measure() -> float:
        started = time.process_time()
        loop.run(pixels)
        return len(pixels) / (time.process_time() - started)

    return measure


def _same(workload: str, bare: Floats, engine: Floats, allowed: float) -> str:
    """
    Raises:
        AssertionError: The features are not equal; no figure would mean anything.
    """
    figure = float(np.linalg.norm(engine - bare) / np.linalg.norm(bare))
    if not figure < allowed:
        raise AssertionError(f"{workload}: features of featlib and the bare loop differ by {figure:.1e}")
    return f"{workload}: features of featlib and the bare loop: relative L2 {figure:.1e}"


def _pixels(network: str) -> Pixels:
    """Noise: a network takes as long over it as over anything."""
    preset: Any = get_model_weights(network).DEFAULT.transforms()
    frames, height = (16, preset.crop_size[0]) if len(preset.crop_size) == 2 else (1, preset.crop_size[0])
    count = _ITEMS["clip" if frames > 1 else "frame"]
    return np.random.default_rng(_SEED).integers(0, 256, (count, frames, height, height, 3), np.uint8)


def _engine(network: str, precision: str, *, is_compiled: bool) -> Loop:
    from featlib.config import ModelConfig
    from featlib.extractors.resolve import resolve
    from featlib.extractors.weights import payload
    from featlib.inference import Engine
    from featlib.storage import StoreOptions

    config = {"network": network, "weights": f"random:{_SEED}", "precision": precision}
    model = resolve(ModelConfig.model_validate(config), StoreOptions())
    if is_compiled:
        model = replace(model, arithmetic="compiled")
    engine = Engine([model], payload(model, StoreOptions()))
    if engine.notes:
        raise AssertionError(engine.notes[0])

    def run(pixels: Pixels) -> Floats:
        rows = np.arange(len(pixels) * pixels.shape[1]).reshape(pixels.shape[:2])
        (extracted,) = engine.run(pixels.reshape(-1, *pixels.shape[2:]), rows)
        return extracted.features

    return Loop(run, engine.batch_size)


def _bare(network: str, precision: str, batch_size: int, *, is_compiled: bool) -> Loop:
    import torch._inductor.config
    from torch.fx.experimental.optimization import fuse

    torch.manual_seed(_SEED)
    module = get_model(network)
    module.fc = nn.Identity()
    module = fuse(module.eval().requires_grad_(False)).to(_DTYPES[precision])
    preset: Any = get_model_weights(network).DEFAULT.transforms()
    is_flat = len(preset.crop_size) == 1
    if is_flat:
        module = module.to(memory_format=torch.channels_last)
    call: Any = module
    if is_compiled:
        torch._inductor.config.freezing = True
        call = torch.compile(module, dynamic=False)
    mean, std = (torch.tensor(v).reshape(1, 3, *(1,) * (2 if is_flat else 3)) for v in (preset.mean, preset.std))

    def prepare(pixels: Pixels) -> Tensor:
        x = torch.from_numpy(pixels)
        x = x[:, 0].permute(0, 3, 1, 2) if is_flat else x.permute(0, 4, 1, 2, 3)
        x = x.to(torch.float32).div_(255).sub_(mean).div_(std).to(_DTYPES[precision])
        return x if is_flat else x.contiguous()

    def run(pixels: Pixels) -> Floats:
        with torch.no_grad():
            parts = [call(prepare(pixels[i : i + batch_size])) for i in range(0, len(pixels), batch_size)]
        features: Floats = torch.cat(parts).float().numpy()
        return features

    return Loop(run, batch_size)
