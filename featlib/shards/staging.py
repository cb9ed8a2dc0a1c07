"""Staged pieces: one object a work unit, whole, with what became of its items inside; it commits itself.

A piece is an Arrow IPC stream. Its schema's metadata holds the item reports, so that a resume reads only the first
bytes; its name ends in the SHA-256 of the whole, so that a damaged piece is never taken for a good one.
"""

import hashlib
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.ipc

from featlib.errors import DamagedError
from featlib.items import ItemReport
from featlib.layout import Keys
from featlib.sealed import told_as_damage
from featlib.shards.schema import FEATURES, to_json
from featlib.spec import Status
from featlib.storage import Store

PIECE = FEATURES.insert(0, pa.field("model", pa.string(), nullable=False))
_SUFFIX = ".piece"
_READERS = 16
_PIECES_AT_ONCE = 256
_HEAD = ("reports", "fingerprints", "rounds")
_BADNESS: Mapping[Status, int] = {"partial": 1, "failed": 2}
_NO_SOURCE: tuple[int | None, str | None] = (None, None)


@dataclass(frozen=True)
class Piece:
    """A staged object and the reports in it.

    Args:
        fingerprints: By label, of the models whose rows are inside.
        rounds: By label, how often the shard had been committed when the piece was asked for; empty when not known.
    """

    key: str
    fingerprints: Mapping[str, str]
    reports: tuple[ItemReport, ...]
    rounds: Mapping[str, int] = field(default_factory=dict)


def feature_rows(
    label: str,
    media_ids: Sequence[str],
    uris: Sequence[str],
    clips: pa.StructArray,
    features: npt.NDArray[np.float32],
    shape: Sequence[int],
    extra: Mapping[str, pa.Array] | None = None,
) -> pa.Table:
    """Rows of one model in one unit (schema ``PIECE``).

    Args:
        media_ids: Of the unit's items; ``clips`` names items by their place here.
        clips: As in ``featlib.unit.CLIPS``.
        features: float32 (num_clips, prod(shape)).
        shape: Of one feature; empty for rows without one.
        extra: Further columns of ``FEATURES`` by name, each (num_clips,); those not named, or without a value, are
            null, ``region_index`` 0.
    """
    n = len(clips)
    width = int(features.shape[1]) if n else 0
    values = pa.array(np.ascontiguousarray(features, dtype=np.float32).reshape(-1), pa.float32())
    offsets = pa.array(np.arange(n + 1, dtype=np.int64) * width).cast(pa.int32())
    item = clips.field("item")
    columns: dict[str, pa.Array] = {
        "model": pa.array([label] * n, pa.string()),
        "media_id": pa.array(media_ids, pa.string()).take(item),
        "uri": pa.array(uris, pa.string()).take(item),
        "region_index": pa.array(np.zeros(n, dtype=np.int32)),
    }
    if len(shape):
        columns["feature"] = pa.ListArray.from_arrays(offsets, values)
        columns["feature_shape"] = pa.array([list(shape)] * n, pa.list_(pa.int32()))
    for name in ("clip_index", "start_s", "end_s", "frame_s", "padded_frames"):
        columns[name] = clips.field(name)
    columns |= {name: column for name, column in (extra or {}).items() if column.null_count < n}
    return pa.table([columns.get(f.name, pa.nulls(n, f.type)) for f in PIECE], schema=PIECE)


def stage(
    store: Store,
    keys: Keys,
    *,
    shard: int,
    unit: str,
    rows: Iterable[pa.Table],
    reports: Sequence[ItemReport],
    fingerprints: Mapping[str, str],
    rounds: Mapping[str, int] | None = None,
) -> str:
    """Puts one piece, whole; gives its key.

    Args:
        rounds: By label, how often the shard has been committed. A piece of an older round that no commit names came
            late, from a driver that slept while another published, and is not what the next round asked for.
    """
    metadata = {"reports": to_json([r.to_dict() for r in reports]), "fingerprints": to_json(fingerprints)}
    if rounds is not None:
        metadata["rounds"] = to_json(rounds)
    metadata["sha256"] = _head_sha256(metadata[name].encode() for name in _HEAD if name in metadata)
    schema = PIECE.with_metadata(metadata)
    buffer = io.BytesIO()
    with pa.ipc.new_stream(buffer, schema) as writer:
        for table in rows:
            writer.write_table(table.replace_schema_metadata(metadata))
    data = buffer.getbuffer()
    digest = hashlib.sha256(data).hexdigest()
    key = f"{keys.stage_shard(shard)}/{unit}-{digest}{_SUFFIX}"
    store.put(key, data)
    return key


def rounds_of(rounds: Mapping[str, Mapping[int, int]], shard: int) -> dict[str, int]:
    """Of ``Backlog.rounds``, those of a shard, by label."""
    return {label: numbers.get(shard, 0) for label, numbers in rounds.items()}


def piece_keys(store: Store, keys: Keys, shard: int | None = None) -> dict[int, list[str]]:
    """Keys of everything that is staged, by shard; of one shard when given."""
    found: dict[int, list[str]] = {}
    for info in store.list(keys.stage if shard is None else keys.stage_shard(shard)):
        if info.key.endswith(_SUFFIX):
            found.setdefault(_shard_of(info.key), []).append(info.key)
    return found


def read_heads(store: Store, keys: Sequence[str]) -> list[Piece]:
    """What is in the pieces ``keys``, their rows left alone; one that cannot be read counts as not staged."""
    if not keys:
        return []
    with ThreadPoolExecutor(min(_READERS, len(keys))) as pool:
        heads = pool.map(lambda key: _read_head(store, key), keys)
        return [piece for piece in heads if piece is not None]


def read_shards(store: Store, keys: Mapping[int, Sequence[str]]) -> Iterator[tuple[int, list[Piece]]]:
    """What is in pieces, shard by shard in the order of ``keys``; a few hundred pieces are in memory at a time.

    Args:
        keys: By shard, from ``piece_keys``.
    """
    waiting: list[int] = []
    for number in [*keys, None]:
        if waiting and (number is None or sum(len(keys[w]) for w in waiting) >= _PIECES_AT_ONCE):
            found = _by_shard(read_heads(store, [key for w in waiting for key in keys[w]]))
            yield from ((w, found.get(w, [])) for w in waiting)
            waiting = []
        waiting += [] if number is None else [number]


def list_pieces(store: Store, keys: Keys, shard: int | None = None) -> dict[int, list[Piece]]:
    """All readable pieces at once, by shard; of one shard when given."""
    return _by_shard(read_heads(store, [key for mine in piece_keys(store, keys, shard).values() for key in mine]))


def _by_shard(pieces: Iterable[Piece]) -> dict[int, list[Piece]]:
    found: dict[int, list[Piece]] = {}
    for piece in pieces:
        found.setdefault(_shard_of(piece.key), []).append(piece)
    return found


def _shard_of(key: str) -> int:
    return int(key.split("/")[-2])


def _read_head(store: Store, key: str) -> Piece | None:
    # A bit may be flipped on the way, and what is not staged is done again.
    return _head_as_read(store, key) or _head_as_read(store, key)


def _head_as_read(store: Store, key: str) -> Piece | None:
    try:
        with told_as_damage(key), store.open(key) as file:
            metadata = pa.ipc.open_stream(file).schema.metadata or {}
            head = [metadata[name.encode()] for name in _HEAD if name.encode() in metadata]
            if metadata[b"sha256"].decode() != _head_sha256(head):
                return None
        reports = tuple(ItemReport.from_dict(r) for r in json.loads(metadata[b"reports"]))
        rounds = json.loads(metadata.get(b"rounds", b"{}"))
        return Piece(key, json.loads(metadata[b"fingerprints"]), reports, rounds)
    except (DamagedError, FileNotFoundError):
        return None


def _head_sha256(values: Iterable[bytes]) -> str:
    return hashlib.sha256(b"\n".join(values)).hexdigest()


def read_piece(store: Store, key: str) -> pa.Table | None:
    """The rows of a piece (schema ``PIECE``); None when its bytes are not those that were staged."""
    try:
        data = store.get(key)
    except DamagedError:
        return None
    if hashlib.sha256(data).hexdigest() != key.removesuffix(_SUFFIX).rpartition("-")[2]:
        return None
    return pa.ipc.open_stream(data).read_all()


@dataclass(frozen=True)
class StagedItem:
    """The pieces of one item that belong together: the same number of segments, cut alike, of the same source.

    Args:
        pieces: Key of the piece and the report in it, by k.
    """

    n: int
    pieces: Mapping[int, tuple[str, ItemReport]]

    @property
    def by(self) -> str:
        """Which index its segments were cut by."""
        return next(iter(self.pieces.values()))[1].segment.by

    @property
    def missing(self) -> tuple[int, ...]:
        return tuple(k for k in range(self.n) if k not in self.pieces)

    @property
    def complete(self) -> bool:
        return not self.missing

    @property
    def reports(self) -> tuple[ItemReport, ...]:
        return tuple(self.pieces[k][1] for k in sorted(self.pieces))


def staged_items(pieces: Iterable[Piece], wanted: Mapping[str, str]) -> dict[str, StagedItem]:
    """By media id, what is staged of each item for all models in ``wanted`` (label to fingerprint).

    A piece counts only when it was made with every wanted fingerprint. Of several sets (the source changed, or the
    segments did) a complete one wins over an incomplete one of the same source, and the newest source wins.
    A segment whose worker died never learned its source; it completes the set that its neighbours began.
    Of several reports of one segment and source the best stands, and of equals the newest.
    """
    groups: dict[str, dict[_Set, dict[int, tuple[str, ItemReport]]]] = {}
    for piece in sorted(pieces, key=lambda p: p.key):
        if any(piece.fingerprints.get(label) != print_ for label, print_ in wanted.items()):
            continue
        for report in piece.reports:
            if all(label in report.models for label in wanted):
                cut = report.segment.n, report.segment.by
                group = groups.setdefault(report.media_id, {}).setdefault((cut, report.source), {})
                k = report.segment.k
                if k not in group or _merit(report, wanted) > _merit(group[k][1], wanted):
                    group[k] = piece.key, report
    return {media_id: _newest(_adopted(sets)) for media_id, sets in groups.items()}


def _merit(report: ItemReport, labels: Iterable[str]) -> tuple[int, float]:
    """Which of two reports of one source stands; where the source is not known, what the older one read may differ."""
    known = report.source != _NO_SOURCE
    return -sum(_BADNESS.get(report.models[label].status, 0) for label in labels) if known else 0, report.created


_Pieces = Mapping[int, tuple[str, ItemReport]]
_Set = tuple[tuple[int, str], tuple[int | None, str | None]]
"""How an item was cut (into how many segments, by which index), and its source."""


def _adopted(sets: Mapping[_Set, _Pieces]) -> dict[_Set, _Pieces]:
    """The sets, with the segments of unknown source as part of every set that was cut alike.

    Of an item that is whole in one piece there is nothing to complete: the newer report stands.
    """
    orphans = {cut: pieces for (cut, source), pieces in sets.items() if source == _NO_SOURCE}
    known = {group: pieces for group, pieces in sets.items() if group[1] != _NO_SOURCE}
    cuts = {cut for cut, _ in known}
    adopted = {(cut, _NO_SOURCE): pieces for cut, pieces in orphans.items() if cut not in cuts or cut[0] == 1}
    for (cut, source), pieces in known.items():
        adopted[cut, source] = pieces if cut[0] == 1 else {**orphans.get(cut, {}), **pieces}
    return adopted


def _newest(sets: Mapping[_Set, _Pieces]) -> StagedItem:
    def rank(entry: tuple[_Set, _Pieces]) -> tuple[float, bool, int]:
        (_, source), pieces = entry
        newest = max(r.created for group in sets.values() for _, r in group.values() if r.source == source)
        item = StagedItem(next(iter(pieces.values()))[1].segment.n, pieces)
        return newest, item.complete, len(pieces)

    _, best = max(sets.items(), key=rank)
    return StagedItem(next(iter(best.values()))[1].segment.n, best)
