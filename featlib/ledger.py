"""What is done: the published outcomes of the models of a job, item by item of the plan."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

import numpy as np
import numpy.typing as npt

from featlib.errors import MediaError, TransientError
from featlib.layout import Keys, PartName
from featlib.plan import Plan, digest, find_rows, shard_rows
from featlib.shards.commit import read_outcomes
from featlib.shards.doubt import items_in_doubt
from featlib.shards.schema import RECORDED
from featlib.storage import Store, StoreOptions, stat_media

STATUSES = ("", "ok", "skipped", "partial", "failed")
_CODE = {status: code for code, status in enumerate(STATUSES)}
_READERS = 16
_OBJECTS_AT_ONCE = 256

Rows = npt.NDArray[np.bool_]


class Ledger:
    """The status of every item of a plan under every model, a byte each, and why the bad ones are bad."""

    def __init__(self, plan: Plan, labels: Sequence[str]) -> None:
        self._plan = plan
        self._codes = {label: np.zeros(len(plan.ids), dtype=np.int8) for label in labels}
        self._classes: dict[tuple[str, int], str] = {}
        self._num_rows: dict[tuple[str, int], int] = {}

    @property
    def labels(self) -> tuple[str, ...]:
        return tuple(self._codes)

    def load(self, store: Store, keys: Keys) -> None:
        """Reads every outcomes object of every label."""
        jobs = ((label, o.key) for label in self.labels for o in store.list(keys.outcomes(label)))
        with ThreadPoolExecutor(_READERS) as pool:
            while batch := list(islice(jobs, _OBJECTS_AT_ONCE)):
                read = pool.map(lambda job: _read(store, job[1]), batch)
                for (label, key), columns in zip(batch, read, strict=True):
                    name = PartName.parse(key)
                    if name is not None:
                        self.record(label, name.shard, columns)
        for label in self.labels:
            for shard, media_ids in items_in_doubt(store, keys, label):
                rows = find_rows(self._plan, shard, sorted(media_ids))
                self._forget(label, rows[rows >= 0])

    def record(self, label: str, shard: int, outcomes: Mapping[str, Sequence[object]]) -> None:
        """Takes the columns ``RECORDED`` of the outcomes object of a shard; what it does not name is not done."""
        mine = self._plan.rows_of(shard)
        self._forget(label, np.arange(mine.start, mine.stop))
        rows = find_rows(self._plan, shard, outcomes["media_id"])
        codes = np.array([_CODE[str(status)] for status in outcomes["status"]], dtype=np.int8)
        self._codes[label][rows[rows >= 0]] = codes[rows >= 0]
        for row, status, reason in zip(rows.tolist(), outcomes["status"], outcomes["error_class"], strict=True):
            if reason and status != "skipped" and row >= 0:
                self._classes[label, row] = str(reason)
        self._num_rows[label, shard] = sum(int(str(n or 0)) for n in outcomes["num_rows"])

    def _forget(self, label: str, rows: npt.NDArray[np.int64]) -> None:
        self._codes[label][rows] = 0
        for row in rows.tolist() if self._classes else ():
            self._classes.pop((label, row), None)

    def num_rows(self, label: str) -> int:
        """Rows that are published under a label."""
        return sum(n for (mine, _), n in self._num_rows.items() if mine == label)

    def done(self, label: str, *, retry_failed: bool) -> Rows:
        """Which items need nothing more; failed ones do when ``retry_failed``."""
        codes = self._codes[label]
        done: Rows = codes > 0
        return done & (codes != _CODE["failed"]) if retry_failed else done

    def status_counts(self, selected: Rows) -> Counter[str]:
        """Media by their worst status over all models; an item skipped by some models counts as the rest says."""
        if not self._codes:
            return Counter()
        codes = np.stack([c[selected] for c in self._codes.values()])
        order = np.where(codes == _CODE["skipped"], 0, codes)
        worst = np.where((codes == _CODE["skipped"]).all(axis=0), _CODE["skipped"], order.max(axis=0))
        worst = np.where((codes == 0).any(axis=0), 0, worst)
        return Counter({STATUSES[code]: int((worst == code).sum()) for code in np.unique(worst)})

    def class_counts(self, selected: Rows) -> Counter[str]:
        """Failed and partial media by the class of what went wrong."""
        return Counter(
            reason for _, reason in {(row, reason) for (_, row), reason in self._classes.items() if selected[row]}
        )


def _read(store: Store, key: str) -> dict[str, list[object]]:
    columns: dict[str, list[object]] = read_outcomes(store, key, RECORDED).to_pydict()
    return columns


def changed_rows(store: Store, keys: Keys, plan: Plan, label: str, options: StoreOptions) -> Iterator[int]:
    """Rows of the plan of published items whose media has another size or etag now than when it was read.

    A media file that is gone or cannot be asked is not "changed": what was made of it stays.
    """
    for info in store.list(keys.outcomes(label)):
        table = read_outcomes(store, info.key, ["media_id", "uri", "status", "size", "etag"])
        records = [r for r in table.to_pylist() if r["etag"] is not None or r["size"] is not None]
        with ThreadPoolExecutor(_READERS) as pool:
            moved = list(pool.map(lambda r: has_changed(r["uri"], (r["size"], r["etag"]), options), records))
        name = PartName.parse(info.key)
        rows = shard_rows(plan, name.shard) if name else {}
        for record, has_moved in zip(records, moved, strict=True):
            row = rows.get(digest(record["media_id"]))
            if has_moved and row is not None:
                yield row


def has_changed(uri: str, source: tuple[int | None, str | None], options: StoreOptions) -> bool:
    """Whether the media at ``uri`` has another size or etag than ``source``; False when it cannot be asked."""
    try:
        now = stat_media(uri, options)
    except (MediaError, TransientError):
        return False
    return (now.size, now.etag) != source
