"""The crop of a resized frame as torch's ``interpolate`` computes it, bit for bit, without the rest of the frame.

``interpolate`` takes floats one at a time and gives the whole frame. Here only the crop is computed, and whole rows are
weighed at once. Which bits a sum of floats has depends on the order of its terms and on where a compiler fused a
multiplication and an addition, so nothing is believed: the weights are asked of ``interpolate`` itself, and a ``Crop``
is used only where noise went through it and through ``interpolate`` with the same bits. Elsewhere (downscaling by
more than about 1.7 with antialiasing, another build of torch) ``quick`` gives None.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import embedding_bag, interpolate

UInt8 = npt.NDArray[np.uint8]
Quick = Callable[[UInt8], Tensor]

_PROBES = 8  # source pixels that far apart never meet in one output pixel of at most _MOST_TAPS
_MOST_TAPS = 4
_LEAST_SIDE = 32  # noise of fewer pixels does not tell enough


@dataclass(frozen=True)
class Crop:
    """What is computed: ``window`` of the frame resized to ``size``.

    Args:
        source: (height, width) of the frames.
        size: (height, width) after the resize.
        window: (top, left, height, width) in the resized frame, inside of it.
    """

    source: tuple[int, int]
    size: tuple[int, int]
    window: tuple[int, int, int, int]
    mode: str
    antialias: bool

    def expected(self, frame: UInt8) -> Tensor:
        """(height, width, 3) of the window, float32, by ``interpolate``: before the rounding."""
        top, left, height, width = self.window
        # A view, not contiguous planes: the same values, and without antialiasing up to 6 times faster.
        image = torch.from_numpy(frame).permute(2, 0, 1)[None].float()
        if self.mode == "nearest":
            values = interpolate(image, self.size, mode=self.mode)
        else:
            values = interpolate(image, self.size, mode=self.mode, align_corners=False, antialias=self.antialias)
        return values[0, :, top : top + height, left : left + width].permute(1, 2, 0)


@dataclass(frozen=True)
class _Axis:
    """Which source pixels an output pixel is made of, along one side.

    Args:
        start: First source pixel that is needed.
        stop: Behind the last.
        index: (num_output, num_taps) source pixels, counted from ``start``.
        weight: float32, as ``index``.
    """

    start: int
    stop: int
    index: Tensor
    weight: Tensor


def quick(crop: Crop) -> Quick | None:
    """A function that gives what ``crop.expected`` gives, several times faster; None where none is known."""
    if crop.mode == "nearest" or min(crop.source) < _LEAST_SIDE:
        return None
    (top, left, height, width), (rows, columns) = crop.window, crop.source
    down = _axis(crop, rows, crop.size[0], top, height)
    across = _axis(crop, columns, crop.size[1], left, width)
    if down is None or across is None or (not crop.antialias and _grows(crop)):
        return None
    found = _weighed(down, across) if crop.antialias else _four_neighbours(down, across)
    if found is None:
        return None
    noise = np.random.default_rng(0).integers(0, 256, (*crop.source, 3), dtype=np.uint8)
    return found if torch.equal(found(noise), crop.expected(noise)) else None


def _grows(crop: Crop) -> bool:
    """Whether a side grows: there ATen reads the last pixel for both neighbours, and their weights come as one."""
    return any(after > before for before, after in zip(crop.source, crop.size, strict=True))


def _axis(crop: Crop, num_source: int, num_resized: int, first: int, count: int) -> _Axis | None:
    """The taps of the output pixels ``[first, first + count)``; None when there are more than ``_MOST_TAPS``.

    Combs of ones go through ``interpolate``: what comes out is the weight of the one tooth within reach.
    """
    combs = (torch.arange(num_source) % _PROBES == torch.arange(_PROBES)[:, None]).float()
    combs = combs[:, None, None].expand(-1, 3, 2, -1)  # not (1, 1): ATen has other ways for these
    weight = interpolate(combs, (2, num_resized), mode=crop.mode, align_corners=False, antialias=crop.antialias)
    weight = weight[:, 0, 0, first : first + count].t()
    centre = (torch.arange(first, first + count, dtype=torch.float64)[:, None] + 0.5) * num_source / num_resized - 0.5
    tooth = torch.arange(_PROBES)
    index = tooth + _PROBES * ((centre - tooth) / _PROBES).round().long()
    index, order = index.sort(dim=1)
    return _packed(index, weight.gather(1, order), num_source)


def _packed(index: Tensor, weight: Tensor, num_source: int) -> _Axis | None:
    """Leaves out what weighs nothing before the first and behind the last tap."""
    is_used = weight != 0
    lowest = torch.where(is_used, index, num_source).amin(1)
    num_taps = int((torch.where(is_used, index, -1).amax(1) - lowest).amax()) + 1
    num_taps = min(max(num_taps, 2), num_source)
    if num_taps > _MOST_TAPS:
        return None
    lowest = lowest.clamp(max=num_source - num_taps)
    taps = lowest[:, None] + torch.arange(num_taps)
    place = (taps - index[:, :1]).clamp(0, _PROBES - 1)
    start, stop = int(taps.min()), int(taps.max()) + 1
    return _Axis(start, stop, taps - start, torch.where(taps >= index[:, :1], weight.gather(1, place), 0.0))


def _weighed(down: _Axis, across: _Axis) -> Quick:
    """Sums of weighed columns, then of weighed rows, as ATen does it with antialiasing.

    ``embedding_bag`` adds rows in their order, fusing multiplication and addition, with vector instructions.
    """

    def run(frame: UInt8) -> Tensor:
        part = frame[down.start : down.stop, across.start : across.stop]
        height, width, channels = part.shape
        turned = np.ascontiguousarray(part.reshape(height, -1).T)  # numpy turns bytes faster than torch turns floats
        columns = torch.from_numpy(turned).float().view(width, -1)
        columns = embedding_bag(across.index, columns, per_sample_weights=across.weight, mode="sum")
        rows = columns.view(-1, height).t().contiguous()
        values: Tensor = embedding_bag(down.index, rows, per_sample_weights=down.weight, mode="sum")
        return values.view(len(down.index), len(across.index), channels)

    return run


def _four_neighbours(down: _Axis, across: _Axis) -> Quick | None:
    """Two by two pixels, each with the product of its two weights, as ATen does it without antialiasing."""
    if down.index.shape[1] != 2 or across.index.shape[1] != 2:
        return None
    height, width = len(down.index), len(across.index)
    rows = down.index.t().reshape(-1).numpy() + down.start
    left, right = (across.index.t()[:, :, None] * 3 + torch.arange(3)).reshape(2, -1).numpy()
    weights = down.weight.t()[:, None, :, None] * across.weight.t()[None, :, None, :]
    (w00, w01), (w10, w11) = weights[..., None].expand(-1, -1, -1, -1, 3).reshape(2, 2, height, -1)

    def run(frame: UInt8) -> Tensor:
        lines = frame[rows, across.start : across.stop].reshape(2 * height, -1)
        x00, x10 = torch.from_numpy(lines.take(left, axis=1)).float().view(2, height, -1)
        x01, x11 = torch.from_numpy(lines.take(right, axis=1)).float().view(2, height, -1)
        values: Tensor = w01 * x01
        for weight, pixels in ((w00, x00), (w10, x10), (w11, x11)):
            values.addcmul_(weight, pixels)
        return values.view(height, width, 3)

    return run
