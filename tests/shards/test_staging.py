"""Staged pieces: they commit themselves, and only those that belong together make an item."""

import numpy as np
import pyarrow as pa
import pytest

from featlib.items import ItemReport
from featlib.shards.staging import PIECE, feature_rows, list_pieces, read_piece, staged_items
from featlib.storage import Store
from featlib.unit import CLIPS
from tests.shards.make import KEYS, Item, staged, value

WANTED = {"a": "print-a"}


def _staged(store: Store, shard: int = 0, wanted: dict[str, str] | None = None) -> dict[str, tuple[int, ...]]:
    """By media id, the segments that still miss."""
    pieces = list_pieces(store, KEYS, shard).get(shard, [])
    return {m: s.missing for m, s in staged_items(pieces, wanted or WANTED).items()}


def test_a_piece_gives_back_rows_and_reports(store: Store) -> None:
    key = staged(store, "run-00000007", [Item("v0", (0, 1)), Item("v1", ())], ("a", "b"), shard=3)
    assert key.startswith("_featlib/d/stage/00003/run-00000007-")
    table = read_piece(store, key)
    assert table is not None
    assert table.schema.remove_metadata() == PIECE
    assert table["model"].to_pylist() == ["a", "a", "b", "b"]
    assert table["feature"][1].as_py() == value("a", "v0", 1, "e0")
    assert table["feature_shape"].to_pylist() == [[4], [4], [2, 3], [2, 3]]
    (piece,) = list_pieces(store, KEYS)[3]
    assert piece.key == key
    assert piece.fingerprints == {"a": "print-a", "b": "print-b"}
    assert piece.reports == (Item("v0", (0, 1)).report("ab"), Item("v1", ()).report("ab"))


def test_further_columns_are_those_given() -> None:
    clips = pa.array([{"item": 0, "clip_index": c} for c in (0, 0)], CLIPS.value_type)
    extra = {
        "region_index": pa.array([0, 1], pa.int32()),
        "score": pa.array([0.5, 0.25], pa.float32()),
        "labels": pa.array([["cat"], ["dog", "cow"]], pa.list_(pa.string())),
    }
    table = feature_rows("a", ["v0"], ["/v/v0.mp4"], clips, np.zeros((2, 4), np.float32), [4], extra)
    assert table.schema == PIECE
    assert table["region_index"].to_pylist() == [0, 1]
    assert table["score"].to_pylist() == [0.5, 0.25]
    assert table["labels"].to_pylist() == [["cat"], ["dog", "cow"]]
    assert table["attention"].null_count == 2


def test_reports_come_back_from_dicts() -> None:
    report = Item("v0", k=2, n=5, status={"b": "partial"}).report(("a", "b"))
    assert ItemReport.from_dict(report.to_dict()) == report


def test_a_piece_without_rows_counts(store: Store) -> None:
    key = staged(store, "r-0", [Item("v0", status={"a": "failed"})])
    table = read_piece(store, key)
    assert table is not None
    assert table.num_rows == 0
    assert _staged(store) == {"v0": ()}


@pytest.mark.parametrize("place", [0, 300, -1])
def test_damage_is_seen_when_rows_are_read(store: Store, place: int) -> None:
    key = staged(store, "r-0", [Item("v0")])
    data = bytearray(store.get(key))
    data[place] ^= 0x01
    store.put(key, bytes(data))
    assert read_piece(store, key) is None


@pytest.mark.parametrize("length", [0, 1, 100])
def test_a_piece_without_readable_head_is_not_staged(store: Store, length: int) -> None:
    key = staged(store, "r-0", [Item("v0")])
    store.put(key, store.get(key)[:length])
    staged(store, "r-1", [Item("v1")])
    assert _staged(store) == {"v1": ()}


def test_other_files_in_the_folder_are_no_pieces(store: Store) -> None:
    store.put(f"{KEYS.stage}/00000/readme.txt", b"hello")
    assert list_pieces(store, KEYS) == {}


def test_other_fingerprints_do_not_count(store: Store) -> None:
    staged(store, "r-0", [Item("v0")])
    assert _staged(store, wanted={"a": "another"}) == {}
    assert _staged(store, wanted={"b": "print-b"}) == {}


def test_more_labels_than_wanted_count_and_fewer_do_not(store: Store) -> None:
    staged(store, "r-0", [Item("v0")], ("a", "b"))
    staged(store, "r-1", [Item("v1")], ("a",))
    assert _staged(store) == {"v0": (), "v1": ()}
    assert _staged(store, wanted={"a": "print-a", "b": "print-b"}) == {"v0": ()}


def test_segments_come_from_several_pieces(store: Store) -> None:
    staged(store, "r-0", [Item("v0", k=0, n=3)])
    assert _staged(store) == {"v0": (1, 2)}
    staged(store, "r-1", [Item("v0", k=2, n=3)])
    staged(store, "r-2", [Item("v0", k=2, n=3, created=9.0)])
    assert _staged(store) == {"v0": (1,)}
    staged(store, "r-3", [Item("v0", k=1, n=3)])
    assert _staged(store) == {"v0": ()}


def test_segments_of_two_sources_do_not_mix(store: Store) -> None:
    staged(store, "r-0", [Item("v0", k=0, n=2, etag="old")])
    staged(store, "r-1", [Item("v0", k=1, n=2, etag="new", created=2.0)])
    assert _staged(store) == {"v0": (0,)}


def test_the_newest_source_wins_even_when_it_is_incomplete(store: Store) -> None:
    staged(store, "r-0", [Item("v0", k=k, n=2, etag="old") for k in (0, 1)])
    staged(store, "r-1", [Item("v0", k=0, n=2, etag="new", created=2.0)])
    assert _staged(store) == {"v0": (1,)}


def test_a_complete_set_wins_over_another_cut_of_the_same_source(store: Store) -> None:
    staged(store, "r-0", [Item("v0", k=k, n=2) for k in (0, 1)])
    staged(store, "r-1", [Item("v0", k=k, n=3, created=2.0) for k in (0, 1)])
    pieces = list_pieces(store, KEYS)[0]
    assert staged_items(pieces, WANTED)["v0"].n == 2


def test_a_segment_that_never_learned_its_source_completes_the_item(store: Store) -> None:
    """Without this an item whose worker dies on one segment would be done again for ever."""
    staged(store, "r-0", [Item("v0", k=k, n=3) for k in (0, 2)])
    staged(store, "r-1", [Item("v0", (), k=1, n=3, etag=None, created=7.0, status={"a": "failed"})])
    assert _staged(store) == {"v0": ()}


def test_an_unknown_source_does_not_make_an_old_set_the_newest(store: Store) -> None:
    staged(store, "r-0", [Item("v0", k=k, n=3, etag="old") for k in (0, 2)])
    staged(store, "r-1", [Item("v0", (), k=1, n=3, etag=None, created=7.0, status={"a": "failed"})])
    staged(store, "r-2", [Item("v0", k=0, n=3, etag="new", created=2.0)])
    assert _staged(store) == {"v0": (2,)}


def test_an_item_that_failed_before_it_was_opened_is_complete(store: Store) -> None:
    staged(store, "r-0", [Item("v0", (), etag=None, status={"a": "failed"})])
    assert _staged(store) == {"v0": ()}


@pytest.mark.parametrize(("failed_at", "status"), [(3.0, "failed"), (1.0, "ok")])
def test_of_two_whole_reports_the_newer_stands_though_it_never_saw_the_source(
    store: Store, failed_at: float, status: str
) -> None:
    """A file was replaced after it was staged, and reading the new one ended its process before anything was known."""
    staged(store, "first", [Item("v0", created=2.0)])
    staged(store, "second", [Item("v0", (), etag=None, created=failed_at, status={"a": "failed"})])
    found = staged_items(list_pieces(store, KEYS)[0], WANTED)["v0"]
    assert [r.models["a"].status for r in found.reports] == [status]


def test_a_piece_tells_its_rounds_and_those_of_before_that_it_does_not_know_them(store: Store) -> None:
    staged(store, "r-0", [Item("v0")], ("a", "b"), rounds={"a": 2, "b": 0})
    staged(store, "r-1", [Item("v1")], ("a", "b"), rounds={})
    assert [piece.rounds for piece in list_pieces(store, KEYS)[0]] == [{"a": 2, "b": 0}, {}]


def test_a_piece_whose_rounds_were_flipped_is_not_staged(store: Store) -> None:
    key = staged(store, "r-0", [Item("v0")], rounds={"a": 2})
    store.put(key, store.get(key).replace(b'{"a":2}', b'{"a":3}').replace(b'{"a": 2}', b'{"a": 3}'))
    assert _staged(store) == {}


@pytest.mark.parametrize("names", [("0-late", "z-asked"), ("z-late", "0-asked")])
def test_of_two_reports_of_one_source_the_better_stands_and_of_equals_the_newer(
    store: Store, names: tuple[str, str]
) -> None:
    late, asked = names
    failed = {"a": "failed"}
    staged(store, late, [Item("v0", (), status=failed), Item("v1", created=7.0), Item("v2", (), status=failed)])
    staged(store, asked, [Item("v0", created=2.0), Item("v1", created=8.0), Item("v2", (), created=2.0, status=failed)])
    found = staged_items(list_pieces(store, KEYS)[0], WANTED)
    assert [(found[m].reports[0].models["a"].status, found[m].reports[0].created) for m in ("v0", "v1", "v2")] == [
        ("ok", 2.0),
        ("ok", 8.0),
        ("failed", 2.0),
    ]


def test_where_the_source_is_not_known_the_newest_report_stands(store: Store) -> None:
    staged(store, "0-first", [Item("v0", etag=None)])
    staged(store, "1-second", [Item("v0", (), etag=None, created=2.0, status={"a": "failed"})])
    assert staged_items(list_pieces(store, KEYS)[0], WANTED)["v0"].reports[0].created == 2.0
