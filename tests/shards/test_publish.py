"""Publishing without crashes: what is read, what is refused, what is done again."""

import io
import json
import tracemalloc

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from featlib.backlog import Backlog
from featlib.errors import DamagedError
from featlib.layout import Keys, PartName
from featlib.plan import read_plan
from featlib.shards.commit import read_committed
from featlib.shards.pieces import DamagedPieceError, unique_rows
from featlib.shards.publish import ShardJob, _Visible, publish_shard
from featlib.shards.schema import FEATURES, OUTCOMES, RECORDED
from featlib.shards.staging import list_pieces
from featlib.storage import Store
from tests.shards.make import (
    KEYS,
    NO_LIMIT,
    Item,
    check_hashes,
    cut_before_the_commit,
    expected,
    flip,
    outcomes,
    planned,
    provenance,
    publish,
    publisher,
    shard_job,
    staged,
    visible,
)


def test_rows_are_in_plan_order_under_one_schema(store: Store) -> None:
    planned(store, ["v2", "v0", "v1"])
    staged(store, "r-1", [Item("v0"), Item("v1", (2, 0, 1))], ("a", "b"))
    staged(store, "r-0", [Item("v2")], ("a", "b"))
    publish(store, ("a", "b"))
    for label in "ab":
        table = pq.read_table(io.BytesIO(store.get(f"{KEYS.features(label)}/part-00000.parquet")))
        assert table.schema.remove_metadata() == FEATURES
        order = list(zip(table["media_id"].to_pylist(), table["clip_index"].to_pylist(), strict=True))
        assert order == [(m, c) for m in ("v2", "v0", "v1") for c in range(3)]
        outcomes = pq.read_table(io.BytesIO(store.get(f"{KEYS.outcomes(label)}/part-00000.parquet")))
        assert outcomes.schema.remove_metadata() == OUTCOMES
        assert outcomes["media_id"].to_pylist() == ["v2", "v0", "v1"]


def test_items_of_interleaved_pieces_stand_in_plan_order_in_whole_items(store: Store) -> None:
    """Neighbours in a piece are written at once; that must neither mix nor cut nor lose items."""
    items = [Item(f"v{i}", (0, 1)) for i in range(9)]
    items[3], items[6] = Item("v3", status={"a": "failed"}), Item("v6", (1, 0, 1))
    planned(store, [i.media_id for i in items])
    staged(store, "r-0", [items[0], items[1], items[3], items[4]], ("b", "a"))
    staged(store, "r-1", [items[2], items[8], items[5]], ("b", "a"))
    staged(store, "r-2", [items[6], items[7]], ("b", "a"))
    publish(store, ("a", "b"), max_bytes=400)
    for label in "ab":
        parts = sorted((i.key for i in store.list(KEYS.features(label))), key=lambda key: PartName.parse(key) or key)
        objects = [pq.read_table(io.BytesIO(store.get(key))) for key in parts]
        assert len(objects) > 2
        ids = [media_id for table in objects for media_id in dict.fromkeys(table["media_id"].to_pylist())]
        assert ids == [i.media_id for i in items if label == "b" or i.media_id != "v3"]
        assert visible(store)[label] == expected(label, items)
        check_hashes(store, label)


def test_footer_says_what_made_a_shard(store: Store) -> None:
    planned(store, ["v0"])
    staged(store, "r-0", [Item("v0")])
    publish(store)
    for root in (KEYS.features("a"), KEYS.outcomes("a")):
        footer = pq.read_schema(io.BytesIO(store.get(f"{root}/part-00000.parquet"))).metadata
        assert footer[b"featlib.fingerprint"] == b"print-a"
        assert json.loads(footer[b"featlib.semantics"]) == {"network": "a"}
        assert footer[b"featlib.model"] == b"a"


def test_outcomes_hold_what_was_learned(store: Store) -> None:
    planned(store, ["v0", "v1"])
    staged(store, "r-0", [Item("v0", attempts=2), Item("v1", status={"a": "failed"})])
    publish(store)
    rows = outcomes(store)
    good = {"status": "ok", "num_rows": 3, "attempts": 2, "codec": "h264", "frames_decoded": 3, "etag": "e0"}
    assert {k: rows["v0"][k] for k in good} == good
    bad = {"status": "failed", "num_rows": 0, "error_class": "timeout", "retryable": True}
    assert {k: rows["v1"][k] for k in bad} == bad


@pytest.mark.parametrize("attempts", [(3, 1), (1, 2)])
def test_attempts_of_a_long_item_are_those_of_the_segment_that_took_most(
    store: Store, attempts: tuple[int, int]
) -> None:
    """Each segment counts its own tries from 1."""
    planned(store, ["v0"])
    for k, tries in enumerate(attempts):
        staged(store, f"r-{k}", [Item("v0", clips=(k,), k=k, n=2, attempts=tries)])
    publish(store)
    assert {k: outcomes(store)["v0"][k] for k in ("status", "num_rows", "attempts")} == {
        "status": "ok", "num_rows": 2, "attempts": max(attempts),
    }  # fmt: skip


def test_attempts_add_up_over_rounds(store: Store) -> None:
    planned(store, ["v0"])
    for round_ in range(3):
        staged(store, f"r-{round_}", [Item("v0", status={"a": "failed"}, created=round_)])
        publish(store, retry_failed=True)
    assert outcomes(store)["v0"]["attempts"] == 3
    staged(store, "r-9", [Item("v0", created=9)])
    publish(store, retry_failed=True)
    assert (outcomes(store)["v0"]["attempts"], outcomes(store)["v0"]["status"]) == (4, "ok")
    assert [i.key.rpartition("/")[2] for i in store.list(KEYS.features("a"))] == ["part-00000-r3.parquet"]


def test_a_repeated_publish_puts_nothing(store: Store) -> None:
    planned(store, ["v0", "v1"])
    staged(store, "r-0", [Item("v0"), Item("v1")])
    job = shard_job(store, ("a",))
    first = publish_shard(store, KEYS, job, provenance("a"), max_bytes=NO_LIMIT)
    before = {i.key: i.etag for root in ("features", "outcomes") for i in store.list(root)}
    again = ShardJob(0, job.items, job.staged, {"a": [i.key for i in store.list(KEYS.features("a"))]})
    published = publish_shard(store, KEYS, again, provenance("a"), max_bytes=NO_LIMIT)
    assert {i.key: i.etag for root in ("features", "outcomes") for i in store.list(root)} == before
    assert published["a"]["status"] == ["ok", "ok"]
    assert published == first
    assert tuple(first["a"]) == RECORDED, "it waits in memory until the run takes it"


def test_a_damaged_piece_publishes_nothing_and_is_done_again(store: Store) -> None:
    planned(store, ["v0", "v1", "v2"])
    staged(store, "r-0", [Item("v0")])
    damaged = staged(store, "r-1", [Item("v1"), Item("v2")])
    flip(store, damaged)
    with pytest.raises(DamagedPieceError, match="r-1"):
        publish_shard(store, KEYS, shard_job(store, ("a",)), provenance("a"), max_bytes=NO_LIMIT)
    result = publish(store)
    assert result is not None
    assert [u.items[0].media_id for u in result.again] == ["v1", "v2"]
    assert all(u.labels == ("a",) and u.shard == 0 for u in result.again)
    assert not store.list("features")
    assert not store.list("outcomes")
    assert store.stat(damaged) is None
    staged(store, "s-0", [Item("v1"), Item("v2")])
    publish(store)
    assert visible(store)["a"] == expected("a", map(Item, ("v0", "v1", "v2")))


def test_damage_under_the_second_label_repeats_no_row_of_the_first(store: Store) -> None:
    """Some items need one label only, so that the damage shows after the other label is published."""
    planned(store, ["v0", "v1"])
    staged(store, "r-0", [Item("v0")], ("a",))
    made = publisher(store, ("a",))
    made.backlog = Backlog(read_plan(store, KEYS), {"a": np.array([True, False])}, {"a": "print-a"})
    made.publish(0)
    staged(store, "s-0", [Item("v1")], ("a", "b"))
    flip(store, staged(store, "s-1", [Item("v0")], ("b",)))
    both = publisher(store, ("a", "b"))
    result = both.publish(0)
    assert [(u.labels, u.items[0].media_id) for u in result.again] == [(("b",), "v0")]
    staged(store, "s-2", [Item("v0")], ("b",))
    assert not both.publish(0).again
    assert visible(store) == {label: expected(label, [Item("v0"), Item("v1")]) for label in "ab"}
    assert outcomes(store)["v1"]["attempts"] == 1
    check_hashes(store, "a")
    check_hashes(store, "b")


@pytest.mark.parametrize(
    "again",
    [
        Item("v1", range(5), etag="e1", created=2.0),
        Item("v1", (0, 1), etag="e1", created=2.0),
        Item("v1", status={"a": "failed", "b": "failed"}, etag=None, created=2.0),
    ],
    ids=["longer", "shorter", "failed"],
)
def test_what_damage_under_the_second_label_made_anew_is_of_one_version(
    store: Store, monkeypatch: pytest.MonkeyPatch, again: Item
) -> None:
    """The file was replaced, or could not be read any more, before its item was done again for both labels."""
    monkeypatch.setattr("featlib.shards.pieces._CACHED_PIECES", 1)
    planned(store, ["v0", "v1"])
    staged(store, "r-0", [Item("v0")], ("a", "b"))
    key = staged(store, "r-1", [Item("v1")], ("a", "b"))
    both = publisher(store, ("a", "b"))
    both.on_event = lambda name, label: flip(store, key) if (name, label) == ("outcomes_put", "a") else None
    assert [(u.labels, u.items[0].media_id) for u in both.publish(0).again] == [(("a", "b"), "v1")]
    assert visible(store) == {"a": expected("a", [Item("v0"), Item("v1")])}
    staged(store, "s-0", [again], ("a", "b"))
    both.on_event = lambda name, label: None
    assert not both.publish(0).again
    assert visible(store) == {label: expected(label, [Item("v0"), again]) for label in "ab"}
    for label in "ab":
        row = outcomes(store, label)["v1"]
        assert (row["etag"], row["num_rows"]) == (again.etag, len(expected(label, [again]).get("v1", ())))
        check_hashes(store, label)


def test_memory_grows_with_items_not_with_their_rows(store: Store) -> None:
    """A dense shard has millions of rows; what is known of those that are visible is known by item."""
    planned(store, ["v0", "v1"])
    staged(store, "r-0", [Item(i, range(20_000)) for i in ("v0", "v1")])
    publish(store)
    committed, present = read_committed(store, KEYS, "a", 0), [info.key for info in store.list(KEYS.features("a"))]
    _Visible.read(store, present, committed, {"v0"})  # whatever is loaded once
    tracemalloc.start()
    visible_ = _Visible.read(store, present, committed, {"v0"})
    kept = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert visible_.homes == {"v0": present}
    assert kept < 40_000


def test_missing_segments_are_asked_for(store: Store) -> None:
    planned(store, ["v0", "v1"])
    staged(store, "r-0", [Item("v0", (0, 1), 0, 2)])
    staged(store, "r-1", [Item("v1")])
    result = publish(store)
    assert result is not None
    assert [u.items[0].media_id for u in result.again] == ["v0"]
    assert not store.list("features")


def test_a_lost_segment_makes_its_item_partial(store: Store) -> None:
    planned(store, ["v0"])
    staged(store, "r-0", [Item("v0", (0, 1), 0, 2)])
    staged(store, "r-died", [Item("v0", (), 1, 2, etag=None, created=5.0, status={"a": "failed"})])
    result = publish(store)
    assert result is not None
    assert not result.again
    assert outcomes(store)["v0"]["status"] == "partial"
    assert outcomes(store)["v0"]["num_rows"] == 2
    assert sorted(visible(store)["a"]["v0"]) == [0, 1]


def test_a_changed_item_outside_this_run_leaves_its_object_alone(store: Store) -> None:
    """A smaller manifest with ``--changed``: only staged items may replace rows."""
    planned(store, ["v0", "v1"])
    staged(store, "r-0", [Item("v0"), Item("v1", status={"a": "failed"})])
    publish(store)
    before = store.get(f"{KEYS.features('a')}/part-00000.parquet")
    staged(store, "s-0", [Item("v1", created=2.0)])
    job = shard_job(store, ("a",))
    job = ShardJob(0, job.items, job.staged, {"a": [f"{KEYS.features('a')}/part-00000.parquet"]})
    publish_shard(store, KEYS, job, provenance("a"), max_bytes=NO_LIMIT)
    assert store.get(f"{KEYS.features('a')}/part-00000.parquet") == before
    assert visible(store)["a"] == expected("a", [Item("v0"), Item("v1")])


@pytest.mark.parametrize("replaced", [False, True])
def test_rows_of_a_cut_publish_that_nobody_asks_for_any_more_go(store: Store, *, replaced: bool) -> None:
    """The next run is over a smaller manifest; the one after that over all, and a video may have changed by then."""
    planned(store, ["v0", "v1"])
    staged(store, "r-0", [Item("v0"), Item("v1")])
    job = shard_job(store, ("a",))
    cut_before_the_commit(store, job)
    (key,) = [info.key for info in store.list(KEYS.features("a"))]
    alone = {"a": {"v0": job.staged["a"]["v0"]}}
    publish_shard(store, KEYS, ShardJob(0, job.items, alone, {"a": [key]}), provenance("a"), max_bytes=NO_LIMIT)
    assert visible(store)["a"] == expected("a", [Item("v0")])
    assert list(outcomes(store)) == ["v0"]
    check_hashes(store, "a")
    again = Item("v1", (0, 1), etag="e1", created=5.0) if replaced else Item("v1", created=5.0)
    store.delete([piece.key for piece in list_pieces(store, KEYS)[0]])
    staged(store, "s-0", [again])
    publish(store)
    assert visible(store)["a"] == expected("a", [Item("v0"), again])
    check_hashes(store, "a")


def test_rows_of_a_retry_that_was_cut_do_not_stand_beside_a_failure(store: Store) -> None:
    planned(store, ["v0", "v1"])
    staged(store, "r-0", [Item("v0", status={"a": "failed"})])
    first = shard_job(store, ("a",))
    publish_shard(store, KEYS, first, provenance("a"), max_bytes=NO_LIMIT)
    store.delete([piece.key for piece in list_pieces(store, KEYS)[0]])
    staged(store, "s-0", [Item("v0", created=2.0)])
    cut_before_the_commit(store, shard_job(store, ("a",)))
    store.delete([piece.key for piece in list_pieces(store, KEYS)[0]])
    staged(store, "t-0", [Item("v1", created=3.0)])  # and nobody asks for the failed one again
    job = shard_job(store, ("a",))
    present = [info.key for info in store.list(KEYS.features("a"))]
    publish_shard(store, KEYS, ShardJob(0, job.items, job.staged, {"a": present}), provenance("a"), max_bytes=NO_LIMIT)
    assert visible(store)["a"] == expected("a", [Item("v1")])
    assert {m: row["status"] for m, row in outcomes(store).items()} == {"v0": "failed", "v1": "ok"}
    check_hashes(store, "a")


def test_pieces_that_hold_other_labels_go_and_are_made_again_for_them(store: Store) -> None:
    planned(store, ["v0"])
    key = staged(store, "r-0", [Item("v0")], ("a", "b"))
    publish(store, ("a",))
    assert store.stat(key) is None
    staged(store, "r-1", [Item("v0")], ("b",))
    publish(store, ("b",))
    assert visible(store) == {label: expected(label, [Item("v0")]) for label in "ab"}


def test_all_failed_gives_outcomes_and_no_features(store: Store) -> None:
    planned(store, ["v0", "v1"])
    staged(store, "r-0", [Item(i, status={"a": "failed"}) for i in ("v0", "v1")])
    publish(store)
    assert not store.list("features")
    assert {r["status"] for r in outcomes(store).values()} == {"failed"}
    check_hashes(store, "a")


def test_unique_rows_sorts_and_drops_repeats() -> None:
    rows = pa.concat_tables([Item("v0", (3, 1)).rows("a"), Item("v0", (1, 0, 2)).rows("a")])
    assert unique_rows(rows)["clip_index"].to_pylist() == [0, 1, 2, 3]
    assert unique_rows(rows.slice(0, 0)).num_rows == 0


@pytest.mark.parametrize(
    "name", [PartName(0), PartName(12345), PartName(7, 2), PartName(7, 0, 3), PartName(123456, 4, 11)]
)
def test_part_names_come_back(name: PartName) -> None:
    assert PartName.parse(f"features/dataset=d/model=m/{name}") == name


@pytest.mark.parametrize(
    "name", ["part-1.parquet", "part-00000.parquet.tmp", "x-part-00000.parquet", "part-00000-r.parquet"]
)
def test_other_names_are_not_parts(name: str) -> None:
    assert PartName.parse(name) is None


def test_nothing_below_own_folder_ends_in_parquet(store: Store) -> None:
    planned(store, ["v0"])
    staged(store, "r-0", [Item("v0")])
    assert [i.key for i in store.list("") if i.key.endswith(".parquet")] == []
    assert all(i.key.startswith("_featlib/") for i in store.list(""))
    assert Keys("d").own == "_featlib/d"


def test_rows_of_a_damaged_object_are_not_published_anew(store: Store) -> None:
    """``--changed`` rewrites an object: what it keeps of it must be what was committed."""
    planned(store, ["v0", "v1"])
    staged(store, "r-0", [Item("v0"), Item("v1")])
    publish(store)
    key = f"{KEYS.features('a')}/part-00000.parquet"
    whole = store.get(key)
    for place in (len(whole) // 2, len(whole) - 20, 8):
        store.put(key, whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        staged(store, "s-0", [Item("v1", etag="new")])
        with pytest.raises(DamagedError, match=r"part-00000\.parquet: is damaged"):
            publish(store, etags={"v1": "new"})
    store.put(key, whole)
    publish(store, etags={"v1": "new"})
    assert visible(store)["a"] == expected("a", [Item("v0"), Item("v1", etag="new")])
    check_hashes(store, "a")


def test_a_replacement_whose_commit_was_cut_is_taken_up_by_its_own_seal(store: Store) -> None:
    planned(store, ["v0", "v1"])
    staged(store, "r-0", [Item("v0"), Item("v1")])
    publish(store)
    staged(store, "s-0", [Item("v1", etag="new")])

    def dies(name: str, key: str) -> None:
        if name == "features_put":
            raise KeyboardInterrupt

    cut = publisher(store, etags={"v1": "new"})
    cut.on_event = dies
    with pytest.raises(KeyboardInterrupt):
        cut.publish(0)
    publish(store, etags={"v1": "new"})
    assert visible(store)["a"] == expected("a", [Item("v0"), Item("v1", etag="new")])
    check_hashes(store, "a")
