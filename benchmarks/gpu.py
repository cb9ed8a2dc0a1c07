"""On a GPU: featlib's engine, uint8 frames in and features out, beside a bare autocast loop over finished tensors."""

import time
from collections.abc import Callable
from functools import partial
from statistics import median

import numpy as np
import torch

from benchmarks.features import UnequalError, relative_l2
from benchmarks.figures import Figure, Outcome, Setting, Target, interleaved
from featlib.config import ModelConfig, Precision
from featlib.extractors.build import build
from featlib.extractors.resolve import ResolvedModel, resolve
from featlib.extractors.weights import payload
from featlib.inference import Engine
from featlib.storage import StoreOptions

NETWORKS = ("resnet50", "r3d_18", "swin3d_t", "i3d_rgb")
_PRECISIONS = {"bf16": torch.bfloat16, "fp16": torch.float16}
_BOUND = 0.05
_SECONDS = 5.0
_OF_BARE = 0.9


def forward(setting: Setting) -> Outcome:
    """Rows a second of each network in each half precision."""
    if not torch.cuda.is_available():
        return Outcome(tuple(Figure(f"GPU, {n}", "featlib", "rows/s", (), "no CUDA device here") for n in NETWORKS))
    outcomes = [engine_and_loop(name, p, "cuda", setting.rounds) for name in NETWORKS for p in _PRECISIONS]
    return Outcome(
        tuple(f for o in outcomes for f in o.figures),
        tuple(t for o in outcomes for t in o.targets),
        tuple(c for o in outcomes for c in o.checks),
    )


def engine_and_loop(name: str, precision: Precision, device: str, rounds: int) -> Outcome:
    """One network in one precision on one device.

    Raises:
        UnequalError: The engine's features are not those of the bare loop.
    """
    title = f"GPU, {name} {precision}"
    model = resolve(ModelConfig(network=name, weights="random:0", precision=precision), StoreOptions())
    weights = payload(model, StoreOptions())
    engine = Engine((model,), weights, device=device)
    frames = _frames(model, engine.batch_size)
    frame_idx = np.arange(len(frames)).reshape(engine.batch_size, model.frames)
    bare = _Bare(model, weights, frames, device)
    check = _check(title, engine.run(frames, frame_idx)[0].features, bare.features())
    calls = {"featlib": partial(engine.run, frames, frame_idx), "bare autocast loop": bare.forward}
    measured = interleaved([(n, partial(_rate, call, engine.batch_size)) for n, call in calls.items()], rounds)
    figures = tuple(
        Figure(title, n, "rows/s", values, f"batches of {engine.batch_size}") for n, values in measured.items()
    )
    ratio = median(measured["featlib"]) / median(measured["bare autocast loop"])
    return Outcome(figures, (Target(title, "featlib over the bare loop", ratio, _OF_BARE),), (check,))


class _Bare:
    """The network in channels-last under autocast, its normalised input already on the device."""

    def __init__(self, model: ResolvedModel, weights: bytes, frames: np.ndarray, device: str) -> None:
        memory_format = torch.channels_last if model.input.is_flat else torch.channels_last_3d
        self._module = build(model, weights).to(device).to(memory_format=memory_format)
        x = torch.from_numpy(frames).to(device).reshape(-1, model.frames, *frames.shape[1:]).permute(0, 4, 1, 2, 3)
        mean, std = (torch.tensor(v, device=device).reshape(1, 3, 1, 1, 1) for v in (model.input.mean, model.input.std))
        x = (x.float() / 255 - mean) / std
        self._x = (x[:, :, 0] if model.input.is_flat else x).contiguous(memory_format=memory_format)
        self._device, self._dtype = device, _PRECISIONS[model.precision]

    def forward(self) -> torch.Tensor:
        with torch.inference_mode(), torch.autocast(self._device, dtype=self._dtype):
            return self._module(self._x)[0]

    def features(self) -> np.ndarray:
        return self.forward().float().flatten(1).cpu().numpy()


def _frames(model: ResolvedModel, batch: int) -> np.ndarray:
    """uint8 (batch * frames of a clip, height, width, 3)."""
    height, width = model.input.crop or (224, 224)
    return np.random.default_rng(0).integers(0, 256, (batch * model.frames, height, width, 3), dtype=np.uint8)


def _rate(call: Callable[[], object], batch: int) -> float:
    """Rows a second over some seconds; the device is idle before and after."""
    _finished(call)
    batches, started = 0, time.perf_counter()
    while not batches or time.perf_counter() - started < _SECONDS:
        _finished(call)
        batches += 1
    return batches * batch / (time.perf_counter() - started)


def _finished(call: Callable[[], object]) -> None:
    """A call, and the wait until the device has done it."""
    call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _check(title: str, found: np.ndarray, wanted: np.ndarray) -> str:
    off = relative_l2(found, wanted).max()
    if not off <= _BOUND:
        raise UnequalError(f"{title}: relative L2 {off:.2g} to the bare loop, over {_BOUND}")
    return f"{title}: features of the engine and the bare loop, relative L2 {off:.1g} (bound {_BOUND})"
