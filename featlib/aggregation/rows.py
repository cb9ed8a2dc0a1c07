"""Feature shards as whole videos: where the rows of each item lie, and the steps in them."""

from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import groupby, pairwise
from types import TracebackType

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from featlib.errors import ConfigError
from featlib.heads.pooling import Floats, Pooled, steps_of
from featlib.layout import Keys, PartName
from featlib.sealed import open_sealed
from featlib.shards.schema import reading
from featlib.storage import Store

_COLUMNS = ["clip_index", "region_index", "start_s", "end_s", "frame_s", "feature", "feature_shape"]

StepKeys = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Steps:
    """Steps of a video.

    Args:
        keys: (num_steps, 2), the ``clip_index`` and ``region_index`` of the row that each step is of.
        values: (num_steps, D).
    """

    keys: StepKeys
    values: Floats


class Video:
    """All rows of one video under one model, taken in part by part.

    Args:
        channel_axis: Of the shape of a row; None: the last.
        keep: Keep the steps; else they are pooled at once, and memory does not grow with their number.
    """

    def __init__(self, media_id: str, channel_axis: int | None, *, keep: bool) -> None:
        self.pooled = Pooled()
        self.num_steps = 0
        self.start_s: float | None = None
        self.end_s: float | None = None
        self.frame_s: set[float] = set()
        self._media_id, self._size = media_id, 0
        self._axis = -1 if channel_axis is None else channel_axis
        self._kept: list[Steps] | None = [] if keep else None

    def add(self, rows: pa.Table) -> None:
        """Takes in rows, at least one.

        Raises:
            ConfigError: Their steps have other sizes than those before.
        """
        for part in _steps_in(rows, self._axis):
            size = part.values.shape[1]
            if size != (self._size or size):
                raise ConfigError(
                    f"media {self._media_id}: some of its rows have features of {self._size} channels and some of "
                    f"{size}, which cannot be steps of one video; give a partition whose rows have one shape"
                )
            self._size, self.num_steps = size, self.num_steps + len(part.values)
            if self._kept is None:
                self.pooled.add(part.values)
            else:
                self._kept.append(part)
        starts = [s for s in [self.start_s, *rows["start_s"].to_pylist()] if s is not None]
        ends = [e for e in [self.end_s, *rows["end_s"].to_pylist()] if e is not None]
        self.start_s, self.end_s = min(starts, default=None), max(ends, default=None)
        self.frame_s.update(t for times in rows["frame_s"].to_pylist() for t in times or ())

    def steps(self) -> Steps:
        """The steps that were kept, in the order of (clip_index, region_index), within a row as they stand there."""
        parts = self._kept or []
        keys = np.concatenate([p.keys for p in parts])
        order = np.lexsort((keys[:, 1], keys[:, 0]))  # stable: steps of a row stay in their order
        return Steps(keys[order], np.concatenate([p.values for p in parts])[order])


def _steps_in(rows: pa.Table, channel_axis: int) -> Iterator[Steps]:
    """The steps of rows, in stretches of one shape; rows without a feature have none."""
    start = 0
    for shape, group in groupby(rows["feature_shape"].to_pylist()):
        part = rows.slice(start, len(list(group)))
        start += part.num_rows
        if not shape:
            continue
        values = np.concatenate([c.flatten().to_numpy(zero_copy_only=False) for c in part["feature"].chunks])
        steps = steps_of(values, shape, channel_axis)
        keys = np.stack([part[name].to_numpy() for name in ("clip_index", "region_index")], axis=1)
        yield Steps(np.repeat(keys, len(steps) // part.num_rows, axis=0), steps)


@dataclass(frozen=True)
class _Stretch:
    """Neighbouring rows of one item in a row group of a features object."""

    file: int
    group: int
    start: int
    stop: int


class ShardRows:
    """The rows of one label in one shard, item by item; one row group of each object is in memory at a time.

    To be used as a context manager: its objects stay open. A damaged one is a ``ConfigError``.
    """

    def __init__(self, store: Store, keys: Sequence[str]) -> None:
        with ExitStack() as opened:
            self._keys, self._files = keys, []
            for key in keys:
                with reading(key):
                    self._files.append(pq.ParquetFile(opened.enter_context(open_sealed(store, key))))
            self._stretches = self._find()
            self._opened = opened.pop_all()
        self._group: dict[int, tuple[int, pa.Table]] = {}

    def __enter__(self) -> "ShardRows":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._opened.close()

    def _find(self) -> dict[str, list[_Stretch]]:
        found: dict[str, list[_Stretch]] = {}
        for number, file in enumerate(self._files):
            for group in range(file.metadata.num_row_groups):
                with reading(self._keys[number]):
                    names = file.read_row_group(group, columns=["media_id"])["media_id"].to_pylist()
                ids = np.asarray(names, dtype=object)
                for start, stop in _runs(ids):
                    found.setdefault(str(ids[start]), []).append(_Stretch(number, group, start, stop))
        return found

    @property
    def media_ids(self) -> Collection[str]:
        """The items that have rows, in the order in which these lie."""
        return self._stretches.keys()

    def video(self, media_id: str, channel_axis: int | None, *, keep: bool) -> Video | None:
        """All rows of an item; None when there are none, or none with a feature."""
        video = Video(media_id, channel_axis, keep=keep)
        for stretch in self._stretches.get(media_id, ()):
            video.add(self._read(stretch).slice(stretch.start, stretch.stop - stretch.start))
        return video if video.num_steps else None

    def _read(self, stretch: _Stretch) -> pa.Table:
        group, table = self._group.get(stretch.file, (None, None))
        if group != stretch.group:
            self._group.pop(stretch.file, None)  # gone before the next one comes
            with reading(self._keys[stretch.file]):
                table = self._files[stretch.file].read_row_group(stretch.group, columns=_COLUMNS)
            self._group[stretch.file] = stretch.group, table
        return table


def _runs(ids: npt.NDArray[np.object_]) -> Iterator[tuple[int, int]]:
    if len(ids):
        yield from pairwise([0, *(np.flatnonzero(ids[1:] != ids[:-1]) + 1).tolist(), len(ids)])


def features_by_shard(store: Store, keys: Keys, label: str) -> dict[int, list[str]]:
    """The features objects of a label, by shard."""
    found: dict[int, list[str]] = {}
    for info in store.list(keys.features(label)):
        name = PartName.parse(info.key)
        if name is not None:
            found.setdefault(name.shard, []).append(info.key)
    return found
