"""What is to be done: manifests of every kind become one stream of checked rows.

    for batch in read_manifest(["videos.csv", "s3://bucket/more/"]):
        batch.column("uri")

A CSV's other columns are kept as text; Parquet and JSON Lines keep their types.
"""

import os
from collections.abc import Iterator, Sequence
from itertools import islice

import pyarrow as pa

from featlib.errors import ConfigError
from featlib.manifest.ids import DuplicateSearch, media_id
from featlib.manifest.listing import (
    IMAGE_ENDINGS,
    MEDIA_ENDINGS,
    VIDEO_ENDINGS,
    ending_of,
    read_listing,
    write_manifest,
)
from featlib.manifest.rows import RESERVED, SCHEMA, RawRows, Source, normalised
from featlib.manifest.tables import BATCH_ROWS, TABLE_READERS, read_table
from featlib.redaction import redact
from featlib.storage import StoreOptions, check_url, folder_of, is_s3, list_files

__all__ = [
    "BATCH_ROWS",
    "IMAGE_ENDINGS",
    "MEDIA_ENDINGS",
    "RESERVED",
    "SCHEMA",
    "VIDEO_ENDINGS",
    "ending_of",
    "media_id",
    "read_manifest",
    "write_manifest",
]

_DEFAULT_OPTIONS = StoreOptions()


def read_manifest(
    sources: Sequence[str],
    *,
    uri_column: str = "uri",
    limit: int | None = None,
    local_media: bool = False,
    options: StoreOptions = _DEFAULT_OPTIONS,
) -> Iterator[pa.RecordBatch]:
    """Reads manifests, media files, folders, prefixes and globs as one stream in ``SCHEMA``.

    A row's faults are raised before its batch is given; an id that is there twice only at the end of the stream, so
    nothing may be begun before the stream has ended. The ids are kept at 16 bytes each, nothing else is.

    Args:
        sources: Paths or URLs, read in this order.
        uri_column: Which column of Parquet, CSV and JSON Lines holds the URIs.
        limit: Stop after so many rows, all sources together; the rest is not looked at.
        local_media: Manifests in an object store may name local paths.
        options: Of the stores that the sources lie in.

    Raises:
        ConfigError: One line: which manifest, row and value, which rule, what to do.
        TransientError: A store did not answer within the deadline.
    """
    if limit is not None and limit < 1:
        raise ConfigError(f"limit ({limit}) must be at least 1")
    if not sources:
        raise ConfigError("no manifest is given; name a manifest, a media file, a folder or a glob")
    search = DuplicateSearch()
    for batch in _batches(sources, uri_column, limit, local_media, options):
        search.add(batch.column("media_id").to_pylist())
        yield batch
    pair = search.first_pair()
    if pair is not None:
        raise _duplicate_error(_batches(sources, uri_column, limit, local_media, options), pair)


def _batches(
    sources: Sequence[str], uri_column: str, limit: int | None, local_media: bool, options: StoreOptions
) -> Iterator[pa.RecordBatch]:
    left = limit
    for name in _expanded(sources, options):
        source, empty = Source(name, folder_of(check_url(name)), uri_column, local_media), True
        for raw in _raw_rows(source, options):
            if left is not None and left < len(raw.rows):
                raw = raw.head(left)
            yield normalised(raw, source)
            empty = False
            left = None if left is None else left - len(raw.rows)
            if left == 0:
                return
        if empty:
            raise source.error("has no rows")


def _expanded(sources: Sequence[str], options: StoreOptions) -> Iterator[str]:
    """The sources, with a glob of manifest files (``s3://b/*.csv``) replaced by what it finds."""
    for name in sources:
        url = check_url(name)
        if not any(magic in url for magic in "*?[") or ending_of(url) not in TABLE_READERS:
            yield name
            continue
        found = [info.key for info in list_files(url, options)]
        if not found:
            raise ConfigError(f"manifest {redact(name)}: no file fits this glob")
        yield from found


def _raw_rows(source: Source, options: StoreOptions) -> Iterator[RawRows]:
    url = check_url(source.name)
    ending = ending_of(url)
    if any(magic in url for magic in "*?[") and ending not in TABLE_READERS:
        return read_listing(source, options)
    if is_s3(url):
        is_table = ending in TABLE_READERS
        return read_table(source, ending, options) if is_table else read_listing(source, options)
    if not os.path.lexists(url):
        raise source.error("no such file or folder")
    if os.path.isdir(url) or ending in MEDIA_ENDINGS:
        return read_listing(source, options)
    if ending not in TABLE_READERS:
        raise source.error(
            f"the ending {ending!r} is not known; manifests end in {' '.join(TABLE_READERS)}, and other files "
            "are taken from a manifest that names them"
        )
    return read_table(source, ending, options)


def _duplicate_error(batches: Iterator[pa.RecordBatch], pair: tuple[int, int]) -> ConfigError:
    """Reads up to the two rows once more, since only digests of the ids were kept."""
    first, second = (row for row in _rows_at(batches, pair))
    places = [f"manifest {row['source']}: row {row['row']}" for row in (first, second)]
    rule = "ids are unique, and a URI without an id may stand once for each range"
    what = f"media_id {second['media_id']!r} ({second['uri']}) is there twice"
    return ConfigError(redact(f"{what}: {places[0]} and {places[1]}; {rule}"))


def _rows_at(batches: Iterator[pa.RecordBatch], positions: Sequence[int]) -> Iterator[dict[str, object]]:
    rows = (batch.slice(i, 1) for batch in batches for i in range(batch.num_rows))
    done = 0
    for position in positions:
        yield next(islice(rows, position - done, None)).to_pylist()[0]
        done = position + 1
