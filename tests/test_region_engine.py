"""The engine of detectors: frames of several sizes in, one row a box out; and what lies in the boxes, embedded."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torchvision.models import resnet18
from torchvision.transforms.functional import normalize, resize

from featlib.arrays import Stretches
from featlib.config import ModelConfig
from featlib.errors import ConfigError
from featlib.extractors import registry
from featlib.extractors.build import build_detector
from featlib.extractors.resolve import ResolvedModel, resolve
from featlib.extractors.weights import payload
from featlib.inference import RegionEngine
from featlib.sampling import RegionChoice
from featlib.storage import StoreOptions

OPTIONS = StoreOptions()
SMALL = "fasterrcnn_mobilenet_v3_large_320_fpn"
CROP = f"crop:{SMALL}+resnet18"


def model(network: str, **settings: Any) -> ResolvedModel:
    values = {"network": network, "weights": "random:0", "regions": "fixed:3", **settings}
    return resolve(ModelConfig.model_validate(values), OPTIONS)


def frames() -> Stretches:
    random = np.random.default_rng(5)
    sizes = [(2, 120, 161), (1, 200, 90)]
    return Stretches(tuple(random.integers(0, 256, (n, h, w, 3), np.uint8) for n, h, w in sizes))


@pytest.fixture(scope="module")
def detector() -> ResolvedModel:
    return model(SMALL)


def test_rows_are_the_boxes_of_each_frame_best_first(detector: ResolvedModel) -> None:
    (made,) = RegionEngine([detector], payload(detector, OPTIONS)).run(frames(), np.array([[0], [2], [1]]))
    assert made.clips is not None
    assert made.clips.tolist() == [0] * 3 + [1] * 3 + [2] * 3
    assert made.beside["region_index"].to_pylist() == [0, 1, 2] * 3
    assert (made.shape, made.features.shape) == ((1024,), (9, 1024))
    alone = build_detector(detector, payload(detector, OPTIONS))
    for clip, row in enumerate([0, 2, 1]):
        picture = torch.from_numpy(frames().frame(row)).permute(2, 0, 1)[None].float().div(255)
        with torch.inference_mode():
            (expected,) = alone(picture)
        mine = slice(3 * clip, 3 * clip + 3)
        np.testing.assert_allclose(made.beside["box"].to_pylist()[mine], expected.boxes, rtol=1e-6)
        np.testing.assert_allclose(made.beside["score"].to_pylist()[mine], expected.scores, rtol=1e-6)
        np.testing.assert_allclose(made.features[mine], expected.vectors, rtol=1e-5, atol=1e-6)
        assert made.beside["labels"].to_pylist()[mine] == [[str(i)] for i in expected.labels.tolist()]


def test_crops_of_the_full_frame_are_embedded_by_the_other_network(detector: ResolvedModel) -> None:
    cropping = [model(CROP, label="deep", layer="penultimate"), model(CROP, label="shallow", layer="layer1")]
    deep, shallow = RegionEngine(cropping, payload(cropping[0], OPTIONS)).run(frames(), np.array([[2]]))
    (boxes,) = RegionEngine([detector], payload(detector, OPTIONS)).run(frames(), np.array([[2]]))
    assert deep.beside["box"].equals(boxes.beside["box"])
    assert shallow.shape == (64, 56, 56)
    torch.manual_seed(0)
    network = resnet18().eval()
    network.fc = torch.nn.Identity()
    picture = torch.from_numpy(frames().frame(2)).permute(2, 0, 1)
    for row, box in enumerate(deep.beside["box"].to_pylist()):
        x1, y1 = (int(np.floor(v)) for v in box[:2])
        x2, y2 = (int(np.ceil(v)) for v in box[2:])
        cut = resize(picture[:, y1:y2, x1:x2], [224, 224], antialias=True)
        x = normalize(cut.float() / 255, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
        with torch.inference_mode():
            expected = network(x[None])[0].numpy()
        got = deep.features[row]
        assert np.linalg.norm(got - expected) / np.linalg.norm(expected) < 2e-3  # a grey level in the resize
    assert np.linalg.norm(deep.features[0] - deep.features[1]) > 0.1


def test_a_frame_on_which_the_detector_fails_costs_itself_alone(detector: ResolvedModel) -> None:
    engine = RegionEngine([detector], payload(detector, OPTIONS))
    inner = engine._detector

    def failing(images: torch.Tensor) -> Any:
        if images.shape[-1] == 90:
            raise ValueError("no such frame")
        return inner(images)

    engine._detector = failing  # type: ignore[assignment]
    (made,) = engine.run(frames(), np.array([[0], [2]]))
    assert made.errors == {1: "ValueError: no such frame"}
    assert made.clips is not None
    assert made.sound(2).clips.tolist() == [0] * 3
    (nothing,) = engine.run(frames(), np.array([[2]]))
    assert (len(nothing.features), nothing.errors) == (0, {0: "ValueError: no such frame"})


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
        MemoryError(),
        torch.OutOfMemoryError("full"),
        torch.AcceleratorError("CUDA error: device-side assert triggered"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_lack_of_memory_and_a_lost_device_are_no_frames_fault(detector: ResolvedModel, error: Exception) -> None:
    engine = RegionEngine([detector], payload(detector, OPTIONS))

    def failing(images: torch.Tensor) -> Any:
        raise error

    engine._detector = failing  # type: ignore[assignment]
    with pytest.raises(type(error)) as raised:
        engine.run(frames(), np.array([[0], [2]]))
    assert raised.value is error


def test_weights_that_are_no_numbers_are_refused_and_values_that_are_none_cost_the_frame(
    detector: ResolvedModel, tmp_path: Path
) -> None:
    state = safetensors.torch.load(payload(detector, OPTIONS))
    key = "backbone.body.0.0.weight"
    state[key][0] = float("nan")
    torch.save(state, tmp_path / "nan.pth")
    with pytest.raises(ConfigError, match=rf"depends on {key}, which holds NaN"):
        model(SMALL, weights=str(tmp_path / "nan.pth"))
    engine = RegionEngine([detector], payload(detector, OPTIONS))
    engine._detector.network.get_parameter(key)[0] = float("inf")
    (made,) = engine.run(frames(), np.array([[0]]))
    assert len(made.features) == 0
    assert "NaN or infinite" in made.errors[0]


def test_detectors_without_a_box_head_have_rows_without_features() -> None:
    single = model("ssdlite320_mobilenet_v3_large")
    assert (single.feature_shape, single.layer) == ((), "none")
    (made,) = RegionEngine([single], payload(single, OPTIONS)).run(frames(), np.array([[0]]))
    assert made.features.shape == (3, 0)
    assert len(made.beside["score"]) == 3


def test_everything_that_changes_boxes_is_in_the_fingerprint(detector: ResolvedModel) -> None:
    assert detector.regions == RegionChoice("fixed", 3)
    assert detector.semantics()["regions"] == "fixed:3"
    assert model(SMALL, regions=None).semantics()["regions"] == "top:100"
    cropping = model(CROP)
    assert cropping.label == f"{SMALL}-resnet18"
    assert '"network": "resnet18"' in cropping.semantics()["embedder"]
    other = model(CROP, weights="random:0+random:1")
    assert other.semantics()["weights_sha256"] == cropping.semantics()["weights_sha256"]
    assert other.semantics()["embedder"] != cropping.semantics()["embedder"]


def test_labels_have_names_when_they_are_known(tmp_path: Path) -> None:
    coco = "FasterRCNN_MobileNet_V3_Large_320_FPN_Weights.COCO_V1"
    assert model(SMALL, categories=coco).categories[:3] == ("__background__", "person", "bicycle")
    names = tmp_path / "names.txt"
    names.write_text("\n".join(["nothing", *(f"thing {i}" for i in range(90))]))
    assert model(SMALL, categories=str(names)).categories[90] == "thing 89"
    names.write_text("nothing\nsomething\n")
    with pytest.raises(ConfigError, match="2 names, but the weights have 91 classes"):
        model(SMALL, categories=str(names))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"network": SMALL, "regions": "best:3"}, "use top:K or fixed:K"),
        ({"network": SMALL, "layer": "logits"}, f"is a detector.*use crop:{SMALL}"),
        ({"network": SMALL, "top_k": 5}, "is a detector"),
        ({"network": SMALL, "flow": "dis"}, "reads whole frames; leave it out"),
        ({"network": CROP, "fusion": "mean"}, "reads whole frames; leave it out"),
        ({"network": CROP, "layer": "layer1", "regions": "top:100"}, "64x56x56 for 100 boxes are 77 MB a frame"),
        ({"network": SMALL, "clip_sampling": "frames=4"}, "reads frames; use --frame-sampling"),
        ({"network": CROP, "top_k": 5}, "the detector's labels"),
        ({"network": CROP, "weights": "w.pth"}, "weights of the detector and of the network"),
        ({"network": f"crop:{SMALL}"}, "must be crop:DETECTOR\\+NETWORK"),
        ({"network": "crop:resnet18+resnet18"}, "resnet18 is no detector"),
        ({"network": f"crop:{SMALL}+r3d_18"}, "r3d_18 does not read single pictures"),
        ({"network": "resnet18"}, "resnet18 is no detector; leave it out"),
    ],
)
def test_refusals(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as refused:
        model(**settings)
    assert "\n" not in str(refused.value)


def test_the_listing_counts_detectors() -> None:
    described = registry.describe(SMALL)
    assert (described.kind, described.feature_shape, described.input.crop) == ("frame", (1024,), None)
    assert described.parameters == 19_386_354  # of the published weights
    assert registry.describe(CROP).feature_shape == (512,)
