"""Features read back through ``open_features``."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

import featlib
from featlib.errors import ConfigError
from featlib.shards.reader import open_features
from featlib.shards.schema import FEATURES
from featlib.storage import Store
from tests.shards.make import KEYS, SHAPES, Item, planned, publish, staged, value

IDS = ["v2", "v0", "v1", "v3"]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Two models; v0 failed at first and came with the second round, in several parts."""
    store = Store(str(tmp_path))
    planned(store, IDS)
    failed = Item("v0", status={"a": "failed", "b": "failed"})
    staged(store, "r-0", [Item("v2"), failed, Item("v1", (0,)), Item("v3")], ("a", "b"))
    publish(store, ("a", "b"), max_bytes=200)
    staged(store, "s-0", [Item("v0", (0, 1), created=2.0)], ("a", "b"))
    publish(store, ("a", "b"), retry_failed=True)
    return store


def test_rows_come_in_plan_order_and_retried_ones_last(store: Store) -> None:
    features = open_features(store.url, dataset="d", model="a")
    names = [k.key.rpartition("/")[2] for k in store.list(KEYS.features("a"))]
    assert "part-00000-p1.parquet" in names
    assert "part-00000-r1.parquet" in names
    order = [(m, c) for m, c in features.keys()[["media_id", "clip_index"]].itertuples(index=False)]
    assert order == [*(("v2", c) for c in range(3)), ("v1", 0), *(("v3", c) for c in range(3)), ("v0", 0), ("v0", 1)]
    assert len(features) == 9


@pytest.mark.parametrize(("label", "shape"), [("a", (4,)), ("b", (2, 3))])
def test_numpy_goes_with_keys(store: Store, label: str, shape: tuple[int, ...]) -> None:
    features = open_features(store.url, dataset="d", model=label)
    values, keys = features.to_numpy(), features.keys()
    assert values.shape == (9, *shape)
    assert values.dtype == np.float32
    for row, (media_id, clip, region) in zip(values, keys.itertuples(index=False), strict=True):
        assert region == 0
        assert row.reshape(-1).tolist() == value(label, media_id, clip, "e0")


def test_pandas_and_columns(store: Store) -> None:
    features = open_features(store.url, dataset="d", model="a")
    frame = features.to_pandas()
    assert frame["feature"][0].dtype == np.float32
    assert list(features.to_pandas(["media_id"]).columns) == ["media_id"]
    assert features.to_arrow(["clip_index"]).num_rows == 9


def test_outcomes_and_settings(store: Store) -> None:
    features = open_features(store.url, dataset="d", model="a")
    outcomes = features.outcomes()
    assert outcomes["media_id"].tolist() == IDS
    assert set(outcomes["status"]) == {"ok"}
    assert features.settings == {"network": "a"}
    assert "9 rows" in repr(features)


def test_what_is_not_there_is_said_with_what_is(store: Store) -> None:
    with pytest.raises(ConfigError, match=r"model=c; there is dataset=d/model=a, dataset=d/model=b") as caught:
        open_features(store.url, dataset="d", model="c")
    assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match="there is nothing"):
        open_features(f"{store.url}/elsewhere", dataset="d", model="a")


def test_only_failures_give_empty_features(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    planned(store, ["v0"])
    staged(store, "r-0", [Item("v0", status={"a": "failed"})])
    publish(store)
    features = open_features(store.url, dataset="d", model="a")
    assert len(features) == 0
    assert features.to_numpy().shape == (0, 0)
    assert features.to_pandas().empty
    assert features.outcomes()["status"].tolist() == ["failed"]
    assert features.settings == {"network": "a"}


def test_shapes_that_differ_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(str(tmp_path))
    planned(store, ["v0", "v1"])
    staged(store, "r-0", [Item("v0")])
    monkeypatch.setitem(SHAPES, "a", (2, 2))
    staged(store, "r-1", [Item("v1")])
    publish(store)
    with pytest.raises(ValueError, match=r"several shapes.*use to_pandas"):
        open_features(store.url, dataset="d", model="a").to_numpy()


def test_reading_loads_neither_torch_nor_ray_nor_av(store: Store) -> None:
    code = (
        "import sys, featlib; f = featlib.open_features(sys.argv[1], dataset='d', model='a'); f.to_numpy(); "
        "f.outcomes(); print([m for m in ('torch', 'ray', 'av', 'fsspec') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, store.url], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_package_exports_the_reader() -> None:
    assert featlib.open_features is open_features


def test_a_flipped_bit_in_a_page_is_not_handed_out(store: Store) -> None:
    """Nobody but the pages' own checksums looks at what one reads without ``featlib verify``."""
    key = next(info.key for info in store.list(KEYS.features("a")))
    path = Path(store.url, key)
    whole = path.read_bytes()
    column = pq.ParquetFile(path).metadata.row_group(0).column(FEATURES.names.index("feature"))
    end = column.data_page_offset + column.total_compressed_size
    path.write_bytes(whole[: end - 1] + bytes([whole[end - 1] ^ 1]) + whole[end:])
    with pytest.raises(OSError, match="CRC"):
        open_features(store.url, dataset="d", model="a").to_numpy()
