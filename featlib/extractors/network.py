"""One entry of the registry: a network, its published weights and what is peculiar about building it."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from featlib.spec import InputSpec, Kind, Sampling

if TYPE_CHECKING:
    import torch
    from torch import nn

StateDict = Mapping[str, "torch.Tensor"]
Settings = tuple[tuple[str, int], ...]  # keyword arguments of a constructor, hashable

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
    """

    name: str
    enum: str
    url: str
    input: InputSpec
    categories: tuple[str, ...] = field(default=(), compare=False, repr=False)

    @property
    def filename(self) -> str:
        return urlsplit(self.url).path.rsplit("/", 1)[-1]

    @property
    def hash_prefix(self) -> str:
        """First hex digits of the file's SHA-256, which the publisher writes into its name; may be empty."""
        found = _HASH_IN_FILENAME.search(self.filename)
        return found.group(1) if found else ""


def _no_settings(side: int, from_file: bool) -> Settings:
    return ()


def _any_side(state: StateDict) -> int | None:
    return None


@dataclass(frozen=True)
class Network:
    """A network that can be built by name.

    Args:
        family: Networks of one architecture, tested by one member.
        version: Of featlib's own part in the features; raised when their values change.
        sampling: Frames or clips that are used when the user says nothing.
        default: Name of the entry of ``pretrained`` that ``--weights default`` means.
        constructor: Builds the module; takes ``num_classes`` and the settings.
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

    @property
    def default_pretrained(self) -> Pretrained:
        return next(p for p in self.pretrained if p.name == self.default)

    def find_pretrained(self, text: str) -> Pretrained | None:
        """The published weights called ``text``, with or without the enum's class."""
        if text.rpartition(".")[2].upper() == "DEFAULT":
            wanted = self.default_pretrained
            return wanted if text.rpartition(".")[0] in ("", wanted.enum.partition(".")[0]) else None
        return next((p for p in self.pretrained if text in (p.name, p.enum)), None)
