"""Staged pieces as publishing reads them: where each item's rows lie, and each key once."""

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from featlib.errors import StoppedError
from featlib.shards.schema import as_features
from featlib.shards.staging import read_piece
from featlib.storage import Store

_CACHED_PIECES = 8


class DamagedPieceError(StoppedError):
    """A staged piece does not hold the bytes that were staged; nothing of its label and shard was published."""

    def __init__(self, key: str) -> None:
        super().__init__(f"{key}: the staged piece is damaged; its items are done again")
        self.key = key


@dataclass(frozen=True)
class PieceRows:
    """The rows of one piece, and where each item's lie.

    Args:
        rows: In the schema ``FEATURES``.
        spans: First row and the row after the last, by label and media id.
        bytes_a_row: By label.
        is_in_order: Whether every item's keys ascend, so that none is there twice.
    """

    rows: pa.Table
    spans: Mapping[tuple[str, str], tuple[int, int]]
    bytes_a_row: Mapping[str, int]
    is_in_order: bool

    @classmethod
    def of(cls, table: pa.Table) -> "PieceRows":
        """From a table in the schema ``PIECE``; the rows of an item and label follow one another."""
        models, ids = table["model"].to_pylist(), table["media_id"].to_pylist()
        ends = [
            i for i in range(1, len(ids) + 1) if i == len(ids) or (models[i], ids[i]) != (models[i - 1], ids[i - 1])
        ]
        starts = [0, *ends[:-1]]
        rows, order = as_features(table), _key_order(table)
        descents = np.flatnonzero(np.diff(order) <= 0) + 1
        labels = list(dict.fromkeys(models))
        of_label = {m: rows.filter(pc.equal(table["model"], m)) if len(labels) > 1 else rows for m in labels}
        return cls(
            rows,
            {(models[start], ids[start]): (start, end) for start, end in zip(starts, ends, strict=bool(ends))},
            {label: bytes_a_row(mine) for label, mine in of_label.items()},
            bool(np.isin(descents, starts).all()),
        )


@dataclass(frozen=True)
class Span:
    """Rows of one item in a piece, or of several that follow one another there."""

    piece: PieceRows
    start: int
    end: int
    bytes_a_row: int

    @property
    def nbytes(self) -> int:
        """In memory."""
        return (self.end - self.start) * self.bytes_a_row

    @property
    def table(self) -> pa.Table:
        """In the schema ``FEATURES``; a view."""
        return self.piece.rows.slice(self.start, self.end - self.start)

    def joined(self, other: "Span") -> "Span | None":
        """Both as one; None when ``other`` does not follow."""
        if other.piece is not self.piece or other.start != self.end:
            return None
        return Span(self.piece, self.start, other.end, self.bytes_a_row)


class PieceReader:
    """Rows by piece, label and media id, from the last few pieces read."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._cache: OrderedDict[str, PieceRows] = OrderedDict()

    def span(self, key: str, label: str, media_id: str) -> Span:
        """The rows of an item, which may be none.

        Raises:
            DamagedPieceError: The piece does not hold what was staged.
        """
        if key not in self._cache:
            table = read_piece(self._store, key)
            if table is None:
                raise DamagedPieceError(key)
            self._cache[key] = PieceRows.of(table)
            if len(self._cache) > _CACHED_PIECES:
                self._cache.popitem(last=False)
        self._cache.move_to_end(key)
        piece = self._cache[key]
        return Span(piece, *piece.spans.get((label, media_id), (0, 0)), piece.bytes_a_row.get(label, 1))


def bytes_a_row(rows: pa.Table) -> int:
    """In memory, at least 1."""
    return max(1, int(rows.nbytes) // max(1, int(rows.num_rows)))


def unique_rows(rows: pa.Table) -> pa.Table:
    """The rows of one item in the order of their key, each key once."""
    order = _key_order(rows)
    if (np.diff(order) > 0).all():
        return rows
    _, first = np.unique(order, return_index=True)
    return rows.take(pa.array(first))


def _key_order(rows: pa.Table) -> npt.NDArray[np.int64]:
    """(num_rows,) numbers that compare as the keys of the rows of one item do."""
    clips, regions = (rows[name].to_numpy().astype(np.int64) for name in ("clip_index", "region_index"))
    order: npt.NDArray[np.int64] = clips << 32 | regions
    return order
