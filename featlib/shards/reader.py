"""Reading features back: pandas and numpy in one line, without torch, ray or av."""

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from featlib.errors import ConfigError
from featlib.layout import Keys, PartName
from featlib.shards.schema import KEY, read_footer
from featlib.storage import Store, StoreOptions

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa


class Features:
    """The features of one model over one dataset; what ``open_features`` gives.

    Rows come in the order of the plan: shard by shard, item by item, clip by clip; items that were taken up again
    later stand behind the others of their shard.
    """

    def __init__(self, store: Store, dataset: str, model: str) -> None:
        self.dataset, self.model = dataset, model
        self._store, self._keys = store, Keys(dataset)
        self._features = self._parts(self._keys.features(model))
        self._outcomes = self._parts(self._keys.outcomes(model))
        if not self._outcomes and not self._features:
            raise ConfigError(_no_partition(store, dataset, model))

    def _parts(self, prefix: str) -> list[str]:
        named = ((PartName.parse(info.key), info.key) for info in self._store.list(prefix))
        return [key for _, key in sorted((name, key) for name, key in named if name is not None)]

    def __repr__(self) -> str:
        return f"Features(dataset={self.dataset!r}, model={self.model!r}, {len(self)} rows in {self._store.url})"

    def __len__(self) -> int:
        return int(self._dataset(self._features).count_rows()) if self._features else 0

    @property
    def settings(self) -> dict[str, str]:
        """What made these features: network, weights hash, sampling, preprocessing, layer, precision."""
        import pyarrow.parquet as pq

        for key in (*self._features[:1], *self._outcomes[:1]):
            with self._store.open(key) as file:
                footer = read_footer(pq.ParquetFile(file).schema_arrow.metadata)
            settings: dict[str, str] = json.loads(footer["featlib.semantics"])
            return settings
        return {}

    def to_arrow(self, columns: Sequence[str] | None = None) -> "pa.Table":
        """All rows as one Arrow table, or only ``columns`` of them."""
        from featlib.shards.schema import FEATURES

        if not self._features:
            return FEATURES.empty_table().select(columns or FEATURES.names)
        return self._dataset(self._features, FEATURES).to_table(columns=columns)

    def to_pandas(self, columns: Sequence[str] | None = None) -> "pd.DataFrame":
        """All rows as a data frame, or only ``columns`` of them; ``feature`` holds a float32 array a row."""
        return self.to_arrow(columns).to_pandas()

    def to_numpy(self) -> npt.NDArray[np.float32]:
        """The features alone, float32 (num_rows, *feature_shape), in the row order of ``to_pandas``.

        Raises:
            ValueError: The rows do not all have one feature shape.
        """
        table = self.to_arrow(["feature", "feature_shape"])
        if not table.num_rows:
            return np.empty((0, 0), dtype=np.float32)
        shapes = {tuple(shape) for shape in table["feature_shape"].to_pylist()}
        if len(shapes) != 1:
            raise ValueError(f"features of {self.model} have several shapes ({sorted(shapes)}); use to_pandas()")
        values = np.concatenate([chunk.flatten().to_numpy(zero_copy_only=False) for chunk in table["feature"].chunks])
        return values.reshape(table.num_rows, *shapes.pop())

    def keys(self) -> "pd.DataFrame":
        """media_id, clip_index and region_index of each row: the index that goes with ``to_numpy``."""
        return self.to_pandas(list(KEY))

    def outcomes(self) -> "pd.DataFrame":
        """One row a media item: what became of it."""
        return self._dataset(self._outcomes).to_table().to_pandas()

    def _dataset(self, keys: Sequence[str], schema: "pa.Schema | None" = None) -> Any:
        import pyarrow.dataset as ds

        filesystem, root = self._store.arrow()
        paths = [f"{root}/{key}" for key in keys]
        checked = ds.ParquetFragmentScanOptions(page_checksum_verification=True)
        form = ds.ParquetFileFormat(default_fragment_scan_options=checked)
        return ds.dataset(paths, schema, filesystem=filesystem, format=form)


def open_features(
    url: str, *, dataset: str, model: str, endpoint_url: str | None = None, anon: bool = False
) -> Features:
    """Opens the features of one model over one dataset.

    Args:
        url: The ``--output`` of the job that made them.
        model: The label.
        endpoint_url: Of an object store other than AWS; AWS_ENDPOINT_URL does the same.

    Raises:
        ConfigError: There is no such partition; the message lists those there are.
    """
    return Features(Store(url, StoreOptions(endpoint_url, anon)), dataset, model)


def _no_partition(store: Store, dataset: str, model: str) -> str:
    parts = {"/".join(info.key.split("/")[1:3]) for info in store.list("outcomes")}
    have = ", ".join(sorted(parts)) or "nothing"
    return f"{store.url}: no features of dataset={dataset} model={model}; there is {have}"
