from collections.abc import Iterable
from dataclasses import replace
from fractions import Fraction

import pytest
import torchvision
from torchvision.models import list_models

from featlib.errors import ConfigError
from featlib.extractors import registry
from featlib.extractors.network import Network
from featlib.sampling import ClipSampling


def test_all_networks_of_torchvision_for_pictures_video_and_detection_are_there() -> None:
    modules = (torchvision.models, torchvision.models.video, torchvision.models.detection)
    expected = {name for module in modules for name in list_models(module=module)}
    own = {name for name in registry.names() if registry.network(name).source == "featlib"}
    two_stream = {f"two_stream_{n}" for n in ("alexnet", "vgg16", "resnet18", "resnet50", "resnet101")}
    assert own == {"c3d", "i3d_rgb", "i3d_flow", "factorised3d"} | two_stream
    assert registry.names() == sorted(expected | own)


def test_a_name_that_is_taken_is_refused() -> None:
    def again() -> Iterable[Network]:
        return [replace(registry.network("resnet18"), source="elsewhere")]

    with pytest.raises(ValueError, match=r"'resnet18' is registered twice, by torchvision and elsewhere"):
        registry.merge([lambda: [registry.network("resnet18")], again])


def test_a_miss_lists_near_names() -> None:
    with pytest.raises(ConfigError, match=r"--model resnet5: no such network; did you mean .*resnet50"):
        registry.network("resnet5")
    with pytest.raises(ConfigError, match=r"`featlib models` lists them all"):
        registry.describe("zzzzzz")


def test_description_of_a_frame_network() -> None:
    described = registry.describe("resnet50")
    assert (described.kind, described.sampling) == ("frame", "fps:1")
    assert described.weights == ("IMAGENET1K_V1", "IMAGENET1K_V2")
    assert described.default_weights == "IMAGENET1K_V2"
    assert described.input.pixels.key == "r232_c224x224_bilinear_aa"
    # He et al. 2016 give 3.8e9 multiply-adds for the stride in the first convolution; torchvision's has 4.09e9.
    assert described.flops == pytest.approx(2 * 4.09e9, rel=0.01)


@pytest.mark.parametrize(
    ("name", "sampling"),
    [
        ("r3d_18", ClipSampling(16)),
        ("r2plus1d_18", ClipSampling(16)),
        ("mc3_18", ClipSampling(16)),
        ("s3d", ClipSampling(128, fps=Fraction(15))),
        ("mvit_v1_b", ClipSampling(16, fps=Fraction(15, 2))),
        ("swin3d_b", ClipSampling(32, fps=Fraction(15))),
    ],
)
def test_clip_networks_have_their_own_protocol(name: str, sampling: ClipSampling) -> None:
    assert registry.network(name).sampling == sampling
    assert registry.kind(name) == "clip"


def test_video_presets_do_not_antialias_and_may_change_the_aspect_ratio() -> None:
    pixels = registry.describe("r3d_18").input.pixels
    assert (pixels.resize, pixels.crop, pixels.antialias) == ((128, 171), (112, 112), False)


def test_every_published_file_can_be_recognised_by_its_hash() -> None:
    published = [
        p for n in registry.names() for p in registry.network(n).pretrained if p.url and not n.startswith("two_")
    ]
    prefixes = [p.hash_prefix for p in published]
    assert {p.name for n in ("c3d", "i3d_rgb") for p in registry.network(n).pretrained if not p.url} == {
        "SPORTS1M",
        "KINETICS400_RGB",
    }
    assert all(len(prefix) >= 8 for prefix in prefixes)
    assert len(set(prefixes)) == len(prefixes)
