"""The backlog: plan minus published minus staged, and what results make of it."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from featlib.backlog import Backlog, staged_for
from featlib.layout import Keys
from featlib.plan import Plan, PlanItems
from featlib.shards.staging import list_pieces, stage
from featlib.storage import Store, StoreOptions, stat_media
from featlib.work import Unit
from tests.shards.make import Item, planned, staged

KEYS = Keys("d")
PRINTS = {"a": "print-a", "b": "print-b"}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path))


def _plan(store: Store, shard_items: int = 3) -> Plan:
    return planned(store, [f"v{i}" for i in range(6)], shard_items)


def _needs(a: str, b: str = "......") -> dict[str, np.ndarray]:
    """``x`` marks an item that needs the label."""
    needs = {label: np.array([c == "x" for c in text]) for label, text in (("a", a), ("b", b))}
    return {label: rows for label, rows in needs.items() if rows.any()}


def _units(store: Store, plan: Plan, backlog: Backlog) -> list[Unit]:
    return list(backlog.units(store, KEYS, PlanItems(store, plan), unit_items=64))


def _media(units: list[Unit]) -> list[str]:
    return [i.media_id for u in units for i in u.items]


def _stage_of(store: Store, media_id: str, media: Path, created: float = 1.0) -> None:
    """Stages an item as made of the file that ``media`` is now."""
    now = stat_media(str(media), StoreOptions())
    report = Item(media_id, created=created).report(["a"])
    report = replace(report, uri=str(media), facts=replace(report.facts, size=now.size, etag=now.etag))
    stage(
        store,
        KEYS,
        shard=0,
        unit=f"{media_id}-{created:g}",
        rows=[Item(media_id).rows("a")],
        reports=[report],
        fingerprints=PRINTS,
    )


def test_everything_is_open_at_first(store: Store) -> None:
    plan = _plan(store)
    backlog = Backlog(plan, _needs("xxxxxx"), PRINTS)
    assert (backlog.num_items, backlog.shards) == (6, (0, 1))
    assert _media(_units(store, plan, backlog)) == [f"v{i}" for i in range(6)]
    assert backlog.open_items == 6
    assert backlog.ready_shards() == []


def test_published_items_are_left_out(store: Store) -> None:
    plan = _plan(store)
    backlog = Backlog(plan, _needs("....x."), PRINTS)
    assert (backlog.num_items, backlog.shards) == (1, (1,))
    assert _media(_units(store, plan, backlog)) == ["v4"]


def test_staged_items_are_left_out_and_their_shard_comes_first(store: Store) -> None:
    plan = _plan(store)
    staged(store, "r-0", [Item("v4")], shard=1)
    backlog = Backlog(plan, _needs("xxxxxx"), PRINTS)
    assert _media(_units(store, plan, backlog)) == ["v3", "v5", "v0", "v1", "v2"]
    assert backlog.open_items == 5


def test_a_shard_that_is_wholly_staged_is_ready(store: Store) -> None:
    plan = _plan(store)
    staged(store, "r-0", [Item("v3"), Item("v4"), Item("v5")], shard=1)
    backlog = Backlog(plan, _needs("xxxxxx"), PRINTS)
    assert _media(_units(store, plan, backlog)) == ["v0", "v1", "v2"]
    assert backlog.ready_shards() == [1]


def test_labels_with_different_needs(store: Store) -> None:
    plan = _plan(store)
    backlog = Backlog(plan, _needs("xx....", "xxx..."), PRINTS)
    found = [(u.labels, [i.media_id for i in u.items]) for u in _units(store, plan, backlog)]
    assert found == [(("a", "b"), ["v0", "v1"]), (("b",), ["v2"])]


def test_pieces_count_for_what_each_item_needs(store: Store) -> None:
    plan = _plan(store)
    staged(store, "r-0", [Item("v0"), Item("v2")], ("b",))
    staged(store, "r-1", [Item("v1")], ("a", "b"))
    backlog = Backlog(plan, _needs("xxx...", "xxx..."), PRINTS)
    assert _media(_units(store, plan, backlog)) == ["v0", "v2"]
    fewer = Backlog(plan, _needs("......", "xxx..."), PRINTS)
    assert _media(_units(store, plan, fewer)) == []
    assert fewer.ready_shards() == [0]


def test_pieces_of_other_settings_do_not_count(store: Store) -> None:
    plan = _plan(store)
    staged(store, "r-0", [Item("v0")])
    backlog = Backlog(plan, _needs("x....."), {"a": "other"})
    assert _media(_units(store, plan, backlog)) == ["v0"]


def test_segments_that_are_staged_are_not_done_again(store: Store) -> None:
    plan = _plan(store)
    staged(store, "r-0", [Item("v0", k=0, n=3), Item("v0", k=2, n=3)])
    backlog = Backlog(plan, _needs("x....."), PRINTS)
    (unit,) = _units(store, plan, backlog)
    assert (unit.k, unit.n) == (1, 3)
    assert backlog.finish(0, [["v0", 1, 3, {}]])


def test_finish_says_when_a_shard_is_ready(store: Store) -> None:
    plan = _plan(store)
    backlog = Backlog(plan, _needs("xxx..."), PRINTS)
    _units(store, plan, backlog)
    assert not backlog.finish(0, [["v0", 0, 1, {}], ["v1", 0, 1, {}]])
    assert backlog.open_items == 1
    assert not backlog.finish(0, [["v0", 0, 1, {}]])
    assert backlog.finish(0, [["v2", 0, 1, {}]])
    assert not backlog.finish(0, [["v2", 0, 1, {}]]), "a repeat must not publish twice"
    assert backlog.open_items == 0


def test_finish_waits_for_all_segments_in_any_order(store: Store) -> None:
    plan = _plan(store)
    backlog = Backlog(plan, _needs("x....."), PRINTS)
    _units(store, plan, backlog)
    assert not backlog.finish(0, [["v0", 0, 3, {}]])
    assert not backlog.finish(0, [["v0", 2, 3, {}]])
    assert not backlog.finish(0, [["v0", 2, 3, {}]])
    assert not backlog.finish(0, [])
    assert backlog.finish(0, [["v0", 1, 3, {}]])


def test_a_result_of_a_shard_that_is_closed_is_not_taken(store: Store) -> None:
    """A long video was replaced by a picture: its second segment said that it is whole, the third is yet to come."""
    plan = _plan(store)
    backlog = Backlog(plan, _needs("x....."), PRINTS)
    _units(store, plan, backlog)
    assert not backlog.finish(0, [["v0", 0, 3, {}]])
    assert backlog.finish(0, [["v0", 0, 1, {}]])
    backlog.close(0)
    assert not backlog.finish(0, [["v0", 0, 1, {}]])
    assert not backlog.finish(0, [["v0", 2, 3, {}]])
    assert (backlog.open_items, backlog.unpublished) == (0, 0)


def test_segments_of_an_item_that_is_done_do_not_count_when_it_is_reopened(store: Store) -> None:
    plan = _plan(store)
    backlog = Backlog(plan, _needs("x....."), PRINTS)
    _units(store, plan, backlog)
    assert backlog.finish(0, [["v0", 0, 1, {}]])
    assert not backlog.finish(0, [["v0", 1, 2, {}]])
    backlog.reopen(0, ["v0"])
    assert not backlog.finish(0, [["v0", 0, 2, {}]])
    assert backlog.finish(0, [["v0", 1, 2, {}]])


def test_reopened_items_make_the_shard_wait_again(store: Store) -> None:
    plan = _plan(store)
    backlog = Backlog(plan, _needs("xx...."), PRINTS)
    _units(store, plan, backlog)
    assert backlog.finish(0, [["v0", 0, 1, {}], ["v1", 0, 2, {}], ["v1", 1, 2, {}]])
    backlog.reopen(0, ["v1"])
    assert backlog.open_items == 1
    assert not backlog.finish(0, [["v1", 0, 2, {}]])
    assert backlog.finish(0, [["v1", 1, 2, {}]])
    backlog.close(0)
    assert backlog.ready_shards() == []


def test_staged_for_looks_at_each_items_own_labels(store: Store) -> None:
    _plan(store)
    staged(store, "r-0", [Item("v0"), Item("v1")], ("a",))
    pieces = list_pieces(store, KEYS)[0]
    found = staged_for(pieces, {"v0": ("a",), "v1": ("a", "b")}, PRINTS)
    assert set(found) == {"v0"}


def test_what_was_staged_of_a_file_that_was_replaced_is_done_again(store: Store, tmp_path: Path) -> None:
    plan = _plan(store)
    same, other, gone = (tmp_path / name for name in ("same.mp4", "other.mp4", "gone.mp4"))
    for media_id, media in (("v0", same), ("v1", other), ("v2", gone)):
        media.write_bytes(b"first")
        _stage_of(store, media_id, media)
    other.write_bytes(b"another")
    gone.unlink()
    backlog = Backlog(plan, _needs("xxx..."), PRINTS)
    assert _media(_units(store, plan, backlog)) == ["v1"]
    assert backlog.ready_shards() == []
    assert backlog.finish(0, [("v1", 0, 1, {})])


def test_a_file_that_is_gone_wins_over_none_whatever_the_clocks_of_workers_say(store: Store, tmp_path: Path) -> None:
    """The node that staged the old one was an hour ahead."""
    plan = _plan(store)
    media = tmp_path / "a.mp4"
    media.write_bytes(b"first")
    _stage_of(store, "v0", media, created=7200.0)
    media.write_bytes(b"another")
    backlog = Backlog(plan, _needs("x....."), PRINTS)
    assert _media(_units(store, plan, backlog)) == ["v0"]
    _stage_of(store, "v0", media, created=3600.0)
    pieces = list_pieces(store, KEYS)[0]
    now = stat_media(str(media), StoreOptions())
    found = [
        staged_for(some, {"v0": ("a",)}, PRINTS)["v0"].reports[0].source
        for some in (pieces, backlog.without_replaced(0, pieces))
    ]
    assert found == [(5, found[0][1]), (now.size, now.etag)]
    assert len(backlog.without_replaced(0, pieces)) == 2, "both pieces are history once the shard is published"
    assert backlog.without_replaced(1, pieces) == pieces


def test_what_this_run_staged_counts_even_of_a_file_that_gave_way(store: Store, tmp_path: Path) -> None:
    """A node may have another copy than the driver; and the old file may come back. Else it was done for ever."""
    plan = _plan(store)
    media = tmp_path / "a.mp4"
    media.write_bytes(b"first")
    was = media.stat()
    _stage_of(store, "v0", media)
    media.write_bytes(b"another")
    backlog = Backlog(plan, _needs("x....."), PRINTS)
    assert _media(_units(store, plan, backlog)) == ["v0"]
    (before,) = list_pieces(store, KEYS)[0]
    assert backlog.without_replaced(0, [before])[0].reports == ()
    media.write_bytes(b"first")
    os.utime(media, ns=(was.st_atime_ns, was.st_mtime_ns))
    _stage_of(store, "v0", media, created=7200.0)
    pieces = backlog.without_replaced(0, list_pieces(store, KEYS)[0])
    assert staged_for(pieces, {"v0": ("a",)}, PRINTS)["v0"].complete


def test_of_an_item_begun_anew_what_was_staged_before_does_not_count(store: Store) -> None:
    """Its file was replaced between two segments; the node that read the first is an hour ahead."""
    plan = _plan(store)
    backlog = Backlog(plan, _needs("xx...."), PRINTS)
    _units(store, plan, backlog)
    first = staged(store, "r-0", [Item("v0", k=0, n=2, etag="e1", created=3600.0), Item("v1", created=3600.0)])
    backlog.finish(0, [["v0", 0, 2, {}], ["v0", 1, 2, {}], ["v1", 0, 1, {}]])
    backlog.reopen(0, ["v0"])
    backlog.set_aside(0, ["v0"], [first])
    assert not backlog.finish(0, [["v0", 1, 2, {}]]), "both segments are to come"
    for k in range(2):
        staged(store, f"s-{k}", [Item("v0", k=k, n=2, etag="e2")])
    pieces = backlog.without_replaced(0, list_pieces(store, KEYS)[0])
    found = staged_for(pieces, dict.fromkeys(("v0", "v1"), ("a",)), PRINTS)
    assert {m: (s.complete, s.reports[0].facts.etag) for m, s in found.items()} == {
        "v0": (True, "e2"),
        "v1": (True, "e0"),
    }


def test_what_is_staged_is_read_as_its_shards_come(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that had staged much before it was killed must not hold all of it at once."""
    monkeypatch.setattr("featlib.shards.staging._PIECES_AT_ONCE", 2)
    plan = planned(store, [f"v{i}" for i in range(12)], 2)
    for i in range(0, 12, 2):
        staged(store, f"r-{i}", [Item(f"v{i}")], shard=i // 2)
    opened: list[str] = []
    monkeypatch.setattr(Store, "open", lambda self, key, real=Store.open: opened.append(key) or real(self, key))
    backlog = Backlog(plan, {"a": np.ones(12, dtype=bool)}, PRINTS)
    units = backlog.units(store, KEYS, PlanItems(store, plan), unit_items=64)
    read = []
    for unit in units:
        read.append((unit.items[0].media_id, sum(key.endswith(".piece") for key in opened)))
    assert read == [("v1", 2), ("v3", 2), ("v5", 4), ("v7", 4), ("v9", 6), ("v11", 6)]


def test_open_items_are_counted_over_all_shards(store: Store) -> None:
    plan = _plan(store)
    backlog = Backlog(plan, _needs("xxxxxx"), PRINTS)
    _units(store, plan, backlog)
    backlog.finish(0, [["v0", 0, 1, {}], ["v0", 0, 1, {}], ["v4", 0, 1, {}]])
    assert backlog.open_items == 5, "neither a repeat nor an item of another shard counts"
    backlog.finish(1, [["v4", 0, 1, {}]])
    backlog.finish(0, [["v1", 0, 1, {}], ["v2", 0, 1, {}]])
    assert (backlog.open_items, backlog.ready_shards()) == (2, [0])
    backlog.reopen(0, ["v1", "v1"])
    assert (backlog.open_items, backlog.ready_shards()) == (3, [])
