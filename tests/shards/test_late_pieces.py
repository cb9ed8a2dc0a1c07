"""Pieces that a driver which slept stages after another has published: they are never taken for what is asked next."""

from pathlib import Path

import pytest

from featlib.shards.commit import read_committed
from featlib.storage import Store
from tests.shards.make import KEYS, CrashError, Item, expected, planned, publish, publisher, staged, units, visible

_OK = [Item("v0"), Item("v1")]
_BAD = [Item("v0"), Item("v1", status={"a": "failed"})]
_BEFORE = {"a": 0}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(str(tmp_path))
    planned(store, ["v0", "v1"])
    return store


def _asked(store: Store, **how: object) -> list[str]:
    return [i.media_id for u in units(publisher(store, **how)) for i in u.items]  # type: ignore[arg-type]


def _outcome(store: Store, name: str = "status") -> object:
    """Of ``v1``."""
    return read_committed(store, KEYS, "a", 0).outcomes.to_pylist()[1][name]


def test_a_late_failure_does_not_pass_for_a_retry(store: Store) -> None:
    staged(store, "taker", _BAD)
    publish(store)
    staged(store, "sleeper", _BAD, rounds=_BEFORE)
    assert _asked(store, retry_failed=True) == ["v1"]
    staged(store, "retry", [Item("v1", created=0.5)])
    publish(store, retry_failed=True)
    assert (_outcome(store), _outcome(store, "attempts")) == ("ok", 2)
    assert visible(store)["a"] == expected("a", _OK)


def test_a_late_failure_does_not_remove_the_rows_of_a_file_that_was_replaced(store: Store) -> None:
    staged(store, "taker", _OK)
    publish(store)
    staged(store, "sleeper", [Item("v1", etag=None, created=7.0, status={"a": "failed"})], rounds=_BEFORE)
    assert _asked(store, etags={"v1": "e1"}) == ["v1"]
    staged(store, "changed", [Item("v1", etag="e1")])
    publish(store, etags={"v1": "e1"})
    assert _outcome(store) == "ok"
    assert visible(store)["a"] == expected("a", [Item("v0"), Item("v1", etag="e1")])


@pytest.mark.parametrize("name", ["0-sleeper", "z-sleeper"])
def test_a_piece_that_comes_late_while_the_next_round_works_is_not_taken(store: Store, name: str) -> None:
    """Not even a good one that is newer: what was asked for says what is there now."""
    staged(store, "taker", _BAD)
    publish(store)
    made = publisher(store, retry_failed=True)
    assert [i.media_id for u in units(made) for i in u.items] == ["v1"]
    staged(store, "retry", [Item("v1", etag="e1")])
    staged(store, name, [Item("v1", created=7.0)], rounds=_BEFORE)
    made.publish(0)
    assert visible(store)["a"]["v1"] == expected("a", [Item("v1", etag="e1")])["v1"]


def test_pieces_that_a_commit_names_count_for_the_label_before_whose_commit_it_was_cut(store: Store) -> None:
    both, now = ("a", "b"), {"v0": "e1", "v1": "e1"}
    new = [Item(media_id, etag=etag) for media_id, etag in now.items()]
    staged(store, "r-0", _OK, both)
    publish(store, both)
    staged(store, "r-1", new, both)
    cut = publisher(store, both, etags=now)
    units(cut)
    cut.on_event = _die_at_a_commit
    with pytest.raises(CrashError):
        cut.publish(0)
    staged(store, "z-late", [Item("v0", etag=None, created=7.0, status={"a": "failed"})], both, rounds={"a": 0, "b": 0})
    assert units(publisher(store, both, etags=now)) == []
    publish(store, both, etags=now)
    assert visible(store) == {label: expected(label, new) for label in both}


def _die_at_a_commit(event: str, key: str) -> None:
    if event == "outcomes_put":
        raise CrashError(key)


def test_pieces_that_do_not_tell_their_round_count(store: Store) -> None:
    staged(store, "before", _OK, rounds={})
    assert _asked(store) == []
    publish(store)
    assert visible(store)["a"] == expected("a", _OK)
