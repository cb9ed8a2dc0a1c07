"""What featlib does with flow on a device, once more in plain numpy: clipping, quantising to bytes, stacks of fields.

Clipping to 20 pixels and one byte a value are the practice of Temporal Segment Networks (Wang et al. 2016), which
stored flow as pictures; two-stream and I3D flow networks were trained on such values.
"""

from typing import TypeVar

import numpy as np
import numpy.typing as npt

T = TypeVar("T", bound=np.generic)

FLOW_BOUND = 20.0  # pixels
_STEPS = 255


def clipped(flow: npt.NDArray[np.float32], bound: float = FLOW_BOUND) -> npt.NDArray[np.float32]:
    """``flow``, of any shape, limited to [-bound, bound] pixels.

    Raises:
        ValueError: ``bound`` is not above 0.
    """
    _check_bound(bound)
    return np.clip(flow, np.float32(-bound), np.float32(bound))


def quantised(flow: npt.NDArray[np.float32], bound: float = FLOW_BOUND) -> npt.NDArray[np.uint8]:
    """One byte a value, ``round(255 * (v + bound) / (2 * bound))`` of the clipped values; the shape is kept.

    -bound becomes 0, bound becomes 255. No motion lies halfway, at 127.5, and becomes 128: numpy, like OpenCV's
    cvRound, with which such pictures were written, rounds halves to the even neighbour.

    Raises:
        ValueError: ``bound`` is not above 0, or a value is NaN.
    """
    values = clipped(flow, bound).astype(np.float64)
    if np.isnan(values).any():
        raise ValueError("flow holds NaN, which has no byte")
    return np.rint(_STEPS * (values + bound) / (2 * bound)).astype(np.uint8)


def stacked(flows: npt.NDArray[T]) -> npt.NDArray[T]:
    """Channels of a stack of L fields in the order x1 y1 x2 y2 ...

    Args:
        flows: (..., L, height, width, 2), x then y; floats or quantised.

    Returns:
        (..., 2 L, height, width), contiguous.
    """
    if flows.ndim < 4 or flows.shape[-1] != 2:
        raise ValueError(f"flows are {flows.shape}, not (..., L, height, width, 2)")
    channels_first = np.moveaxis(flows, -1, -3)
    *others, length, _, height, width = channels_first.shape
    return np.ascontiguousarray(channels_first).reshape(*others, 2 * length, height, width)


def _check_bound(bound: float) -> None:
    if not 0 < bound < np.inf:
        raise ValueError(f"the flow bound ({bound}) must be above 0")
