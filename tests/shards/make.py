"""Plans, staged pieces and resumed publishing, made by hand: everything that a run does but Ray."""

import hashlib
import io
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from featlib.backlog import Backlog
from featlib.drivers import Claim
from featlib.items import ItemReport, ModelReport
from featlib.layout import Keys
from featlib.ledger import Ledger
from featlib.manifest import SCHEMA
from featlib.plan import Plan, PlanItems, grow, read_plan
from featlib.publisher import Published, ShardPublisher, remove_history
from featlib.shards.commit import read_committed
from featlib.shards.publish import ShardJob, publish_shard
from featlib.shards.schema import Provenance
from featlib.shards.staging import feature_rows, list_pieces, stage, staged_items
from featlib.spec import MediaFacts, Segment, Status
from featlib.storage import Store
from featlib.storage.objects import DEFAULT_OPTIONS, ObjectInfo, StoreOptions
from featlib.unit import CLIPS
from featlib.work import Unit

KEYS = Keys("d")
SHAPES: dict[str, tuple[int, ...]] = {"a": (4,), "b": (2, 3)}
NO_LIMIT = 1 << 40
PART = f"{KEYS.features('a')}/part-00000.parquet"


class CrashError(BaseException):
    """The process is gone: nothing catches this."""


class CrashingStore(Store):
    """A store whose process dies before or after one of its changing calls.

    Args:
        at: Number of the call, from 0; None: never.
    """

    def __init__(self, url: str, options: StoreOptions = DEFAULT_OPTIONS, *, at: int | None, after: bool) -> None:
        super().__init__(url, options)
        self.calls: list[str] = []
        self._at, self._after = at, after

    def _begin(self, what: str) -> None:
        self.calls.append(what)
        if self._at == len(self.calls) - 1 and not self._after:
            raise CrashError(what)

    def _end(self) -> None:
        if self._at == len(self.calls) - 1 and self._after:
            raise CrashError(self.calls[-1])

    def put(self, key: str, data: bytes | memoryview) -> None:
        self._begin(f"put {key}")
        super().put(key, data)
        self._end()

    def put_file(self, key: str, path: str | os.PathLike[str]) -> None:
        self._begin(f"put_file {key}")
        super().put_file(key, path)
        self._end()

    def delete(self, keys: Iterable[str]) -> None:
        """Dies also between two of the objects."""
        for key in keys:
            self._begin(f"delete {key}")
            super().delete([key])
            self._end()


class LaggingStore(Store):
    """A store whose listings lag behind what was put and deleted, as those of Swift do; each key is answered at once.

    Args:
        unseen: Prefixes of keys that are not listed.
        gone: Keys that are listed though they are deleted.
    """

    unseen: tuple[str, ...] = ()
    gone: tuple[str, ...] = ()

    def list(self, prefix: str) -> list[ObjectInfo]:
        late = [ObjectInfo(key, 1, 0.0, None) for key in self.gone if key.startswith(prefix)]
        return [info for info in super().list(prefix) if not info.key.startswith(self.unseen)] + late


class FreeClaim(Claim):
    """A claim that nobody contests."""

    def check(self) -> None:
        return None

    def guard(self) -> None:
        return None


def batch(rows: Iterable[Mapping[str, object]]) -> pa.RecordBatch:
    """Rows of a manifest as ``read_manifest`` gives them; what is not named is null."""
    full = [{"row": i, "source": "list.csv", "uri": f"/v/{r['media_id']}.mp4", **r} for i, r in enumerate(rows)]
    return pa.RecordBatch.from_pylist([{n: r.get(n) for n in SCHEMA.names} for r in full], schema=SCHEMA)


def planned(store: Store, ids: Sequence[str], shard_items: int = 100) -> Plan:
    """The dataset's plan with ``ids`` added."""
    return grow(store, KEYS, read_plan(store, KEYS), [batch({"media_id": i} for i in ids)], shard_items)[0]


def provenance(labels: Iterable[str]) -> dict[str, Provenance]:
    return {label: Provenance("d", label, f"print-{label}", {"network": label}, {"torch": "0"}) for label in labels}


def value(label: str, media_id: str, clip: int, version: str = "") -> list[float]:
    """The feature of a clip: numbers that depend on all that is named."""
    seed = hashlib.sha256(f"{label}/{media_id}/{clip}/{version}".encode()).digest()
    return [float(np.float32(b) / 7) for b in seed[: int(np.prod(SHAPES[label]))]]


@dataclass(frozen=True)
class Item:
    """What is staged of an item, or of segment ``k`` of ``n`` of it.

    Args:
        etag: Version of the source; decides the values too.
        status: By label, of models that are not ``ok``.
    """

    media_id: str
    clips: Sequence[int] = (0, 1, 2)
    k: int = 0
    n: int = 1
    etag: str | None = "e0"
    created: float = 1.0
    attempts: int = 1
    status: Mapping[str, Status] = field(default_factory=dict)

    def report(self, labels: Iterable[str]) -> ItemReport:
        models = {}
        for label in labels:
            status = self.status.get(label, "ok")
            reason = None if status == "ok" else "timeout"
            models[label] = ModelReport(status, len(self._clips(label)), reason, reason, status == "failed")
        size = None if self.etag is None else 10
        facts = MediaFacts(1.0, 8, 6, "h264", size, self.etag, len(self.clips), 0, 0.5)
        where = Segment(self.k, self.n)
        return ItemReport(self.media_id, f"/v/{self.media_id}.mp4", where, facts, self.attempts, self.created, models)

    def _clips(self, label: str) -> Sequence[int]:
        return () if self.status.get(label) in ("failed", "skipped") else self.clips

    def rows(self, label: str) -> pa.Table:
        clips = [
            {"item": 0, "clip_index": c, "start_s": c / 2, "end_s": (c + 1) / 2, "frame_s": [c / 2], "padded_frames": 0}
            for c in self._clips(label)
        ]
        values = [value(label, self.media_id, c, self.etag or "") for c in self._clips(label)]
        features = np.array(values, np.float32).reshape(len(clips), int(np.prod(SHAPES[label])))
        array = pa.array(clips, CLIPS.value_type)
        return feature_rows(label, [self.media_id], [f"/v/{self.media_id}.mp4"], array, features, SHAPES[label])


def staged(
    store: Store,
    unit: str,
    items: Sequence[Item],
    labels: Sequence[str] = ("a",),
    shard: int = 0,
    rounds: Mapping[str, int] | None = None,
) -> str:
    """Stages a unit; gives the key of its piece.

    Args:
        rounds: By label, of the shard when the unit was asked for; None: now; empty: as before pieces told of it.
    """
    if rounds is None:
        rounds = {label: read_committed(store, KEYS, label, shard).rounds for label in labels}
    tables = [item.rows(label) for label in labels for item in items]
    return stage(
        store,
        KEYS,
        shard=shard,
        unit=unit,
        rows=[t for t in tables if t.num_rows],
        reports=[item.report(labels) for item in items],
        fingerprints={label: f"print-{label}" for label in labels},
        rounds=rounds or None,
    )


def publisher(
    store: Store,
    labels: Sequence[str] = ("a",),
    *,
    retry_failed: bool = False,
    etags: Mapping[str, str] | None = None,
    max_bytes: int = NO_LIMIT,
) -> ShardPublisher:
    """The publisher of a new process, as a job makes it.

    Args:
        etags: As with ``--changed``: what the sources are now, by media id.
    """
    remove_history(store, KEYS, labels)
    plan = read_plan(store, KEYS)
    ledger = Ledger(plan, labels)
    ledger.load(store, KEYS)
    needs = {label: ~ledger.done(label, retry_failed=retry_failed) for label in labels}
    replaced = set(_changed(store, labels, etags or {}))
    items = PlanItems(store, plan)
    for row, item in enumerate(i for s in sorted(set(plan.shards.tolist())) for i in items.shard(s)):
        for label in labels:
            needs[label][row] |= item.media_id in replaced
    backlog = Backlog(plan, needs, {label: p.fingerprint for label, p in provenance(labels).items()})
    return ShardPublisher(
        store,
        KEYS,
        items,
        backlog,
        provenance(labels),
        max_bytes,
        FreeClaim(store, KEYS),
        lambda name, key: None,
    )


def _changed(store: Store, labels: Sequence[str], etags: Mapping[str, str]) -> Iterator[str]:
    for label in labels:
        for row in read_committed(store, KEYS, label, 0).outcomes.to_pylist():
            if row["media_id"] in etags and row["etag"] != etags[row["media_id"]]:
                yield row["media_id"]


def publish(
    store: Store,
    labels: Sequence[str] = ("a",),
    *,
    retry_failed: bool = False,
    etags: Mapping[str, str] | None = None,
    max_bytes: int = NO_LIMIT,
) -> Published | None:
    """One process publishes shard 0, if anything of it is open."""
    made = publisher(store, labels, retry_failed=retry_failed, etags=etags, max_bytes=max_bytes)
    units(made)
    return made.publish(0) if made.backlog.num_items else None


def units(made: ShardPublisher) -> list[Unit]:
    """What a new process asks workers for."""
    return list(made.backlog.units(made.store, KEYS, made.items, unit_items=8))


Rows = dict[str, dict[str, dict[int, list[float]]]]
"""Features by label, media id and clip."""


def visible(store: Store) -> Rows:
    """What a reader with a plain glob sees.

    Raises:
        AssertionError: A row is there twice.
    """
    seen: Rows = {}
    for info in store.list("features"):
        label = info.key.split("/")[2].removeprefix("model=")
        for row in pq.read_table(io.BytesIO(store.get(info.key))).to_pylist():
            clips = seen.setdefault(label, {}).setdefault(row["media_id"], {})
            assert row["clip_index"] not in clips, f"{label} {row['media_id']} {row['clip_index']} is there twice"
            clips[row["clip_index"]] = row["feature"]
    return seen


def expected(label: str, items: Iterable[Item]) -> dict[str, dict[int, list[float]]]:
    """What must be visible of ``items`` in the end."""
    found: dict[str, dict[int, list[float]]] = {}
    for item in items:
        if item.status.get(label) not in ("failed", "skipped"):
            mine = {c: value(label, item.media_id, c, item.etag or "") for c in item.clips}
            found.setdefault(item.media_id, {}).update(mine)
    return found


def snapshot(store: Store) -> dict[str, object]:
    """Every published object by key, as values; its own commit's hashes must be true."""
    found: dict[str, object] = {}
    for root in ("features", "outcomes"):
        for info in store.list(root):
            table = pq.read_table(io.BytesIO(store.get(info.key)))
            found[info.key] = table.replace_schema_metadata(None).to_pylist()
    return found


def check_hashes(store: Store, label: str, shard: int = 0) -> None:
    """The commit names exactly the features objects that are there, with the SHA-256 of their bytes."""
    there = {
        info.key.rpartition("/")[2]: hashlib.sha256(store.get(info.key)).hexdigest()
        for info in store.list(KEYS.features(label))
    }
    footer = pq.read_schema(io.BytesIO(store.get(f"{KEYS.outcomes(label)}/part-{shard:05d}.parquet"))).metadata
    assert json.loads(footer[b"featlib.features"]) == there


def flip(store: Store, key: str) -> None:
    """Damages an object."""
    data = bytearray(store.get(key))
    data[-20] ^= 0xFF
    store.put(key, bytes(data))


def outcomes(store: Store, label: str = "a") -> dict[str, dict[str, object]]:
    """Rows of a published shard by media id."""
    table = pq.read_table(io.BytesIO(store.get(f"{KEYS.outcomes(label)}/part-00000.parquet")))
    return {row["media_id"]: row for row in table.to_pylist()}


def shard_job(store: Store, labels: tuple[str, ...]) -> ShardJob:
    """Shard 0 with all that is staged, by the plan as it is."""
    items = PlanItems(store, read_plan(store, KEYS)).shard(0)
    found = staged_items(list_pieces(store, KEYS)[0], {label: f"print-{label}" for label in labels})
    return ShardJob(0, items, dict.fromkeys(labels, found))


def cut_before_the_commit(store: Store, job: ShardJob) -> None:
    """Publishes features; the process is gone before the outcomes."""

    def die(name: str, key: str) -> None:
        if name == "features_put":
            raise CrashError

    with pytest.raises(CrashError):
        publish_shard(store, KEYS, job, provenance("a"), max_bytes=NO_LIMIT, on_event=die)
