"""What a run still has to do: plan minus published minus staged, kept per shard while results come in.

An open item costs a byte here, whatever the length of its id.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from itertools import chain, compress, repeat
from typing import Any

import numpy as np

from featlib.items import PlanItem
from featlib.layout import Keys, PartName
from featlib.ledger import Rows, has_changed
from featlib.plan import Plan, PlanItems, digest, shard_rows
from featlib.shards.commit import read_committed
from featlib.shards.staging import Piece, StagedItem, piece_keys, read_shards, staged_items
from featlib.storage import Store, StoreOptions
from featlib.work import Unit, units_of_shard

_ASKED_AT_ONCE = 16

Needs = Mapping[str, tuple[str, ...]]
"""By media id, the labels that an item still needs."""


class Backlog:
    """The open items of a run.

    Args:
        needs: By label, which items of the plan still need it.
        fingerprints: By label.

    Attributes:
        rounds: By label and shard, how often it had been committed when this run began; known once ``units`` is read,
            none where it never was.
    """

    def __init__(self, plan: Plan, needs: Mapping[str, Rows], fingerprints: Mapping[str, str]) -> None:
        self._plan, self._needs, self._fingerprints = plan, needs, fingerprints
        self._is_open = np.zeros(len(plan.ids), dtype=bool)
        self._num_open: dict[int, int] = {}
        self._missing: dict[int, int] = {}  # by row of the plan, a bit for each segment that is still to come
        self.rounds: dict[str, dict[int, int]] = {}
        self._cut: set[tuple[str, str]] = set()  # label and key of pieces that a commit behind which was cut names
        self._replaced: dict[tuple[int, str], frozenset[str]] = {}  # keys of the pieces that count no more
        self.open_items = 0
        wanted = np.zeros(len(plan.ids), dtype=bool)
        for rows in needs.values():
            wanted |= rows
        self.num_items = int(wanted.sum())
        self.shards: tuple[int, ...] = tuple(int(s) for s in np.unique(plan.shards[wanted]))

    def needs_of(self, shard: int, items: Sequence[PlanItem]) -> dict[str, tuple[str, ...]]:
        """What each item of a shard needs in this run."""
        rows = self._plan.rows_of(shard)
        mine = {label: need[rows.start : rows.stop] for label, need in self._needs.items()}
        if all(need.all() for need in mine.values()):
            return dict(zip((item.media_id for item in items), repeat(tuple(mine), len(rows)), strict=True))
        found: dict[str, tuple[str, ...]] = {}
        for item, *wanted in zip(items, *(need.tolist() for need in mine.values()), strict=True):
            if any(wanted):
                found[item.media_id] = tuple(label for label, is_wanted in zip(mine, wanted, strict=True) if is_wanted)
        return found

    def units(
        self, store: Store, keys: Keys, items: PlanItems, *, unit_items: int, unit_videos: int | None = None
    ) -> Iterator[Unit]:
        """The units of the first pass; shards that have staged pieces come first.

        What is staged is read shard by shard, so a run that had staged much before it was killed costs no more.
        """
        self.rounds = _rounds(store, keys, self._needs, self.shards)
        keys_of = piece_keys(store, keys)
        begun = {shard: keys_of[shard] for shard in self.shards if shard in keys_of}
        untouched = ((shard, list[Piece]()) for shard in self.shards if shard not in begun)
        for shard, pieces in chain(read_shards(store, begun), untouched):
            mine = items.shard(shard)
            needs = self.needs_of(shard, mine)
            for label in {label for p in pieces for label in self._older(shard, p)}:
                self._cut.update((label, key) for key in read_committed(store, keys, label, shard).used)
            pieces = [self._in_time(shard, p) for p in pieces]
            staged = staged_for(pieces, needs, self._fingerprints)
            replaced = _replaced(staged, store.options)
            self.set_aside(shard, replaced, (p.key for p in pieces))
            current = {m: item for m, item in staged.items() if m not in replaced}
            todo, begun_items = self._begin(shard, mine, needs, current)
            yield from units_of_shard(shard, mine, todo, begun_items, unit_items=unit_items, unit_videos=unit_videos)

    def _begin(
        self, shard: int, items: Sequence[PlanItem], needs: Needs, staged: Mapping[str, StagedItem]
    ) -> tuple[Needs, dict[str, tuple[int, str, tuple[int, ...]]]]:
        """Opens what is still to do of a shard; gives its labels, and the segments of items begun, by media id."""
        todo = {m: labels for m, labels in needs.items() if m not in staged or not staged[m].complete}
        begun = {m: (s.n, s.by, s.missing) for m, s in staged.items() if m in todo}
        first = self._plan.rows_of(shard).start
        self._num_open[shard] = 0
        self._open(shard, (first + place for place, item in enumerate(items) if item.media_id in todo))
        for place, item in enumerate(items):
            if item.media_id in begun:
                self._missing[first + place] = sum(1 << k for k in begun[item.media_id][2])
        return todo, begun

    def _open(self, shard: int, rows: Iterable[int]) -> None:
        new = [row for row in rows if not self._is_open[row]]
        self._is_open[new] = True
        self._num_open[shard] += len(new)
        self.open_items += len(new)

    def _older(self, shard: int, piece: Piece) -> Iterator[str]:
        """Labels for which a piece was asked before the last commit of its shard."""
        for label, number in piece.rounds.items():
            if label in self.rounds and number != self.rounds[label].get(shard, 0):
                yield label

    def _in_time(self, shard: int, piece: Piece) -> Piece:
        """The piece without what came too late: it was asked for before a commit, which does not name it. Taken for
        what ``--retry-failed`` or ``--changed`` asks for, it would be the old result."""
        late = {label for label in self._older(shard, piece) if (label, piece.key) not in self._cut}
        if not late:
            return piece
        reports = (replace(r, models={m: v for m, v in r.models.items() if m not in late}) for r in piece.reports)
        return replace(piece, reports=tuple(reports))

    def without_replaced(self, shard: int, pieces: Iterable[Piece]) -> list[Piece]:
        """The pieces without what came too late, and without what was staged of an item before it was begun anew, since
        its file was replaced or a piece was of no use: the clocks of workers may say that it is the newest. What was
        staged since stays, whichever file its worker found."""
        pieces = [self._in_time(shard, p) for p in pieces]
        if not self._replaced:
            return pieces
        return [
            replace(p, reports=tuple(r for r in p.reports if p.key not in self._replaced.get((shard, r.media_id), ())))
            for p in pieces
        ]

    def ready_shards(self) -> list[int]:
        """Shards of which everything is staged; known once ``units`` has been read to its end."""
        return [shard for shard, count in self._num_open.items() if not count]

    def finish(self, shard: int, finished: Iterable[Sequence[Any]]) -> bool:
        """Takes what a unit staged; True when it was the last of its shard.

        Of a shard that is closed nothing is taken: a file that was replaced in mid-job may have further segments by the
        one segment, and none by the other.
        """
        if shard not in self._num_open:
            return False
        rows = shard_rows(self._plan, shard)
        before = self._num_open[shard]
        for media_id, k, n, _ in finished:
            row = rows.get(digest(media_id))
            if row is None or not self._is_open[row] or (n > 1 and self._lacks_segments(row, k, n)):
                continue
            self._missing.pop(row, None)
            self._is_open[row] = False
            self._num_open[shard] -= 1
        self.open_items -= before - self._num_open[shard]
        return before > 0 and not self._num_open[shard]

    def _lacks_segments(self, row: int, k: int, n: int) -> bool:
        """Takes segment ``k`` of ``n`` of an item."""
        self._missing[row] = self._missing.get(row, (1 << n) - 1) & ~(1 << k)
        return self._missing[row] != 0

    def reopen(self, shard: int, media_ids: Iterable[str]) -> None:
        """Puts items back whose staged pieces turned out to be unusable."""
        rows = shard_rows(self._plan, shard)
        again = {rows[digest(media_id)] for media_id in media_ids}
        for row in again:
            self._missing.pop(row, None)
        self._open(shard, again)

    def set_aside(self, shard: int, media_ids: Iterable[str], pieces: Iterable[str]) -> None:
        """From now on the pieces with these keys do not count for these items."""
        self._replaced.update(dict.fromkeys(((shard, media_id) for media_id in media_ids), frozenset(pieces)))

    @property
    def unpublished(self) -> int:
        """Shards of this run that are not closed; 0 once everything is done."""
        return len(self._num_open)

    def close(self, shard: int) -> None:
        """Forgets a shard that is published."""
        self._num_open.pop(shard, None)


def _rounds(store: Store, keys: Keys, labels: Iterable[str], shards: Iterable[int]) -> dict[str, dict[int, int]]:
    """By label and shard, how often it has been committed; shards that never were are left out."""
    mine, found = set(shards), dict[str, dict[int, int]]()
    with ThreadPoolExecutor(_ASKED_AT_ONCE) as pool:
        for label in labels:
            names = [PartName.parse(info.key) for info in store.list(keys.outcomes(label))]
            committed = [name.shard for name in names if name is not None and name.shard in mine]
            outcomes = pool.map(partial(read_committed, store, keys, label), committed)
            found[label] = {shard: each.rounds for shard, each in zip(committed, outcomes, strict=True)}
    return found


def staged_for(pieces: Iterable[Piece], needs: Needs, fingerprints: Mapping[str, str]) -> dict[str, StagedItem]:
    """By media id, what is staged of each item for everything that the item needs."""
    pieces = list(pieces)
    found: dict[str, StagedItem] = {}
    for labels in set(needs.values()):
        staged = staged_items(pieces, {label: fingerprints[label] for label in labels})
        found.update({m: s for m, s in staged.items() if needs.get(m) == labels})
    return found


def _replaced(staged: Mapping[str, StagedItem], options: StoreOptions) -> set[str]:
    """Of what was staged by an earlier run, the items whose media has been replaced since: they are done again."""

    def is_gone(item: StagedItem) -> bool:
        known = next((r for r in item.reports if r.source != (None, None)), None)
        return known is not None and has_changed(known.uri, known.source, options)

    with ThreadPoolExecutor(_ASKED_AT_ONCE) as pool:
        return set(compress(staged, pool.map(is_gone, staged.values())))
