"""The columns of features and outcomes, and what their footers say."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from featlib.errors import ConfigError, DamagedError

FEATURES = pa.schema(
    [
        pa.field("media_id", pa.string(), nullable=False),
        pa.field("uri", pa.string(), nullable=False),
        pa.field("clip_index", pa.int32(), nullable=False),
        pa.field("region_index", pa.int32(), nullable=False),
        pa.field("start_s", pa.float64()),
        pa.field("end_s", pa.float64()),
        pa.field("frame_s", pa.list_(pa.float64())),
        pa.field("padded_frames", pa.int32()),
        pa.field("feature", pa.list_(pa.float32())),
        pa.field("feature_shape", pa.list_(pa.int32())),
        pa.field("box", pa.list_(pa.float32())),
        pa.field("score", pa.float32()),
        pa.field("labels", pa.list_(pa.string())),
        pa.field("probabilities", pa.list_(pa.float32())),
        pa.field("attention", pa.list_(pa.float32())),
    ]
)
"""One row for each (media_id, clip_index, region_index); the same for every model, so that a root reads as a whole.

``attention`` holds the weights that a head gave to the steps of a video, in the order of its rows.
"""

KEY = ("media_id", "clip_index", "region_index")

OUTCOMES = pa.schema(
    [
        pa.field("media_id", pa.string(), nullable=False),
        pa.field("uri", pa.string(), nullable=False),
        pa.field("status", pa.string(), nullable=False),
        pa.field("error_class", pa.string()),
        pa.field("error_message", pa.string()),
        pa.field("retryable", pa.bool_()),
        pa.field("attempts", pa.int32()),
        pa.field("num_rows", pa.int64()),
        pa.field("duration_s", pa.float64()),
        pa.field("width", pa.int32()),
        pa.field("height", pa.int32()),
        pa.field("codec", pa.string()),
        pa.field("frames_decoded", pa.int64()),
        pa.field("decode_s", pa.float64()),
        pa.field("size", pa.int64()),
        pa.field("etag", pa.string()),
        pa.field("label", pa.string()),
        pa.field("split", pa.string()),
        pa.field("manifest", pa.string()),
    ]
)
"""One row for each (media_id, model): what became of it."""

RECORDED = ("media_id", "status", "error_class", "num_rows")
"""The columns of ``OUTCOMES`` that the ledger of a run takes."""


@dataclass(frozen=True)
class Provenance:
    """What made the features of one partition.

    Args:
        fingerprint: SHA-256 over ``semantics``.
        semantics: Every setting that changes a feature's value.
        record: For the record only: versions of libraries, where the weights came from.
    """

    dataset: str
    label: str
    fingerprint: str
    semantics: Mapping[str, str]
    record: Mapping[str, str]

    def footer(self) -> dict[str, str]:
        """The key-value metadata of a Parquet object."""
        return {
            "featlib.dataset": self.dataset,
            "featlib.model": self.label,
            "featlib.fingerprint": self.fingerprint,
            "featlib.semantics": to_json(self.semantics),
            "featlib.record": to_json(self.record),
        }


def as_features(rows: pa.Table) -> pa.Table:
    """``rows`` in the schema ``FEATURES``; columns that an earlier featlib did not write are null."""
    columns = [rows[f.name] if f.name in rows.column_names else pa.nulls(rows.num_rows, f.type) for f in FEATURES]
    return pa.table(columns, names=FEATURES.names).cast(FEATURES)


def with_footer(schema: pa.Schema, footer: Mapping[str, str]) -> pa.Schema:
    """``schema`` with ``footer`` as its key-value metadata."""
    return schema.with_metadata({k.encode(): v.encode() for k, v in footer.items()})


@contextmanager
def reading(key: str) -> Iterator[None]:
    """Says in one line that an object is damaged.

    Raises:
        ConfigError: In place of what a Parquet reader raises.
    """
    try:
        yield
    except (DamagedError, pa.ArrowException, OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:160]
        raise ConfigError(f"{key}: is damaged ({reason}); featlib verify says what else is, extract it again") from None


def read_footer(metadata: Mapping[bytes, bytes] | None) -> dict[str, str]:
    """The ``featlib.*`` entries of a Parquet object's key-value metadata."""
    return {k.decode(): v.decode() for k, v in (metadata or {}).items() if k.startswith(b"featlib.")}


def to_json(value: Any) -> str:
    """JSON with sorted keys, so that equal values give equal bytes."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, default=dict)
