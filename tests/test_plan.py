"""The plan: immutable generations of shards, and the work units that are cut from them."""

import io
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from featlib.errors import ConfigError, DamagedError, StoppedError
from featlib.items import PlanItem
from featlib.layout import Keys
from featlib.manifest import SCHEMA, read_manifest
from featlib.plan import PLAN, Plan, PlanItems, empty_plan, find_rows, grow, read_plan, shard_rows
from featlib.sealed import sealed
from featlib.storage import Store
from featlib.work import (
    Unit,
    UnitItem,
    items_in_unit,
    split_unit,
    unit_from_row,
    units_of_shard,
    units_table,
    videos_in_unit,
)
from tests.shards.make import batch

KEYS = Keys("d")
MB = 1 << 20


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "out"))


def _grow(store: Store, *rows: dict[str, object], shard_items: int = 2) -> tuple[Plan, list[bool]]:
    plan, selected = grow(store, KEYS, read_plan(store, KEYS), [batch(rows)], shard_items)
    return plan, selected.tolist()


def _ids(*ids: str) -> list[dict[str, object]]:
    return [{"media_id": i} for i in ids]


def _same(left: Plan, right: Plan) -> bool:
    arrays = ("ids", "identities", "shards")
    return left.generations == right.generations and all(
        np.array_equal(getattr(left, name), getattr(right, name)) for name in arrays
    )


def test_items_are_cut_into_shards_in_feed_order(store: Store) -> None:
    plan, selected = _grow(store, *_ids("c", "a", "e", "b", "d"))
    assert plan.shards.tolist() == [0, 0, 1, 1, 2]
    assert selected == [True] * 5
    assert [[i.media_id for i in PlanItems(store, plan).shard(s)] for s in range(3)] == [["c", "a"], ["e", "b"], ["d"]]
    assert plan.next_shard == 3


def test_what_grow_gives_is_what_is_read_back(store: Store) -> None:
    plan, _ = _grow(store, *_ids("a", "b", "c"))
    assert _same(plan, read_plan(store, KEYS))
    plan, _ = _grow(store, *_ids("a", "d"))
    assert _same(plan, read_plan(store, KEYS))


def test_growing_adds_new_items_with_new_shards_and_changes_nothing_else(store: Store) -> None:
    _grow(store, *_ids("a", "b", "c"))
    first = store.get(f"{KEYS.plan}/gen-00000.plan")
    plan, selected = _grow(store, *_ids("x", "c", "y", "a"))
    assert plan.shards.tolist() == [0, 0, 1, 2, 2]
    assert selected == [True, False, True, True, True]
    assert store.get(f"{KEYS.plan}/gen-00000.plan") == first
    assert [g.num_rows for g in plan.generations] == [3, 2]
    assert [i.media_id for i in PlanItems(store, plan).shard(2)] == ["x", "y"]


def test_a_known_manifest_writes_nothing(store: Store) -> None:
    _grow(store, *_ids("a", "b"))
    plan, selected = _grow(store, *_ids("b"))
    assert selected == [False, True]
    assert len(store.list(KEYS.plan)) == len(plan.generations) == 1


def test_another_shard_size_holds_for_new_items_only(store: Store) -> None:
    _grow(store, *_ids("a", "b", "c"))
    plan, _ = _grow(store, *_ids("d", "e", "f"), shard_items=3)
    assert plan.shards.tolist() == [0, 0, 1, 2, 2, 2]


@pytest.mark.parametrize("change", [{"uri": "/v/other.mp4"}, {"start_s": 1.0}, {"end_s": 9.0}])
def test_a_known_id_with_another_source_is_refused(store: Store, change: dict[str, object]) -> None:
    _grow(store, *_ids("a", "b"))
    with pytest.raises(ConfigError, match=r"list\.csv: row 1: media_id 'b'.*another uri or range") as caught:
        _grow(store, {"media_id": "c"}, {"media_id": "b", **change})
    assert "\n" not in str(caught.value)
    assert len(store.list(KEYS.plan)) == 1


def test_a_manifest_that_fails_at_its_end_leaves_no_plan(store: Store) -> None:
    def batches() -> Iterator[pa.RecordBatch]:
        yield batch(_ids("a", "b"))
        raise ConfigError("row 2 is wrong")

    with pytest.raises(ConfigError, match="row 2"):
        grow(store, KEYS, empty_plan(), batches(), 2)
    assert store.list("") == []


def test_a_duplicate_at_the_end_of_a_real_manifest_leaves_no_plan(store: Store, tmp_path: Path) -> None:
    manifest = tmp_path / "list.csv"
    manifest.write_text("uri,media_id\na.mp4,x\nb.mp4,y\nc.mp4,x\n")
    with pytest.raises(ConfigError, match="'x'"):
        grow(store, KEYS, empty_plan(), read_manifest([str(manifest)]), 2)
    assert store.list("") == []


@pytest.mark.parametrize("columns", [{"media_id": ["b", "a", "c"]}, {"uri": ["/v/a.mp4", "/v/x.mp4", "/v/c.mp4"]}])
def test_other_items_than_those_of_the_plan_are_damage(store: Store, columns: dict[str, list[str]]) -> None:
    """As a flipped bit in the metadata of a large plan would give, which no checksum of a page covers."""
    plan, _ = _grow(store, *_ids("a", "b", "c"))
    key = plan.generations[0].key
    table = pq.read_table(io.BytesIO(store.get(key)))
    for name, values in columns.items():
        table = table.set_column(table.column_names.index(name), table.schema.field(name), pa.array(values))
    store.put(key, sealed(table))
    with pytest.raises(DamagedError, match="gen-00000"):
        PlanItems(store, plan).shard(1)


def test_items_of_another_type_are_damage(store: Store) -> None:
    """By metadata again: text that comes as bytes is not what the manifest said."""
    plan, _ = _grow(store, {"media_id": "a", "label": "cat"})
    key = plan.generations[0].key
    table = pq.read_table(io.BytesIO(store.get(key)))
    place = table.column_names.index("label")
    store.put(key, sealed(table.set_column(place, "label", table["label"].cast(pa.binary()))))
    with pytest.raises(DamagedError, match="gen-00000"):
        PlanItems(store, plan).shard(0)


def test_items_keep_what_the_manifest_said(store: Store) -> None:
    row = {"start_s": 1.5, "end_s": 2.5, "size": 7, "label": "cat", "split": "train", "manifest": '{"n":1}'}
    plan, _ = _grow(store, {"media_id": "a", **row})
    assert PlanItems(store, plan).shard(0) == [PlanItem("a", "/v/a.mp4", 1.5, 2.5, 7, "cat", "train", '{"n":1}')]


def test_rows_of_and_shard_rows(store: Store) -> None:
    plan, _ = _grow(store, *_ids("a", "b", "c", "d", "e"))
    assert [list(plan.rows_of(s)) for s in (0, 1, 2, 3)] == [[0, 1], [2, 3], [4], []]
    assert sorted(shard_rows(plan, 1).values()) == [2, 3]
    with pytest.raises(StoppedError, match="shard 9"):
        PlanItems(store, plan).shard(9)


def test_shards_cross_row_groups(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("featlib.plan._ROW_GROUP", 5)
    names = [f"v{i:03d}" for i in range(64)]
    plan, _ = _grow(store, *_ids(*names), shard_items=7)
    with store.open(plan.generations[0].key) as file:
        assert pq.ParquetFile(file).metadata.num_row_groups == 13
    items = PlanItems(store, plan)
    for shard in (0, 9, 1, 4, 3, 8, 2):
        assert [i.media_id for i in items.shard(shard)] == names[shard * 7 : shard * 7 + 7]


def test_many_generations_are_read_in_order(store: Store) -> None:
    for i in range(12):
        plan, _ = _grow(store, *_ids(f"a{i}", f"b{i}", f"c{i}"))
    assert plan.next_shard == 24
    assert [i.media_id for i in PlanItems(store, read_plan(store, KEYS)).shard(21)] == ["c10"]


def test_two_hundred_thousand_rows_take_little_memory(store: Store) -> None:
    ids = [f"clip-{i:07d}" for i in range(200_000)]

    def batches() -> Iterator[pa.RecordBatch]:
        for start in range(0, len(ids), 50_000):
            part = ids[start : start + 50_000]
            columns = {"media_id": part, "uri": [f"s3://b/{i}.mp4" for i in part], "source": ["m"] * len(part)}
            columns["row"] = list(range(len(part)))
            yield pa.RecordBatch.from_arrays(
                [pa.array(columns.get(f.name, [None] * len(part)), f.type) for f in SCHEMA], schema=SCHEMA
            )

    plan, selected = grow(store, KEYS, empty_plan(), batches(), 256)
    assert selected.all()
    assert (len(plan.ids), plan.next_shard) == (200_000, 782)
    assert plan.ids.nbytes + plan.identities.nbytes + plan.shards.nbytes == 200_000 * 36
    again = read_plan(store, KEYS)
    assert _same(again, plan)
    items = PlanItems(store, again)
    assert [i.media_id for i in items.shard(400)] == ids[400 * 256 : 401 * 256]
    assert items._cached is not None
    assert items._cached.table.num_rows <= 2 * 8192


def _units(
    items: Sequence[PlanItem],
    needs: dict[str, tuple[str, ...]] | None = None,
    segments: dict[str, tuple[int, Sequence[int]]] | None = None,
) -> list[list[str]]:
    all_needs = needs if needs is not None else {i.media_id: ("m",) for i in items}
    found = list(units_of_shard(3, items, all_needs, segments or {}, unit_items=4))
    assert all(u.shard == 3 for u in found)
    return [[i.media_id for i in u.items] for u in found]


def _item(name: str, size: int | None = None, ending: str = "mp4") -> PlanItem:
    return PlanItem(name, f"/v/{name}.{ending}", size=size)


def test_units_close_when_their_bytes_are_full() -> None:
    items = [_item("a", MB), _item("b", MB), _item("c", 5 * MB), _item("d", MB // 8), _item("e", MB // 8)]
    assert _units(items) == [["a", "b"], ["c"], ["d", "e"]]


def test_items_of_unknown_size_count_as_half_a_unit() -> None:
    assert _units([_item(n) for n in "abcde"]) == [["a", "b"], ["c", "d"], ["e"]]


def test_images_fill_a_unit_by_number() -> None:
    assert _units([_item(str(i), 9 * MB, "JPG") for i in range(9)]) == [list("0123"), list("4567"), ["8"]]


def test_even_tiny_items_fill_a_unit_by_number() -> None:
    assert _units([_item(str(i), 0) for i in range(5)]) == [list("0123"), ["4"]]


def test_in_a_small_job_videos_fill_a_unit_by_number_and_images_as_always() -> None:
    items = [*(_item(n, 0) for n in "abcd"), *(_item(n, 0, "jpg") for n in "efgh")]
    needs = {item.media_id: ("m",) for item in items}
    found = units_of_shard(0, items, needs, {}, unit_items=4, unit_videos=videos_in_unit(len(items)))
    assert [[i.media_id for i in u.items] for u in found] == [["a"], ["b"], ["c"], ["d"], list("efgh")]
    assert [videos_in_unit(n) for n in (1, 16, 40, 320)] == [1, 1, 2, 20]


def test_items_that_need_nothing_are_left_out() -> None:
    assert _units([_item(n, 0) for n in "abc"], {"a": (), "c": ("m",)}) == [["c"]]


def test_a_unit_has_one_set_of_labels() -> None:
    items = [_item(n, 0) for n in "abcd"]
    needs = {"a": ("m",), "b": ("m", "n"), "c": ("m", "n"), "d": ("m",)}
    found = list(units_of_shard(0, items, needs, {}, unit_items=64))
    assert [(u.labels, [i.media_id for i in u.items]) for u in found] == [
        (("m",), ["a"]),
        (("m", "n"), ["b", "c"]),
        (("m",), ["d"]),
    ]


def test_missing_segments_are_units_of_their_own() -> None:
    items = [_item(n, 0) for n in "abc"]
    found = list(units_of_shard(0, items, dict.fromkeys("abc", ("m",)), {"b": (5, "tables", (1, 4))}, unit_items=64))
    seen = {(tuple(i.media_id for i in u.items), u.k, u.n, u.by) for u in found}
    assert seen == {(("a", "c"), 0, 0, ""), (("b",), 1, 5, "tables"), (("b",), 4, 5, "tables")}


def test_split_unit_gives_single_items_one_attempt_later() -> None:
    unit = Unit(2, ("m", "n"), (UnitItem("a", "/a", 1.0, 2.0), UnitItem("b", "/b", attempt=2)), 0, 0)
    assert list(split_unit(unit)) == [
        Unit(2, ("m", "n"), (UnitItem("a", "/a", 1.0, 2.0, 2),)),
        Unit(2, ("m", "n"), (UnitItem("b", "/b", attempt=3),)),
    ]
    (segment,) = split_unit(Unit(0, ("m",), (UnitItem("a", "/a"),), 3, 7))
    assert (segment.k, segment.n) == (3, 7)


def test_units_come_back_from_their_table() -> None:
    units = [Unit(1, ("m",), (UnitItem("a", "/a", 0.5),)), Unit(2, ("m", "n"), (UnitItem("b", "/b"),), 1, 3)]
    table = units_table(units, 7)
    assert table["seq"].to_pylist() == [7, 8]
    assert [unit_from_row(row) for row in table.to_pylist()] == units


def test_the_plan_on_disk_has_one_schema(store: Store) -> None:
    _grow(store, *_ids("a"))
    with store.open(f"{KEYS.plan}/gen-00000.plan") as file:
        assert pq.ParquetFile(file).schema_arrow == PLAN


def test_a_generation_that_another_job_has_just_put_is_not_written_over(store: Store) -> None:
    before = read_plan(store, KEYS)
    _grow(store, *_ids("a"))
    with pytest.raises(StoppedError, match=r"gen-00000\.plan: another job has just planned"):
        grow(store, KEYS, before, [batch(_ids("b"))], 2)
    assert [i.media_id for i in PlanItems(store, read_plan(store, KEYS)).shard(0)] == ["a"]


def test_a_generation_that_is_gone_is_missed(store: Store) -> None:
    for ids in (_ids("a"), _ids("a", "b"), _ids("a", "b", "c")):
        _grow(store, *ids)
    store.delete([f"{KEYS.plan}/gen-00001.plan"])
    with pytest.raises(DamagedError, match=r"gen-00001\.plan: is gone, and .*gen-00002\.plan stands; put it back"):
        read_plan(store, KEYS)


def test_find_rows_in_any_order_with_strangers(store: Store) -> None:
    plan, _ = _grow(store, *_ids("a", "b", "c", "d", "e"))
    assert find_rows(plan, 1, ["c", "d"]).tolist() == [2, 3]
    assert find_rows(plan, 1, ["d", "a", "c"]).tolist() == [3, -1, 2]
    assert find_rows(plan, 1, ["d"]).tolist() == [3]
    assert find_rows(plan, 1, []).tolist() == []
    assert find_rows(plan, 7, ["a"]).tolist() == [-1]


@pytest.mark.parametrize(
    ("items", "fit", "count"),
    [
        *((0, 999, 64), (262_144, 999, 64), (262_145, 999, 128), (10**6, 999, 256), (10**8, 999, 256)),
        *((10**6, 255, 128), (10**6, 127, 64), (10**6, 0, 64)),
    ],
)
def test_very_many_items_come_in_larger_units_that_their_pixels_fit(items: int, fit: int, count: int) -> None:
    assert items_in_unit(items, fit) == count
