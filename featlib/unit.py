"""A work unit on its way: one row of one Arrow block, from decoding through the extractors to staging.

Columns, besides the unit's own: for each distinct preprocessing ``x_<spec>`` (the unique uint8 frames, large_binary)
and its shape; for each model ``clips_<label>`` (which frames make which clip), and, once the model has run,
``f_<label>`` (float32 features, large_binary), its shape and the clips that failed. Models with different clips, and
overlapping clips, so share frames without copies.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from featlib.items import ItemReport
from featlib.spec import Clip, Decoded

CLIPS = pa.list_(
    pa.struct(
        [
            pa.field("item", pa.int32()),
            pa.field("clip_index", pa.int32()),
            pa.field("start_s", pa.float64()),
            pa.field("end_s", pa.float64()),
            pa.field("frame_s", pa.list_(pa.float64())),
            pa.field("padded_frames", pa.int32()),
            pa.field("frame_idx", pa.list_(pa.int32())),
        ]
    )
)
_SHAPE = pa.list_(pa.int64())


@dataclass
class Frames:
    """Unique frames of one preprocessing, gathered item by item, and the clips that index into them."""

    arrays: list[npt.NDArray[np.uint8]] = field(default_factory=list)
    count: int = 0

    def add(self, frames: npt.NDArray[np.uint8]) -> int:
        """Appends the frames of an item; gives the row of its first one."""
        first = self.count
        self.arrays.append(frames)
        self.count += len(frames)
        return first

    def column(self) -> tuple[pa.Array, pa.Array]:
        """``x_`` and its shape, as arrays of one row."""
        joined = self.arrays[0] if len(self.arrays) == 1 else np.concatenate(self.arrays)
        offsets = np.array([0, joined.nbytes], dtype=np.int64)
        data = pa.py_buffer(np.ascontiguousarray(joined))
        x = pa.Array.from_buffers(pa.large_binary(), 1, [None, pa.py_buffer(offsets), data])
        return x, pa.array([list(joined.shape)], _SHAPE)


@dataclass
class UnitBuilder:
    """Gathers decoded items into the row that goes to the extractors.

    Args:
        seq: Number of the unit in its pass.
        specs: By label, the key of the preprocessing that the model reads; fixes the row's columns.
    """

    seq: int
    shard: int
    specs: Mapping[str, str]
    frames: dict[str, Frames] = field(default_factory=dict)
    clips: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    reports: list[ItemReport] = field(default_factory=list)
    nbytes: int = 0

    def add(self, report: ItemReport, decoded: Decoded) -> None:
        """Takes an item's report, frames and clips."""
        item = len(self.reports)
        self.reports.append(report)
        first: dict[str, int] = {}
        for key, frames in decoded.frames.items():
            if len(frames):
                first[key] = self.frames.setdefault(key, Frames()).add(frames)
                self.nbytes += frames.nbytes
        for label, clips in decoded.clips.items():
            offset = first.get(self.specs[label], 0)
            self.clips.setdefault(label, []).extend(_clip_row(item, clip, offset) for clip in clips)

    def row(self, later: Sequence[Mapping[str, Any]], stats: Mapping[str, float]) -> pa.Table:
        """The block of one row.

        Args:
            later: Units (as rows) that must follow in another pass: items deferred, further segments.
        """
        columns: dict[str, pa.Array] = {
            "seq": pa.array([self.seq], pa.int64()),
            "shard": pa.array([self.shard], pa.int32()),
            "reports": pa.array([json.dumps([r.to_dict() for r in self.reports])], pa.large_string()),
            "later": pa.array([json.dumps(list(later))], pa.large_string()),
            "stats": pa.array([json.dumps(dict(stats))], pa.string()),
        }
        for key in sorted(set(self.specs.values())):
            have = self.frames.get(key)
            x, shape = have.column() if have else (pa.nulls(1, pa.large_binary()), pa.nulls(1, _SHAPE))
            columns[f"x_{key}"], columns[f"shape_{key}"] = x, shape
        for label in sorted(self.specs):
            columns[f"clips_{label}"] = pa.array([self.clips.get(label, [])], CLIPS)
        return pa.table(columns)


def _clip_row(item: int, clip: Clip, offset: int) -> dict[str, Any]:
    return {
        "item": item,
        "clip_index": clip.clip_index,
        "start_s": clip.start_s,
        "end_s": clip.end_s,
        "frame_s": clip.frame_s,
        "padded_frames": clip.padded_frames,
        "frame_idx": [i + offset for i in clip.frame_idx],
    }


def reports_of(row: pa.Table) -> list[ItemReport]:
    """The reports of the items in a unit."""
    return [ItemReport.from_dict(r) for r in json.loads(row["reports"][0].as_py())]


def json_column(row: pa.Table, name: str) -> Any:
    """The value of a JSON column of a unit."""
    return json.loads(row[name][0].as_py())


def clips_of(row: pa.Table, label: str) -> pa.StructArray:
    """All clips of one model in a unit."""
    return row[f"clips_{label}"].combine_chunks().flatten()


def frame_index(clips: pa.StructArray) -> npt.NDArray[np.int32]:
    """(num_clips, frames in a clip) rows into the frames array."""
    if not len(clips):
        return np.empty((0, 0), dtype=np.int32)
    indices: npt.NDArray[np.int32] = clips.field("frame_idx").flatten().to_numpy()
    return indices.reshape(len(clips), -1)


def frames_of(row: pa.Table, key: str) -> npt.NDArray[np.uint8] | None:
    """uint8 (num_frames, height, width, 3), a view into the block; None when nobody wanted any."""
    shape = row[f"shape_{key}"][0].as_py()
    if shape is None:
        return None
    buffer = row[f"x_{key}"].combine_chunks()[0].as_buffer()
    return np.frombuffer(buffer, dtype=np.uint8).reshape(shape)


def with_features(
    row: pa.Table, label: str, features: npt.NDArray[np.float32], shape: Sequence[int], errors: Mapping[int, str]
) -> pa.Table:
    """The unit with one model's features added."""
    data = np.ascontiguousarray(features, dtype=np.float32)
    offsets = np.array([0, data.nbytes], dtype=np.int64)
    f = pa.Array.from_buffers(pa.large_binary(), 1, [None, pa.py_buffer(offsets), pa.py_buffer(data)])
    row = row.append_column(f"f_{label}", f)
    row = row.append_column(f"fshape_{label}", pa.array([list(shape)], _SHAPE))
    return row.append_column(f"errors_{label}", pa.array([json.dumps(dict(errors))], pa.string()))


def without_frames(row: pa.Table, keys: Iterable[str]) -> pa.Table:
    """The unit without frames that nobody reads any more."""
    return row.drop_columns([name for key in keys for name in (f"x_{key}", f"shape_{key}")])


def features_of(row: pa.Table, label: str) -> tuple[npt.NDArray[np.float32], tuple[int, ...], dict[int, str]]:
    """float32 (num_clips, prod(shape)), the shape of one feature, and what went wrong by clip."""
    shape = tuple(row[f"fshape_{label}"][0].as_py())
    data = np.frombuffer(row[f"f_{label}"].combine_chunks()[0].as_buffer(), dtype=np.float32)
    errors = {int(i): message for i, message in json_column(row, f"errors_{label}").items()}
    return data.reshape(len(clips_of(row, label)), -1) if len(data) else data.reshape(0, 0), shape, errors
