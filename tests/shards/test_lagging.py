"""Stores whose listings lag: what is there and not listed is not published beside itself."""

import pytest

from featlib.errors import DamagedError
from featlib.storage import Store
from tests.shards.make import (
    PART,
    CrashError,
    Item,
    LaggingStore,
    check_hashes,
    cut_before_the_commit,
    expected,
    outcomes,
    planned,
    publish,
    publisher,
    shard_job,
    staged,
    visible,
)

_NEVER = {"a": 0}  # committed, as far as a driver knows to which no outcomes are listed


def _lagging(store: Store, *unseen: str, gone: tuple[str, ...] = ()) -> LaggingStore:
    lagging = LaggingStore(store.url)
    lagging.unseen, lagging.gone = unseen, gone
    return lagging


def test_a_shard_that_is_not_listed_yet_is_not_published_beside_itself(store: Store) -> None:
    """The same command again: the ledger knows no outcomes either, and all is done once more."""
    planned(store, ["v0", "v1"])
    staged(store, "r-0", [Item("v0"), Item("v1")])
    publish(store)
    again = [Item("v0", created=2.0), Item("v1", (0, 1), etag="e1", created=2.0)]
    staged(store, "s-0", again, rounds=_NEVER)
    publish(_lagging(store, "features/", "outcomes/"))
    assert visible(store)["a"] == expected("a", again)
    assert [info.key for info in store.list("features")] == [PART]
    check_hashes(store, "a")


def test_changed_rows_give_way_in_an_object_that_is_not_listed_yet(store: Store) -> None:
    planned(store, ["v0", "v1"])
    staged(store, "r-0", [Item("v0"), Item("v1")])
    publish(store)
    new = Item("v0", (0, 1), etag="e1", created=2.0)
    staged(store, "s-0", [new])
    publish(_lagging(store, "features/"), etags={"v0": "e1"})
    assert visible(store)["a"] == expected("a", [new, Item("v1")])
    check_hashes(store, "a")


def test_parts_of_a_cut_publish_that_are_not_listed_yet_are_found(store: Store) -> None:
    """The next publish has fewer parts, and would leave the last of them behind."""
    ids = [f"v{i}" for i in range(6)]
    planned(store, ids)
    staged(store, "r-0", [Item(i) for i in ids])

    def die(name: str, key: str) -> None:
        if name == "features_put" and key.endswith("-p2.parquet"):
            raise CrashError

    cut = publisher(store, max_bytes=300)
    cut.on_event = die
    with pytest.raises(CrashError):
        cut.publish(0)
    publish(_lagging(store, "features/"))
    assert visible(store)["a"] == expected("a", map(Item, ids))
    check_hashes(store, "a")


def test_an_object_that_was_committed_and_is_gone_is_damage(store: Store) -> None:
    planned(store, ["v0", "v1"])
    staged(store, "r-0", [Item("v0"), Item("v1")])
    publish(store)
    staged(store, "s-0", [Item("v1", etag="new")])
    data = store.get(PART)
    store.delete([PART])
    for listed in (store, _lagging(store, gone=(PART,))):
        with pytest.raises(DamagedError, match=r"part-00000\.parquet: is gone"):
            publish(listed, etags={"v1": "new"})
    store.put(PART, data)
    publish(store, etags={"v1": "new"})
    assert visible(store)["a"] == expected("a", [Item("v0"), Item("v1", etag="new")])


def test_an_object_that_was_dropped_and_is_still_listed_is_none(store: Store) -> None:
    planned(store, ["v0"])
    staged(store, "r-0", [Item("v0")])
    publish(_lagging(store, gone=(PART,)))
    assert visible(store)["a"] == expected("a", [Item("v0")])
    check_hashes(store, "a")


def test_rows_that_came_out_the_same_are_not_put_again(store: Store) -> None:
    items = [Item("v0"), Item("v1", status={"a": "failed"}), Item("v2")]
    planned(store, [i.media_id for i in items])
    staged(store, "r-0", items)
    cut_before_the_commit(store, shard_job(store, ("a",)))
    first = store.stat(PART)
    publish(store)
    assert store.stat(PART) == first, "the cut publish is repeated"
    staged(store, "s-0", [Item("v0", created=2.0)], rounds=_NEVER)
    staged(store, "s-1", items[1:], rounds=_NEVER)
    publish(_lagging(store, "outcomes/"))
    assert store.stat(PART) == first, "nobody knew that it was done, and it was done again"
    assert outcomes(store)["v0"]["attempts"] == 2
    assert visible(store)["a"] == expected("a", items)
    check_hashes(store, "a")
