"""Media files found below a folder, a prefix or a glob, as rows and as a written manifest."""

import json
import os
import tempfile
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa

from featlib.errors import ConfigError
from featlib.manifest.rows import RawRows, Source
from featlib.manifest.tables import BATCH_ROWS
from featlib.storage import ObjectInfo, StoreOptions, check_url, is_s3, list_files, write_file

VIDEO_ENDINGS = (
    *(".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".mts", ".m2ts"),
    *(".3gp", ".3g2", ".flv", ".wmv", ".ogv", ".gif"),
)
IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
MEDIA_ENDINGS = frozenset((*VIDEO_ENDINGS, *IMAGE_ENDINGS))

_LISTED_SCHEMA = pa.schema([("uri", pa.string()), ("size", pa.int64())])


def ending_of(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def media_files(url_or_glob: str, options: StoreOptions) -> Iterator[ObjectInfo]:
    """Files with media endings, sorted by path; a folder is descended whatever its name."""
    return (info for info in list_files(url_or_glob, options) if ending_of(info.key) in MEDIA_ENDINGS)


def read_listing(source: Source, options: StoreOptions) -> Iterator[RawRows]:
    """The media that the source names, as rows numbered in the order of their paths.

    Raises:
        ConfigError: There are none.
    """
    found = media_files(source.name, options)
    row = 1
    while batch := list(islice(found, BATCH_ROWS)):
        cells: dict[str, list[Any]] = {"uri": [info.key for info in batch], "size": [info.size for info in batch]}
        yield RawRows(range(row, row + len(batch)), cells)
        row += len(batch)
    if row == 1:
        raise source.error(
            f"no media found there; files with the endings {' '.join(sorted(MEDIA_ENDINGS))} are taken, "
            "others only when a manifest names them"
        )


def write_manifest(url_or_glob: str, output: str, options: StoreOptions) -> int:
    """Lists media into a manifest of ``uri`` and ``size``, whole or not at all; gives the number of rows.

    Args:
        url_or_glob: Folder, prefix, glob or one media file.
        output: Path or URL that ends in .parquet, .csv or .jsonl; an old file is replaced.
        options: Of both stores.

    Raises:
        ConfigError: No media, another ending, or a manifest in S3 that would name local files.
    """
    url = check_url(output)
    writer = _WRITERS.get(ending_of(url))
    if writer is None:
        raise ConfigError(f"manifest {output!r}: the ending must be {', '.join(_WRITERS)}")
    if is_s3(url) and not is_s3(check_url(url_or_glob)):
        raise ConfigError(f"manifest {output!r}: one in S3 cannot name local files; write it to a local path")
    rows = 0

    def batches() -> Iterator[pa.RecordBatch]:
        nonlocal rows
        for raw in read_listing(Source(url_or_glob, ""), options):
            rows += len(raw.rows)
            yield pa.record_batch([raw.cells["uri"], raw.cells["size"]], schema=_LISTED_SCHEMA)

    with tempfile.TemporaryDirectory(prefix="featlib-manifest-") as folder:
        path = Path(folder) / "manifest"
        writer(path, batches())
        write_file(output, path, options)
    return rows


def _write_parquet(path: Path, batches: Iterator[pa.RecordBatch]) -> None:
    from pyarrow.parquet import ParquetWriter

    with ParquetWriter(path, _LISTED_SCHEMA, compression="zstd") as writer:
        for batch in batches:
            writer.write_batch(batch)


def _write_csv(path: Path, batches: Iterator[pa.RecordBatch]) -> None:
    from pyarrow.csv import CSVWriter

    with CSVWriter(path, _LISTED_SCHEMA) as writer:
        for batch in batches:
            writer.write_batch(batch)


def _write_json_lines(path: Path, batches: Iterator[pa.RecordBatch]) -> None:
    with path.open("w", encoding="utf-8") as file:
        for batch in batches:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in batch.to_pylist())


_WRITERS: dict[str, Callable[[Path, Any], None]] = {
    ".parquet": _write_parquet,
    ".csv": _write_csv,
    ".jsonl": _write_json_lines,
}
