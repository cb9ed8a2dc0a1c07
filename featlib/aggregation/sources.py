"""The partitions that a job over features reads: what made them, and what one of their steps is."""

from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow.parquet as pq

from featlib import partition
from featlib.config import fingerprint
from featlib.errors import ConfigError
from featlib.layout import Keys
from featlib.redaction import redact
from featlib.sealed import open_sealed
from featlib.shards.schema import reading
from featlib.storage import Store


@dataclass(frozen=True)
class Source:
    """One partition to read.

    Args:
        shape: Of one of its rows; empty while it has none.
        channel_axis: Which axis of a row the channels are; None: the last.
    """

    label: str
    fingerprint: str
    shape: tuple[int, ...]
    channel_axis: int | None

    @property
    def size(self) -> int | None:
        """Channels of one step; None while there are no rows."""
        return self.shape[-1 if self.channel_axis is None else self.channel_axis] if self.shape else None


def open_sources(store: Store, keys: Keys, labels: Sequence[str]) -> tuple[Source, ...]:
    """The partitions under these labels, in this order.

    Raises:
        ConfigError: One is not there or damaged, or its rows are nothing that can be cut into steps.
    """
    return tuple(_open(store, keys, label) for label in labels)


def _open(store: Store, keys: Keys, label: str) -> Source:
    settings = partition.registered(store, keys, label)
    if settings is None:
        folder = f"outcomes/dataset={keys.dataset}"
        have = sorted({info.key.split("/")[2].removeprefix("model=") for info in store.list(folder)})
        raise ConfigError(
            f"--features {label}: {redact(store.url)} has no model={label} of dataset {keys.dataset}; "
            f"there is {', '.join(have) or 'nothing'}"
        )
    shape = _shape(store, keys, label)
    axis = _channel_axis(label, shape, settings.get("channel_axis"))
    return Source(label, fingerprint(settings), shape, axis)


def _shape(store: Store, keys: Keys, label: str) -> tuple[int, ...]:
    """Of a row in the smallest object that has one: all of it is read, for no checksum covers a footer but the seal."""
    for info in sorted(store.list(keys.features(label)), key=lambda info: info.size):
        with reading(info.key), open_sealed(store, info.key) as file:
            rows = next(pq.ParquetFile(file).iter_batches(1, columns=["feature_shape"]), None)
        if rows is not None and rows.num_rows:
            shape = rows["feature_shape"][0].as_py()
            if not shape:
                raise ConfigError(
                    f"--features {label}: its rows have no feature; take a network that gives one for each row"
                )
            return tuple(shape)
    return ()


def _channel_axis(label: str, shape: tuple[int, ...], setting: str | None) -> int | None:
    if setting is None:
        if len(shape) > 2:
            raise ConfigError(
                f"--features {label}: its rows are maps of shape {list(shape)}; aggregate takes vectors [D] or steps "
                "[T, D], extract a layer behind the pooling"
            )
        return None
    if shape and (not setting.isdecimal() or int(setting) >= len(shape)):
        raise ConfigError(
            f"--features {label}: its setting channel_axis is {setting}, but its rows have shape {list(shape)}; "
            "extract it again"
        )
    return int(setting) if shape else None
