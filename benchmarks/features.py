"""Features that different programs wrote, row by row: a benchmark of unequal work is worthless."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.dataset as ds

Key = tuple[str, int]
FP32_BOUND = 1e-5
"""Relative L2 of a row: the same pixels through the same network in another order of additions."""


class UnequalError(Exception):
    """Two programs did not do the same work."""


@dataclass(frozen=True)
class Rows:
    """Features by (media id, index of the frame or clip), sorted.

    Args:
        features: float32 (len(keys), size).
    """

    keys: tuple[Key, ...]
    features: npt.NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.keys)

    def of(self, media_ids: frozenset[str]) -> "Rows":
        """Those of some media."""
        chosen = [i for i, (name, _) in enumerate(self.keys) if name in media_ids]
        return Rows(tuple(self.keys[i] for i in chosen), self.features[chosen])

    @property
    def media_ids(self) -> frozenset[str]:
        return frozenset(name for name, _ in self.keys)


NO_ROWS = Rows((), np.empty((0, 0), np.float32))


def read_rows(folder: Path) -> Rows:
    """All rows of the Parquet files under ``folder/features`` when there is such a folder, else under ``folder``."""
    root = folder / "features" if (folder / "features").is_dir() else folder
    files = sorted(str(path) for path in root.rglob("*.parquet"))
    if not files:
        raise UnequalError(f"{folder.name}: nothing was written")
    table = ds.dataset(files, format="parquet").to_table(columns=["media_id", "clip_index", "feature"])
    keys = list(zip(table["media_id"].to_pylist(), table["clip_index"].to_pylist(), strict=True))
    features = np.concatenate([_matrix(chunk) for chunk in table["feature"].chunks])
    order = sorted(range(len(keys)), key=keys.__getitem__)
    if len(set(keys)) < len(keys):
        raise UnequalError(f"{folder.name}: rows come twice")
    return Rows(tuple(keys[i] for i in order), features[order])


def _matrix(chunk: pa.Array) -> npt.NDArray[np.float32]:
    """Lists of one length, or the tensors of a library's own type, as (rows, size)."""
    storage = chunk.storage if isinstance(chunk, pa.ExtensionArray) else chunk
    values = storage.flatten()
    values = values[-1] if isinstance(values, list) else values
    return np.asarray(values, np.float32).reshape(len(chunk), -1)


def relative_l2(found: npt.NDArray[np.float32], wanted: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """|found - wanted| / |wanted| of each row."""
    differences = np.linalg.norm(found.astype(np.float64) - wanted, axis=1)
    norms: npt.NDArray[np.float64] = differences / np.linalg.norm(wanted.astype(np.float64), axis=1)
    return norms


def check_equal(found: Rows, wanted: Rows, who: str, bound: float = FP32_BOUND) -> str:
    """A line that says how equal two programs' features are.

    Raises:
        UnequalError: Other rows, or a row that is off by more than ``bound``.
    """
    if found.keys != wanted.keys:
        lacking, more = set(wanted.keys) - set(found.keys), set(found.keys) - set(wanted.keys)
        raise UnequalError(f"{who}: {len(lacking)} rows are missing, {len(more)} are too many")
    off = relative_l2(found.features, wanted.features)
    if not off.max() <= bound:
        raise UnequalError(f"{who}: relative L2 {off.max():.2g} in the worst of {len(off)} rows, over {bound:g}")
    return f"{who}: {len(off)} rows equal, relative L2 {off.max():.1g} in the worst (bound {bound:g})"
