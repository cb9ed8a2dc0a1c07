"""``--weights``: from what the user typed to a state dict that fits the network, its hash and its bytes for actors."""

import hashlib
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import safetensors.torch
import torch
from torch import Tensor

from featlib.errors import ConfigError, MediaError
from featlib.extractors import preset, probe, registry, state_dict
from featlib.extractors.metadata import read_metadata
from featlib.extractors.network import Network, Pretrained, Settings
from featlib.redaction import redact
from featlib.sampling import ClipSampling
from featlib.spec import InputSpec
from featlib.storage import StoreOptions, read_bytes

if TYPE_CHECKING:
    from featlib.extractors.resolve import ResolvedModel

_FILE_ENDINGS = (".pth", ".pt", ".ckpt", ".bin", ".safetensors")
_CONNECT_S = 30.0
_LENGTH_BYTES = 8
_LEAST_HASH = 8  # hex digits in a publisher's file name that identify a file

MEAN_VOLUME = "input.mean_volume"
"""Key in a payload beside the weights: the mean of each pixel of a clip."""

# Safetensors bytes by network, hashes and constructor settings: read once, shared by models with the same weights.
_PAYLOADS: dict[tuple[str, str, str, Settings], bytes] = {}


@dataclass(frozen=True)
class WeightsChoice:
    """What ``--weights`` asks for; exactly one of ``seed``, ``pretrained`` and ``url`` is set.

    Args:
        seed: Of ``random:SEED``.
        pretrained: Published weights.
        url: Path or URL of a file.
        sha256: What the file must have; empty: anything goes.
    """

    seed: int | None = None
    pretrained: Pretrained | None = None
    url: str | None = None
    sha256: str = ""

    def __str__(self) -> str:
        if self.pretrained is not None:
            return self.pretrained.enum
        return redact(self.url) if self.url is not None else f"random:{self.seed}"


class _OtherFileError(ConfigError):
    """A file has not the SHA-256 that it must have."""


@dataclass(frozen=True)
class WeightsFile:
    """A file that was read.

    Args:
        pretrained: The published weights that it is, by name or by hash, else those whose preset its metadata names;
            None for anybody's own file.
        categories: Names of the classes in the order of the network's outputs; empty when they are not known.
        layer: What the network was trained to give as its feature; empty when the file does not say.
    """

    data: bytes
    sha256: str
    pretrained: Pretrained | None
    categories: tuple[str, ...] = ()
    layer: str = ""


def resolve_weights(network: Network, text: str, sha256: str | None = None) -> WeightsChoice:
    """What ``text`` names: ``default``, published weights, a file, or ``random:SEED``. Nothing is read.

    Args:
        sha256: What the file must have.

    Raises:
        ConfigError: It names nothing; the network's weights are listed.
    """
    choice = _named(network, text)
    if sha256 and choice.seed is not None:
        raise ConfigError(f"--weights-sha256 {sha256[:8]}…: {text} is no file; leave one of them out")
    return replace(choice, sha256=sha256 or "")


def _named(network: Network, text: str) -> WeightsChoice:
    if text.partition(":")[0] == "random":
        return WeightsChoice(seed=_seed(text))
    if text == "default":
        return WeightsChoice(pretrained=network.default_pretrained)
    pretrained = network.find_pretrained(text)
    if pretrained is not None:
        return WeightsChoice(pretrained=pretrained)
    if "/" in text or text.lower().endswith(_FILE_ENDINGS):
        return WeightsChoice(url=text)
    raise ConfigError(f"--weights {text}: {_unknown(network, text)}")


def _seed(text: str) -> int:
    digits = text.partition(":")[2]
    if not (digits.isascii() and digits.isdigit() and int(digits) < 2**63):
        raise ConfigError(f"--weights {text}: the seed must be a whole number from 0 to 2^63 - 1; write random:0")
    return int(digits)


def _unknown(network: Network, text: str) -> str:
    other = registry.find_pretrained(text)
    if other is not None:
        return f"these are weights of {other[0].name}, not of {network.name}"
    names = [p.name for p in network.pretrained]
    listing = f"{network.name} has {', '.join(names)}"
    hint = registry.near(text, names, listing=listing)
    return f"no such weights; {hint} (or `default`, random:SEED, or a path with a / or an ending like .pth)"


def read_weights(network: Network, choice: WeightsChoice, options: StoreOptions) -> WeightsFile:
    """The bytes of published weights (downloaded once into torch's cache) or of a file.

    Raises:
        ConfigError: They cannot be had, or a published file is not what its publisher hashed.
    """
    if choice.pretrained is not None:
        data = _cached(choice.pretrained)
        categories = choice.pretrained.categories
        return WeightsFile(data, _checked_sha256(data, choice), choice.pretrained, categories)
    url = choice.url or ""
    try:
        data = read_bytes(url, options)
    except (MediaError, OSError) as error:
        raise ConfigError(f"--weights {choice}: cannot be read ({_line(error)})") from None
    sha256 = _checked_sha256(data, choice)
    published = _recognised(network, sha256)
    if published is not None:
        return WeightsFile(data, sha256, published, published.categories)
    metadata = read_metadata(data, str(choice))
    if metadata is None:
        return WeightsFile(data, sha256, None)
    named = _preset_named(network, metadata.preprocess, str(choice))
    return WeightsFile(data, sha256, named, metadata.classes, metadata.layer)


def _checked_sha256(data: bytes, choice: WeightsChoice) -> str:
    """Before anything in the file is looked at."""
    sha256 = hashlib.sha256(data).hexdigest()
    if choice.sha256 not in ("", sha256):
        raise _OtherFileError(
            f"--weights {choice}: has the SHA-256 {sha256}, not {choice.sha256} as --weights-sha256 asks; "
            "get the right file, or change the option"
        )
    return sha256


def _preset_named(network: Network, enum: str, source: str) -> Pretrained:
    """The published weights whose preset the metadata of a file names: what it was trained with is what it reads."""
    found = network.find_pretrained(enum)
    other = registry.find_pretrained(enum)
    if found is None and other is not None and other[0].kind == network.kind:
        found = other[1]
    if found is None:
        raise ConfigError(
            f"--weights {source}: were trained with the preprocessing {enum}, which {network.name} cannot have here; "
            "give them to the network and the version of featlib that they were trained with"
        )
    return found


def _recognised(network: Network, sha256: str) -> Pretrained | None:
    prefixes = ((p, p.hash_prefix) for p in network.pretrained)
    return next((p for p, start in prefixes if len(start) >= _LEAST_HASH and sha256.startswith(start)), None)


def cache_path(pretrained: Pretrained) -> Path:
    """Where torch keeps (and torchvision looks for) the file of published weights."""
    return Path(torch.hub.get_dir()) / "checkpoints" / pretrained.filename


def _cached(pretrained: Pretrained) -> bytes:
    if not pretrained.url:
        raise ConfigError(
            f"weights {pretrained.enum} are not to be had by name, no public file of them has a fixed place; "
            "give --weights PATH of a state dict or --weights random:SEED"
        )
    path = cache_path(pretrained)
    try:
        if not path.exists():
            _download(pretrained, path)
        data = path.read_bytes()
    except (OSError, RuntimeError) as error:  # URLError is an OSError; a wrong hash is a RuntimeError
        raise ConfigError(
            f"weights {pretrained.enum} cannot be downloaded from {pretrained.url} ({_line(error)}); "
            f"put the file at {path}, or give --weights PATH or --weights random:SEED"
        ) from None
    if not hashlib.sha256(data).hexdigest().startswith(pretrained.hash_prefix):
        raise ConfigError(
            f"weights {pretrained.enum}: {path} is damaged (its SHA-256 does not begin with "
            f"{pretrained.hash_prefix}); delete it, or give --weights PATH"
        )
    return data


def _download(pretrained: Pretrained, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with _socket_timeout(_CONNECT_S):
        torch.hub.download_url_to_file(
            pretrained.url, str(path), hash_prefix=pretrained.hash_prefix or None, progress=False
        )


@contextmanager
def _socket_timeout(seconds: float) -> Iterator[None]:
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


@dataclass(frozen=True)
class LoadedWeights:
    """The complete state dict of a network, and what was decided on the way to it.

    Args:
        sha256: Of the file's bytes; of names and values for random weights.
        reads: The preprocessing that goes with them.
        settings: Constructor arguments of the network that they fit.
        absent: Keys of layers that the file lacks and that no feature may depend on.
        categories: Names of the classes in the order of the network's outputs; empty when they are not known.
        layer: What is the feature when the user says nothing; empty: the network's own.
    """

    state: dict[str, Tensor]
    sha256: str
    reads: InputSpec
    settings: Settings
    absent: frozenset[str] = frozenset()
    categories: tuple[str, ...] = ()
    layer: str = ""


def load_weights(
    network: Network,
    choice: WeightsChoice,
    reads_for: Callable[[Pretrained | None], InputSpec],
    options: StoreOptions,
) -> LoadedWeights:
    """Reads or draws the weights that ``choice`` names and fits them to ``network``.

    Args:
        reads_for: The preprocessing, given the published weights that the file turns out to be.

    Raises:
        ConfigError: They cannot be had or do not fit.
    """
    if choice.seed is not None:
        reads = reads_for(None)
        side = probe.side(reads)
        state = state_dict.random_state(network, choice.seed, network.random_settings(side, False))
        sha256 = state_dict.content_sha256(state)
        return LoadedWeights(state, sha256, reads, network.settings(side, False))
    file = read_weights(network, choice, options)
    reads = reads_for(file.pretrained)
    raw = state_dict.usable(network, state_dict.read_state_dict(file.data, str(choice)), str(choice))
    preset.check_side(network, reads, network.side_in(raw.tensors))
    settings = _settings_for(network, reads, raw)
    fitted = state_dict.fit(network, settings, raw, str(choice))
    _check_categories(file.categories, settings, str(choice))
    return LoadedWeights(fitted.tensors, file.sha256, reads, settings, fitted.absent, file.categories, file.layer)


def _check_categories(categories: tuple[str, ...], settings: Settings, source: str) -> None:
    classes = dict(settings).get("num_classes")
    if categories and classes not in (None, len(categories)):
        raise ConfigError(
            f"--weights {source}: name {len(categories)} classes, but have {classes} outputs; train them again"
        )


def _settings_for(network: Network, reads: InputSpec, raw: state_dict.RawState) -> Settings:
    settings = network.settings(probe.side(reads), True)
    if not network.takes_num_classes:
        return settings
    frames = network.sampling.frames if isinstance(network.sampling, ClipSampling) else 1
    shapes = probe.probe(network, settings, probe.input_shape(reads, frames), "logits")
    classes = state_dict.num_classes(raw, shapes.last_layer)
    return settings if classes is None else (*settings, ("num_classes", classes))


def keep_payload(network: Network, loaded: LoadedWeights) -> None:
    """Makes ``payload`` of a model with these weights free in this process."""
    key = (network.name, loaded.sha256, loaded.reads.mean_volume, loaded.settings)
    if key not in _PAYLOADS:
        _PAYLOADS[key] = safetensors.torch.save(_apart(loaded.state))


def _apart(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """``state`` with memory of its own for each tensor; layers that were saved as one share theirs."""
    seen: set[int] = set()
    apart = {}
    for name, tensor in state.items():
        apart[name] = tensor.clone() if tensor.untyped_storage().data_ptr() in seen else tensor.contiguous()
        seen.add(tensor.untyped_storage().data_ptr())
    return apart


def payload(resolved: "ResolvedModel", options: StoreOptions) -> bytes:
    """The complete weights as safetensors bytes, for the actors; read again only outside the resolving process.

    Raises:
        ConfigError: The weights have to be read again and cannot be, or are not the same any more.
    """
    if resolved.embedder is not None:
        source = resolved.weights_source.removesuffix(f"+{resolved.embedder.weights_source}")
        detector = replace(resolved, network=resolved.detector, weights_source=source, embedder=None)
        return join_payloads(payload(detector, options), payload(resolved.embedder, options))
    key = (resolved.network, resolved.weights_sha256, resolved.input.mean_volume, resolved.settings)
    if key not in _PAYLOADS:
        network = registry.network(resolved.network)
        choice = resolve_weights(network, resolved.weights_source)
        if choice.seed is None:
            choice = replace(choice, sha256=resolved.weights_sha256)
        try:
            loaded = _read_again(network, choice, resolved, options)
        except _OtherFileError:
            loaded = None
        if loaded is None or loaded.sha256 != resolved.weights_sha256 or resolved.input.mean_volume:
            raise ConfigError(f"--weights {choice}: the file changed while the job was starting; run it again")
        keep_payload(network, loaded)
    return _PAYLOADS[key]


def _read_again(
    network: Network, choice: WeightsChoice, resolved: "ResolvedModel", options: StoreOptions
) -> LoadedWeights:
    if network.detects:
        from featlib.extractors.resolve_regions import load_detector

        return load_detector(network, choice, options)
    return load_weights(network, choice, lambda _: resolved.input, options)


def join_payloads(first: bytes, second: bytes) -> bytes:
    """Two payloads as one; ``split_payloads`` takes them apart."""
    return len(first).to_bytes(_LENGTH_BYTES, "little") + first + second


def split_payloads(joined: bytes) -> tuple[bytes, bytes]:
    """The two that ``join_payloads`` joined."""
    end = _LENGTH_BYTES + int.from_bytes(joined[:_LENGTH_BYTES], "little")
    return joined[_LENGTH_BYTES:end], joined[end:]


def release_payloads() -> None:
    """Frees the weights that ``payload`` keeps, once they have been shipped."""
    _PAYLOADS.clear()


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
