"""Finished frames against torchvision's own presets, pixel for pixel."""

import numpy as np
import pytest
import torch
from torchvision.transforms import InterpolationMode
from torchvision.transforms._presets import ImageClassification, VideoClassification
from torchvision.transforms.functional import resize

from featlib.resize import fitted, output_size, resized
from featlib.spec import Interpolation, PixelSpec

SIZES = [(240, 320), (320, 240), (241, 321), (97, 53), (31, 400), (720, 405), (256, 256), (224, 300)]
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
MODES: dict[Interpolation, InterpolationMode] = {
    "nearest": InterpolationMode.NEAREST,
    "bilinear": InterpolationMode.BILINEAR,
    "bicubic": InterpolationMode.BICUBIC,
}


def _frame(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height * 1000 + width).integers(0, 256, (height, width, 3), dtype=np.uint8)


def _normalised(frame: np.ndarray) -> torch.Tensor:
    values = torch.from_numpy(np.ascontiguousarray(frame)).permute(2, 0, 1).float() / 255
    return (values - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("resize", "crop", "antialias"), [(256, 224, True), (232, 224, True), (64, 96, False)])
def test_image_presets(size: tuple[int, int], mode: Interpolation, resize: int, crop: int, antialias: bool) -> None:
    frame = _frame(*size)
    spec = PixelSpec((resize,), (crop, crop), mode, antialias)
    preset = ImageClassification(
        crop_size=crop, resize_size=resize, interpolation=MODES[mode], antialias=antialias, mean=MEAN, std=STD
    )
    ours = resized(frame, spec)
    assert ours.shape == (*output_size(spec, *size), 3) == (crop, crop, 3)
    assert torch.equal(preset(torch.from_numpy(frame).permute(2, 0, 1).contiguous()), _normalised(ours))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("resize", "crop"), [((128, 171), (112, 112)), ((256,), (224, 224)), ((256, 256), (224, 224))])
def test_video_presets(size: tuple[int, int], resize: tuple[int, ...], crop: tuple[int, int]) -> None:
    frames = np.stack([_frame(*size), _frame(size[0], size[1])[::-1]])
    given = list(resize) if len(resize) > 1 else [resize[0]]
    preset = VideoClassification(crop_size=crop, resize_size=given, mean=MEAN, std=STD)
    expected = preset(torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2).contiguous())
    spec = PixelSpec(resize, crop, "bilinear", antialias=False)
    for i, frame in enumerate(frames):
        ours = resized(np.ascontiguousarray(frame), spec)
        assert torch.equal(expected[:, i], _normalised(ours))


@pytest.mark.parametrize(
    ("spec", "height", "width", "expected"),
    [
        (PixelSpec((256,), None), 240, 320, (256, 341)),
        (PixelSpec((256,), None), 320, 240, (341, 256)),
        (PixelSpec((256,), None), 256, 256, (256, 256)),
        (PixelSpec((90,), None), 1080, 1920, (90, 160)),
        (PixelSpec((128, 171), None), 1080, 1920, (128, 171)),
        (PixelSpec((), None), 33, 77, (33, 77)),
        (PixelSpec((), (20, 30)), 33, 77, (20, 30)),
        (PixelSpec((), (50, 100)), 33, 77, (50, 100)),
    ],
)
def test_output_sizes(spec: PixelSpec, height: int, width: int, expected: tuple[int, int]) -> None:
    assert output_size(spec, height, width) == expected
    assert resized(_frame(height, width), spec).shape == (*expected, 3)


def test_a_crop_larger_than_the_frame_is_filled_with_black() -> None:
    out = resized(np.full((2, 2, 3), 200, np.uint8), PixelSpec((), (4, 4)))
    assert out[1:3, 1:3].min() == 200
    assert out.sum() == 200 * 4 * 3


def test_frames_of_another_size_are_fitted() -> None:
    frame = _frame(40, 60)
    assert fitted(frame, 40, 60) is frame
    planes = torch.from_numpy(frame).permute(2, 0, 1)
    for size in ((20, 30), (20, 50), (61, 47)):
        expected = resize(planes, list(size), antialias=True)
        assert torch.equal(torch.from_numpy(fitted(frame, *size)).permute(2, 0, 1), expected)
