"""Regions against torchvision's plain forward, and their vectors against a plain box head."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from featlib.extractors.detectors import DETECTORS, detector
from featlib.models.detection import RegionDetector, Regions
from featlib.sampling import RegionChoice
from tests.extractors import plain_detectors
from tests.extractors.plain_detectors import NAMES, RCNN, SMALL, detections, lively, pictures, plain, shrink

SMALL_RCNN = SMALL[0]
TOLERANCE = 1e-4


def each(names: tuple[str, ...]) -> pytest.MarkDecorator:
    """The smallest detectors always, all others in `make conformance`; all tests of one together."""
    values = [n if n in SMALL else pytest.param(n, marks=pytest.mark.full) for n in names]
    return pytest.mark.parametrize("name", values, scope="module")


def regions(name: str, choice: str, images: Tensor) -> list[Regions]:
    with torch.inference_mode():
        found: list[Regions] = region_detector(name, choice)(images)
    return found


def region_detector(name: str, choice: str) -> RegionDetector:
    network = detector(name)
    network.load_state_dict(lively(name))
    return RegionDetector(shrink(network), RegionChoice.parse(choice))


def distance(value: Tensor, reference: Tensor) -> float:
    return float((value - reference).norm() / reference.norm())


class Kept:
    """The outputs of a module, call by call."""

    def __init__(self, module: nn.Module) -> None:
        self.outputs: list[Any] = []
        module.register_forward_hook(lambda _module, _args, output: self.outputs.append(output))


def resized_boxes(network: Any, run: Callable[[], object]) -> Tensor:
    """Boxes of the first picture in a run as they are before they are brought to the size of the source."""
    seen: list[Tensor] = []
    back = network.transform.postprocess
    network.transform.postprocess = lambda found, *sizes: seen.append(found[0]["boxes"]) or back(found, *sizes)
    run()
    network.transform.postprocess = back
    return seen[0]


@each(NAMES)
def test_boxes_scores_and_labels_are_torchvisions(name: str) -> None:
    images = pictures()
    ours = regions(name, f"top:{DETECTORS[name].boxes}", images)
    for found, expected in zip(ours, detections(plain(name), images), strict=True):
        assert len(found) > 3
        assert torch.equal(found.boxes, expected["boxes"])
        assert torch.equal(found.scores, expected["scores"])
        assert torch.equal(found.labels, expected["labels"])
        assert torch.equal(found.scores, found.scores.sort(descending=True).values)
        assert found.scores.min() > DETECTORS[name].score_threshold


@each(NAMES)
def test_fixed_gives_the_best_whatever_their_score(name: str) -> None:
    images = pictures(1)
    prefix = "box_" if "rcnn" in name else ""
    settings: dict[str, float] = {f"{prefix}score_thresh": 0.0, f"{prefix}detections_per_img": 36}
    ours = regions(name, "fixed:36", images)
    theirs = detections(plain(name, masks=True, **settings), images)
    for found, expected in zip(ours, theirs, strict=True):
        assert len(found) == 36
        assert torch.equal(found.boxes, expected["boxes"])
        assert torch.equal(found.scores, expected["scores"])


def test_fixed_gives_all_of_them_where_nothing_is_over_the_threshold() -> None:
    """A random detector gives each of 91 classes the same probability of a ninetieth."""
    for choice, boxes in (("fixed:36", 36), ("top:36", 0)):
        torch.manual_seed(0)
        found = RegionDetector(detector(SMALL_RCNN), RegionChoice.parse(choice))(pictures(1))[0]
        assert found.boxes.shape == (boxes, 4)
        assert found.vectors is not None
        assert found.vectors.shape == (boxes, 1024)
        assert len(found.scores) == len(found.labels) == boxes


def test_top_cuts_a_longer_list() -> None:
    images = pictures()
    for few, many in zip(regions(SMALL_RCNN, "top:3", images), regions(SMALL_RCNN, "top:120", images), strict=True):
        assert len(few) == 3
        assert len(many) > 3
        assert torch.equal(few.boxes, many.boxes[:3])


@each(RCNN)
def test_boxes_are_in_pixels_of_the_source(name: str) -> None:
    image = pictures(1)
    network = plain(name)
    within = resized_boxes(network, lambda: detections(network, image))
    height, width = plain_detectors.resized_size(network, 241, 323)
    expected = within * torch.tensor([323 / width, 241 / height] * 2)
    boxes = regions(name, "top:100", image)[0].boxes
    assert distance(boxes, expected) < 1e-6
    assert distance(boxes, within) > TOLERANCE
    assert (boxes <= torch.tensor([323, 241, 323, 241]) + 1e-3).all()


@pytest.mark.parametrize(("x", "y"), [(40, 100), (270, 20), (290, 215)])
def test_a_planted_square_is_found_at_its_place(x: int, y: int) -> None:
    image = torch.zeros(1, 3, 241, 323)
    image[:, :, y : y + 18, x : x + 18] = 1
    with torch.inference_mode():
        found = RegionDetector(plain_detectors.bright_square_detector(), RegionChoice.parse("top:1"))(image)[0]
    assert found.boxes[0].tolist() == pytest.approx([x + 1, y + 1, x + 17, y + 17], abs=2)
    assert found.labels.tolist() == [1]
    assert found.vectors is not None
    assert found.vectors.shape == (1, 49)
    assert found.vectors.mean() > 0.9


@each(RCNN)
def test_vectors_are_those_of_the_reported_boxes(name: str) -> None:
    image = pictures(1)
    found = regions(name, "top:12", image)[0]
    network = plain(name)
    head, rpn = Kept(network.roi_heads.box_head), Kept(network.rpn)
    detections(network, image)
    height, width = plain_detectors.resized_size(network, 241, 323)
    within = found.boxes * torch.tensor([width / 323, height / 241] * 2)
    assert found.vectors is not None
    with torch.inference_mode():
        expected = plain_detectors.box_vectors(network, image[0], within)
        unscaled = plain_detectors.box_vectors(network, image[0], found.boxes)
        before_relu = plain_detectors.box_vectors(network, image[0], within, head_layers=6)
    assert found.vectors.shape == (len(found), DETECTORS[name].vector_size) == expected.shape
    assert distance(found.vectors, expected) < TOLERANCE
    assert distance(found.vectors, unscaled) > 100 * TOLERANCE
    of_proposals = head.outputs[0][torch.cdist(within, rpn.outputs[0][0][0]).argmin(dim=1)]
    assert distance(found.vectors, of_proposals) > 100 * TOLERANCE
    if name.endswith("v2"):
        assert before_relu.min() < 0 <= found.vectors.min()
        assert distance(found.vectors, before_relu) > 100 * TOLERANCE


@each(NAMES)
def test_a_picture_gives_the_same_alone_and_in_a_batch(name: str) -> None:
    image = pictures(1)
    model = region_detector(name, "top:20")
    with torch.inference_mode():
        (alone,), together = model(image), model(image.expand(2, -1, -1, -1))
    for found in together:
        assert torch.equal(found.labels, alone.labels)
        assert distance(found.boxes, alone.boxes) < 1e-5
        assert distance(found.scores, alone.scores) < 1e-5
        if found.vectors is not None and alone.vectors is not None:
            assert distance(found.vectors, alone.vectors) < 1e-5


@each(NAMES)
def test_backbone_runs_once(name: str) -> None:
    model = region_detector(name, "top:20")
    kept = Kept(model.network.backbone)
    with torch.inference_mode():
        model(pictures())
    assert len(kept.outputs) == 1


@pytest.mark.full
@pytest.mark.parametrize("name", ["maskrcnn_resnet50_fpn", "maskrcnn_resnet50_fpn_v2", "keypointrcnn_resnet50_fpn"])
def test_masks_and_keypoints_are_not_computed(name: str) -> None:
    model = region_detector(name, "top:5")
    heads = model.network.roi_heads
    kept = Kept(heads.keypoint_head if name.startswith("keypoint") else heads.mask_head)
    with torch.inference_mode():
        assert len(model(pictures(1))[0]) == 5
    assert kept.outputs == []


def test_an_extremely_long_picture_does_not_spoil_those_that_follow() -> None:
    image, ribbon = pictures(1), pictures(1, height=6, width=1200)
    expected = regions(SMALL_RCNN, "top:20", image)[0]
    model, network = region_detector(SMALL_RCNN, "top:20"), plain(SMALL_RCNN)
    with torch.inference_mode():
        model(ribbon)
        found = model(image)[0]
    assert torch.equal(found.scores, expected.scores)
    assert torch.equal(found.boxes, expected.boxes)
    detections(network, ribbon)  # torchvision keeps the strides of its first picture
    assert not torch.equal(detections(network, image)[0]["scores"][:20], expected.scores)


@each(NAMES)
def test_coordinates_stay_exact_in_bfloat16(name: str) -> None:
    model, network, image = region_detector(name, "top:20"), plain(name), pictures(1)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        ours = resized_boxes(model.network, lambda: model(image))
        theirs = resized_boxes(network, lambda: detections(network, image))
        found = model(image)[0]
    assert len(ours) > 0
    assert (found.vectors is not None) == (name in RCNN)
    assert (ours - ours.bfloat16()).abs().max() > 0.1
    assert (theirs - theirs.bfloat16()).abs().max() == 0
    assert found.boxes.dtype == found.scores.dtype == torch.float32
    assert found.vectors is None or found.vectors.dtype == torch.float32
