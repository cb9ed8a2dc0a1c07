"""Detectors and ``crop:DETECTOR+NETWORK``: from a model's configuration to everything that is needed to run it."""

import math

from featlib.config import ModelConfig
from featlib.errors import ConfigError
from featlib.extractors import detectors, state_dict
from featlib.extractors.categories import choose_categories
from featlib.extractors.network import Network
from featlib.extractors.state_dict import check_finite
from featlib.extractors.weights import LoadedWeights, WeightsChoice, keep_payload, read_weights, resolve_weights
from featlib.sampling import FrameSampling, RegionChoice
from featlib.storage import StoreOptions

_MOST_MB_A_FRAME = 64
_NEVER = ("flow", "flow_weights", "flow_weights_sha256", "fusion")
_NOT_FOR_DETECTORS = ("layer", "preprocess", "top_k")


def load_detector(network: Network, choice: WeightsChoice, options: StoreOptions) -> LoadedWeights:
    """Reads or draws the weights of a detector.

    Raises:
        ConfigError: They cannot be had or do not fit.
    """
    reads = network.default_pretrained.input
    if choice.seed is not None:
        state = state_dict.random_state(network, choice.seed, ())
        return LoadedWeights(state, state_dict.content_sha256(state), reads, ())
    file = read_weights(network, choice, options)
    raw = state_dict.usable(network, state_dict.read_state_dict(file.data, str(choice)), str(choice))
    published = file.pretrained.name if file.pretrained else None
    settings = detectors.settings_in(network.name, raw.tensors, str(choice), published)
    fitted = state_dict.fit(network, settings, raw, str(choice))
    return LoadedWeights(fitted.tensors, file.sha256, reads, settings, categories=file.categories)


def check_settings(config: ModelConfig, network: Network) -> None:
    """Refuses settings that mean nothing to a detector without a network behind it.

    Raises:
        ConfigError: One of them is given.
    """
    for name in _NEVER:
        if value := getattr(config, name):
            option = name.replace("_", "-")
            raise ConfigError(f"--{option} {config.label}={value}: {network.name} reads whole frames; leave it out")
    for name in () if network.embedder else _NOT_FOR_DETECTORS:
        if value := getattr(config, name):
            option = name.replace("_", "-")
            raise ConfigError(
                f"--{option} {config.label}={value}: {network.name} is a detector, whose rows are boxes with the box "
                f"head's vector; leave it out, or use crop:{network.name}+NETWORK"
            )


def check_size(config: ModelConfig, shape: tuple[int, ...], choice: RegionChoice) -> None:
    """Refuses maps for every box of a frame that would not fit into a task's memory.

    Raises:
        ConfigError: They are too large.
    """
    megabytes = choice.count * math.prod(shape) * 4 / (1 << 20)
    if megabytes > _MOST_MB_A_FRAME:
        size = "x".join(map(str, shape))
        raise ConfigError(
            f"--layer {config.label}={config.layer}: features of {size} for {choice.count} boxes are "
            f"{megabytes:.0f} MB a frame, more than {_MOST_MB_A_FRAME}; choose a later layer or fewer boxes (--regions)"
        )


def region_choice(config: ModelConfig, network: Network) -> RegionChoice:
    """Which boxes are kept: as asked, else as many as the detector was published with.

    Raises:
        ConfigError: The text is no such choice.
    """
    if config.regions is None:
        return RegionChoice("top", detectors.DETECTORS[network.name].boxes)
    try:
        return RegionChoice.parse(config.regions)
    except ValueError as error:
        raise ConfigError(f"--regions {config.label}={config.regions}: {error}") from None


def frame_sampling(config: ModelConfig, network: Network) -> FrameSampling:
    """The frames in which boxes are looked for.

    Raises:
        ConfigError: A clip sampling is given.
    """
    if config.clip_sampling is not None:
        raise ConfigError(
            f"--clip-sampling {config.label}={config.clip_sampling}: {config.network} reads frames; "
            "use --frame-sampling"
        )
    text = config.frame_sampling
    return FrameSampling.parse(text) if text is not None else FrameSampling.parse(str(network.sampling))


def split_weights(text: str, label: str) -> tuple[str, str]:
    """``--weights`` of a ``crop:`` model: ``W+W`` for detector and network, or one that both understand.

    Raises:
        ConfigError: One file is given for two networks, or it cannot be told where the first ends.
    """
    parts = text.split("+")
    if len(parts) == 1 and (text == "default" or text.startswith("random:")):
        return text, text
    if len(parts) != 2 or not all(parts):
        raise ConfigError(
            f"--weights {label}={text}: must name weights of the detector and of the network, like default+default"
        )
    return parts[0], parts[1]


def split_pins(text: str | None, label: str) -> tuple[str | None, str | None]:
    """``--weights-sha256`` of a ``crop:`` model: ``HEX+HEX``, for detector and network.

    Raises:
        ConfigError: One is given for two files.
    """
    if text is None:
        return None, None
    first, plus, second = text.partition("+")
    if not plus:
        raise ConfigError(f"--weights-sha256 {label}={first[:8]}…: must be two, of detector and network, like HEX+HEX")
    return first, second


def resolve_detector(
    config: ModelConfig, network: Network, weights: str, sha256: str | None, options: StoreOptions
) -> tuple[WeightsChoice, LoadedWeights, int, tuple[str, ...]]:
    """Weights of a detector, how many classes they tell apart, and their names; the payload is kept.

    Raises:
        ConfigError: They cannot be had or do not fit.
    """
    choice = resolve_weights(network, weights, sha256)
    loaded = load_detector(network, choice, options)
    settings = dict(loaded.settings)
    num_classes = int(settings.get("num_classes", detectors.num_classes_in(network.name, loaded.state, str(choice))))
    check_finite(loaded.state, frozenset(loaded.state), f"--weights {choice}: {network.name}")
    keep_payload(network, loaded)
    return choice, loaded, num_classes, choose_categories(config.categories, loaded.categories, num_classes, options)
