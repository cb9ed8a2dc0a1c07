"""The ledger: what is published, item by item, and whether a source has changed since."""

import os
from pathlib import Path

import pytest

from featlib.layout import Keys
from featlib.ledger import Ledger, changed_rows
from featlib.plan import read_plan
from featlib.sealed import sealed
from featlib.shards.schema import OUTCOMES
from featlib.storage import Store, StoreOptions, stat_media
from tests.shards.make import Item, planned, publish, staged

KEYS = Keys("d")
IDS = ["v0", "v1", "v2", "v3"]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Four items, of which three are published under a and two under b."""
    store = Store(str(tmp_path / "out"))
    planned(store, IDS)
    return store


def _ledger(store: Store, *labels: str) -> Ledger:
    ledger = Ledger(read_plan(store, KEYS), labels)
    ledger.load(store, KEYS)
    return ledger


def _outcomes(*rows: tuple[str, str, str | None, int]) -> dict[str, list[object]]:
    names = ("media_id", "status", "error_class", "num_rows")
    return {name: [row[i] for row in rows] for i, name in enumerate(names)}


def test_nothing_is_done_at_first(store: Store) -> None:
    ledger = _ledger(store, "a", "b")
    assert ledger.labels == ("a", "b")
    assert not ledger.done("a", retry_failed=False).any()
    everything = ~ledger.done("a", retry_failed=False)
    assert ledger.status_counts(everything) == {"": 4}


def test_published_outcomes_are_loaded(store: Store) -> None:
    failed = Item("v2", status={"a": "failed", "b": "skipped"})
    staged(store, "r-0", [Item("v0"), Item("v1", status={"a": "partial"}), failed, Item("v3")], ("a", "b"))
    publish(store, ("a", "b"))
    ledger = _ledger(store, "a", "b")
    assert ledger.done("a", retry_failed=False).tolist() == [True] * 4
    assert ledger.done("a", retry_failed=True).tolist() == [True, True, False, True]
    assert ledger.done("b", retry_failed=True).tolist() == [True] * 4
    assert ledger.num_rows("a") == 9
    assert ledger.num_rows("b") == 9


def test_worst_status_over_models(store: Store) -> None:
    ledger = Ledger(read_plan(store, KEYS), ["a", "b"])
    ledger.record("a", 0, _outcomes(("v0", "ok", None, 3), ("v1", "ok", None, 3), ("v2", "skipped", "x", 0)))
    ledger.record(
        "b", 0, _outcomes(("v0", "partial", "corrupt", 1), ("v1", "skipped", "x", 0), ("v2", "skipped", "x", 0))
    )
    everything = ~ledger.done("a", retry_failed=False) | True
    assert ledger.status_counts(everything) == {"partial": 1, "ok": 1, "skipped": 1, "": 1}
    ledger.record("b", 0, _outcomes(("v0", "failed", "timeout", 0)))
    assert ledger.status_counts(everything)["failed"] == 1


def test_an_item_open_under_one_model_is_open(store: Store) -> None:
    ledger = Ledger(read_plan(store, KEYS), ["a", "b"])
    ledger.record("a", 0, _outcomes(("v0", "failed", "timeout", 0)))
    everything = ~ledger.done("b", retry_failed=False)
    assert ledger.status_counts(everything) == {"": 4}


def test_only_selected_items_are_counted(store: Store) -> None:
    ledger = Ledger(read_plan(store, KEYS), ["a"])
    ledger.record("a", 0, _outcomes(("v0", "failed", "timeout", 0), ("v1", "failed", "corrupt", 0)))
    first = ledger.done("a", retry_failed=False)
    first[1:] = False
    assert ledger.status_counts(first) == {"failed": 1}
    assert ledger.class_counts(first) == {"timeout": 1}


def test_classes_count_media_once_and_forget_what_was_mended(store: Store) -> None:
    ledger = Ledger(read_plan(store, KEYS), ["a", "b"])
    everything = ~ledger.done("a", retry_failed=False)
    for label in "ab":
        ledger.record(label, 0, _outcomes(("v0", "failed", "timeout", 0), ("v1", "failed", "corrupt", 0)))
    assert ledger.class_counts(everything) == {"timeout": 1, "corrupt": 1}
    for label in "ab":
        ledger.record(label, 0, _outcomes(("v0", "ok", None, 5), ("v1", "failed", "corrupt", 0)))
    assert ledger.class_counts(everything) == {"corrupt": 1}
    assert ledger.num_rows("a") == 5


def test_items_that_are_not_in_the_plan_are_ignored(store: Store) -> None:
    ledger = Ledger(read_plan(store, KEYS), ["a"])
    ledger.record("a", 0, _outcomes(("stranger", "ok", None, 1)))
    ledger.record("a", 7, _outcomes(("v0", "ok", None, 1)))
    assert not ledger.done("a", retry_failed=False).any()


def _with_sources(store: Store, tmp_path: Path) -> list[Path]:
    """Publishes outcomes that name three real files as they are now."""
    import pyarrow as pa

    paths = [tmp_path / f"{i}.bin" for i in range(3)]
    rows = []
    for path, media_id in zip(paths, IDS, strict=False):
        path.write_bytes(b"12345")
        now = stat_media(str(path), StoreOptions())
        row = dict.fromkeys(OUTCOMES.names)
        rows.append({**row, "media_id": media_id, "uri": str(path), "status": "ok", "size": now.size, "etag": now.etag})
    store.put(f"{KEYS.outcomes('a')}/part-00000.parquet", sealed(pa.Table.from_pylist(rows, schema=OUTCOMES)))
    return paths


def test_changed_sources_are_found_and_gone_ones_are_not(store: Store, tmp_path: Path) -> None:
    paths = _with_sources(store, tmp_path)
    plan = read_plan(store, KEYS)
    assert list(changed_rows(store, KEYS, plan, "a", StoreOptions())) == []
    paths[0].write_bytes(b"123456")
    os.utime(paths[1], ns=(1, 1))
    paths[2].unlink()
    assert list(changed_rows(store, KEYS, plan, "a", StoreOptions())) == [0, 1]


def test_outcomes_are_found_in_any_order_and_over_many_objects(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("featlib.ledger._OBJECTS_AT_ONCE", 1)
    planned(store, [*IDS, "w0", "w1"], 4)
    staged(store, "r-0", [Item("v2"), Item("v0", status={"a": "failed"}), Item("v1"), Item("v3")], ("a", "b"))
    publish(store, ("a", "b"))
    ledger = _ledger(store, "a", "b")
    assert ledger.done("a", retry_failed=True).tolist() == [False, True, True, True, False, False]
    assert ledger.done("b", retry_failed=True).tolist() == [True] * 4 + [False] * 2
    ledger.record("a", 0, _outcomes(("v3", "failed", "timeout", 0), ("stranger", "ok", None, 1), ("v0", "ok", None, 2)))
    assert ledger.done("a", retry_failed=True).tolist() == [True] + [False] * 5, "what is not named is not done"
    assert ledger.class_counts(ledger.done("a", retry_failed=False)) == {"timeout": 1}
