"""``--flow-weights``: RAFT's weights by name, from a file or drawn, as bytes for the actors."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache

import safetensors.torch

from featlib.errors import ConfigError
from featlib.extractors import state_dict
from featlib.extractors.light_torchvision import torchvision
from featlib.extractors.network import Network, Pretrained
from featlib.extractors.weights import read_weights, resolve_weights
from featlib.flow.sources import RAFT_SOURCES, check_source
from featlib.sampling import FrameSampling
from featlib.spec import InputSpec, PixelSpec
from featlib.storage import StoreOptions

# RAFT takes frames of any size, in [-1, 1].
_INPUT = InputSpec("frame", PixelSpec(resize=(), crop=None), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))


@dataclass(frozen=True)
class FlowWeights:
    """Weights of a flow network.

    Args:
        payload: The complete state dict in safetensors format.
        sha256: Of the file's bytes; of names and values for random weights.
        source: What they were taken from, for the record.
    """

    payload: bytes
    sha256: str
    source: str


@cache
def flow_network(name: str) -> Network:
    """torchvision's ``raft_large`` or ``raft_small`` with its published weights.

    It is no feature extractor, so the registry of extractors does not know it.
    """
    weights = torchvision.models.get_model_weights(name)
    return Network(
        name=name,
        family="raft",
        source="torchvision",
        kind="frame",
        sampling=FrameSampling("all"),
        pretrained=tuple(Pretrained(w.name, str(w), w.url, _INPUT, has_hash_in_name=True) for w in weights),
        default=weights.DEFAULT.name,
        constructor=torchvision.models.get_model_builder(name),
    )


def load_flow_weights(name: str, text: str, options: StoreOptions, sha256: str | None = None) -> FlowWeights:
    """The weights that ``--flow-weights`` names, read or drawn and fitted to the source called ``name``.

    Args:
        text: ``default``, an enum name, a path or URL of a state dict, or ``random:SEED``.
        sha256: What the file must have.

    Raises:
        ConfigError: The source has no weights, or they cannot be had or do not fit.
    """
    check_source(name)
    if name not in RAFT_SOURCES:
        raise ConfigError(f"--flow-weights {text}: {name} has no weights; leave the option out or use raft_large")
    network = flow_network(name)
    with _named_as_typed():
        choice = resolve_weights(network, text, sha256)
        if choice.seed is not None:
            tensors = state_dict.random_state(network, choice.seed, ())
            return FlowWeights(safetensors.torch.save(tensors), state_dict.content_sha256(tensors), str(choice))
        file = read_weights(network, choice, options)
        raw = state_dict.usable(network, state_dict.read_state_dict(file.data, str(choice)), str(choice))
        tensors = state_dict.fit(network, (), raw, str(choice)).tensors
        strange = next((k for k, v in tensors.items() if not state_dict.is_finite(v)), None)
        if strange is not None:
            raise ConfigError(f"--weights {choice}: {strange} holds NaN or infinite values; choose other weights")
    return FlowWeights(safetensors.torch.save(tensors), file.sha256, str(choice))


@contextmanager
def _named_as_typed() -> Iterator[None]:
    """Errors of the extractors' weights, under the name of the option that was typed here."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(str(error).replace("--weights", "--flow-weights")) from None
