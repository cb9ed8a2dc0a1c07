"""Labelled media from a manifest, and which of them are trained on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa

from featlib.errors import ConfigError
from featlib.manifest import read_manifest
from featlib.manifest.labels import Split, split_named
from featlib.spec import MediaItem
from featlib.storage import StoreOptions, redact


@dataclass(frozen=True)
class LabelledItem:
    """A media item with the name of its class; ``split`` is None where the manifest has none."""

    item: MediaItem
    label: str
    split: Split | None = None

    @property
    def video(self) -> str:
        """What must not be torn apart: all parts of one file are one video."""
        return self.item.uri


def read_labelled(
    sources: Sequence[str], *, uri_column: str, limit: int | None, options: StoreOptions
) -> list[LabelledItem]:
    """All rows of the manifests.

    Raises:
        ConfigError: There are no labels, rows without one or with an unknown split, or only one class.
    """
    batches = read_manifest(sources, uri_column=uri_column, limit=limit, options=options)
    rows = [row for batch in batches for row in _columns(batch).to_pylist()]
    if all(row["label"] is None for row in rows):
        raise ConfigError(
            f"manifest {_source(rows[0])}: no row has a label; fine-tuning needs a `label` column, the class of each "
            "row (a folder or a list of URIs has none)"
        )
    items = [LabelledItem(_item(row), _label(row), _split(row)) for row in rows]
    if len({i.label for i in items}) < 2:
        raise ConfigError(
            f"manifest {_source(rows[0])}: the only label is {items[0].label!r}; to tell classes apart, two are needed"
        )
    return items


def _columns(batch: pa.RecordBatch) -> pa.RecordBatch:
    return batch.select(["row", "source", "media_id", "uri", "start_s", "end_s", "label", "split"])


def _item(row: Mapping[str, Any]) -> MediaItem:
    return MediaItem(row["media_id"], row["uri"], row["start_s"], row["end_s"])


def _source(row: Mapping[str, Any]) -> str:
    return redact(row["source"])


def _label(row: Mapping[str, Any]) -> str:
    label = (row["label"] or "").strip()
    if not label:
        raise ConfigError(
            f"manifest {_source(row)}: row {row['row']}: label is empty; every row needs the name of its class"
        )
    return label


def _split(row: Mapping[str, Any]) -> Split | None:
    text = row["split"]
    if text is None or not text.strip():
        return None
    try:
        return split_named(text)
    except ValueError as error:
        raise ConfigError(f"manifest {_source(row)}: row {row['row']}: {error}") from None


def with_splits(items: Sequence[LabelledItem], share: float, seed: int) -> list[LabelledItem]:
    """The items with a split each; a video is never in two.

    Splits that the manifest gives are kept. When none of them is ``validation``, ``share`` of the videos of each class
    is drawn for it by ``seed`` from those to train on; a class of one video keeps it for training.

    Raises:
        ConfigError: Only some items have a split, a video is in two, or there would be nothing in one of them.
    """
    num_given = sum(i.split is not None for i in items)
    if 0 < num_given < len(items):
        first = next(i for i in items if i.split is None)
        raise ConfigError(
            f"{len(items) - num_given} of {len(items)} rows have no split, the first is {redact(first.item.uri)}; "
            "give every row one, or none"
        )
    placed = [i if num_given else replace(i, split="train") for i in items]
    _check_not_torn(placed)
    if not any(i.split == "val" for i in placed):
        drawn = _drawn([i for i in placed if i.split == "train"], share, seed)
        placed = [replace(i, split="val") if i.split == "train" and i.video in drawn else i for i in placed]
    _check_enough(placed)
    return placed


def _check_not_torn(items: Sequence[LabelledItem]) -> None:
    seen: dict[str, Split | None] = {}
    for i in items:
        if seen.setdefault(i.video, i.split) != i.split:
            raise ConfigError(
                f"{redact(i.video)} is in the splits {seen[i.video]} and {i.split}; frames of one video are alike, so "
                "all its rows belong in one"
            )


def _drawn(items: Sequence[LabelledItem], share: float, seed: int) -> set[str]:
    """The videos for validation; a video of several classes counts for that of its first row."""
    class_of: dict[str, str] = {}
    for i in items:
        class_of.setdefault(i.video, i.label)
    random = np.random.default_rng(seed)
    drawn: set[str] = set()
    for label in sorted(set(class_of.values())):
        videos = sorted(v for v, c in class_of.items() if c == label)
        count = min(len(videos) - 1, max(1, round(share * len(videos))))
        drawn.update(videos[place] for place in random.permutation(len(videos))[:count])
    return drawn


def _check_enough(items: Sequence[LabelledItem]) -> None:
    trained = {i.label for i in items if i.split == "train"}
    if missing := sorted({i.label for i in items} - trained):
        raise ConfigError(f"label {missing[0]!r} has no row in the split train; every class needs some")
    if not any(i.split == "val" for i in items):
        raise ConfigError("every label has one video only; for validation at least one needs a second")
