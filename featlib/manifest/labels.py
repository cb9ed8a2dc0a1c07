"""Labels of media that were extracted before: a table beside the manifest."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, get_args

from featlib.manifest.listing import ending_of
from featlib.manifest.rows import RawRows, Source, absolute_uri, texts
from featlib.manifest.tables import TABLE_READERS, read_table
from featlib.storage import StoreOptions, check_url, folder_of

_LISTS = (".txt", ".lst")  # hold URIs alone

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)

_SPELLINGS: dict[str, Split] = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}


def split_named(text: str) -> Split:
    """The part of a training that ``text`` names, in one of its common spellings.

    Raises:
        ValueError: It names none.
    """
    known = _SPELLINGS.get(text.lower())
    if known is None:
        raise ValueError(f"split {text!r} is not known; use train, val or test")
    return known


@dataclass(frozen=True)
class LabelRow:
    """One row of ``--labels``; of ``media_id`` and ``uri`` exactly one is known.

    Args:
        row: As a person counts.
        uri: None where there is a ``media_id``.
        label: None: the media has none.
    """

    row: int
    media_id: str | None
    uri: str | None
    label: str | None
    split: str | None


def read_labels(path: str, options: StoreOptions) -> Iterator[LabelRow]:
    """The rows of a CSV, JSON Lines or Parquet file with ``media_id`` or ``uri``, ``label`` and, if wanted, ``split``.

    Raises:
        ConfigError: One line: which row and value, which rule, what to do.
        TransientError: The store did not answer within the deadline.
    """
    url = check_url(path)
    source, ending = Source(path, folder_of(url), role="--labels"), ending_of(url)
    endings = [name for name in TABLE_READERS if name not in _LISTS]
    if ending not in endings:
        raise source.error(f"the ending {ending!r} is not known; labels come in {' '.join(endings)}")
    for raw in read_table(source, ending, options):
        yield from _rows(raw, source)


def _rows(raw: RawRows, source: Source) -> Iterator[LabelRow]:
    empty = [None] * len(raw.rows)
    labels, splits = texts(raw, "label", source), texts(raw, "split", source) or empty
    if labels is None:
        raise source.error(f"no column 'label' among {', '.join(sorted(raw.cells))}; name the classes there")
    ids, uris = texts(raw, "media_id", source) or empty, raw.cells.get("uri", empty)
    for row, media_id, uri, label, split in zip(raw.rows, ids, uris, labels, splits, strict=True):
        if media_id is None and uri is None:
            raise source.row_error(row, "media_id", None, "is empty, and so is uri; every row needs one of them")
        yield LabelRow(row, media_id, absolute_uri(uri, row, source) if media_id is None else None, label, split)
