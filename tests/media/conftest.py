"""One set of generated videos for all media tests."""

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from featlib.errors import MEDIA_ERROR_CLASSES
from featlib.media.decode import decode_item
from featlib.media.limits import Limits
from featlib.sampling import ClipSampling, FrameSampling, Sampling
from featlib.spec import Decoded, MediaItem, PixelSpec, Segment, Want
from featlib.storage import StoreOptions
from tests.media.make import write_video

WHOLE = PixelSpec((), None)
Decode = Callable[..., Decoded]


@pytest.fixture(scope="session")
def videos(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Paths by what is special about each."""
    folder = tmp_path_factory.mktemp("videos")
    vfr = [0, 1, 2, 10, 11, 30, 31, 32, 33, 60, 61, 62, 63, 64, 65, 90]
    closed = {"x264-params": "scenecut=0:open-gop=0"}
    opened = {"x264-params": "scenecut=0:open-gop=1:b-adapt=0"}
    refreshed = {"x264-params": "intra-refresh=1:keyint=20"}  # all but the first are none
    front = {"movflags": "faststart"}
    return {
        "plain": write_video(folder / "plain.mp4", options=closed, container_options=front),
        "b_frames": write_video(folder / "b.mp4", b_frames=2, options=closed),
        "open_gop": write_video(folder / "open.mkv", b_frames=2, options=opened),
        "open_gop_mp4": write_video(folder / "open.mp4", b_frames=2, options=opened),
        "late": write_video(folder / "late.mp4", start=37, b_frames=2, options=closed),
        "vfr": write_video(folder / "vfr.mkv", pts=vfr, frames=len(vfr), rate=Fraction(20), options=closed),
        "mkv": write_video(folder / "plain.mkv", b_frames=2, options=closed),
        "ts": write_video(folder / "plain.ts", b_frames=2, options=closed),
        "mpeg4": write_video(folder / "plain4.mp4", codec="mpeg4"),
        "avi": write_video(folder / "plain.avi", codec="mpeg4"),
        "avi_b": write_video(folder / "b.avi", codec="mpeg4", b_frames=2),
        "mpg": write_video(folder / "plain.mpg", codec="mpeg2video", rate=Fraction(25), b_frames=2),
        "webm": write_video(
            folder / "altref.webm",
            codec="libvpx",
            frames=60,
            gop=30,
            options={"auto-alt-ref": "1", "lag-in-frames": "16", "deadline": "good", "cpu-used": "4"},
        ),
        "vp9": write_video(folder / "nine.webm", codec="libvpx-vp9", options={"cpu-used": "8", "row-mt": "0"}),
        "hevc": write_video(
            folder / "hevc.mp4", codec="libx265", options={"x265-params": "log-level=none:keyint=10:pools=1"}
        ),
        **{
            f"refreshed{kind}": write_video(
                folder / f"refreshed{kind}.{ending}", frames=80, size=(96, 64), gop=20, b_frames=b, options=refreshed
            )
            for kind, ending, b in (("", "mp4", 0), ("_b", "mp4", 3), ("_mkv", "mkv", 3), ("_ts", "ts", 3))
        },
    }


def want(sampling: str | Sampling, pixels: PixelSpec = WHOLE, label: str = "m") -> Want:
    """A want; text is a frame sampling."""
    return Want(label, FrameSampling.parse(sampling) if isinstance(sampling, str) else sampling, pixels)


def decode(
    path: Path | str,
    *wants: Want,
    k: int = 0,
    n: int = 1,
    start_s: float | None = None,
    end_s: float | None = None,
    limits: Limits | None = None,
    media_id: str = "id",
) -> Decoded:
    """Decodes with defaults that a test need not say; without wants, all frames whole."""
    item = MediaItem(media_id, str(path), start_s, end_s)
    chosen = wants or (want("all"),)
    return decode_item(item, chosen, Segment(k, n), store_options=StoreOptions(), limits=limits or Limits())


def clips(frames: int, **keys: object) -> ClipSampling:
    return ClipSampling(frames, **keys)  # type: ignore[arg-type]


def outcome_of(result: Decoded) -> tuple[str, str | None]:
    assert result.error_class is None or result.error_class in MEDIA_ERROR_CLASSES
    assert result.error_message is None or "\n" not in result.error_message
    return result.status, result.error_class


def kept_of(result: Decoded, whole: Decoded) -> list[int]:
    """Ordinals of the frames that came out, each checked to be the sound frame's pixels."""
    starts = [clip.start_s for clip in whole.clips["m"]]
    kept = [starts.index(clip.start_s) for clip in result.clips["m"]]
    for clip, ordinal in zip(result.clips["m"], kept, strict=True):
        assert np.array_equal(result.frames[WHOLE.key][clip.frame_idx[0]], whole.frames[WHOLE.key][ordinal])
    return kept
