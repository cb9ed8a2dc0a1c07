"""The units of a pass on the driver's disk, until they are put for the workers."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from featlib.sealed import seal_file, sealable
from featlib.work import UNITS, UNITS_A_GROUP, Unit, unit_from_row, units_table


class UnitsFile:
    """The units of a pass in a local Parquet file, numbered from 0 and written as they come: those of a million long
    videos would take more than a gigabyte of memory."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.num_units = 0
        self._waiting: list[Unit] = []
        self._writer: pq.ParquetWriter | None = None

    def extend(self, units: Iterable[Unit]) -> None:
        """Takes further units."""
        for unit in units:
            self._waiting.append(unit)
            self.num_units += 1
            if len(self._waiting) == UNITS_A_GROUP:
                self._write()

    def close(self) -> None:
        """Makes the file whole; where there is no unit, there is no file."""
        if self._waiting:
            self._write()
        if self._writer is not None:
            self._writer.close()
            seal_file(self.path)

    def _write(self) -> None:
        schema = sealable(UNITS)
        if self._writer is None:
            self._writer = pq.ParquetWriter(self.path, schema, write_page_checksum=True)
        table = units_table(self._waiting, self.num_units - len(self._waiting))
        self._writer.write_table(table.replace_schema_metadata(schema.metadata))
        self._waiting = []

    def read(self, wanted: npt.NDArray[np.bool_]) -> Iterator[Unit]:
        """The units whose number is wanted."""
        if not wanted.any():
            return
        for batch in pq.ParquetFile(self.path).iter_batches():
            for row in batch.to_pylist():
                if wanted[row["seq"]]:
                    yield unit_from_row(row)
