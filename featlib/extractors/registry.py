"""All networks by name.

A module registers what it offers with one decorated function; it is imported when a name is first looked up:

    @register_family
    def networks() -> Iterable[Network]: ...

Networks of installed packages come by entry points (``plugins``), a user's own as ``module:object`` (``references``),
timm's as ``timm:NAME`` (``timm_networks``).
"""

import difflib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from importlib import import_module

from featlib.errors import ConfigError
from featlib.extractors import plugins, references
from featlib.extractors.network import Network, Pretrained
from featlib.sampling import FrameSampling
from featlib.spec import InputSpec, Kind

# What stands before a colon and names no module of the user: each module has a function ``network(name)``.
_SCHEMES = {"timm": "featlib.extractors.timm_networks"}
_MODULES = (
    "featlib.extractors.torchvision_networks",
    "featlib.extractors.own_networks",
    "featlib.extractors.flow_networks",
    "featlib.extractors.detectors",
)
_FAMILIES: list[Callable[[], Iterable[Network]]] = []
_LENT: dict[str, Network] = {}

CROP = "crop:"
"""Begins the name of a model that embeds what lies in a detector's boxes."""

Family = Callable[[], Iterable[Network]]


@dataclass(frozen=True)
class Description:
    """What ``featlib models`` says about a network, at its default weights, sampling and layer.

    Args:
        layer: What the features are when the user says nothing.
        feature_shape: Of that layer, for one frame or clip.
        parameters: Learned numbers that inference uses; heads that only help training are not counted.
        flops: Floating-point operations for one frame or clip; a multiply-add counts as two.
        weights: Enum names that ``--weights`` takes.
        source: Where the network's code comes from.
    """

    name: str
    family: str
    kind: Kind
    input: InputSpec
    sampling: str
    layer: str
    feature_shape: tuple[int, ...]
    parameters: int
    flops: int
    weights: tuple[str, ...]
    default_weights: str
    source: str
    version: str


def register_family(family: Family) -> Family:
    """Adds the networks that ``family`` gives; a name that is taken raises at the next look-up."""
    _FAMILIES.append(family)
    _networks.cache_clear()
    return family


def merge(families: Iterable[Family]) -> dict[str, Network]:
    """Networks of all families by name, in alphabetical order.

    Raises:
        ValueError: Two families claim one name.
    """
    merged: dict[str, Network] = {}
    for network in (n for family in families for n in family()):
        if network.name in merged:
            raise ValueError(plugins.registered_twice(merged[network.name], network))
        merged[network.name] = network
    return dict(sorted(merged.items()))


@cache
def _networks() -> dict[str, Network]:
    return merge(tuple(_FAMILIES))


def _all() -> dict[str, Network]:
    for module in _MODULES:
        import_module(module)
    return _networks()


@cache
def _plugins() -> plugins.Installed:
    return plugins.installed(_all())


def names() -> list[str]:
    """Every network that ``--model`` takes by a plain name, in alphabetical order."""
    return sorted([*_all(), *_plugins().networks])


def problems() -> list[str]:
    """One line for each plug-in that is installed but cannot be used, and for each name that two of them claim."""
    return list(_plugins().problems.values())


def network(name: str) -> Network:
    """The network called ``name``; featlib's own names load no plug-in.

    Raises:
        ConfigError: There is none; names close to it are listed.
    """
    if name in _LENT:
        return _LENT[name]
    if name.startswith(CROP):
        return _cropping(name)
    if ":" in name:
        return _referred(name)
    return _all().get(name) or _plugged_in(name)


@cache
def _referred(name: str) -> Network:
    scheme, _, rest = name.partition(":")
    if scheme in _SCHEMES:
        found: Network = import_module(_SCHEMES[scheme]).network(rest)
        return found
    return references.network(name)


def _plugged_in(name: str) -> Network:
    found = _plugins()
    if name in found.networks:
        return found.networks[name]
    if name in found.problems:
        raise ConfigError(f"--model {name}: {found.problems[name]}")
    more = f"; besides, {next(iter(found.problems.values()))}" if found.problems else ""
    raise ConfigError(f"--model {name}: no such network; {near(name, names())}{more}")


@contextmanager
def lent(network: Network) -> Iterator[None]:
    """Within it, ``network`` is what its name means, whether or not it is registered."""
    before = _LENT.get(network.name)
    _LENT[network.name] = network
    try:
        yield
    finally:
        if before is None:
            del _LENT[network.name]
        else:
            _LENT[network.name] = before


def _cropping(name: str) -> Network:
    """``crop:DETECTOR+NETWORK``: the detector, with the network that reads what lies in its boxes."""
    detector, plus, inner = name.removeprefix(CROP).partition("+")
    if not plus or not detector or not inner:
        raise ConfigError(f"--model {name}: must be crop:DETECTOR+NETWORK, like crop:fasterrcnn_resnet50_fpn+resnet50")
    outer, embedder = network(detector), network(inner)
    if not outer.detects or outer.embedder:
        raise ConfigError(f"--model {name}: {detector} is no detector; use one like fasterrcnn_resnet50_fpn")
    if embedder.detects or embedder.kind != "frame":
        raise ConfigError(f"--model {name}: {inner} does not read single pictures; use one like resnet50")
    return replace(outer, name=name, embedder=inner)


def near(name: str, known: Iterable[str], *, listing: str = "`featlib models` lists them all") -> str:
    """The end of an error about an unknown name: names close to it, else where all are listed."""
    close = difflib.get_close_matches(name, list(known), n=5, cutoff=0.5)
    return f"did you mean {', '.join(close)}?" if close else listing


def kind(name: str) -> Kind:
    """Whether the network reads frames or clips."""
    return network(name).kind


def find_pretrained(enum: str) -> tuple[Network, Pretrained] | None:
    """The published weights of any network by their enum's full name, ``ResNet50_Weights.IMAGENET1K_V2``."""
    for candidate in _all().values():
        for pretrained in candidate.pretrained:
            if pretrained.enum == enum:
                return candidate, pretrained
    return None


def describe(name: str) -> Description:
    """Input, frames, feature size, parameters, FLOPs and weights of a network; nothing is downloaded or computed.

    Raises:
        ConfigError: There is no such network, or it cannot be built.
    """
    return _describe(network(name))


@cache
def _describe(found: Network) -> Description:
    from featlib.extractors import probe

    if found.detects:
        from featlib.extractors.detectors import describe_detector

        return describe_detector(found)
    reads = found.default_pretrained.input
    settings = found.settings(probe.side(reads), True)
    frames = 1 if isinstance(found.sampling, FrameSampling) else found.sampling.frames
    shape = probe.input_shape(reads, frames)
    shapes, flops = probe.probe_and_count(found, settings, shape, found.node(found.layer))
    return Description(
        name=found.name,
        family=found.family,
        kind=found.kind,
        input=reads,
        sampling=str(found.sampling),
        layer=found.layer,
        feature_shape=shapes.feature_shape,
        parameters=shapes.parameters,
        flops=flops,
        weights=tuple(p.name for p in found.pretrained),
        default_weights=found.default,
        source=found.source,
        version=found.version,
    )
