"""One engine for all networks: uint8 frames in, float32 features out, in batches of one fixed shape."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from featlib.extractors.build import build
from featlib.extractors.resolve import ResolvedModel
from featlib.spec import InputSpec, Kind

UInt8Frames = npt.NDArray[np.uint8]
Indices = npt.NDArray[np.integer]
Features = npt.NDArray[np.float32]

_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}
# Pixels in one batch: 8 and 64 pictures of 224 x 224. A CPU gains nothing from more; a batch that is not full costs
# as much as a full one.
_BATCH_PIXELS = {"cpu": 8 * 224 * 224, "cuda": 64 * 224 * 224}
_MOST_IN_BATCH = 256
_FATAL = (torch.OutOfMemoryError, torch.AcceleratorError, MemoryError)


def default_batch_size(resolved: ResolvedModel, device: str) -> int:
    """Frames or clips in one batch when the user says nothing: as many as fit the device's budget of pixels."""
    height, width = resolved.input.pixels.crop or (224, 224)
    budget = _BATCH_PIXELS["cuda" if device.startswith("cuda") else "cpu"]
    return max(1, min(_MOST_IN_BATCH, budget // (resolved.frames * height * width)))


class Normalisation:
    """From uint8 pictures to a network's input: the operations of torchvision's presets, in the same order."""

    def __init__(self, reads: InputSpec, device: torch.device) -> None:
        channels = (1, 3, *(1,) * (3 if reads.kind == "clip" else 2))
        self._reads = reads
        self._mean = torch.tensor(reads.mean, device=device).reshape(channels)
        self._std = torch.tensor(reads.std, device=device).reshape(channels)

    def __call__(self, clips: Tensor) -> Tensor:
        """uint8 (N, T, H, W, 3) in RGB on the device to float32 (N, 3, H, W), or (N, 3, T, H, W) for clips."""
        if self._reads.order == "bgr":
            clips = clips.flip(-1)
        is_frame = self._reads.kind == "frame"
        x = clips.squeeze(1).permute(0, 3, 1, 2) if is_frame else clips.permute(0, 4, 1, 2, 3)
        x = x.to(torch.float32).div_(255)
        x.sub_(self._mean).div_(self._std)
        return x if is_frame else x.contiguous()


def exact_arithmetic(device: torch.device) -> AbstractContextManager[object]:
    """fp32 means fp32: cuDNN would otherwise round the inputs of convolutions to 10 bits (TF32)."""
    if device.type != "cuda":
        return nullcontext()
    return torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)


def in_best_format(module: nn.Module, kind: Kind, device: torch.device) -> nn.Module:
    """``module`` on its device, in the memory format that suits it."""
    module = module.to(device)
    # Measured: 1.26 times as fast for ResNet-50 on a CPU; nothing, or slower, for networks of clips.
    return module.to(memory_format=torch.channels_last) if kind == "frame" else module


class Engine:
    """A network on a device.

    Every batch has the same shape: the last one is filled up by repeating its last clip. So a network is compiled
    or tuned once, and a clip's feature does not depend on how many others come with it.

    Args:
        payload: Weights, from ``featlib.extractors.resolve.payload``.
        device: ``cpu``, ``cuda`` or ``cuda:N``.
        threads: CPU threads of this process; None leaves torch's own number.
        batch_size: Frames or clips in a batch; None takes the model's, else one by the device.
    """

    def __init__(
        self,
        resolved: ResolvedModel,
        payload: bytes,
        *,
        device: str = "cpu",
        threads: int | None = None,
        batch_size: int | None = None,
    ) -> None:
        if threads is not None:
            torch.set_num_threads(threads)
        self.device = torch.device(device)
        self.batch_size = batch_size or resolved.batch_size or default_batch_size(resolved, device)
        self.feature_shape = resolved.feature_shape
        self._resolved = resolved
        self._normalise = Normalisation(resolved.input, self.device)
        self._module = self._prepare(build(resolved, payload))

    def _prepare(self, module: nn.Module) -> nn.Module:
        """Moves the module to its device; the place for compilation."""
        return in_best_format(module, self._resolved.kind, self.device)

    def run(self, frames_nhwc: UInt8Frames, frame_idx: Indices) -> tuple[Features, dict[int, str]]:
        """Features of clips cut from unique frames.

        Args:
            frames_nhwc: (num_frames, height, width, 3), RGB, of the size that the model's preprocessing makes.
            frame_idx: (num_clips, frames in a clip), rows of ``frames_nhwc``; padding repeats a row.

        Returns:
            (num_clips, D) with the feature's values row-major, D the product of ``feature_shape``; and for each
            clip on which the network failed, the reason (its row is zero).

        Raises:
            ValueError: The arrays are not of the model's size.
            torch.OutOfMemoryError: The batch does not fit the device; no clip is to blame.
        """
        self._check(frames_nhwc, frame_idx)
        features = np.zeros((len(frame_idx), int(np.prod(self.feature_shape))), np.float32)
        errors: dict[int, str] = {}
        if len(frame_idx) == 0:
            return features, errors
        frames = self._upload(frames_nhwc)
        done: list[tuple[range, Tensor]] = []
        for rows in _batches(len(frame_idx), self.batch_size):
            done.extend(self._forward_or_each(frames, frame_idx, rows, errors))
        for rows, values in done:
            features[rows.start : rows.stop] = values.cpu().numpy()
        self._reject_non_finite(features, errors)
        return features, errors

    def _check(self, frames_nhwc: UInt8Frames, frame_idx: Indices) -> None:
        crop, frames = self._resolved.input.pixels.crop, self._resolved.frames
        if frames_nhwc.dtype != np.uint8 or frames_nhwc.ndim != 4 or frames_nhwc.shape[1:] != (*(crop or ()), 3):
            raise ValueError(
                f"frames are {frames_nhwc.dtype} {frames_nhwc.shape}, but {self._resolved.network} reads uint8 "
                f"(num_frames, {', '.join(map(str, crop or ()))}, 3)"
            )
        if frame_idx.ndim != 2 or frame_idx.shape[1] != frames:
            raise ValueError(
                f"frame_idx is {frame_idx.shape}, but a clip of {self._resolved.network} has {frames} frames"
            )
        if frame_idx.size and not 0 <= frame_idx.min() <= frame_idx.max() < len(frames_nhwc):
            raise ValueError(
                f"frame_idx goes from {frame_idx.min()} to {frame_idx.max()}, but there are {len(frames_nhwc)} frames"
            )

    def _upload(self, frames_nhwc: UInt8Frames) -> Tensor:
        writeable = frames_nhwc if frames_nhwc.flags.writeable else frames_nhwc.copy()
        frames = torch.from_numpy(np.ascontiguousarray(writeable))
        if self.device.type == "cuda":
            return frames.pin_memory().to(self.device, non_blocking=True)
        return frames

    def _forward_or_each(
        self, frames: Tensor, frame_idx: Indices, rows: range, errors: dict[int, str]
    ) -> Iterator[tuple[range, Tensor]]:
        """Features of one batch; when the network raises, of each clip that goes through alone."""
        try:
            yield rows, self._forward(frames, frame_idx[rows.start : rows.stop])
        except _FATAL:
            raise
        except Exception as error:  # noqa: BLE001 — each becomes the clip's error below
            if len(rows) == 1:
                errors[rows.start] = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
                return
            for row in rows:
                yield from self._forward_or_each(frames, frame_idx, range(row, row + 1), errors)

    def _forward(self, frames: Tensor, frame_idx: Indices) -> Tensor:
        with torch.inference_mode(), exact_arithmetic(self.device), self._autocast():
            x = self._normalised(frames, _padded(frame_idx, self.batch_size))
            values: Tensor = self._module(x)
            return values[: len(frame_idx)].float().flatten(1)

    def _normalised(self, frames: Tensor, frame_idx: Indices) -> Tensor:
        rows = torch.from_numpy(frame_idx.astype(np.int64)).to(self.device)
        return self._normalise(frames[rows])

    def _autocast(self) -> AbstractContextManager[object]:
        dtype = _AUTOCAST.get(self._resolved.precision)
        return nullcontext() if dtype is None else torch.autocast(self.device.type, dtype=dtype)

    def _reject_non_finite(self, features: Features, errors: dict[int, str]) -> None:
        for row in np.flatnonzero(~np.isfinite(features).all(axis=1)):
            features[row] = 0
            errors[int(row)] = (
                f"{self._resolved.network} gave NaN or infinite values with --precision {self._resolved.precision}"
            )


def _batches(count: int, size: int) -> Iterator[range]:
    for start in range(0, count, size):
        yield range(start, min(start + size, count))


def _padded(frame_idx: Indices, size: int) -> Indices:
    missing = size - len(frame_idx)
    return frame_idx if missing == 0 else np.concatenate([frame_idx, np.repeat(frame_idx[-1:], missing, axis=0)])
