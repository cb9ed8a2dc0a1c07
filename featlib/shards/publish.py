"""Publishing: the staged pieces of a complete shard become whole objects under final names.

The order is the promise. Features first, each object put once, whole; outcomes second: they are the commit and hold
the sha256 of every features object; the pieces go last. Where an item that is published has visible rows already, all
of them give way in the object in which they stand, so a publish that was cut anywhere can be repeated and no row is of
another version than its outcome. Only the driver process calls this.
"""

import hashlib
import io
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from featlib.errors import DamagedError
from featlib.items import ItemReport, PlanItem, merge_facts, merge_models
from featlib.layout import Keys, PartName
from featlib.sealed import check_seal, open_sealed, reread
from featlib.shards.commit import Committed, put_committed, read_committed
from featlib.shards.doubt import read_doubt, write_doubt
from featlib.shards.parts import Joined, PartWriter, new_names, put_file, write_whole
from featlib.shards.pieces import PieceReader, unique_rows
from featlib.shards.schema import FEATURES, OUTCOMES, RECORDED, Provenance, as_features
from featlib.shards.staging import StagedItem
from featlib.storage import Store

Event = Callable[[str, str], None]
"""Called with the name of what has just happened and the key it happened to."""


@dataclass(frozen=True)
class ShardJob:
    """What to publish of one shard.

    Args:
        items: Every item of the shard, in feed order.
        staged: By label, the complete items to publish now; their visible rows give way.
        present: By label, the features objects of this shard that are listed; a listing may lag.
        pieces: Every piece that was staged of this shard, used or not; the commit makes all of them history.
    """

    shard: int
    items: Sequence[PlanItem]
    staged: Mapping[str, Mapping[str, StagedItem]]
    present: Mapping[str, Sequence[str]] = field(default_factory=dict)
    pieces: Sequence[str] = ()


def publish_shard(
    store: Store,
    keys: Keys,
    job: ShardJob,
    provenance: Mapping[str, Provenance],
    *,
    max_bytes: int,
    guard: Callable[[], None] = lambda: None,
    confirm: Callable[[], None] = lambda: None,
    on_event: Event = lambda name, key: None,
) -> dict[str, dict[str, list[Any]]]:
    """Makes the staged items of a shard visible for every label in ``job.staged``.

    Args:
        guard: Called before each features object is put; raises when this process may not put any more.
        confirm: The same before the outcomes: costs more, and is surer.

    Returns:
        By label, the columns ``RECORDED`` of the outcomes.

    Raises:
        DamagedPieceError: A staged piece is not what was staged; labels before this one may be published already.
        DamagedError: A features object is not what was committed, or is gone.
        FileNotFoundError: A staged piece is gone.
    """

    publish = _Publish(store, keys, job, provenance, max_bytes, guard, confirm, on_event, PieceReader(store))
    return {label: publish.label(label, staged) for label, staged in job.staged.items()}


@dataclass(frozen=True)
class _Publish:
    """What the labels of one shard have in common; as ``publish_shard``."""

    store: Store
    keys: Keys
    job: ShardJob
    provenance: Mapping[str, Provenance]
    max_bytes: int
    guard: Callable[[], None]
    confirm: Callable[[], None]
    on_event: Event
    pieces: PieceReader

    def label(self, label: str, all_staged: Mapping[str, StagedItem]) -> dict[str, list[Any]]:
        """Publishes one label; gives the columns ``RECORDED`` of its outcomes."""
        store, keys, shard = self.store, self.keys, self.job.shard
        committed = read_committed(store, keys, label, shard)
        doubt = read_doubt(store, keys, label, shard, committed)
        staged = {m: s for m, s in all_staged.items() if m in doubt or not committed.has(s, m)}
        if not staged:
            return dict(committed.outcomes.select(RECORDED).to_pydict())
        put = self._put_rows(label, committed, doubt, staged)
        outcomes = _outcome_table(self.job.items, committed.outcomes, put.doubt, staged, label, put.counts)
        used = committed.used.union(key for item in staged.values() for key, _ in item.pieces.values())
        pieces = committed.pieces.union(used, self.job.pieces)
        self.confirm()
        stands = Committed(outcomes, put.hashes, committed.rounds + 1, pieces, used)
        put_committed(store, keys, label, shard, stands, self.provenance[label])
        self.on_event("outcomes_put", label)
        if put.is_told:
            self.confirm()
            store.delete([keys.doubt(label, shard)])
        return dict(outcomes.select(RECORDED).to_pydict())

    def _put_rows(
        self, label: str, committed: Committed, doubt: frozenset[str], staged: Mapping[str, StagedItem]
    ) -> "_PutRows":
        """Puts the features objects; before the first of them, whose outcomes that puts in doubt."""
        job, folder, counts = self.job, self.keys.features(label), dict[str, int]()
        present = _present(self.store, folder, job.shard, job.present.get(label, ()), committed)
        visible = _Visible.read(self.store, present, committed, staged, doubt)
        again = visible.doubt | (committed.media_ids & staged.keys())
        hashes = dict(visible.hashes)

        def rows_of(media_id: str) -> pa.Table:
            return _rows_of(self.pieces, label, media_id, staged.get(media_id))

        with TemporaryDirectory(prefix="featlib-") as temporary:
            writer = PartWriter(Path(temporary), self.provenance[label].footer(), self.max_bytes)
            _write_new_rows(self.pieces, job.items, label, staged, visible.homes, writer, counts)
            files = writer.close()
            if again != doubt:
                self.guard()
                write_doubt(self.store, self.keys, label, job.shard, committed, again)
            of, path = self.provenance[label], Path(temporary)
            _put_replacements(self.store, visible.homes, rows_of, of, job.items, path, hashes, self._put)
            for file, part in zip(files, new_names(job.shard, committed.rounds, list(visible.hashes)), strict=False):
                hashes[str(part)] = self._put(f"{folder}/{part}", file)
        return _PutRows(hashes, counts, visible.doubt, is_told=bool(again))

    def _put(self, key: str, path: Path) -> str:
        """Gives the SHA-256 of what was put."""
        self.guard()
        sha256 = put_file(self.store, key, path)
        self.on_event("features_put", key)
        return sha256


@dataclass(frozen=True)
class _PutRows:
    """What stands once the features objects of a label are put.

    Args:
        hashes: SHA-256 of each object, by the last component of its key.
        counts: Rows by media id, of the staged items.
        doubt: As ``_Visible``.
        is_told: It is written down whose outcomes are in doubt.
    """

    hashes: Mapping[str, str]
    counts: Mapping[str, int]
    doubt: frozenset[str]
    is_told: bool


def _present(store: Store, folder: str, shard: int, listed: Sequence[str], committed: Committed) -> list[str]:
    """The features objects of a shard. Those of its commit, and of a publish that was cut behind it, are asked for by
    key: listings of some stores lag, and rows of an object that is not seen would be there twice."""
    found = {*listed, *(f"{folder}/{name}" for name in committed.hashes)}
    for part in new_names(shard, committed.rounds, sorted(found)):
        if store.stat(key := f"{folder}/{part}") is None:
            break
        found.add(key)
    return sorted(found, key=_part_order)


def _part_order(key: str) -> PartName:
    return PartName.parse(key) or PartName(0)


@dataclass(frozen=True)
class _Visible:
    """What a reader finds of a shard.

    Args:
        homes: By media id, the objects with rows that give way: all of an item that is staged, and of any other those
            without an outcome, or in objects that no outcomes object mentions. A publish was cut behind these; they may
            be of media, or of pieces, that have been replaced since, or of items that are no longer asked for.
        hashes: SHA-256 of each object as it is now, by the last component of its key: a publish that was cut behind a
            replacement left other bytes than those that are committed.
        doubt: Items whose outcomes speak of other rows. Those that are not staged lose their rows, and with them
            outcomes that say that there are any; they are done anew. It is all of the shard where an object is not the
            committed one and nothing says of which items.
    """

    homes: Mapping[str, Sequence[str]]
    hashes: Mapping[str, str]
    doubt: frozenset[str]

    @classmethod
    def read(
        cls,
        store: Store,
        present: Sequence[str],
        committed: Committed,
        staged: Collection[str],
        doubt: frozenset[str] = frozenset(),
    ) -> "_Visible":
        """Of the objects ``present``; one that is listed, but neither there nor committed, was dropped.

        Args:
            doubt: Items that are known to be.
        """
        hashes: dict[str, str] = {}
        found: dict[str, list[str]] = {}
        for key in present:
            name = key.rpartition("/")[2]
            try:
                hashes[name], found[key] = _read_ids(store, key)
            except FileNotFoundError:
                if name in committed.hashes:
                    raise DamagedError(key, "is gone, and an outcomes object names it") from None
        if not doubt and any(hashes.get(name) != sha256 for name, sha256 in committed.hashes.items()):
            doubt = committed.media_ids
        homes: dict[str, list[str]] = {}
        for key, media_ids in found.items():
            standing = committed.media_ids - doubt if key.rpartition("/")[2] in committed.hashes else frozenset()
            for media_id in media_ids:
                if media_id in staged or media_id not in standing:
                    homes.setdefault(media_id, []).append(key)
        return cls(homes, hashes, doubt)


def _read_ids(store: Store, key: str) -> tuple[str, list[str]]:
    """The SHA-256 of a features object, and the items that have rows in it."""

    def read() -> tuple[str, list[str]]:
        with open_sealed(store, key) as file:
            sha256 = hashlib.file_digest(cast(io.BufferedReader, file), "sha256").hexdigest()
            file.seek(0)
            batches = pq.ParquetFile(file, page_checksum_verification=True).iter_batches(columns=["media_id"])
            ids = dict.fromkeys(media_id for rows in batches for media_id in pc.unique(rows["media_id"]).to_pylist())
            return sha256, list(ids)

    return reread(key, read)


def _write_new_rows(
    pieces: PieceReader,
    items: Sequence[PlanItem],
    label: str,
    staged_items: Mapping[str, StagedItem],
    homes: Mapping[str, Sequence[str]],
    writer: PartWriter,
    counts: dict[str, int],
) -> None:
    """Sends rows of items that have no home to ``writer``, and counts those of all."""
    joined = Joined(writer)
    for item in items:
        staged = staged_items.get(item.media_id)
        if staged is None:
            continue
        spans = [pieces.span(staged.pieces[k][0], label, item.media_id) for k in range(staged.n)]
        if len(spans) == 1 and spans[0].piece.is_in_order and item.media_id not in homes:
            counts[item.media_id] = spans[0].end - spans[0].start
            joined.write(spans[0])
            continue
        joined.flush()
        rows = unique_rows(pa.concat_tables(span.table for span in spans))
        counts[item.media_id] = rows.num_rows
        if item.media_id not in homes:
            writer.write(rows, spans[0].bytes_a_row)
    joined.flush()


def _rows_of(pieces: PieceReader, label: str, media_id: str, staged: StagedItem | None) -> pa.Table:
    """All rows of an item; none of one that is not staged."""
    if staged is None:
        return FEATURES.empty_table()
    return unique_rows(
        pa.concat_tables(pieces.span(staged.pieces[k][0], label, media_id).table for k in range(staged.n))
    )


def _put_replacements(
    store: Store,
    homes: Mapping[str, Sequence[str]],
    rows_of: Callable[[str], pa.Table],
    provenance: Provenance,
    items: Sequence[PlanItem],
    folder: Path,
    hashes: dict[str, str],
    put: Callable[[str, Path], str],
) -> None:
    """Rewrites objects whose items changed: an item's first home gets all its rows, and the others none. The later
    ones go first, so no key is ever there twice. One object is in memory at a time.

    Args:
        rows_of: Gives the new rows of an item.
    """
    order = pa.array([item.media_id for item in items])
    leaving, coming = dict[str, list[str]](), dict[str, list[str]]()
    for media_id, keys in homes.items():
        coming.setdefault(keys[0], []).append(media_id)
        for key in keys:
            leaving.setdefault(key, []).append(media_id)
    for key in sorted(leaving, key=_part_order, reverse=True):
        old = as_features(_read_whole(store, key, hashes[key.rpartition("/")[2]]))
        kept = old.filter(pc.invert(pc.is_in(old["media_id"], pa.array(leaving[key]))))
        rows = pa.concat_tables([kept, *map(rows_of, coming.get(key, ()))])
        place = pc.index_in(rows["media_id"], order)
        rows = rows.append_column("place", place).sort_by([("place", "ascending"), ("clip_index", "ascending")])
        rows = rows.drop_columns(["place"])
        if rows.equals(old):  # a publish that was cut is repeated, or what was done anew came out the same
            continue
        path = folder / "replacement"
        write_whole(rows, provenance, path)
        hashes[key.rpartition("/")[2]] = put(key, path)


def _read_whole(store: Store, key: str, sha256: str | None) -> pa.Table:
    """All rows of a features object that is about to be replaced; rows of a damaged one would be published anew.

    Args:
        sha256: With which it was committed. Where a publish was cut behind its replacement, its own seal tells.
    """
    data = store.get(key)
    if hashlib.sha256(data).hexdigest() != sha256:
        check_seal(data, key)
    return pq.read_table(io.BytesIO(data))


def _outcome_table(
    items: Sequence[PlanItem],
    before: pa.Table,
    doubt: Collection[str],
    staged: Mapping[str, StagedItem],
    label: str,
    counts: Mapping[str, int],
) -> pa.Table:
    old = {row["media_id"]: row for row in before.to_pylist()}
    rows = []
    for item in items:
        if item.media_id in staged:
            earlier = old.get(item.media_id, {}).get("attempts") or 0
            rows.append(_outcome(item, staged[item.media_id].reports, label, counts[item.media_id], earlier))
        elif item.media_id in old and not (item.media_id in doubt and old[item.media_id]["num_rows"]):
            rows.append(old[item.media_id])
    return pa.Table.from_pylist(rows, schema=OUTCOMES)


def _outcome(
    item: PlanItem, reports: Sequence[ItemReport], label: str, num_rows: int, attempts_before: int
) -> dict[str, Any]:
    model = merge_models([r.models[label] for r in reports])
    facts = merge_facts([r.facts for r in reports])
    return {
        "media_id": item.media_id,
        "uri": item.uri,
        "status": model.status,
        "error_class": model.error_class,
        "error_message": model.error_message,
        "retryable": model.retryable,
        "attempts": attempts_before + max(r.attempts for r in reports),
        "num_rows": num_rows,
        "duration_s": facts.duration_s,
        "width": facts.width,
        "height": facts.height,
        "codec": facts.codec,
        "frames_decoded": facts.frames_decoded,
        "decode_s": facts.decode_s,
        "size": facts.size,
        "etag": facts.etag,
        "label": item.label,
        "split": item.split,
        "manifest": item.manifest,
    }
