"""Verify finds everything that can be wrong with a partition."""

import hashlib
import io
from collections.abc import Callable, Iterable
from pathlib import Path
from random import Random

import pyarrow.parquet as pq
import pytest

from featlib.config import fingerprint
from featlib.plan import PlanItems, read_plan
from featlib.sealed import sealed
from featlib.shards.publish import ShardJob, publish_shard
from featlib.shards.schema import to_json
from featlib.shards.staging import list_pieces, staged_items
from featlib.shards.verify import Verification, verify
from featlib.storage import Store
from tests.shards.make import KEYS, NO_LIMIT, Item, LaggingStore, batch, planned, provenance, staged

IDS = [f"v{i}" for i in range(6)]
PART = f"{KEYS.features('a')}/part-00001.parquet"
OUTCOMES = f"{KEYS.outcomes('a')}/part-00001.parquet"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Three shards of two items."""
    return _filled(Store(str(tmp_path)), [Item(i) for i in IDS])


def _filled(store: Store, items: Iterable[Item]) -> Store:
    items = list(items)
    plan = planned(store, [i.media_id for i in items], shard_items=2)
    reader = PlanItems(store, read_plan(store, KEYS))
    for shard in sorted(set(plan.shards.tolist())):
        mine = reader.shard(shard)
        wanted = {m.media_id for m in mine}
        staged(store, "r-0", [i for i in items if i.media_id in wanted], shard=shard)
        found = staged_items(list_pieces(store, KEYS, shard)[shard], {"a": "print-a"})
        publish_shard(store, KEYS, ShardJob(shard, mine, {"a": found}), provenance("a"), max_bytes=NO_LIMIT)
    return store


def _verify(store: Store, ids: Iterable[str] = IDS, max_failed: float = 0.05) -> Verification:
    return verify([batch({"media_id": i} for i in ids)], store, KEYS, "a", max_failed=max_failed)


def test_a_whole_partition_is_complete(store: Store) -> None:
    found = _verify(store)
    assert found.complete
    assert (found.media, found.rows, dict(found.statuses)) == (6, 18, {"ok": 6})
    assert found.text().splitlines()[-1] == "complete"


def test_a_smaller_manifest_is_complete_too(store: Store) -> None:
    assert _verify(store, IDS[:3]).complete


def test_missing(store: Store) -> None:
    found = _verify(store, [*IDS, "v8", "v9"])
    assert found.missing == ("v8", "v9")
    assert not found.complete
    assert "  missing: 2: v8, v9" in found.text()


def test_many_findings_are_counted_not_listed(store: Store) -> None:
    text = _verify(store, [*IDS, *(f"w{i}" for i in range(9))]).text()
    assert "missing: 9: w0, w1, w2, w3, w4 … (+4 more)" in text


@pytest.mark.parametrize("key", [PART, OUTCOMES])
@pytest.mark.parametrize("place", [8, 0.5, -30])
def test_damaged(store: Store, key: str, place: float) -> None:
    data = bytearray(store.get(key))
    data[int(place if abs(place) >= 1 else len(data) * place)] ^= 0x10
    store.put(key, bytes(data))
    found = _verify(store)
    assert not found.complete
    assert found.damaged


def test_absent_object(store: Store) -> None:
    store.delete([PART])
    found = _verify(store)
    assert found.damaged == ("part-00001.parquet (absent)",)
    assert not found.complete


def test_listings_that_lag_behind_are_no_damage(store: Store) -> None:
    """What an outcomes object names is asked for by key; what is listed and gone was dropped."""
    lagging = LaggingStore(store.url)
    lagging.unseen, lagging.gone = (PART,), (PART.replace("00001", "00009"),)
    found = _verify(lagging)
    assert found.rows == 18
    assert found.complete


def test_uncommitted(store: Store) -> None:
    store.delete([OUTCOMES])
    found = _verify(store)
    assert found.uncommitted == (PART,)
    assert found.missing == ("v2", "v3")


def _rewritten(store: Store, key: str, change: Callable[[list[dict[str, object]]], list[dict[str, object]]]) -> None:
    """Another object under the same key, as valid as the first."""
    old = pq.read_table(io.BytesIO(store.get(key)))
    store.put(key, sealed(old.from_pylist(change(old.to_pylist()), schema=old.schema)))


def test_duplicate_row_in_another_object(store: Store) -> None:
    extra = PART.replace("part-00001", "part-00001-r1")
    store.put(extra, store.get(PART))
    found = _verify(store)
    assert found.duplicate == ("v2", "v3")
    assert found.uncommitted == (extra,)


def test_item_in_two_shards(store: Store) -> None:
    for root in (KEYS.features("a"), KEYS.outcomes("a")):
        store.put(f"{root}/part-00007.parquet", store.get(f"{root}/part-00001.parquet"))
    assert set(_verify(store).duplicate) == {"v2", "v3"}


def test_wrong_rows(store: Store) -> None:
    _rewritten(store, OUTCOMES, lambda rows: [{**r, "num_rows": 9} if r["media_id"] == "v3" else r for r in rows])
    found = _verify(store)
    assert found.wrong_rows == ("v3",)
    assert not found.complete


def test_damage_in_one_shard_does_not_hide_wrong_rows_in_another(store: Store) -> None:
    store.delete([f"{KEYS.features('a')}/part-00000.parquet"])
    _rewritten(store, OUTCOMES, lambda rows: [{**r, "num_rows": 9} for r in rows])
    assert set(_verify(store).wrong_rows) == {"v2", "v3"}


def test_a_foreign_outcomes_object_is_damage(store: Store) -> None:
    table = pq.read_table(io.BytesIO(store.get(OUTCOMES))).replace_schema_metadata(None)
    sink = io.BytesIO()
    pq.write_table(table, sink)
    for foreign in (sink.getvalue(), sealed(table)):
        store.put(OUTCOMES, foreign)
        found = _verify(store)
        assert any("part-00001" in text for text in found.damaged)
        assert not found.complete


@pytest.mark.parametrize("key", [PART, OUTCOMES])
def test_objects_of_other_settings_are_damage(store: Store, key: str) -> None:
    """Sealed, committed and readable all the same."""
    whole = store.get(key)
    table = pq.read_table(io.BytesIO(whole))
    data = sealed(table.replace_schema_metadata({**table.schema.metadata, b"featlib.fingerprint": b"another"}))
    store.put(key, data)
    if key == PART:
        old = pq.read_table(io.BytesIO(store.get(OUTCOMES)))
        hashes = to_json({"part-00001.parquet": hashlib.sha256(data).hexdigest()})
        store.put(OUTCOMES, sealed(old.replace_schema_metadata({**old.schema.metadata, b"featlib.features": hashes})))
    found = _verify(store)
    assert found.damaged == (f"{key} (made with other settings than the partition)",)
    assert not found.complete


def test_a_partition_of_other_settings_than_were_written_down_is_damage(store: Store) -> None:
    semantics = {"network": "z"}
    record = {"fingerprint": fingerprint(semantics), "semantics": semantics}
    store.put(KEYS.model("a"), to_json(record).encode())
    assert len(_verify(store).damaged) == 6
    store.put(KEYS.model("a"), to_json(record).encode().replace(b"z", b"y"))
    assert _verify(store).complete, "what a flipped bit says is not believed"


def test_every_flipped_bit_is_seen(store: Store) -> None:
    """At rest; `make torture` flips a thousand."""
    random = Random(5)
    for _ in range(60):
        key = random.choice([PART, OUTCOMES])
        whole = store.get(key)
        bit = random.randrange(8 * len(whole))
        data = bytearray(whole)
        data[bit // 8] ^= 1 << bit % 8
        store.put(key, bytes(data))
        found = _verify(store)
        store.put(key, whole)
        assert found.damaged, f"bit {bit} of {key}"
        assert not found.complete
    assert _verify(store).complete


@pytest.mark.parametrize(("max_failed", "complete"), [(0.0, False), (0.32, False), (0.34, True), (1.0, True)])
def test_the_share_that_may_fail(tmp_path: Path, max_failed: float, complete: bool) -> None:
    store = Store(str(tmp_path))
    _filled(store, [Item("v0", status={"a": "failed"}), Item("v1", status={"a": "partial"}), *map(Item, IDS[2:])])
    found = _verify(store, max_failed=max_failed)
    assert dict(found.statuses) == {"ok": 4, "failed": 1, "partial": 1}
    assert found.complete is complete


def test_skipped_media_are_no_failures(tmp_path: Path) -> None:
    store = _filled(Store(str(tmp_path)), [Item("v0", status={"a": "skipped"}), Item("v1")])
    assert _verify(store, ["v0", "v1"], max_failed=0.0).complete


def test_nothing_there_at_all(tmp_path: Path) -> None:
    found = _verify(Store(str(tmp_path)))
    assert found.missing == tuple(IDS)
    assert not found.complete
