"""featlib: collections of videos and images become deep features, distributed.

    summary = featlib.extract(featlib.ExtractConfig(...))
    features = featlib.open_features("s3://bucket/out", dataset="d", model="resnet50")

Importing this package loads nothing heavy: every public name is fetched when it is first used, and reading
features never loads torch, ray or av.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from featlib.aggregation import aggregate
    from featlib.config import AggregateConfig, ExtractConfig, ModelConfig, TrainConfig
    from featlib.errors import ConfigError, FeatlibError, MediaError, StoppedError
    from featlib.job import Summary, extract
    from featlib.shards.reader import Features, open_features
    from featlib.training import TrainSummary, train

_HOMES = {
    "AggregateConfig": "featlib.config",
    "ConfigError": "featlib.errors",
    "ExtractConfig": "featlib.config",
    "Features": "featlib.shards.reader",
    "FeatlibError": "featlib.errors",
    "MediaError": "featlib.errors",
    "ModelConfig": "featlib.config",
    "StoppedError": "featlib.errors",
    "Summary": "featlib.job",
    "TrainConfig": "featlib.config",
    "TrainSummary": "featlib.training",
    "aggregate": "featlib.aggregation",
    "extract": "featlib.job",
    "open_features": "featlib.shards.reader",
    "train": "featlib.training",
}

__all__ = [
    "AggregateConfig",
    "ConfigError",
    "ExtractConfig",
    "FeatlibError",
    "Features",
    "MediaError",
    "ModelConfig",
    "StoppedError",
    "Summary",
    "TrainConfig",
    "TrainSummary",
    "aggregate",
    "extract",
    "open_features",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'featlib' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
