"""Boxes cut from full frames and warped, against a plain cut and torchvision's resize."""

import numpy as np
import pytest
import torch
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import resize

from featlib.errors import ConfigError
from featlib.regions import crops, whole_pixels
from featlib.spec import Interpolation, PixelSpec

HEIGHT, WIDTH = 97, 141
MODES: dict[Interpolation, InterpolationMode] = {
    "bilinear": InterpolationMode.BILINEAR,
    "bicubic": InterpolationMode.BICUBIC,
}


def frame() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("box", "pixels"),
    [
        ((10.2, 20.8, 30.1, 40.0), (10, 20, 31, 40)),
        ((10.0, 20.0, 30.0, 40.0), (10, 20, 30, 40)),
        ((-5.0, -0.5, 500.0, 97.4), (0, 0, WIDTH, HEIGHT)),
        ((12.3, 45.6, 12.4, 45.7), (12, 45, 13, 46)),
        ((12.0, 45.0, 12.0, 45.0), (12, 45, 13, 46)),
        ((WIDTH, HEIGHT, WIDTH, HEIGHT), (WIDTH - 1, HEIGHT - 1, WIDTH, HEIGHT)),
        ((-9.0, -9.0, -3.0, -3.0), (0, 0, 1, 1)),
    ],
)
def test_boxes_are_rounded_outward_and_hold_a_pixel(
    box: tuple[float, float, float, float], pixels: tuple[int, int, int, int]
) -> None:
    assert whole_pixels(np.array(box, np.float32), HEIGHT, WIDTH) == pixels


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("antialias", [True, False])
def test_crops_are_warped_as_torchvision_resizes(mode: Interpolation, antialias: bool) -> None:
    boxes = np.array([[10.2, 20.8, 100.1, 90.0], [3.0, 5.0, 9.5, 60.0]], np.float32)
    spec = PixelSpec((40,), (32, 24), mode, antialias)
    out = crops(frame(), boxes, spec)
    assert out.shape == (2, 32, 24, 3)
    assert out.dtype == np.uint8
    for ours, (x1, y1, x2, y2) in zip(out, ((10, 20, 101, 90), (3, 5, 10, 60)), strict=True):
        cut = torch.from_numpy(frame()[y1:y2, x1:x2]).permute(2, 0, 1).contiguous()
        expected = resize(cut, [32, 24], MODES[mode], antialias=antialias).permute(1, 2, 0).numpy()
        assert np.array_equal(ours, expected)


def test_the_whole_box_is_seen_and_not_its_centre() -> None:
    """A preset's own resize keeps the aspect ratio and crops: the ends of a wide box would be lost."""
    picture = np.zeros((60, 200, 3), np.uint8)
    picture[20:40, 50:60], picture[20:40, 140:150] = (255, 0, 0), (0, 0, 255)
    (out,) = crops(picture, np.array([[50.0, 20.0, 150.0, 40.0]]), PixelSpec((256,), (224, 224)))
    assert out[112, 2].tolist() == [255, 0, 0]
    assert out[112, -3].tolist() == [0, 0, 255]


def test_frames_that_cannot_be_written_are_read_without_a_warning(recwarn: pytest.WarningsRecorder) -> None:
    locked = frame()
    locked.flags.writeable = False
    assert crops(locked, np.array([[0.0, 0.0, 8.0, 8.0]]), PixelSpec((8,), (8, 8)))[0].shape == (8, 8, 3)
    assert not recwarn.list


def test_no_boxes_give_no_crops() -> None:
    assert crops(frame(), np.empty((0, 4), np.float32), PixelSpec((256,), (224, 224))).shape == (0, 224, 224, 3)


def test_a_preset_without_a_crop_is_refused() -> None:
    with pytest.raises(ConfigError, match="has no fixed size for boxes; use one with a crop"):
        crops(frame(), np.zeros((1, 4)), PixelSpec((256,), None))
