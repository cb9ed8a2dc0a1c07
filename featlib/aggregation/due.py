"""Which items need a vector: those without one, and those whose sources say something else than when it was made."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from featlib.aggregation.shard import FINAL
from featlib.layout import Keys, PartName
from featlib.ledger import STATUSES, Rows
from featlib.plan import Digests, Plan, digest, find_rows, shard_rows
from featlib.shards.commit import read_outcomes
from featlib.shards.doubt import items_in_doubt
from featlib.shards.schema import reading
from featlib.storage import Store

_COLUMNS = ["media_id", "status", "error_class", "num_rows", "size", "etag"]
_OK, _PARTIAL, _FAILED = (STATUSES.index(status) for status in ("ok", "partial", "failed"))


@dataclass(frozen=True)
class Due:
    """Items of the plan.

    Args:
        needs: That a run has to make a vector of, or an outcome that says why there is none.
        ready: That all sources are done with, from one version of the media.
    """

    needs: Rows
    ready: Rows


def due_items(store: Store, keys: Keys, plan: Plan, features: Sequence[str], label: str) -> Due:
    """What is due under ``label``; an item is left open while its sources saw different versions of the media."""
    sources = [_known(store, keys, plan, label) for label in features]
    mine = _known(store, keys, plan, label)
    ready = np.logical_and.reduce([s.status > 0 for s in sources])
    for other in sources[1:]:
        ready &= ~_differ(sources[0].source, other.source)
    moved = np.logical_or.reduce([_differ(s.source, mine.source) for s in sources])
    usable = np.logical_and.reduce([s.has_rows | (s.status == _OK) for s in sources])
    gained = (mine.status == _FAILED) & ~mine.final & usable
    lost = mine.has_rows & ~np.logical_and.reduce([s.has_rows for s in sources])
    replaced = ready & (mine.status > 0) & (moved | lost)
    needs: Rows = ready & ((mine.status == 0) | gained | replaced)
    return Due(needs, ready)


@dataclass(frozen=True)
class _Known:
    """What the outcomes of a label say of each item of the plan.

    Args:
        status: A code of ``ledger.STATUSES``; 0: no outcome.
        source: Digest of the media's size and etag; empty when they were never learned.
        empty: The item has no rows although it did not fail.
        final: The item failed for what its sources are, and would again while they are the same.
    """

    status: npt.NDArray[np.int8]
    source: Digests
    empty: Rows
    final: Rows

    @property
    def has_rows(self) -> Rows:
        rows: Rows = ((self.status == _OK) | (self.status == _PARTIAL)) & ~self.empty
        return rows


def _known(store: Store, keys: Keys, plan: Plan, label: str) -> _Known:
    count = len(plan.ids)
    empty, final = np.zeros(count, np.bool_), np.zeros(count, np.bool_)
    known = _Known(np.zeros(count, np.int8), np.zeros(count, plan.ids.dtype), empty, final)
    for info in store.list(keys.outcomes(label)):
        name = PartName.parse(info.key)
        if name is None:
            continue
        rows = shard_rows(plan, name.shard)
        with reading(info.key):
            outcomes = read_outcomes(store, info.key, _COLUMNS)
        for o in outcomes.to_pylist():
            row = rows.get(digest(o["media_id"]))
            if row is not None:
                known.status[row] = STATUSES.index(o["status"])
                known.empty[row] = not o["num_rows"]
                known.final[row] = o["error_class"] in FINAL
                if o["etag"] is not None or o["size"] is not None:
                    known.source[row] = digest(f"{o['size']}/{o['etag']}")
    for shard, media_ids in items_in_doubt(store, keys, label):
        doubted = find_rows(plan, shard, sorted(media_ids))
        known.status[doubted[doubted >= 0]] = 0
    return known


def _differ(a: Digests, b: Digests) -> Rows:
    """Where both are known and not the same."""
    rows: Rows = (a != b) & (a != b"") & (b != b"")
    return rows
