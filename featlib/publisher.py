"""Publishing beside decoding: a thread of the driver turns complete shards into objects under final names."""

import queue
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

from featlib.backlog import Backlog, staged_for
from featlib.drivers import Claim
from featlib.errors import StoppedError
from featlib.items import PlanItem
from featlib.layout import Keys, PartName
from featlib.plan import PlanItems
from featlib.shards.commit import read_committed
from featlib.shards.pieces import DamagedPieceError
from featlib.shards.publish import Event, ShardJob, publish_shard
from featlib.shards.schema import Provenance
from featlib.shards.staging import Piece, piece_keys, read_heads, read_shards
from featlib.storage import Store
from featlib.work import Unit, UnitItem


@dataclass(frozen=True)
class Published:
    """What became of a request to publish a shard.

    Args:
        outcomes: By label, the columns ``RECORDED`` of the outcomes that now stand; empty when nothing was published.
        again: Units that must be done again first, because a staged piece was missing or damaged.
    """

    shard: int
    outcomes: Mapping[str, Mapping[str, Sequence[Any]]] = field(default_factory=dict)
    again: tuple[Unit, ...] = ()


@dataclass
class ShardPublisher:
    """Publishes single shards."""

    store: Store
    keys: Keys
    items: PlanItems
    backlog: Backlog
    provenance: Mapping[str, Provenance]
    max_bytes: int
    claim: Claim
    on_event: Event
    _listed: dict[str, dict[int, list[str]]] = field(default_factory=dict)

    def publish(self, shard: int, staged: Sequence[str] = ()) -> Published:
        """Makes everything of this run that belongs to a shard visible, and removes its pieces.

        Args:
            staged: Keys of pieces that are there for certain; a listing may lag.

        Raises:
            StoppedError: Another driver works, or somebody removes what this one reads.
        """
        try:
            return self._publish(shard, staged)
        except FileNotFoundError as error:
            self.claim.check()  # who slept for longer than the lease misses what the next driver removed
            what = error.filename or error
            raise StoppedError(f"shard {shard}: {what} has just been removed; run the same command again") from error

    def _publish(self, shard: int, known: Sequence[str]) -> Published:
        self.claim.check()
        items = self.items.shard(shard)
        needs = self.backlog.needs_of(shard, items)
        keys = sorted({*piece_keys(self.store, self.keys, shard).get(shard, ()), *known})
        pieces = read_heads(self.store, keys)
        pieces = self.backlog.without_replaced(shard, pieces)
        staged = staged_for(pieces, needs, {label: p.fingerprint for label, p in self.provenance.items()})
        missing = {m for m in needs if m not in staged or not staged[m].complete}
        if missing:
            return Published(shard, again=_units_again(shard, items, needs, missing))
        by_label = {label: {m: staged[m] for m, ls in needs.items() if label in ls} for label in self.provenance}
        job = ShardJob(
            shard,
            items,
            {label: mine for label, mine in by_label.items() if mine},
            {label: self._present(label, shard) for label in by_label},
            keys,
        )
        try:
            outcomes = publish_shard(
                self.store,
                self.keys,
                job,
                self.provenance,
                max_bytes=self.max_bytes,
                guard=self.claim.guard,
                confirm=self.claim.confirm,
                on_event=self.on_event,
            )
        except DamagedPieceError as error:
            self.claim.confirm()
            self.store.delete([error.key])
            damaged = {r.media_id for p in pieces if p.key == error.key for r in p.reports}
            return Published(shard, again=_units_again(shard, items, needs, damaged))
        self.claim.confirm()
        self.store.delete([p.key for p in pieces if is_spent(p, self.provenance)])
        self.on_event("shard_published", str(shard))
        return Published(shard, outcomes)

    def _present(self, label: str, shard: int) -> list[str]:
        """The features objects of a shard, from one listing a label: what this run puts is known by its commits."""
        if label not in self._listed:
            listed: dict[int, list[str]] = {}
            for info in self.store.list(self.keys.features(label)):
                name = PartName.parse(info.key)
                if name is not None:
                    listed.setdefault(name.shard, []).append(info.key)
            self._listed[label] = listed
        return self._listed[label].get(shard, [])


def _units_again(
    shard: int, items: Sequence[PlanItem], needs: Mapping[str, tuple[str, ...]], ids: Iterable[str]
) -> tuple[Unit, ...]:
    wanted = set(ids)
    return tuple(
        Unit(shard, needs[i.media_id], (UnitItem(i.media_id, i.uri, i.start_s, i.end_s),))
        for i in items
        if i.media_id in wanted and i.media_id in needs
    )


def is_spent(piece: Piece, provenance: Mapping[str, Provenance]) -> bool:
    """Whether a piece of a published shard was made for a model of this run.

    It may also hold rows of a model that is not: they are made again. Kept, the piece would pass for the result of the
    next ``--retry-failed`` or bring a dropped partition back.
    """
    return not set(piece.fingerprints).isdisjoint(provenance)


def remove_history(
    store: Store, keys: Keys, labels: Collection[str], confirm: Callable[[], None] = lambda: None
) -> None:
    """Removes pieces that were published for ``labels`` by a run that ended before it could remove them.

    Left behind, they would pass for the result of the next ``--retry-failed`` or ``--changed``. A piece of which one
    of ``labels`` is still to be published stays, unless nobody can read it.

    Args:
        confirm: Called before objects are removed; raises when this process may not any more.
    """
    staged = piece_keys(store, keys)
    for shard, pieces in read_shards(store, staged):
        history = {label: read_committed(store, keys, label, shard).pieces for label in labels}
        mine = {p.key: [label for r in p.reports for label in r.models if label in history] for p in pieces}
        gone = [key for key, made in mine.items() if made and all(key in history[label] for label in made)]
        unreadable = set(staged[shard]) - mine.keys()
        gone += [key for key in unreadable if any(key in spent for spent in history.values())]
        if gone:
            confirm()
            store.delete(gone)


class PublisherThread:
    """Publishes shards one after the other; a context manager. Its error is raised in the thread that asks."""

    def __init__(self, publish: Callable[[int], Published]) -> None:
        self._publish = publish
        self._asked: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        self._done: queue.SimpleQueue[Published | BaseException | None] = queue.SimpleQueue()
        self._num_open = 0
        self._broken = False
        self._thread = threading.Thread(target=self._loop, name="featlib-publisher", daemon=True)

    def __enter__(self) -> "PublisherThread":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Waits for what was asked for; where somebody wants to leave, for the shard at hand alone."""
        if kind is not None and not issubclass(kind, Exception):
            self._broken = True
        self._asked.put(None)
        self._thread.join()

    def put(self, shard: int) -> None:
        """Asks for a shard to be published."""
        self._num_open += 1
        self._asked.put(shard)

    def take(self) -> Iterator[Published]:
        """What has been done since the last call."""
        while not self._done.empty():
            yield from self._next()

    def wait(self) -> Iterator[Published]:
        """What is done, as it comes, until nothing that was asked for is left."""
        while self._num_open:
            yield from self._next()

    def _next(self) -> Sequence[Published]:
        """What became of the next shard; nothing of those behind an error."""
        result = self._done.get()
        self._num_open -= 1
        if isinstance(result, BaseException):
            raise result
        return () if result is None else (result,)

    def _loop(self) -> None:
        while (shard := self._asked.get()) is not None:
            try:
                self._done.put(None if self._broken else self._publish(shard))
            except BaseException as error:  # noqa: BLE001 - raised again in the thread that reads results
                self._broken = True
                self._done.put(error)
