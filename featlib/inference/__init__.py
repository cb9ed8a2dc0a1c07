"""From uint8 frames to float32 features: an engine for networks of pixels and flow, another for detectors."""

from collections.abc import Sequence

from featlib.extractors.resolve import ResolvedModel
from featlib.inference.engine import Engine, default_batch_size, is_probably_kept
from featlib.inference.inputs import Normalisation
from featlib.inference.prepared import exact_arithmetic, in_best_format
from featlib.inference.regions import RegionEngine

__all__ = [
    "Engine",
    "Normalisation",
    "RegionEngine",
    "default_batch_size",
    "exact_arithmetic",
    "in_best_format",
    "is_probably_kept",
    "open_engine",
]


def open_engine(models: Sequence[ResolvedModel], payload: bytes, *, device: str, threads: int) -> Engine | RegionEngine:
    """The engine for models that share a forward pass."""
    kind = Engine if models[0].regions is None else RegionEngine
    return kind(models, payload, device=device, threads=threads)
