"""The actors' classes called as plain functions: clip in, staged piece out."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from featlib import sealed as featlib_sealed
from featlib.arrays import Extracted
from featlib.config import ModelConfig
from featlib.extractors.resolve import ResolvedModel, resolve
from featlib.extractors.weights import payload
from featlib.layout import Keys
from featlib.media import Limits, decode_item
from featlib.sampling import ClipSampling, FrameSampling
from featlib.sealed import seal_file, sealable, sealed
from featlib.shards.staging import list_pieces, read_piece
from featlib.spec import Decoded, MediaFacts, MediaItem, PixelSpec, Segment, Want
from featlib.storage import Store, StoreOptions
from featlib.unit import clips_of, features_of, frames_of, reports_of, with_features
from featlib.work import Unit, UnitItem, unit_from_row, units_table
from featlib.workers import (
    RESULT,
    STOP,
    DecodeWorker,
    ExtractSpec,
    ExtractWorker,
    StageWorker,
    UnitsReader,
    died_report,
    finished_entry,
)
from tests.media.make import write_video

OPTIONS = StoreOptions()
KEYS = Keys("d")
UNITS_KEY = f"{KEYS.units}/run0.units"
SMALL = PixelSpec((32,), (32, 32))
FRAMES = Want("cnn", FrameSampling.parse("every:10"), SMALL)
CLIPS = Want("c3d", ClipSampling(8, hop=4), PixelSpec((24, 24), None, antialias=False))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("media")
    write_video(folder / "a.mp4", frames=40)
    write_video(folder / "b.mp4", frames=20)
    (folder / "bad.mp4").write_bytes(b"this is no video")
    Image.new("RGB", (48, 40), (200, 10, 10)).save(folder / "p.png")
    return folder


def _row(folder: Path, *names: str, labels: tuple[str, ...] = ("cnn", "c3d"), attempt: int = 1, n: int = 0) -> pa.Table:
    items = tuple(UnitItem(name.partition(".")[0], str(folder / name), attempt=attempt) for name in names)
    return units_table([Unit(4, labels, items, 0, n)], 9)


@pytest.fixture(scope="module")
def decode() -> Iterator[DecodeWorker]:
    worker = DecodeWorker((FRAMES, CLIPS), Limits(), OPTIONS)
    yield worker
    worker._process.close()


@dataclass
class _InProcess:
    """Decodes here: starting the process that shields a worker takes longer than all tests here."""

    limits: Limits

    def decode(self, item: MediaItem, wants: tuple[Want, ...], segment: Segment) -> Decoded:
        return decode_item(item, wants, segment, store_options=OPTIONS, limits=self.limits)


def _here(want: Want, limits: Limits = Limits()) -> DecodeWorker:  # noqa: B008 - frozen
    worker = DecodeWorker((want,), limits, OPTIONS)
    worker._process = _InProcess(limits)  # type: ignore[assignment]
    return worker


def _stage_worker(output: Path, prints: dict[str, str], rounds: dict[str, dict[int, int]] | None = None) -> StageWorker:
    """Of a pass whose units stand."""
    Store(str(output)).put(UNITS_KEY, b"")
    return StageWorker(str(output), OPTIONS, "d", "run0", prints, rounds or {}, UNITS_KEY)


@pytest.fixture(scope="module")
def model() -> ResolvedModel:
    config = ModelConfig(network="squeezenet1_1", label="cnn", weights="random:0", frame_sampling="every:10")
    return resolve(config, OPTIONS)


def test_decoding_feeds_both_models_and_reports_the_bad(decode: DecodeWorker, folder: Path) -> None:
    row = decode(_row(folder, "a.mp4", "bad.mp4", "b.mp4"))
    statuses = {r.media_id: {label: m.status for label, m in r.models.items()} for r in reports_of(row)}
    assert statuses == {
        "a": {"cnn": "ok", "c3d": "ok"},
        "bad": {"cnn": "failed", "c3d": "failed"},
        "b": {"cnn": "ok", "c3d": "ok"},
    }
    assert clips_of(row, "cnn").field("item").to_pylist() == [0] * 4 + [2] * 2
    assert clips_of(row, "c3d").field("item").to_pylist() == [0] * 9 + [2] * 4
    small = frames_of(row, SMALL.key)
    assert small is not None
    assert small.single.shape == (6, 32, 32, 3)
    stats = json.loads(row["stats"][0].as_py())
    assert stats["frames_decoded"] == 60
    assert row["seq"].to_pylist() == [9]


def test_an_image_is_skipped_under_the_clip_model(decode: DecodeWorker, folder: Path) -> None:
    row = decode(_row(folder, "p.png"))
    (report,) = reports_of(row)
    assert report.models["cnn"].status == "ok"
    assert (report.models["c3d"].status, report.models["c3d"].error_class) == ("skipped", "image_under_clip_model")
    assert len(clips_of(row, "cnn")) == 1
    alone = decode(_row(folder, "p.png", labels=("c3d",)))
    assert reports_of(alone)[0].models["c3d"].status == "skipped"


def test_a_unit_may_want_fewer_labels_than_the_job(decode: DecodeWorker, folder: Path) -> None:
    row = decode(_row(folder, "b.mp4", labels=("cnn",)))
    assert set(reports_of(row)[0].models) == {"cnn"}
    assert len(clips_of(row, "c3d")) == 0


def test_items_beyond_the_budget_of_bytes_come_later(folder: Path) -> None:
    worker = _here(FRAMES, Limits(unit_bytes=4 * 32 * 32 * 3))
    row = worker(_row(folder, "a.mp4", "b.mp4", "bad.mp4", labels=("cnn",)))
    later = [unit_from_row(u) for u in json.loads(row["later"][0].as_py())]
    assert [[i.media_id for i in u.items] for u in later] == [["b"], ["bad"]]
    assert [r.media_id for r in reports_of(row)] == ["a"]


def test_what_comes_later_fills_units_as_this_one_was_filled(folder: Path) -> None:
    """``a`` keeps 4 frames and ``b`` 2, of which 6 fill a unit."""
    worker = _here(FRAMES, Limits(unit_bytes=6 * 32 * 32 * 3))
    row = worker(_row(folder, "a.mp4", "b.mp4", "p.png", "b.mp4", "bad.mp4", labels=("cnn",)))
    later = [unit_from_row(u) for u in json.loads(row["later"][0].as_py())]
    assert [r.media_id for r in reports_of(row)] == ["a", "b"]
    assert [[i.media_id for i in u.items] for u in later] == [["p", "b"], ["bad"]]


def test_items_beyond_the_budget_of_clips_come_later(folder: Path) -> None:
    """``a`` keeps 4 frames and ``b`` 2."""
    worker = _here(FRAMES, Limits(unit_clips=6))
    row = worker(_row(folder, "a.mp4", "b.mp4", "p.png", labels=("cnn",)))
    later = [unit_from_row(u) for u in json.loads(row["later"][0].as_py())]
    assert [r.media_id for r in reports_of(row)] == ["a", "b"]
    assert [[i.media_id for i in u.items] for u in later] == [["p"]]


def test_a_long_item_is_cut_into_segments_that_come_later(folder: Path) -> None:
    worker = _here(FRAMES, Limits(unit_bytes=2 * 32 * 32 * 3))
    first = worker(_row(folder, "a.mp4", labels=("cnn",), attempt=3))
    units = [unit_from_row(u) for u in json.loads(first["later"][0].as_py())]
    n = units[0].n
    assert n >= 2
    assert [(u.k, u.n, u.shard) for u in units] == [(k, n, 4) for k in range(1, n)]
    assert {u.items[0].attempt for u in units} == {1}, "none of them was tried before"
    rows = [first, *(worker(units_table([u], 0)) for u in units)]
    indices = [i for row in rows for i in clips_of(row, "cnn").field("clip_index").to_pylist()]
    assert indices == [0, 1, 2, 3]
    assert [(reports_of(row)[0].segment.k, reports_of(row)[0].segment.n) for row in rows] == [(k, n) for k in range(n)]
    assert [reports_of(row)[0].attempts for row in rows] == [3] + [1] * (n - 1)


class _Failing:
    """Stands where the decoding process does."""

    def decode(self, item: object, wants: object, segment: Segment) -> Decoded:
        return Decoded(Segment(segment.k, max(segment.n, 1)), "failed", MediaFacts(), "timeout", "slow", retryable=True)


def test_what_may_succeed_later_is_tried_three_times(folder: Path) -> None:
    worker = DecodeWorker((FRAMES,), Limits(), OPTIONS)
    worker._process = _Failing()  # type: ignore[assignment]
    for attempt in (1, 2):
        row = worker(_row(folder, "a.mp4", labels=("cnn",), attempt=attempt))
        (later,) = (unit_from_row(u) for u in json.loads(row["later"][0].as_py()))
        assert later.items[0].attempt == attempt + 1
        assert reports_of(row) == []
    row = worker(_row(folder, "a.mp4", labels=("cnn",), attempt=3))
    (report,) = reports_of(row)
    assert (report.models["cnn"].status, report.models["cnn"].error_class, report.attempts) == ("failed", "timeout", 3)


def test_extracting_and_staging(folder: Path, model: ResolvedModel, tmp_path: Path) -> None:
    decode = _here(model.want)
    spec = ExtractSpec((model,), "cpu", 1, (model.input.pixels.key,))
    extract = ExtractWorker(spec, {"cnn": payload(model, OPTIONS)})
    row = extract(decode(_row(folder, "a.mp4", "bad.mp4", "b.mp4", labels=("cnn",))))
    assert not [name for name in row.column_names if name.startswith("x_")]
    extracted = features_of(row, "cnn")
    features = extracted.features
    assert (features.shape, extracted.shape, extracted.errors) == ((6, 512), (512,), {})
    assert np.isfinite(features).all()
    assert features.std() > 0
    assert json.loads(row["stats"][0].as_py())["extract_s.cnn"] > 0
    result = _stage_worker(tmp_path, {"cnn": "print"})(row)
    assert result.schema == RESULT
    finished = json.loads(result["finished"][0].as_py())
    assert finished == [
        ["a", 0, 1, {"cnn": ["ok", None, 4]}],
        ["bad", 0, 1, {"cnn": ["failed", "unknown_format", 0]}],
        ["b", 0, 1, {"cnn": ["ok", None, 2]}],
    ]
    store = Store(str(tmp_path))
    (piece,) = list_pieces(store, KEYS)[4]
    assert "run0-00000009-" in piece.key
    table = read_piece(store, piece.key)
    assert table is not None
    assert table["media_id"].to_pylist() == ["a"] * 4 + ["b"] * 2
    assert np.array_equal(np.array(table["feature"].to_pylist(), np.float32), features)


def test_a_unit_of_failures_goes_through_the_extractor(folder: Path, model: ResolvedModel) -> None:
    decode = _here(model.want)
    extract = ExtractWorker(ExtractSpec((model,), "cpu", 1, ()), {"cnn": payload(model, OPTIONS)})
    row = extract(decode(_row(folder, "bad.mp4", labels=("cnn",))))
    assert features_of(row, "cnn").features.shape == (0, 512)


def test_a_unit_may_want_fewer_of_the_models_that_share_a_forward(folder: Path, tmp_path: Path) -> None:
    """As when a label is added to a job that had run: the others have their rows already."""
    common = {"network": "squeezenet1_1", "weights": "random:0", "frame_sampling": "every:10", "top_k": 2}
    models = tuple(resolve(ModelConfig(label=label, layer=layer, **common), OPTIONS)
                   for label, layer in (("old", "logits"), ("new", "penultimate")))  # fmt: skip
    payloads = {m.label: payload(m, OPTIONS) for m in models}
    decode = DecodeWorker(tuple(m.want for m in models), Limits(), OPTIONS)
    decode._process = _InProcess(Limits())  # type: ignore[assignment]
    row = ExtractWorker(ExtractSpec(models, "cpu", 1, ()), payloads)(decode(_row(folder, "b.mp4", labels=("new",))))
    result = _stage_worker(tmp_path, {"old": "1", "new": "2"})(row)
    assert json.loads(result["finished"][0].as_py()) == [["b", 0, 1, {"new": ["ok", None, 2]}]]
    table = read_piece(Store(str(tmp_path)), list_pieces(Store(str(tmp_path)), KEYS)[4][0].key)
    assert table is not None
    assert table["model"].to_pylist() == ["new", "new"]
    assert [len(row) for row in table["labels"].to_pylist()] == [2, 2]


class _Ended(BaseException):
    """Stands for the end of the process."""


def _fails(
    monkeypatch: pytest.MonkeyPatch, model: ResolvedModel, error: Exception, device: str = "cpu"
) -> ExtractWorker:
    """A worker whose network raises; the end of its process is an exception."""

    def run(*_: object) -> None:
        raise error

    def ended(status: int) -> None:
        raise _Ended(status)

    worker = ExtractWorker(ExtractSpec((model,), "cpu", 1, ()), {"cnn": payload(model, OPTIONS)})
    monkeypatch.setattr(worker._engines[0], "run", run)
    monkeypatch.setattr(worker._engines[0], "device", torch.device(device))
    monkeypatch.setattr("featlib.faults.os._exit", ended)
    return worker


@pytest.mark.parametrize(
    ("error", "device", "says"),
    [
        (torch.OutOfMemoryError("CUDA out of memory."), "cuda", "the GPU has too little memory (CUDA out of memory.)"),
        (torch.AcceleratorError("CUDA error: out of memory"), "cuda", "the GPU has too little memory (CUDA error: "),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "cpu", "the node has too little memory (Default"),
        (MemoryError(), "cpu", "the node has too little memory (MemoryError)"),
    ],
)
def test_lack_of_memory_stops_the_job_and_blames_no_item(
    folder: Path,
    model: ResolvedModel,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    device: str,
    says: str,
) -> None:
    row = _here(model.want)(_row(folder, "b.mp4", labels=("cnn",)))
    failing = _fails(monkeypatch, model, error, device)
    result = _stage_worker(tmp_path, {"cnn": "print"})(failing(row))
    said = json.loads(result["stats"][0].as_py())["fatal"]
    assert said.startswith(f"cnn: {says}")
    assert said.endswith("; lower its --batch-size" + " or --extract-workers" * (device == "cpu"))
    assert json.loads(result["finished"][0].as_py()) == []
    assert Store(str(tmp_path)).list(KEYS.stage) == []


def test_a_lost_device_ends_the_process_so_that_ray_starts_another(
    folder: Path, model: ResolvedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = _here(model.want)(_row(folder, "b.mp4", labels=("cnn",)))
    lost = _fails(monkeypatch, model, torch.AcceleratorError("CUDA error: device-side assert triggered"))
    with pytest.raises(_Ended) as ended:
        lost(row)
    assert ended.value.args == (1,)
    other = _fails(monkeypatch, model, ZeroDivisionError("a defect"))
    with pytest.raises(ZeroDivisionError):
        other(row)


def test_clips_on_which_the_network_failed_are_left_out(decode: DecodeWorker, folder: Path, tmp_path: Path) -> None:
    row = decode(_row(folder, "a.mp4", "b.mp4", labels=("cnn",)))
    values = np.ones((6, 2), np.float32)
    row = with_features(row, "cnn", Extracted(values, (2,), {0: "ValueError: no", 4: "x", 5: "y"}))
    result = _stage_worker(tmp_path, {"cnn": "print"})(row)
    finished = {m: models["cnn"] for m, _, _, models in json.loads(result["finished"][0].as_py())}
    assert finished == {"a": ["partial", "extractor_error", 3], "b": ["failed", "extractor_error", 0]}
    store = Store(str(tmp_path))
    table = read_piece(store, list_pieces(store, KEYS)[4][0].key)
    assert table is not None
    assert table["clip_index"].to_pylist() == [1, 2, 3]


def test_nothing_to_stage_stages_nothing(tmp_path: Path, folder: Path) -> None:
    worker = DecodeWorker((FRAMES,), Limits(), OPTIONS)
    worker._process = _Failing()  # type: ignore[assignment]
    row = with_features(worker(_row(folder, "a.mp4", labels=("cnn",))), "cnn", Extracted.nothing((2,)))
    result = _stage_worker(tmp_path, {"cnn": "print"})(row)
    assert json.loads(result["finished"][0].as_py()) == []
    assert len(json.loads(result["later"][0].as_py())) == 1
    assert Store(str(tmp_path)).list(KEYS.stage) == []


def test_the_report_of_a_lost_item() -> None:
    report = died_report(UnitItem("v", "/v", attempt=3), ("cnn",), Segment(0, 0))
    assert report.segment == Segment(0, 1)
    assert (report.models["cnn"].error_class, report.models["cnn"].retryable, report.attempts) == (
        "worker_died",
        True,
        3,
    )
    assert finished_entry(report) == ["v", 0, 1, {"cnn": ["failed", "worker_died", 0]}]
    assert died_report(UnitItem("v", "/v"), ("cnn",), Segment(2, 5)).segment == Segment(2, 5)


def test_a_store_that_cannot_be_written_stops_the_job_and_blames_no_item(folder: Path, tmp_path: Path) -> None:
    row = _here(FRAMES)(_row(folder, "a.mp4", "bad.mp4", labels=("cnn",)))
    worker = _stage_worker(tmp_path, {})
    (tmp_path / KEYS.stage).write_text("in the way")
    result = worker(row)
    said = json.loads(result["stats"][0].as_py())
    assert "cannot write" in said["fatal"]
    assert json.loads(result["finished"][0].as_py()) == []


def test_a_piece_says_how_often_its_shard_had_been_committed(folder: Path, tmp_path: Path) -> None:
    row = with_features(_here(FRAMES)(_row(folder, "bad.mp4", labels=("cnn",))), "cnn", Extracted.nothing((2,)))
    _stage_worker(tmp_path, {"cnn": "print"}, {"cnn": {4: 2, 5: 3}})(row)
    (piece,) = list_pieces(Store(str(tmp_path)), KEYS)[4]
    assert piece.rounds == {"cnn": 2}


def test_nothing_is_staged_once_the_units_of_the_pass_are_gone(folder: Path, tmp_path: Path) -> None:
    """Another driver took over and removed them; the one that slept through it goes on as if nothing had been."""
    row = with_features(_here(FRAMES)(_row(folder, "bad.mp4", labels=("cnn",))), "cnn", Extracted.nothing((2,)))
    worker = _stage_worker(tmp_path, {"cnn": "print"})
    Store(str(tmp_path)).delete([UNITS_KEY])
    result = worker(row)
    assert "another driver took over" in json.loads(result["stats"][0].as_py())["fatal"]
    assert json.loads(result["finished"][0].as_py()) == []
    assert list_pieces(Store(str(tmp_path)), KEYS) == {}


def test_units_are_read_by_row_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("featlib.workers.UNITS_A_GROUP", 2)
    store = Store(str(tmp_path))
    table = units_table([Unit(0, ("a",), (UnitItem(f"v{i}", f"/{i}.mp4"),)) for i in range(5)], 0)
    path = tmp_path / "units"
    pq.write_table(table.replace_schema_metadata(sealable(table.schema).metadata), path, row_group_size=2)
    seal_file(path)
    store.put_file("x.units", path)
    read = UnitsReader(str(tmp_path), OPTIONS, "x.units")
    assert [t["seq"].to_pylist() for t in read(pa.table({"group": [0, 2]}))] == [[0, 1], [4]]


@pytest.mark.parametrize("damage", ["other columns", "fewer rows", "another group"])
def test_units_of_a_large_object_are_not_believed_against_its_metadata(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    """It is read in parts, so its seal cannot tell, and no checksum of Parquet covers what says where they are."""
    monkeypatch.setattr(featlib_sealed, "_READ_WHOLE", 0)
    table = units_table([Unit(0, ("a",), (UnitItem(f"v{i}", f"/{i}.mp4"),)) for i in range(101)], 0)
    if damage == "other columns":
        table = table.rename_columns(["seq", "chard", *table.column_names[2:]])
    elif damage == "another group":
        table = table.slice(1)
    data = sealed(table)
    if damage == "fewer rows":
        at = data.rindex(_varint(101))  # the last of them is said of the row group, behind the values of its columns
        data = data[:at] + _varint(100) + data[at + 2 :]
    store = Store(str(tmp_path))
    store.put("x.units", data)
    (table,) = UnitsReader(str(tmp_path), OPTIONS, "x.units")(pa.table({"group": [0]}))
    assert table["seq"].to_pylist() == [STOP]


def test_units_that_another_driver_removed_stop_the_job(tmp_path: Path) -> None:
    (table,) = UnitsReader(str(tmp_path), OPTIONS, "x.units")(pa.table({"group": [0]}))
    assert table["seq"].to_pylist() == [STOP]
    assert "do not reach the output" in table["labels"][0].as_py()[0]


def _varint(number: int) -> bytes:
    """As Thrift writes it, with two bytes."""
    return bytes([2 * number & 0x7F | 0x80, 2 * number >> 7])


def test_units_that_cannot_be_read_stop_the_job(tmp_path: Path, model: ResolvedModel) -> None:
    """Ray would leave them out in silence, and their items would be blamed."""
    Store(str(tmp_path)).put("x.units", b"PAR1 no units PAR1")
    (block,) = UnitsReader(str(tmp_path), OPTIONS, "x.units")(pa.table({"group": [0]}))
    extract = ExtractWorker(ExtractSpec((model,), "cpu", 1, ()), {"cnn": payload(model, OPTIONS)})
    result = _stage_worker(tmp_path, {"cnn": "print"})(extract(_here(model.want)(block)))
    assert result["seq"].to_pylist() == [STOP]
    assert "x.units: has no seal" in json.loads(result["stats"][0].as_py())["fatal"]
