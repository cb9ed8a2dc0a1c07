"""Presentation times as files give them: late starts, variable rate, AVI, hidden frames, splices."""

import struct
from collections.abc import Callable
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from tests.media.conftest import WHOLE, clips, decode, want
from tests.media.make import (
    as_avi_in_matroska,
    decoded,
    packets,
    picture,
    with_matrix,
    with_sound,
    write_matroska,
    write_video,
)


def _starts(path: Path, **keys: float) -> list[float]:
    return [clip.start_s for clip in decode(path, **keys).clips["m"]]


def test_a_late_start_is_kept(videos: dict[str, Path]) -> None:
    assert _starts(videos["late"])[:3] == [37 / 20, 38 / 20, 39 / 20]
    first = decode(videos["late"], want("fps:1")).clips["m"]
    assert [clip.start_s for clip in first] == [1.85, 2.85]


def test_variable_rate_uses_the_files_own_times(videos: dict[str, Path]) -> None:
    rows = decode(videos["vfr"]).clips["m"]
    assert [clip.start_s for clip in rows[:6]] == [0.0, 0.05, 0.1, 0.5, 0.55, 1.5]
    assert [clip.end_s for clip in rows[:5]] == [0.05, 0.1, 0.5, 0.55, 1.5]
    by_time = decode(videos["vfr"], want("fps:1"), end_s=4.5).clips["m"]
    assert [clip.start_s for clip in by_time] == [0.0, 0.55, 1.65, 3.0, 3.25]


def test_a_range_counts_in_media_time(videos: dict[str, Path]) -> None:
    assert _starts(videos["late"], start_s=2.0, end_s=2.2) == [2.0, 2.05, 2.1, 2.15]
    result = decode(videos["late"], start_s=0.0, end_s=1.0)
    assert (result.status, result.error_class) == ("failed", "empty_range")
    assert result.error_message == "no frame from 0 s to 1 s; the frames lie at 1.85 s to 3.8 s"


@pytest.mark.parametrize("kind", ["avi", "avi_b"])
def test_avi_frames_are_one_period_apart_in_the_order_of_motion(videos: dict[str, Path], kind: str) -> None:
    result = decode(videos[kind])
    assert [clip.start_s for clip in result.clips["m"]] == [i / 20 for i in range(40)]
    bars = [int(np.argmin(np.abs(frame[60].astype(int) - 255).sum(axis=-1))) for frame in result.frames[WHOLE.key]]
    assert all(abs(bar - 7 * i % 152) <= 8 for i, bar in enumerate(bars))


@pytest.mark.parametrize("still", [range(40), range(8, 22)], ids=["all", "a stretch"])
def test_an_avi_in_which_nothing_moves_has_all_its_frames(tmp_path: Path, still: range) -> None:
    """A B picture of nothing new is as short as the empty packets that stand for no picture."""
    path = tmp_path / "still.avi"
    write_video(path, codec="mpeg4", b_frames=2, shows=lambda i: still[0] if i in still else i)
    assert min(size for _, size, _, _ in packets(path)) <= 10
    plain = decoded(path)
    result = decode(path)
    assert (result.status, len(result.clips["m"]), len(plain)) == ("ok", 40, 40)
    assert all(map(np.array_equal, result.frames[WHOLE.key], plain))


def test_matroska_with_a_track_of_avi_is_timed_like_an_avi(videos: dict[str, Path], tmp_path: Path) -> None:
    """Its times go with the order of decoding; FFmpeg's frames then change places."""
    path = as_avi_in_matroska(videos["avi_b"], tmp_path / "vfw.mkv")
    result = decode(path)
    assert (result.status, len(result.clips["m"])) == ("ok", 40)
    assert [clip.start_s for clip in result.clips["m"]] == pytest.approx([i / 20 for i in range(40)], abs=0.001)
    assert all(map(np.array_equal, result.frames[WHOLE.key], decode(videos["avi_b"]).frames[WHOLE.key]))


def _with_a_gap(frames: int = 40, behind: int = 12, steps: int = 20) -> list[int]:
    return [i + steps * (i >= behind) for i in range(frames)]


def test_matroska_with_a_track_of_avi_keeps_its_gaps(videos: dict[str, Path], tmp_path: Path) -> None:
    path = as_avi_in_matroska(videos["avi_b"], tmp_path / "gap.mkv", _with_a_gap())
    result = decode(path)
    assert [clip.start_s for clip in result.clips["m"]] == pytest.approx([i / 20 for i in _with_a_gap()])
    assert result.clips["m"][-1].end_s == pytest.approx(3.0)
    assert np.array_equal(result.frames[WHOLE.key], decode(videos["avi_b"]).frames[WHOLE.key])


def test_matroska_with_a_track_of_avi_whose_times_are_alike_is_counted(videos: dict[str, Path], tmp_path: Path) -> None:
    path = as_avi_in_matroska(videos["avi_b"], tmp_path / "alike.mkv", [i // 2 * 2 for i in range(40)])
    starts = _starts(path)
    assert len(starts) == 40
    assert np.diff(starts) == pytest.approx(1 / 20, abs=0.001)


@pytest.mark.parametrize("codec", ["mpeg4", "libx264"])
def test_frames_that_an_avi_left_out_take_their_time(tmp_path: Path, codec: str) -> None:
    """Empty chunks stand for them, which count in the order of decoding."""
    path = write_video(tmp_path / "gap.avi", codec=codec, b_frames=2, pts=_with_a_gap())
    starts = _starts(path)
    assert len(starts) == 40
    steps = np.diff(starts)
    assert np.delete(steps, np.argmax(steps)) == pytest.approx(1 / 20)
    assert 11 <= np.argmax(steps) <= 14
    assert steps.max() == pytest.approx(1.05)


def test_keyframes_of_an_avi_with_b_frames_stand_where_they_are_shown(videos: dict[str, Path]) -> None:
    rows = decode(videos["avi_b"], want("keyframes")).clips["m"]
    steps = [round(clip.start_s * 20) for clip in rows]
    assert steps == [0, 12, 21, 30, 39]  # the I pictures that PyAV decodes; their packets are 0, 10, 19, 28, 37
    plain = decoded(videos["avi_b"])
    frames = decode(videos["avi_b"], want("keyframes")).frames[WHOLE.key]
    assert all(np.array_equal(frame, plain[step]) for frame, step in zip(frames, steps, strict=True))


def test_hidden_reference_frames_of_vp8_are_not_frames(videos: dict[str, Path]) -> None:
    result = decode(videos["webm"])
    assert (result.status, len(result.clips["m"])) == ("ok", 60)


def test_the_last_frame_ends_after_its_own_duration(videos: dict[str, Path]) -> None:
    (clip,) = decode(videos["plain"], want(clips(40))).clips["m"]
    assert (clip.start_s, clip.end_s, len(clip.frame_s)) == (0.0, 2.0, 40)
    padded = decode(videos["plain"], want(clips(16, tail="pad"))).clips["m"][-1]
    assert (padded.start_s, padded.end_s, padded.padded_frames, len(padded.frame_s)) == (1.6, 2.0, 8, 8)
    assert padded.frame_idx == (*range(32, 40), *[39] * 8)


def test_a_video_shorter_than_a_clip_gives_one_padded_clip(videos: dict[str, Path]) -> None:
    (clip,) = decode(videos["plain"], want(clips(64))).clips["m"]
    assert (clip.padded_frames, len(clip.frame_s), len(clip.frame_idx)) == (24, 40, 64)


def test_clips_at_a_rate_take_the_frames_shown_then(videos: dict[str, Path]) -> None:
    rows = decode(videos["plain"], want(clips(4, fps=Fraction(5)))).clips["m"]
    assert [clip.frame_s for clip in rows] == [(0.0, 0.2, 0.4, 0.6), (0.8, 1.0, 1.2, 1.4)]


def test_a_stream_that_changes_its_frame_size_is_fitted_to_its_first(tmp_path: Path) -> None:
    """Two transport streams one behind the other, as broadcasts do."""
    options = {"x264-params": "scenecut=0:open-gop=0"}
    first = write_video(tmp_path / "1.ts", frames=10, options=options)
    second = write_video(tmp_path / "2.ts", frames=10, size=(320, 192), start=10, options=options)
    both = tmp_path / "both.ts"
    both.write_bytes(first.read_bytes() + second.read_bytes())
    result = decode(both)
    assert result.status == "ok"
    assert result.frames[WHOLE.key].shape == (20, 96, 160, 3)
    assert np.abs(result.frames[WHOLE.key][19].astype(int) - picture(9)).mean() < 40


def test_a_spliced_time_line_falls_back_to_counting(tmp_path: Path) -> None:
    """The second half starts at 0 again: its frames come behind, at the stream's rate."""
    options = {"x264-params": "scenecut=0:open-gop=0"}
    first = write_video(tmp_path / "1.ts", frames=10, options=options)
    both = tmp_path / "both.ts"
    both.write_bytes(first.read_bytes() * 2)
    result = decode(both)
    assert len(result.clips["m"]) == 20
    starts = [clip.start_s for clip in result.clips["m"]]
    assert [round(b - a, 9) for a, b in pairwise(starts)] == [0.05] * 19


@pytest.mark.parametrize("kind", ["mpg", "flv"])
@pytest.mark.parametrize(("frames", "start"), [(40, 200), (40, 800), (10, 200)])
def test_a_time_line_that_jumps_back_keeps_both_recordings(tmp_path: Path, kind: str, frames: int, start: int) -> None:
    """The second recording begins before the first one, and no time comes twice."""
    codec, options = ("libx264", {"x264-params": "scenecut=0:open-gop=0"}) if kind == "flv" else ("mpeg2video", {})
    first, second = (
        write_video(tmp_path / f"{at}.{kind}", codec=codec, rate=Fraction(25), frames=frames, options=options, start=at)
        for at in (start, 0)
    )
    both = tmp_path / f"both.{kind}"
    both.write_bytes(first.read_bytes() + second.read_bytes()[13 if kind == "flv" else 0 :])  # its header comes once
    result, plain = decode(both), decoded(both)
    assert (result.status, len(result.clips["m"]), len(plain)) == ("ok", 2 * frames, 2 * frames)
    assert np.diff([clip.start_s for clip in result.clips["m"]]) == pytest.approx(1 / 25)
    assert all(map(np.array_equal, result.frames[WHOLE.key], plain))


def _patched(path: Path, to: Path, box: bytes, at: int, value: int) -> Path:
    """A copy of an MP4 in which 32 bits, counted from the name of a box, are ``value``."""
    data = bytearray(path.read_bytes())
    at += data.index(box)
    data[at : at + 4] = value.to_bytes(4, "big")
    to.write_bytes(data)
    return to


def test_a_keyframe_that_an_edit_leaves_out_may_have_any_time(tmp_path: Path) -> None:
    """Its offset in ``ctts`` is damaged: all frames are shown before it, says the table, and the edit ends there."""
    whole = write_video(tmp_path / "a.mp4", b_frames=2, options={"x264-params": "scenecut=0:open-gop=0:b-adapt=0"})
    path = _patched(whole, tmp_path / "b.mp4", b"ctts", 16, 1_001_024)
    result, plain = decode(path), decoded(path)
    assert (result.status, len(result.clips["m"]), len(plain)) == ("ok", 39, 39)
    assert all(map(np.array_equal, result.frames[WHOLE.key], plain))


def test_frames_that_all_lie_before_the_only_keyframe_are_none(tmp_path: Path) -> None:
    """The keyframe is the last frame, and an edit leaves it out."""
    path = write_video(tmp_path / "a.mp4", codec="mpeg4")
    for box, at, value in ((b"stss", 8, 1), (b"stss", 12, 40), (b"elst", 12, 1900)):
        _patched(path, path, box, at, value)
    result = decode(path)
    assert (result.status, result.error_class) == ("failed", "no_frames")
    assert result.error_message == "the file opens, but none of its frames lies behind a keyframe"


_EVEN = (0, 50, 100, 150)


@pytest.mark.parametrize(
    ("shown", "keys"),
    [
        (_EVEN, {"first": 2**60}),
        (_EVEN, {"first": 2**62}),
        (_EVEN, {"first": 2**62, "duration": 2**63 - 1}),
        ((0, 50, 50, 150), {"first": 2**60}),
        ((0, 50, 50, 150), {"first": 2**40, "tick_ns": 999_999_937, "frame_ns": 33_366_667}),
    ],
    ids=["alike as floats", "wide", "ends beyond 64 bits", "counted", "counted in ticks beyond 64 bits"],
)
def test_times_too_late_to_be_exact_are_an_outcome(
    tmp_path: Path, shown: tuple[int, ...], keys: dict[str, int]
) -> None:
    for sampling in ("all", "fps:1"):
        result = decode(write_matroska(tmp_path / "a.mkv", shown, **keys), want(sampling))
        assert (result.status, result.error_class) == ("failed", "corrupt")
        assert "too far from 0 for exact times" in (result.error_message or "")


def test_late_times_that_floats_keep_apart_are_kept(tmp_path: Path) -> None:
    result = decode(write_matroska(tmp_path / "a.mkv", _EVEN, first=2**53 - 400))
    assert result.status == "ok"
    rows = result.clips["m"]
    assert all(clip.start_s < clip.end_s for clip in rows)
    assert np.diff([clip.start_s for clip in rows]) == pytest.approx(0.05, abs=0.002)


@pytest.mark.parametrize("rate", [-25.0, -1e300, 0.0, float("nan")])
def test_times_go_forward_whatever_rate_a_file_claims(tmp_path: Path, rate: float) -> None:
    path = write_video(tmp_path / "a.flv", codec="flv", frames=8)
    data = bytearray(path.read_bytes())
    at = data.index(b"framerate") + 10
    data[at : at + 8] = struct.pack(">d", rate)
    tag, tags = 13, []
    while tag + 11 < len(data):
        tags += [tag] * (data[tag] == 9)
        tag += 15 + int.from_bytes(data[tag + 1 : tag + 4], "big")
    data[tags[3] + 4 : tags[3] + 7] = data[tags[2] + 4 : tags[2] + 7]  # one time comes twice: frames are counted
    path.write_bytes(data)
    starts = _starts(path)
    assert len(starts) == 8
    assert (np.diff(starts) > 0).all()


def test_sound_beside_the_picture_changes_nothing(tmp_path: Path, videos: dict[str, Path]) -> None:
    loud = with_sound(videos["mkv"], tmp_path / "loud.mkv", Fraction(2))
    ours, plain = decode(loud), decode(videos["mkv"])
    assert [c.frame_s for c in ours.clips["m"]] == [c.frame_s for c in plain.clips["m"]]
    assert np.array_equal(ours.frames[WHOLE.key], plain.frames[WHOLE.key])


@pytest.mark.parametrize(
    ("matrix", "shown"),
    [
        ((1, 0, 0, 1), lambda a: a),
        ((0, 1, -1, 0), lambda a: np.rot90(a, -1)),
        ((-1, 0, 0, -1), lambda a: a[::-1, ::-1]),
        ((0, -1, 1, 0), lambda a: np.rot90(a, 1)),
        ((-1, 0, 0, 1), lambda a: a[:, ::-1]),
        ((1, 0, 0, -1), lambda a: a[::-1]),
        ((0, 1, 1, 0), lambda a: a.transpose(1, 0, 2)),
        ((0, -1, -1, 0), lambda a: a[::-1, ::-1].transpose(1, 0, 2)),
        ((0, 0, 0, 0), lambda a: a),
    ],
    ids=[
        "upright",
        "clockwise",
        "half",
        "counterclockwise",
        "mirrored",
        "flipped",
        "across",
        "anti-across",
        "nonsense",
    ],
)
def test_pictures_are_turned_and_mirrored_as_their_matrix_says(
    videos: dict[str, Path],
    tmp_path: Path,
    matrix: tuple[int, int, int, int],
    shown: Callable[[np.ndarray], np.ndarray],
) -> None:
    path = with_matrix(videos["plain"], matrix, tmp_path / "turned.mp4")
    frames = decode(path, want("every:13")).frames[WHOLE.key]
    plain = decode(videos["plain"], want("every:13")).frames[WHOLE.key]
    assert len(frames) == len(plain) == 4
    assert all(np.array_equal(frame, shown(upright)) for frame, upright in zip(frames, plain, strict=True))
