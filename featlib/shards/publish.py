"""Publishing: the staged pieces of a complete shard become whole objects under final names.

The order is the promise. Features first, each object put once, whole; outcomes second: they are the commit and hold
the sha256 of every features object; the pieces go last. A row whose key is already visible is never written again,
so a publish that was cut anywhere can be repeated. Only the driver process calls this.
"""

import hashlib
import io
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from featlib.items import ItemReport, PlanItem, merge_facts, merge_models
from featlib.layout import Keys, PartName
from featlib.sealed import check_seal, open_sealed, reread
from featlib.shards.commit import Committed, put_committed, read_committed
from featlib.shards.parts import Joined, PartWriter, new_names, put_file, write_whole
from featlib.shards.pieces import PieceReader, unique_rows
from featlib.shards.schema import KEY, OUTCOMES, Provenance, as_features
from featlib.shards.staging import StagedItem
from featlib.storage import Store

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
    on_event: Event = lambda name, key: None,
) -> dict[str, dict[str, list[Any]]]:
    """Makes the staged items of a shard visible for every label in ``job.staged``; gives the outcomes by label.

    Raises:
        DamagedPieceError: A staged piece is not what was staged; labels before this one may be published already.
    """
    published: dict[str, dict[str, list[Any]]] = {}
    pieces = PieceReader(store)
    for label, all_staged in job.staged.items():
        committed = read_committed(store, keys, label, job.shard)
        staged = {m: s for m, s in all_staged.items() if not committed.has(s, m)}
        if not staged:
            published[label] = committed.outcomes.to_pydict()
            continue
        present = sorted(job.present.get(label, ()), key=lambda k: PartName.parse(k) or PartName(0))
        hashes = dict(committed.hashes)
        counts: dict[str, int] = {}
        with TemporaryDirectory(prefix="featlib-") as folder:
            writer = PartWriter(Path(folder), provenance[label].footer(), max_bytes)
            cut = [key for key in present if key.rpartition("/")[2] not in committed.hashes]
            replacements = _write_new_rows(store, pieces, job, label, staged, present, cut, writer, counts)
            files = writer.close()
            for key in _put_replacements(store, replacements, provenance[label], job.items, Path(folder), hashes):
                on_event("features_put", key)
            for path, part in zip(files, new_names(job.shard, committed.rounds, present), strict=False):
                key = f"{keys.features(label)}/{part}"
                hashes[str(part)] = put_file(store, key, path)
                present.append(key)
                on_event("features_put", key)
        for key in present:
            if (name := key.rpartition("/")[2]) not in hashes:
                data = store.get(key)
                check_seal(data, key)
                hashes[name] = hashlib.sha256(data).hexdigest()
        outcomes = _outcome_table(job.items, committed.outcomes, staged, label, counts)
        used = {key for item in staged.values() for key, _ in item.pieces.values()}
        stands = Committed(outcomes, hashes, committed.rounds + 1, committed.pieces.union(used, job.pieces))
        put_committed(store, keys, label, job.shard, stands, provenance[label])
        on_event("outcomes_put", label)
        published[label] = outcomes.to_pydict()
    return published


def _write_new_rows(
    store: Store,
    pieces: PieceReader,
    job: ShardJob,
    label: str,
    staged_items: Mapping[str, StagedItem],
    present: Sequence[str],
    cut: Collection[str],
    writer: PartWriter,
    counts: dict[str, int],
) -> dict[str, dict[str, pa.Table]]:
    """Sends rows that are not visible yet to ``writer``; gives those that replace visible rows, by object and item.

    Args:
        cut: Objects that no outcomes mention: a publish was cut behind them. Their rows may be of media, or of
            pieces, that have been replaced since, and give way to what is staged now.
    """
    visible = _visible_keys(store, present)
    kept = {row: key for row, key in visible.items() if key not in cut}
    of_cut = {row: key for row, key in visible.items() if key in cut}
    moved = job.replaced & staged_items.keys()
    homes = {media_id: keys_ for media_id, keys_ in _homes(visible).items() if media_id in moved}
    homes |= {m: keys_ for m, keys_ in _homes(of_cut).items() if m in staged_items and m not in moved}
    replacements: dict[str, dict[str, pa.Table]] = {key: {} for keys_ in homes.values() for key in keys_}
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
            replacements[first][item.media_id] = rows if item.media_id in moved else _without(rows, kept)
            for key in others:
                replacements[key][item.media_id] = rows.slice(0, 0)
        else:
            writer.write(_without(rows, kept), spans[0].bytes_a_row)
    joined.flush()
    return replacements


def _visible_keys(store: Store, present: Sequence[str]) -> dict[tuple[str, int, int], str]:
    found: dict[tuple[str, int, int], str] = {}
    for key in present:
        table = reread(key, partial(_read_keys, store, key))
        columns = (table[name].to_pylist() for name in KEY)
        found.update(dict.fromkeys(zip(*columns, strict=True), key))
    return found


def _read_keys(store: Store, key: str) -> pa.Table:
    with open_sealed(store, key) as file:
        return pq.read_table(file, columns=list(KEY), page_checksum_verification=True)


def _homes(visible: Mapping[tuple[str, int, int], str]) -> dict[str, list[str]]:
    homes: dict[str, list[str]] = {}
    for (media_id, _, _), key in visible.items():
        known = homes.setdefault(media_id, [])
        if key not in known:
            known.append(key)
    return homes


def _without(rows: pa.Table, visible: Mapping[tuple[str, int, int], str]) -> pa.Table:
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
) -> Iterator[str]:
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
        hashes[key.rpartition("/")[2]] = put_file(store, key, path)
        yield key


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
