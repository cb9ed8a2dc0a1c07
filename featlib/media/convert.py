"""A decoded frame to upright RGB, whatever its pixel format."""

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from featlib.errors import MediaError
from featlib.media.open import AV_ERRORS, check_pixels, said

if TYPE_CHECKING:
    from av.video.frame import VideoFrame


def upright_rgb(frame: "VideoFrame", max_pixels: int) -> npt.NDArray[np.uint8]:
    """(height, width, 3) RGB, turned as the file's display matrix says.

    Raises:
        MediaError: ``too_large``, or ``unsupported_codec`` for a pixel format that cannot be converted.
    """
    check_pixels(frame.width, frame.height, max_pixels)
    try:
        rgb = frame.reformat(format="rgb24", threads=1).to_ndarray()
    except MemoryError:
        raise
    except AV_ERRORS as error:
        raise MediaError(
            "unsupported_codec", f"pixel format {frame.format.name!r} cannot be converted to RGB ({said(error)})"
        ) from error
    turns = round(frame.rotation / 90) % 4  # the display matrix turns counterclockwise, as np.rot90 does
    return np.ascontiguousarray(np.rot90(rgb, turns)) if turns else rgb.astype(np.uint8, copy=False)
