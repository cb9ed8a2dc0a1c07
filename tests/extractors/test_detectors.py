"""The detectors' published facts, their construction, and their weights from files against torchvision's own path."""

import shutil
import socket
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import get_model, get_model_weights

from featlib.errors import ConfigError
from featlib.extractors import detectors, probe, state_dict
from featlib.extractors.detectors import DETECTORS, num_classes_in, settings_in
from featlib.extractors.network import Settings
from featlib.extractors.state_dict import RawState
from featlib.models.detection import RegionDetector
from featlib.sampling import RegionChoice
from tests.extractors.plain_detectors import NAMES, RCNN, SMALL, detections, lively, pictures, shrink, without_masks

# Score above which boxes are reported, and most boxes of a picture: torchvision's documentation.
LIMITS = {
    "detection.faster_rcnn": (0.05, 100),
    "detection.mask_rcnn": (0.05, 100),
    "detection.keypoint_rcnn": (0.05, 100),
    "detection.retinanet": (0.05, 300),
    "detection.fcos": (0.2, 100),
    "detection.ssd": (0.01, 200),
    "detection.ssdlite": (0.001, 300),
}
# Published multiply-adds in which no proposal reached the box head, and how many can.
WITHOUT_PROPOSALS = {"fasterrcnn_mobilenet_v3_large_320_fpn": 150, "fasterrcnn_mobilenet_v3_large_fpn": 1000}
BOX_HEAD = 256 * 49 * 1024 + 1024 * 1024 + 1024 * 91 * 5  # multiply-adds a proposal: two layers, classes and boxes
ALL_WEIGHTS = [(name, str(weights.name)) for name in NAMES for weights in get_model_weights(name)]


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise ConnectionError("the network was asked for something")

    for owner, name in (
        (urllib.request, "urlopen"),
        (torch.hub, "download_url_to_file"),
        (socket.socket, "connect"),
        (socket, "create_connection"),
    ):
        monkeypatch.setattr(owner, name, refuse)


def test_every_detector_of_torchvision_is_there() -> None:
    assert set(DETECTORS) == set(NAMES)
    assert {name for name, spec in DETECTORS.items() if spec.is_rcnn} == set(RCNN)


@pytest.mark.parametrize("name", NAMES)
def test_published_numbers(name: str) -> None:
    spec = DETECTORS[name]
    assert (spec.score_threshold, spec.boxes) == LIMITS[spec.family]
    assert spec.vector_size == (1024 if name in RCNN else None)
    for weights, published in zip(spec.weights, get_model_weights(name), strict=True):
        assert spec.parameters == published.meta["num_params"]
        assert weights.url == published.url
        assert weights.enum == str(published)
        person = 1 if spec.family != "detection.keypoint_rcnn" else len(weights.categories) - 1
        assert weights.categories[person] == "person"


def test_categories_are_those_of_coco() -> None:
    names = DETECTORS["fcos_resnet50_fpn"].weights[0].categories
    assert (len(names), names[0], names[12], names[18], names[90]) == (91, "__background__", "N/A", "dog", "toothbrush")
    assert DETECTORS["keypointrcnn_resnet50_fpn"].weights[0].categories == ("no person", "person")
    assert DETECTORS["keypointrcnn_resnet50_fpn"].default == "COCO_V1"


@pytest.mark.parametrize("name", [n for n in NAMES if n != "maskrcnn_resnet50_fpn_v2"])
def test_operations_are_the_published_ones(name: str) -> None:
    """torchvision's were counted on a square picture, as multiply-adds.

    Those of the second Mask R-CNN count the masks of random detections; left out is Keypoint R-CNN's second entry,
    which counts keypoints likewise.
    """
    published = next(iter(get_model_weights(name))).meta["_ops"] * 1e9
    published += WITHOUT_PROPOSALS.get(name, 0) * BOX_HEAD
    assert detectors.count_flops(name, 512, 512) / 2 == pytest.approx(published, abs=1e6)
    assert detectors.count_flops(name) >= detectors.count_flops(name, 512, 512)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.usefixtures("no_network")
def test_construction_downloads_nothing(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    probe.skeleton(detectors.network(name), ())
    if name in SMALL:
        detectors.detector(name)
        with pytest.raises(ConnectionError):
            get_model(name, weights=None)  # torchvision's own default asks for a backbone


@pytest.mark.parametrize("name", SMALL)
def test_random_weights_are_those_of_the_bare_constructor(name: str) -> None:
    torch.manual_seed(5)
    expected = get_model(name, weights=None, weights_backbone=None).state_dict()
    state = state_dict.random_state(detectors.network(name), 5, ())
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[key], expected[key]) for key in state)


def loaded(name: str, raw: RawState, settings: Settings) -> nn.Module:
    """The detector with the weights of a file, by the way that extraction takes."""
    network = detectors.network(name)
    fitted = state_dict.fit(network, settings, raw, "w.pth")
    module = probe.skeleton(network, settings)
    assert state_dict.assign(module, fitted.tensors) == ([], [])
    return shrink(module)  # type: ignore[no-any-return]


def found_by(module: nn.Module, boxes: int, images: Tensor) -> list[Tensor]:
    with torch.inference_mode():
        regions = RegionDetector(module, RegionChoice("top", boxes))(images)
    return [tensor for r in regions for tensor in (r.boxes, r.scores, r.labels)]


def equal(ours: list[Tensor], theirs: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def torchvisions_own(name: str, weights: str, images: Tensor) -> list[Tensor]:
    network = shrink(without_masks(get_model(name, weights=get_model_weights(name)[weights]).eval()))
    return [found[key] for found in detections(network, images) for key in ("boxes", "scores", "labels")]


@pytest.mark.parametrize(
    ("name", "weights"), [w if w[0] in SMALL else pytest.param(*w, marks=pytest.mark.full) for w in ALL_WEIGHTS]
)
@pytest.mark.usefixtures("no_network")
def test_a_file_gives_the_numbers_of_torchvisions_own_loading(
    name: str, weights: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """torchvision finds the made-up file where its published one would be cached, and does all it does with that."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    path = tmp_path / "hub" / "checkpoints" / get_model_weights(name)[weights].url.rpartition("/")[2]
    path.parent.mkdir(parents=True)
    torch.save(lively(name), path)
    images, boxes = pictures(), DETECTORS[name].boxes
    theirs = torchvisions_own(name, weights, images)

    elsewhere = shutil.move(path, tmp_path / "w.pth")
    raw = state_dict.read_state_dict(Path(elsewhere).read_bytes(), "w.pth")
    settings = settings_in(name, raw.tensors, "w.pth", weights)
    assert min(len(tensor) for tensor in theirs) > 3
    assert equal(found_by(loaded(name, raw, settings), boxes, images), theirs)

    choices = dict(settings)
    if "frozen_norm" in choices:
        wrong_eps = tuple((choices | {"zero_eps": 1 - choices["zero_eps"]}).items())
        plain_norm = (("num_classes", choices["num_classes"]),)
        assert not equal(found_by(loaded(name, raw, wrong_eps), boxes, images), theirs)
        assert not equal(found_by(loaded(name, raw, plain_norm), boxes, images), theirs)


@pytest.mark.parametrize(
    ("name", "weights", "zero"),
    [
        ("keypointrcnn_resnet50_fpn", "COCO_V1", 1),
        ("keypointrcnn_resnet50_fpn", "COCO_LEGACY", 0),
        ("maskrcnn_resnet50_fpn", None, 0),
    ],
)
def test_only_some_published_files_have_an_eps_of_zero(name: str, weights: str | None, zero: int) -> None:
    assert dict(settings_in(name, of_classes(name, 2), "w.pth", weights))["zero_eps"] == zero


def of_classes(name: str, num_classes: int, **sizes: int) -> dict[str, Tensor]:
    """Shapes of a state dict, without data."""
    settings = (("num_classes", num_classes), *sizes.items())
    return dict(probe.skeleton(detectors.network(name), settings).to("meta").state_dict())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("num_classes", [2, 7])
def test_number_of_classes_comes_from_the_file(name: str, num_classes: int) -> None:
    assert num_classes_in(name, of_classes(name, num_classes), "w.pth") == num_classes


def test_number_of_keypoints_comes_from_the_file() -> None:
    name = "keypointrcnn_resnet50_fpn"
    state = of_classes(name, 2, num_keypoints=5)
    settings = settings_in(name, state, "w.pth")
    own = probe.skeleton(detectors.network(name), settings).state_dict()
    assert {k: v.shape for k, v in state.items() if "num_batches" not in k} == {k: v.shape for k, v in own.items()}


@pytest.mark.parametrize("name", NAMES)
def test_files_of_another_network_are_refused_in_one_line(name: str) -> None:
    other = "retinanet_resnet50_fpn" if name in RCNN or name == "ssd300_vgg16" else "ssd300_vgg16"
    with pytest.raises(ConfigError, match=f"--weights w.pth: do not fit {name}: missing .*give the weights") as refusal:
        num_classes_in(name, of_classes(other, 3), "w.pth")
    assert "\n" not in str(refusal.value)


def test_rows_that_give_no_number_of_classes_are_refused() -> None:
    state = of_classes("retinanet_resnet50_fpn", 3)
    key = "head.classification_head.cls_logits.weight"
    state[key] = state[key][:-1]
    with pytest.raises(ConfigError, match=f"{key} has 26 rows, which is no number of classes for 9 anchors"):
        num_classes_in("retinanet_resnet50_fpn", state, "w.pth")


def test_wrong_shapes_are_refused_in_one_line() -> None:
    name = SMALL[0]
    tensors = dict(lively(name)) | {"roi_heads.box_head.fc7.weight": torch.zeros(512, 1024)}
    settings = settings_in(name, tensors, "w.pth")
    with pytest.raises(ConfigError, match=r"other shape roi_heads\.box_head\.fc7\.weight is \(512, 1024\)") as refusal:
        state_dict.fit(detectors.network(name), settings, RawState(tensors, {}), "w.pth")
    assert "\n" not in str(refusal.value)


def test_keys_of_old_files_are_read() -> None:
    """torchvision's first files name the layers of the proposal head and of the pyramid without numbers."""
    name, images = SMALL[0], pictures(1)
    old = {_old(key): value for key, value in lively(name).items()}
    assert old.keys() != lively(name).keys()
    settings: Any = settings_in(name, old, "w.pth")
    today = found_by(loaded(name, RawState(dict(lively(name)), {}), settings), 20, images)
    assert equal(found_by(loaded(name, RawState(old, {}), settings), 20, images), today)


def _old(key: str) -> str:
    if key.startswith("rpn.head.conv."):
        return key.replace("conv.0.0.", "conv.")
    if key.startswith("backbone.fpn."):
        return key.replace(".0.weight", ".weight").replace(".0.bias", ".bias")
    return key
