"""``--preprocess``: which preset makes the network's input."""

from featlib.errors import ConfigError
from featlib.extractors.network import Network, Pretrained
from featlib.extractors.registry import find_pretrained, near
from featlib.flow.sources import describe_source
from featlib.spec import InputSpec


def choose_preset(network: Network, text: str | None, weights: Pretrained | None) -> InputSpec:
    """The preset that ``text`` names, else that of the recognised ``weights``, else the network's default one.

    Raises:
        ConfigError: ``text`` names no preset, or one for another kind of input.
    """
    if text is None:
        return (weights or network.default_pretrained).input
    own = network.find_pretrained(text)
    if own is not None:
        return own.input
    other = find_pretrained(text)
    if other is None:
        names = [p.name for p in network.pretrained]
        listing = f"{network.name} has {', '.join(names)}"
        raise ConfigError(f"--preprocess {text}: no such preset; {near(text, names, listing=listing)}")
    if other[0].kind != network.kind:
        raise ConfigError(f"--preprocess {text}: made for {other[0].kind}s, but {network.name} reads {network.kind}s")
    if (other[1].input.flow is None) != (network.default_pretrained.input.flow is None):
        raise ConfigError(
            f"--preprocess {text}: made for {other[0].name}, which reads other things than {network.name}"
        )
    return other[1].input


def check_side(network: Network, reads: InputSpec, side: int | None) -> None:
    """Whether weights that only take inputs of ``side`` pixels go with this preset.

    Raises:
        ConfigError: They do not; presets that fit are named.
    """
    crop = reads.pixels.crop
    if side is None or crop == (side, side):
        return
    fitting = [p.name for p in network.pretrained if p.input.pixels.crop == (side, side)]
    way_out = f"give --preprocess {' or '.join(fitting)}" if fitting else "no preset of this network fits"
    size = "x".join(map(str, crop or ()))
    raise ConfigError(f"{network.name}: the weights take {side}x{side} pixels, the preset makes {size}; {way_out}")


def describe_input(reads: InputSpec) -> str:
    """Everything in a preset that changes values, as one line."""
    pixels = reads.pixels
    return (
        f"resize={_sides(pixels.resize)},crop={_sides(pixels.crop or ())},interpolation={pixels.interpolation},"
        f"antialias={str(pixels.antialias).lower()},mean={_values(reads.mean)},std={_values(reads.std)}"
        f"{',order=bgr' if reads.order == 'bgr' else ''}"
        f"{f',mean_volume={reads.mean_volume}' if reads.mean_volume else ''}{_flow(reads)}"
    )


def _flow(reads: InputSpec) -> str:
    flow = reads.flow
    if flow is None:
        return ""
    method = flow.method
    source = ""
    if method is not None:
        weights = f",flow_weights_sha256={method.weights_sha256}" if method.weights_sha256 else ""
        source = f",flow={describe_source(method.source)}{weights}"
    levels = ",flow_levels=256" if flow.quantised else ""
    return (
        f"{source},flow_crop={_sides(reads.flow_crop or ())},flow_bound={flow.bound!r}{levels},"
        f"flow_mean={flow.mean!r},flow_std={flow.std!r}"
    )


def _sides(sides: tuple[int, ...]) -> str:
    return "x".join(map(str, sides)) or "none"


def _values(values: tuple[float, ...]) -> str:
    return "/".join(map(repr, values))
