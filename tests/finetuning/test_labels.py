from collections import Counter
from pathlib import Path

import pytest

from featlib.errors import ConfigError
from featlib.finetuning.labels import LabelledItem, read_labelled, with_splits
from featlib.spec import MediaItem
from featlib.storage import StoreOptions
from tests.finetuning.make import write_manifest


def item(video: str, label: str, split: str | None = None, part: int = 0) -> LabelledItem:
    return LabelledItem(f"{video}-{part}", f"/v/{video}.mp4", label, split, float(part), part + 1.0)


def placed_by(items: list[LabelledItem], share: float, seed: int, pairs: bool = False) -> list[LabelledItem]:
    return with_splits(items, share, seed, pairs=pairs)


def read(folder: Path, rows: list[dict[str, str]]) -> list[LabelledItem]:
    path = write_manifest(folder / "m.csv", rows)
    return read_labelled([path], uri_column="uri", limit=None, options=StoreOptions())


def rows(*labels: str, **more: str) -> list[dict[str, str]]:
    return [{"uri": f"/v/{i}.mp4", "label": label, **more} for i, label in enumerate(labels)]


def test_rows_become_labelled_items(tmp_path: Path) -> None:
    given = [{"uri": "/v/a.mp4", "label": " cat ", "split": "Train", "start_s": "1", "end_s": "2.5"}]
    given += [{"uri": "/v/b.mp4", "label": "7", "split": "val", "start_s": "", "end_s": ""}]
    cat, seven = read(tmp_path, given)
    assert (cat.label, cat.split) == ("cat", "Train")
    assert cat.item == MediaItem(cat.media_id, "/v/a.mp4", 1.0, 2.5)
    assert (seven.label, seven.split, seven.item.start_s) == ("7", "val", None)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([{"uri": "/v/a.mp4"}, {"uri": "/v/b.mp4"}], "no row has a label; fine-tuning needs a `label` column"),
        (rows("a", "", "b"), "row 2: label is empty; every row needs the name of its class"),
        (rows("a", " ", "b"), "row 2: label is empty"),
        (rows("a", "a"), "the only label is 'a'; to tell classes apart, two are needed"),
    ],
)
def test_refused_manifests(tmp_path: Path, given: list[dict[str, str]], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, given)
    assert message in str(caught.value)
    assert "m.csv" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_folder_of_media_has_no_labels(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"x")
    with pytest.raises(ConfigError, match="no row has a label"):
        read_labelled([str(tmp_path)], uri_column="uri", limit=None, options=StoreOptions())


def test_videos_are_drawn_by_class_and_never_torn() -> None:
    items = [
        item(f"{label}{v}", label, part=part)
        for label, n in (("a", 10), ("b", 20))
        for v in range(n)
        for part in (0, 1)
    ]
    placed = placed_by(items, 0.3, seed=1)
    splits: dict[str, set[str | None]] = {}
    for i in placed:
        splits.setdefault(i.uri, set()).add(i.split)
    assert all(len(s) == 1 for s in splits.values())
    assert Counter(i.label for i in placed if i.split == "val") == {"a": 6, "b": 12}
    assert [i.item for i in placed] == [i.item for i in items]


def test_the_draw_repeats_and_follows_the_seed_not_the_order_of_rows() -> None:
    items = [item(f"{v}", "ab"[v % 2]) for v in range(40)]
    drawn = [{i.uri for i in placed_by(items, 0.25, seed=s) if i.split == "val"} for s in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert {i.uri for i in placed_by(items[::-1], 0.25, seed=0) if i.split == "val"} == drawn[0]


def test_given_splits_are_kept() -> None:
    given = [item("1", "a", "train"), item("2", "b", "train"), item("3", "a", "val"), item("4", "b", "test")]
    assert placed_by(given, 0.9, seed=0) == given


def test_validation_is_drawn_from_what_is_to_be_trained_on_when_only_a_test_split_is_given() -> None:
    given = [item(f"{v}", "ab"[v % 2], "test" if v < 4 else "train") for v in range(20)]
    placed = placed_by(given, 0.25, seed=0)
    assert Counter(i.split for i in placed) == {"train": 12, "val": 4, "test": 4}
    assert [i.split for i in placed[:4]] == ["test"] * 4


def test_a_class_of_one_video_is_trained_on() -> None:
    placed = placed_by([item("1", "a"), item("2", "b"), item("3", "b")], 0.2, seed=0)
    assert placed[0].split == "train"
    assert Counter(i.split for i in placed if i.label == "b") == {"train": 1, "val": 1}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([item("1", "a", "trian"), item("2", "b", "val")], "media 1-0 (/v/1.mp4): split 'trian' is not known"),
        (
            [item("1", "a", "train"), item("2", "b")],
            "has 'train', media 2-0 (/v/2.mp4) has none; give every labelled media one",
        ),
        (
            [item("1", "a", "train", 0), item("1", "b", "test", 1)],
            "/v/1.mp4 is in train and in test; frames of one video are alike",
        ),
        (
            [item("1", "a", "train"), item("2", "b", "train"), item("3", "c", "val")],
            "'c' of media 3-0 (/v/3.mp4) is in val, but not in train",
        ),
        ([item("1", "a"), item("2", "b")], "split: no media for val; label more videos of each class"),
    ],
)
def test_refused_splits(given: list[LabelledItem], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        placed_by(given, 0.2, seed=0)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([item(f"{v}{s}", v, s) for v in "ab" for s in ("train", "val")], "no class has two videos in train"),
        (
            [item(f"{v}{n}", v, "val" if n == 2 else "train") for v in "ab" for n in range(3)],
            "no class has two videos in val",
        ),
        (
            [item(f"{v}{n}", v, "val" if n > 1 and v == "a" else "train") for v in "ab" for n in range(4)],
            "val has one class ('a')",
        ),
        ([item(v, v, part=p) for v in "ab" for p in range(4)], "no class has two videos in train"),
    ],
)
def test_splits_on_which_a_loss_of_pairs_means_nothing(given: list[LabelledItem], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        placed_by(given, 0.2, seed=0, pairs=True)
    assert message in str(caught.value)


def test_a_loss_of_pairs_may_be_judged_on_classes_that_are_not_trained_on() -> None:
    given = [item(f"{v}{n}", v, "val" if v in "cd" else "train") for v in "abcd" for n in range(2)]
    assert placed_by(given, 0.2, seed=0, pairs=True) == given
