from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from featlib.errors import ConfigError, StoppedError
from featlib.finetuning import pictures
from featlib.finetuning.pictures import PictureFile, decode_all, picture_file
from featlib.media import DecodeProcess, Limits, decode_item
from featlib.progress import SilentReporter
from featlib.sampling import ClipSampling, FrameSampling
from featlib.spec import MediaItem, PixelSpec, Segment, Want
from featlib.storage import StoreOptions
from tests.finetuning.make import moving_bar, write_video

PIXELS = PixelSpec(resize=(24, 32), crop=(24, 32))
EVERY_FRAME = Want("m", FrameSampling("all"), PIXELS)
CLIPS = Want("m", ClipSampling(frames=8, hop=4), PIXELS)
FRAME_BYTES = 24 * 32 * 3
SMALL = Limits(unit_bytes=10 * FRAME_BYTES)


@pytest.fixture(scope="module")
def process() -> Iterator[DecodeProcess]:
    with DecodeProcess(SMALL, StoreOptions()) as process:
        yield process


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> MediaItem:
    path = tmp_path_factory.mktemp("v") / "bar.avi"
    return MediaItem("bar", str(write_video(path, moving_bar(True, np.random.default_rng(0), frames=40))))


@pytest.fixture
def file() -> Iterator[PictureFile]:
    with picture_file((24, 32), 1) as file:
        yield file


def whole(item: MediaItem, want: Want) -> np.ndarray:
    """(num_clips, frames in a clip, height, width, 3), from one piece and without a cache."""
    decoded = decode_item(item, (want,), Segment(), store_options=StoreOptions(), limits=Limits())
    assert decoded.segment.n == 1
    return np.stack([decoded.frames[PIXELS.key][list(clip.frame_idx)] for clip in decoded.clips["m"]])


def decoded(items: list[MediaItem], want: Want, process: DecodeProcess, file: PictureFile, **options: object):  # type: ignore[no-untyped-def]
    return decode_all(items, want, process, file, SilentReporter(), **{"max_failed": 0.0, **options})


@pytest.mark.parametrize("want", [EVERY_FRAME, CLIPS], ids=["frames", "clips"])
def test_an_item_in_several_segments_gives_the_clips_of_the_whole(
    want: Want, video: MediaItem, process: DecodeProcess, file: PictureFile
) -> None:
    assert process.decode(video, (want,), Segment()).segment.n > 1
    found = decoded([video, video], want, process, file)
    expected = whole(video, want)
    for place in (0, 1):
        assert np.array_equal(found.frames[found.frame_idx[found.place == place]], expected)


def test_clips_of_an_item_are_thinned_evenly_and_their_pictures_alone_are_kept(
    video: MediaItem, process: DecodeProcess, file: PictureFile
) -> None:
    found = decoded([video, video], EVERY_FRAME, process, file, clips_per_item=3)
    expected = whole(video, EVERY_FRAME)[[6, 20, 33]]
    assert len(found.frames) == 6
    assert np.array_equal(found.frames[found.frame_idx], np.concatenate([expected, expected]))


def test_what_is_left_out_leaves_no_pictures(
    tmp_path: Path, video: MediaItem, process: DecodeProcess, file: PictureFile
) -> None:
    bad, cut = tmp_path / "bad.mp4", tmp_path / "cut.avi"
    bad.write_bytes(b"this is no video" * 99)
    data = Path(video.uri).read_bytes()
    cut.write_bytes(data[: len(data) * 2 // 3])
    items = [MediaItem("bad", str(bad)), video, MediaItem("cut", str(cut)), MediaItem("no", str(tmp_path / "no.mp4"))]
    found = decoded(items, EVERY_FRAME, process, file, max_failed=0.75)
    assert {i: m.error_class for i, m in found.left_out.items()} == {
        0: "unknown_format",
        2: "truncated",
        3: "not_found",
    }
    assert all(m.error_message and "\n" not in m.error_message for m in found.left_out.values())
    assert set(found.place) == {1}
    assert np.array_equal(found.frames[found.frame_idx], whole(video, EVERY_FRAME))


def test_more_bad_media_than_allowed_stop_with_one_line(
    tmp_path: Path, video: MediaItem, process: DecodeProcess, file: PictureFile
) -> None:
    items = [video, video, video, MediaItem("no", str(tmp_path / "no.mp4"))]
    assert len(decoded(items, EVERY_FRAME, process, file, max_failed=0.25).left_out) == 1
    with pytest.raises(StoppedError) as caught:
        decoded(items, EVERY_FRAME, process, file, max_failed=0.2)
    assert "1 of 4 media cannot be used, more than max_failed 0.2; the first: " in str(caught.value)
    assert "no.mp4: not_found: " in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_image_is_of_no_use_to_a_network_of_clips(process: DecodeProcess, file: PictureFile, tmp_path: Path) -> None:
    from PIL import Image

    Image.new("RGB", (32, 24)).save(tmp_path / "i.png")
    with pytest.raises(StoppedError, match=r"none of 1 media can be used.*image_under_clip_model"):
        decoded([MediaItem("i", str(tmp_path / "i.png"))], CLIPS, process, file, max_failed=1.0)


def test_a_full_file_stops_with_one_line(video: MediaItem, process: DecodeProcess, tmp_path: Path) -> None:
    file = PictureFile(tmp_path / "p", (24, 32), 30 * FRAME_BYTES)
    with pytest.raises(StoppedError) as caught:
        decoded([video], EVERY_FRAME, process, file)
    file.close()
    assert "the decoded pictures take more than the 0 MB" in str(caught.value)
    assert "raise cache_mb, set TMPDIR" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_file_is_bounded_by_what_the_disk_has_to_spare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    free = 256 << 20

    class Usage:
        def __init__(self, free: int) -> None:
            self.free = free

    monkeypatch.setattr(pictures.shutil, "disk_usage", lambda _: Usage(free + 2 * FRAME_BYTES))
    with picture_file((24, 32), 100) as file:
        file.append(np.zeros((2, 24, 32, 3), np.uint8))
        with pytest.raises(StoppedError, match="take more than"):
            file.append(np.zeros((1, 24, 32, 3), np.uint8))
    monkeypatch.setattr(pictures.shutil, "disk_usage", lambda _: Usage(free))
    with pytest.raises(ConfigError, match="the disk is full; set TMPDIR"), picture_file((24, 32), 100):
        pass


def test_the_file_goes_when_it_is_done_with(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(pictures.tempfile, "tempdir", str(tmp_path))
    with picture_file((24, 32), 1) as file:
        file.append(np.ones((2, 24, 32, 3), np.uint8))
        frames = file.frames()
        assert list(tmp_path.rglob("*.uint8"))
    assert list(tmp_path.iterdir()) == []
    assert frames.min() == 1
