"""Labels and splits: from the manifest or a file, obeyed or drawn; what cannot be learned from is said in one line."""

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import featlib
from featlib.config import AggregateConfig
from featlib.errors import ConfigError, StoppedError
from featlib.manifest.splits import Labelled
from featlib.training.labels import split_media
from tests.heads.videos import points
from tests.shards.make import publisher
from tests.training.make import Floats, Given, Manifest, config, output, stage_videos, uri_of

IDS = [f"v{i:02d}" for i in range(24)]


def videos(rows: int = 3) -> dict[str, Floats]:
    return {i: steps[:rows] for i, steps in zip(IDS, points(len(IDS), 0).steps, strict=True)}


CLASSES = {i: ("lo", "hi")[n % 2] for n, i in enumerate(IDS)}
PARTS = {i: "train" if n < 16 else "val" for n, i in enumerate(IDS)}


def figures(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "head" / "metrics.json").read_text())
    return found


def write_table(folder: Path, ending: str, rows: Sequence[Mapping[str, object]]) -> str:
    path, table = folder / f"labels.{ending}", pd.DataFrame(rows)
    if ending == "parquet":
        table.to_parquet(path)
    elif ending == "jsonl":
        table.to_json(path, orient="records", lines=True)
    else:
        table.to_csv(path, index=False)
    return str(path)


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize("by", ["media_id", "uri"])
def test_labels_of_a_file(tmp_path: Path, ending: str, by: str) -> None:
    """They count instead of the manifest's, which are wrong here; other columns do not matter, whatever their names."""
    output(tmp_path, {"a": videos()}, Manifest(dict.fromkeys(IDS, "same")))
    named = {"media_id": lambda i: i, "uri": uri_of}
    rows = [{by: named[by](i), "label": CLASSES[i], "split": PARTS[i], "width": 3} for i in IDS]
    rows.append({by: named[by]("nowhere"), "label": "lo", "split": "train", "width": 3})
    labels = write_table(tmp_path, ending, rows)
    summary = featlib.train(config(tmp_path, head="linear", labels=labels, epochs=40, learning_rate=0.02))
    assert figures(tmp_path)["splits"]["train"]["videos"] == 16
    assert figures(tmp_path)["splits"]["val"] == {
        "videos": 8,
        "top_1": 1.0,
        "top_5": 1.0,
        "mean_average_precision": 1.0,
    }
    assert summary.notes == ("1 rows of --labels name media that are not in the dataset",)


def test_relative_uris_start_from_the_file(tmp_path: Path) -> None:
    output(tmp_path, {"a": videos()})
    rows = [{"uri": f"../../../v/{i}.mp4", "label": CLASSES[i]} for i in IDS]
    labels = write_table(tmp_path, "csv", rows)
    with pytest.raises(ConfigError, match="has none for the 24 media"):
        featlib.train(config(tmp_path, head="linear", labels=labels))


def test_media_without_a_label_are_no_part_of_it(tmp_path: Path) -> None:
    some = {i: label for i, label in CLASSES.items() if i != "v05"}
    output(tmp_path, {"a": videos()}, Manifest(some, {i: s for i, s in PARTS.items() if i in some}))
    featlib.train(config(tmp_path, head="linear", epochs=2))
    assert figures(tmp_path)["splits"]["train"]["videos"] == 15


def test_media_that_a_partition_lacks_are_left_out_and_counted(tmp_path: Path) -> None:
    failed = {i: Given(np.empty((0, 4), np.float32), status="failed") for i in ("v00", "v01")}
    store = output(tmp_path, {"a": videos(), "b": {**videos(), **failed}}, Manifest(CLASSES))
    stage_videos(store, "b", {"v02": Given(videos()["v02"], etag="e1")})  # another version of the file
    publisher(store, ["b"], etags={"v02": "e1"}).publish(0)
    summary = featlib.train(config(tmp_path, features=["a", "b"], head="linear", epochs=2))
    assert summary.notes == ("3 labelled media have no features in every partition: left out",)
    assert sum(e.num_videos for e in summary.evaluations.values()) == 21


def one(media_id: str, label: str, split: str | None = None, uri: str | None = None) -> Labelled:
    return Labelled(media_id, uri or uri_of(media_id), label, split)


def drawn(
    count_by_class: Mapping[str, int], *, share: float = 0.25, seed: int = 0, pairs: bool = False
) -> Counter[str]:
    media = [one(f"{c}{i:03d}", c) for c, n in count_by_class.items() for i in range(n)]
    random = np.random.default_rng(0)
    parts = split_media([media[i] for i in random.permutation(len(media))], share=share, seed=seed, pairs=pairs)
    assert {m for part in parts.values() for m in part} == set(media)
    assert sum(map(len, parts.values())) == len(media)
    return Counter(m.label for m in parts["val"])


def test_without_a_split_each_class_gives_its_share() -> None:
    assert drawn({"x": 40, "y": 8, "z": 2, "once": 1}) == {"x": 10, "y": 2, "z": 1}
    assert drawn({"x": 40, "y": 8, "z": 3}, pairs=True) == {"x": 10, "y": 2}


def test_the_draw_depends_on_the_seed_and_on_nothing_else() -> None:
    media = [one(f"v{i}", "xy"[i % 2]) for i in range(40)]
    first, again = (split_media(m, share=0.5, seed=3, pairs=False)["val"] for m in (media, media[::-1]))
    assert first == again
    assert split_media(media, share=0.5, seed=4, pairs=False)["val"] != first


def test_a_test_split_stays_when_validation_is_drawn() -> None:
    media = [one(f"v{i:02d}", "xy"[i % 2], "test" if i < 10 else "train") for i in range(30)]
    parts = split_media(media, share=0.2, seed=0, pairs=False)
    assert {m.media_id for m in parts["test"]} == {f"v{i:02d}" for i in range(10)}
    assert (len(parts["train"]), len(parts["val"])) == (16, 4)


def test_all_parts_of_a_file_are_one_video() -> None:
    """Ten files of four parts each: drawn by the part, validation would hold parts of files that are trained on."""
    media = [one(f"v{i}-{part}", "xy"[i % 2], uri=uri_of(f"v{i}")) for i in range(10) for part in range(4)]
    for seed in range(5):
        parts = split_media(media, share=0.4, seed=seed, pairs=False)
        files = {name: {m.uri for m in part} for name, part in parts.items()}
        assert not files["train"] & files["val"]
        assert Counter(m.label for m in parts["val"]) == {"x": 8, "y": 8}
    torn = [
        one(f"v{i}-{part}", "xy"[i % 2], ("train", "val")[part], uri_of(f"v{i}")) for i in (0, 1) for part in (0, 1)
    ]
    with pytest.raises(ConfigError, match=r"/v/v0.mp4 is in train and in val; frames of one video are alike"):
        split_media(torn, share=0.4, seed=0, pairs=False)


def test_the_draw_leaves_every_class_something_to_learn_from() -> None:
    """Also where the share would take all of it, and where a file has several classes."""
    assert drawn({"x": 4, "y": 40}, share=0.9) == {"x": 3, "y": 36}
    both = [one("both-0", "x", uri="/v/both.mp4"), one("both-1", "y", uri="/v/both.mp4")]
    for seed in range(10):
        parts = split_media([*both, one("x1", "x"), one("y1", "y")], share=0.5, seed=seed, pairs=False)
        assert {m.label for m in parts["train"]} == {"x", "y"}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"x": ("train", "train", "val"), "y": ("train", "train", "val")}, "no class has two videos in val"),
        ({"x": ("train", "train", "val", "val"), "y": ("train", "train")}, r"val has one class \('x'\)"),
        ({"x": ("train", "val", "val"), "y": ("train", "val", "val")}, "no class has two videos in train"),
    ],
)
def test_pairs_need_two_videos_of_a_class_and_one_of_another(given: dict[str, tuple[str]], message: str) -> None:
    media = [one(f"{label}{i}", label, split) for label, splits in given.items() for i, split in enumerate(splits)]
    with pytest.raises(ConfigError, match=message):
        split_media(media, share=0.2, seed=0, pairs=True)


def test_a_file_of_labels_without_splits_leaves_those_of_the_manifest(tmp_path: Path) -> None:
    output(tmp_path, {"a": videos()}, Manifest(dict.fromkeys(IDS, "same"), PARTS))
    labels = write_table(tmp_path, "csv", [{"media_id": i, "label": CLASSES[i]} for i in IDS])
    featlib.train(config(tmp_path, head="linear", labels=labels, epochs=1))
    assert {name: s["videos"] for name, s in figures(tmp_path)["splits"].items()} == {"train": 16, "val": 8}


def test_blanks_and_gaps_in_labels(tmp_path: Path) -> None:
    """Numbers in a table with gaps are floats there; blanks round a label are none of it."""
    output(tmp_path, {"a": videos()}, Manifest({i: f" {c} " for i, c in CLASSES.items()}))
    gaps = [{"media_id": i, "label": None if n < 4 else n % 2} for n, i in enumerate(IDS)]
    for ending in ("parquet", "jsonl"):
        labels = write_table(tmp_path, ending, gaps)
        summary = featlib.train(config(tmp_path, head="linear", labels=labels, epochs=1))
        assert summary.classes == ("0", "1")
        assert sum(e.num_videos for e in summary.evaluations.values()) == 20
    padded = [{"media_id": i, "label": f" {CLASSES[i]}", "split": PARTS[i] + " "} for i in IDS]
    padded[0]["label"] = "  "
    summary = featlib.train(config(tmp_path, head="linear", labels=write_table(tmp_path, "csv", padded), epochs=1))
    assert summary.classes == ("hi", "lo")
    assert sum(e.num_videos for e in summary.evaluations.values()) == 23
    assert featlib.train(config(tmp_path, head="linear", epochs=1)).classes == ("hi", "lo")  # those of the manifest


def test_an_id_counts_whatever_stands_beside_it(tmp_path: Path) -> None:
    output(tmp_path, {"a": videos()})
    rows = [{"media_id": i, "uri": "http://[nowhere", "label": CLASSES[i]} for i in IDS]
    summary = featlib.train(config(tmp_path, head="linear", labels=write_table(tmp_path, "csv", rows), epochs=1))
    assert sum(e.num_videos for e in summary.evaluations.values()) == 24


def test_a_label_that_is_no_text_is_named(tmp_path: Path) -> None:
    output(tmp_path, {"a": videos()})
    path = tmp_path / "labels.jsonl"
    path.write_text('{"media_id": "v00", "label": "\\ud800"}\n')
    with pytest.raises(ConfigError, match=r"row 1: label .* is not valid UTF-8; write it again"):
        featlib.train(config(tmp_path, head="linear", labels=str(path)))


def test_a_training_that_diverges_says_so(tmp_path: Path) -> None:
    output(tmp_path, {"a": {i: 1e36 * v for i, v in videos().items()}}, Manifest(CLASSES))
    with pytest.raises(StoppedError, match=r"the loss is not finite after epoch \d; take a smaller --learning-rate"):
        featlib.train(config(tmp_path, head="linear", learning_rate=1000, epochs=9))
    assert not (tmp_path / "head").exists()


TWICE = [{"media_id": "v00", "label": "lo"}, {"media_id": "v00", "label": "hi"}]


@pytest.mark.parametrize(
    ("manifest", "settings", "message"),
    [
        (Manifest(), {}, r"label: the manifest has none for the 24 media of model=a; give a file"),
        (Manifest(dict.fromkeys(IDS, "x")), {}, r"train has one class \('x'\)"),
        (Manifest(CLASSES, {**PARTS, "v03": "holdout"}), {}, r"media v03 \(/v/v03.mp4\): split 'holdout' is not"),
        (Manifest(CLASSES, {"v03": "train"}), {}, r"media v03 .* has 'train', media v\d\d .* has none"),
        (Manifest(CLASSES, dict.fromkeys(IDS, "val")), {}, "split: no media for train"),
        (Manifest({i: i for i in IDS}), {}, "split: no media for val"),
        (Manifest({**CLASSES, "v20": "other"}, PARTS), {}, "'other' of media v20 .* is in val, but not in train"),
        (Manifest({i: i for i in IDS}, PARTS), {"head": "embedding"}, "no class has two videos in train"),
        (Manifest(CLASSES), {"features": ["absent"]}, "has no model=absent of dataset d; there is a, b"),
        (Manifest(CLASSES), {"features": ["a", "b"], "fuse": "mean"}, r"features of one size, these have \[4, 6\]"),
        (Manifest(CLASSES), {"features": ["a", "b"], "head": "lstm"}, r"other steps of media v\d\d \(3 and 2\)"),
        (Manifest(CLASSES), {"labels": "none.csv"}, "--labels none.csv: .*not_found"),
        (Manifest(CLASSES), {"labels": "list.txt"}, "--labels list.txt: the ending '.txt' is not known"),
        (Manifest(CLASSES), {"labels": [{"media_id": "v00"}]}, "no column 'label' among media_id"),
        (Manifest(CLASSES), {"labels": [{"name": "v00", "label": "x"}]}, "no column 'media_id' or 'uri' among 'name'"),
        (Manifest(CLASSES), {"labels": TWICE}, r"media v00 is 'lo' \(None\) in row 1 and 'hi' \(None\) in row 2"),
    ],
)
def test_what_is_refused(tmp_path: Path, manifest: Manifest, settings: dict[str, object], message: str) -> None:
    other = {i: np.zeros((2, 6), np.float32) for i in IDS}
    output(tmp_path, {"a": videos(), "b": other}, manifest)
    if isinstance(settings.get("labels"), list):
        settings = {**settings, "labels": write_table(tmp_path, "csv", settings["labels"])}
    with pytest.raises(ConfigError, match=message) as refusal:
        featlib.train(config(tmp_path, **{"head": "linear", "epochs": 5, **settings}))
    assert "\n" not in str(refusal.value)
    assert not (tmp_path / "head").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"head": "transformer"}, "head: Input should be 'linear'"),
        ({"head": "linear", "loss": "triplet"}, "linear learns from cross_entropy, not from triplet"),
        ({"head": "embedding", "loss": "cross_entropy"}, "embedding learns from contrastive or triplet"),
        ({"head": "lstm", "gated": True}, "gated: is no setting of lstm"),
        ({"head": "linear", "hidden": 8}, "hidden: is no setting of linear"),
        ({"head": "attention", "layers": 2}, "layers: is no setting of attention"),
        ({"head": "tcn", "layers": 17}, "layers: a tcn has at most 16 blocks"),
        ({"head": "lstm", "embedding_size": 8}, "embedding_size: is no setting of lstm"),
        ({"head": "lstm", "validation": 1.0}, "validation: Input should be less than 1"),
        ({"head": "lstm", "features": ["a", "a"]}, "a label is given twice"),
    ],
)
def test_settings_that_do_not_fit_are_refused_before_anything_is_read(
    tmp_path: Path, settings: Mapping[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message) as refusal:
        config(tmp_path / "absent", **settings)
    assert "\n" not in str(refusal.value)


def test_features_that_would_not_fit_into_memory_are_refused_before_they_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """24 videos of 3 x 4096 floats are 1.1 MB; their means are 0.4 MB; and so much again is a batch of them all."""
    wide = {i: np.repeat(v, 1024, axis=1) for i, v in videos().items()}
    output(tmp_path, {"a": wide}, Manifest(CLASSES))
    featlib.train(config(tmp_path, head="linear", epochs=1, memory_mb=1))
    with monkeypatch.context() as patch:
        patch.setattr("featlib.training.media.ShardRows", None)
        with pytest.raises(
            ConfigError, match="--memory-mb 1: the features of 24 labelled videos and a batch of them are 3 MB"
        ):
            featlib.train(config(tmp_path, head="lstm", epochs=1, memory_mb=1))
        with pytest.raises(ConfigError, match="a batch of them are 3 MB"):
            featlib.train(config(tmp_path, head="lstm", epochs=1, batch_size=1, memory_mb=1))


@pytest.mark.parametrize("damage", [lambda data: data[:-7], lambda data: data[:60] + bytes(20) + data[80:]])
@pytest.mark.parametrize("part", ["features", "outcomes"])
@pytest.mark.parametrize("command", ["train", "aggregate"])
def test_a_damaged_object_is_named(tmp_path: Path, part: str, damage: Callable[[bytes], bytes], command: str) -> None:
    """Its last bytes say what is in it; the first hold the ids."""
    output(tmp_path, {"a": videos()}, Manifest(CLASSES))
    (path,) = (tmp_path / part).rglob("*.parquet")
    path.write_bytes(damage(path.read_bytes()))
    run = {
        "train": lambda: featlib.train(config(tmp_path, head="lstm", epochs=1)),
        "aggregate": lambda: featlib.aggregate(AggregateConfig(output=str(tmp_path), dataset="d", features=("a",))),
    }
    with pytest.raises(ConfigError, match=f"{part}/dataset=d/model=a/part-00000.parquet: is damaged .*; featlib verif"):
        run[command]()


def test_features_that_are_no_numbers_are_named(tmp_path: Path) -> None:
    broken = videos()
    broken["v07"][1, 2] = np.nan
    output(tmp_path, {"a": broken}, Manifest(CLASSES))
    with pytest.raises(ConfigError, match="model=a: media v07 has a feature that is no finite number"):
        featlib.train(config(tmp_path, head="lstm"))
