"""Feature shards as whole videos: the rows of each item, pooled while they are read."""

from collections.abc import Collection, Iterator, Sequence
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from featlib.errors import ConfigError
from featlib.heads.pooling import Pooled, steps_of
from featlib.layout import Keys, PartName
from featlib.storage import Store

_COLUMNS = ["media_id", "start_s", "end_s", "frame_s", "feature", "feature_shape"]


class PooledVideo:
    """All rows of one video under one model, taken in row by row.

    Args:
        frame_s: Presentation times of the source frames in them.
    """

    def __init__(self) -> None:
        self.steps = Pooled()
        self.start_s: float | None = None
        self.end_s: float | None = None
        self.frame_s: set[float] = set()

    def add(self, rows: pa.Table) -> None:
        """Takes rows in, at least one."""
        shape = rows["feature_shape"][0].as_py()
        values = np.concatenate([c.flatten().to_numpy(zero_copy_only=False) for c in rows["feature"].chunks])
        self.steps.add(steps_of(values.reshape(rows.num_rows, -1), shape))
        starts = [s for s in [self.start_s, *rows["start_s"].to_pylist()] if s is not None]
        ends = [e for e in [self.end_s, *rows["end_s"].to_pylist()] if e is not None]
        self.start_s, self.end_s = min(starts, default=None), max(ends, default=None)
        self.frame_s.update(t for times in rows["frame_s"].to_pylist() for t in times or ())


def pooled_videos(store: Store, keys: Sequence[str], wanted: Collection[str]) -> dict[str, PooledVideo]:
    """The wanted items in some features objects, by media id; one row group is in memory at a time."""
    found: dict[str, PooledVideo] = {}
    for key in keys:
        with store.open(key) as file:
            source = pq.ParquetFile(file)
            for group in range(source.metadata.num_row_groups):
                table = source.read_row_group(group, columns=_COLUMNS)
                for media_id, rows in _by_item(table):
                    if media_id in wanted:
                        found.setdefault(media_id, PooledVideo()).add(rows)
    return found


def _by_item(table: pa.Table) -> Iterator[tuple[str, pa.Table]]:
    """Stretches of rows of one item; an item may come in several."""
    ids = np.asarray(table["media_id"].to_pylist(), dtype=object)
    if len(ids):
        for start, stop in pairwise([0, *(np.flatnonzero(ids[1:] != ids[:-1]) + 1).tolist(), len(ids)]):
            yield str(ids[start]), table.slice(start, stop - start)


def features_by_shard(store: Store, keys: Keys, label: str) -> dict[int, list[str]]:
    """The features objects of a label, by shard."""
    found: dict[int, list[str]] = {}
    for info in store.list(keys.features(label)):
        name = PartName.parse(info.key)
        if name is not None:
            found.setdefault(name.shard, []).append(info.key)
    return found


def vector_size(store: Store, keys: Keys, label: str) -> int | None:
    """D of the rows of a partition, which are [D] or [T, D]; None while it has no rows."""
    for info in store.list(keys.features(label)):
        with store.open(info.key) as file:
            rows = next(pq.ParquetFile(file).iter_batches(1, columns=["feature_shape"]), None)
        if rows is None or not rows.num_rows:
            continue
        shape = rows["feature_shape"][0].as_py()
        if len(shape) > 2:
            raise ConfigError(
                f"--features {label}: its rows are maps of shape {shape}; aggregate takes vectors [D] or steps [T, D], "
                "extract a layer behind the pooling"
            )
        return int(shape[-1])
    return None
