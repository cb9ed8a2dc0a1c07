"""From uint8 frames to float32 features: one engine for all networks of pixels and flow."""

from featlib.inference.engine import Engine, default_batch_size

__all__ = ["Engine", "default_batch_size"]
