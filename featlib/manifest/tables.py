"""Readers of manifest files: Parquet, CSV, JSON Lines and lists of URIs, each a stream of raw rows."""

import io
import json
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any, cast

import pyarrow as pa

from featlib.errors import MediaError
from featlib.manifest.rows import KNOWN, RawRows, Source, as_json, check_columns, check_not_reserved
from featlib.storage import RangeFile, StoreOptions, open_media

BATCH_ROWS = 16_384
_CSV_BLOCK_BYTES = 4 << 20  # also the longest row that is read


def read_table(source: Source, ending: str, options: StoreOptions) -> Iterator[RawRows]:
    """The rows of a manifest file, at most ``BATCH_ROWS`` at a time.

    Raises:
        ConfigError: It is not there, cannot be read, or is not of the format that its ending says.
        TransientError: The store did not answer within the deadline.
    """
    try:
        with open_media(source.name, options) as file:
            yield from TABLE_READERS[ending](file, source)
    except MediaError as error:
        raise source.error(f"cannot be read: {error.error_class}: {error.message}") from error
    except UnicodeDecodeError as error:
        raise source.error(f"is not UTF-8 text (byte {error.start}: {error.reason}); save it as UTF-8") from error
    except (pa.ArrowException, OSError) as error:
        raise source.error(f"is not a readable {ending} file: {error}") from error


def _read_parquet(file: RangeFile, source: Source) -> Iterator[RawRows]:
    from pyarrow.parquet import ParquetFile

    table = ParquetFile(file)
    check_columns(table.schema_arrow.names, source)
    yield from _tabular(table.iter_batches(batch_size=BATCH_ROWS), source)


def _read_csv(file: RangeFile, source: Source) -> Iterator[RawRows]:
    yield from _delimited(file, source, ",")


def _read_tsv(file: RangeFile, source: Source) -> Iterator[RawRows]:
    yield from _delimited(file, source, "\t")


def _delimited(file: RangeFile, source: Source, delimiter: str) -> Iterator[RawRows]:
    """Every column is read as text: a guessed type would turn the id 007 into 7."""
    from pyarrow import csv

    reading = csv.ReadOptions(use_threads=False, block_size=_CSV_BLOCK_BYTES)  # threads lose the row in messages
    parsing = csv.ParseOptions(delimiter=delimiter, newlines_in_values=True)
    names = csv.open_csv(_borrowed(file), reading, parsing).schema.names
    check_columns(names, source)
    converting = csv.ConvertOptions(
        column_types=dict.fromkeys(names, pa.string()), null_values=[""], strings_can_be_null=True
    )
    yield from _tabular(csv.open_csv(_borrowed(file), reading, parsing, converting), source)


def _borrowed(file: RangeFile) -> Any:
    """The file for a reader that closes what it was given."""
    return RangeFile(lambda start, stop: _at(file, start, stop), file.size, file.etag)


def _at(file: RangeFile, start: int, stop: int) -> bytes:
    file.seek(start)
    return file.read(stop - start)


def _tabular(batches: Any, source: Source) -> Iterator[RawRows]:
    row = 1
    for whole in batches:
        for start in range(0, whole.num_rows, BATCH_ROWS):
            batch = whole.slice(start, BATCH_ROWS)
            yield _raw_of(batch, range(row, row + batch.num_rows), source)
            row += batch.num_rows


def _raw_of(batch: pa.RecordBatch, rows: range, source: Source) -> RawRows:
    names = batch.schema.names
    cells = {name: batch.column(name).to_pylist() for name in KNOWN if name in names}
    if source.uri_column in names:
        cells["uri"] = batch.column(source.uri_column).to_pylist()
    rest = sorted(name for name in names if name not in KNOWN and name != source.uri_column)
    if not rest:
        return RawRows(rows, cells)
    columns = [batch.column(name).to_pylist() for name in rest]
    return RawRows(rows, cells, [as_json(dict(zip(rest, row, strict=True))) for row in zip(*columns, strict=True)])


def _lines(file: RangeFile) -> Iterator[tuple[int, str]]:
    """Lines that are not blank, with their numbers."""
    text = io.TextIOWrapper(io.BufferedReader(cast(io.RawIOBase, _borrowed(file)), 1 << 20), "utf-8-sig", newline="\n")
    for number, line in enumerate(text, start=1):
        stripped = line.strip(" \t\r\n")
        if stripped:
            yield number, stripped


def _read_uris(file: RangeFile, source: Source) -> Iterator[RawRows]:
    lines = _lines(file)
    while batch := list(islice(lines, BATCH_ROWS)):
        yield RawRows([number for number, _ in batch], {"uri": [uri for _, uri in batch]})


def _read_json_lines(file: RangeFile, source: Source) -> Iterator[RawRows]:
    lines = _lines(file)
    checked: set[str] = set()
    while batch := list(islice(lines, BATCH_ROWS)):
        objects = [_json_object(line, row, source) for row, line in batch]
        if not checked:
            check_columns(list(objects[0]), source)
        names = {name for each in objects for name in each}
        check_not_reserved(sorted(names - checked), source)
        checked |= names
        cells = {name: [each.get(name) for each in objects] for name in KNOWN if name in names}
        cells["uri"] = [each.get(source.uri_column) for each in objects]
        drop = {*KNOWN, source.uri_column}
        others = [as_json({name: value for name, value in each.items() if name not in drop}) for each in objects]
        yield RawRows([row for row, _ in batch], cells, others)


def _json_object(line: str, row: int, source: Source) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise source.row_error(row, "line", line, f"is not JSON ({error}); write one object a line") from None
    if not isinstance(found, dict):
        raise source.row_error(row, "line", line, "is not a JSON object; write one object a line")
    return found


TABLE_READERS: dict[str, Callable[[RangeFile, Source], Iterator[RawRows]]] = {
    ".parquet": _read_parquet,
    ".pq": _read_parquet,
    ".csv": _read_csv,
    ".tsv": _read_tsv,
    ".jsonl": _read_json_lines,
    ".ndjson": _read_json_lines,
    ".json": _read_json_lines,
    ".txt": _read_uris,
    ".lst": _read_uris,
}
