"""The quick ways of resizing: the same bits as torch's interpolate, on every size they are used for."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate

from featlib import resize
from featlib.crop_resize import Crop, quick
from featlib.resize import resized
from featlib.spec import PixelSpec

IMAGE, VIDEO = PixelSpec((232,), (224, 224)), PixelSpec((128, 171), (112, 112), "bilinear", antialias=False)
NEEDS_FMA = pytest.mark.skipif(
    torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"), reason="needs a CPU with fused multiply-add"
)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """As where frames are decoded; with more, torch sums in another order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def _frames(height: int, width: int) -> list[np.ndarray]:
    """Noise, and a ramp whose values fall between two levels everywhere."""
    noise = np.random.default_rng(height * 1000 + width).integers(0, 256, (height, width, 3), dtype=np.uint8)
    ramp = np.add.outer(np.arange(height), np.arange(width))[..., None] + np.array([0, 1, 85])
    return [noise, (ramp % 256).astype(np.uint8)]


def _by_torch(frame: np.ndarray, crop: Crop) -> torch.Tensor:
    planes = torch.from_numpy(np.ascontiguousarray(frame.transpose(2, 0, 1)))[None].float()
    values = interpolate(planes, crop.size, mode=crop.mode, align_corners=False, antialias=crop.antialias)
    top, left, height, width = crop.window
    return values[0, :, top : top + height, left : left + width].permute(1, 2, 0)


@NEEDS_FMA
@pytest.mark.parametrize(
    ("source", "size", "window", "antialias"),
    [
        ((240, 320), (232, 309), (4, 42, 224, 224), True),
        ((256, 340), (256, 340), (0, 0, 256, 340), True),
        ((240, 320), (256, 341), (16, 58, 224, 224), True),
        ((360, 203), (411, 232), (93, 4, 224, 224), True),
        ((100, 400), (64, 256), (0, 0, 64, 256), True),
        ((480, 853), (232, 412), (4, 94, 224, 224), True),
        ((1283, 721), (412, 232), (94, 4, 224, 224), True),
        ((240, 320), (128, 171), (8, 30, 112, 112), False),
        ((1081, 1923), (128, 171), (8, 30, 112, 112), False),
        ((480, 271), (128, 171), (0, 0, 128, 171), False),
        ((481, 641), (224, 298), (0, 37, 224, 224), False),
    ],
)
def test_quick_ways_give_the_bits_of_interpolate(
    source: tuple[int, int], size: tuple[int, int], window: tuple[int, int, int, int], antialias: bool
) -> None:
    crop = Crop(source, size, window, "bilinear", antialias)
    run = quick(crop)
    assert run is not None
    for frame in _frames(*source):
        assert torch.equal(run(frame), _by_torch(frame, crop))


@pytest.mark.parametrize("spec", [IMAGE, VIDEO, PixelSpec((40,), (64, 32)), PixelSpec((300,), None, "bicubic")])
@pytest.mark.parametrize(
    "size", [(240, 320), (320, 241), (97, 53), (33, 400), (405, 720), (1, 1), (1, 7), (5, 1), (232, 232), (129, 172)]
)
def test_the_twentieth_frame_of_a_size_is_resized_like_the_first(spec: PixelSpec, size: tuple[int, int]) -> None:
    frames = _frames(*size)
    first = [resized(frame, spec) for frame in frames]
    for _ in range(10):
        later = [resized(frame, spec) for frame in frames]
    for before, after in zip(first, later, strict=True):
        assert np.array_equal(before, after)


@NEEDS_FMA
@pytest.mark.parametrize("spec", [IMAGE, VIDEO])
@pytest.mark.parametrize("size", [(240, 320), (405, 720)])
def test_from_the_sixteenth_frame_on_the_quick_way_is_taken(
    spec: PixelSpec, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    plainly: list[np.ndarray] = []
    expected = Crop.expected

    def counted(crop: Crop, frame: np.ndarray) -> torch.Tensor:
        plainly.append(frame)
        return expected(crop, frame)

    monkeypatch.setattr(Crop, "expected", counted)
    resize._geometry.cache_clear()
    first, *_, last = [resized(_frames(*size)[0], spec) for _ in range(40)]
    assert len(plainly) == 15 + 1  # and the noise on which the quick way is tried
    assert np.array_equal(first, last)
