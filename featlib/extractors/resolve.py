"""From a model's configuration to everything that is needed to run it, settled before anything else is read."""

from dataclasses import dataclass

import torch

from featlib.config import ModelConfig, Precision
from featlib.errors import ConfigError
from featlib.extractors import preset, probe, registry
from featlib.extractors.network import Network, Settings
from featlib.extractors.weights import keep_payload, load_weights, resolve_weights
from featlib.spec import ClipSampling, FrameSampling, InputSpec, Kind, Sampling, Want, clip_sampling
from featlib.storage import StoreOptions


@dataclass(frozen=True)
class ResolvedModel:
    """A model with nothing left to decide; plain values, picklable, usable without torch.

    Args:
        weights_source: What the weights were taken from, for the record.
        weights_sha256: Of the file's bytes; of the values themselves for random weights.
        settings: Arguments of the constructor.
        last_layer: Name of the last learned layer.
        feature_shape: Of one frame or clip.
        categories: Names of the classes in the order of the outputs; empty when they are not known. They change no
            feature.
    """

    label: str
    network: str
    layer: str
    precision: Precision
    batch_size: int | None
    input: InputSpec
    sampling: Sampling
    weights_source: str
    weights_sha256: str
    num_classes: int
    settings: Settings
    last_layer: str
    feature_shape: tuple[int, ...]
    extractor_version: str
    categories: tuple[str, ...] = ()

    @property
    def kind(self) -> Kind:
        return self.input.kind

    @property
    def frames(self) -> int:
        """Frames in one clip; 1 for a frame model."""
        return self.sampling.frames if isinstance(self.sampling, ClipSampling) else 1

    @property
    def want(self) -> Want:
        """What is asked of the decoder."""
        return Want(self.label, self.sampling, self.input.pixels)

    def semantics(self) -> dict[str, str]:
        """Everything that changes a feature's value, and nothing that does not: the basis of the fingerprint."""
        return {
            "network": self.network,
            "layer": self.layer,
            "sampling": str(self.sampling),
            "preprocess": preset.describe_input(self.input),
            "precision": self.precision,
            "weights_sha256": self.weights_sha256,
            "extractor": self.extractor_version,
        }


def resolve(config: ModelConfig, options: StoreOptions) -> ResolvedModel:
    """Settles sampling, weights, preprocessing and layer of one model; reads its weights.

    Raises:
        ConfigError: Any of them is wrong or cannot be had; one line says what to do.
    """
    network = registry.network(config.network)
    sampling = choose_sampling(network, config)
    choice = resolve_weights(network, config.weights)
    loaded = load_weights(
        network, choice, lambda found: preset.choose_preset(network, config.preprocess, found), options
    )
    layer = config.layer or network.layer
    shapes = _check_fit(network, loaded.settings, loaded.reads, sampling, layer)
    what = f"--weights {choice}: layer {layer} of {network.name}"
    _check_present(loaded.absent, shapes.used, what)
    _check_finite(loaded.state, shapes.used, what)
    keep_payload(network, loaded)
    return ResolvedModel(
        label=config.label,
        network=network.name,
        layer=layer,
        precision=config.precision,
        batch_size=config.batch_size,
        input=loaded.reads,
        sampling=sampling,
        weights_source=str(choice),
        weights_sha256=loaded.sha256,
        num_classes=loaded.state[f"{shapes.last_layer}.weight"].shape[0],
        settings=loaded.settings,
        last_layer=shapes.last_layer,
        feature_shape=shapes.feature_shape,
        extractor_version=f"{network.source}/{network.version}",
        categories=loaded.categories,
    )


def choose_sampling(network: Network, config: ModelConfig) -> Sampling:
    """The sampling that the configuration asks for, with the network's own for what it leaves out.

    Raises:
        ConfigError: It is for the other kind of network, or not readable.
    """
    own = network.sampling
    for option, text, needed in (
        ("--frame-sampling", config.frame_sampling, "frame"),
        ("--clip-sampling", config.clip_sampling, "clip"),
    ):
        if text is not None and network.kind != needed:
            other = "--clip-sampling" if needed == "frame" else "--frame-sampling"
            raise ConfigError(f"{option} {config.label}={text}: {network.name} reads {network.kind}s; use {other}")
    try:
        if isinstance(own, ClipSampling):
            return clip_sampling(config.clip_sampling or "", own)
        return FrameSampling.parse(config.frame_sampling) if config.frame_sampling else own
    except ValueError as error:
        raise ConfigError(f"{config.label}: {error}") from None


def _check_fit(network: Network, settings: Settings, reads: InputSpec, sampling: Sampling, layer: str) -> probe.Probe:
    frames = 1
    if isinstance(sampling, ClipSampling):
        frames = sampling.frames
        probe.check_frames(network, settings, reads, frames)
    return probe.probe(network, settings, probe.input_shape(reads, frames), layer)


def _check_present(absent: frozenset[str], used: frozenset[str], what: str) -> None:
    if missing := sorted(absent & used):
        raise ConfigError(f"{what} depends on {missing[0]}, which the file does not hold; choose an earlier layer")


def _check_finite(state: dict[str, torch.Tensor], used: frozenset[str], what: str) -> None:
    for name in sorted(used & state.keys()):
        if state[name].is_floating_point() and not bool(state[name].isfinite().all()):
            raise ConfigError(
                f"{what} depends on {name}, which holds NaN or infinite values; choose other weights or a layer"
            )
