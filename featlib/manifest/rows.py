"""From the cells of any manifest to checked rows of one schema."""

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, time
from difflib import get_close_matches
from typing import Any, Literal

import pyarrow as pa

from featlib.errors import ConfigError
from featlib.manifest.ids import ID_RULE, is_media_id, media_id
from featlib.redaction import redact
from featlib.storage import resolve

SCHEMA = pa.schema(
    [
        pa.field("row", pa.int64(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("media_id", pa.string(), nullable=False),
        pa.field("uri", pa.string(), nullable=False),
        ("start_s", pa.float64()),
        ("end_s", pa.float64()),
        ("size", pa.int64()),
        ("label", pa.string()),
        ("split", pa.string()),
        ("manifest", pa.string()),
    ]
)

KNOWN = ("media_id", "start_s", "end_s", "size", "label", "split")

# Columns of the output (FORMAT.md) that a manifest cannot fill: its own would hide behind them.
RESERVED = frozenset(
    {
        *("clip_index", "region_index", "frame_s", "padded_frames", "feature", "feature_shape"),
        *("box", "score", "labels", "probabilities", "attention", "dataset", "model"),
        *("status", "error_class", "error_message", "retryable", "attempts", "num_rows", "duration_s"),
        *("width", "height", "codec", "frames_decoded", "decode_s", "etag", "manifest"),
    }
)

MOST_COLUMNS = 4096

_LONE_SURROGATE = re.compile("[\ud800-\udfff]")

_USUAL_URI_NAMES = (
    "url",
    "path",
    "file",
    "filename",
    "file_name",
    "filepath",
    "file_path",
    "video",
    "video_path",
    "image",
)


@dataclass(frozen=True)
class Source:
    """Where rows come from.

    Args:
        name: As the user wrote it.
        base: Folder that relative URIs start from.
        uri_column: Which column holds the URIs.
        local_media: A manifest in an object store may name local paths.
        role: What the rows are for. Rows of ``--labels`` may name media by ``media_id`` alone, and what else they hold
            goes nowhere.
    """

    name: str
    base: str
    uri_column: str = "uri"
    local_media: bool = False
    role: Literal["manifest", "--labels"] = "manifest"

    def error(self, text: str) -> ConfigError:
        return ConfigError(" ".join(f"{self.role} {redact(self.name)}: {text}".split()))

    def row_error(self, row: int, column: str, value: object, rule: str) -> ConfigError:
        # What is nested may hold anything under any name, and half a key is not known for one.
        shown = f"({type(value).__name__})" if isinstance(value, dict | list) else redact(repr(value))
        return self.error(f"row {row}: {column} {shown if len(shown) <= 160 else shown[:157] + '...'} {rule}")


@dataclass(frozen=True)
class RawRows:
    """Some rows of a source as they stand there.

    Args:
        rows: Their numbers, as a person counts.
        cells: By column name, ``uri`` and those of ``KNOWN`` that are there; each as long as ``rows``.
        others: All other columns of each row as JSON; None: there are none.
    """

    rows: Sequence[int]
    cells: Mapping[str, Sequence[Any]]
    others: Sequence[str | None] | None = None

    def head(self, count: int) -> "RawRows":
        cells = {name: values[:count] for name, values in self.cells.items()}
        return RawRows(self.rows[:count], cells, None if self.others is None else self.others[:count])


def check_columns(names: Sequence[str], source: Source) -> None:
    """Refuses a table without URIs, with reserved columns, with two columns of one name or with far too many.

    Raises:
        ConfigError: Names the columns that are there.
    """
    check_number_of_columns(len(names), source)
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise source.error(f"column {twice[0]!r} is there twice; rename one")
    if source.role == "--labels" and "media_id" in names:
        return
    if source.uri_column not in names:
        if source.role == "--labels":
            raise source.error(f"no column 'media_id' or 'uri' among {', '.join(map(repr, names))}; add one of them")
        near = [name for name in names if name.lower() in (source.uri_column.lower(), "uri", *_USUAL_URI_NAMES)]
        near += get_close_matches(source.uri_column, names, n=1)
        hint = f"; --uri-column {near[0]} takes that one" if near else "; name it with --uri-column"
        raise source.error(f"no column {source.uri_column!r} among {', '.join(map(repr, names)) or 'no columns'}{hint}")
    check_not_reserved(names, source)


def check_number_of_columns(number: int, source: Source, where: str = "") -> None:
    """Raises ConfigError when there are more columns than a table of media has: each takes kilobytes."""
    if number > MOST_COLUMNS:
        raise source.error(f"{where}has {number} columns; the limit is {MOST_COLUMNS}")


def check_not_reserved(names: Iterable[str], source: Source) -> None:
    """Raises ConfigError when a column is named like one of the output."""
    for name in names if source.role == "manifest" else ():
        if name in RESERVED or (name == "uri" and source.uri_column != "uri"):
            raise source.error(f"column {name!r} is named like a column of the output; rename it")


def normalised(raw: RawRows, source: Source) -> pa.RecordBatch:
    """The rows in ``SCHEMA``: URIs absolute, ids filled in, everything checked.

    Raises:
        ConfigError: Names the first row that breaks a rule, with the value and the rule.
    """
    uris = [absolute_uri(value, row, source) for row, value in zip(raw.rows, raw.cells["uri"], strict=True)]
    empty = [None] * len(uris)
    starts = _numbers(raw, "start_s", source)
    ends = _numbers(raw, "end_s", source)
    _check_ranges(raw.rows, starts or empty, ends or empty, source)
    given = raw.cells.get("media_id", empty)
    ids = [
        _media_id(value, uri, start, end, row, source)
        for row, value, uri, start, end in zip(raw.rows, given, uris, starts or empty, ends or empty, strict=True)
    ]
    columns: list[Sequence[Any]] = [
        raw.rows,
        [source.name] * len(uris),
        ids,
        uris,
        starts or empty,
        ends or empty,
        _sizes(raw, source) or empty,
        texts(raw, "label", source) or empty,
        texts(raw, "split", source) or empty,
        raw.others or empty,
    ]
    return pa.record_batch(
        [pa.array(column, field.type) for column, field in zip(columns, SCHEMA, strict=True)], schema=SCHEMA
    )


def absolute_uri(value: Any, row: int, source: Source) -> str:
    """The URI in a cell, resolved; raises ConfigError when it is none."""
    if value is None or value == "":
        raise source.row_error(row, source.uri_column, value, "is empty; every row needs a URI")
    if not isinstance(value, str):
        hint = "; --uri-column names the column of URIs" if source.role == "manifest" else ""
        raise source.row_error(row, source.uri_column, value, f"is not text{hint}")
    try:
        value.encode()
        return resolve(value, source.base, local_media=source.local_media)
    except UnicodeEncodeError:
        raise source.row_error(row, source.uri_column, value, "is not valid UTF-8; rename the file") from None
    except ConfigError as error:
        raise source.error(f"row {row}: {source.uri_column} {error}") from None


def _media_id(value: Any, uri: str, start: float | None, end: float | None, row: int, source: Source) -> str:
    if value is None:
        return media_id(uri, start, end)
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str) or not is_media_id(value):
        raise source.row_error(row, "media_id", value, f"is not {ID_RULE}; leave it out to have one made from the URI")
    return value


def _numbers(raw: RawRows, column: str, source: Source) -> list[float | None] | None:
    if column not in raw.cells:
        return None
    return [_number(value, column, row, source) for row, value in zip(raw.rows, raw.cells[column], strict=True)]


def _number(value: Any, column: str, row: int, source: Source) -> float | None:
    if value is None:
        return None
    number = _as_float(value)
    if not math.isfinite(number):
        unit = "bytes" if column == "size" else "seconds"
        raise source.row_error(row, column, value, f"is not a number of {unit}")
    return number + 0.0  # -0.0 becomes 0.0, so that equal ranges have equal ids


def _as_float(value: Any) -> float:
    """NaN for what is no number."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return math.nan
    try:
        return float(value)
    except (ValueError, OverflowError):
        return math.nan


def _check_ranges(
    rows: Sequence[int], starts: Sequence[float | None], ends: Sequence[float | None], source: Source
) -> None:
    for row, start, end in zip(rows, starts, ends, strict=True):
        if start is not None and start < 0:
            raise source.row_error(row, "start_s", start, "is below 0")
        if end is not None and end <= (start or 0.0):
            raise source.row_error(row, "end_s", end, f"is not above start_s ({start or 0.0!r})")


def _sizes(raw: RawRows, source: Source) -> list[int | None] | None:
    if "size" not in raw.cells:
        return None
    sizes: list[int | None] = []
    for row, value in zip(raw.rows, raw.cells["size"], strict=True):
        number = _number(value, "size", row, source) if value is not None else None
        if number is not None and (not 0 <= number < 2**63 or number != int(number)):
            raise source.row_error(row, "size", value, "is not a number of bytes")
        sizes.append(None if number is None else int(number))
    return sizes


def texts(raw: RawRows, column: str, source: Source) -> list[str | None] | None:
    """A column as ``plain_text``; None when it is not there."""
    if column not in raw.cells:
        return None
    found: list[str | None] = []
    for row, value in zip(raw.rows, raw.cells[column], strict=True):
        if value is not None and not isinstance(value, str | int | float):
            raise source.row_error(row, column, value, "is neither text nor a number")
        text = plain_text(value)
        try:
            (text or "").encode()
        except UnicodeEncodeError:
            raise source.row_error(row, column, value, "is not valid UTF-8; write it again") from None
        found.append(text)
    return found


def plain_text(value: object) -> str | None:
    """A cell as text without blanks around it; None for one that is empty or NaN.

    Whole numbers are written without a point: a table with gaps holds them as floats.
    """
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return None if math.isnan(value) else str(int(value) if value.is_integer() else value)
    return None if value is None else str(value).strip() or None


def as_json(values: Mapping[str, Any]) -> str | None:
    """A row's other columns as one JSON object, keys sorted; None when there are none.

    Times are ISO 8601, bytes are hex digits, NaN and infinities are null.
    """
    if not values:
        return None
    try:
        text = json.dumps(values, sort_keys=True, ensure_ascii=False, allow_nan=False, default=_json_text)
    except ValueError:
        text = json.dumps(_without_nan(dict(values)), sort_keys=True, ensure_ascii=False, default=_json_text)
    # Half a surrogate pair, which JSON may hold and UTF-8 may not, stays an escape.
    return _LONE_SURROGATE.sub(lambda half: f"\\u{ord(half[0]):04x}", text)


def _json_text(value: Any) -> str:
    if isinstance(value, datetime | date | time):
        return value.isoformat()
    return value.hex() if isinstance(value, bytes) else str(value)


def _without_nan(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _without_nan(inner) for key, inner in value.items()}
    return [_without_nan(inner) for inner in value] if isinstance(value, list | tuple) else value
