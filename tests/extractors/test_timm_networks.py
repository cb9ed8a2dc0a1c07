"""timm's classifiers: the input that timm's own evaluation transform makes, its features, its published files."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from PIL import Image
from timm.data import create_transform, resolve_data_config
from timm.models import get_pretrained_cfg

from featlib.config import ModelConfig
from featlib.errors import ConfigError
from featlib.extractors import registry
from featlib.extractors.conformance import check
from featlib.extractors.plain import pictures
from featlib.extractors.resolve import resolve
from featlib.extractors.weights import cache_path, payload, release_payloads
from featlib.resize import resized
from featlib.spec import PixelSpec
from featlib.storage import StoreOptions
from tests.extractors.conformance import CHECKS

OPTIONS = StoreOptions()
SMALL = "test_resnet.r160_in1k"

# Centre crops by several shares, a squashed one, bilinear and bicubic, a side that is no multiple of its share.
NAMES = ("resnet18.a1_in1k", "resnet18.tv_in1k", "convnext_tiny.fb_in22k_ft_in1k_384", "efficientnet_b0.ra_in1k", SMALL)
SIZES = ((480, 640), (641, 357), (224, 224), (101, 1003))


def timms_pixels(name: str, picture: np.ndarray) -> np.ndarray:
    """uint8 (H, W, 3) that timm's evaluation transform makes of a picture before it scales its values."""
    config = resolve_data_config(pretrained_cfg=get_pretrained_cfg(name).to_dict())
    transform = create_transform(**config, normalize=False)
    return np.moveaxis(transform(Image.fromarray(picture)).numpy(), 0, -1)


def distance(pixels: np.ndarray, reference: np.ndarray) -> float:
    """Mean absolute difference in levels of 0..255."""
    assert pixels.shape == reference.shape
    assert pixels.dtype == reference.dtype == np.uint8
    return float(np.abs(pixels.astype(float) - reference).mean())


def picture(height: int, width: int) -> np.ndarray:
    """With detail that a resize can get wrong."""
    noise = np.random.default_rng(1).integers(-40, 40, (height, width, 3))
    return np.clip(pictures(1, height, width)[0].astype(int) + noise, 0, 255).astype(np.uint8)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", SIZES)
def test_the_input_is_that_of_timms_own_transform(name: str, size: tuple[int, int]) -> None:
    source, pixels = picture(*size), registry.network(f"timm:{name}").default_pretrained.input.pixels
    assert distance(resized(source, pixels), timms_pixels(name, source)) < 0.5


def test_other_sizes_or_filters_are_further_from_timm() -> None:
    source = picture(480, 640)
    right = registry.network("timm:resnet18.a1_in1k").default_pretrained.input.pixels
    assert right == PixelSpec((235,), (224, 224), "bicubic", antialias=True)
    for wrong in (
        PixelSpec((236,), (224, 224), "bicubic"),
        PixelSpec((256,), (224, 224), "bicubic"),
        PixelSpec((235, 235), (224, 224), "bicubic"),
        PixelSpec((235,), (224, 224), "bilinear"),
        PixelSpec((235,), (224, 224), "bicubic", antialias=False),
    ):
        assert distance(resized(source, wrong), timms_pixels("resnet18.a1_in1k", source)) > 1.5, wrong


def test_every_classifier_of_timm_is_taken_and_nothing_else() -> None:
    refused = set()
    for name in timm.list_models(pretrained=True):
        config = get_pretrained_cfg(name)
        try:
            reads = registry.network(f"timm:{name}").default_pretrained.input
        except ConfigError:
            refused.add(name)
            continue
        assert reads.pixels.crop == config.input_size[1:]
        assert (reads.mean, reads.std) == (tuple(config.mean), tuple(config.std))
        assert (len(reads.pixels.resize) == 1) == (config.crop_mode == "center")
    assert refused == {n for n in timm.list_models(pretrained=True) if not get_pretrained_cfg(n).num_classes}
    assert len(timm.list_models(pretrained=True)) - len(refused) > 1000


@pytest.mark.parametrize("name", [SMALL, "test_vit.r160_in1k", "levit_128s.fb_dist_in1k"])
def test_conforms_with_timm_alone(name: str, tmp_path: Path) -> None:
    """The plain features are timm's own of a network without a classifier. LeViT keeps tables in no state dict."""
    torch.manual_seed(2)
    whole = timm.create_model(name, pretrained=False).eval()
    bare = timm.create_model(name, pretrained=False, num_classes=0).eval()
    bare.load_state_dict({k: v for k, v in whole.state_dict().items() if k in bare.state_dict()})
    torch.save(whole.state_dict(), tmp_path / "made.pth")
    config = get_pretrained_cfg(name)
    mean, std = (torch.tensor(v)[:, None, None] for v in (config.mean, config.std))

    def plain(clips: np.ndarray) -> torch.Tensor:
        return bare((torch.from_numpy(clips)[:, 0].permute(0, 3, 1, 2) / 255 - mean) / std)

    findings = check(f"timm:{name}", weights=str(tmp_path / "made.pth"), plain_forward=plain)
    assert tuple(f.check for f in findings) == CHECKS
    assert [f for f in findings if not f.passed] == []


def test_one_network_whether_its_tag_is_written_or_not() -> None:
    assert registry.network("timm:resnet18").name == "timm:resnet18.a1_in1k"
    assert registry.describe("timm:resnet18").feature_shape == (512,)
    # He et al. 2016 with torchvision's 1000 classes; timm's is the same architecture.
    assert registry.describe("timm:resnet18").parameters == registry.describe("resnet18").parameters


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("timm:resnett18", "timm has no such network; did you mean resnet18"),
        ("timm:resnet18.a1_in2k", "timm has no such network; did you mean resnet18.a1_in1k"),
        ("timm:", "timm has no such network; `timm.list_models()` lists them all"),
        ("timm:vit_small_patch14_dinov2.lvd142m", "has no classifier"),
    ],
)
def test_what_is_refused(name: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        registry.network(name)
    assert str(caught.value).startswith(f"--model {name}: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_published_files_have_their_own_place_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    one, other = (registry.network(f"timm:{n}").default_pretrained for n in (SMALL, "test_vit.r160_in1k"))
    assert one.url == "https://huggingface.co/timm/test_resnet.r160_in1k/resolve/main/model.safetensors"
    assert one.url.rpartition("/")[2] == other.url.rpartition("/")[2]
    assert cache_path(one) != cache_path(other)
    assert one.hash_prefix == ""


def test_a_file_at_the_place_in_the_cache_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    torch.manual_seed(4)
    state = timm.create_model(SMALL, pretrained=False).state_dict()
    path = cache_path(registry.network(f"timm:{SMALL}").default_pretrained)
    path.parent.mkdir(parents=True)
    safetensors.torch.save_file(state, path)
    for text in ("default", "r160_in1k", f"timm:{SMALL}"):
        config = ModelConfig.model_validate({"network": f"timm:{SMALL}", "weights": text})
        resolved = resolve(config, OPTIONS)
        assert (config.label, resolved.weights_source) == (SMALL, f"timm:{SMALL}")
        read = safetensors.torch.load(payload(resolved, OPTIONS))
        assert all(torch.equal(read[k], state[k]) for k in state)
        release_payloads()  # a second reading names the weights as the record does
        assert payload(resolved, OPTIONS)


def test_without_timm_one_line_says_how_to_get_it() -> None:
    script = (
        "import sys; sys.modules['timm'] = None\n"
        "from featlib.cli import main\n"
        "main(['models', 'timm:resnet18.a1_in1k'])\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "featlib: --model timm:NAME: timm is not installed; pip install 'featlib[timm]'\n"


def test_files_that_lie_on_no_hub_are_held_to_the_hash_in_their_name() -> None:
    """A hub's names say nothing of the bytes; those of the older files end in the first digits of their SHA-256."""
    assert registry.network("timm:gcvit_tiny.in1k").default_pretrained.hash_prefix == "ac783954"
    assert registry.network("timm:resnet18.a1_in1k").default_pretrained.hash_prefix == ""
