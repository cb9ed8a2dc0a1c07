"""A unit's row: what goes in comes out, for several preprocessings and overlapping clips."""

import json

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest

from featlib.arrays import Extracted, Flow
from featlib.items import ItemReport, ModelReport, merge_facts, merge_models
from featlib.spec import Clip, Decoded, MediaFacts, Segment
from featlib.unit import (
    UnitBuilder,
    clips_of,
    features_of,
    flow_of,
    frame_index,
    frames_of,
    json_column,
    reports_of,
    with_features,
    with_flow,
    without,
)

SPECS = {"cnn": "small", "c3d": "wide", "other": "small"}


def _frames(count: int, height: int, width: int, first: int) -> npt.NDArray[np.uint8]:
    values = np.arange(first, first + count, dtype=np.uint8).reshape(-1, 1, 1, 1)
    return np.broadcast_to(values, (count, height, width, 3)).copy()


def _clip(index: int, *rows: int, padded: int = 0) -> Clip:
    return Clip(index, index / 2, None if padded else index + 0.5, tuple(r / 4 for r in rows), padded, rows)


def _report(name: str) -> ItemReport:
    return ItemReport(name, f"/v/{name}", Segment(0, 1), MediaFacts(), 1, 3.0, {"cnn": ModelReport("ok")})


def _decoded(first: int, clips: dict[str, tuple[Clip, ...]]) -> Decoded:
    frames = {"small": _frames(3, 2, 2, first), "wide": _frames(4, 2, 4, first + 100)}
    return Decoded(Segment(0, 1), "ok", MediaFacts(), frames=frames, clips=clips)


def _built() -> UnitBuilder:
    builder = UnitBuilder(5, 2, SPECS)
    overlapping = (_clip(0, 0, 1, 2), _clip(1, 1, 2, 3))
    builder.add(_report("v0"), _decoded(0, {"cnn": (_clip(0, 0), _clip(1, 2)), "c3d": overlapping}))
    builder.add(_report("v1"), Decoded(Segment(0, 1), "failed", MediaFacts()))
    builder.add(_report("v2"), _decoded(10, {"cnn": (_clip(0, 1),), "c3d": (_clip(0, 2, 3, 3, padded=1),)}))
    return builder


def _single(row: pa.Table, key: str) -> npt.NDArray[np.uint8]:
    frames = frames_of(row, key)
    assert frames is not None
    return frames.single


def test_two_preprocessings_keep_their_frames_and_clips() -> None:
    row = _built().row([], {})
    assert row.num_rows == 1
    small, wide = _single(row, "small"), _single(row, "wide")
    assert (small.shape, wide.shape) == ((6, 2, 2, 3), (8, 2, 4, 3))
    cnn, c3d = clips_of(row, "cnn"), clips_of(row, "c3d")
    assert small[frame_index(cnn)][:, 0, 0, 0, 0].tolist() == [0, 2, 11]
    assert wide[frame_index(c3d)][:, :, 0, 0, 0].tolist() == [[100, 101, 102], [101, 102, 103], [112, 113, 113]]
    assert c3d.field("item").to_pylist() == [0, 0, 2]
    assert c3d.field("padded_frames").to_pylist() == [0, 0, 1]
    assert c3d.field("end_s").to_pylist() == [0.5, 1.5, None]


def test_frames_are_a_view_into_the_block() -> None:
    small = _single(_built().row([], {}), "small")
    assert not small.flags.owndata


def test_labels_without_clips_have_empty_columns() -> None:
    row = _built().row([], {})
    assert len(clips_of(row, "other")) == 0
    assert frame_index(clips_of(row, "other")).shape == (0, 0)


def test_a_unit_of_failures_has_no_frames() -> None:
    builder = UnitBuilder(0, 0, SPECS)
    builder.add(_report("v0"), Decoded(Segment(0, 1), "failed", MediaFacts()))
    row = builder.row([], {})
    assert frames_of(row, "small") is None
    assert builder.nbytes == 0
    assert row.schema == _built().row([], {}).schema


def test_reports_later_and_stats_come_back() -> None:
    row = _built().row([{"shard": 2}], {"decode_s": 1.5})
    assert reports_of(row) == [_report("v0"), _report("v1"), _report("v2")]
    assert json_column(row, "later") == [{"shard": 2}]
    assert json_column(row, "stats") == {"decode_s": 1.5}
    assert (row["seq"].to_pylist(), row["shard"].to_pylist()) == ([5], [2])


def test_bytes_count_every_preprocessing_once() -> None:
    assert _built().nbytes == 2 * (3 * 2 * 2 * 3 + 4 * 2 * 4 * 3)


def test_features_and_errors_come_back() -> None:
    row = _built().row([], {})
    values = np.arange(18, dtype=np.float32).reshape(3, 6)
    row = with_features(row, "cnn", Extracted(values, (2, 3), {1: "broke"}))
    row = with_features(row, "other", Extracted.nothing((4,)))
    extracted = features_of(row, "cnn")
    assert np.array_equal(extracted.features, values)
    assert (extracted.shape, extracted.errors, extracted.clips) == ((2, 3), {1: "broke"}, None)
    assert np.array_equal(extracted.sound(3).features, values[[0, 2]])
    assert extracted.sound(3).clips.tolist() == [0, 2]
    assert features_of(row, "other").features.shape == (0, 4)
    assert json.loads(row["errors_other"][0].as_py()) == {}


def test_several_rows_a_clip_keep_what_stands_beside_them() -> None:
    beside = {
        "box": pa.array([[0, 1, 2, 3]] * 3, pa.list_(pa.float32())),
        "score": pa.array([0.5, 0.25, 1], pa.float32()),
    }
    made = Extracted(np.ones((3, 2), np.float32), (2,), {2: "broke"}, np.array([0, 0, 2]), beside)
    back = features_of(with_features(_built().row([], {}), "cnn", made), "cnn")
    assert back.clips.tolist() == [0, 0, 2]
    assert back.beside["box"].to_pylist() == [[0, 1, 2, 3]] * 3
    assert back.beside["labels"].null_count == 3
    assert back.sound(3).beside["score"].to_pylist() == [0.5, 0.25]


def test_rows_come_in_parts_that_an_arrow_list_can_hold() -> None:
    made = Extracted(np.arange(14, dtype=np.float32).reshape(7, 2), (2,)).sound(7)
    parts = list(made.parts(5))
    assert [len(p.features) for p in parts] == [2, 2, 2, 1]
    assert np.array_equal(np.concatenate([p.features for p in parts]), made.features)
    assert np.concatenate([p.clips for p in parts if p.clips is not None]).tolist() == list(range(7))
    assert [len(p.features) for p in made.parts(1)] == [1] * 7


def test_frames_of_other_sizes_stand_in_stretches() -> None:
    builder = UnitBuilder(0, 0, {"boxes": "native"})
    for i, (count, height, width) in enumerate([(2, 4, 6), (1, 4, 6), (3, 5, 2)]):
        frames = {"native": _frames(count, height, width, 10 * i)}
        builder.add(_report(f"v{i}"), Decoded(Segment(0, 1), "ok", MediaFacts(), frames=frames))
    frames = frames_of(builder.row([], {}), "native")
    assert frames is not None
    assert [a.shape for a in frames.arrays] == [(3, 4, 6, 3), (3, 5, 2, 3)]
    assert (len(frames), frames.stretch_of(np.arange(6)).tolist()) == (6, [0, 0, 0, 1, 1, 1])
    assert [frames.frame(i)[0, 0, 0] for i in range(6)] == [0, 1, 10, 20, 21, 22]
    with pytest.raises(ValueError, match="2 sizes"):
        _ = frames.single


def test_flow_comes_back_and_is_found_by_its_pair() -> None:
    values = np.arange(3 * 2 * 2 * 2, dtype=np.float32).reshape(3, 2, 2, 2)
    row = with_flow(_built().row([], {}), "tvl1", Flow(np.array([[0, 1], [1, 2], [7, 7]]), values, "one is missing"))
    flow = flow_of(row, "tvl1")
    assert np.array_equal(flow.values, values)
    assert flow.missing == "one is missing"
    assert flow.rows(np.array([[1, 2], [0, 1], [7, 7], [2, 1], [8, 9]])).tolist() == [1, 0, 2, -1, -1]
    assert "flow_tvl1" not in without(row, ["tvl1"]).column_names


def test_frames_that_nobody_reads_are_dropped() -> None:
    row = without(_built().row([], {}), ["small"])
    assert "x_small" not in row.column_names
    assert frames_of(row, "wide") is not None


def test_models_merge_to_the_worst_with_rows_kept() -> None:
    ok, failed = ModelReport("ok", 3), ModelReport("failed", 0, "timeout", "slow", True)
    merged = merge_models([ok, failed])
    assert (merged.status, merged.num_rows, merged.error_class) == ("partial", 3, "timeout")
    assert merge_models([failed, failed]).status == "failed"
    assert merge_models([ok, ModelReport("partial", 1, "corrupt")]).status == "partial"
    assert merge_models([ok, ok]).num_rows == 6


def test_facts_merge_work_adds_up() -> None:
    seen = MediaFacts(9.0, 4, 3, "h264", 7, "e", 10, 1, 0.5)
    merged = merge_facts([MediaFacts(decode_s=0.25), seen, seen])
    assert (merged.codec, merged.frames_decoded, merged.frames_twice, merged.decode_s) == ("h264", 18, 2, 1.25)
