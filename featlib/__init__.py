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
    from featlib.config import AggregateConfig, ExtractConfig, ModelConfig
    from featlib.errors import ConfigError, FeatlibError, MediaError, StoppedError
    from featlib.extractors.network import Network, own_network
    from featlib.finetuning import FinetuneResult, finetune
    from featlib.job import Summary, extract
    from featlib.sampling import ClipSampling, FrameSampling
    from featlib.shards.reader import Features, open_features
    from featlib.spec import InputSpec, PixelSpec
    from featlib.train_config import FinetuneConfig, TrainConfig
    from featlib.training import TrainSummary, train

_HOMES = {
    "AggregateConfig": "featlib.config",
    "ClipSampling": "featlib.sampling",
    "ConfigError": "featlib.errors",
    "ExtractConfig": "featlib.config",
    "FeatlibError": "featlib.errors",
    "Features": "featlib.shards.reader",
    "FinetuneConfig": "featlib.train_config",
    "FinetuneResult": "featlib.finetuning",
    "FrameSampling": "featlib.sampling",
    "InputSpec": "featlib.spec",
    "MediaError": "featlib.errors",
    "ModelConfig": "featlib.config",
    "Network": "featlib.extractors.network",
    "PixelSpec": "featlib.spec",
    "StoppedError": "featlib.errors",
    "Summary": "featlib.job",
    "TrainConfig": "featlib.train_config",
    "TrainSummary": "featlib.training",
    "aggregate": "featlib.aggregation",
    "extract": "featlib.job",
    "finetune": "featlib.finetuning",
    "open_features": "featlib.shards.reader",
    "own_network": "featlib.extractors.network",
    "train": "featlib.training",
}

__all__ = [
    "AggregateConfig",
    "ClipSampling",
    "ConfigError",
    "ExtractConfig",
    "FeatlibError",
    "Features",
    "FinetuneConfig",
    "FinetuneResult",
    "FrameSampling",
    "InputSpec",
    "MediaError",
    "ModelConfig",
    "Network",
    "PixelSpec",
    "StoppedError",
    "Summary",
    "TrainConfig",
    "TrainSummary",
    "aggregate",
    "extract",
    "finetune",
    "open_features",
    "own_network",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'featlib' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
