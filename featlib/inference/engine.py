"""One engine for all networks: uint8 frames in, float32 features out, in batches of one fixed shape."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor

from featlib.arrays import Extracted, Flow, Ints, Stretches, UInt8
from featlib.extractors.build import build, mean_volume
from featlib.extractors.probe import input_shape
from featlib.extractors.resolve import ResolvedModel
from featlib.faults import is_of_no_clip
from featlib.inference.inputs import FlowClips, Loaded, Normalisation, PixelClips
from featlib.inference.kept import is_marked
from featlib.inference.prepared import autocast, exact_arithmetic, mark, prepared

Features = npt.NDArray[np.float32]

# Pixels in one batch: 8 and 64 pictures of 224 x 224. A CPU gains nothing from more; a batch that is not full costs
# as much as a full one.
_BATCH_PIXELS = {"cpu": 8 * 224 * 224, "cuda": 64 * 224 * 224}
# A compiled network has next to no cost of its own in each call: ResNet-50 ran through 24 to 25 pictures a second in
# batches of 2, 4, 8 and 16, R3D-18 through 2.77, 2.83 and 2.81 clips in batches of 1, 2 and 4 (bf16).
_COMPILED_PIXELS = 4 * 224 * 224
_MOST_IN_BATCH = 256


def default_batch_size(resolved: ResolvedModel, device: str) -> int:
    """Frames or clips in one batch when the user says nothing: as many as fit the device's budget of pixels."""
    height, width = resolved.input.crop or (224, 224)
    is_compiled = resolved.arithmetic == "compiled" and device == "cpu"
    budget = _COMPILED_PIXELS if is_compiled else _BATCH_PIXELS["cuda" if device.startswith("cuda") else "cpu"]
    return max(1, min(_MOST_IN_BATCH, budget // (resolved.frames * height * width)))


def layers_of(models: Sequence[ResolvedModel]) -> list[str]:
    """What one forward pass gives for all models that share it."""
    wanted = [m.layer for m in models] + ["logits"] * any(m.top_k for m in models)
    return list(dict.fromkeys(wanted))


def is_probably_kept(models: Sequence[ResolvedModel], threads: int) -> bool:
    """Whether this machine has compiled the network of models that share a forward pass before, for so many threads."""
    first = replace(models[0], arithmetic="compiled")
    batch_size = first.batch_size or default_batch_size(first, "cpu")
    return is_marked(mark(first, layers_of(models), batch_size, threads))


def one_line(error: Exception) -> str:
    """What went wrong with a clip."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


class Engine:
    """A network on a device, and the layers of it that make the features of one or several models.

    Every batch has the same shape: the last one is filled up by repeating its last clip. So a network is compiled
    or tuned once, and a clip's feature does not depend on how many others come with it.

    Args:
        models: That share one forward pass (``ResolvedModel.trunk``): layers of one network on the same clips.
        payload: Weights, from ``featlib.extractors.resolve.payload``.
        device: ``cpu``, ``cuda`` or ``cuda:N``.
        threads: CPU threads of this process; None leaves torch's own number.
        batch_size: Frames or clips in a batch; None takes the model's, else one by the device.
        is_trial: Whether a model of half precision that cannot be compiled may run as it is.

    Raises:
        NotCompiledError: As ``featlib.inference.prepared.prepared``.
    """

    def __init__(
        self,
        models: Sequence[ResolvedModel],
        payload: bytes,
        *,
        device: str = "cpu",
        threads: int | None = None,
        batch_size: int | None = None,
        is_trial: bool = False,
    ) -> None:
        if len({m.trunk for m in models}) != 1:
            raise ValueError(f"{', '.join(m.label for m in models)} cannot share a forward pass")
        if threads is not None:
            torch.set_num_threads(threads)
        self.device = torch.device(device)
        self.models = tuple(models)
        first = self._first = models[0]
        self.batch_size = batch_size or first.batch_size or default_batch_size(first, device)
        self._normalise = Normalisation(first.input, self.device, mean_volume(payload))
        self._layers = layers_of(models)
        ready = prepared(
            first, lambda: build(first, payload, self._layers), self._example, self.device, is_trial=is_trial
        )
        self._module, self._precision = ready.module, ready.precision
        self.notes: tuple[str, ...] = (ready.note,) if ready.note else ()

    def _example(self) -> Tensor:
        """A batch of fixed pictures as the network reads it."""
        random, reads = torch.Generator().manual_seed(0), self._first.input
        if reads.flow is not None:
            return torch.rand((self.batch_size, *input_shape(reads, self._first.frames)), generator=random)
        height, width = reads.crop or (0, 0)
        shape = (self.batch_size, self._first.frames, height, width, 3)
        return self._normalise(torch.randint(0, 256, shape, dtype=torch.uint8, generator=random))

    def run(self, frames: UInt8 | Stretches, frame_idx: Ints, flow: Flow | None = None) -> tuple[Extracted, ...]:
        """Features of clips cut from unique frames, for each model.

        Args:
            frames: (num_frames, height, width, 3), RGB, of the size that the model's preprocessing makes; empty for
                networks that read flow alone.
            frame_idx: (num_clips, frames in a clip), rows of ``frames``; padding repeats a row.
            flow: Between neighbouring frames of all clips, for networks that read it.

        Returns:
            One row a clip; where the network failed on a clip, the reason is among the errors and the row is zero.

        Raises:
            ValueError: The arrays are not of the model's size.
            Exception: For which no clip is to blame (``featlib.faults``): the batch does not fit, the GPU is lost.
        """
        stretches = frames if isinstance(frames, Stretches) else Stretches((frames,))
        self._check(stretches, frame_idx)
        if len(frame_idx) == 0:
            return tuple(Extracted.nothing(m.feature_shape) for m in self.models)
        loaded = self._load(stretches, frame_idx, flow)
        errors = dict(loaded.errors)
        done = list(self._fetched(loaded, len(frame_idx), errors))
        values = {
            layer: _gathered(len(frame_idx), [(rows, outputs[i]) for rows, outputs in done])
            for i, layer in enumerate(self._layers)
        }
        return tuple(self._extracted(m, values, errors) for m in self.models)

    def _fetched(
        self, loaded: Loaded, num_clips: int, errors: dict[int, str]
    ) -> Iterator[tuple[range, tuple[Features, ...]]]:
        """Values of all batches, each layer's apart; those of one come over while the next runs."""
        under_way: list[tuple[range, tuple[Callable[[], Features], ...]]] = []
        for batch in _batches(num_clips, self.batch_size):
            for rows, outputs in self._forward_or_each(loaded, batch, errors):
                under_way.append((rows, tuple(map(_fetching, outputs))))
                if len(under_way) > 1:
                    earlier, waits = under_way.pop(0)
                    yield earlier, tuple(wait() for wait in waits)
        for rows, waits in under_way:
            yield rows, tuple(wait() for wait in waits)

    def _load(self, frames: Stretches, frame_idx: Ints, flow: Flow | None) -> Loaded:
        reads = self._first.input
        if reads.flow is None:
            return PixelClips(frames.single, frame_idx, self._normalise, self.device)
        if flow is None:
            raise ValueError(f"{self._first.network} reads optical flow, but none is given")
        return FlowClips(frames, frame_idx, flow, reads, self._normalise, self.device)

    def _check(self, frames: Stretches, frame_idx: Ints) -> None:
        crop, network = self._first.input.pixels.crop, self._first.network
        for part in frames.arrays:
            size_fits = crop is None or part.shape[1:3] == crop
            if part.dtype != np.uint8 or part.ndim != 4 or part.shape[3] != 3 or not size_fits:
                size = "height, width" if crop is None else ", ".join(map(str, crop))
                raise ValueError(
                    f"frames are {part.dtype} {part.shape}, but {network} reads uint8 (num_frames, {size}, 3)"
                )
        if frame_idx.ndim != 2 or frame_idx.shape[1] != self._first.frames:
            raise ValueError(f"frame_idx is {frame_idx.shape}, but a clip of {network} has {self._first.frames} frames")
        reads = self._first.input
        if reads.flow is not None and not reads.flow.with_rgb:
            return  # of flow alone; its pairs are looked up
        if frame_idx.size and not 0 <= frame_idx.min() <= frame_idx.max() < len(frames):
            raise ValueError(
                f"frame_idx goes from {frame_idx.min()} to {frame_idx.max()}, but there are {len(frames)} frames"
            )

    def _forward_or_each(
        self, loaded: Loaded, rows: range, errors: dict[int, str]
    ) -> Iterator[tuple[range, tuple[Tensor, ...]]]:
        """Values of one batch; when the network raises, of each clip that goes through alone."""
        try:
            yield rows, self._forward(loaded, rows)
        except Exception as error:
            if is_of_no_clip(error):
                raise
            if len(rows) == 1:
                errors.setdefault(rows.start, one_line(error))
                return
            for row in rows:
                yield from self._forward_or_each(loaded, range(row, row + 1), errors)

    def _forward(self, loaded: Loaded, rows: range) -> tuple[Tensor, ...]:
        filled = np.minimum(np.arange(rows.start, rows.start + self.batch_size), rows.stop - 1)
        with torch.inference_mode(), exact_arithmetic(self.device), autocast(self._precision, self.device):
            outputs: tuple[Tensor, ...] = self._module(loaded.batch(filled))
            return tuple(values[: len(rows)].float().flatten(1) for values in outputs)

    def _extracted(self, model: ResolvedModel, values: dict[str, Features], errors: dict[int, str]) -> Extracted:
        mine, features = dict(errors), values[model.layer].copy()
        if not features.shape[1]:  # no clip went through
            features = np.zeros((len(features), int(np.prod(model.feature_shape))), np.float32)
        needed = np.isfinite(features).all(axis=1)
        if model.top_k:
            needed &= np.isfinite(values["logits"]).all(axis=1)
        for row in np.flatnonzero(~needed):
            features[row] = 0
            mine.setdefault(int(row), f"{model.network} gave NaN or infinite values with --precision {model.precision}")
        beside = best_classes(values["logits"], model.top_k, model.categories) if model.top_k else {}
        return Extracted(features, model.feature_shape, mine, None, beside)


def _batches(count: int, size: int) -> Iterator[range]:
    for start in range(0, count, size):
        yield range(start, min(start + size, count))


def _fetching(values: Tensor) -> Callable[[], Features]:
    """Begins to copy values to the CPU; what it gives waits for them. The device keeps no copy then."""
    if values.device.type == "cpu":
        return values.numpy
    pinned = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
    pinned.copy_(values, non_blocking=True)
    copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
    copied.record(torch.cuda.current_stream(values.device))

    def wait() -> Features:
        copied.synchronize()
        return pinned.numpy().copy()

    return wait


def _gathered(count: int, parts: Sequence[tuple[range, Features]]) -> Features:
    """Rows of parts as one array; rows that no part holds are zero."""
    width = parts[0][1].shape[1] if parts else 0
    gathered = np.zeros((count, width), np.float32)
    for rows, values in parts:
        gathered[rows.start : rows.stop] = values
    return gathered


def best_classes(logits: Features, top_k: int, categories: Sequence[str]) -> dict[str, pa.Array]:
    """The ``top_k`` most probable classes of each row, best first: their names and their probabilities.

    Args:
        logits: (num_rows, num_classes).
        categories: Names of the classes; a class without one is called by its number.
    """
    scores = torch.from_numpy(logits).double().softmax(1)
    probabilities, classes = scores.topk(min(top_k, logits.shape[1]), dim=1)
    names = [[categories[i] if i < len(categories) else str(i) for i in row] for row in classes.tolist()]
    return {
        "labels": pa.array(names, pa.list_(pa.string())),
        "probabilities": pa.array(probabilities.tolist(), pa.list_(pa.float32())),
    }
