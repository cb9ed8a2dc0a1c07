"""A work unit on its way: one row of one Arrow block, from decoding through the extractors to staging.

Columns, besides the unit's own: for each distinct preprocessing ``x_<spec>`` (the unique uint8 frames, large_binary)
and their shapes; for each kind of optical flow ``flow_<spec>`` and the pairs of frames it lies between; for each model
``clips_<label>`` (which frames make which clip), and, once the model has run, ``f_<label>`` (float32 features,
large_binary), their shape, the clips that failed and what stands beside a feature. Models with different clips, and
overlapping clips, so share frames and flow without copies.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from featlib.arrays import Extracted, Flow, Stretches, UInt8
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
_SHAPES = pa.list_(_SHAPE)
_PAIRS = pa.list_(pa.int32())
_BESIDE = {
    "region_index": pa.int32(),
    "box": pa.list_(pa.float32()),
    "score": pa.float32(),
    "labels": pa.list_(pa.string()),
    "probabilities": pa.list_(pa.float32()),
}
_ROWS = pa.list_(pa.struct([pa.field("clip", pa.int32()), *(pa.field(n, t) for n, t in _BESIDE.items())]))


def _binary(values: npt.NDArray[Any]) -> pa.Array:
    """The bytes of an array as a column of one row, without a copy."""
    data = np.ascontiguousarray(values)
    offsets = np.array([0, data.nbytes], dtype=np.int64)
    return pa.Array.from_buffers(pa.large_binary(), 1, [None, pa.py_buffer(offsets), pa.py_buffer(data)])


@dataclass
class Frames:
    """Unique frames of one preprocessing, gathered item by item, and the clips that index into them."""

    arrays: list[UInt8] = field(default_factory=list)
    count: int = 0

    def add(self, frames: UInt8) -> int:
        """Appends the frames of an item; gives the row of its first one."""
        first = self.count
        self.arrays.append(frames)
        self.count += len(frames)
        return first

    def column(self) -> tuple[pa.Array, pa.Array]:
        """``x_`` and the shapes of its stretches of equal size, as arrays of one row."""
        shapes: list[list[int]] = []
        for array in self.arrays:
            if shapes and shapes[-1][1:] == list(array.shape[1:]):
                shapes[-1][0] += len(array)
            else:
                shapes.append(list(array.shape))
        flat = [a.reshape(-1) for a in self.arrays]
        return _binary(flat[0] if len(flat) == 1 else np.concatenate(flat)), pa.array([shapes], _SHAPES)


@dataclass(frozen=True)
class PlacedClips:
    """The clips of one item and one model.

    Args:
        item: Place of the item in the unit.
        first: Row of the item's first frame.
    """

    item: int
    first: int
    clips: tuple[Clip, ...]


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
    clips: dict[str, list[PlacedClips]] = field(default_factory=dict)
    reports: list[ItemReport] = field(default_factory=list)
    nbytes: int = 0
    num_clips: int = 0

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
            self.clips.setdefault(label, []).append(PlacedClips(item, offset, clips))
            self.num_clips += len(clips)

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
            x, shape = have.column() if have else (pa.nulls(1, pa.large_binary()), pa.nulls(1, _SHAPES))
            columns[f"x_{key}"], columns[f"shape_{key}"] = x, shape
        for label in sorted(self.specs):
            columns[f"clips_{label}"] = _clips_column(self.clips.get(label, []))
        return pa.table(columns)


def _clips_column(placed: Sequence[PlacedClips]) -> pa.ListArray:
    """The clips of one model as an array of one row, made by columns: a dense job has tens of thousands of them."""
    clips = [clip for part in placed for clip in part.clips]
    counts = [len(part.clips) for part in placed]
    first = np.repeat([part.first for part in placed], counts)
    columns = {
        "item": pa.array(np.repeat([part.item for part in placed], counts), pa.int32()),
        "clip_index": pa.array([clip.clip_index for clip in clips], pa.int32()),
        "start_s": pa.array([clip.start_s for clip in clips], pa.float64()),
        "end_s": pa.array([clip.end_s for clip in clips], pa.float64()),
        "frame_s": _lists([clip.frame_s for clip in clips], pa.float64()),
        "padded_frames": pa.array([clip.padded_frames for clip in clips], pa.int32()),
        "frame_idx": _lists([clip.frame_idx for clip in clips], pa.int32(), first),
    }
    fields = list(CLIPS.value_type)
    rows = pa.StructArray.from_arrays([columns[f.name] for f in fields], fields=fields)
    return pa.ListArray.from_arrays(pa.array([0, len(clips)], pa.int32()), rows)


def _lists(
    values: Sequence[tuple[float, ...]], kind: pa.DataType, added: npt.NDArray[np.int64] | None = None
) -> pa.ListArray:
    """A list each, with ``added`` (one number a list) on top."""
    lengths = np.fromiter(map(len, values), np.int64, len(values))
    flat = np.fromiter(chain.from_iterable(values), kind.to_pandas_dtype(), int(lengths.sum()))
    if added is not None:
        flat += np.repeat(added, lengths).astype(flat.dtype)
    return pa.ListArray.from_arrays(pa.array(np.append(0, np.cumsum(lengths)), pa.int32()), pa.array(flat, kind))


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


def frames_of(row: pa.Table, key: str) -> Stretches | None:
    """The frames of one preprocessing, views into the block; None when nobody wanted any, or reads them any more."""
    shapes = row[f"shape_{key}"][0].as_py() if f"shape_{key}" in row.column_names else None
    if shapes is None:
        return None
    flat = np.frombuffer(row[f"x_{key}"].combine_chunks()[0].as_buffer(), dtype=np.uint8)
    ends = np.cumsum([int(np.prod(shape)) for shape in shapes])
    parts = np.split(flat, ends[:-1])
    return Stretches(tuple(part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)))


def with_flow(row: pa.Table, key: str, flow: Flow) -> pa.Table:
    """The unit with one kind of flow added."""
    columns = {
        f"flow_{key}": _binary(flow.values.astype(np.float32, copy=False)),
        f"flowshape_{key}": pa.array([list(flow.values.shape)], _SHAPE),
        f"pairs_{key}": pa.array([flow.pairs.reshape(-1).tolist()], _PAIRS),
        f"missing_{key}": pa.array([flow.missing], pa.string()),
    }
    for name, column in columns.items():
        row = row.append_column(name, column)
    return row


def flow_of(row: pa.Table, key: str) -> Flow:
    """One kind of flow, a view into the block."""
    shape = row[f"flowshape_{key}"][0].as_py()
    values = np.frombuffer(row[f"flow_{key}"].combine_chunks()[0].as_buffer(), dtype=np.float32)
    pairs = row[f"pairs_{key}"].combine_chunks().flatten().to_numpy()
    return Flow(pairs.reshape(-1, 2), values.reshape(shape), row[f"missing_{key}"][0].as_py())


def with_features(row: pa.Table, label: str, extracted: Extracted) -> pa.Table:
    """The unit with one model's features added."""
    beside = pa.nulls(1, _ROWS)
    if extracted.clips is not None or extracted.beside:
        count = len(extracted.features)
        clips = np.arange(count) if extracted.clips is None else extracted.clips
        columns = {"clip": pa.array(clips, pa.int32())}
        columns |= {name: extracted.beside.get(name, pa.nulls(count, kind)) for name, kind in _BESIDE.items()}
        fields = list(_ROWS.value_type)
        rows = pa.StructArray.from_arrays([columns[f.name].cast(f.type) for f in fields], fields=fields)
        beside = pa.ListArray.from_arrays(pa.array([0, count], pa.int32()), rows)
    row = row.append_column(f"f_{label}", _binary(extracted.features.astype(np.float32, copy=False)))
    row = row.append_column(f"fshape_{label}", pa.array([list(extracted.shape)], _SHAPE))
    row = row.append_column(f"rows_{label}", beside)
    return row.append_column(f"errors_{label}", pa.array([json.dumps(dict(extracted.errors))], pa.string()))


def features_of(row: pa.Table, label: str) -> Extracted:
    """What one model made of the unit."""
    shape = tuple(row[f"fshape_{label}"][0].as_py())
    data = np.frombuffer(row[f"f_{label}"].combine_chunks()[0].as_buffer(), dtype=np.float32)
    errors = {int(i): message for i, message in json_column(row, f"errors_{label}").items()}
    column = row[f"rows_{label}"].combine_chunks()
    if column.null_count:
        return Extracted(data.reshape(-1, int(np.prod(shape))), shape, errors)
    rows = column.flatten()
    width = int(np.prod(shape)) if shape else 0
    beside = {name: rows.field(name) for name in _BESIDE}
    clips = rows.field("clip").to_numpy()
    return Extracted(data.reshape(len(rows), width), shape, errors, clips, beside)


def with_stats(row: pa.Table, stats: Mapping[str, Any]) -> pa.Table:
    """The unit with other stats."""
    place = row.column_names.index("stats")
    return row.set_column(place, "stats", pa.array([json.dumps(dict(stats))], pa.string()))


def without(row: pa.Table, keys: Iterable[str]) -> pa.Table:
    """The unit without frames (keys of preprocessings) and flow (of flow specs) that nobody reads any more."""
    names = [f"{kind}_{key}" for key in keys for kind in ("x", "shape", "flow", "flowshape", "pairs", "missing")]
    return row.drop_columns([name for name in names if name in row.column_names])
