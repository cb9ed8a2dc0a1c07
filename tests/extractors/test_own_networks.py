"""C3D, I3D and the factorised network: shapes, the traps of ports, and the keys of public weights."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from featlib.config import ModelConfig
from featlib.errors import ConfigError
from featlib.extractors import registry
from featlib.extractors.build import build
from featlib.extractors.resolve import ResolvedModel, resolve
from featlib.extractors.weights import payload, release_payloads
from featlib.models.c3d import C3D
from featlib.models.i3d import I3D, same_padding
from featlib.storage import StoreOptions
from tests.extractors import plain_networks
from tests.extractors.plain_networks import PlainI3D, c3d, c3d_pool5_of_ports

OPTIONS = StoreOptions()
TOLERANCE = 1e-4


def resolved(network: str, weights: Path | str, **settings: object) -> ResolvedModel:
    values = {"network": network, "weights": str(weights), **settings}
    return resolve(ModelConfig.model_validate(values), OPTIONS)


def distance(value: Tensor, reference: Tensor) -> float:
    return float((value - reference).norm() / reference.norm())


def clip(frames: int, side: int, seed: int = 0) -> Tensor:
    return torch.randn(1, 3, frames, side, side, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def c3d_network() -> C3D:
    torch.manual_seed(1)
    return C3D(num_classes=5).eval()


@pytest.fixture(scope="module")
def i3d_network() -> I3D:
    """With statistics of batch norm as training leaves them, small variances among them."""
    torch.manual_seed(1)
    network = I3D(num_classes=5)
    with torch.no_grad():
        for norm in (m for m in network.modules() if isinstance(m, torch.nn.BatchNorm3d)):
            norm.momentum = 1.0
        network.train()(clip(16, 224) * 0.1)
    return network.eval()


class Kept:
    """The values that pass through a module."""

    def __init__(self, module: torch.nn.Module) -> None:
        self.value = torch.empty(0)
        module.register_forward_hook(self._keep)

    def _keep(self, module: torch.nn.Module, args: object, output: Tensor) -> None:
        self.value = output


def fc6(network: C3D, x: Tensor) -> Tensor:
    kept = Kept(network.relu6)
    with torch.inference_mode():
        network(x)
    return kept.value


def time_mean(network: I3D, x: Tensor) -> Tensor:
    kept = Kept(network.time)
    with torch.inference_mode():
        network(x)
    return kept.value.mean(dim=1)


def test_pool5_of_c3d_rounds_up_as_caffe_does(c3d_network: C3D) -> None:
    x, state = clip(16, 112), c3d_network.state_dict()
    feature = fc6(c3d_network, x)
    assert distance(feature, c3d(state, x)) < TOLERANCE
    assert distance(feature, c3d(state, x, c3d_pool5_of_ports)) > 100 * TOLERANCE


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "pads"),
    [
        (224, 7, 2, (2, 3)),
        (64, 7, 2, (2, 3)),
        (112, 3, 2, (0, 1)),
        (9, 3, 2, (1, 1)),
        (7, 3, 1, (1, 1)),
        (5, 2, 2, (0, 1)),
    ],
)
def test_same_padding_puts_the_odd_one_behind(size: int, kernel: int, stride: int, pads: tuple[int, int]) -> None:
    assert same_padding(size, kernel, stride) == pads


WRONG_I3D = {
    "symmetric padding": PlainI3D(plain_networks.SYMMETRIC),
    "torch's own eps": PlainI3D(plain_networks.SAME, eps=1e-5),
}


@pytest.mark.parametrize("wrong", WRONG_I3D)
def test_i3d_is_not_what_ports_make_of_it(i3d_network: I3D, wrong: str) -> None:
    x, state = clip(16, 224) * 0.1, i3d_network.state_dict()
    feature = time_mean(i3d_network, x)
    assert distance(feature, PlainI3D(plain_networks.SAME)(state, x)) < TOLERANCE
    assert distance(feature, WRONG_I3D[wrong](state, x)) > 100 * TOLERANCE


def test_i3d_keeps_seven_steps_of_64_frames() -> None:
    model = resolved("i3d_rgb", "random:0", layer="time")
    assert model.feature_shape == (7, 1024)
    assert resolved("i3d_rgb", "random:0").feature_shape == (1024,)


def test_kept_steps_are_those_whose_mean_is_the_feature() -> None:
    x = clip(24, 224)
    features = {}
    for layer in ("time", "penultimate"):
        model = resolved("i3d_rgb", "random:3", layer=layer, clip_sampling="frames=24")
        with torch.inference_mode():
            features[layer] = build(model, payload(model, OPTIONS))(x)[0]
    assert features["time"].shape == (1, 2, 1024)
    assert distance(features["time"].mean(dim=1), features["penultimate"]) < 1e-5


@pytest.mark.parametrize(
    ("network", "frames", "message"),
    [
        ("c3d", 8, "c3d: frames=8, but it takes exactly 16; use frames=16"),
        ("i3d_rgb", 8, "i3d_rgb: frames=8, but it needs at least 9; use frames=9"),
        ("factorised3d", 7, "factorised3d: frames=7, but it needs at least 8; use frames=8"),
    ],
)
def test_too_short_a_clip_is_refused(network: str, frames: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        resolved(network, "random:0", clip_sampling=f"frames={frames}")


def as_lists(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """C3D's weights as public files with numbered layers hold them, which end at fc7."""
    convolutions = dict(
        zip(("conv1", "conv2", "conv3a", "conv3b", "conv4a", "conv4b"), (0, 3, 6, 8, 11, 13), strict=True)
    )
    numbers = {name: f"features.{n}" for name, n in convolutions.items()}
    numbers |= {"conv5a": "features.16", "conv5b": "features.18", "fc6": "classifier.0", "fc7": "classifier.3"}
    parts = ((key.partition("."), value) for key, value in state.items())
    return {f"{numbers[name]}.{kind}": value for (name, _, kind), value in parts if name in numbers}


LAYOUTS: dict[str, Callable[[dict[str, Tensor]], dict[str, Tensor]]] = {"names": dict, "numbers": as_lists}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_c3d_reads_both_layouts_of_public_weights(c3d_network: C3D, layout: str, tmp_path: Path) -> None:
    path = tmp_path / "c3d.pth"
    torch.save(LAYOUTS[layout](c3d_network.state_dict()), path)
    model = resolved("c3d", path)
    release_payloads()
    x = clip(16, 112)
    with torch.inference_mode():
        feature = build(model, payload(model, OPTIONS))(x)[0]
    assert distance(feature, c3d(c3d_network.state_dict(), x)) < TOLERANCE


def test_a_layer_that_the_file_lacks_is_refused(c3d_network: C3D, tmp_path: Path) -> None:
    path = tmp_path / "c3d.pth"
    torch.save(as_lists(c3d_network.state_dict()), path)
    with pytest.raises(ConfigError, match=r"layer logits of c3d depends on fc8\.bias, which the file does not hold"):
        resolved("c3d", path, layer="logits")
    assert resolved("c3d", path, layer="relu7").feature_shape == (4096,)


def test_i3d_reads_the_keys_of_public_weights(i3d_network: I3D, tmp_path: Path) -> None:
    """Written down from a public file; only their names matter here."""
    state = i3d_network.state_dict()
    blocks = [f"Mixed_{block}" for block in ("3b", "3c", "4b", "4c", "4d", "4e", "4f", "5b", "5c")]
    units = [f"{block}.{branch}" for block in blocks for branch in ("b0", "b1a", "b1b", "b2a", "b2b", "b3b")]
    units += ["Conv3d_1a_7x7", "Conv3d_2b_1x1", "Conv3d_2c_3x3"]
    norms = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    keys = {f"{unit}.conv3d.weight" for unit in units} | {f"{unit}.bn.{part}" for unit in units for part in norms}
    assert state.keys() == keys | {"logits.conv3d.weight", "logits.conv3d.bias"}


def test_weights_of_another_network_are_refused_in_one_line(c3d_network: C3D, tmp_path: Path) -> None:
    path = tmp_path / "c3d.pth"
    torch.save(c3d_network.state_dict(), path)
    with pytest.raises(ConfigError, match="do not fit i3d_rgb: missing") as refusal:
        resolved("i3d_rgb", path)
    assert "\n" not in str(refusal.value)


def test_default_weights_of_c3d_say_what_to_do() -> None:
    with pytest.raises(ConfigError, match="give --weights PATH of a state dict or --weights random:SEED"):
        resolved("c3d", "default")


def test_order_of_channels_is_part_of_the_fingerprint() -> None:
    model = resolved("c3d", "random:0")
    assert model.semantics()["preprocess"].endswith(",order=bgr")
    rgb = replace(model, input=replace(model.input, order="rgb"))
    assert "order" not in rgb.semantics()["preprocess"]


def test_all_are_listed() -> None:
    assert {"c3d", "i3d_rgb", "factorised3d"} <= set(registry.names())
