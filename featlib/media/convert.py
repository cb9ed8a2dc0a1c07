"""A decoded frame to upright RGB, whatever its pixel format."""

import struct
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from featlib.errors import MediaError
from featlib.media.open import AV_ERRORS, check_pixels, said

if TYPE_CHECKING:
    from av.video.frame import VideoFrame


Matrix = tuple[int, int, int, int]


class UprightRgb:
    """Decoded frames of one video to RGB, turned and mirrored as the file's display matrix says.

    Args:
        max_pixels: Most in a frame.
    """

    def __init__(self, max_pixels: int) -> None:
        self._max_pixels = max_pixels
        self._matrix_of: dict[int, Matrix] = {}  # by rotation: a frame that was asked for its matrix is freed late

    def __call__(self, frame: "VideoFrame") -> npt.NDArray[np.uint8]:
        """(height, width, 3).

        Raises:
            MediaError: ``too_large``, or ``unsupported_codec`` for a pixel format that cannot be converted.
        """
        check_pixels(frame.width, frame.height, self._max_pixels)
        try:
            rgb = frame.reformat(format="rgb24", threads=1).to_ndarray().astype(np.uint8, copy=False)
        except MemoryError:
            raise
        except AV_ERRORS as error:
            raise MediaError(
                "unsupported_codec", f"pixel format {frame.format.name!r} cannot be converted to RGB ({said(error)})"
            ) from error
        rotation = _rotation(frame)
        if rotation not in self._matrix_of:
            self._matrix_of[rotation] = _display_matrix(frame, rotation)
        return np.ascontiguousarray(upright(rgb, *self._matrix_of[rotation]))


def upright(rgb: npt.NDArray[np.uint8], a: int, b: int, c: int, d: int) -> npt.NDArray[np.uint8]:
    """A picture as its display matrix shows it: the pixel at (x, y) is shown at (a x + c y, b x + d y).

    The eight ways to lay it on one of its sides, mirrored or not; other angles count as the next of them.
    """
    if abs(b) + abs(c) > abs(a) + abs(d):
        rgb, a, d = rgb.transpose(1, 0, 2), c, b
    if a < 0:
        rgb = rgb[:, ::-1]
    return rgb[::-1] if d < 0 else rgb


def _rotation(frame: "VideoFrame") -> int:
    """Degrees counterclockwise; 0 where the matrix is none that turns."""
    try:
        return frame.rotation
    except (ValueError, OverflowError):
        return 0


def _display_matrix(frame: "VideoFrame", rotation: int) -> Matrix:
    """Its linear part, in 1/65536; libavutil/display.h."""
    try:
        side_data: Any = frame.side_data  # a mapping, other than its stub says
        data = side_data.get("DISPLAYMATRIX")
    except ValueError:  # there is another kind of side data that PyAV does not know
        return _TURNED[round(rotation / 90) % 4]
    if data is None:
        return _TURNED[0]
    a, b, _, c, d, *_ = struct.unpack("=9i", bytes(data)[:36])
    return a, b, c, d


# By quarters that the picture is turned counterclockwise.
_TURNED = ((1, 0, 0, 1), (0, -1, 1, 0), (-1, 0, 0, -1), (0, 1, -1, 0))
