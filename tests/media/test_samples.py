"""The sample media: what their names promise is true of the files, and decoding them gives what was drawn."""

from pathlib import Path

import av
import numpy as np
import pytest
from av.video.frame import PictureType
from PIL import Image

from featlib.media.samples import SAMPLE_VIDEOS, SampleVideo, Scene, make_samples

EXIF_ORIENTATION = 0x0112


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {path.name: path for path in make_samples(tmp_path_factory.mktemp("samples"))}


def decoded(path: Path) -> list[av.VideoFrame]:
    with av.open(str(path)) as container:
        return list(container.decode(video=0))


def test_samples_repeat_byte_for_byte(samples: dict[str, Path], tmp_path: Path) -> None:
    again = make_samples(tmp_path / "new" / "folder")
    assert [p.name for p in again] == list(samples)
    for path in again:
        assert path.read_bytes() == samples[path.name].read_bytes(), path.name


def test_samples_are_small(samples: dict[str, Path]) -> None:
    assert sum(path.stat().st_size for path in samples.values()) < 400_000


@pytest.mark.parametrize("video", SAMPLE_VIDEOS, ids=lambda video: video.name)
def test_video_is_what_its_description_says(samples: dict[str, Path], video: SampleVideo) -> None:
    frames = decoded(samples[video.name])
    assert len(frames) == video.num_frames
    assert sum(frame.key_frame for frame in frames) >= 4
    assert any(frame.pict_type == PictureType.B for frame in frames) == (video.b_frames > 0)
    assert frames[0].rotation == video.rotation
    seconds = [frame.time for frame in frames if frame.time is not None]
    expected = np.arange(video.num_frames) / video.frames_per_second
    np.testing.assert_allclose(np.subtract(seconds, seconds[0]), expected, atol=0.001)


@pytest.mark.parametrize("video", SAMPLE_VIDEOS, ids=lambda video: video.name)
def test_video_shows_the_scene(samples: dict[str, Path], video: SampleVideo) -> None:
    frames = decoded(samples[video.name])
    for i in (0, video.num_frames // 2, video.num_frames - 1):
        drawn = video.scene.draw(video.width, video.height, i / video.num_frames).astype(float)
        shown = frames[i].to_ndarray(format="rgb24").astype(float)
        assert np.abs(shown - drawn).mean() < 12
    first, middle = (frames[i].to_ndarray(format="rgb24").astype(float) for i in (0, video.num_frames // 4))
    assert np.abs(first - middle).mean() > 6


def test_scene_moves_around_and_keeps_its_colour() -> None:
    scene = Scene("disc", (200, 10, 10), (10, 10, 200), size=0.2)
    right, left = scene.draw(100, 80, 0.0), scene.draw(100, 80, 0.5)
    assert tuple(right[40, 80]) == tuple(left[40, 20]) == (200, 10, 10)
    assert right[40, 20, 2] == pytest.approx(200 * 0.68, abs=2)


def test_images_are_one_turned_by_exif_and_one_plain(samples: dict[str, Path]) -> None:
    with Image.open(samples["stripes_exif.jpg"]) as jpeg, Image.open(samples["disc.png"]) as png:
        assert (jpeg.format, jpeg.size, jpeg.getexif()[EXIF_ORIENTATION]) == ("JPEG", (360, 240), 6)
        assert (png.format, png.size, png.mode) == ("PNG", (320, 240), "RGB")
