"""Frames and flow of a unit as batches on a device, normalised as the network reads them."""

from collections.abc import Mapping
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from featlib.arrays import Flow, Ints, Stretches, UInt8
from featlib.spec import FlowInput, InputSpec


class Loaded(Protocol):
    """The clips of one unit, ready to be cut into batches."""

    errors: Mapping[int, str]
    """Why a clip cannot be read; its values are zeros."""

    def batch(self, clips: Ints) -> Tensor:
        """The network's input for clips, float32 (len(clips), ...)."""


class Normalisation:
    """The arithmetic from uint8 to the network's range, with its constants on the device.

    Args:
        mean_volume: (3, T, H, W) in 0..255 in the network's order of channels, taken off instead of the mean of each.
    """

    def __init__(self, reads: InputSpec, device: torch.device, mean_volume: Tensor | None = None) -> None:
        axes = (1, 3, *(1,) * (2 if reads.is_flat else 3))
        self._reads = reads
        self._mean = torch.tensor(reads.mean, device=device).reshape(axes)
        if mean_volume is not None:
            self._mean = mean_volume.to(device)[None] / 255
        self._std = torch.tensor(reads.std, device=device).reshape(axes)

    def __call__(self, clips: Tensor) -> Tensor:
        """uint8 (N, T, H, W, 3) as float32 (N, 3, H, W) for frames, (N, 3, T, H, W) for clips.

        The same operations in the same order as torchvision's presets, so the values are the same.
        """
        if self._reads.order == "bgr":
            clips = clips.flip(-1)
        is_frame = self._reads.is_flat
        x = clips.squeeze(1).permute(0, 3, 1, 2) if is_frame else clips.permute(0, 4, 1, 2, 3)
        x = x.to(torch.float32).div_(255)
        x.sub_(self._mean).div_(self._std)
        return x if is_frame else x.contiguous()


class PixelClips:
    """Clips of frames of one size."""

    def __init__(self, frames: UInt8, frame_idx: Ints, normalise: Normalisation, device: torch.device) -> None:
        self.errors: Mapping[int, str] = {}
        self._frames = uploaded(frames, device)
        self._frame_idx = frame_idx
        self._normalise = normalise

    def batch(self, clips: Ints) -> Tensor:
        """float32 (len(clips), 3, H, W) or (len(clips), 3, T, H, W)."""
        rows = torch.from_numpy(self._frame_idx[clips].astype(np.int64)).to(self._frames.device)
        return self._normalise(self._frames[rows])


class FlowClips:
    """Clips of optical flow, alone or stacked behind their middle frame."""

    def __init__(
        self,
        frames: Stretches,
        frame_idx: Ints,
        flow: Flow,
        reads: InputSpec,
        normalise: Normalisation,
        device: torch.device,
    ) -> None:
        if reads.flow is None or reads.flow_crop is None:
            raise ValueError("this network reads no flow")
        pairs = np.stack([frame_idx[:, :-1], frame_idx[:, 1:]], axis=-1)
        self._rows = flow.rows(pairs.reshape(-1, 2)).reshape(pairs.shape[:2])
        lacking = np.flatnonzero((self._rows < 0).any(axis=1))
        self.errors: Mapping[int, str] = {
            int(i): f"optical flow could not be computed ({flow.missing})" for i in lacking
        }
        self._reads, self._crop, self._device = reads.flow, reads.flow_crop, device
        self._frames, self._middle, self._normalise = frames, frame_idx[:, frame_idx.shape[1] // 2], normalise
        self._flow = uploaded(flow.values, device)

    def batch(self, clips: Ints) -> Tensor:
        """float32 (len(clips), 2, T - 1, H, W), or (len(clips), 3 + 2 (T - 1), H, W) with the middle frame."""
        rows = torch.from_numpy(np.maximum(self._rows[clips], 0)).to(self._device)
        if not len(self._flow):
            rows = rows[:, :0]
        values = flow_values(self._flow[rows], self._reads)
        if not self._reads.with_rgb:
            return values.permute(0, 4, 1, 2, 3).contiguous()
        middle = np.stack([centred(self._frames.frame(int(i)), self._crop) for i in self._middle[clips]])
        rgb = self._normalise(uploaded(middle[:, None], self._device))
        return torch.cat([rgb, values.permute(0, 1, 4, 2, 3).flatten(1, 2)], dim=1)


def flow_values(flow: Tensor, reads: FlowInput) -> Tensor:
    """Flow in pixels as a network reads it: clipped to the bound, mapped to [0, 1], quantised if asked, normalised."""
    shares = (flow.clamp(-reads.bound, reads.bound) + reads.bound) / (2 * reads.bound)
    if reads.quantised:
        shares = (shares * 255).round() / 255
    return (shares - reads.mean) / reads.std


def centred(pixels: UInt8, crop: tuple[int, int]) -> UInt8:
    """The centre of (height, width, ...), as torchvision's CenterCrop cuts it; at least that size is needed."""
    top, left = (round((have - want) / 2) for have, want in zip(pixels.shape[:2], crop, strict=True))
    return pixels[top : top + crop[0], left : left + crop[1]]


def uploaded(values: "UInt8 | np.ndarray", device: torch.device) -> Tensor:
    """An array on the device; the copy goes on while the CPU does other things."""
    writeable = values if values.flags.writeable else values.copy()
    tensor = torch.from_numpy(np.ascontiguousarray(writeable))
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor
