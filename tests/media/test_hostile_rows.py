"""Hostile files under samplings by time: whatever they claim, a decoder hands on no more than a unit may hold."""

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import pytest

from featlib.errors import MEDIA_ERROR_CLASSES
from featlib.media import DecodeProcess, Limits
from featlib.sampling import ClipSampling, FrameSampling
from featlib.spec import Decoded, MediaItem, PixelSpec, Segment, Want
from featlib.storage import StoreOptions
from tests.media.make import write_video
from tests.torture.hostile import corpus

_SMALL = PixelSpec((32, 32), None)
_WANTS = (
    Want("frames", FrameSampling.parse("fps:1"), _SMALL),
    Want("clips", ClipSampling(16, fps=Fraction(15)), _SMALL),
)
_LIMITS = Limits(memory_bytes=512 << 20, deadline_s=30, stall_s=10)


@pytest.fixture(scope="module")
def process() -> Iterator[DecodeProcess]:
    with DecodeProcess(_LIMITS, StoreOptions()) as process:
        yield process


def _decoded(process: DecodeProcess, path: Path) -> Decoded:
    return process.decode(MediaItem("id", str(path), None, None), _WANTS, Segment())


def test_no_hostile_file_becomes_more_clips_than_a_unit_holds(process: DecodeProcess, tmp_path: Path) -> None:
    canary = write_video(tmp_path / "canary.ts", frames=8)
    for path in corpus(tmp_path / "files", canary, "http://127.0.0.1:9"):
        decoded = _decoded(process, path)
        assert decoded.error_class in (None, *MEDIA_ERROR_CLASSES), path.name
        assert sum(map(len, decoded.clips.values())) <= _LIMITS.unit_clips, path.name
        assert decoded.segment.n < 100, path.name


def test_two_frames_of_three_weeks_are_too_large_and_say_why(process: DecodeProcess, tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mkv", frames=2, pts=[0, 20 * 1_800_000], size=(32, 32))
    decoded = _decoded(process, path)
    assert (decoded.status, decoded.error_class, decoded.retryable) == ("failed", "too_large", False)
    assert "clips of 2 frames, each taken" in (decoded.error_message or "")
