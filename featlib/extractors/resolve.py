"""From a model's configuration to everything that is needed to run it, settled before anything else is read."""

import hashlib
import json
from dataclasses import dataclass, replace

from featlib.config import ModelConfig, Precision
from featlib.errors import ConfigError
from featlib.extractors import preset, probe, registry
from featlib.extractors.categories import choose_categories
from featlib.extractors.detectors import DETECTORS
from featlib.extractors.flow_method import choose_method
from featlib.extractors.mean_volume import ENDING, with_mean_volume
from featlib.extractors.network import Network, Settings
from featlib.extractors.resolve_regions import (
    check_settings,
    check_size,
    frame_sampling,
    region_choice,
    resolve_detector,
    split_pins,
    split_weights,
)
from featlib.extractors.state_dict import check_finite
from featlib.extractors.weights import LoadedWeights, keep_payload, load_weights, resolve_weights
from featlib.models.two_stream import Fusion
from featlib.sampling import ClipSampling, FrameSampling, RegionChoice, Sampling, clip_sampling
from featlib.spec import Arithmetic, InputSpec, Kind, Want
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
        channel_axis: Which axis of a map of features is that of the channels, where that is known.
        top_k: So many classes stand beside a feature.
        categories: Names of the classes, in order; empty when nobody knows them.
        regions: Which boxes a detector keeps; None for other networks.
        embedder: The network that reads what lies in the boxes; None for the detector's own vectors.
        arithmetic: ``compiled`` where the network runs as machine code on CPUs, if it can be had.
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
    channel_axis: int | None = None
    top_k: int = 0
    categories: tuple[str, ...] = ()
    regions: RegionChoice | None = None
    embedder: "ResolvedModel | None" = None
    arithmetic: Arithmetic = "plain"

    @property
    def trunk(self) -> tuple[object, ...]:
        """Equal for models that can share a forward pass: the same network on the same input."""
        same = (self.network, self.weights_sha256, self.settings, self.input, self.sampling)
        inner = self.embedder.trunk if self.embedder else None
        return (*same, self.precision, self.batch_size, self.regions, inner, self.arithmetic)

    @property
    def detector(self) -> str:
        """Name of the detector in ``crop:DETECTOR+NETWORK``."""
        return self.network.removeprefix(registry.CROP).partition("+")[0]

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
        values = {
            "network": self.network,
            "layer": self.layer,
            "sampling": str(self.sampling),
            "preprocess": preset.describe_input(self.input),
            "precision": self.precision,
            "weights_sha256": self.weights_sha256,
            "extractor": self.extractor_version,
        }
        values |= {name: str(value) for name, value in self.settings if name == "fusion"}
        if self.channel_axis is not None:
            values["channel_axis"] = str(self.channel_axis)
        if self.regions is not None:
            values["regions"] = str(self.regions)
        if self.embedder is not None:
            inner = {k: v for k, v in self.embedder.semantics().items() if k != "sampling"}
            values["embedder"] = json.dumps({**inner, "box": "warped"}, sort_keys=True)
        if self.top_k or self.regions is not None:
            names = hashlib.sha256("\n".join(self.categories).encode()).hexdigest()
            values["categories_sha256"] = names
        if self.top_k:
            values["top_k"] = str(self.top_k)
        if self.precision != "fp32" and self.arithmetic != "plain":
            # Both are right, but they round differently: rows of one partition must equal what a repeated run gives.
            values["arithmetic"] = self.arithmetic
        return values


def resolve(config: ModelConfig, options: StoreOptions) -> ResolvedModel:
    """Settles sampling, weights, preprocessing and layer of one model; reads its weights.

    Raises:
        ConfigError: Any of them is wrong or cannot be had; one line says what to do.
    """
    found = registry.network(config.network)
    if found.detects:
        return _detector(config, found, options)
    if config.regions is not None:
        raise ConfigError(f"--regions {config.label}={config.regions}: {found.name} is no detector; leave it out")
    network = _fused(found, config)
    sampling = choose_sampling(network, config)
    choice = resolve_weights(network, config.weights, config.weights_sha256)
    volume = config.preprocess if config.preprocess and config.preprocess.endswith(ENDING) else None
    named = None if volume else config.preprocess
    loaded = load_weights(network, choice, lambda found: preset.choose_preset(network, named, found), options)
    if volume is not None:
        frames = sampling.frames if isinstance(sampling, ClipSampling) else 1
        loaded = with_mean_volume(loaded, volume, frames, options)
    layer = network.node(config.layer or loaded.layer or network.layer)
    shapes = _check_fit(network, loaded.settings, loaded.reads, sampling, layer)
    if config.top_k:
        _check_fit(network, loaded.settings, loaded.reads, sampling, "logits")
    for name in [layer] + ["logits"] * (config.top_k > 0):
        used = shapes.used if name == layer else frozenset(loaded.state)
        what = f"--weights {choice}: layer {name} of {network.name}"
        _check_present(loaded.absent, used, what)
        check_finite(loaded.state, used, what)
    keep_payload(network, loaded)
    num_classes = shapes.num_classes
    return ResolvedModel(
        label=config.label,
        network=network.name,
        layer=layer,
        precision=config.precision,
        batch_size=config.batch_size,
        input=_with_flow(loaded.reads, config, options),
        sampling=sampling,
        weights_source=str(choice),
        weights_sha256=loaded.sha256,
        num_classes=num_classes,
        settings=loaded.settings,
        last_layer=shapes.last_layer,
        feature_shape=shapes.feature_shape,
        extractor_version=f"{network.source}/{network.version}",
        channel_axis=_channel_axis(network, loaded, sampling, layer),
        top_k=config.top_k,
        categories=_categories(config, loaded, num_classes, options),
    )


def _detector(config: ModelConfig, network: Network, options: StoreOptions) -> ResolvedModel:
    """A detector, with the network behind it when it has one."""
    own, inner = replace(network, name=network.name.removeprefix(registry.CROP).partition("+")[0], embedder=""), None
    weights, pin = config.weights, config.weights_sha256
    check_settings(config, network)
    if network.embedder:
        weights, second = split_weights(config.weights, config.label)
        pin, inner_pin = split_pins(config.weights_sha256, config.label)
        passed = {name: getattr(config, name) for name in ("label", "layer", "preprocess", "precision")}
        inner = resolve(
            ModelConfig(network=network.embedder, weights=second, weights_sha256=inner_pin, **passed), options
        )
        if config.top_k:
            raise ConfigError(
                f"--top-k {config.label}={config.top_k}: its rows have the detector's labels; leave it out"
            )
    choice, loaded, num_classes, categories = resolve_detector(config, own, weights, pin, options)
    vector = DETECTORS[own.name].vector_size
    choice_of_boxes = region_choice(config, own)
    if inner is not None:
        check_size(config, inner.feature_shape, choice_of_boxes)
    return ResolvedModel(
        label=config.label,
        network=network.name,
        layer=inner.layer if inner else "box_head" if vector else "none",
        precision=config.precision,
        batch_size=config.batch_size,
        input=loaded.reads,
        sampling=frame_sampling(config, network),
        weights_source=f"{choice}+{inner.weights_source}" if inner else str(choice),
        weights_sha256=loaded.sha256,
        num_classes=num_classes,
        settings=loaded.settings,
        last_layer="",
        feature_shape=inner.feature_shape if inner else () if vector is None else (vector,),
        extractor_version=f"{network.source}/{network.version}",
        channel_axis=inner.channel_axis if inner else None,
        categories=categories,
        regions=choice_of_boxes,
        embedder=inner,
    )


def _fused(network: Network, config: ModelConfig) -> Network:
    """The network with its way of fusing streams among its settings."""
    text = config.fusion or next(iter(network.fusions), None)
    if text is None:
        return network
    if not network.fusions:
        raise ConfigError(f"--fusion {config.label}={text}: {network.name} has one stream; leave it out")
    try:
        Fusion(text)
    except ValueError as error:
        raise ConfigError(f"--fusion {config.label}={text}: {error}") from None
    more = (("fusion", text),)
    return replace(
        network,
        settings=lambda side, from_file: (*network.settings(side, from_file), *more),
        random_settings=lambda side, from_file: (*network.random_settings(side, from_file), *more),
    )


def _with_flow(reads: InputSpec, config: ModelConfig, options: StoreOptions) -> InputSpec:
    """The preprocessing with the method that makes its flow."""
    for name in ("flow", "flow_weights", "flow_weights_sha256"):
        text = getattr(config, name)
        if reads.flow is None and text is not None:
            option = name.replace("_", "-")
            raise ConfigError(f"--{option} {config.label}={text}: {config.network} reads no optical flow; leave it out")
    if reads.flow is None:
        return reads
    method = choose_method(config.flow, config.flow_weights, options, config.flow_weights_sha256)
    return replace(reads, flow=replace(reads.flow, method=method))


def _categories(config: ModelConfig, loaded: LoadedWeights, num_classes: int, options: StoreOptions) -> tuple[str, ...]:
    return choose_categories(config.categories, loaded.categories, num_classes, options)


def _channel_axis(network: Network, loaded: LoadedWeights, sampling: Sampling, layer: str) -> int | None:
    frames = sampling.frames if isinstance(sampling, ClipSampling) else 1
    return probe.channel_axis(network, loaded.settings, probe.input_shape(loaded.reads, frames), layer)


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
