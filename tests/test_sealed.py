"""The seal of outcomes objects covers every byte."""

import io
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import featlib.sealed as sealed_module
from featlib.errors import DamagedError
from featlib.sealed import check_seal, open_part, open_sealed, read_sealed, sealed
from featlib.storage import Store

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


def test_a_large_object_is_checked_as_a_whole_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sealed_module, "_READ_WHOLE", 10)
    store, data = Store(str(tmp_path)), sealed(TABLE)
    store.put("k", data)
    with open_sealed(store, "k") as file:
        assert pq.read_table(file).to_pydict() == TABLE.to_pydict()
    for place in range(0, len(data), 7):
        other = bytearray(data)
        other[place] ^= 4
        store.put("k", bytes(other))
        with pytest.raises(DamagedError, match="k: is damaged"):
            open_sealed(store, "k")
    with open_part(store, "k") as file:
        assert file.read() == bytes(other)


def test_cut_empty_and_foreign_bytes_are_damaged() -> None:
    data = sealed(TABLE)
    sink = io.BytesIO()
    pq.write_table(TABLE, sink)  # its rows hold the text of a seal
    for other in (data[:-1], data[: len(data) // 2], b"", sink.getvalue(), data + b"\0"):
        with pytest.raises(DamagedError):
            read_sealed(other, "k")
