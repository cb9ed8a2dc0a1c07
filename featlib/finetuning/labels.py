"""Labelled media from a manifest, and which of them are trained on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from featlib.errors import ConfigError
from featlib.manifest import read_manifest
from featlib.manifest.splits import Labelled, choose_splits
from featlib.redaction import redact
from featlib.spec import MediaItem
from featlib.storage import StoreOptions


@dataclass(frozen=True)
class LabelledItem(Labelled):
    """A media item with its class, and the part of its file that it is."""

    start_s: float | None = None
    end_s: float | None = None

    @property
    def item(self) -> MediaItem:
        """What is decoded."""
        return MediaItem(self.media_id, self.uri, self.start_s, self.end_s)


def read_labelled(
    sources: Sequence[str], *, uri_column: str, limit: int | None, options: StoreOptions, local_media: bool = False
) -> list[LabelledItem]:
    """All rows of the manifests.

    Args:
        local_media: Manifests in an object store may name local paths.

    Raises:
        ConfigError: There are no labels, rows without one, or only one class.
    """
    batches = read_manifest(sources, uri_column=uri_column, limit=limit, local_media=local_media, options=options)
    rows = [row for batch in batches for row in _columns(batch).to_pylist()]
    if all(row["label"] is None for row in rows):
        raise ConfigError(
            f"manifest {_source(rows[0])}: no row has a label; fine-tuning needs a `label` column, the class of each "
            "row (a folder or a list of URIs has none)"
        )
    items = [
        LabelledItem(row["media_id"], row["uri"], _label(row), row["split"], row["start_s"], row["end_s"])
        for row in rows
    ]
    if len({i.label for i in items}) < 2:
        raise ConfigError(
            f"manifest {_source(rows[0])}: the only label is {items[0].label!r}; to tell classes apart, two are needed"
        )
    return items


def _columns(batch: pa.RecordBatch) -> pa.RecordBatch:
    return batch.select(["row", "source", "media_id", "uri", "start_s", "end_s", "label", "split"])


def _source(row: Mapping[str, Any]) -> str:
    return redact(row["source"])


def _label(row: Mapping[str, Any]) -> str:
    label = row["label"]
    if label is None:
        raise ConfigError(
            f"manifest {_source(row)}: row {row['row']}: label is empty; every row needs the name of its class"
        )
    return str(label)


def with_splits(items: Sequence[LabelledItem], share: float, seed: int, *, pairs: bool) -> list[LabelledItem]:
    """The items with a split each; the arguments and errors are those of ``choose_splits``."""
    splits = choose_splits(items, share, seed, pairs=pairs)
    return [replace(i, split=split) for i, split in zip(items, splits, strict=True)]
