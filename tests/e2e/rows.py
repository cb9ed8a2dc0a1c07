"""What a reader with a plain glob finds in an output, and how two outputs compare."""

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq

Key = tuple[str, str, int, int]
_EXACT = ("start_s", "end_s", "frame_s", "padded_frames", "feature_shape", "labels")


class Row(NamedTuple):
    """A row of features, without its key.

    Args:
        exact: Times, padding, shape and class names.
    """

    feature: np.ndarray
    exact: tuple[Any, ...]


def plain_glob(output: Path, root: str = "features") -> list[dict]:
    """All rows of all shards, with the model each belongs to."""
    rows = []
    for path in sorted(output.glob(f"{root}/dataset=*/model=*/*.parquet")):
        model = path.parent.name.partition("=")[2]
        rows += [{**row, "model": model} for row in pq.ParquetFile(path).read().to_pylist()]
    return rows


def rows_by_key(output: Path) -> dict[Key, Row]:
    """Each row under (model, file name, clip_index, region_index)."""
    return keyed(plain_glob(output))


def keyed(rows: Iterable[Mapping[str, Any]]) -> dict[Key, Row]:
    """Rows of several models under (model, file name, clip_index, region_index).

    Raises:
        AssertionError: A key is there twice.
    """
    found: dict[Key, Row] = {}
    for row in rows:
        key = (row["model"], row["uri"].rpartition("/")[2], row["clip_index"], row["region_index"])
        assert key not in found, f"{key} is there twice"
        exact = tuple(None if row[name] is None else np.array(row[name]).tolist() for name in _EXACT)
        found[key] = Row(np.array(row["feature"], dtype=np.float32), exact)
    return found


def check_same_rows(mine: Mapping[Key, Row], theirs: Mapping[Key, Row], tolerance: float = 1e-5) -> None:
    """The same keys, times, padding, shapes and class names, and values within a relative L2 of ``tolerance``."""
    assert set(mine) == set(theirs)
    for key, row in theirs.items():
        assert mine[key].exact == row.exact, key
        assert np.linalg.norm(mine[key].feature - row.feature) <= tolerance * np.linalg.norm(row.feature), key


def statuses(output: Path) -> Counter[tuple[str, str]]:
    """(model, status) of every outcome row."""
    return Counter((row["model"], row["status"]) for row in plain_glob(output, "outcomes"))


def object_names(output: Path) -> list[str]:
    """Every published object."""
    return sorted(
        str(p.relative_to(output)) for root in ("features", "outcomes") for p in output.glob(f"{root}/**/*.*")
    )
