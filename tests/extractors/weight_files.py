"""Weights files as tests write them, and how a job would read them."""

import os
from pathlib import Path

import torch

from featlib.config import ModelConfig
from featlib.extractors import registry
from featlib.extractors.resolve import ResolvedModel, resolve
from featlib.storage import StoreOptions

OPTIONS = StoreOptions()
SQUEEZENET = registry.network("squeezenet1_1")


def resolved(network: str, weights: object, **settings: object) -> ResolvedModel:
    values = {"network": network, "weights": str(weights), **settings}
    return resolve(ModelConfig.model_validate(values), OPTIONS)


def saved(path: Path, content: object) -> Path:
    torch.save(content, path)
    return path


class Trap:
    """What makes a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.path),)
