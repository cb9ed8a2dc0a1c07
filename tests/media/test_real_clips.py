"""The 24 real clips: every frame, its time and its pixels."""

from pathlib import Path

import numpy as np
import pytest

from tests.media.conftest import WHOLE, clips, decode, want
from tests.media.make import decoded
from tests.media.truth import CLIPS

pytestmark = pytest.mark.media


@pytest.mark.parametrize("name", CLIPS)
def test_every_frame_of_a_real_clip_is_there_with_its_time(media_folder: Path, name: str) -> None:
    truth = CLIPS[name]
    result = decode(media_folder / name)
    rows = result.clips["m"]
    assert (result.status, len(rows)) == (truth.status, truth.frames)
    assert rows[0].start_s == pytest.approx(truth.first_s, abs=1e-9)
    assert rows[-1].start_s == pytest.approx(truth.last_s, abs=1e-9)
    assert rows[-1].end_s == pytest.approx(truth.end_s, abs=1e-9)
    assert [clip.clip_index for clip in rows] == list(range(truth.frames))
    facts = result.facts
    assert (facts.codec, facts.width, facts.height) == (truth.codec, truth.width, truth.height)
    assert facts.size == (media_folder / name).stat().st_size
    assert (facts.frames_decoded, facts.frames_twice) == (truth.frames, 0)


@pytest.mark.parametrize("name", CLIPS)
def test_pixels_of_a_real_clip_are_those_of_plain_pyav(media_folder: Path, name: str) -> None:
    result = decode(media_folder / name)
    pixels, plain = result.frames[WHOLE.key], decoded(media_folder / name)
    assert len(pixels) == len(plain)
    assert all(np.array_equal(ours, theirs) for ours, theirs in zip(pixels, plain, strict=True))


@pytest.mark.parametrize("name", [name for name, truth in CLIPS.items() if truth.status == "ok"])
def test_segments_of_a_real_clip_are_bit_identical_to_the_whole(media_folder: Path, name: str) -> None:
    wants = want("every:3"), want(clips(8, stride=2, hop=5, tail="pad"), label="c")
    whole = decode(media_folder / name, *wants)
    parts = [decode(media_folder / name, *wants, k=k, n=3) for k in range(3)]
    for label in ("m", "c"):
        together = [clip for part in parts for clip in part.clips[label]]
        assert [(c.clip_index, c.frame_s, c.end_s, c.padded_frames) for c in together] == [
            (c.clip_index, c.frame_s, c.end_s, c.padded_frames) for c in whole.clips[label]
        ]
        pixels = [part.frames[WHOLE.key][list(c.frame_idx)] for part in parts for c in part.clips[label]]
        expected = [whole.frames[WHOLE.key][list(c.frame_idx)] for c in whole.clips[label]]
        assert all(np.array_equal(ours, theirs) for ours, theirs in zip(pixels, expected, strict=True))


@pytest.mark.parametrize("name", CLIPS)
def test_keyframes_are_those_of_the_packets(media_folder: Path, name: str) -> None:
    assert len(decode(media_folder / name, want("keyframes")).clips["m"]) == CLIPS[name].keyframes


def test_uniform_sampling_of_a_packed_avi_counts_pictures_not_packets(media_folder: Path) -> None:
    name = "hmdb51_Turnk_r_Pippi_Michel_cartwheel_f_cm_np2_le_med_6.avi"
    rows = decode(media_folder / name, want("uniform:2")).clips["m"]
    assert [clip.start_s for clip in rows] == [pytest.approx(83 // 4 / 30), pytest.approx(3 * 83 // 4 / 30)]


# Mean of the upper left, upper right, lower left and lower right quarter of the first frame, looked at by eye first:
# the keyboard's letters stand upright; the telescope stands above the red crane, as its display matrix asks for.
QUARTERS = {"video_90.mov": (106.4, 108.2, 75.1, 88.9), "nasa_13013_rotated.mp4": (17.7, 9.7, 7.7, 6.5)}


@pytest.mark.parametrize("name", QUARTERS)
def test_real_rotated_clips_come_out_upright(media_folder: Path, name: str) -> None:
    frame = decode(media_folder / name).frames[WHOLE.key][0]
    height, width = frame.shape[0] // 2, frame.shape[1] // 2
    quarters = frame[:height, :width], frame[:height, width:], frame[height:, :width], frame[height:, width:]
    assert [quarter.mean() for quarter in quarters] == pytest.approx(QUARTERS[name], abs=0.5)
    assert {name for name, truth in CLIPS.items() if truth.rotation} == set(QUARTERS)


def test_a_broken_clip_says_what_and_when(media_folder: Path) -> None:
    result = decode(media_folder / "corrupted.mp4")
    assert (result.status, result.error_class) == ("partial", "corrupt")
    assert result.error_message is not None
    assert "3 s" in result.error_message
    assert "22 of the frames" in result.error_message


def test_a_clip_that_lacks_a_frame_is_dropped_whole(media_folder: Path) -> None:
    """28 of 50 frames decode, so of the clips 0-7, 8-15, 16-23, 24-31 … the first three are whole."""
    result = decode(media_folder / "corrupted.mp4", want(clips(8)))
    assert [clip.clip_index for clip in result.clips["m"]] == [0, 1, 2]
    assert result.status == "partial"


def test_frames_only_behind_the_damage_fail_the_item(media_folder: Path) -> None:
    result = decode(media_folder / "corrupted.mp4", want("all"), start_s=4.0)
    assert (result.status, result.error_class) == ("failed", "corrupt")
    assert result.frames == {}


def test_truth_covers_all_clips(media_folder: Path) -> None:
    assert {path.name for path in media_folder.iterdir() if path.suffix != ".json"} == set(CLIPS)
