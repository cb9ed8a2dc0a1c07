"""Work units: what one Ray row asks for. Shards of the plan are cut into them anew in every pass."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa

from featlib.items import PlanItem
from featlib.manifest import IMAGE_ENDINGS, ending_of

_BYTES_A_UNIT = 2 << 20

_UNIT_ITEMS, _MOST_UNIT_ITEMS = 64, 256

_MANY_UNITS = 4096

_UNITS_OF_A_SMALL_JOB = 16

_UNKNOWN_SIZE = _BYTES_A_UNIT // 2

UNITS_A_GROUP = 128
"""Units in a row group of the object that holds those of a pass; the last group may have fewer."""


@dataclass(frozen=True)
class UnitItem:
    """One item of a work unit. ``attempt`` counts from 1 within a run."""

    media_id: str
    uri: str
    start_s: float | None = None
    end_s: float | None = None
    attempt: int = 1


@dataclass(frozen=True)
class Unit:
    """The work of one Ray row: some whole items of one shard, or segment ``k`` of ``n`` of one long item."""

    shard: int
    labels: tuple[str, ...]
    items: tuple[UnitItem, ...]
    k: int = 0
    n: int = 0
    by: str = ""


UNITS = pa.schema(
    [
        pa.field("seq", pa.int64(), nullable=False),
        pa.field("shard", pa.int32(), nullable=False),
        pa.field("labels", pa.list_(pa.string()), nullable=False),
        pa.field("k", pa.int32(), nullable=False),
        pa.field("n", pa.int32(), nullable=False),
        pa.field("by", pa.string(), nullable=False),
        pa.field(
            "items",
            pa.list_(
                pa.struct(
                    [
                        pa.field("media_id", pa.string()),
                        pa.field("uri", pa.string()),
                        pa.field("start_s", pa.float64()),
                        pa.field("end_s", pa.float64()),
                        pa.field("attempt", pa.int32()),
                    ]
                )
            ),
            nullable=False,
        ),
    ]
)


def units_of_shard(
    shard: int,
    items: Sequence[PlanItem],
    needs: Mapping[str, tuple[str, ...]],
    segments: Mapping[str, tuple[int, str, Sequence[int]]],
    *,
    unit_items: int,
    unit_videos: int | None = None,
) -> Iterator[Unit]:
    """Cuts what is still to do in a shard into units.

    Args:
        needs: By media id, the labels that an item still needs; items that are not named need nothing.
        segments: By media id, ``(n, by, missing ks)`` of items of which some segments are staged.
        unit_items: Most items in a unit.
        unit_videos: Most videos in a unit; None: as many.
    """
    unit_videos = min(unit_items, unit_videos or unit_items)
    waiting: list[UnitItem] = []
    labels: tuple[str, ...] = ()
    cost = 0.0
    for item in items:
        wanted = needs.get(item.media_id)
        if not wanted:
            continue
        unit_item = UnitItem(item.media_id, item.uri, item.start_s, item.end_s)
        if item.media_id in segments:
            n, by, missing = segments[item.media_id]
            yield from (Unit(shard, wanted, (unit_item,), k, n, by) for k in missing)
            continue
        if waiting and (wanted != labels or cost >= 1 or len(waiting) >= unit_items):
            yield Unit(shard, labels, tuple(waiting))
            waiting, cost = [], 0.0
        labels = wanted
        waiting.append(unit_item)
        cost += _cost(item, unit_items, unit_videos)
    if waiting:
        yield Unit(shard, labels, tuple(waiting))


def items_in_unit(open_items: int, fit: int) -> int:
    """Most small items in a unit.

    A unit costs the driver some 20 ms and 12 KB in Ray, whatever is in it. So a job that would have very many gets
    larger ones, which still share a shard of 256 evenly.

    Args:
        fit: Pictures whose pixels fit into one unit; 0: not known.
    """
    count = _UNIT_ITEMS
    while count < _MOST_UNIT_ITEMS and 2 * count <= fit and open_items > count * _MANY_UNITS:
        count *= 2
    return count


def videos_in_unit(open_items: int) -> int:
    """Most videos in a unit: in a job of few, units of one each keep all actors busy to the end."""
    return max(1, open_items // _UNITS_OF_A_SMALL_JOB)


def _cost(item: PlanItem, unit_items: int, unit_videos: int) -> float:
    """Share of a unit that an item probably fills."""
    if ending_of(item.uri) in IMAGE_ENDINGS:
        return 1 / unit_items
    return max((item.size if item.size is not None else _UNKNOWN_SIZE) / _BYTES_A_UNIT, 1 / unit_videos)


def split_unit(unit: Unit) -> Iterator[Unit]:
    """The same work, one item a unit, one attempt later: after a unit was lost."""
    for item in unit.items:
        later = UnitItem(item.media_id, item.uri, item.start_s, item.end_s, item.attempt + 1)
        yield replace(unit, items=(later,))


def units_table(units: Sequence[Unit], first_seq: int) -> pa.Table:
    """Units as rows of ``UNITS``, numbered from ``first_seq``."""
    items = [item for unit in units for item in unit.items]
    kind = UNITS.field("items").type
    fields = list(kind.value_type)
    values = [pa.array([getattr(item, f.name) for item in items], f.type) for f in fields]
    ends = np.cumsum([0, *(len(unit.items) for unit in units)])
    columns: dict[str, Any] = {
        "seq": range(first_seq, first_seq + len(units)),
        "labels": [unit.labels for unit in units],
        "items": pa.ListArray.from_arrays(
            pa.array(ends, pa.int32()), pa.StructArray.from_arrays(values, fields=fields)
        ),
    }
    columns |= {name: [getattr(unit, name) for unit in units] for name in ("shard", "k", "n", "by")}
    return pa.table([pa.array(columns[f.name], f.type) for f in UNITS], schema=UNITS)


def unit_row(unit: Unit) -> dict[str, Any]:
    """The unit as a row of ``UNITS``, without its number."""
    return {
        "shard": unit.shard,
        "labels": list(unit.labels),
        "k": unit.k,
        "n": unit.n,
        "by": unit.by,
        "items": [vars(item) for item in unit.items],
    }


def unit_from_row(row: Mapping[str, Any]) -> Unit:
    """The unit in one row of ``UNITS``."""
    items = tuple(UnitItem(**item) for item in row["items"])
    return Unit(row["shard"], tuple(row["labels"]), items, row["k"], row["n"], row["by"])
