from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torchvision.models import resnet18, squeezenet1_1
from torchvision.models.video import r3d_18
from torchvision.transforms.functional import convert_image_dtype, normalize

from featlib.config import ModelConfig
from featlib.extractors.resolve import ResolvedModel, resolve
from featlib.extractors.weights import payload
from featlib.inference import Engine, default_batch_size
from featlib.inference import engine as inference_engine
from featlib.storage import StoreOptions

OPTIONS = StoreOptions()
RANDOM = np.random.default_rng(0)
PICTURES = RANDOM.integers(0, 256, (5, 224, 224, 3), np.uint8)
ONE_EACH = np.arange(5)[:, None]


def model(network: str, **settings: Any) -> ResolvedModel:
    values = {"network": network, "weights": "random:0", **settings}
    return resolve(ModelConfig.model_validate(values), OPTIONS)


class OneModel(Engine):
    """An engine of one model that gives its features and what went wrong."""

    def features(self, frames: np.ndarray, frame_idx: np.ndarray) -> tuple[np.ndarray, dict[int, str]]:
        (extracted,) = self.run(frames, frame_idx)
        return extracted.features, dict(extracted.errors)


def engine(resolved: ResolvedModel, **settings: Any) -> OneModel:
    return OneModel([resolved], payload(resolved, OPTIONS), **settings)


def relative_l2(value: np.ndarray, reference: np.ndarray) -> float:
    return float(np.linalg.norm(value - reference) / np.linalg.norm(reference))


def plain(pictures: np.ndarray) -> torch.Tensor:
    x = convert_image_dtype(torch.from_numpy(pictures).permute(0, 3, 1, 2), torch.float)
    return normalize(x, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@pytest.fixture(scope="module")
def squeezenet() -> OneModel:
    return engine(model("squeezenet1_1"), batch_size=2)


def test_logits_are_those_of_plain_torchvision() -> None:
    for name, builder in (("resnet18", resnet18), ("squeezenet1_1", squeezenet1_1)):
        torch.manual_seed(0)
        with torch.inference_mode():
            expected = builder().eval()(plain(PICTURES)).numpy()
        features, errors = engine(model(name, layer="logits")).features(PICTURES, ONE_EACH)
        assert errors == {}
        assert relative_l2(features, expected) < 1e-6


def test_wrong_pixels_are_seen() -> None:
    """The bound above is narrow enough: colours exchanged or one grey level more everywhere are far outside it."""
    run = engine(model("resnet18")).features
    right = run(PICTURES, ONE_EACH)[0]
    assert relative_l2(run(np.ascontiguousarray(PICTURES[..., ::-1]), ONE_EACH)[0], right) > 1e-3
    assert relative_l2(run(np.minimum(PICTURES, 254) + np.uint8(1), ONE_EACH)[0], right) > 1e-4


def test_clips_are_gathered_in_their_order() -> None:
    frames = RANDOM.integers(0, 256, (5, 112, 112, 3), np.uint8)
    index = np.array([[0, 1, 2, 3], [3, 2, 1, 0], [4, 4, 4, 4]])
    features, _ = engine(model("r3d_18", layer="logits", clip_sampling="frames=4")).features(frames, index)
    torch.manual_seed(0)
    network = r3d_18().eval()
    x = convert_image_dtype(torch.from_numpy(frames[index]).permute(0, 1, 4, 2, 3), torch.float)
    x = normalize(x, (0.43216, 0.394666, 0.37645), (0.22803, 0.22145, 0.216989)).permute(0, 2, 1, 3, 4)
    with torch.inference_mode():
        expected = network(x).numpy()
    assert relative_l2(features, expected) < 1e-6
    assert relative_l2(features[0], features[1]) > 1e-3


def test_every_batch_has_the_same_shape(squeezenet: OneModel, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = []
    squeezenet._module.register_forward_pre_hook(lambda _m, args: shapes.append(tuple(args[0].shape)))
    features, _ = squeezenet.features(PICTURES, ONE_EACH)
    assert shapes == [(2, 3, 224, 224)] * 3
    assert features.shape == (5, 512)
    assert features.dtype == np.float32


def test_no_clips_give_no_rows(squeezenet: OneModel) -> None:
    features, errors = squeezenet.features(PICTURES[:0], np.zeros((0, 1), np.int64))
    assert features.shape == (0, 512)
    assert errors == {}


def test_read_only_frames_as_they_come_from_arrow(squeezenet: OneModel) -> None:
    locked = np.frombuffer(PICTURES.tobytes(), np.uint8).reshape(PICTURES.shape)
    assert np.array_equal(squeezenet.features(locked, ONE_EACH)[0], squeezenet.features(PICTURES, ONE_EACH)[0])


def test_a_map_is_row_major() -> None:
    mapped = engine(model("resnet18", layer="layer4"))
    features, _ = mapped.features(PICTURES[:2], ONE_EACH[:2])
    pooled, _ = engine(model("resnet18")).features(PICTURES[:2], ONE_EACH[:2])
    shape = mapped.models[0].feature_shape
    assert shape == (512, 7, 7)
    maps = features.reshape(2, *shape)
    np.testing.assert_allclose(maps.mean(axis=(2, 3)), pooled, rtol=1e-4, atol=1e-5)


class _FailsOn(torch.nn.Module):
    """Raises when a batch holds the white picture."""

    def __init__(self, inner: torch.nn.Module, error: Exception) -> None:
        super().__init__()
        self.inner, self.error = inner, error

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if (x > 2.2).all(dim=(1, 2, 3)).any():
            raise self.error
        return self.inner(x)


def failing(error: Exception) -> OneModel:
    broken = engine(model("squeezenet1_1"), batch_size=3)
    broken._module = _FailsOn(broken._module, error)
    return broken


def test_an_exception_costs_one_clip(squeezenet: OneModel) -> None:
    pictures = PICTURES.copy()
    pictures[1] = 255
    features, errors = failing(RuntimeError("no\nway")).features(pictures, ONE_EACH)
    assert errors == {1: "RuntimeError: no way"}
    expected = squeezenet.features(pictures, ONE_EACH)[0]
    assert not features[1].any()
    for row in (0, 2, 3, 4):
        assert relative_l2(features[row], expected[row]) < 1e-5


def _no_memory_on_this_cpu() -> Exception:
    with pytest.raises(RuntimeError) as raised:
        torch.empty(1 << 60)
    return raised.value


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("full"),
        MemoryError("full"),
        _no_memory_on_this_cpu(),
        torch.AcceleratorError("CUDA error: an illegal memory access was encountered"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_lack_of_memory_and_a_lost_device_are_no_clips_fault(error: Exception) -> None:
    pictures = PICTURES.copy()
    pictures[1] = 255
    with pytest.raises(type(error)) as raised:
        failing(error).features(pictures, ONE_EACH)
    assert raised.value is error


def test_what_a_batch_gives_leaves_the_device_while_the_next_runs(
    squeezenet: OneModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A unit may have hundreds of batches of large maps; a GPU holds those of two."""
    steps: list[str] = []
    fetching = inference_engine._fetching

    def watched(values: torch.Tensor) -> Callable[[], Any]:
        steps.append("leaves")
        wait = fetching(values)
        return lambda: steps.append("is there") or wait()

    monkeypatch.setattr(inference_engine, "_fetching", watched)
    hook = squeezenet._module.register_forward_pre_hook(lambda _m, _a: steps.append("runs"))
    squeezenet.features(PICTURES, ONE_EACH)
    hook.remove()
    first, later = ["runs", "leaves"], ["runs", "leaves", "is there"]
    assert steps == [*first, *later, *later, "is there"]


def test_values_that_are_not_finite_are_an_error_and_no_feature(squeezenet: OneModel) -> None:
    broken = engine(model("squeezenet1_1"))
    weight = next(broken._module.parameters())
    weight[0] = float("inf")
    features, errors = broken.features(PICTURES[:1], ONE_EACH[:1])
    assert "NaN or infinite" in errors[0]
    assert "--precision fp32" in errors[0]
    assert not features.any()


@pytest.mark.parametrize(
    ("frames", "index", "message"),
    [
        (PICTURES[:, :200], ONE_EACH, r"frames are uint8 \(5, 200, 224, 3\)"),
        (PICTURES.astype(np.float32), ONE_EACH, "frames are float32"),
        (PICTURES, np.zeros((2, 4), np.int64), "a clip of squeezenet1_1 has 1 frame"),
        (PICTURES, ONE_EACH + 1, "from 1 to 5, but there are 5"),
        (PICTURES, ONE_EACH - 1, "from -1 to 3"),
    ],
)
def test_arrays_of_the_wrong_size(squeezenet: OneModel, frames: Any, index: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        squeezenet.features(frames, index)


def test_threads_are_set() -> None:
    before = torch.get_num_threads()
    try:
        engine(model("squeezenet1_1"), threads=2)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_default_batch_sizes() -> None:
    assert default_batch_size(model("resnet18"), "cpu") == 8
    assert default_batch_size(model("resnet18"), "cuda:0") == 64
    assert default_batch_size(model("r3d_18"), "cpu") == 2
    assert default_batch_size(model("s3d"), "cpu") == 1
    own = engine(replace(model("squeezenet1_1"), batch_size=3))
    assert own.batch_size == 3
    assert engine(replace(model("squeezenet1_1"), batch_size=3), batch_size=4).batch_size == 4


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_cuda_in_fp32_gives_what_a_cpu_gives() -> None:
    resolved = model("resnet18")
    on_cpu = engine(resolved).features(PICTURES, ONE_EACH)[0]
    on_cuda = engine(resolved, device="cuda").features(PICTURES, ONE_EACH)[0]
    assert relative_l2(on_cuda, on_cpu) < 1e-4
