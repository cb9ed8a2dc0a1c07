"""Trained heads over published features: the numbers are those of plain torch, the promises those of aggregation."""

import hashlib
import io
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetensors.torch
import torch
from torch import nn

import featlib
from featlib.config import AggregateConfig, fingerprint, validated
from featlib.errors import ConfigError
from featlib.heads.saved import HeadSpec
from featlib.sealed import sealed
from featlib.shards.schema import FEATURES
from featlib.storage import Store
from tests.servers.swift import SwiftServer
from tests.shards.make import KEYS, CrashError, publish, publisher, snapshot
from tests.training.make import Floats, Given, output, random_head, spec, stage_videos

KINDS = ("linear", "rnn", "lstm", "gru", "tcn", "attention", "hard_attention", "embedding")
STEPPED = tuple(kind for kind in KINDS if kind not in ("linear", "embedding"))
A, B = {"a": ((4,), 4)}, {"b": ((2, 3), 3)}


@pytest.fixture(autouse=True)
def _nobody_else_drives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("featlib.drivers.SETTLE_S", 0.01)


def values(seed: int, *shape: int) -> Floats:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def videos(*shape: int, lengths: tuple[int, ...] = (5, 1, 9), seed: int = 0) -> dict[str, Floats]:
    return {f"v{i}": values(seed + i, n, *shape) for i, n in enumerate(lengths)}


def aggregate(folder: Path, *features: str, **settings: object) -> featlib.Summary:
    given = {"output": str(folder), "dataset": "d", "features": features, "head": str(folder / "head"), **settings}
    return featlib.aggregate(validated(AggregateConfig, given))


def rows(folder: Path, label: str) -> dict[str, Any]:
    table = featlib.open_features(str(folder), dataset="d", model=label).to_pandas()
    assert table.media_id.is_unique
    return {row.media_id: row for row in table.itertuples()}


def plain(module: nn.Module, steps: npt.NDArray[np.float32], pooled: bool) -> tuple[Any, Any, Any]:
    """Vector, class probabilities and weights of the steps of one video, by torch alone."""
    x = steps.mean(0, keepdims=True, dtype=np.float64).astype(np.float32) if pooled else steps
    head = getattr(module, "head", module)
    with torch.inference_mode():
        made = head(torch.from_numpy(x)[None], torch.tensor([len(x)]))
        scores = module.fc(made.vector).softmax(1)[0].numpy() if hasattr(module, "fc") else None
    return made.vector[0].numpy(), scores, None if made.weights is None else made.weights[0].numpy()


def saved(folder: Path, made: HeadSpec, seed: int = 0) -> nn.Module:
    return random_head(folder / "head" / "head.safetensors", made, seed)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("label", "streams"), [("a", A), ("b", B)])
def test_a_video_gets_what_the_head_gives_in_plain_torch(
    tmp_path: Path, kind: str, label: str, streams: Mapping[str, tuple[tuple[int, ...], int]]
) -> None:
    given = videos(*streams[label][0])
    output(tmp_path, {label: given})
    made = spec(kind, streams)
    module = saved(tmp_path, made)
    assert aggregate(tmp_path, label).media == {"ok": 3}
    found = rows(tmp_path, f"{label}.{kind}")
    for media_id, video in given.items():
        vector, scores, weights = plain(module, video.reshape(-1, streams[label][1]), made.pooled)
        assert found[media_id].feature.tolist() == vector.tolist()
        assert found[media_id].feature_shape.tolist() == [len(vector)]
        if scores is None:
            assert found[media_id].labels is None
            assert found[media_id].probabilities is None
        else:
            assert found[media_id].labels.tolist() == ["xyz"[int(scores.argmax())]]
            assert found[media_id].probabilities.tolist() == [float(scores.max())]
        if weights is None:
            assert found[media_id].attention is None
        else:
            assert found[media_id].attention.tolist() == weights.tolist()
            assert found[media_id].attention.sum() == pytest.approx(1, abs=1e-6)


def test_the_best_classes_come_best_first(tmp_path: Path) -> None:
    given = videos(4)
    output(tmp_path, {"a": given})
    made = spec("lstm", A)
    module = saved(tmp_path, made)
    aggregate(tmp_path, "a", top_k=2)
    for media_id, row in rows(tmp_path, "a.lstm").items():
        scores = plain(module, given[media_id], pooled=False)[1]
        first, second, _ = sorted(range(3), key=lambda i: -scores[i])
        assert row.labels.tolist() == ["xyz"[first], "xyz"[second]]
        assert row.probabilities.tolist() == [scores[first], scores[second]]


def test_steps_stand_in_the_order_of_clips_regions_and_time(tmp_path: Path) -> None:
    """Staged in disorder, in several row groups and objects, with regions and two steps a row."""
    keys = [(clip, region) for clip in range(3) for region in range(2)]
    video = values(0, 6, 2, 3)
    shuffled = np.random.default_rng(1).permutation(6)
    given = Given(video[shuffled], [keys[i] for i in shuffled])
    output(tmp_path, {"b": {"v0": given}})
    for kind in ("attention", "lstm"):
        made = spec(kind, B)
        module = saved(tmp_path, made)
        aggregate(tmp_path, "b")
        row = rows(tmp_path, f"b.{kind}")["v0"]
        vector, _, weights = plain(module, video.reshape(12, 3), pooled=False)
        assert row.feature.tolist() == vector.tolist()
        if kind == "attention":
            assert row.attention.tolist() == weights.tolist()
            assert len(set(row.attention.tolist())) == 12, "equal weights would hide their order"


def test_rows_in_several_objects_and_row_groups_are_one_video(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("featlib.shards.parts.ROW_GROUP_BYTES", 100)
    given = videos(4, lengths=(30, 7, 20))
    store = output(tmp_path, {"a": given})
    (only,) = store.list(KEYS.features("a"))
    assert pq.ParquetFile(io.BytesIO(store.get(only.key))).metadata.num_row_groups > 10
    module = saved(tmp_path, spec("gru", A))
    aggregate(tmp_path, "a")
    for media_id, row in rows(tmp_path, "a.gru").items():
        assert row.feature.tolist() == plain(module, given[media_id], pooled=False)[0].tolist()


def test_the_cells_of_a_map_are_steps_where_the_channels_are_known(tmp_path: Path) -> None:
    given = videos(3, 2, 2, lengths=(2, 1))
    output(tmp_path, {"map": given}, settings={"map": {"channel_axis": "0"}})
    made = spec("attention", {"map": ((3, 2, 2), 3)})
    stream = made.features[0].model_copy(update={"fingerprint": fingerprint({"network": "map", "channel_axis": "0"})})
    module = saved(tmp_path, made.model_copy(update={"features": (stream,)}))
    aggregate(tmp_path, "map")
    aggregate(tmp_path, "map", head=None)
    found, means = rows(tmp_path, "map.attention"), rows(tmp_path, "map.mean")
    for media_id, video in given.items():
        cells = np.array([row[:, y, x] for row in video for y in range(2) for x in range(2)])
        vector, _, weights = plain(module, cells, pooled=False)
        assert found[media_id].feature.tolist() == vector.tolist()
        assert found[media_id].attention.tolist() == weights.tolist()
        assert means[media_id].feature == pytest.approx(cells.mean(0), rel=1e-6)


@pytest.mark.parametrize(
    ("axis", "message"),
    [(None, r"its rows are maps of shape \[3, 2, 2\]"), ("3", "channel_axis is 3, but"), ("-1", "channel_axis is -1")],
)
def test_a_map_without_a_usable_channel_axis_is_refused(tmp_path: Path, axis: str | None, message: str) -> None:
    output(tmp_path, {"map": videos(3, 2, 2)}, settings={"map": {} if axis is None else {"channel_axis": axis}})
    saved(tmp_path, spec("attention", {"map": ((3, 2, 2), 3)}))
    with pytest.raises(ConfigError, match=message):
        aggregate(tmp_path, "map")


@pytest.mark.parametrize("fuse", ["concat", "mean"])
@pytest.mark.parametrize("kind", ["linear", "lstm"])
def test_streams_are_fused_as_the_head_was_trained(tmp_path: Path, kind: str, fuse: str) -> None:
    one, two = videos(4), videos(4, seed=50)
    output(tmp_path, {"p": one, "q": two})
    made = spec(kind, {"q": ((4,), 4), "p": ((4,), 4)}, fuse=fuse)
    module = saved(tmp_path, made)
    aggregate(tmp_path, "q", "p")
    for media_id, row in rows(tmp_path, f"q-p.{kind}").items():
        streams = [two[media_id], one[media_id]]
        if made.pooled:
            streams = [s.mean(0, keepdims=True, dtype=np.float64).astype(np.float32) for s in streams]
        steps = np.concatenate(streams, 1) if fuse == "concat" else np.mean(streams, 0, dtype=np.float64)
        vector = plain(module, steps.astype(np.float32), pooled=False)[0]
        assert row.feature.tolist() == vector.tolist()


@pytest.mark.parametrize("other", [Given(values(9, 4, 4)), Given(values(9, 5, 4), [(i + 1, 0) for i in range(5)])])
def test_steps_that_differ_are_an_outcome_and_not_tried_for_ever(tmp_path: Path, other: Given) -> None:
    """Other counts of rows, or other clips; the mean of a video does not care."""
    two = {**videos(4, seed=50), "v0": other}
    output(tmp_path, {"p": videos(4), "q": two})
    streams = {"p": ((4,), 4), "q": ((4,), 4)}
    saved(tmp_path, spec("lstm", streams))
    assert aggregate(tmp_path, "p", "q", max_failed=1.0).media == {"ok": 2, "failed": 1}
    outcomes = featlib.open_features(str(tmp_path), dataset="d", model="p-q.lstm").outcomes().set_index("media_id")
    assert outcomes.loc["v0", "error_class"] == "steps_differ"
    assert "model=p and model=q have other steps of this item (5 and " in outcomes.loc["v0", "error_message"]
    assert rows(tmp_path, "p-q.lstm").keys() == {"v1", "v2"}
    assert not aggregate(tmp_path, "p", "q", max_failed=1.0).did_work
    saved(tmp_path, spec("linear", streams))
    assert aggregate(tmp_path, "p", "q").media == {"ok": 3}


@pytest.mark.parametrize("kind", ["lstm", "attention", "linear", "embedding"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_features_that_are_no_numbers_are_an_outcome_and_not_tried_for_ever(
    tmp_path: Path, kind: str, value: float
) -> None:
    given = videos(4)
    given["v1"][0, 2] = value
    output(tmp_path, {"a": given})
    saved(tmp_path, spec(kind, A))
    assert aggregate(tmp_path, "a", max_failed=1.0).media == {"ok": 2, "failed": 1}
    outcomes = featlib.open_features(str(tmp_path), dataset="d", model=f"a.{kind}").outcomes().set_index("media_id")
    assert outcomes.loc["v1", "error_class"] == "not_finite"
    found = rows(tmp_path, f"a.{kind}")
    assert found.keys() == {"v0", "v2"}
    assert all(np.isfinite(row.feature).all() for row in found.values())
    assert not aggregate(tmp_path, "a", max_failed=1.0).did_work


def test_a_head_and_its_backbone_are_in_the_fingerprint(tmp_path: Path) -> None:
    output(tmp_path, {"a": videos(4)})
    saved(tmp_path, spec("lstm", A))
    aggregate(tmp_path, "a")
    data = (tmp_path / "head" / "head.safetensors").read_bytes()
    settings = featlib.open_features(str(tmp_path), dataset="d", model="a.lstm").settings
    assert settings["head_sha256"] == hashlib.sha256(data).hexdigest()
    assert json.loads(settings["features"]) == [["a", fingerprint({"network": "a"})]]
    assert (settings["head"], settings["top_k"]) == ("lstm", "1")
    assert not aggregate(tmp_path, "a").did_work
    with pytest.raises(ConfigError, match=r"top_k was 1, is now 2\); use another label"):
        aggregate(tmp_path, "a", top_k=2)
    saved(tmp_path, spec("lstm", A), seed=1)
    with pytest.raises(ConfigError, match=r"head_sha256 was \w+, is now \w+\); use another label"):
        aggregate(tmp_path, "a")


def test_vectors_of_a_head_can_have_length_one(tmp_path: Path) -> None:
    given = videos(4)
    output(tmp_path, {"a": given})
    module = saved(tmp_path, spec("attention", A))
    aggregate(tmp_path, "a", normalize=True, label="unit")
    for media_id, row in rows(tmp_path, "unit").items():
        vector, scores, _ = plain(module, given[media_id], pooled=False)
        assert row.feature == pytest.approx(vector / np.linalg.norm(vector), rel=1e-6)
        assert row.probabilities.tolist() == [float(scores.max())], "the classifier saw the vector as it was"


def reshaped(path: Path) -> None:
    """The same metadata over weights of another shape."""
    with safetensors.safe_open(path, "pt") as file:
        metadata = file.metadata()
    tensors = safetensors.torch.load_file(path)
    tensors["fc.bias"] = torch.zeros(7)
    safetensors.torch.save_file(tensors, path, metadata)


def edited(**changes: object) -> Callable[[Path], None]:
    """The same weights under other metadata."""

    def edit(path: Path) -> None:
        with safetensors.safe_open(path, "pt") as file:
            said = json.loads(file.metadata()["featlib.head"])
        safetensors.torch.save_file(
            safetensors.torch.load_file(path), path, {"featlib.head": json.dumps({**said, **changes})}
        )

    return edit


def stream(label: str, *, of: str, size: int = 4) -> dict[str, object]:
    return {"label": label, "fingerprint": fingerprint({"network": of}), "shape": [size], "size": size}


@pytest.mark.parametrize(
    ("damage", "features", "settings", "message"),
    [
        (edited(features=[stream("resnet50", of="other")]), ["a"], {}, "was trained on model=resnet50 with"),
        (None, ["c"], {}, r"was trained on model=a with fingerprint \w{12}, --features c has \w{12}: another network"),
        (None, ["a", "c"], {}, r"reads 1 partitions \(a\), --features names 2"),
        (edited(features=[stream("a", of="a", size=6)]), ["a"], {}, r"cell.weight_ih_l0 is \[20, 4\] float32"),
        (reshaped, ["a"], {}, r"fc.bias is \[7\] float32, its configuration wants \[3\] float32"),
        (edited(head="gru"), ["a"], {}, "its configuration wants"),
        (edited(head="transformer"), ["a"], {}, "head: Input should be 'linear'"),
        (edited(features=[stream("a", of="a", size=10**30)]), ["a"], {}, "features.0.size: Input should be less than"),
        (edited(format=2), ["a"], {}, "format: Input should be 1"),
        (lambda path: path.write_bytes(path.read_bytes()[:-7]), ["a"], {}, "damaged file"),
        (lambda path: path.write_bytes(b"PK\x03\x04" * 9), ["a"], {}, "is no head|damaged file"),
        (lambda path: path.write_bytes(b""), ["a"], {}, "damaged file|is no head"),
        (
            lambda path: path.write_bytes((10_000_001).to_bytes(8, "little") + b"{}" + b" " * 9_999_999), ["a"], {},
            r"damaged file \(its header has 10000001 bytes, at most 10000000 are read\)",
        ),
        (lambda path: path.unlink(), ["a"], {}, "not_found"),
        (lambda path: safetensors.torch.save_file({"w": torch.zeros(2)}, path), ["a"], {}, "is no head that featlib"),
        (None, ["a"], {"top_k": 4}, "--top-k 4: this head knows 3 classes"),
        (None, ["a"], {"pool": "max"}, "head: pools and fuses as it was trained to; leave out pool"),
        (None, ["a"], {"head": None, "top_k": 2}, "top_k: needs a head"),
        (None, ["absent"], {}, "has no model=absent"),
    ],
)  # fmt: skip
def test_what_is_refused_before_anything_is_read(
    tmp_path: Path,
    damage: Callable[[Path], None] | None,
    features: list[str],
    settings: dict[str, object],
    message: str,
) -> None:
    store = output(tmp_path, {"a": videos(4), "c": videos(4)})
    saved(tmp_path, spec("lstm", A))
    if damage is not None:
        damage(tmp_path / "head" / "head.safetensors")
    before = [o.key for o in store.list("")]
    with pytest.raises(ConfigError, match=message) as refusal:
        aggregate(tmp_path, *features, **settings)
    assert "\n" not in str(refusal.value)
    assert [o.key for o in store.list("")] == before


def test_features_of_another_size_under_the_same_fingerprint_are_refused(tmp_path: Path) -> None:
    output(tmp_path, {"a": videos(6)})
    saved(tmp_path, spec("lstm", A))
    with pytest.raises(ConfigError, match=r"reads features of 4 values, --features a has 6 \(shape \[6\]\)"):
        aggregate(tmp_path, "a")


def test_an_embedding_has_no_classes_to_write(tmp_path: Path) -> None:
    output(tmp_path, {"a": videos(4)})
    saved(tmp_path, spec("embedding", A))
    with pytest.raises(ConfigError, match="--top-k 1: this head is an embedding without classes"):
        aggregate(tmp_path, "a", top_k=1)


def crash_at(event: str) -> Callable[[str, str], None]:
    def crash(name: str, what: str) -> None:
        if name == event:
            raise CrashError(what)

    return crash


@pytest.mark.parametrize("event", ["shard_staged", "features_put", "outcomes_put", "shard_published"])
def test_broken_off_anywhere_the_same_command_goes_on(tmp_path: Path, event: str) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    for folder in (whole, cut):
        output(folder, {"a": videos(4)}, shard_items=2)
        saved(folder, spec("attention", A))
    aggregate(whole, "a")
    config = AggregateConfig(output=str(cut), dataset="d", features=("a",), head=str(cut / "head"))
    with pytest.raises(CrashError):
        featlib.aggregate(config, on_event=crash_at(event))
    assert aggregate(cut, "a").media == {"ok": 3}
    assert snapshot(Store(str(cut))) == snapshot(Store(str(whole)))
    assert not list(cut.glob("_featlib/d/stage/**/*.piece"))


def test_a_damaged_piece_is_made_again(tmp_path: Path) -> None:
    given = videos(4)
    store = output(tmp_path, {"a": given})
    module = saved(tmp_path, spec("attention", A))
    damaged = []

    def damage(name: str, what: str) -> None:
        if name == "shard_staged" and not damaged:
            (piece,) = [o.key for o in store.list(KEYS.stage)]
            data = bytearray(store.get(piece))
            data[-20] ^= 0xFF
            store.put(piece, bytes(data))
            damaged.append(piece)

    config = AggregateConfig(output=str(tmp_path), dataset="d", features=("a",), head=str(tmp_path / "head"))
    assert featlib.aggregate(config, on_event=damage).media == {"ok": 3}
    assert damaged
    for media_id, row in rows(tmp_path, "a.attention").items():
        assert row.attention.tolist() == plain(module, given[media_id], pooled=False)[2].tolist()


def test_a_vector_follows_its_media_and_a_retry_gets_one(tmp_path: Path) -> None:
    given: dict[str, Given | Floats] = {**videos(4), "v9": Given(np.empty((0, 4), np.float32), status="failed")}
    store = output(tmp_path, {"a": given})
    module = saved(tmp_path, spec("tcn", A))
    assert aggregate(tmp_path, "a", max_failed=1.0).media == {"ok": 3, "failed": 1}
    before = {i: row.feature.tolist() for i, row in rows(tmp_path, "a.tcn").items()}
    now = {"v1": values(70, 4, 4), "v9": values(71, 2, 4)}
    stage_videos(store, "a", {"v1": Given(now["v1"], etag="e1")})
    publish(store, ["a"], etags={"v1": "e1"})
    stage_videos(store, "a", {"v9": Given(now["v9"])})
    publisher(store, ["a"], retry_failed=True).publish(0)
    assert aggregate(tmp_path, "a").media == {"ok": 4}
    after = {i: row.feature.tolist() for i, row in rows(tmp_path, "a.tcn").items()}
    for media_id, steps in now.items():
        assert after[media_id] == plain(module, steps, pooled=False)[0].tolist()
    assert {i: after[i] for i in ("v0", "v2")} == {i: before[i] for i in ("v0", "v2")}
    assert not aggregate(tmp_path, "a").did_work


def test_steps_of_two_sizes_in_one_partition_are_refused(tmp_path: Path) -> None:
    output(tmp_path, {"a": {"v0": values(0, 3, 4), "v1": values(1, 3, 5)}})
    saved(tmp_path, spec("lstm", A))
    with pytest.raises(ConfigError, match="reads steps of 4 values, a video has 5; the partition holds features of se"):
        aggregate(tmp_path, "a")


def without_features(folder: Path, store: Store, media_ids: tuple[str, ...]) -> None:
    """Rows of a detector that gives boxes alone."""
    (only,) = store.list(KEYS.features("a"))
    rows = pq.read_table(io.BytesIO(store.get(only.key))).to_pylist()
    nothing = {"feature": None, "feature_shape": None}
    changed = [{**row, **(nothing if row["media_id"] in media_ids else {})} for row in rows]
    (folder / only.key).write_bytes(sealed(pa.Table.from_pylist(changed, schema=FEATURES)))


def test_an_item_whose_rows_have_no_feature_is_said_once(tmp_path: Path) -> None:
    without_features(tmp_path, output(tmp_path, {"a": videos(4)}), ("v1",))
    saved(tmp_path, spec("lstm", A))
    assert aggregate(tmp_path, "a", max_failed=1.0).media == {"ok": 2, "failed": 1}
    outcomes = featlib.open_features(str(tmp_path), dataset="d", model="a.lstm").outcomes().set_index("media_id")
    assert outcomes.loc["v1", "error_class"] == "no_feature"
    assert not aggregate(tmp_path, "a", max_failed=1.0).did_work


def test_rows_without_a_feature_are_refused(tmp_path: Path) -> None:
    without_features(tmp_path, output(tmp_path, {"a": videos(4)}), ("v0", "v1", "v2"))
    with pytest.raises(ConfigError, match="--features a: its rows have no feature"):
        aggregate(tmp_path, "a", head=None)


@pytest.mark.parametrize("label", ["a", "a.mean"])
def test_shards_of_a_featlib_without_attention_go_on(tmp_path: Path, label: str) -> None:
    """Older objects lack the last column; they are read, and rewritten when an item changes."""
    store = output(tmp_path, {"a": videos(4)})
    aggregate(tmp_path, "a", head=None)
    (only,) = store.list(KEYS.features(label))
    old = sealed(pq.read_table(io.BytesIO(store.get(only.key))).drop_columns(["attention"]))
    store.put(only.key, old)
    outcomes = f"{KEYS.outcomes(label)}/part-00000.parquet"
    commit = pq.read_table(io.BytesIO(store.get(outcomes)))
    hashes = json.dumps({"part-00000.parquet": hashlib.sha256(old).hexdigest()})
    store.put(outcomes, sealed(commit.replace_schema_metadata({**commit.schema.metadata, b"featlib.features": hashes})))
    table = featlib.open_features(str(tmp_path), dataset="d", model=label).to_arrow()
    assert table.schema.names == FEATURES.names
    assert table["attention"].null_count == table.num_rows > 0
    stage_videos(store, "a", {"v1": Given(values(70, 4, 4), etag="e1")})
    publish(store, ["a"], etags={"v1": "e1"})
    assert aggregate(tmp_path, "a", head=None).media == {"ok": 3}
    assert rows(tmp_path, "a.mean")["v1"].feature == pytest.approx(values(70, 4, 4).mean(0), rel=1e-6)


@pytest.mark.s3
def test_heads_lie_in_object_stores_too(tmp_path: Path, s3_env: SwiftServer) -> None:
    from tests.heads.videos import points
    from tests.training.make import config, of_videos

    url = f"s3://{s3_env.bucket('heads')}/some/head"
    features, manifest = of_videos({"train": points(12, 0), "val": points(8, 1)}, ["lo", "hi"])
    output(tmp_path, {"a": features}, manifest)
    summary = featlib.train(config(tmp_path, head="linear", epochs=40, learning_rate=0.02, out=url))
    assert summary.head == f"{url}/head.safetensors"
    assert {o.key for o in Store(url).list("")} == {
        "head.safetensors", "metrics.json", "confusion.csv", "curve.csv", "curve.png"
    }  # fmt: skip
    assert aggregate(tmp_path, "a", head=url).media == {"ok": 20}
    assert all(row.labels[0] == manifest.labels[i] for i, row in rows(tmp_path, "a.linear").items())
