"""Publishing that is cut between rows and their commit, and goes on under another command."""

import io

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from featlib.leftovers import remove_late
from featlib.shards.publish import ShardJob, publish_shard
from featlib.storage import Store
from tests.shards.make import (
    KEYS,
    NO_LIMIT,
    PART,
    CrashError,
    FreeClaim,
    Item,
    check_hashes,
    expected,
    outcomes,
    planned,
    provenance,
    publish,
    publisher,
    shard_job,
    staged,
    units,
    visible,
)

_OLD = Item("v0")
_BAD = Item("v1", status={"a": "failed"})


def _cut_at(store: Store, event: str, etags: dict[str, str] | None = None, *, retry_failed: bool = False) -> None:
    """A process that dies behind ``event``."""

    def die(name: str, key: str) -> None:
        if name == event:
            raise CrashError

    cut = publisher(store, etags=etags, retry_failed=retry_failed)
    cut.on_event = die
    units(cut)
    with pytest.raises(CrashError):
        cut.publish(0)


def _cut_change(store: Store, new: Item) -> None:
    """``v0`` is published, ``v1`` failed; ``v0`` is replaced, and ``--changed`` dies before it commits."""
    planned(store, ["v0", "v1"])
    staged(store, "r-0", [_OLD, _BAD])
    publish(store)
    staged(store, "s-0", [new])
    _cut_at(store, "features_put", {"v0": "e1"})


def _asked(store: Store, *, retry_failed: bool = False) -> list[str]:
    return [i.media_id for u in units(publisher(store, retry_failed=retry_failed)) for i in u.items]


_NEW = pytest.mark.parametrize(
    "new", [Item("v0", (0, 1), etag="e1", created=2.0), Item("v0", etag="e1", created=2.0)], ids=["shorter", "as_long"]
)


@_NEW
def test_any_later_run_commits_rows_that_a_cut_one_replaced(store: Store, new: Item) -> None:
    """Nothing else is asked for, and the file may be what it was again: what was staged is of one version."""
    _cut_change(store, new)
    assert _asked(store) == [], "it is staged"
    publish(store)
    assert visible(store)["a"] == expected("a", [new])
    assert (outcomes(store)["v0"]["etag"], outcomes(store)["v0"]["num_rows"]) == ("e1", len(new.clips))
    assert not store.list(KEYS.doubts("a"))
    check_hashes(store, "a")
    assert publish(store) is None


@_NEW
def test_a_retry_of_another_item_commits_them_too(store: Store, new: Item) -> None:
    _cut_change(store, new)
    staged(store, "t-0", [Item("v1", created=3.0)])
    publish(store, retry_failed=True)
    assert visible(store)["a"] == expected("a", [new, Item("v1")])
    assert {m: (r["status"], r["etag"]) for m, r in outcomes(store).items()} == {"v0": ("ok", "e1"), "v1": ("ok", "e0")}
    check_hashes(store, "a")


@_NEW
def test_who_does_not_ask_for_them_leaves_neither_rows_nor_outcomes(store: Store, new: Item) -> None:
    """A smaller manifest: the rows of one version must not stand under the outcome of the other."""
    _cut_change(store, new)
    staged(store, "t-0", [Item("v1", created=3.0)])
    job = shard_job(store, ("a",))
    alone = ShardJob(0, job.items, {"a": {"v1": job.staged["a"]["v1"]}}, {"a": [PART]})
    publish_shard(store, KEYS, alone, provenance("a"), max_bytes=NO_LIMIT)
    assert visible(store)["a"] == expected("a", [Item("v1")])
    assert list(outcomes(store)) == ["v1"]
    check_hashes(store, "a")
    assert "v0" in publisher(store).backlog.needs_of(0, job.items)


def test_an_object_that_is_another_than_the_committed_one_is_made_anew(
    store: Store, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Nothing says which of its items an older process replaced."""
    other = Store(str(tmp_path_factory.mktemp("other")))
    for each, items in ((store, [_OLD, Item("v1"), Item("v2", status={"a": "failed"})]), (other, [Item("v0", (0, 1))])):
        planned(each, ["v0", "v1", "v2"])
        staged(each, "r-0", items)
        if each is store:
            publish(each)
    publish_shard(other, KEYS, shard_job(other, ("a",)), provenance("a"), max_bytes=NO_LIMIT)
    store.put(PART, other.get(PART))
    staged(store, "t-0", [Item("v2", created=3.0)])
    publish(store, retry_failed=True)
    assert visible(store)["a"] == expected("a", [Item("v2")])
    assert _asked(store) == ["v0", "v1"]
    check_hashes(store, "a")


def test_where_what_tells_is_damaged_all_of_the_shard_is_in_doubt(store: Store) -> None:
    _cut_change(store, Item("v0", etag="e1", created=2.0))
    (mark,) = [info.key for info in store.list(KEYS.doubts("a"))]
    data = bytearray(store.get(mark))
    data[-3] ^= 1
    store.put(mark, bytes(data))
    assert _asked(store) == ["v1"]
    staged(store, "t-0", [_BAD])
    publish(store)
    assert visible(store)["a"] == expected("a", [Item("v0", etag="e1")])
    assert not store.list(KEYS.doubts("a"))
    check_hashes(store, "a")


def test_what_is_settled_is_neither_done_again_nor_kept(store: Store) -> None:
    _cut_change(store, Item("v0", etag="e1", created=2.0))
    _cut_at(store, "outcomes_put")
    (mark,) = [info.key for info in store.list(KEYS.doubts("a"))]
    assert publish(store) is None, "its commit has settled it"
    assert outcomes(store)["v0"]["etag"] == "e1"
    assert store.stat(mark)
    remove_late(store, KEYS, FreeClaim(store, KEYS), provenance("a"))
    assert not store.list(KEYS.doubts("a"))


def test_history_is_not_what_made_an_outcome(store: Store) -> None:
    """A commit names every piece of its shard as history, also one that was staged by a cut ``--changed`` and that
    it did not ask for; taken for published, the next ``--changed`` would leave one label with the old rows."""
    both = ("a", "b")
    planned(store, ["v0", "v1"])
    staged(store, "r-0", [Item("v0", status=dict.fromkeys(both, "failed")), Item("v1")], both)
    publish(store, both)
    staged(store, "s-0", [Item("v1", etag="e1", created=2.0)], both)
    staged(store, "t-0", [Item("v0", created=3.0)])
    _cut_at(store, "outcomes_put", retry_failed=True)
    again = publisher(store, both, etags={"v1": "e1"})
    if [i.media_id for u in units(again) for i in u.items]:
        staged(store, "u-0", [Item("v1", etag="e1", created=4.0)], both)
        again = publisher(store, both, etags={"v1": "e1"})
        units(again)
    again.publish(0)
    for label in both:
        assert outcomes(store, label)["v1"]["etag"] == "e1"
        assert visible(store)[label]["v1"] == expected(label, [Item("v1", etag="e1")])["v1"]
        check_hashes(store, label)


def test_no_key_is_there_twice_while_objects_with_items_in_common_are_rewritten(
    store: Store, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """As a process that woke up late may leave them."""
    other, ids = Store(str(tmp_path_factory.mktemp("other"))), ["v0", "v1", "v2"]
    for each, items in ((store, ids[:2]), (other, ids[1:])):
        planned(each, ids)
        staged(each, "r-0", [Item(i) for i in items])
        publish_shard(each, KEYS, shard_job(each, ("a",)), provenance("a"), max_bytes=NO_LIMIT)
    store.put(PART.replace(".parquet", "-r1.parquet"), other.get(PART))
    new = [Item(i, (0, 1), etag="e1", created=2.0) for i in ids]
    staged(store, "s-0", new)
    made, seen = publisher(store, etags=dict.fromkeys(ids, "e1")), list[int]()
    made.on_event = lambda name, key: seen.append(len(visible(store)["a"])) if name == "features_put" else None
    made.publish(0)
    assert len(seen) == 2
    assert visible(store)["a"] == expected("a", new)
    check_hashes(store, "a")


def _peak(store: Store, num_items: int) -> int:
    """Most bytes of Arrow's that a repeated publish takes, of objects of two items each."""
    ids = [f"v{i}" for i in range(num_items)]
    planned(store, ids)
    for i in ids:
        staged(store, f"r-{i}", [Item(i, range(20_000))])
    max_bytes = 2 * pq.read_table(io.BytesIO(pq_bytes(Item("v0", range(20_000))))).nbytes
    job = shard_job(store, ("a",))
    publish_shard(store, KEYS, job, provenance("a"), max_bytes=max_bytes)
    store.delete([info.key for info in store.list(KEYS.outcomes("a"))])
    pool, before = pa.proxy_memory_pool(pa.system_memory_pool()), pa.default_memory_pool()
    pa.set_memory_pool(pool)
    try:
        publish_shard(store, KEYS, job, provenance("a"), max_bytes=max_bytes)
    finally:
        pa.set_memory_pool(before)
    assert len(store.list(KEYS.features("a"))) > 1
    return int(pool.max_memory())


def pq_bytes(item: Item) -> bytes:
    sink = io.BytesIO()
    pq.write_table(item.rows("a"), sink)
    return sink.getvalue()


def test_a_repeated_publish_holds_an_object_at_a_time(tmp_path_factory: pytest.TempPathFactory) -> None:
    """All rows of a dense shard are more than a driver has."""
    few, many = (_peak(Store(str(tmp_path_factory.mktemp(f"of-{n}"))), n) for n in (6, 24))
    assert many < 2 * few
