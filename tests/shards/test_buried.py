"""A driver that slept, while another took over, spoils nothing when it wakes."""

import pytest

from featlib.drivers import Claim
from featlib.errors import StoppedError
from featlib.publisher import remove_history
from featlib.shards.publish import publish_shard
from featlib.shards.staging import Piece
from featlib.storage import Store
from tests.shards.make import (
    KEYS,
    Item,
    check_hashes,
    expected,
    flip,
    planned,
    provenance,
    publisher,
    shard_job,
    staged,
    visible,
)


@pytest.mark.parametrize("is_buried", [False, True])
def test_who_slept_while_another_driver_published_stops_with_one_line(
    store: Store, monkeypatch: pytest.MonkeyPatch, *, is_buried: bool
) -> None:
    planned(store, ["v0"])
    piece = staged(store, "r-0", [Item("v0")])
    made = publisher(store)

    def check_again() -> None:
        if is_buried:
            raise StoppedError("the claim of this driver is gone")

    def sleep(shard: int, pieces: list[Piece]) -> list[Piece]:
        store.delete([piece])
        monkeypatch.setattr(made.claim, "check", check_again)
        return pieces

    monkeypatch.setattr(made.backlog, "without_replaced", sleep)
    told = (
        "the claim of this driver is gone" if is_buried else r"shard 0: .*\.piece has just been removed; run the same"
    )
    with pytest.raises(StoppedError, match=told) as caught:
        made.publish(0)
    assert "\n" not in str(caught.value)


def test_nothing_is_put_once_the_guard_says_no(store: Store) -> None:
    planned(store, ["v0", "v1"])
    staged(store, "r-0", [Item("v0"), Item("v1")])
    calls = 0

    def guard() -> None:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise StoppedError("another driver works")

    with pytest.raises(StoppedError, match="another driver"):
        publish_shard(store, KEYS, shard_job(store, ("a",)), provenance("a"), max_bytes=1, guard=guard)
    assert len(store.list("features")) == 1
    assert not store.list("outcomes")


def test_who_is_buried_within_a_shard_spoils_no_commit(store: Store) -> None:
    """Its heart beats, so only a look at the store can tell: it has put features when another publishes the shard."""
    planned(store, ["v0", "v1"])
    items = [Item("v0", range(8)), Item("v1", range(5))]
    staged(store, "r-0", items)
    mine, done = publisher(store), list[str]()

    def take_over(name: str, key: str) -> None:
        done.append(name)
        if name == "features_put":
            store.delete([o.key for o in store.list(KEYS.drivers) if o.key.endswith(".claim")])
            publisher(store).publish(0)

    mine.on_event = take_over
    with Claim(store, KEYS) as mine.claim, pytest.raises(StoppedError, match="another driver took over"):
        mine.publish(0)
    assert done == ["features_put"]
    assert visible(store)["a"] == expected("a", items)
    check_hashes(store, "a")


def test_who_is_buried_removes_nothing_that_was_staged(store: Store) -> None:
    planned(store, ["v0"])
    key = staged(store, "r-0", [Item("v0")])
    mine = publisher(store)

    def bury(name: str, key: str) -> None:
        if name == "outcomes_put":
            store.delete([o.key for o in store.list(KEYS.drivers) if o.key.endswith(".claim")])

    mine.on_event = bury
    with Claim(store, KEYS) as mine.claim, pytest.raises(StoppedError, match="another driver took over"):
        mine.publish(0)
    assert store.stat(key) is not None


def _buried() -> None:
    raise StoppedError("another driver took over")


def test_who_is_buried_leaves_damaged_pieces_to_the_other(store: Store) -> None:
    planned(store, ["v0"])
    key = staged(store, "r-0", [Item("v0")])
    mine = publisher(store)
    flip(store, key)
    mine.claim.confirm = _buried  # type: ignore[method-assign]
    with pytest.raises(StoppedError, match="another driver took over"):
        mine.publish(0)
    assert store.stat(key) is not None


def test_who_is_buried_leaves_history_to_the_other(store: Store) -> None:
    planned(store, ["v0"])
    key = staged(store, "r-0", [Item("v0")])
    mine = publisher(store)
    mine.on_event = lambda name, key: _buried() if name == "outcomes_put" else None
    with pytest.raises(StoppedError):
        mine.publish(0)
    with pytest.raises(StoppedError):
        remove_history(store, KEYS, ["a"], _buried)
    assert store.stat(key) is not None
    remove_history(store, KEYS, ["a"])
    assert store.stat(key) is None
    remove_history(store, KEYS, ["a"], _buried)  # nothing to remove, nothing to ask
