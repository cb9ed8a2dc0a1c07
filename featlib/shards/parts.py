"""Features objects on their way to the store: sorted rows in files of bounded size, sealed and put whole."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from featlib.layout import PartName
from featlib.sealed import seal_file, sealable
from featlib.shards.pieces import Span, bytes_a_row
from featlib.shards.schema import FEATURES, Provenance, with_footer
from featlib.storage import Store

ROW_GROUP_BYTES = 16 << 20


class PartWriter:
    """Writes sorted rows into local files of bounded size, in row groups of bounded size."""

    def __init__(self, folder: Path, footer: Mapping[str, str], max_bytes: int) -> None:
        self._folder, self._max_bytes = folder, max_bytes
        self._schema = sealable(with_footer(FEATURES, footer))
        self._writer: pq.ParquetWriter | None = None
        self._waiting: list[pa.Table] = []
        self._waiting_bytes = self._written_bytes = 0
        self.files: list[Path] = []

    @property
    def room(self) -> int:
        """Bytes that still fit into the row group and the file at hand."""
        return min(ROW_GROUP_BYTES, self._max_bytes - self._written_bytes) - self._waiting_bytes

    def write(self, rows: pa.Table, bytes_a_row: int) -> None:
        """Takes the rows of whole items; they stay in one file, so that a cut publish shows whole items only."""
        for start in range(0, rows.num_rows, step := max(1, ROW_GROUP_BYTES // bytes_a_row)):
            part = rows.slice(start, step)
            self._waiting.append(part)
            self._waiting_bytes += part.num_rows * bytes_a_row
            if self._waiting_bytes >= ROW_GROUP_BYTES:
                self._flush()
        if self._written_bytes + self._waiting_bytes >= self._max_bytes:
            self._close_file()

    def _flush(self) -> None:
        if not self._waiting:
            return
        if self._writer is None:
            path = self._folder / f"{len(self.files)}.tmp"
            self._writer = pq.ParquetWriter(
                path,
                self._schema,
                compression="zstd",
                use_dictionary=["media_id", "uri"],
                write_page_checksum=True,
            )
            self.files.append(path)
        table = pa.concat_tables(self._waiting).replace_schema_metadata(self._schema.metadata)
        self._writer.write_table(table, row_group_size=max(1, table.num_rows))
        self._written_bytes += self._waiting_bytes
        self._waiting, self._waiting_bytes = [], 0

    def _close_file(self) -> None:
        self._flush()
        if self._writer is not None:
            self._writer.close()
        self._writer, self._written_bytes = None, 0

    def close(self) -> list[Path]:
        """The files, in order."""
        self._close_file()
        return self.files


class Joined:
    """Hands items that follow one another in a piece to a writer at once: slicing a table for each is slow."""

    def __init__(self, writer: PartWriter) -> None:
        self._writer = writer
        self._span: Span | None = None

    def write(self, span: Span) -> None:
        """Takes the rows of one item, which may be none."""
        if span.start == span.end:
            return
        both = None if self._span is None else self._span.joined(span)
        if both is None:
            self.flush()
        self._span = both or span
        if self._span.nbytes >= self._writer.room:
            self.flush()

    def flush(self) -> None:
        """Writes what was taken."""
        if self._span is not None:
            self._writer.write(self._span.table, self._span.bytes_a_row)
        self._span = None


def write_whole(rows: pa.Table, provenance: Provenance, path: Path) -> None:
    """Writes all rows of an object that takes the place of another."""
    schema = sealable(with_footer(FEATURES, provenance.footer()))
    step = max(1, ROW_GROUP_BYTES // bytes_a_row(rows))
    pq.write_table(
        rows.cast(schema),
        path,
        row_group_size=step,
        compression="zstd",
        use_dictionary=["media_id", "uri"],
        write_page_checksum=True,
    )


def new_names(shard: int, round_: int, present: Sequence[str]) -> Iterator[PartName]:
    """Names of a round that no object in ``present`` has, without end."""
    taken = {PartName.parse(key) for key in present}
    part = 0
    while True:
        name = PartName(shard, round_, part)
        if name not in taken:
            yield name
        part += 1


def put_file(store: Store, key: str, path: Path) -> str:
    """Seals a file and puts it; gives its SHA-256 as 64 hex digits."""
    seal_file(path)
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    store.put_file(key, str(path))
    return digest
