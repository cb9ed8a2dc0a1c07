"""Publishing is cut before and after every change that it makes to the store, and taken up again."""

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from featlib.publisher import remove_history
from featlib.shards import parts as parts_module
from featlib.storage import Store
from tests.shards.make import (
    KEYS,
    CrashError,
    CrashingStore,
    Item,
    Rows,
    check_hashes,
    expected,
    planned,
    publish,
    snapshot,
    staged,
    visible,
)

IDS = [f"v{i}" for i in range(6)]


@dataclass(frozen=True)
class Case:
    """A shard that is ready to be published.

    Args:
        prepare: Fills an empty store.
        before: What is visible before.
        after: What is visible in the end.
        untouched: Objects of which no byte may change.
    """

    name: str
    prepare: Callable[[Store], None]
    after: Rows
    labels: Sequence[str] = ("a",)
    before: Rows = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    untouched: Sequence[str] = ()

    def __str__(self) -> str:
        return self.name


def _whole(etag: str = "e0") -> list[Item]:
    return [Item(i, etag=etag) for i in IDS]


def _first(store: Store, labels: Sequence[str] = ("a",)) -> None:
    planned(store, IDS)
    staged(store, "r-0", _whole()[:3], labels)
    staged(store, "r-1", _whole()[3:], labels)


def _segments(store: Store) -> None:
    planned(store, IDS)
    staged(store, "r-0", _whole()[1:])
    for k, clips in ((2, (4, 5)), (0, (0, 1)), (1, (1, 2, 3))):
        staged(store, f"r-{k + 1}", [Item("v0", clips, k, 3)])


def _some_failed() -> list[Item]:
    return [Item(i, status={"a": "failed"} if i in ("v1", "v4") else {}) for i in IDS]


def _retry(store: Store) -> None:
    planned(store, IDS)
    staged(store, "r-0", _some_failed())
    publish(store)
    staged(store, "s-0", [Item("v1", created=2.0), Item("v4", (0, 1, 2, 3), created=2.0)])


def _changed(store: Store) -> None:
    _first(store)
    publish(store)
    staged(store, "s-0", [Item("v2", (0, 1), etag="e1", created=2.0)])


def _all_but_v2() -> list[Item]:
    return [i for i in _whole() if i.media_id != "v2"]


CASES = [
    Case("first", _first, {"a": expected("a", _whole())}),
    Case(
        "two labels",
        lambda store: _first(store, ("a", "b")),
        {label: expected(label, _whole()) for label in "ab"},
        ("a", "b"),
    ),
    Case("several parts", _first, {"a": expected("a", _whole())}, options={"max_bytes": 300}),
    Case("segments", _segments, {"a": expected("a", [Item("v0", range(6)), *_whole()[1:]])}),
    Case(
        "failed items once more",
        _retry,
        {"a": expected("a", [*_whole()[:4], Item("v4", range(4)), _whole()[5]])},
        before={"a": expected("a", _some_failed())},
        options={"retry_failed": True},
        untouched=[f"{KEYS.features('a')}/part-00000.parquet"],
    ),
    Case(
        "changed item",
        _changed,
        {"a": expected("a", [*_all_but_v2(), Item("v2", (0, 1), etag="e1")])},
        before={"a": expected("a", _whole())},
        options={"etags": {"v2": "e1"}},
    ),
]


def _check_between(case: Case, store: Store) -> None:
    """Every item is there whole, as it was or as it will be, or not at all."""
    for label, items in visible(store).items():
        for media_id, clips in items.items():
            old = case.before.get(label, {}).get(media_id)
            assert clips in (old, case.after[label][media_id]), (label, media_id)
    for label, items in case.before.items():
        kept = [m for m, clips in items.items() if case.after[label][m] == clips]
        seen = visible(store).get(label, {})
        assert not [m for m in kept if m not in seen], "a row that was visible is gone"


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_publish_cut_anywhere_is_finished_by_the_next(case: Case, tmp_path: Path) -> None:
    prepared = tmp_path / "prepared"
    case.prepare(Store(str(prepared)))
    kept = {key: Store(str(prepared)).get(key) for key in case.untouched}
    shutil.copytree(prepared, tmp_path / "calm")
    calm = CrashingStore(str(tmp_path / "calm"), at=None, after=False)
    publish(calm, case.labels, **case.options)
    assert visible(calm) == case.after
    assert len(calm.calls) >= 3
    truth = snapshot(calm)
    for at in range(len(calm.calls)):
        for after in (False, True):
            folder = tmp_path / f"cut-{at}-{after}"
            shutil.copytree(prepared, folder)
            with pytest.raises(CrashError):
                publish(CrashingStore(str(folder), at=at, after=after), case.labels, **case.options)
            store = Store(str(folder))
            _check_between(case, store)
            publish(store, case.labels, **case.options)
            assert visible(store) == case.after
            assert snapshot(store) == truth
            assert not store.list(KEYS.stage)
            for label in case.labels:
                check_hashes(store, label)
            assert {key: store.get(key) for key in kept} == kept
            shutil.rmtree(folder)


def test_several_parts_really_are_several(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    _first(store)
    publish(store, max_bytes=300)
    names = [info.key.rpartition("/")[2] for info in store.list(KEYS.features("a"))]
    assert len(names) >= 3
    assert set(names) == {"part-00000.parquet", *(f"part-00000-p{i}.parquet" for i in range(1, len(names)))}


def test_an_item_is_never_cut_into_two_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts_module, "ROW_GROUP_BYTES", 64)
    store = Store(str(tmp_path))
    planned(store, IDS)
    staged(store, "r-0", [Item(i, range(9)) for i in IDS])
    publish(store, max_bytes=100)
    assert visible(store)["a"] == expected("a", [Item(i, range(9)) for i in IDS])
    assert len(store.list(KEYS.features("a"))) == len(IDS)


def test_a_second_crash_at_the_same_place_changes_nothing(tmp_path: Path) -> None:
    _first(Store(str(tmp_path / "calm")), ("a", "b"))
    publish(Store(str(tmp_path / "calm")), ("a", "b"))
    _first(Store(str(tmp_path / "cut")), ("a", "b"))
    for _ in range(3):
        with pytest.raises(CrashError):
            publish(CrashingStore(str(tmp_path / "cut"), at=0, after=True), ("a", "b"))
    store = Store(str(tmp_path / "cut"))
    publish(store, ("a", "b"))
    assert snapshot(store) == snapshot(Store(str(tmp_path / "calm")))


def test_pieces_of_a_cut_publish_do_not_pass_for_the_retry(tmp_path: Path) -> None:
    _first_failed = [Item(i, status={"a": "failed"} if i == "v1" else {}) for i in IDS]
    store = Store(str(tmp_path))
    planned(store, IDS)
    staged(store, "r-0", _first_failed)
    calls = CrashingStore(str(tmp_path), at=1, after=True)
    with pytest.raises(CrashError, match="outcomes"):
        publish(calls)
    assert store.list(KEYS.stage)
    again = publish(store, retry_failed=True)
    assert again is not None
    assert [u.items[0].media_id for u in again.again] == ["v1"]
    staged(store, "s-0", [Item("v1", created=2.0)])
    publish(store, retry_failed=True)
    assert visible(store)["a"] == expected("a", _whole())


def test_pieces_of_a_cut_publish_go_also_when_they_cannot_be_read_any_more(tmp_path: Path) -> None:
    """One was damaged before the publish and one behind it; nothing of the shard is open that would take them along."""
    store = Store(str(tmp_path))
    planned(store, IDS)
    keys = [staged(store, unit, _whole()) for unit in ("r-0", "r-1")]
    for number, key in enumerate(keys):
        whole = store.get(key)
        store.put(key, whole[:99])
        if number == 0:
            with pytest.raises(CrashError, match="outcomes"):
                publish(CrashingStore(str(tmp_path), at=1, after=True))
    assert len(store.list(KEYS.stage)) == 2
    remove_history(store, KEYS, ["a"])
    assert not store.list(KEYS.stage)
    assert visible(store)["a"] == expected("a", _whole())


def test_a_piece_that_cannot_be_read_waits_for_its_shard_to_be_published(tmp_path: Path) -> None:
    """It may be the store's fault, and of another run."""
    store = Store(str(tmp_path))
    planned(store, IDS)
    key = staged(store, "r-0", _whole())
    store.put(key, store.get(key)[:99])
    remove_history(store, KEYS, ["a"])
    assert [info.key for info in store.list(KEYS.stage)] == [key]


def test_a_staged_retry_survives_until_it_is_published(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    _retry(store)
    publish(store)
    assert store.list(KEYS.stage), "without --retry-failed nothing is open, and the pieces wait"
    result = publish(store, retry_failed=True)
    assert result is not None
    assert not result.again


@pytest.fixture(autouse=True)
def _no_sync(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is cut here is a process, not the power."""
    monkeypatch.setattr("os.fsync", lambda descriptor: None)


def test_rows_of_a_cut_publish_give_way_to_those_of_a_file_that_was_replaced_meanwhile(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    _first(store)
    with pytest.raises(CrashError, match="outcomes"):
        publish(CrashingStore(str(tmp_path), at=1, after=False))
    assert visible(store)["a"] == expected("a", _whole()), "old rows are visible, and nobody committed them"
    store.delete([info.key for info in store.list(KEYS.stage)])
    new = [Item("v2", (0, 1), etag="e1", created=2.0)]
    staged(store, "s-0", [i for i in _whole() if i.media_id != "v2"] + new)
    publish(store)
    assert visible(store)["a"] == expected("a", _all_but_v2() + new)
    check_hashes(store, "a")


def test_of_a_cut_retry_only_its_own_object_is_written_again(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    _retry(store)
    first = store.get(f"{KEYS.features('a')}/part-00000.parquet")
    with pytest.raises(CrashError, match="outcomes"):
        publish(CrashingStore(str(tmp_path), at=2, after=False), retry_failed=True)
    store.delete([info.key for info in store.list(KEYS.stage)])
    new = [Item("v1", (0,), created=3.0), Item("v4", (5, 6), created=3.0)]
    staged(store, "t-0", new)
    publish(store, retry_failed=True)
    assert visible(store)["a"] == expected("a", [_whole()[0], new[0], *_whole()[2:4], new[1], _whole()[5]])
    assert store.get(f"{KEYS.features('a')}/part-00000.parquet") == first
    check_hashes(store, "a")
