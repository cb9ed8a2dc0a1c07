"""Pooling without anything learned: the steps of a video (frames, clips, regions, cells of a map) become one vector."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from featlib.config import Fuse, Pool

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]


def steps_of(features: Floats, shape: Sequence[int], channel_axis: int = -1) -> Floats:
    """The rows of a video as steps: (num_steps, D), row by row, within a row in the order of its other axes.

    Args:
        features: (num_rows, prod(shape)), row-major.
        shape: Of one row: [D] is one step, [T, D] is T steps, and each cell of a map is one.
        channel_axis: Which axis of ``shape`` D is; networks differ in where it stands in a map.
    """
    rows = features.reshape(-1, *shape)
    axis = channel_axis if channel_axis < 0 else channel_axis + 1
    return np.ascontiguousarray(np.moveaxis(rows, axis, -1)).reshape(-1, shape[channel_axis])


class Pooled:
    """Pooling over steps that come in parts; what it holds does not grow with their number.

    Mean and deviation are kept in float64 and joined part by part (Chan, Golub and LeVeque 1979), so neither the order
    of the parts nor a large mean shows in the result.
    """

    def __init__(self) -> None:
        self._count = 0
        self._mean: Doubles = np.zeros(0)
        self._squares: Doubles = np.zeros(0)  # sums of squared distances from the mean
        self._max: Doubles = np.zeros(0)

    def add(self, steps: Floats) -> None:
        """Takes in (num_steps, D), at least one."""
        part = steps.astype(np.float64)
        mean, most = part.mean(axis=0), part.max(axis=0)
        squares = ((part - mean) ** 2).sum(axis=0)
        if not self._count:
            self._count, self._mean, self._squares, self._max = len(part), mean, squares, most
            return
        total = self._count + len(part)
        apart = mean - self._mean
        self._squares = self._squares + squares + apart**2 * (self._count * len(part) / total)
        self._mean = self._mean + apart * (len(part) / total)
        self._max = np.maximum(self._max, most)
        self._count = total

    def pooled(self, how: Pool) -> Floats:
        """(D,), or (2 D,) with the deviation (of the population) behind the mean."""
        if how == "mean_std":
            return np.concatenate([self._mean, np.sqrt(self._squares / self._count)]).astype(np.float32)
        return (self._mean if how == "mean" else self._max).astype(np.float32)


def fuse(vectors: Sequence[Floats], how: Fuse) -> Floats:
    """Vectors of several models as one.

    Raises:
        ValueError: ``mean`` of vectors of different sizes.
    """
    if how == "concat":
        return np.concatenate(vectors)
    sizes = {len(v) for v in vectors}
    if len(sizes) > 1:
        raise ValueError(f"the mean needs vectors of one size, these have {sorted(sizes)}; use concat")
    return np.asarray(np.mean(np.stack(vectors), axis=0, dtype=np.float64)).astype(np.float32)


def l2_normalised(vector: Floats) -> Floats:
    """``vector`` at length 1; a vector of zeros stays one."""
    length = float(np.linalg.norm(vector.astype(np.float64)))
    return vector if length == 0 else (vector / length).astype(np.float32)
