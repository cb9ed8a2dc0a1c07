"""What every estimator of optical flow takes and gives; numpy only."""

from abc import ABC, abstractmethod
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

UInt8Frames = npt.NDArray[np.uint8]  # (num_frames, height, width, 3), RGB
Pairs = npt.NDArray[np.integer]  # (num_pairs, 2), rows of the frames: from, to
Flows = npt.NDArray[np.float32]  # (num_pairs, height, width, 2), x then y, in pixels


class FlowEstimator(ABC):
    """A source of optical flow, ready to compute.

    Args:
        name: Of the source, for messages.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    def flows(self, frames: UInt8Frames, pairs: Pairs) -> Flows:
        """Motion from the first to the second frame of each pair: frame1(p) looks like frame2(p + flow(p)).

        A pair of a frame with itself, as padding of a clip makes it, is zero by definition and costs nothing. Any
        other pair is computed as often as it is named.

        Args:
            frames: (num_frames, height, width, 3), uint8, RGB.
            pairs: (num_pairs, 2), rows of ``frames``.

        Returns:
            (num_pairs, height, width, 2): x (to the right) then y (downwards), in pixels of ``frames``.

        Raises:
            ValueError: The arrays are not of these shapes, the frames are too small for the source, or it gave
                values that are not finite.
        """
        _check(frames, pairs)
        flows = np.zeros((len(pairs), *frames.shape[1:3], 2), np.float32)
        moving = np.flatnonzero(pairs[:, 0] != pairs[:, 1])
        if len(moving) == 0:
            return flows
        for row, flow in zip(moving, self._computed(frames, pairs[moving]), strict=True):
            if not np.isfinite(flow).all():
                raise ValueError(f"{self.name} gave NaN or infinite flow from frame {pairs[row, 0]} to {pairs[row, 1]}")
            flows[row] = flow
        return flows

    @abstractmethod
    def _computed(self, frames: UInt8Frames, pairs: Pairs) -> Iterator[Flows]:
        """Flow (height, width, 2) of each pair, in order; every pair is of two frames."""


def _check(frames: UInt8Frames, pairs: Pairs) -> None:
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3:
        raise ValueError(f"frames are {frames.dtype} {frames.shape}, not uint8 (num_frames, height, width, 3)")
    if pairs.ndim != 2 or pairs.shape[1] != 2 or not np.issubdtype(pairs.dtype, np.integer):
        raise ValueError(f"pairs are {pairs.dtype} {pairs.shape}, not whole numbers (num_pairs, 2)")
    if pairs.size and not 0 <= pairs.min() <= pairs.max() < len(frames):
        raise ValueError(f"pairs go from {pairs.min()} to {pairs.max()}, but there are {len(frames)} frames")
