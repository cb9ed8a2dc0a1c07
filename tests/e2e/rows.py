"""What a reader with a plain glob finds in an output, and how two outputs compare."""

from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

Key = tuple[str, str, int, int]


def plain_glob(output: Path, root: str = "features") -> list[dict]:
    """All rows of all shards, with the model each belongs to."""
    rows = []
    for path in sorted(output.glob(f"{root}/dataset=*/model=*/*.parquet")):
        model = path.parent.name.partition("=")[2]
        rows += [{**row, "model": model} for row in pq.ParquetFile(path).read().to_pylist()]
    return rows


def features_by_key(output: Path) -> dict[Key, np.ndarray]:
    """Feature of each (model, file name, clip_index, region_index).

    Raises:
        AssertionError: A key is there twice.
    """
    found: dict[Key, np.ndarray] = {}
    for row in plain_glob(output):
        key = (row["model"], Path(row["uri"]).name, row["clip_index"], row["region_index"])
        assert key not in found, f"{key} is there twice"
        found[key] = np.array(row["feature"], dtype=np.float32)
    return found


def check_same_rows(mine: dict[Key, np.ndarray], theirs: dict[Key, np.ndarray], tolerance: float = 1e-5) -> None:
    """The same keys, and values within a relative L2 of ``tolerance``."""
    assert set(mine) == set(theirs)
    for key, value in theirs.items():
        assert np.linalg.norm(mine[key] - value) <= tolerance * np.linalg.norm(value), key


def statuses(output: Path) -> Counter[tuple[str, str]]:
    """(model, status) of every outcome row."""
    return Counter((row["model"], row["status"]) for row in plain_glob(output, "outcomes"))


def object_names(output: Path) -> list[str]:
    """Every published object."""
    return sorted(
        str(p.relative_to(output)) for root in ("features", "outcomes") for p in output.glob(f"{root}/**/*.*")
    )
