"""Readers of manifest files: Parquet, CSV, JSON Lines and lists of URIs, each a stream of raw rows."""

import codecs
import csv
import io
import json
import re
from collections.abc import Callable, Iterator
from decimal import Decimal
from itertools import chain, pairwise
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from featlib.errors import ConfigError, MediaError
from featlib.manifest.rows import (
    KNOWN,
    RawRows,
    Source,
    as_json,
    check_columns,
    check_not_reserved,
    check_number_of_columns,
)
from featlib.storage import RangeFile, StoreOptions, open_media

if TYPE_CHECKING:
    from pyarrow.parquet import ParquetFile

Int64s = npt.NDArray[np.int64]

BATCH_ROWS = 16_384
MOST_VALUE_BYTES = 64 << 10  # of one cell; in a compressed table a few bytes may stand for any number of long ones
MOST_LEVELS = 100  # of lists and objects within each other, as Arrow has it of Parquet; JSON is made on the stack
_CSV_BLOCK_BYTES = 4 << 20  # also the longest row that is read
_MOST_LINE_CHARACTERS = 4 << 20  # of JSON Lines
_BATCH_BYTES = 8 << 20  # in the values of the rows that are handled at once
_BLANKS = " \t\r\n"
_TEXTS = (pa.string(), pa.large_string(), pa.binary(), pa.large_binary())
_VIEWS = {pa.string_view(): pa.large_string(), pa.binary_view(): pa.large_binary()}
_ELEMENT_BYTES = 8  # of a number, and beside each value in a list
_MOST_UTF8 = 4  # bytes of a character
_NO_OBJECTS = (ValueError, OverflowError, pa.ArrowException)
_QUOTED_ROW = re.compile(r"(?<=columns, got )(\d+): .*", re.DOTALL)  # Arrow's, of CSV
_MOST_UNPACKED = 512 << 20  # bytes of a column in one row group of Parquet, as its footer has it
_PAGE_HEADERS_BYTES = 1 << 20
_MOST_NESTED = 1 << 25  # values of a column of lists in one row group of Parquet


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
        told = _QUOTED_ROW.sub(r"\1", str(error))
        raise source.error(f"is not a readable {ending} file: {told}") from None  # it quotes what may hold a key


def _read_parquet(file: RangeFile, source: Source) -> Iterator[RawRows]:
    from pyarrow.parquet import ParquetFile

    footer = ParquetFile(file).metadata
    check_number_of_columns(len(footer.schema), source)  # with those within columns
    leaves = [footer.schema.column(i) for i in range(len(footer.schema))]
    # As a dictionary a text that is there a million times takes its length once, until it is known to be short.
    texts = [leaf.path for leaf in leaves if leaf.physical_type == "BYTE_ARRAY" and leaf.logical_type.type != "DECIMAL"]
    table = ParquetFile(file, metadata=footer, read_dictionary=texts)
    check_columns(table.schema_arrow.names, source)
    groups = range(table.num_row_groups)
    # Arrow does not put nested values of several row groups together.
    at_once = [[i] for i in groups] if any("." in leaf.path for leaf in leaves) else [list(groups)]
    batch_rows = _batch_rows(table, source)
    batches = (table.iter_batches(batch_size=batch_rows, row_groups=chosen) for chosen in at_once)
    yield from _tabular(chain.from_iterable(batches), source)


def _batch_rows(table: "ParquetFile", source: Source) -> int:
    """How many rows to read at once, so that those with lists or values of fixed length fit into memory.

    Arrow unpacks a page at a time, and a page may be a single value of all that a column takes in its row group. What
    is believed is the footer: a page that is larger than it says is seen only once it is unpacked.

    Raises:
        ConfigError: Cells are too long for certain.
    """
    most = BATCH_ROWS
    groups = [table.metadata.row_group(i) for i in range(table.metadata.num_row_groups)]
    for place in range(len(table.schema)):
        leaf = table.schema.column(place)
        column, width = leaf.path.partition(".")[0], max(leaf.length, _ELEMENT_BYTES)
        for group in groups:
            num_values = group.column(place).num_values
            cell_bytes = num_values * width // max(group.num_rows, 1)
            if leaf.max_repetition_level and num_values > _MOST_NESTED:
                raise source.error(
                    f"column {column!r} holds {num_values} values in a row group; the limit is {_MOST_NESTED}"
                )
            if cell_bytes > MOST_VALUE_BYTES:
                raise source.error(
                    f"column {column!r} holds {cell_bytes} bytes a row; a value may have {MOST_VALUE_BYTES}"
                )
            unpacked = group.column(place).total_uncompressed_size
            if unpacked > min(_MOST_UNPACKED, num_values * MOST_VALUE_BYTES) + _PAGE_HEADERS_BYTES:
                raise source.error(
                    f"column {column!r} takes {unpacked} bytes in a row group of {group.num_rows} rows; a value may "
                    f"have {MOST_VALUE_BYTES}, and a column {_MOST_UNPACKED}: write smaller row groups"
                )
            most = max(min(most, _BATCH_BYTES // max(cell_bytes, 1)), 1)
    return most


def _read_csv(file: RangeFile, source: Source) -> Iterator[RawRows]:
    yield from _delimited(file, source, ",")


def _read_tsv(file: RangeFile, source: Source) -> Iterator[RawRows]:
    yield from _delimited(file, source, "\t")


def _delimited(file: RangeFile, source: Source, delimiter: str) -> Iterator[RawRows]:
    """Every column is read as text: a guessed type would turn the id 007 into 7."""
    from pyarrow import csv as arrow_csv

    check_number_of_columns(_columns_of_header(file, delimiter, source), source)
    reading = arrow_csv.ReadOptions(use_threads=False, block_size=_CSV_BLOCK_BYTES)  # threads lose the row in messages
    parsing = arrow_csv.ParseOptions(delimiter=delimiter, newlines_in_values=True)
    names = arrow_csv.open_csv(_borrowed(file), reading, parsing).schema.names
    check_columns(names, source)
    converting = arrow_csv.ConvertOptions(
        column_types=dict.fromkeys(names, pa.string()), null_values=[""], strings_can_be_null=True
    )
    yield from _tabular(arrow_csv.open_csv(_borrowed(file), reading, parsing, converting), source)


def _columns_of_header(file: RangeFile, delimiter: str, source: Source) -> int:
    """How many there are, before Arrow sets up a reader for each."""
    text = _at(file, 0, _CSV_BLOCK_BYTES).removeprefix(codecs.BOM_UTF8).decode("latin-1")
    try:
        return len(next(filter(None, csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)), []))
    except csv.Error as error:
        raise source.error(f"its header cannot be read ({error})") from None


def _borrowed(file: RangeFile) -> Any:
    """The file for a reader that closes what it was given."""
    return RangeFile(lambda start, stop: _at(file, start, stop), file.size, file.etag)


def _at(file: RangeFile, start: int, stop: int) -> bytes:
    file.seek(start)
    return file.read(stop - start)


def _tabular(batches: Any, source: Source) -> Iterator[RawRows]:
    row = 1
    for whole in batches:
        for batch in _in_parts(whole, row, source):
            yield _raw_of(batch, range(row, row + batch.num_rows), source)
            row += batch.num_rows


def _in_parts(batch: pa.RecordBatch, first_row: int, source: Source) -> Iterator[pa.RecordBatch]:
    """The rows in parts of at most ``BATCH_ROWS`` rows, and of about ``_BATCH_BYTES`` once each value stands alone."""
    row_bytes = np.zeros(batch.num_rows, np.int64)
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        cell_bytes = _cell_bytes(column)
        too_long = np.flatnonzero(cell_bytes > MOST_VALUE_BYTES)
        if len(too_long):
            raise _too_long(first_row + int(too_long[0]), name, int(cell_bytes[too_long[0]]), source)
        row_bytes += cell_bytes
    part = np.cumsum(row_bytes) // _BATCH_BYTES
    bounds = np.unique([0, *(1 + np.flatnonzero(np.diff(part))), *range(0, batch.num_rows, BATCH_ROWS), batch.num_rows])
    for start, stop in pairwise(bounds.tolist()):
        yield batch.slice(start, stop - start)


def _too_long(row: int, column: str, length: int, source: Source) -> ConfigError:
    return source.error(f"row {row}: {column} is {length} bytes long; a value may have {MOST_VALUE_BYTES}")


def _cell_bytes(column: pa.Array) -> Int64s:
    """(len(column),) about how many bytes each cell holds, all that is nested in it together."""
    kind, found = column.type, np.full(len(column), _ELEMENT_BYTES)
    if isinstance(column, pa.ExtensionArray):
        found = _cell_bytes(column.storage)
    elif pa.types.is_dictionary(kind):
        lengths = np.append(_cell_bytes(column.dictionary), 0)
        found = lengths[column.indices.fill_null(len(lengths) - 1).to_numpy(zero_copy_only=False)]
    elif pa.types.is_struct(kind):
        found = sum(map(_cell_bytes, column.flatten()), np.zeros(len(column), np.int64))
    elif pa.types.is_nested(kind):  # lists of all kinds, and maps
        lists = column.cast(pa.large_list(kind.value_type)) if not hasattr(column, "offsets") else column
        ends = np.append(0, np.cumsum(_cell_bytes(lists.values) + _ELEMENT_BYTES))
        starts = lists.offsets.to_numpy()
        found = (
            np.diff(ends[starts]) if len(starts) > len(column) else ends[starts + lists.sizes.to_numpy()] - ends[starts]
        )
    elif pa.types.is_fixed_size_binary(kind):
        found = np.full(len(column), kind.byte_width)
    elif kind in _VIEWS:
        found = _cell_bytes(column.cast(_VIEWS[kind]))
    elif kind in _TEXTS:
        found = pc.binary_length(column).fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)
    return found


def _values(batch: pa.RecordBatch, name: str, rows: range, source: Source) -> list[Any]:
    """A column as Python objects.

    Raises:
        ConfigError: It holds what Python has no objects for: dates after the year 9999, fields of one name.
    """
    column = batch.column(name)
    if name in KNOWN and pa.types.is_decimal(column.type):  # as databases write 1.5
        return [value if value is None else _of_decimal(value) for value in column.to_pylist()]
    plain = column.dictionary_decode() if pa.types.is_dictionary(column.type) else column
    try:
        values: list[Any] = plain.to_pylist()
    except _NO_OBJECTS:
        for i, row in enumerate(rows):
            try:
                plain.slice(i, 1).to_pylist()
            except _NO_OBJECTS as error:
                raise source.error(f"row {row}: {name} cannot be read ({error}); write it as text") from None
        raise
    return values


def _of_decimal(value: Decimal) -> int | float:
    return int(value) if value == value.to_integral_value() else float(value)


def _raw_of(batch: pa.RecordBatch, rows: range, source: Source) -> RawRows:
    names = batch.schema.names
    cells = {name: _values(batch, name, rows, source) for name in KNOWN if name in names}
    if source.uri_column in names:
        cells["uri"] = _values(batch, source.uri_column, rows, source)
    rest = sorted(name for name in names if name not in KNOWN and name != source.uri_column)
    if not rest:
        return RawRows(rows, cells)
    columns = [_values(batch, name, rows, source) for name in rest]
    return RawRows(rows, cells, [as_json(dict(zip(rest, row, strict=True))) for row in zip(*columns, strict=True)])


def _lines(file: RangeFile, most: int, source: Source) -> Iterator[list[tuple[int, str]]]:
    """Lines that are not blank, with their numbers; at most ``BATCH_ROWS`` and about ``_BATCH_BYTES`` at a time."""
    batch: list[tuple[int, str]] = []
    length = 0
    for number, line in enumerate(_bounded_lines(file, most, source), start=1):
        if line.strip(_BLANKS):
            batch.append((number, line))
            length += len(line)
        if len(batch) == BATCH_ROWS or length >= _BATCH_BYTES:
            yield batch
            batch, length = [], 0
    if batch:
        yield batch


def _bounded_lines(file: RangeFile, most: int, source: Source) -> Iterator[str]:
    text = io.TextIOWrapper(io.BufferedReader(cast(io.RawIOBase, _borrowed(file)), 1 << 20), "utf-8-sig", newline="\n")
    number = 0
    while line := text.readline(most + 1):
        number += 1
        if len(line) > most:
            raise source.error(f"row {number}: the line is longer than {most} characters; write one row a line")
        yield line


def _read_uris(file: RangeFile, source: Source) -> Iterator[RawRows]:
    for batch in _lines(file, MOST_VALUE_BYTES, source):
        yield RawRows([number for number, _ in batch], {"uri": [line.strip(_BLANKS) for _, line in batch]})


def _read_json_lines(file: RangeFile, source: Source) -> Iterator[RawRows]:
    is_first = True
    for batch in _lines(file, _MOST_LINE_CHARACTERS, source):
        objects = [_json_object(line, row, source) for row, line in batch]
        if is_first:
            check_columns(list(objects[0]), source)
            is_first = False
        names = {name for each in objects for name in each}
        check_not_reserved(sorted(names), source)
        for row, each in zip(batch, objects, strict=True):
            check_number_of_columns(len(each), source, f"row {row[0]}: ")
        cells = {name: [each.get(name) for each in objects] for name in KNOWN if name in names}
        cells["uri"] = [each.get(source.uri_column) for each in objects]
        drop = {*KNOWN, source.uri_column}
        others = [as_json({name: value for name, value in each.items() if name not in drop}) for each in objects]
        yield RawRows([row for row, _ in batch], cells, others)


def _json_object(line: str, row: int, source: Source) -> dict[str, Any]:
    """The object in a line, of which no message shows a word: a fault may stand before or behind a key."""
    try:
        found = json.loads(line)
    except json.JSONDecodeError as error:
        what = f"is not JSON (column {error.colno}: {error.msg})"
        raise source.error(f"row {row}: {what}; write one object a line") from None
    except (ValueError, RecursionError) as error:
        raise source.error(f"row {row}: is not JSON ({error}); write one object a line") from None
    if not isinstance(found, dict):
        raise source.error(f"row {row}: is not a JSON object; write one object a line")
    for name, value in found.items():
        if isinstance(value, dict | list) and _is_deep(value):
            raise source.error(f"row {row}: {name} is nested too deep; the limit is {MOST_LEVELS} levels")
    if len(line) > MOST_VALUE_BYTES // _MOST_UTF8:
        for name, value in found.items():
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            length = len(text.encode("utf-8", "surrogatepass"))
            if length > MOST_VALUE_BYTES:
                raise _too_long(row, name, length, source)
    return found


def _is_deep(value: Any) -> bool:
    level = [value]
    for _ in range(MOST_LEVELS):
        nested = [each.values() if isinstance(each, dict) else each for each in level if isinstance(each, dict | list)]
        level = list(chain.from_iterable(nested))
    return any(isinstance(each, dict | list) for each in level)


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
