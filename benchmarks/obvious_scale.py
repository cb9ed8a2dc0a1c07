"""The Ray Data program that one writes first: read_parquet, decode, a model in an actor, write_parquet."""

from typing import Any

import numpy as np
import ray
import torch

from benchmarks.stubs import MeanColour, picture

Batch = dict[str, Any]


def decoded(batch: Batch) -> Batch:
    """Adds ``image``, uint8 (rows, 8, 8, 3)."""
    return {**batch, "image": np.stack([picture(uri) for uri in batch["uri"]])}


class Model:
    """The stub network in an actor."""

    def __init__(self) -> None:
        self.module = MeanColour().eval().body

    def __call__(self, batch: Batch) -> Batch:
        """``image`` gives way to ``feature``, float32 (rows, 3)."""
        x = torch.from_numpy(batch.pop("image")).permute(0, 3, 1, 2).float() / 255
        with torch.inference_mode():
            return {**batch, "feature": self.module(x).numpy()}


def program(manifest: str, output: str) -> None:
    """Features of every row of ``manifest`` as Parquet below ``output``."""
    dataset = ray.data.read_parquet(manifest).map_batches(decoded)
    dataset.map_batches(Model, batch_size=64, compute=ray.data.ActorPoolStrategy(size=1)).write_parquet(output)
