"""Every extractor passes the conformance test: the smallest of each family in `make test` or `make long`, all the
others on request."""

from pathlib import Path

import pytest
from torchvision.models import get_model_weights

from featlib.extractors import registry
from tests.extractors.conformance import HEADS, OWN, STREAMS, run_conformance

# The fewest operations of each family; the test below holds the list complete.
SMALLEST = {
    "alexnet": "alexnet",
    "convnext": "convnext_tiny",
    "densenet": "densenet121",
    "efficientnet": "efficientnet_b0",
    "googlenet": "googlenet",
    "inception": "inception_v3",
    "maxvit": "maxvit_t",
    "mnasnet": "mnasnet0_5",
    "mobilenetv2": "mobilenet_v2",
    "mobilenetv3": "mobilenet_v3_small",
    "regnet": "regnet_y_400mf",
    "resnet": "resnet18",
    "shufflenetv2": "shufflenet_v2_x0_5",
    "squeezenet": "squeezenet1_1",
    "swin_transformer": "swin_t",
    "vgg": "vgg11",
    "vision_transformer": "vit_b_32",
    "video.mvit": "mvit_v2_s",
    "video.resnet": "r3d_18",
    "video.s3d": "s3d",
    "video.swin_transformer": "swin3d_t",
    "c3d": "c3d",
    "i3d": "i3d_rgb",
    "factorised3d": "factorised3d",
    "two_stream": "two_stream_resnet18",
}
# Of the smallest, those that alone take more than 10 s.
_SLOW = ("c3d", "i3d_rgb", "maxvit_t", "mvit_v2_s", "s3d", "vgg11")
# Detectors have tests of their own: their rows are boxes.
NAMES = [name for name in registry.names() if not registry.network(name).detects]
OTHERS = [name for name in NAMES if name not in SMALLEST.values()]

# Width of what the last layer reads, from the papers' tables and torchvision's constructors: the last stage of
# ResNets (512, x4 with bottlenecks), fc7 of AlexNet and VGG, the embedding of transformers (doubled from stage to
# stage in Swin), the last 1x1 convolution or hidden layer of mobile networks, growth and width rules elsewhere. Of
# networks of torchvision it is the in_features or in_channels of the layer in HEADS.
FEATURE_SIZES = {
    "alexnet": 4096,
    "vgg11": 4096,
    "vgg13": 4096,
    "vgg16": 4096,
    "vgg19": 4096,
    "vgg11_bn": 4096,
    "vgg13_bn": 4096,
    "vgg16_bn": 4096,
    "vgg19_bn": 4096,
    "resnet18": 512,
    "resnet34": 512,
    "resnet50": 2048,
    "resnet101": 2048,
    "resnet152": 2048,
    "wide_resnet50_2": 2048,
    "wide_resnet101_2": 2048,
    "resnext50_32x4d": 2048,
    "resnext101_32x8d": 2048,
    "resnext101_64x4d": 2048,
    "squeezenet1_0": 512,
    "squeezenet1_1": 512,
    "mobilenet_v2": 1280,
    "mobilenet_v3_small": 1024,
    "mobilenet_v3_large": 1280,
    "mnasnet0_5": 1280,
    "mnasnet0_75": 1280,
    "mnasnet1_0": 1280,
    "mnasnet1_3": 1280,
    "shufflenet_v2_x0_5": 1024,
    "shufflenet_v2_x1_0": 1024,
    "shufflenet_v2_x1_5": 1024,
    "shufflenet_v2_x2_0": 2048,
    "efficientnet_b0": 1280,
    "efficientnet_b1": 1280,
    "efficientnet_b2": 1408,
    "efficientnet_b3": 1536,
    "efficientnet_b4": 1792,
    "efficientnet_b5": 2048,
    "efficientnet_b6": 2304,
    "efficientnet_b7": 2560,
    "efficientnet_v2_s": 1280,
    "efficientnet_v2_m": 1280,
    "efficientnet_v2_l": 1280,
    "convnext_tiny": 768,
    "convnext_small": 768,
    "convnext_base": 1024,
    "convnext_large": 1536,
    "swin_t": 768,
    "swin_s": 768,
    "swin_b": 1024,
    "swin_v2_t": 768,
    "swin_v2_s": 768,
    "swin_v2_b": 1024,
    "maxvit_t": 512,
    "vit_b_16": 768,
    "vit_b_32": 768,
    "vit_l_16": 1024,
    "vit_l_32": 1024,
    "vit_h_14": 1280,
    "densenet121": 1024,
    "densenet169": 1664,
    "densenet201": 1920,
    "densenet161": 2208,
    "googlenet": 1024,
    "inception_v3": 2048,
    "regnet_x_400mf": 400,
    "regnet_x_800mf": 672,
    "regnet_x_1_6gf": 912,
    "regnet_x_3_2gf": 1008,
    "regnet_x_8gf": 1920,
    "regnet_x_16gf": 2048,
    "regnet_x_32gf": 2520,
    "regnet_y_400mf": 440,
    "regnet_y_800mf": 784,
    "regnet_y_1_6gf": 888,
    "regnet_y_3_2gf": 1512,
    "regnet_y_8gf": 2016,
    "regnet_y_16gf": 3024,
    "regnet_y_32gf": 3712,
    "regnet_y_128gf": 7392,
    "r3d_18": 512,
    "mc3_18": 512,
    "r2plus1d_18": 512,
    "s3d": 1024,
    "mvit_v1_b": 768,
    "mvit_v2_s": 768,
    "swin3d_t": 768,
    "swin3d_s": 768,
    "swin3d_b": 1024,
    "c3d": 4096,
    "i3d_rgb": 1024,
    "i3d_flow": 1024,
    "factorised3d": 256,
    "two_stream_alexnet": 8192,
    "two_stream_vgg16": 8192,
    "two_stream_resnet18": 1024,
    "two_stream_resnet50": 4096,
    "two_stream_resnet101": 4096,
}

# Parameters in millions as published, of networks that torchvision lacks.
PUBLISHED = {"c3d": 79.99, "i3d_rgb": 12.70, "i3d_flow": 12.68}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.long) if name in _SLOW else name for name in SMALLEST.values()]
)
def test_smallest_of_each_family_conforms(name: str, tmp_path: Path) -> None:
    run_conformance(name, tmp_path)


@pytest.mark.full
@pytest.mark.parametrize("name", OTHERS)
def test_every_other_network_conforms(name: str, tmp_path: Path) -> None:
    run_conformance(name, tmp_path)


def test_every_family_has_a_member_in_the_conformance_test() -> None:
    families = {registry.network(name).family for name in NAMES}
    assert families == SMALLEST.keys() == HEADS.keys() | OWN | STREAMS


@pytest.mark.parametrize("name", NAMES)
def test_feature_size_of_every_network(name: str) -> None:
    assert registry.describe(name).feature_shape == (FEATURE_SIZES[name],)


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_of_own_networks_are_the_published_ones(name: str) -> None:
    assert round(registry.describe(name).parameters / 1e6, 2) == PUBLISHED[name]


@pytest.mark.parametrize("name", [name for name in NAMES if registry.network(name).source == "torchvision"])
def test_parameters_of_torchvision_networks_are_the_published_ones(name: str) -> None:
    described = registry.describe(name)
    published = get_model_weights(name).DEFAULT.meta["num_params"]
    # Published counts include the auxiliary head of Inception, which is of no use at inference: 1000 classes
    # from 768 channels, with its convolutions 3,326,696 in all.
    auxiliary = 3_326_696 if name == "inception_v3" else 0
    assert described.parameters == published - auxiliary
