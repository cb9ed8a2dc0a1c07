"""A source frame to the uint8 frame a network reads, pixel for pixel as torchvision's presets do it to a tensor.

Done with torch alone: importing torchvision costs each decoding process seconds and a few hundred megabytes. The
tests compare with torchvision's presets.
"""

import numpy as np
import numpy.typing as npt
import torch
from torch.nn.functional import interpolate

from featlib.spec import PixelSpec

UInt8 = npt.NDArray[np.uint8]


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
        frame = _scaled(frame, size, spec)
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


def _scaled(frame: UInt8, size: tuple[int, int], spec: PixelSpec) -> UInt8:
    # A view, not contiguous planes: the same pixels, and without antialiasing up to 6 times faster.
    image = torch.from_numpy(frame).permute(2, 0, 1)[None].float()
    if spec.interpolation == "nearest":
        out = interpolate(image, size=size, mode="nearest")
    else:
        out = interpolate(image, size=size, mode=spec.interpolation, align_corners=False, antialias=spec.antialias)
        out = out.clamp_(0, 255).round_()  # bicubic overshoots
    pixels: UInt8 = out.to(torch.uint8)[0].permute(1, 2, 0).numpy()
    return pixels


def _centred(frame: UInt8, height: int, width: int) -> UInt8:
    """Cuts out of the middle or adds black around; an odd row or column goes to the bottom or the right."""
    above, left = max(height - frame.shape[0], 0), max(width - frame.shape[1], 0)
    if above or left:
        rows, columns = (above // 2, above - above // 2), (left // 2, left - left // 2)
        frame = np.pad(frame, (rows, columns, (0, 0)))
    # Python's round, which goes to the even neighbour, is torchvision's rule.
    top, first = round((frame.shape[0] - height) / 2), round((frame.shape[1] - width) / 2)
    return frame[top : top + height, first : first + width]
