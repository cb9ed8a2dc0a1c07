"""A source frame to the uint8 frame a network reads, pixel for pixel as torchvision's presets do it to a tensor.

Done with torch alone: importing torchvision costs each decoding process seconds and a few hundred megabytes. The
tests compare with torchvision's presets.
"""

from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from featlib.crop_resize import Crop, Quick, quick
from featlib.spec import PixelSpec

UInt8 = npt.NDArray[np.uint8]

_FRAMES_WORTH_IT = 16  # a quick way takes some frames' time to find: nothing for photographs of all sizes
_KEPT_GEOMETRIES = 64


def output_size(spec: PixelSpec, height: int, width: int) -> tuple[int, int]:
    """Height and width that ``resized`` gives for a source frame of this size."""
    return spec.crop or _resized_size(spec, height, width)


def resized(frame: UInt8, spec: PixelSpec) -> UInt8:
    """Resize, then centre crop; a crop larger than the frame is filled with black, as torchvision does.

    Args:
        frame: (height, width, 3).

    Returns:
        (*output_size, 3); may share memory with ``frame``.
    """
    size = _resized_size(spec, frame.shape[0], frame.shape[1])
    if size != frame.shape[:2]:
        frame = _scaled(frame, spec)
    return frame if spec.crop is None else _centred(frame, *spec.crop)


def fitted(frame: UInt8, height: int, width: int) -> UInt8:
    """The frame at exactly this size: for streams that change their frame size under a spec that keeps it."""
    return resized(frame, PixelSpec((height, width), None))


def _resized_size(spec: PixelSpec, height: int, width: int) -> tuple[int, int]:
    if not spec.resize:
        return height, width
    if len(spec.resize) == 2:
        return spec.resize[0], spec.resize[1]
    short, long = sorted((height, width))
    new_short, new_long = spec.resize[0], int(spec.resize[0] * long / short)
    return (new_short, new_long) if height <= width else (new_long, new_short)


class _Geometry:
    """How frames of one size become those of one preset; many of them are worth a quick way of their own."""

    def __init__(self, crop: Crop) -> None:
        self._crop = crop
        self._num_frames = 0
        self._quick: Quick | None = None

    def values(self, frame: UInt8) -> Tensor:
        """(height, width, 3) float32 of the crop, before the rounding."""
        self._num_frames += 1
        if self._num_frames == _FRAMES_WORTH_IT:
            self._quick = quick(self._crop)
        return self._crop.expected(frame) if self._quick is None else self._quick(frame)


@lru_cache(_KEPT_GEOMETRIES)
def _geometry(spec: PixelSpec, height: int, width: int, num_threads: int) -> _Geometry:
    """Kept by the number of threads, for torch gives other last bits with one thread than with several."""
    size = _resized_size(spec, height, width)
    window = (0, 0, *size) if spec.crop is None else _window(size, spec.crop)
    return _Geometry(Crop((height, width), size, window, spec.interpolation, spec.antialias))


def _scaled(frame: UInt8, spec: PixelSpec) -> UInt8:
    """Resized, and what the crop keeps of it."""
    values = _geometry(spec, *frame.shape[:2], torch.get_num_threads()).values(frame).numpy()
    if spec.interpolation == "bicubic":  # it overshoots
        values = values.clip(0, 255)
    pixels: UInt8 = np.rint(values).astype(np.uint8)  # in torch this takes several times as long
    return pixels


def _window(size: tuple[int, int], crop: tuple[int, int]) -> tuple[int, int, int, int]:
    """(top, left, height, width) of the part of a centre crop that lies inside the frame."""
    (top, height), (left, width) = (_span(*sides) for sides in zip(size, crop, strict=True))
    return top, left, height, width


def _span(length: int, crop: int) -> tuple[int, int]:
    # Python's round, which goes to the even neighbour, is torchvision's rule.
    return (0, length) if crop >= length else (round((length - crop) / 2), crop)


def _centred(frame: UInt8, height: int, width: int) -> UInt8:
    """Cuts out of the middle, or adds black around; an odd row or column of black goes to the bottom or the right."""
    top, left, inner_height, inner_width = _window((frame.shape[0], frame.shape[1]), (height, width))
    frame = frame[top : top + inner_height, left : left + inner_width]
    above, before = height - inner_height, width - inner_width
    if not above and not before:
        return frame
    rows, columns = (above // 2, above - above // 2), (before // 2, before - before // 2)
    return np.pad(frame, (rows, columns, (0, 0)))
