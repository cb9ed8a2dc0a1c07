"""Pooling without anything learned: the steps of a video (frames, clips, regions, cells of a map) become one vector."""

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from featlib.config import Fuse, Pool

Floats = npt.NDArray[np.float32]


def steps_of(features: Floats, shape: Sequence[int]) -> Floats:
    """The rows of a video as steps to pool over: (num_steps, D).

    Args:
        features: (num_rows, prod(shape)), row-major.
        shape: Of one row: [D] is one step; [T, D] is T steps; [C, H, W] and [C, T, H, W] are maps whose cells are
            steps of C values.
    """
    rows = features.reshape(len(features), *shape)
    if rows.ndim <= 2:
        return features
    if rows.ndim > 3:
        rows = np.moveaxis(rows, 1, -1)
    return np.ascontiguousarray(rows.reshape(-1, rows.shape[-1]))


def _mean(steps: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.asarray(steps.mean(axis=0))


def _max(steps: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.asarray(steps.max(axis=0))


def _mean_std(steps: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.concatenate([steps.mean(axis=0), steps.std(axis=0)])


_POOLS: dict[Pool, Callable[[npt.NDArray[np.float64]], npt.NDArray[np.float64]]] = {
    "mean": _mean,
    "max": _max,
    "mean_std": _mean_std,
}


def pool(steps: Floats, how: Pool) -> Floats:
    """One vector of ``steps`` (num_steps, D): (D,), or (2 D,) with the deviation (of the population) behind the mean.

    Sums are taken in float64, so that the order of a video's rows and their number do not show in the result.
    """
    return _POOLS[how](steps.astype(np.float64)).astype(np.float32)


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
