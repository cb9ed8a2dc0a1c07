"""What a run still has to do: plan minus published minus staged, kept per shard while results come in."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from featlib.items import PlanItem
from featlib.layout import Keys
from featlib.ledger import Rows, has_changed
from featlib.plan import Plan, PlanItems, Unit, units_of_shard
from featlib.shards.staging import Piece, StagedItem, list_pieces, staged_items
from featlib.storage import Store, StoreOptions

_ASKED_AT_ONCE = 16

Needs = Mapping[str, tuple[str, ...]]
"""By media id, the labels that an item still needs."""


@dataclass
class _Open:
    """Items of a shard that are not wholly staged, and the segments that long ones still lack."""

    items: set[str]
    segments: dict[str, set[int]] = field(default_factory=dict)


class Backlog:
    """The open items of a run.

    Args:
        needs: By label, which items of the plan still need it.
        fingerprints: By label.
    """

    def __init__(self, plan: Plan, needs: Mapping[str, Rows], fingerprints: Mapping[str, str]) -> None:
        self._plan, self._needs, self._fingerprints = plan, needs, fingerprints
        self._open: dict[int, _Open] = {}
        wanted = np.zeros(len(plan.ids), dtype=bool)
        for rows in needs.values():
            wanted |= rows
        self.num_items = int(wanted.sum())
        self.shards: tuple[int, ...] = tuple(int(s) for s in np.unique(plan.shards[wanted]))

    def needs_of(self, shard: int, items: Sequence[PlanItem]) -> dict[str, tuple[str, ...]]:
        """What each item of a shard needs in this run."""
        rows = self._plan.rows_of(shard)
        found: dict[str, tuple[str, ...]] = {}
        for row, item in zip(rows, items, strict=True):
            labels = tuple(label for label, need in self._needs.items() if need[row])
            if labels:
                found[item.media_id] = labels
        return found

    def units(self, store: Store, keys: Keys, items: PlanItems, *, unit_items: int) -> Iterator[Unit]:
        """The units of the first pass; shards that have staged pieces come first."""
        pieces = list_pieces(store, keys)
        order = sorted(self.shards, key=lambda s: (s not in pieces, s))
        for shard in order:
            needs = self.needs_of(shard, items.shard(shard))
            staged = staged_for(pieces.get(shard, ()), needs, self._fingerprints)
            yield from self._shard_units(shard, items.shard(shard), needs, _current(staged, store.options), unit_items)

    def _shard_units(
        self, shard: int, items: Sequence[PlanItem], needs: Needs, staged: Mapping[str, StagedItem], unit_items: int
    ) -> Iterator[Unit]:
        open_ids = {media_id for media_id in needs if media_id not in staged or not staged[media_id].complete}
        begun = {m: (s.n, s.missing) for m, s in staged.items() if m in open_ids}
        segments = {m: set(missing) for m, (_, missing) in begun.items()}
        self._open[shard] = _Open(open_ids, segments)
        todo = {media_id: labels for media_id, labels in needs.items() if media_id in open_ids}
        yield from units_of_shard(shard, items, todo, begun, unit_items=unit_items)

    def ready_shards(self) -> list[int]:
        """Shards of which everything is staged; known once ``units`` has been read to its end."""
        return [shard for shard, state in self._open.items() if not state.items]

    def finish(self, shard: int, finished: Iterable[Sequence[Any]]) -> bool:
        """Takes what a unit staged; True when it was the last of its shard."""
        state = self._open[shard]
        before = len(state.items)
        for media_id, k, n, _ in finished:
            if n > 1:
                missing = state.segments.setdefault(media_id, set(range(n)))
                missing.discard(k)
                if missing:
                    continue
            state.items.discard(media_id)
            state.segments.pop(media_id, None)
        return before > 0 and not state.items

    def reopen(self, shard: int, media_ids: Iterable[str]) -> None:
        """Puts items back whose staged pieces turned out to be unusable."""
        self._open[shard].items.update(media_ids)

    def close(self, shard: int) -> None:
        """Forgets a shard that is published."""
        self._open.pop(shard, None)

    @property
    def open_items(self) -> int:
        return sum(len(state.items) for state in self._open.values())


def staged_for(pieces: Iterable[Piece], needs: Needs, fingerprints: Mapping[str, str]) -> dict[str, StagedItem]:
    """By media id, what is staged of each item for everything that the item needs."""
    pieces = list(pieces)
    found: dict[str, StagedItem] = {}
    for labels in set(needs.values()):
        staged = staged_items(pieces, {label: fingerprints[label] for label in labels})
        found.update({m: s for m, s in staged.items() if needs.get(m) == labels})
    return found


def _current(staged: Mapping[str, StagedItem], options: StoreOptions) -> dict[str, StagedItem]:
    """What was staged by an earlier run, without items whose media has been replaced since: they are done again."""

    def is_current(item: StagedItem) -> bool:
        known = next((r for r in item.reports if r.source != (None, None)), None)
        return known is None or not has_changed(known.uri, known.source, options)

    with ThreadPoolExecutor(_ASKED_AT_ONCE) as pool:
        kept = list(pool.map(is_current, staged.values()))
    return {media_id: item for (media_id, item), keep in zip(staged.items(), kept, strict=True) if keep}
