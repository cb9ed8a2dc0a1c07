"""One vector a video from features that were published before; the numbers are those of plain numpy."""

import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

import featlib
from featlib.aggregation.sources import open_sources
from featlib.config import AggregateConfig, Pool, validated
from featlib.drivers import Claim
from featlib.errors import ConfigError, StoppedError
from featlib.heads.pooling import Pooled
from featlib.layout import Keys
from featlib.plan import Plan, read_plan
from featlib.shards.staging import Piece
from featlib.shards.verify import verify
from featlib.storage import Store, StoreOptions
from tests.servers.faults import flipped
from tests.shards.make import (
    KEYS,
    SHAPES,
    CrashError,
    Item,
    LaggingStore,
    batch,
    planned,
    publish,
    publisher,
    snapshot,
    staged,
    units,
    value,
)

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


@pytest.mark.parametrize("how", ["mean", "max", "mean_std"])
def test_steps_in_parts_are_pooled_as_at_once(how: Pool) -> None:
    """Also far from zero, where sums of squares would lose every digit of the deviation."""
    steps = (1e4 + np.random.default_rng(0).normal(0, 1e-1, (1000, 3))).astype(np.float32)
    parts, exact = Pooled(), steps.astype(np.float64)
    for part in np.split(steps, [1, 10, 11, 700]):
        parts.add(part)
    plain = {"mean": exact.mean(0), "max": exact.max(0), "mean_std": np.concatenate([exact.mean(0), exact.std(0)])}
    assert parts.pooled(how) == pytest.approx(plain[how], rel=1e-6)


def test_maps_are_refused_because_nothing_says_which_axis_the_channels_are(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    planned(store, ["v0"])
    SHAPES["map"] = (2, 2, 2)
    try:
        staged(store, "u", [Item("v0")], ["map"])
        publish(store, ["map"])
    finally:
        del SHAPES["map"]
    with pytest.raises(ConfigError, match=r"--features map: its rows are maps of shape \[2, 2, 2\]"):
        aggregate(tmp_path, "map")
    assert store.stat(KEYS.model("map.mean")) is None


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
    with pytest.raises(ConfigError, match=r"--fuse mean: needs vectors of one size.*\[3, 4\]; use concat") as refusal:
        aggregate(tmp_path, "a", "b", fuse="mean")
    assert "\n" not in str(refusal.value)
    assert not list(tmp_path.glob("**/*a-b.mean*"))


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
    assert settings["features"] == f'[["a","{featlib.config.fingerprint({"network": "a"})}"]]'
    assert settings["pool"] == "mean"


def test_another_order_of_fusion_is_another_setting(tmp_path: Path) -> None:
    published(tmp_path, [Item("v0")])
    aggregate(tmp_path, "a", "b", label="both")
    with pytest.raises(ConfigError, match=r"features was .*; use another label \(--label NEWLABEL\)"):
        aggregate(tmp_path, "b", "a", label="both")


def test_a_driver_that_waited_meets_what_the_other_one_registered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine, other = tmp_path / "mine", tmp_path / "other"
    for folder in (mine, other):
        published(folder, [Item("v0")])
    aggregate(other, "a", label="video")
    monkeypatch.setattr(Claim, "settle", lambda claim: shutil.copytree(other, mine, dirs_exist_ok=True))
    with pytest.raises(ConfigError, match="pool was mean, is now max"):
        aggregate(mine, "a", label="video", pool="max")


def buried(store: Store) -> None:
    """What another does to the driver at work once it takes it for dead."""
    store.delete([o.key for o in store.list(KEYS.drivers) if o.key.endswith(".claim")])


def test_a_driver_that_slept_writes_over_nothing_of_the_one_that_took_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It read the plan for so long that another made the same label, otherwise, and ended."""
    store, slept = published(tmp_path, [Item(i) for i in IDS]), list[bool]()

    def asleep(store: Store, keys: Keys) -> Plan:
        if not slept:
            slept.append(True)
            buried(store)
            aggregate(tmp_path, "a", label="video", pool="max")
            before.update(snapshot(store), record=store.get(KEYS.model("video")))
        return read_plan(store, keys)

    before: dict[str, object] = {}
    monkeypatch.setattr("featlib.aggregation.job.read_plan", asleep)
    with pytest.raises(StoppedError, match="another driver took over"):
        aggregate(tmp_path, "a", label="video", pool="mean")
    assert {**snapshot(store), "record": store.get(KEYS.model("video"))} == before
    ids = [batch({"media_id": i} for i in IDS)]
    assert verify(ids, store, KEYS, "video").complete


def test_a_driver_that_slept_removes_nothing_that_the_other_staged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = published(tmp_path, [Item("v0")])
    key = staged(store, "other", [Item("v0")], ["a"])
    monkeypatch.setattr("featlib.partition.register", lambda store, *_, **__: buried(store))
    monkeypatch.setattr("featlib.aggregation.job.read_shards", lambda *_: [(0, [Piece(key, {"a.mean": "x"}, ())])])
    with pytest.raises(StoppedError, match="another driver took over"):
        aggregate(tmp_path, "a")
    assert store.stat(key) is not None


def test_a_driver_that_slept_at_its_end_sums_up_nothing_of_the_other(tmp_path: Path) -> None:
    store = published(tmp_path, [Item("v0")])
    config = AggregateConfig(output=str(tmp_path), dataset="d", features=("a",))
    with pytest.raises(StoppedError, match="another driver took over"):
        featlib.aggregate(config, on_event=lambda name, what: buried(store) if name == "shard_published" else None)
    assert not store.list(KEYS.runs)


@pytest.mark.parametrize("late", ["_featlib/d/stage/", "features/dataset=d/model=a/part-00001"])
def test_what_is_not_listed_yet_is_found_by_its_key(late: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = published(tmp_path, [Item("v0")], ["a"], 1)
    planned(store, ["v0", "v1"], 1)
    staged(store, "r-1", [Item("v1")], ["a"], shard=1)
    made = publisher(store)
    units(made)
    made.publish(1)

    def lagging(url: str, options: StoreOptions) -> LaggingStore:
        store = LaggingStore(url, options)
        store.unseen = (late,)
        return store

    monkeypatch.setattr("featlib.aggregation.job.Store", lagging)
    assert aggregate(tmp_path, "a").media == {"ok": 2}
    assert vectors(tmp_path, "a.mean").keys() == {"v0", "v1"}


def changed(store: Store, label: str, *items: Item) -> None:
    """What ``extract --changed`` does for items whose files were replaced."""
    staged(store, f"changed-{label}", items, [label])
    publish(store, [label], etags={i.media_id: str(i.etag) for i in items})


def test_a_vector_follows_its_media(tmp_path: Path) -> None:
    store = published(tmp_path, [Item("v0"), Item("v1")], ["a"])
    aggregate(tmp_path, "a")
    before = vectors(tmp_path, "a.mean")
    changed(store, "a", Item("v1", etag="e1", created=2.0))
    assert aggregate(tmp_path, "a").media == {"ok": 2}
    after = vectors(tmp_path, "a.mean")
    assert after["v0"] == before["v0"]
    assert after["v1"] == pytest.approx(np.mean([value("a", "v1", c, "e1") for c in (0, 1, 2)], axis=0), rel=1e-6)
    assert not aggregate(tmp_path, "a").did_work


def test_a_vector_goes_when_its_media_turned_bad(tmp_path: Path) -> None:
    store = published(tmp_path, [Item("v0"), Item("v1")], ["a"])
    aggregate(tmp_path, "a")
    changed(store, "a", Item("v1", etag="e1", created=2.0, status={"a": "failed"}))
    assert aggregate(tmp_path, "a", max_failed=1.0).media == {"ok": 1, "failed": 1}
    assert vectors(tmp_path, "a.mean").keys() == {"v0"}


def test_two_versions_of_a_video_are_never_fused(tmp_path: Path) -> None:
    store = published(tmp_path, [Item("v0"), Item("v1")])
    aggregate(tmp_path, "a", "b", label="both")
    before = vectors(tmp_path, "both")
    changed(store, "a", Item("v1", etag="e1", created=2.0))
    aggregate(tmp_path, "a", "b", label="both")
    assert vectors(tmp_path, "both") == before, "model b has not seen the new file yet"
    changed(store, "b", Item("v1", etag="e1", created=2.0))
    assert aggregate(tmp_path, "a", "b", label="both").media == {"ok": 2}
    assert vectors(tmp_path, "both")["v1"] != before["v1"]


def test_what_a_broken_run_staged_gives_way_to_what_the_sources_say_now(tmp_path: Path) -> None:
    store = published(tmp_path, [Item("v0"), Item("v1", status={"a": "failed"})], ["a"])

    def crash(name: str, what: str) -> None:
        if name == "shard_staged":
            raise CrashError(what)

    for _ in range(4):  # several old pieces: by their random names one of them would win over the new one
        with pytest.raises(CrashError):
            featlib.aggregate(
                featlib.AggregateConfig(output=str(tmp_path), dataset="d", features=("a",)), on_event=crash
            )
    staged(store, "again", [Item("v1", attempts=2)], ["a"])
    publish(store, ["a"], retry_failed=True)
    assert aggregate(tmp_path, "a").media == {"ok": 2}


def test_an_item_in_which_nothing_was_found_is_skipped_and_not_tried_for_ever(tmp_path: Path) -> None:
    """Frames without boxes are no failure."""
    published(tmp_path, [Item("v0"), Item("v1", clips=())], ["a"])
    summary = aggregate(tmp_path, "a", max_failed=0.0)
    assert (summary.media, summary.exit_code) == ({"ok": 1, "skipped": 1}, 0)
    outcomes = featlib.open_features(str(tmp_path), dataset="d", model="a.mean").outcomes().set_index("media_id")
    assert outcomes.loc["v1", ["status", "error_class", "num_rows"]].tolist() == ["skipped", "no_rows", 0]
    assert not aggregate(tmp_path, "a").did_work


def test_an_item_that_broke_off_before_its_first_row_has_failed(tmp_path: Path) -> None:
    published(tmp_path, [Item("v0"), Item("v1", clips=(), status={"a": "partial"})], ["a"])
    summary = aggregate(tmp_path, "a")
    assert (summary.media, summary.exit_code) == ({"ok": 1, "failed": 1}, 3)
    assert "the outcomes say why" in summary.text()
    assert "--retry-failed" not in summary.text()  # which aggregate does not have
    assert not aggregate(tmp_path, "a").did_work


def test_a_retry_that_finds_nothing_makes_a_failure_good(tmp_path: Path) -> None:
    store = published(tmp_path, [Item("v0"), Item("v1", status={"a": "failed"})], ["a"])
    assert aggregate(tmp_path, "a", max_failed=1.0).media == {"ok": 1, "failed": 1}
    staged(store, "again", [Item("v1", clips=(), attempts=2)], ["a"])
    publish(store, ["a"], retry_failed=True)
    assert aggregate(tmp_path, "a").media == {"ok": 1, "skipped": 1}
    assert not aggregate(tmp_path, "a").did_work


def test_several_objects_of_a_shard_are_read_as_one(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    planned(store, IDS)
    staged(store, "u", [Item(i) for i in IDS], ["a"])
    publish(store, ["a"], max_bytes=1)
    assert len(store.list(KEYS.features("a"))) == 3
    aggregate(tmp_path, "a")
    assert vectors(tmp_path, "a.mean")["v2"] == pytest.approx(steps("a", "v2").mean(0), rel=1e-6)


@pytest.mark.parametrize("place", [60, -40])
def test_features_with_a_flipped_bit_become_no_vectors(tmp_path: Path, place: int) -> None:
    published(tmp_path, [Item(i) for i in IDS])
    (path,) = tmp_path.glob("features/dataset=d/model=a/*.parquet")
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)
    with pytest.raises(ConfigError, match="is damaged"):
        aggregate(tmp_path, "a")


def test_a_footer_with_a_flipped_bit_says_no_shape(tmp_path: Path) -> None:
    """What the columns are called stands in no page, and no checksum of Parquet covers it."""
    store = published(tmp_path, [Item("v0")], ("b",))
    (info,) = store.list(KEYS.features("b"))
    whole = store.get(info.key)
    assert [source.shape for source in open_sources(store, KEYS, ["b"])] == [SHAPES["b"]]
    names = [match.start() + place for match in re.finditer(b"feature_shape", whole) for place in (0, 5, 12)]
    assert len(names) > 3
    for place in names:
        store.put(info.key, flipped(whole, 8 * place))
        with pytest.raises(ConfigError, match=r"part-00000\.parquet: is damaged") as caught:
            open_sources(store, KEYS, ["b"])
        assert "\n" not in str(caught.value)


def test_a_plan_that_is_gone_is_said(tmp_path: Path) -> None:
    store = published(tmp_path, [Item("v0")])
    store.delete([o.key for o in store.list("_featlib")])
    with pytest.raises(ConfigError, match="the plan of dataset d is gone; extract it again"):
        aggregate(tmp_path, "a")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"features": ["absent"]}, r"--features absent: .* has no model=absent of dataset d; there is a, b"),
        ({"features": ["a"], "label": "a"}, "one of the partitions to read"),
        ({"features": ["a", "a"]}, "given twice"),
        ({"features": []}, "features"),
        ({"features": 5}, "features: Input should be a valid tuple"),
    ],
)
def test_what_is_refused(tmp_path: Path, settings: Mapping[str, object], message: str) -> None:
    published(tmp_path, [Item("v0")])
    with pytest.raises(ConfigError, match=message) as refusal:
        featlib.aggregate(validated(AggregateConfig, {"output": str(tmp_path), "dataset": "d", **settings}))
    assert "\n" not in str(refusal.value)
