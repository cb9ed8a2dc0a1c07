"""The seal of outcomes objects covers every byte."""

import io

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from featlib.errors import DamagedError
from featlib.sealed import check_seal, read_sealed, sealed

TABLE = pa.table(
    {"media_id": ["a", "b"], "etag": ["0" * 64, "featlib-seal:" + "0" * 64]},
    schema=pa.schema([("media_id", pa.string()), ("etag", pa.string())], metadata={"featlib.dataset": "d"}),
)


def test_rows_and_metadata_come_back() -> None:
    data = sealed(TABLE)
    table = read_sealed(data, "k")
    assert table.to_pydict() == TABLE.to_pydict()
    assert table.schema.metadata[b"featlib.dataset"] == b"d"
    assert read_sealed(data, "k", ["etag"]).column_names == ["etag"]


def test_any_reader_reads_it() -> None:
    assert pd.read_parquet(io.BytesIO(sealed(TABLE)))["media_id"].tolist() == ["a", "b"]


def test_equal_tables_give_equal_bytes_and_what_was_read_can_be_sealed_again() -> None:
    data = sealed(TABLE)
    assert sealed(TABLE) == data
    check_seal(sealed(read_sealed(data, "k")), "k")


def test_every_single_bit_counts() -> None:
    data = sealed(TABLE)
    for place in range(len(data)):
        for bit in range(8):
            other = bytearray(data)
            other[place] ^= 1 << bit
            with pytest.raises(DamagedError, match="some/key: is damaged"):
                check_seal(bytes(other), "some/key")


def test_cut_empty_and_foreign_bytes_are_damaged() -> None:
    data = sealed(TABLE)
    sink = io.BytesIO()
    pq.write_table(TABLE, sink)  # its rows hold the text of a seal
    for other in (data[:-1], data[: len(data) // 2], b"", sink.getvalue(), data + b"\0"):
        with pytest.raises(DamagedError):
            read_sealed(other, "k")
