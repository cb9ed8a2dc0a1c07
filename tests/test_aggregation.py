"""One vector a video from features that were published before; the numbers are those of plain numpy."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

import featlib
from featlib.config import AggregateConfig, validated
from featlib.errors import ConfigError
from featlib.heads.pooling import steps_of
from featlib.storage import Store
from tests.shards.make import CrashError, Item, planned, publish, publisher, snapshot, staged, value

IDS = ["v0", "v1", "v2"]
LABELS = ("a", "b")


@pytest.fixture(autouse=True)
def _nobody_else_drives(monkeypatch: pytest.MonkeyPatch) -> None:
    """Claims settle at once; how drivers keep out of each other's way has tests of its own."""
    monkeypatch.setattr("featlib.drivers.SETTLE_S", 0.01)


def published(folder: Path, items: Sequence[Item], labels: Sequence[str] = LABELS, shard_items: int = 100) -> Store:
    """An output with these items under models of features [4] and [2, 3]."""
    store = Store(str(folder))
    planned(store, [i.media_id for i in items], shard_items)
    staged(store, "u", items, labels)
    publish(store, labels)
    return store


def aggregate(folder: Path, *features: str, **settings: object) -> featlib.Summary:
    config = featlib.AggregateConfig.model_validate(
        {"output": str(folder), "dataset": "d", "features": features, **settings}
    )
    return featlib.aggregate(config)


def vectors(folder: Path, label: str) -> dict[str, list[float]]:
    table = featlib.open_features(str(folder), dataset="d", model=label).to_pandas()
    assert table.media_id.is_unique
    return {row.media_id: row.feature.tolist() for row in table.itertuples()}


def steps(label: str, media_id: str) -> npt.NDArray[np.float64]:
    """What is pooled of an item: (num_steps, D)."""
    rows = np.array([value(label, media_id, clip, "e0") for clip in (0, 1, 2)])
    return rows if label == "a" else rows.reshape(-1, 3)


@pytest.mark.parametrize(
    ("how", "plain"),
    [
        ("mean", lambda s: s.mean(0)),
        ("max", lambda s: s.max(0)),
        ("mean_std", lambda s: np.concatenate([s.mean(0), np.sqrt(((s - s.mean(0)) ** 2).mean(0))])),
    ],
)
@pytest.mark.parametrize("label", LABELS)
def test_rows_of_a_video_are_pooled(tmp_path: Path, label: str, how: str, plain: object) -> None:
    published(tmp_path, [Item(i) for i in IDS])
    summary = aggregate(tmp_path, label, pool=how)
    assert summary.media == {"ok": 3}
    assert summary.rows == {f"{label}.{how}": 3}
    found = vectors(tmp_path, f"{label}.{how}")
    assert found.keys() == set(IDS)
    for media_id in IDS:
        assert callable(plain)
        assert found[media_id] == pytest.approx(plain(steps(label, media_id)), rel=1e-6)


def test_a_vector_covers_the_time_of_its_rows(tmp_path: Path) -> None:
    published(tmp_path, [Item("v0"), Item("v1", clips=(2, 3))])
    aggregate(tmp_path, "a")
    features = featlib.open_features(str(tmp_path), dataset="d", model="a.mean")
    rows = features.to_pandas().set_index("media_id")
    assert rows.loc["v0", ["clip_index", "region_index", "start_s", "end_s", "padded_frames"]].tolist() == [
        0,
        0,
        0.0,
        1.5,
        0,
    ]
    assert rows.loc["v1", ["start_s", "end_s"]].tolist() == [1.0, 2.0]
    assert rows.loc["v0", "frame_s"].tolist() == [0.0, 0.5, 1.0]
    assert rows.loc["v0", "feature_shape"].tolist() == [4]
    assert rows.loc["v0", "uri"] == "/v/v0.mp4"
    assert features.outcomes().set_index("media_id").loc["v0", "codec"] == "h264"


def test_cells_of_a_map_are_steps_of_its_channels() -> None:
    maps = np.arange(2 * 5 * 3 * 4, dtype=np.float32).reshape(2, 5, 3, 4)
    found = steps_of(maps.reshape(2, -1), (5, 3, 4))
    assert np.array_equal(found, maps.transpose(0, 2, 3, 1).reshape(-1, 5))


def test_models_are_fused_by_concatenation_in_the_order_given(tmp_path: Path) -> None:
    published(tmp_path, [Item(i) for i in IDS])
    aggregate(tmp_path, "b", "a", label="both")
    for media_id, vector in vectors(tmp_path, "both").items():
        assert vector == pytest.approx([*steps("b", media_id).mean(0), *steps("a", media_id).mean(0)], rel=1e-6)


def test_models_are_fused_by_their_mean(tmp_path: Path) -> None:
    published(tmp_path, [Item(i) for i in IDS])
    aggregate(tmp_path, "a")
    aggregate(tmp_path, "a", pool="max")
    aggregate(tmp_path, "a.mean", "a.max", fuse="mean", label="middle")
    for media_id, vector in vectors(tmp_path, "middle").items():
        mean, most = (getattr(steps("a", media_id), how)(0) for how in ("mean", "max"))
        assert vector == pytest.approx((mean + most) / 2, rel=1e-6)


def test_a_mean_of_different_sizes_is_refused_in_one_line(tmp_path: Path) -> None:
    published(tmp_path, [Item(i) for i in IDS])
    with pytest.raises(ConfigError, match=r"--fuse mean: the mean needs vectors of one size.*use concat") as refusal:
        aggregate(tmp_path, "a", "b", fuse="mean")
    assert "\n" not in str(refusal.value)
    assert not list(tmp_path.glob("features/**/model=a-b.mean/*.parquet"))


def test_vectors_can_have_length_one(tmp_path: Path) -> None:
    published(tmp_path, [Item(i) for i in IDS])
    aggregate(tmp_path, "a", normalize=True)
    for media_id, vector in vectors(tmp_path, "a.mean").items():
        mean = steps("a", media_id).mean(0)
        assert vector == pytest.approx(mean / np.linalg.norm(mean), rel=1e-6)


def test_what_became_of_an_item_is_carried_over(tmp_path: Path) -> None:
    items = [Item("v0"), Item("v1", status={"a": "failed"}), Item("v2", status={"a": "partial"})]
    items.append(Item("v3", status={"a": "skipped"}))
    published(tmp_path, items)
    summary = aggregate(tmp_path, "a", "b", label="both", max_failed=0.5)
    outcomes = featlib.open_features(str(tmp_path), dataset="d", model="both").outcomes().set_index("media_id")
    assert outcomes.status.to_dict() == {"v0": "ok", "v1": "failed", "v2": "partial", "v3": "skipped"}
    assert outcomes.num_rows.to_dict() == {"v0": 1, "v1": 0, "v2": 1, "v3": 0}
    assert outcomes.loc["v1", "error_class"] == "timeout"
    assert vectors(tmp_path, "both").keys() == {"v0", "v2"}
    assert summary.exit_code == 0
    assert summary.media == {"ok": 1, "failed": 1, "partial": 1, "skipped": 1}


def test_the_same_command_again_does_nothing(tmp_path: Path) -> None:
    store = published(tmp_path, [Item(i) for i in IDS])
    assert aggregate(tmp_path, "a").did_work
    before = snapshot(store)
    summary = aggregate(tmp_path, "a")
    assert not summary.did_work
    assert "nothing to do" in summary.text()
    assert snapshot(store) == before


def test_only_what_was_extracted_since_is_added(tmp_path: Path) -> None:
    store = published(tmp_path, [Item("v0"), Item("v1")])
    aggregate(tmp_path, "a")
    first = {p: p.read_bytes() for p in tmp_path.glob("features/*/model=a.mean/*.parquet")}
    planned(store, ["v0", "v1", "v2"])
    staged(store, "later", [Item("v2")], LABELS, shard=1)
    publisher(store, LABELS).publish(1)
    assert aggregate(tmp_path, "a").media == {"ok": 3}
    assert {p: p.read_bytes() for p in first} == first
    assert vectors(tmp_path, "a.mean").keys() == {"v0", "v1", "v2"}


def test_an_item_that_was_retried_gets_its_vector(tmp_path: Path) -> None:
    store = published(tmp_path, [Item("v0"), Item("v1", status={"a": "failed"})], ("a",))
    assert aggregate(tmp_path, "a", max_failed=1.0).media == {"ok": 1, "failed": 1}
    staged(store, "again", [Item("v1", attempts=2)], ("a",))
    publish(store, ("a",), retry_failed=True)
    assert aggregate(tmp_path, "a").media == {"ok": 2}
    assert vectors(tmp_path, "a.mean").keys() == {"v0", "v1"}


@pytest.mark.parametrize("event", ["shard_staged", "features_put", "outcomes_put", "shard_published"])
def test_broken_off_anywhere_the_same_command_goes_on(tmp_path: Path, event: str) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    for folder in (whole, cut):
        published(folder, [Item("v0"), Item("v1")])
    aggregate(whole, "a")

    def crash(name: str, what: str) -> None:
        if name == event:
            raise CrashError(what)

    config = featlib.AggregateConfig(output=str(cut), dataset="d", features=("a",))
    with pytest.raises(CrashError):
        featlib.aggregate(config, on_event=crash)
    assert aggregate(cut, "a").media == {"ok": 2}
    assert snapshot(Store(str(cut))) == snapshot(Store(str(whole)))
    assert not list(cut.glob("_featlib/d/stage/**/*.piece"))


def test_another_pooling_under_the_same_label_is_refused(tmp_path: Path) -> None:
    published(tmp_path, [Item(i) for i in IDS])
    aggregate(tmp_path, "a", label="video")
    with pytest.raises(ConfigError, match="pool was mean, is now max"):
        aggregate(tmp_path, "a", label="video", pool="max")


def test_the_fingerprint_holds_that_of_the_source(tmp_path: Path) -> None:
    published(tmp_path, [Item("v0")])
    aggregate(tmp_path, "a")
    settings = featlib.open_features(str(tmp_path), dataset="d", model="a.mean").settings
    assert settings["features"] == f'{{"a":"{featlib.config.fingerprint({"network": "a"})}"}}'
    assert settings["pool"] == "mean"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"features": ["absent"]}, r"--features absent: .* has no model=absent of dataset d; there is a, b"),
        ({"features": ["a"], "label": "a"}, "one of the partitions to read"),
        ({"features": ["a", "a"]}, "given twice"),
        ({"features": []}, "features"),
    ],
)
def test_what_is_refused(tmp_path: Path, settings: Mapping[str, object], message: str) -> None:
    published(tmp_path, [Item("v0")])
    with pytest.raises(ConfigError, match=message) as refusal:
        featlib.aggregate(validated(AggregateConfig, {"output": str(tmp_path), "dataset": "d", **settings}))
    assert "\n" not in str(refusal.value)
