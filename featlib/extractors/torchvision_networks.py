"""All classification networks of torchvision, for images and for video."""

from collections.abc import Iterable
from fractions import Fraction
from math import isqrt
from typing import Any

from featlib.extractors.light_torchvision import torchvision
from featlib.extractors.network import Network, Pretrained, Settings, StateDict
from featlib.extractors.registry import register_family
from featlib.sampling import ClipSampling, FrameSampling, Sampling
from featlib.spec import InputSpec, Kind, PixelSpec

_ONE_A_SECOND = FrameSampling("fps", Fraction(1))

# Clip length and rate of torchvision's published evaluation of each architecture (its video classification
# reference scripts and the notes of the weights). The ResNets were trained on 16 neighbouring frames (Tran et al.
# 2018), so theirs follow the file's own rate.
_CLIPS: dict[str, ClipSampling] = {
    "video.resnet": ClipSampling(frames=16),
    "video.s3d": ClipSampling(frames=128, fps=Fraction(15)),
    "video.mvit": ClipSampling(frames=16, fps=Fraction(15, 2)),
    "video.swin_transformer": ClipSampling(frames=32, fps=Fraction(15)),
}
_PLAIN_CLIPS = ClipSampling(frames=16)


@register_family
def image_networks() -> Iterable[Network]:
    """torchvision's image classification networks; the quantised ones are not among them."""
    return [_network(name, "frame") for name in torchvision.models.list_models(module=torchvision.models)]


@register_family
def video_networks() -> Iterable[Network]:
    """torchvision's video classification networks."""
    return [_network(name, "clip") for name in torchvision.models.list_models(module=torchvision.models.video)]


def image_network(name: str) -> Network:
    """One of torchvision's image classification networks."""
    return _network(name, "frame")


def _network(name: str, kind: Kind) -> Network:
    builder, weights = torchvision.models.get_model_builder(name), torchvision.models.get_model_weights(name)
    family = builder.__module__.removeprefix("torchvision.models.")
    sampling: Sampling = _ONE_A_SECOND if kind == "frame" else _CLIPS.get(family, _PLAIN_CLIPS)
    return Network(
        name=name,
        family=family,
        source="torchvision",
        kind=kind,
        sampling=sampling,
        pretrained=tuple(_pretrained(entry, kind) for entry in weights),
        default=weights.DEFAULT.name,
        constructor=builder,
        **_PECULIAR.get(family, {}),
    )


def _pretrained(entry: Any, kind: Kind) -> Pretrained:
    preset = entry.transforms()
    crop = tuple(preset.crop_size)
    pixels = PixelSpec(
        resize=tuple(preset.resize_size),
        crop=(crop[0], crop[-1]),
        interpolation=preset.interpolation.value,
        # The video preset has no such attribute: its forward resizes without antialiasing.
        antialias=bool(getattr(preset, "antialias", False)),
    )
    mean, std = tuple(preset.mean), tuple(preset.std)
    categories = tuple(entry.meta["categories"] or ())  # VGG16's IMAGENET1K_FEATURES have no classes
    reads = InputSpec(kind, pixels, mean, std)
    return Pretrained(entry.name, str(entry), entry.url, reads, categories, has_hash_in_name=True)


def _vit_settings(side: int, from_file: bool) -> Settings:
    return (("image_size", side),)


def _vit_side(state: StateDict) -> int | None:
    """The input side for which position embeddings were made: one for each patch, and one for the class token."""
    positions, patches = state.get("encoder.pos_embedding"), state.get("conv_proj.weight")
    if positions is None or patches is None or positions.ndim != 3 or patches.ndim != 4 or positions.shape[1] < 2:
        return None
    return isqrt(positions.shape[1] - 1) * patches.shape[-1]


def _inception_settings(side: int, from_file: bool) -> Settings:
    """torchvision turns ``transform_input`` on whenever it loads weights, and leaves it off without."""
    return (("aux_logits", False), ("init_weights", False), ("transform_input", from_file))


def _inception_random_settings(side: int, from_file: bool) -> Settings:
    return (("init_weights", True),)


# By architecture; what torchvision does inside its own weight loading has to be done for files too.
_PECULIAR: dict[str, dict[str, Any]] = {
    "vision_transformer": {
        "settings": _vit_settings,
        "random_settings": _vit_settings,
        "side_in": _vit_side,
    },
    "googlenet": {
        "settings": _inception_settings,
        "random_settings": _inception_random_settings,
        "unused": ("aux1.", "aux2."),
    },
    "inception": {
        "settings": _inception_settings,
        "random_settings": _inception_random_settings,
        "unused": ("AuxLogits.",),
    },
    # The published files were saved when dots were still allowed in the names of submodules.
    "densenet": {"renames": ((r"(denselayer\d+\.(?:norm|relu|conv))\.([12])\.", r"\1\2."),)},
    "video.mvit": {"exact_frames": 16},
}
