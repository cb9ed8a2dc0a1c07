"""One entry of the registry: a network, its published weights and what is peculiar about building it."""

import hashlib
import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from featlib.config import check_name
from featlib.errors import ConfigError
from featlib.sampling import ClipSampling, FrameSampling, Sampling
from featlib.spec import InputSpec, Kind

if TYPE_CHECKING:
    import torch
    from torch import nn

StateDict = Mapping[str, "torch.Tensor"]
Settings = tuple[tuple[str, int | str], ...]  # keyword arguments of a constructor, hashable

_HASH_IN_FILENAME = re.compile(r"-([a-f0-9]{8,})\.")


@dataclass(frozen=True)
class Pretrained:
    """Published weights of one network, with the preprocessing they were made for.

    Args:
        name: As a user types it, ``IMAGENET1K_V2``.
        enum: With its class, ``ResNet50_Weights.IMAGENET1K_V2``.
        url: Of the state dict; empty when its publishers offer no file that can be fetched by name.
        input: What a network with these weights reads.
        categories: Names of the classes in the order of the network's outputs, where the publisher tells.
        cache_name: Of the file in the cache; empty takes the one in ``url``, which some publishers give to all
            their files.
        has_hash_in_name: The publisher writes the first digits of the file's SHA-256 into its name; what another one
            writes there may as well be a date.
    """

    name: str
    enum: str
    url: str
    input: InputSpec
    categories: tuple[str, ...] = field(default=(), compare=False, repr=False)
    cache_name: str = ""
    has_hash_in_name: bool = False

    @property
    def filename(self) -> str:
        return self.cache_name or self._published_name

    @property
    def hash_prefix(self) -> str:
        """First hex digits of the file's SHA-256, as in its name; empty where they are not told."""
        found = _HASH_IN_FILENAME.search(self._published_name) if self.has_hash_in_name else None
        return found.group(1) if found else ""

    @property
    def _published_name(self) -> str:
        return urlsplit(self.url).path.rsplit("/", 1)[-1]


def _no_settings(side: int, from_file: bool) -> Settings:
    return ()


def _any_side(state: StateDict) -> int | None:
    return None


def _as_it_is(state: StateDict) -> StateDict:
    return state


@dataclass(frozen=True)
class Network:
    """A network that can be built by name.

    Args:
        family: Networks of one architecture, tested by one member.
        version: Of featlib's own part in the features; raised when their values change.
        sampling: Frames or clips that are used when the user says nothing.
        default: Name of the entry of ``pretrained`` that ``--weights default`` means.
        constructor: Builds the module; takes the settings, and ``num_classes`` if it can.
        settings: From the side of the input and whether weights come from a file to constructor arguments.
        random_settings: Likewise for random weights, where every random number must be drawn as the bare
            constructor draws it.
        side_in: The only input side that the weights in a file can take, or None for any.
        unused: Prefixes of state dict keys that are of no use at inference.
        renames: Patterns and replacements for keys of old files.
        exact_frames: The only clip length that the network takes, or None.
        layer: What the features are when the user says nothing.
        optional: Prefixes of keys that a file may lack, because public files were saved without their last layers;
            a layer that depends on them is then refused.
        penultimate: Node that ``--layer penultimate`` means; empty: the input of the last learned layer.
        fusions: What ``--fusion`` may say besides weights like 1:1.5, the default first; empty for one stream.
        adapt: From a file's state dict to that of this network, for files made for a part of it.
        detects: Its rows are boxes.
        embedder: Name of the network that reads what lies in the boxes; empty for none.
    """

    name: str
    family: str
    source: str
    kind: Kind
    sampling: Sampling
    pretrained: tuple[Pretrained, ...]
    default: str
    constructor: "Callable[..., nn.Module]"
    version: str = "1"
    settings: Callable[[int, bool], Settings] = _no_settings
    random_settings: Callable[[int, bool], Settings] = _no_settings
    side_in: Callable[[StateDict], int | None] = _any_side
    unused: tuple[str, ...] = ()
    renames: tuple[tuple[str, str], ...] = field(default=())
    exact_frames: int | None = None
    layer: str = "penultimate"
    optional: tuple[str, ...] = ()
    penultimate: str = ""
    fusions: tuple[str, ...] = ()
    adapt: Callable[[StateDict], StateDict] = _as_it_is
    detects: bool = False
    embedder: str = ""

    def node(self, layer: str) -> str:
        """What ``layer`` means in this network."""
        return self.penultimate or layer if layer == "penultimate" else layer

    def takes(self, setting: str) -> bool:
        """Whether a setting of a model means something to this network."""
        reads_flow = self.default_pretrained.input.flow is not None
        only = {
            "frame_sampling": self.kind == "frame",
            "clip_sampling": self.kind == "clip",
            "flow": reads_flow,
            "flow_weights": reads_flow,
            "flow_weights_sha256": reads_flow,
            "fusion": bool(self.fusions),
            "regions": self.detects,
            "layer": not self.detects or bool(self.embedder),
            "preprocess": not self.detects or bool(self.embedder),
            "top_k": not self.detects,
            "categories": True,
        }
        return only.get(setting, True)

    @property
    def default_pretrained(self) -> Pretrained:
        return next(p for p in self.pretrained if p.name == self.default)

    def find_pretrained(self, text: str) -> Pretrained | None:
        """The published weights called ``text``, with or without the enum's class."""
        if text.rpartition(".")[2].upper() == "DEFAULT":
            wanted = self.default_pretrained
            return wanted if text.rpartition(".")[0] in ("", wanted.enum.partition(".")[0]) else None
        return next((p for p in self.pretrained if text in (p.name, p.enum)), None)

    @property
    def takes_num_classes(self) -> bool:
        """Whether the constructor can be told how many classes the weights in a file tell apart."""
        try:
            parameters = inspect.signature(self.constructor).parameters.values()
        except (TypeError, ValueError):  # built in, without a signature
            return False
        return any(p.name == "num_classes" or p.kind is p.VAR_KEYWORD for p in parameters)

    def construct(self, settings: Settings) -> "nn.Module":
        """The module that the constructor builds.

        Raises:
            ConfigError: The constructor raises, or gives something else.
        """
        from torch import nn

        try:
            module = self.constructor(**dict(settings))
        except ConfigError:
            raise
        except Exception as error:  # a user's constructor may raise anything
            reason = " ".join(str(error).split())[:200]
            raise ConfigError(f"{self.name}: its constructor raised {type(error).__name__}: {reason}") from error
        if not isinstance(module, nn.Module):
            raise ConfigError(f"{self.name}: its constructor gave a {type(module).__name__}, not a torch.nn.Module")
        return module


_ONE_A_SECOND = FrameSampling("fps", Fraction(1))


def own_network(
    name: str,
    constructor: "Callable[..., nn.Module]",
    input: InputSpec,  # noqa: A002
    *,
    sampling: Sampling | None = None,
    layer: str = "penultimate",
    url: str = "",
    version: str = "1",
) -> Network:
    """A network of your own, for ``--model module:object`` or an entry point of the group ``featlib.extractors``.

        pixels = featlib.PixelSpec(resize=(256,), crop=(224, 224))
        reads = featlib.InputSpec("frame", pixels, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
        tiny = featlib.own_network("tiny", Tiny, reads)

    Args:
        name: Under which an entry point offers it.
        constructor: Gives the module, which reads (N, 3, H, W) or (N, 3, T, H, W) in float32. Where it takes
            ``num_classes``, it is told how many classes the weights in a file have.
        input: How pictures become the network's input; its ``kind`` makes it one of frames or of clips.
        sampling: Frames or clips when the user says nothing: ``fps:1``, or clips of 16 frames.
        layer: What the features are when the user says nothing.
        url: Of published weights, which ``--weights default`` then means.
        version: Raise it when the values of your network change: features of two versions never mix.

    Raises:
        ConfigError: The name is none that a partition can have, the input has no size, or the sampling is not for it.
    """
    try:
        check_name(name)
    except ValueError as error:
        raise ConfigError(f"own_network: name: {error}") from None
    sampling = sampling or (_ONE_A_SECOND if input.kind == "frame" else ClipSampling(frames=16))
    if input.pixels.crop is None:
        raise ConfigError(f"own_network {name}: PixelSpec has no crop; give crop=(height, width), the network's input")
    if isinstance(sampling, FrameSampling) != (input.kind == "frame"):
        raise ConfigError(
            f"own_network {name}: {type(sampling).__name__} is not for a network of {input.kind}s; "
            f"use {'FrameSampling' if input.kind == 'frame' else 'ClipSampling'}"
        )
    return Network(
        name=name,
        family=name,
        source="user",
        kind=input.kind,
        sampling=sampling,
        pretrained=(Pretrained("OWN", f"{name}.OWN", url, input, cache_name=_cache_name(url)),),
        default="OWN",
        constructor=constructor,
        version=version,
        layer=layer,
    )


def _cache_name(url: str) -> str:
    """Of a file that anybody may have named: ``model.pth`` of two authors are two files."""
    return f"{hashlib.sha256(url.encode()).hexdigest()[:16]}-{urlsplit(url).path.rpartition('/')[2]}"
