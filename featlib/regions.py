"""The classical R-CNN way: each detected box is cut from the frame and warped to another network's input."""

import math

import numpy as np
import numpy.typing as npt

from featlib.errors import ConfigError
from featlib.resize import resized
from featlib.spec import PixelSpec

UInt8 = npt.NDArray[np.uint8]
Box = tuple[int, int, int, int]


def crops(frame: UInt8, boxes: npt.NDArray[np.floating], spec: PixelSpec) -> UInt8:
    """The boxes of a frame as inputs of a network.

    Each box is rounded outward to whole pixels, cut from the full frame and warped to the network's input size, both
    sides, with the interpolation of its preset; its centre crop would cut the object.

    Args:
        frame: (height, width, 3) RGB, in the size of the source.
        boxes: (K, 4): x1, y1, x2, y2 in pixels of ``frame``.

    Returns:
        (K, *spec.crop, 3).

    Raises:
        ConfigError: The preset has no fixed size.
    """
    if spec.crop is None:
        raise ConfigError(f"a preset without a crop ({spec.key}) has no fixed size for boxes; use one with a crop")
    warp = PixelSpec(spec.crop, None, spec.interpolation, spec.antialias)
    cut = np.empty((len(boxes), *spec.crop, 3), np.uint8)
    for place, box in enumerate(boxes):
        x1, y1, x2, y2 = whole_pixels(box, *frame.shape[:2])
        cut[place] = resized(frame[y1:y2, x1:x2].copy(), warp)  # torch takes no read-only arrays
    return cut


def whole_pixels(box: npt.NDArray[np.floating], height: int, width: int) -> Box:
    """The pixels that the box touches, x1, y1, x2, y2, half open, inside the frame and at least one on each side."""
    x1, x2 = _span(float(box[0]), float(box[2]), width)
    y1, y2 = _span(float(box[1]), float(box[3]), height)
    return x1, y1, x2, y2


def _span(low: float, high: float, size: int) -> tuple[int, int]:
    first = min(max(math.floor(low), 0), size - 1)
    return first, max(min(math.ceil(high), size), first + 1)
