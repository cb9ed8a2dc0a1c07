"""featlib's own networks held to ``featlib.extractors.conformance``, with other implementations as the plain ones.

The weights are random, with batch norm statistics taken from the pictures of the test: without them the values
of deep networks fade to 1e-14. The expected features come from torchvision alone: the class's own constructor, its
own presets' functions and the last layer replaced by an identity, so nothing of featlib takes part in them. For
networks that torchvision lacks they come from ``plain_networks``.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import safetensors.torch
import torch
from torch import nn
from torchvision.models import get_model, get_model_weights
from torchvision.transforms.functional import convert_image_dtype, normalize

from featlib.extractors import registry
from featlib.extractors.conformance import FP16_FLOPS_ON_CPU, Finding, check
from featlib.extractors.plain import pictures
from featlib.sampling import ClipSampling
from tests.extractors.plain_networks import PLAIN

SEED = 7

# The last layer of each architecture, read in torchvision's sources.
HEADS = {
    "alexnet": "classifier.6",
    "convnext": "classifier.2",
    "densenet": "classifier",
    "efficientnet": "classifier.1",
    "googlenet": "fc",
    "inception": "fc",
    "maxvit": "classifier.5",
    "mnasnet": "classifier.1",
    "mobilenetv2": "classifier.1",
    "mobilenetv3": "classifier.3",
    "regnet": "fc",
    "resnet": "fc",
    "shufflenetv2": "fc",
    "squeezenet": "classifier.1",
    "swin_transformer": "head",
    "vgg": "classifier.6",
    "vision_transformer": "heads.head",
    "video.mvit": "head.1",
    "video.resnet": "fc",
    "video.s3d": "classifier.1",
    "video.swin_transformer": "head",
}
# Families of featlib's own, whose plain forward ends at the feature.
OWN = {"c3d", "i3d", "factorised3d"}
# Families whose plain forward is that of the library: the constructor's module, its input prepared by hand.
STREAMS = {"two_stream"}
# Clips that are shorter than the network's own where it takes them: the same code runs, in less time.
CLIPS = {"video.s3d": "frames=16", "video.swin_transformer": "frames=4", "video.resnet": "frames=8", "i3d": "frames=16"}

CHECKS = (
    "eval mode", "dtype", "shape", "determinism", "batch invariance", "response", "agreement", "precision bf16",
    "precision fp16", "weights .pth", "weights .safetensors",
)  # fmt: skip

UInt8Array = npt.NDArray[np.uint8]


def plain_network(name: str) -> nn.Module:
    """The network as its constructor builds it after ``torch.manual_seed(SEED)``."""
    if name in PLAIN:
        torch.manual_seed(SEED)
        return registry.network(name).constructor().eval()
    crop = get_model_weights(name).DEFAULT.transforms().crop_size
    extra = {"image_size": crop[0]} if name.startswith("vit") else {}
    extra = {"init_weights": True} if name in ("googlenet", "inception_v3") else extra
    torch.manual_seed(SEED)
    network: nn.Module = get_model(name, weights=None, **extra)
    return network.eval()


def plain_input(name: str, clips: UInt8Array) -> torch.Tensor:
    """Clips of uint8 frames (N, T, H, W, 3) as torchvision's preset, or the paper, hands them to the network."""
    if name in PLAIN:
        return PLAIN[name].input(torch.from_numpy(clips))
    preset = get_model_weights(name).DEFAULT.transforms()
    x = convert_image_dtype(torch.from_numpy(clips).permute(0, 1, 4, 2, 3), torch.float)
    x = normalize(x, preset.mean, preset.std)
    return x[:, 0] if registry.kind(name) == "frame" else x.permute(0, 2, 1, 3, 4).contiguous()


def settle_batch_norm(network: nn.Module, x: torch.Tensor) -> None:
    """Sets the statistics of batch norm layers to those of ``x``."""
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d | nn.BatchNorm3d | nn.BatchNorm1d)]
    if not norms:
        return
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        network.train()(x)
    network.eval()


def without_head(network: nn.Module, head: str) -> nn.Module:
    """``network`` with ``head`` as an identity: its output is the input of ``head``, pooled by its own code."""
    if hasattr(network, "transform_input"):
        network.transform_input = True  # as torchvision does when it loads weights
    parent, _, child = head.rpartition(".")
    setattr(network.get_submodule(parent), child, nn.Identity())
    return network


def plain_feature(name: str, network: nn.Module) -> Callable[[torch.Tensor], torch.Tensor]:
    if name not in PLAIN:
        return without_head(network, HEADS[registry.network(name).family])
    state = network.state_dict()
    return lambda x: PLAIN[name].feature(state, x)


def two_clips(name: str) -> UInt8Array:
    """Clips of the length that the network is tested with: uint8 (2, T, H, W, 3)."""
    described = registry.network(name)
    crop, clip_sampling = described.default_pretrained.input.pixels.crop, CLIPS.get(described.family)
    assert crop is not None
    num_frames = 1
    if isinstance(described.sampling, ClipSampling):
        num_frames = int(clip_sampling.partition("=")[2]) if clip_sampling else described.sampling.frames
    frame_idx = np.arange(2)[:, None] + np.arange(num_frames)[None, :]
    return pictures(num_frames + 1, *crop)[frame_idx]


def run_conformance(name: str, folder: Path) -> tuple[Finding, ...]:
    """Everything that is true of every extractor, for the network called ``name``; files go to ``folder``."""
    described = registry.describe(name)
    clip_sampling = CLIPS.get(registry.network(name).family)
    if described.input.flow is None:
        findings, shapes = _against_torchvision(name, clip_sampling, folder)
        assert shapes == {described.feature_shape}
    else:
        findings = check(name, weights=f"random:{SEED}", clip_sampling=clip_sampling)
    assert tuple(f.check for f in findings) == CHECKS
    left_out = {"precision fp16"} if described.flops > FP16_FLOPS_ON_CPU else set()
    wrong = [f for f in findings if f.passed is not True and f.check not in left_out]
    assert wrong == [], "; ".join(f"{f.check}: {f.message} ({f.figure})" for f in wrong)
    assert {f.check for f in findings if f.passed is None} == left_out
    return findings


def _against_torchvision(
    name: str, clip_sampling: str | None, folder: Path
) -> tuple[tuple[Finding, ...], set[tuple[int, ...]]]:
    """What the check finds beside another implementation, and the shapes of that one's features."""
    network = plain_network(name)
    settle_batch_norm(network, plain_input(name, two_clips(name)))
    path = folder / "made.safetensors"
    safetensors.torch.save_file({f"model.{k}": v for k, v in network.state_dict().items()}, path)
    feature = plain_feature(name, network)
    shapes: set[tuple[int, ...]] = set()

    def plain_forward(clips: UInt8Array) -> torch.Tensor:
        features = feature(plain_input(name, clips))
        shapes.add(tuple(features.shape[1:]))
        return features

    findings = check(name, weights=str(path), clip_sampling=clip_sampling, plain_forward=plain_forward)
    path.unlink()
    return findings, shapes
