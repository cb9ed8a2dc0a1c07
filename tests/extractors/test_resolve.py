import pickle
from pathlib import Path

import pytest
import torch
from torchvision.models import vit_b_32

from featlib.config import ModelConfig
from featlib.errors import ConfigError
from featlib.extractors.resolve import ResolvedModel, resolve
from featlib.sampling import ClipSampling, FrameSampling
from featlib.storage import StoreOptions


def resolved(network: str, **settings: object) -> ResolvedModel:
    values = {"network": network, "weights": "random:0", **settings}
    return resolve(ModelConfig.model_validate(values), StoreOptions())


def test_own_sampling_unless_told_otherwise() -> None:
    assert resolved("squeezenet1_1").sampling == FrameSampling.parse("fps:1")
    assert resolved("squeezenet1_1", frame_sampling="every:8").sampling == FrameSampling.parse("every:8")
    assert resolved("r3d_18", clip_sampling="stride=2,tail=pad").sampling == ClipSampling(16, 2, 32, "pad")


@pytest.mark.parametrize(
    ("network", "settings", "message"),
    [
        ("squeezenet1_1", {"clip_sampling": "frames=8"}, "reads frames; use --frame-sampling"),
        ("r3d_18", {"frame_sampling": "fps:1"}, "reads clips; use --clip-sampling"),
        ("s3d", {"clip_sampling": "frames=12"}, "s3d: frames=12, but it needs at least 13; use frames=13"),
        ("mvit_v2_s", {"clip_sampling": "frames=32"}, "takes exactly 16"),
        ("squeezenet1_1", {"layer": "featuers"}, "no such layer; did you mean features"),
        ("squeezenet1_1", {"layer": "zzz"}, "use penultimate, logits, probabilities or a node like"),
        ("squeezenet1_1", {"preprocess": "IMAGENET1K_V9"}, "no such preset; did you mean IMAGENET1K_V1"),
        ("r3d_18", {"preprocess": "ResNet50_Weights.IMAGENET1K_V1"}, "made for frames, but r3d_18 reads clips"),
        ("maxvit_t", {"preprocess": "Inception_V3_Weights.DEFAULT"}, "no such preset"),
        ("maxvit_t", {"preprocess": "Inception_V3_Weights.IMAGENET1K_V1"}, "does not take an input of 299x299"),
    ],
)
def test_what_is_refused(network: str, settings: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        resolved(network, **settings)
    assert "\n" not in str(caught.value)


def test_the_shortest_clip_is_taken() -> None:
    assert resolved("s3d", clip_sampling="frames=13").frames == 13


def test_preset_of_another_network() -> None:
    model = resolved("resnet18", preprocess="ResNet50_Weights.IMAGENET1K_V2")
    assert model.input.pixels.resize == (232,)


def test_size_of_a_transformer_follows_its_preset() -> None:
    model = resolved("vit_b_16", preprocess="IMAGENET1K_SWAG_E2E_V1")
    assert model.input.pixels.crop == (384, 384)
    assert dict(model.settings)["image_size"] == 384


def test_size_of_a_transformer_must_fit_its_file(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    torch.save(vit_b_32(image_size=384, num_classes=2).state_dict(), path)
    with pytest.raises(ConfigError, match=r"the weights take 384x384 pixels, the preset makes 224x224; no preset"):
        resolved("vit_b_32", weights=str(path))
    model = resolved("vit_b_32", weights=str(path), preprocess="ViT_B_16_Weights.IMAGENET1K_SWAG_E2E_V1")
    assert dict(model.settings) == {"image_size": 384, "num_classes": 2}


@pytest.mark.parametrize(
    ("layer", "shape"),
    [("penultimate", (512,)), ("logits", (1000,)), ("probabilities", (1000,)), ("layer4", (512, 7, 7))],
)
def test_feature_shape_of_each_layer(layer: str, shape: tuple[int, ...]) -> None:
    assert resolved("resnet18", layer=layer).feature_shape == shape


def test_semantics_hold_what_changes_values_and_nothing_else(tmp_path: Path) -> None:
    base = resolved("resnet18").semantics()
    changes: list[dict[str, object]] = [
        {"weights": "random:1"},
        {"layer": "logits"},
        {"preprocess": "ResNet50_Weights.IMAGENET1K_V2"},
        {"precision": "bf16"},
        {"frame_sampling": "fps:2"},
    ]
    for change in changes:
        other = resolved("resnet18", **change).semantics()
        assert sum(base[k] != other[k] for k in base) == 1, change
    assert resolved("resnet18", label="another", batch_size=3).semantics() == base
    assert resolved("resnet34").semantics()["network"] != base["network"]
    assert "mean=0.485/0.456/0.406" in base["preprocess"]
    assert all(isinstance(v, str) for v in base.values())


def test_a_resolved_model_travels() -> None:
    model = resolved("r3d_18", label="mine")
    assert pickle.loads(pickle.dumps(model)) == model
    assert (model.want.label, model.want.sampling, model.want.pixels) == ("mine", model.sampling, model.input.pixels)
