"""What every extractor must hold, checked on a real network.

The weights are random, with batch norm statistics taken from the pictures of the test: without them the values
of deep networks fade to 1e-14. The expected features come from torchvision alone: the class's own constructor, its
own presets' functions and the last layer replaced by an identity, so nothing of featlib takes part in them. For
networks that torchvision lacks they come from ``plain_networks``.
"""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import safetensors.torch
import torch
from torch import nn
from torchvision.models import get_model, get_model_weights
from torchvision.transforms.functional import convert_image_dtype, normalize

from featlib.config import ModelConfig
from featlib.extractors import registry
from featlib.extractors.build import build
from featlib.extractors.resolve import ResolvedModel, resolve
from featlib.extractors.weights import payload, release_payloads
from featlib.inference import Engine
from featlib.spec import ClipSampling
from featlib.storage import StoreOptions
from tests.extractors.plain_networks import PLAIN

SEED = 7
OPTIONS = StoreOptions()

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
# Clips that are shorter than the network's own where it takes them: the same code runs, in less time.
CLIPS = {"video.s3d": "frames=16", "video.swin_transformer": "frames=4", "video.resnet": "frames=8", "i3d": "frames=16"}

# In fp16 a CPU takes 10 times as long as in fp32, 40 times for 3D convolutions; larger networks need a GPU for it.
FP16_FLOPS_ON_CPU = 4e9

FloatArray = npt.NDArray[np.float32]
UInt8Array = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Case:
    """A network, ready to be compared: ``plain(x)`` is the expected feature of the last clip of ``frame_idx``."""

    resolved: ResolvedModel
    payload: bytes
    frames: UInt8Array
    frame_idx: npt.NDArray[np.int64]
    plain: Callable[[torch.Tensor], torch.Tensor]
    x: torch.Tensor


def model_config(name: str, **settings: object) -> ModelConfig:
    return ModelConfig.model_validate({"network": name, **settings})


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


def plain_features(
    network: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor, dtype: torch.dtype = torch.float32
) -> FloatArray:
    """Features of the one clip in ``x``, under torch's own autocast for half precision."""
    half = dtype != torch.float32
    with torch.inference_mode(), torch.autocast("cpu", dtype=dtype if half else torch.bfloat16, enabled=half):
        features: FloatArray = network(x)[0].float().numpy()
    return features


def make_case(name: str, folder: Path) -> Case:
    described = registry.network(name)
    clip_sampling = CLIPS.get(described.family)
    crop = described.default_pretrained.input.pixels.crop
    assert crop is not None
    num_frames = 1
    if isinstance(described.sampling, ClipSampling):
        num_frames = int(clip_sampling.partition("=")[2]) if clip_sampling else described.sampling.frames
    frames = _pictures(num_frames + 1, *crop)
    frame_idx = np.arange(2)[:, None] + np.arange(num_frames)[None, :]
    network = plain_network(name)
    settle_batch_norm(network, plain_input(name, frames[frame_idx]))
    path = folder / "made.safetensors"
    safetensors.torch.save_file({f"model.{k}": v for k, v in network.state_dict().items()}, path)
    resolved = resolve(model_config(name, weights=str(path), clip_sampling=clip_sampling), OPTIONS)
    path.unlink()
    plain = plain_feature(name, network)
    return Case(
        resolved, payload(resolved, OPTIONS), frames, frame_idx, plain, plain_input(name, frames[frame_idx[1:]])
    )


def run_conformance(name: str, folder: Path) -> None:
    """Everything that is true of every extractor, for the network called ``name``; files go to ``folder``."""
    case = make_case(name, folder)
    release_payloads()
    check_module(case)
    check_values(case)
    check_precisions(case)
    check_round_trip(case, folder)
    release_payloads()


def check_module(case: Case) -> None:
    module = build(case.resolved, case.payload)
    assert not any(m.training for m in module.modules())
    assert not any(p.requires_grad for p in module.parameters())


def check_values(case: Case) -> None:
    engine = Engine([case.resolved], case.payload, batch_size=2)
    # Batches of clips (0, 1) and (1, 1): the same clip beside another one and alone.
    (extracted,) = engine.run(case.frames, case.frame_idx[[0, 1, 1]])
    features = extracted.features
    assert extracted.errors == {}
    assert features.dtype == np.float32
    assert features.shape == (3, int(np.prod(extracted.shape)))
    assert extracted.shape == registry.describe(case.resolved.network).feature_shape
    assert relative_l2(features[1], features[2]) < 1e-5, "a clip's feature depends on its neighbours"
    assert relative_l2(features[0], features[1]) > 1e-4, "two different clips have the same feature"
    assert relative_l2(features[2], plain_features(case.plain, case.x)) < 5e-5, "not what torchvision alone gives"
    again = engine.run(case.frames, case.frame_idx[1:])[0].features
    assert np.array_equal(again[0], features[2]), "the same batch gave other bits the second time"


def check_precisions(case: Case) -> None:
    """Half precision is used, and strays from fp32 no further than the plain network does.

    A fixed bound would not do: random weights amplify rounding, by 0.26 in MNASNet and 0.005 in Swin (bf16).
    """
    dtypes = {"bf16": torch.bfloat16, "fp16": torch.float16}
    if registry.describe(case.resolved.network).flops > FP16_FLOPS_ON_CPU:
        del dtypes["fp16"]
    exact = plain_features(case.plain, case.x)
    for precision, dtype in dtypes.items():
        engine = Engine([replace(case.resolved, precision=precision)], case.payload, batch_size=1)
        (extracted,) = engine.run(case.frames, case.frame_idx[1:])
        features = extracted.features
        assert extracted.errors == {}, precision
        assert features.dtype == np.float32
        allowed = 2 * relative_l2(plain_features(case.plain, case.x, dtype), exact)
        difference = relative_l2(features[0], exact)
        assert 0 < difference < allowed, f"{precision}: {difference}, allowed {allowed}"


def check_round_trip(case: Case, folder: Path) -> None:
    """The weights come back from a .pth in wrappers, with another class count; a .safetensors file made the case."""
    state = safetensors.torch.load(case.payload)
    last = case.resolved.last_layer
    state = {k: v[:5].clone() if k in (f"{last}.weight", f"{last}.bias") else v for k, v in state.items()}
    path = folder / "w.pth"
    torch.save({"epoch": 3, "state_dict": OrderedDict((f"module.{k}", v) for k, v in state.items())}, path)
    settings = {"weights": str(path), "clip_sampling": _clip_text(case.resolved)}
    resolved = resolve(model_config(case.resolved.network, **settings), OPTIONS)
    path.unlink()
    assert resolved.num_classes == 5
    read = safetensors.torch.load(payload(resolved, OPTIONS))
    assert read.keys() == state.keys()
    assert all(torch.equal(read[k], state[k]) for k in state)


def relative_l2(value: FloatArray, reference: FloatArray) -> float:
    difference = np.linalg.norm(value.astype(np.float64) - reference)
    return float(difference / np.linalg.norm(reference.astype(np.float64)))


def _clip_text(resolved: ResolvedModel) -> str | None:
    return f"frames={resolved.frames}" if isinstance(resolved.sampling, ClipSampling) else None


def _pictures(count: int, height: int, width: int) -> UInt8Array:
    """Smooth pictures that differ from one another, as frames of a video do."""
    random = np.random.default_rng(3)
    coarse = torch.from_numpy(random.random((count, 3, 8, 8), dtype=np.float32))
    smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")
    return np.ascontiguousarray((smooth * 255).to(torch.uint8).permute(0, 2, 3, 1).numpy())
