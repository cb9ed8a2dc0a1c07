"""Other people's readers open the two roots and a partition in one line each."""

from collections.abc import Callable
from pathlib import Path

import duckdb
import pandas as pd
import polars as pl
import pyarrow.dataset as ds
import pytest

from featlib.storage import Store
from tests.shards.make import KEYS, SHAPES, Item, planned, publish, staged, value

Reader = Callable[[str], pd.DataFrame]

READERS: dict[str, Reader] = {
    "pandas": pd.read_parquet,
    "pyarrow": lambda path: ds.dataset(path, partitioning="hive").to_table().to_pandas(),
    "duckdb": lambda path: duckdb.sql(
        f"select * from read_parquet('{path}/**/*.parquet', hive_partitioning=true)"
    ).df(),
    "polars": lambda path: pd.DataFrame(pl.scan_parquet(path, hive_partitioning=True).collect().to_dicts()),
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Two models of different feature size, a retry round, several parts, an image, a failure."""
    store = Store(str(tmp_path_factory.mktemp("out")))
    planned(store, ["v0", "v1", "v2"])
    failed = {"a": "failed", "b": "failed"}
    staged(store, "r-0", [Item("v0"), Item("v1", status=failed), Item("v2", status={"b": "failed"})], ("a", "b"))
    publish(store, ("a", "b"), max_bytes=200)
    staged(store, "s-0", [Item("v1", (0,), created=2.0)], ("a", "b"))
    staged(store, "s-1", [Item("v2", created=2.0, status={"b": "failed"})], ("b",))
    publish(store, ("a", "b"), retry_failed=True)
    return store.url


def _truth() -> set[tuple[str, str, int, tuple[float, ...], tuple[int, ...]]]:
    clips = {"a": {"v0": range(3), "v1": (0,), "v2": range(3)}, "b": {"v0": range(3), "v1": (0,)}}
    return {
        (label, media_id, clip, tuple(value(label, media_id, clip, "e0")), SHAPES[label])
        for label, items in clips.items()
        for media_id, mine in items.items()
        for clip in mine
    }


@pytest.mark.parametrize("name", READERS)
def test_a_root_reads_as_a_whole(root: str, name: str) -> None:
    frame = READERS[name](f"{root}/features")
    rows = zip(
        frame["model"].astype(str), frame["media_id"], frame["clip_index"], frame["feature"], frame["feature_shape"],
        strict=True,
    )  # fmt: skip
    found = [(m, i, int(c), tuple(map(float, f)), tuple(map(int, s))) for m, i, c, f, s in rows]
    assert len(found) == len(set(found))
    assert set(found) == _truth()
    assert set(frame["dataset"].astype(str)) == {"d"}


@pytest.mark.parametrize("name", READERS)
def test_a_partition_reads_alone(root: str, name: str) -> None:
    frame = READERS[name](f"{root}/{KEYS.features('b')}")
    mine = {(i, c) for label, i, c, _, _ in _truth() if label == "b"}
    assert set(zip(frame["media_id"], frame["clip_index"].astype(int), strict=True)) == mine
    assert len(frame) == len(mine)
    assert frame["box"].isna().all()


@pytest.mark.parametrize("name", READERS)
def test_outcomes_read_as_a_whole(root: str, name: str) -> None:
    frame = READERS[name](f"{root}/outcomes")
    status = dict(zip(zip(frame["model"].astype(str), frame["media_id"], strict=True), frame["status"], strict=True))
    assert len(frame) == 6
    assert status == {(m, i): "failed" if (m, i) == ("b", "v2") else "ok" for m in "ab" for i in ("v0", "v1", "v2")}


def test_a_model_is_chosen_by_its_label(root: str) -> None:
    frame = pd.read_parquet(f"{root}/features", filters=[("model", "==", "a")])
    assert len(frame) == 7
    lazy = pl.scan_parquet(f"{root}/features", hive_partitioning=True).filter(pl.col("model") == "a")
    assert lazy.collect().height == 7


def test_roots_hold_parquet_parts_and_nothing_else(root: str) -> None:
    files = [p for top in ("features", "outcomes") for p in (Path(root) / top).rglob("*") if p.is_file()]
    assert files
    assert all(p.name.startswith("part-") and p.suffix == ".parquet" for p in files)
    assert not list((Path(root) / "_featlib").rglob("*.parquet"))
