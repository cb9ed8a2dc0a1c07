"""Publishing: the staged pieces of a complete shard become whole objects under final names.

The order is the promise. Features first, each object put once, whole; outcomes second: they are the commit and hold
the sha256 of every features object; the pieces go last. A row whose key is already visible is never written again,
so a publish that was cut anywhere can be repeated. Only the driver process calls this.
"""

import hashlib
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from featlib.items import ItemReport, PlanItem, merge_facts, merge_models
from featlib.layout import Keys, PartName
from featlib.sealed import check_seal, open_sealed, reread
from featlib.shards.commit import Committed, put_committed, read_committed
from featlib.shards.parts import Joined, PartWriter, new_names, put_file, write_whole
from featlib.shards.pieces import PieceReader, unique_rows
from featlib.shards.schema import FEATURES, KEY, OUTCOMES, Provenance, as_features
from featlib.shards.staging import StagedItem
from featlib.storage import Store

RowKey = tuple[str, int, int]
"""media_id, clip_index and region_index."""

Event = Callable[[str, str], None]
"""Called with the name of what has just happened and the key it happened to."""


@dataclass(frozen=True)
class ShardJob:
    """What to publish of one shard.

    Args:
        items: Every item of the shard, in feed order.
        staged: By label, the complete items to publish now.
        present: By label, the features objects of this shard that are already there.
        replaced: Items whose visible rows give way to the staged ones (their source changed).
        pieces: Every piece that was staged of this shard, used or not; the commit makes all of them history.
    """

    shard: int
    items: Sequence[PlanItem]
    staged: Mapping[str, Mapping[str, StagedItem]]
    present: Mapping[str, Sequence[str]] = field(default_factory=dict)
    replaced: frozenset[str] = frozenset()
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
    """Makes the staged items of a shard visible for every label in ``job.staged``; gives the outcomes by label.

    Args:
        guard: Called before each features object is put; raises when this process may not put any more.
        confirm: The same before the outcomes: costs more, and is surer.

    Raises:
        DamagedPieceError: A staged piece is not what was staged; labels before this one may be published already.
    """

    def put(key: str, path: Path) -> str:
        guard()
        sha256 = put_file(store, key, path)
        on_event("features_put", key)
        return sha256

    published: dict[str, dict[str, list[Any]]] = {}
    pieces = PieceReader(store)
    for label, all_staged in job.staged.items():
        committed = read_committed(store, keys, label, job.shard)
        staged = {m: s for m, s in all_staged.items() if not committed.has(s, m)}
        if not staged:
            published[label] = committed.outcomes.to_pydict()
            continue
        present = sorted(job.present.get(label, ()), key=lambda k: PartName.parse(k) or PartName(0))
        counts: dict[str, int] = {}
        with TemporaryDirectory(prefix="featlib-") as folder:
            writer = PartWriter(Path(folder), provenance[label].footer(), max_bytes)
            visible = _Visible.read(store, present, committed)
            hashes = {**committed.hashes, **visible.hashes}
            replacements = _write_new_rows(pieces, job, label, staged, visible, writer, counts)
            files = writer.close()
            _put_replacements(store, replacements, provenance[label], job.items, Path(folder), hashes, put)
            for path, part in zip(files, new_names(job.shard, committed.rounds, present), strict=False):
                key = f"{keys.features(label)}/{part}"
                hashes[str(part)] = put(key, path)
                present.append(key)
        outcomes = _outcome_table(job.items, committed.outcomes, staged, label, counts)
        used = {key for item in staged.values() for key, _ in item.pieces.values()}
        stands = Committed(outcomes, hashes, committed.rounds + 1, committed.pieces.union(used, job.pieces))
        confirm()
        put_committed(store, keys, label, job.shard, stands, provenance[label])
        on_event("outcomes_put", label)
        published[label] = outcomes.to_pydict()
    return published


@dataclass(frozen=True)
class _Visible:
    """The keys of rows that a reader finds, and the object of each.

    Args:
        standing: With an outcome, in objects that an outcomes object mentions.
        loose: All others: a publish was cut behind them. They may be of media, or of pieces, that have been replaced
            since, or of items that are no longer asked for; they give way to what is staged now, or to nothing.
        hashes: SHA-256 of each object as it is now, by the last component of its key: a publish that was cut behind a
            replacement left other bytes than those that are committed.
    """

    standing: Mapping[RowKey, str]
    loose: Mapping[RowKey, str]
    hashes: Mapping[str, str]

    @classmethod
    def read(cls, store: Store, present: Sequence[str], committed: Committed) -> "_Visible":
        """Of the objects ``present``."""
        standing: dict[RowKey, str] = {}
        loose: dict[RowKey, str] = {}
        hashes: dict[str, str] = {}
        for key in present:
            name = key.rpartition("/")[2]
            hashes[name], rows = _read_keys(store, key)
            for row in rows:
                is_standing = name in committed.hashes and row[0] in committed.media_ids
                (standing if is_standing else loose)[row] = key
        return cls(standing, loose, hashes)

    def __bool__(self) -> bool:
        return bool(self.standing or self.loose)


def _write_new_rows(
    pieces: PieceReader,
    job: ShardJob,
    label: str,
    staged_items: Mapping[str, StagedItem],
    visible: _Visible,
    writer: PartWriter,
    counts: dict[str, int],
) -> dict[str, dict[str, pa.Table]]:
    """Sends rows that are not visible yet to ``writer``; gives those that replace visible rows, by object and item."""
    moved = job.replaced & staged_items.keys()
    homes = {m: keys_ for m, keys_ in _homes({**visible.standing, **visible.loose}).items() if m in moved}
    loose = _homes(visible.loose)
    homes |= {m: keys_ for m, keys_ in loose.items() if m in staged_items and m not in moved}
    replacements: dict[str, dict[str, pa.Table]] = {key: {} for keys_ in homes.values() for key in keys_}
    for media_id in loose.keys() - staged_items.keys():
        for key in loose[media_id]:
            replacements.setdefault(key, {})[media_id] = FEATURES.empty_table()
    joined = Joined(writer)
    for item in job.items:
        staged = staged_items.get(item.media_id)
        if staged is None:
            continue
        spans = [pieces.span(staged.pieces[k][0], label, item.media_id) for k in range(staged.n)]
        if len(spans) == 1 and spans[0].piece.is_in_order and not visible:
            counts[item.media_id] = spans[0].end - spans[0].start
            joined.write(spans[0])
            continue
        joined.flush()
        rows = unique_rows(pa.concat_tables(span.table for span in spans))
        counts[item.media_id] = rows.num_rows
        if item.media_id in homes:
            first, *others = homes[item.media_id]
            replacements[first][item.media_id] = rows if item.media_id in moved else _without(rows, visible.standing)
            for key in others:
                replacements[key][item.media_id] = rows.slice(0, 0)
        else:
            writer.write(_without(rows, visible.standing), spans[0].bytes_a_row)
    joined.flush()
    return replacements


def _read_keys(store: Store, key: str) -> tuple[str, Iterator[RowKey]]:
    """The SHA-256 of a features object, and the keys of its rows."""

    def read() -> tuple[str, pa.Table]:
        with open_sealed(store, key) as file:
            sha256 = hashlib.file_digest(cast(io.BufferedReader, file), "sha256").hexdigest()
            file.seek(0)
            return sha256, pq.read_table(file, columns=list(KEY), page_checksum_verification=True)

    sha256, table = reread(key, read)
    return sha256, zip(*(table[name].to_pylist() for name in KEY), strict=True)


def _homes(visible: Mapping[RowKey, str]) -> dict[str, list[str]]:
    homes: dict[str, list[str]] = {}
    for (media_id, _, _), key in visible.items():
        known = homes.setdefault(media_id, [])
        if key not in known:
            known.append(key)
    return homes


def _without(rows: pa.Table, visible: Mapping[RowKey, str]) -> pa.Table:
    if not visible:
        return rows
    keys = zip(*(rows[name].to_pylist() for name in KEY), strict=True)
    return rows.filter(pa.array([key not in visible for key in keys], pa.bool_()))


def _put_replacements(
    store: Store,
    replacements: Mapping[str, Mapping[str, pa.Table]],
    provenance: Provenance,
    items: Sequence[PlanItem],
    folder: Path,
    hashes: dict[str, str],
    put: Callable[[str, Path], str],
) -> None:
    """Rewrites objects whose items changed; those that only lose rows go first, so no key is ever there twice."""
    order = pa.array([item.media_id for item in items])
    for key in sorted(replacements, key=lambda k: any(t.num_rows for t in replacements[k].values())):
        old = _read_whole(store, key, hashes.get(key.rpartition("/")[2]))
        kept = old.filter(pc.invert(pc.is_in(old["media_id"], pa.array(list(replacements[key])))))
        rows = pa.concat_tables([as_features(kept), *replacements[key].values()])
        place = pc.index_in(rows["media_id"], order)
        rows = rows.append_column("place", place).sort_by([("place", "ascending"), ("clip_index", "ascending")])
        path = folder / "replacement"
        write_whole(rows.drop_columns(["place"]), provenance, path)
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
        elif item.media_id in old:
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
