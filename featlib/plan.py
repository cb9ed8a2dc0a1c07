"""What there is to do: shards of media items, written down once.

A plan belongs to a dataset and is shared by all its models. It grows by generations: immutable objects, each a table
of new items in feed order, cut into shards of consecutive items. Nothing in it depends on the number of workers.

A million items cost about 40 MB here: ids are held as 16-byte digests, and items are read back by row group.
"""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from featlib.errors import ConfigError, DamagedError, StoppedError
from featlib.items import PlanItem
from featlib.layout import Keys
from featlib.redaction import redact
from featlib.sealed import open_sealed, reread, seal_file, sealable
from featlib.storage import Store

PLAN = pa.schema(
    [
        pa.field("shard", pa.int32(), nullable=False),
        pa.field("media_id", pa.string(), nullable=False),
        pa.field("uri", pa.string(), nullable=False),
        pa.field("start_s", pa.float64()),
        pa.field("end_s", pa.float64()),
        pa.field("size", pa.int64()),
        pa.field("label", pa.string()),
        pa.field("split", pa.string()),
        pa.field("manifest", pa.string()),
    ]
)
_ITEMS = PLAN.remove(0)
_ITEM_COLUMNS = _ITEMS.names
_ROW_GROUP = 8192
_DIGEST = 16


Digests = npt.NDArray[np.bytes_]


@dataclass(frozen=True)
class Generation:
    """One immutable object of the plan."""

    key: str
    num_rows: int


@dataclass(frozen=True)
class Plan:
    """All generations of a dataset, item by item in feed order.

    Args:
        ids: Digest of each media id.
        identities: Digest of each item's URI and range.
        shards: Shard of each item; never decreases.
    """

    generations: tuple[Generation, ...]
    ids: Digests
    identities: Digests
    shards: npt.NDArray[np.int32]

    @property
    def next_shard(self) -> int:
        return int(self.shards[-1]) + 1 if len(self.shards) else 0

    def rows_of(self, shard: int) -> range:
        """Rows of the items of a shard."""
        key = self.shards.dtype.type(shard)  # an int would make numpy copy all shards to int64, at every call
        return range(*(int(np.searchsorted(self.shards, key, side)) for side in ("left", "right")))


def digest(text: str) -> bytes:
    """16 bytes that stand for ``text`` in memory; without trailing NULs, as numpy gives them back."""
    return hashlib.blake2b(text.encode(), digest_size=_DIGEST).digest().rstrip(b"\0")


def digests(texts: Iterable[str]) -> Digests:
    """Digests of ``texts`` as an array that sorts and compares bytewise."""
    return np.array([digest(t) for t in texts], dtype=f"S{_DIGEST}")


def _identity(uri: str, start_s: float | None, end_s: float | None) -> str:
    return f"{uri}\n{start_s!r}\n{end_s!r}"


def _table_digests(table: pa.Table | pa.RecordBatch) -> tuple[Digests, Digests]:
    uris, starts, ends = (table[name].to_pylist() for name in ("uri", "start_s", "end_s"))
    identities = (_identity(u, s, e) for u, s, e in zip(uris, starts, ends, strict=True))
    return digests(table["media_id"].to_pylist()), digests(identities)


def empty_plan() -> Plan:
    """The plan of a dataset that nobody has planned yet."""
    none = np.array([], dtype=f"S{_DIGEST}")
    return Plan((), none, none, np.array([], dtype=np.int32))


def read_plan(store: Store, keys: Keys) -> Plan:
    """Reads every generation, row group by row group.

    Raises:
        DamagedError: One is damaged, or is gone while later ones stand.
    """
    plan = empty_plan()
    for number, info in enumerate(store.list(keys.plan)):
        if info.key != _generation_key(keys, number):
            raise DamagedError(_generation_key(keys, number), f"is gone, and {info.key} stands")
        try:
            plan = reread(info.key, partial(_with_generation, plan, store, info.key))
        except FileNotFoundError:
            raise StoppedError(f"{info.key}: somebody has just removed it; run the same command again") from None
    return plan


def _generation_key(keys: Keys, number: int) -> str:
    return f"{keys.plan}/gen-{number:05d}.plan"


def _with_generation(plan: Plan, store: Store, key: str) -> Plan:
    ids, identities, shards, rows = [plan.ids], [plan.identities], [plan.shards], 0
    with open_sealed(store, key) as file:
        source = pq.ParquetFile(file, page_checksum_verification=True)
        for batch in source.iter_batches(_ROW_GROUP, columns=["shard", "media_id", "uri", "start_s", "end_s"]):
            new_ids, new_identities = _table_digests(batch)
            ids.append(new_ids)
            identities.append(new_identities)
            shards.append(batch["shard"].to_numpy())
            rows += batch.num_rows
    return Plan(
        (*plan.generations, Generation(key, rows)),
        np.concatenate(ids),
        np.concatenate(identities),
        np.concatenate(shards),
    )


def grow(
    store: Store,
    keys: Keys,
    plan: Plan,
    batches: Iterable[pa.RecordBatch],
    shard_items: int,
    confirm: Callable[[], None] = lambda: None,
) -> tuple[Plan, npt.NDArray[np.bool_]]:
    """Adds the manifest's new items as one generation; gives the plan and which of its items the manifest names.

    The generation is put only after the manifest was read to its end, so a wrong manifest leaves no trace.

    Args:
        confirm: Called before that; raises when this process may not put it any more.

    Raises:
        ConfigError: A known media id comes with another URI or range.
        StoppedError: Another process has planned meanwhile.
    """
    order = np.argsort(plan.ids)
    known = _Known(plan.ids[order], plan.identities[order], order)
    selected = np.zeros(len(plan.ids), dtype=bool)
    ids, identities, count = [plan.ids], [plan.identities], 0
    with TemporaryDirectory(prefix="featlib-plan-") as folder:
        path = Path(folder) / "generation"
        with pq.ParquetWriter(path, sealable(PLAN), compression="zstd", write_page_checksum=True) as writer:
            for batch in batches:
                new_ids, new_identities = _table_digests(batch)
                rows = known.find(new_ids, new_identities, batch)
                selected[rows[rows >= 0]] = True
                new = np.flatnonzero(rows < 0)
                if not len(new):
                    continue
                shards = plan.next_shard + (count + np.arange(len(new))) // shard_items
                fresh = pa.table(batch.select(_ITEM_COLUMNS)).take(pa.array(new))
                fresh = fresh.add_column(0, "shard", pa.array(shards.astype(np.int32)))
                writer.write_table(fresh.cast(sealable(PLAN)), row_group_size=_ROW_GROUP)
                ids.append(new_ids[new])
                identities.append(new_identities[new])
                count += len(new)
        if not count:
            return plan, selected
        seal_file(path)
        key = _generation_key(keys, len(plan.generations))
        confirm()
        if store.stat(key) is not None:
            raise StoppedError(f"{key}: another job has just planned this dataset; run the same command again")
        store.put_file(key, str(path))
    shards = (plan.next_shard + np.arange(count) // shard_items).astype(np.int32)
    grown = Plan(
        (*plan.generations, Generation(key, count)),
        np.concatenate(ids),
        np.concatenate(identities),
        np.concatenate([plan.shards, shards]),
    )
    return grown, np.concatenate([selected, np.ones(count, dtype=bool)])


@dataclass(frozen=True)
class _Known:
    """The plan's digests in sorted order, and the row each came from."""

    ids: Digests
    identities: Digests
    rows: npt.NDArray[np.intp]

    def find(self, ids: Digests, identities: Digests, batch: pa.RecordBatch) -> npt.NDArray[np.int64]:
        """The plan's row of each id, -1 for a new one."""
        if not len(self.ids):
            return np.full(len(ids), -1, dtype=np.int64)
        at = np.minimum(np.searchsorted(self.ids, ids), len(self.ids) - 1)
        hit = self.ids[at] == ids
        moved = np.flatnonzero(hit & (self.identities[at] != identities))
        if len(moved):
            row = batch.slice(int(moved[0]), 1).to_pylist()[0]
            where = f"{row['source']}: row {row['row']}: media_id {row['media_id']!r}"
            raise ConfigError(
                f"{redact(where)} is already planned in this dataset with another uri or range (now "
                f"{redact(row['uri'])!r}); give it another id or use another --dataset"
            )
        return np.where(hit, self.rows[at], -1)


def shard_rows(plan: Plan, shard: int) -> dict[bytes, int]:
    """The plan's row of each item of a shard, by the digest of its id."""
    rows = plan.rows_of(shard)
    return dict(zip(plan.ids[rows.start : rows.stop].tolist(), rows, strict=True))


def find_rows(plan: Plan, shard: int, media_ids: Sequence[object]) -> npt.NDArray[np.int64]:
    """The plan's row of each of ``media_ids`` in a shard; -1 for one that is not there."""
    rows = plan.rows_of(shard)
    wanted = digests(map(str, media_ids))
    if np.array_equal(wanted, plan.ids[rows.start : rows.stop]):  # outcomes name all items of a shard in its order
        return np.arange(rows.start, rows.stop)
    by_digest = shard_rows(plan, shard)
    return np.array([by_digest.get(d, -1) for d in wanted.tolist()], dtype=np.int64)


class PlanItems:
    """Reads items of a plan back, by shard; holds the row groups of one shard's neighbourhood only."""

    def __init__(self, store: Store, plan: Plan) -> None:
        self._store, self._plan = store, plan
        self._cached: _Rows | None = None

    def shard(self, shard: int) -> list[PlanItem]:
        """The items of a shard in feed order."""
        rows = self._plan.rows_of(shard)
        first = 0
        for generation in self._plan.generations:
            if first <= rows.start < first + generation.num_rows:
                return self._read(generation.key, first, rows.start - first, len(rows))
            first += generation.num_rows
        raise StoppedError(f"shard {shard} is not in the plan; run `featlib verify` on this output")

    def _read(self, key: str, first: int, start: int, count: int) -> list[PlanItem]:
        """Rows of the generation ``key``, whose own first row is the plan's row ``first``."""
        if self._cached is None or self._cached.key != key or not self._cached.holds(start, count):
            self._cached = reread(key, partial(self._read_checked, key, first, start, count))
        rows = self._cached.table.slice(start - self._cached.start, count)
        return list(map(PlanItem, *(rows[name].to_pylist() for name in _ITEM_COLUMNS)))

    def _read_checked(self, key: str, first: int, start: int, count: int) -> "_Rows":
        """A part is read, so the seal cannot tell; but what the items must be is known since the plan was read."""
        rows = _read_rows(self._store, key, start, count)
        place = slice(first + rows.start, first + rows.start + rows.table.num_rows)
        ids, identities = _table_digests(rows.table)
        is_right = np.array_equal(ids, self._plan.ids[place])
        is_right &= np.array_equal(identities, self._plan.identities[place])
        if not is_right or not rows.holds(start, count):
            raise DamagedError(key)
        return rows


@dataclass(frozen=True)
class _Rows:
    """Consecutive rows of one generation, whole row groups."""

    key: str
    start: int
    table: pa.Table

    def holds(self, start: int, count: int) -> bool:
        return self.start <= start and start + count <= self.start + self.table.num_rows


def _read_rows(store: Store, key: str, start: int, count: int) -> _Rows:
    with store.open(key) as file:
        source = pq.ParquetFile(file, page_checksum_verification=True)
        sizes = [source.metadata.row_group(i).num_rows for i in range(source.metadata.num_row_groups)]
        starts = np.concatenate([[0], np.cumsum(sizes)])
        first = int(np.searchsorted(starts, start, "right")) - 1
        last = int(np.searchsorted(starts, start + count - 1, "right")) - 1
        table = source.read_row_groups(list(range(first, last + 1)), columns=_ITEM_COLUMNS)
    if not table.schema.equals(_ITEMS):
        raise DamagedError(key)  # other types, by metadata that no checksum covers
    return _Rows(key, int(starts[first]), table)
