"""``--model timm:NAME``: the image classifiers of timm, with the preprocessing of their pretrained configuration.

timm resizes PIL pictures; featlib resizes tensors, to the same sizes and with antialiasing as PIL has it, so pixels
differ by rounding. Weights are the files that timm itself loads, under their public addresses: that of the hub before
that of the first publisher, whose keys may be others.
"""

import math
from functools import partial
from importlib.util import find_spec
from typing import Any

import featlib.extractors.light_torchvision  # noqa: F401 - timm imports torchvision, which must come from there
from featlib.errors import ConfigError
from featlib.extractors.network import Network, Pretrained
from featlib.extractors.registry import near
from featlib.sampling import FrameSampling
from featlib.spec import InputSpec, PixelSpec

_HUB_FILE = "https://huggingface.co/{0}/resolve/main/{1}"
_HUB_NAME = "model.safetensors"
_INTERPOLATIONS = ("bilinear", "bicubic")


def is_installed() -> bool:
    """Whether ``timm:NAME`` can be asked for; nothing is imported."""
    return find_spec("timm") is not None


def network(name: str) -> Network:
    """timm's classifier ``name``, with its tag (``resnet18.a1_in1k``) or without, which means timm's default tag.

    Raises:
        ConfigError: timm is not installed, has no such classifier, or prepares its input in a way that featlib lacks.
    """
    timm = _timm()
    config = _config(timm, name)
    full = f"{config.architecture}.{config.tag}" if config.tag else config.architecture
    if not config.num_classes:
        raise ConfigError(f"--model timm:{name}: has no classifier; featlib takes the image classifiers of timm")
    # Without a batch of classes of its own, as timm evaluates it; not at the larger size of some published figures.
    data = timm.data.resolve_data_config(pretrained_cfg=config.to_dict())
    pretrained = Pretrained(
        name=config.tag or "PRETRAINED",
        enum=f"timm:{full}",
        url=_url(config),
        input=InputSpec("frame", _pixels(name, data), tuple(data["mean"]), tuple(data["std"])),
        cache_name=f"timm-{full}.safetensors" if config.hf_hub_id else "",
        has_hash_in_name=not config.hf_hub_id,
    )
    return Network(
        name=f"timm:{full}",
        family="timm",
        source="timm",
        kind="frame",
        sampling=FrameSampling.parse("fps:1"),
        pretrained=(pretrained,),
        default=pretrained.name,
        constructor=partial(timm.create_model, full, pretrained=False),
    )


def _timm() -> Any:
    try:
        import timm
        import timm.data
    except ImportError as error:
        if error.name == "timm":
            raise ConfigError("--model timm:NAME: timm is not installed; pip install 'featlib[timm]'") from None
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(f"--model timm:NAME: timm cannot be imported ({reason})") from None
    return timm


def _config(timm: Any, name: str) -> Any:
    """timm's pretrained configuration of ``name``."""
    try:
        config = timm.models.get_pretrained_cfg(name)
    except RuntimeError:  # the architecture has no such tag
        config = None
    if config is None:
        tags = timm.list_models(f"{name.partition('.')[0]}.*", pretrained=True) if "." in name else []
        known = tags or sorted({*timm.list_models(), *timm.list_models(pretrained=True)})
        hint = near(name, known, listing="`timm.list_models()` lists them all")
        raise ConfigError(f"--model timm:{name}: timm has no such network; {hint}")
    return config


def _pixels(name: str, data: dict[str, Any]) -> PixelSpec:
    """timm's evaluation transform: sides of ``floor(side / crop_pct)``, then a centre crop."""
    _, height, width = data["input_size"]
    scaled = math.floor(height / data["crop_pct"]), math.floor(width / data["crop_pct"])
    keeps_ratio = data["crop_mode"] == "center" and scaled[0] == scaled[1]
    if data["interpolation"] not in _INTERPOLATIONS or not (keeps_ratio or data["crop_mode"] == "squash"):
        raise ConfigError(
            f"--model timm:{name}: prepares its input of {height}x{width} with crop_mode {data['crop_mode']!r} and "
            f"{data['interpolation']} interpolation, which featlib does not do"
        )
    return PixelSpec(
        resize=scaled[:1] if keeps_ratio else scaled,
        crop=(height, width),
        interpolation=data["interpolation"],
        antialias=True,
    )


def _url(config: Any) -> str:
    """Of the state dict; empty where it is in a format that is none (``.npz``)."""
    if config.hf_hub_id:
        return _HUB_FILE.format(config.hf_hub_id, config.hf_hub_filename or _HUB_NAME)
    return "" if config.custom_load else config.url or ""
