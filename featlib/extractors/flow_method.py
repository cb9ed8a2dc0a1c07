"""``--flow`` and ``--flow-weights``: how the optical flow that a network reads is computed."""

from collections.abc import Iterable
from typing import Literal

from featlib.errors import ConfigError
from featlib.flow.sources import RAFT_SOURCES, check_source
from featlib.flow.weights import load_flow_weights
from featlib.spec import FlowMethod, FlowSpec
from featlib.storage import StoreOptions

DEFAULT_SOURCE = "tvl1"
"""What Temporal Segment Networks and I3D were trained on; the first two-stream networks on Brox's, only for CUDA."""

# Weights of flow networks by hash, read once, shared by models with the same flow.
_PAYLOADS: dict[str, bytes] = {}


def choose_method(
    source: str | None, weights: str | None, options: StoreOptions, sha256: str | None = None
) -> FlowMethod:
    """The method that the options name; weights of a network are read.

    Args:
        sha256: What the file of the weights must have.

    Raises:
        ConfigError: There is no such method here, or its weights cannot be had.
    """
    name = source or DEFAULT_SOURCE
    check_source(name)
    if name not in RAFT_SOURCES:
        for option, given in (("--flow-weights", weights), ("--flow-weights-sha256", sha256)):
            if given is not None:
                raise ConfigError(f"{option} {given}: {name} is no network and has no weights; leave it out")
        return FlowMethod(name)
    loaded = load_flow_weights(name, weights or "default", options, sha256)
    _PAYLOADS[loaded.sha256] = loaded.payload
    return FlowMethod(name, loaded.sha256)


def flow_payload(method: FlowMethod) -> bytes:
    """Weights of a method as safetensors bytes; empty for methods that are no networks."""
    return _PAYLOADS[method.weights_sha256] if method.weights_sha256 else b""


def flow_kind(kinds: Iterable[FlowSpec | None]) -> Literal["none", "opencv", "network"]:
    """What computes the flow of a job: a pool whose methods are not all networks stays on the CPU."""
    sources = {kind.method.source for kind in kinds if kind is not None}
    if not sources:
        return "none"
    return "network" if sources <= set(RAFT_SOURCES) else "opencv"
