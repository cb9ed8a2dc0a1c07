"""Sampling arithmetic against expectations written by hand."""

import subprocess
import sys
from fractions import Fraction

import numpy as np
import pytest

from featlib.errors import MediaError
from featlib.media.sampling import Picks, TimeRange, clip_starts, frame_span, pick, seeded_choice, uniform
from featlib.media.times import FrameTimes
from featlib.sampling import ClipSampling, FrameSampling, Sampling


def times(
    pts: list[int], time_base: Fraction = Fraction(1, 10), keys: list[int] | None = None, last: int = 1
) -> FrameTimes:
    ticks = np.array(pts, dtype=np.int64)
    is_key = np.isin(np.arange(len(pts)), [0] if keys is None else keys)
    return FrameTimes(ticks, pts[-1] + last if pts else 0, is_key, time_base)


TEN = times(list(range(10)), keys=[0, 4, 8])  # 10 frames a second from 0 s
LATE = times(list(range(50, 60)))  # the same from 5 s
VFR = times([0, 1, 2, 10, 11, 30], last=5)  # shown at 0, 0.1, 0.2, 1.0, 1.1 and 3.0 s until 3.5 s


def ordinals(
    of: FrameTimes, sampling: str | Sampling, start: float | None = None, end: float | None = None
) -> list[int]:
    parsed = FrameSampling.parse(sampling) if isinstance(sampling, str) else sampling
    return pick(of, parsed, "id", TimeRange.of(start, end)).ordinals.tolist()


@pytest.mark.parametrize(
    ("of", "sampling", "expected"),
    [
        (TEN, "all", list(range(10))),
        (TEN, "every:4", [0, 4, 8]),
        (TEN, "every:99", [0]),
        (TEN, "uniform:1", [5]),
        (TEN, "uniform:3", [1, 5, 8]),
        (TEN, "uniform:4", [1, 3, 6, 8]),
        (TEN, "uniform:10", list(range(10))),
        (TEN, "uniform:64", list(range(10))),
        (TEN, "keyframes", [0, 4, 8]),
        (TEN, "fps:1", [0]),
        (TEN, "fps:5", [0, 2, 4, 6, 8]),
        (TEN, "fps:3", [0, 3, 6]),
        (TEN, "fps:20", [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7, 8, 8, 9, 9]),
        (LATE, "fps:2", [0, 5]),
        (VFR, "fps:2", [0, 2, 3, 4, 4, 4, 5]),
        (VFR, "fps:1", [0, 3, 4, 5]),
        (VFR, "every:2", [0, 2, 4]),
    ],
)
def test_policies_over_a_whole_video(of: FrameTimes, sampling: str, expected: list[int]) -> None:
    assert ordinals(of, sampling) == expected


@pytest.mark.parametrize(
    ("of", "sampling", "start", "end", "expected"),
    [
        (TEN, "all", 0.3, 0.6, [3, 4, 5]),
        (TEN, "all", 0.25, 0.6, [3, 4, 5]),
        (TEN, "all", None, 0.25, [0, 1, 2]),
        (TEN, "all", 0.7, None, [7, 8, 9]),
        (TEN, "every:2", 0.3, None, [3, 5, 7, 9]),
        (TEN, "uniform:2", 0.3, 0.7, [4, 6]),
        (TEN, "keyframes", 0.1, 0.8, [4]),
        (TEN, "fps:5", 0.35, 0.8, [3, 5, 7]),  # shown at 0.35, 0.55 and 0.75 s
        (TEN, "fps:10", 0.3, 0.6, [3, 4, 5]),
        (LATE, "fps:10", 0.0, 5.3, [0, 1, 2]),
        (LATE, "all", 0.0, 99.0, list(range(10))),
        (VFR, "fps:1", 0.5, None, [2, 4, 4]),  # shown at 0.5, 1.5 and 2.5 s; 3.5 s is the end
        (TEN, "fps:2", 0.9, 99.0, [9]),
    ],
)
def test_policies_over_a_range(
    of: FrameTimes, sampling: str, start: float | None, end: float | None, expected: list[int]
) -> None:
    assert ordinals(of, sampling, start, end) == expected


@pytest.mark.parametrize("sampling", ["all", "uniform:3", "fps:1", "random:2", "keyframes"])
@pytest.mark.parametrize(("start", "end"), [(1.0, 2.0), (5.0, 4.0), (99.0, None), (None, 0.0)])
def test_a_range_without_frames_is_an_outcome(sampling: str, start: float | None, end: float | None) -> None:
    with pytest.raises(MediaError) as caught:
        ordinals(TEN, sampling, start, end)
    assert caught.value.error_class == "empty_range"


def test_decimal_times_mean_what_is_written() -> None:
    """0.1 + 0.2 s in thirds of a tick: the float 0.3 lies below three tenths, the text does not."""
    thirds = times(list(range(100)), Fraction(1, 1000))
    assert ordinals(thirds, "all", 0.07, 0.073) == [70, 71, 72]
    ntsc = times([1001 * i for i in range(400)], Fraction(1, 30000), last=1001)
    assert ordinals(ntsc, "fps:30000/1001") == list(range(400))
    assert ordinals(ntsc, "fps:30")[:4] == [0, 0, 1, 2]  # 1/30 s is just before the second frame


def test_random_choice_is_fixed_by_the_id_alone() -> None:
    """Worked out with plain integers, apart from numpy; other numbers would change the features of running jobs."""
    assert seeded_choice(1000, 6, "video-1").tolist() == [45, 64, 112, 683, 757, 881]
    assert seeded_choice(1000, 6, "video-2").tolist() == [74, 75, 186, 517, 647, 734]
    assert seeded_choice(3, 6, "video-1").tolist() == [0, 1, 2]
    assert len(set(seeded_choice(50, 49, "x").tolist())) == 49


@pytest.mark.parametrize(
    ("num_picked", "sampling", "expected"),
    [
        (10, ClipSampling(4), [0, 4]),
        (10, ClipSampling(4, tail="pad"), [0, 4, 8]),
        (10, ClipSampling(4, tail="shift"), [0, 4, 6]),
        (8, ClipSampling(4, tail="pad"), [0, 4]),
        (8, ClipSampling(4, tail="shift"), [0, 4]),
        (10, ClipSampling(4, hop=2), [0, 2, 4, 6]),
        (10, ClipSampling(4, hop=2, tail="pad"), [0, 2, 4, 6]),
        (11, ClipSampling(4, hop=2, tail="pad"), [0, 2, 4, 6, 8]),
        (11, ClipSampling(4, hop=2, tail="shift"), [0, 2, 4, 6, 7]),
        (10, ClipSampling(3, stride=2), [0]),
        (16, ClipSampling(8, stride=2, tail="pad"), [0]),
        (17, ClipSampling(8, stride=2, tail="pad"), [0, 16]),
        (3, ClipSampling(4, tail="drop"), [0]),
        (3, ClipSampling(4, tail="shift"), [0]),
        (9, ClipSampling(2, hop=6, tail="pad"), [0, 6]),
        (4, ClipSampling(2, hop=6, tail="shift"), [0]),
    ],
)
def test_clip_starts(num_picked: int, sampling: ClipSampling, expected: list[int]) -> None:
    assert clip_starts(num_picked, sampling).tolist() == expected


def test_padding_repeats_the_last_frame_that_the_clip_has() -> None:
    picks = pick(TEN, ClipSampling(4, stride=2, tail="pad"), "id", TimeRange())
    assert picks.clip_ordinals(0, len(picks)).tolist() == [[0, 2, 4, 6], [8, 8, 8, 8]]
    assert picks.used_frames(0, len(picks)).tolist() == [4, 1]
    assert picks.unique_ordinals(0, len(picks)).tolist() == [0, 2, 4, 6, 8]
    short = pick(times([0, 1, 2]), ClipSampling(5), "id", TimeRange())
    assert short.clip_ordinals(0, 1).tolist() == [[0, 1, 2, 2, 2]]
    assert short.used_frames(0, 1).tolist() == [3]


def test_clips_at_a_rate_pick_by_time_first() -> None:
    slow = pick(TEN, ClipSampling(2, fps=Fraction(5)), "id", TimeRange())
    assert slow.clip_ordinals(0, len(slow)).tolist() == [[0, 2], [4, 6]]
    fast = pick(times([0, 1]), ClipSampling(4, fps=Fraction(20)), "id", TimeRange())
    assert fast.clip_ordinals(0, 1).tolist() == [[0, 0, 1, 1]]


def test_frame_span_holds_what_any_sampling_can_touch() -> None:
    assert frame_span(TEN, TimeRange()) == (0, 10)
    assert frame_span(TEN, TimeRange.of(0.35, 0.8)) == (3, 8)
    assert frame_span(LATE, TimeRange.of(0.0, 5.2)) == (0, 2)
    assert frame_span(TEN, TimeRange.of(0.8, 0.3)) == (0, 0)


def test_times_are_the_nearest_floats() -> None:
    ntsc = times([0, 1001, 2002], Fraction(1, 30000), last=1001)
    assert ntsc.starts_s(np.arange(3)) == [0.0, 1001 / 30000, 2002 / 30000]
    assert ntsc.ends_s(np.arange(3)) == [1001 / 30000, 2002 / 30000, 3003 / 30000]
    huge = times([0, 10**18, 10**18 + 1], Fraction(1, 3))
    assert huge.starts_s(np.array([2])) == [float(Fraction(10**18 + 1, 3))]


def test_a_million_frames_agree_with_exact_arithmetic() -> None:
    """Every hundred-thousandth pick is checked with fractions; awkward numbers take the wide path."""
    long = times(list(range(0, 3_000_000, 3)), Fraction(1, 90000), last=3)
    for fps, start in ((Fraction(7001, 3), None), (Fraction(29999, 1000), 3.3333333333333335)):
        got = pick(long, FrameSampling("fps", fps), "id", TimeRange.of(start, None)).ordinals
        begin = Fraction(repr(start)) if start else Fraction(0)
        for i in range(0, len(got), max(len(got) // 50, 1)):
            assert got[i] == (begin + i / fps) * 90000 // 3
    assert len(pick(long, ClipSampling(16, hop=1), "id", TimeRange())) == 1_000_000 - 15


def test_absurd_durations_are_refused_not_allocated() -> None:
    broken = times([0, 1 << 61], Fraction(1, 10))
    with pytest.raises(MediaError) as caught:
        ordinals(broken, "fps:30")
    assert caught.value.error_class == "too_large"
    assert uniform(1 << 40, 2).tolist() == [1 << 38, 3 << 38]


_DAY_S = 24 * 60 * 60
_SECONDS = Fraction(1)
_BY_TIME = ClipSampling(16, fps=Fraction(15))


def test_few_frames_that_are_shown_for_weeks_are_refused() -> None:
    two = times([0, 1_800_000], _SECONDS)
    with pytest.raises(MediaError) as caught:
        ordinals(two, "fps:1")
    assert caught.value.error_class == "too_large"
    assert str(caught.value) == (
        "1800001 clips of 2 frames, each taken 900000 times; an item of more than 100000 clips may take a frame 1000 "
        "times on average, use a lower rate or a shorter range"
    )
    with pytest.raises(MediaError, match="112500 clips of 1 frames, each taken 1800000 times") as caught:
        ordinals(two, _BY_TIME, 0.0, 120_000.0)
    assert caught.value.error_class == "too_large"
    many_at_first = times([*range(100_000), 3_000_000_000], Fraction(1, 1000))
    with pytest.raises(MediaError, match="3000001 clips of 102 frames"):
        ordinals(many_at_first, "fps:1")


@pytest.mark.parametrize(
    ("of", "sampling", "num_clips"),
    [
        (times([0, 3599], _SECONDS), "fps:1", 3600),
        (times([0, 3599], _SECONDS), _BY_TIME, 3375),
        (times([0, _DAY_S - 1], _SECONDS), "fps:1", 86_400),
        (times([0, _DAY_S - 1], _SECONDS), _BY_TIME, 81_000),
        (times(list(range(25 * _DAY_S)), Fraction(1, 25)), "fps:25", 2_160_000),
        (times(list(range(0, 25 * _DAY_S, 25 * 30)), Fraction(1, 25), last=750), "fps:25", 2_160_000),
    ],
)
def test_stills_of_a_day_and_long_recordings_are_taken(
    of: FrameTimes, sampling: str | Sampling, num_clips: int
) -> None:
    parsed = FrameSampling.parse(sampling) if isinstance(sampling, str) else sampling
    assert len(pick(of, parsed, "id", TimeRange())) == num_clips


def test_sampling_loads_neither_decoder_nor_torch() -> None:
    code = "import sys, featlib.media.sampling; print(sorted({'av', 'torch', 'PIL', 'ray'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_picks_of_a_frame_model_hold_one_frame_each() -> None:
    picks = Picks(np.array([3, 5, 5]), np.arange(3))
    assert picks.clip_ordinals(1, 3).tolist() == [[5], [5]]
    assert picks.unique_ordinals(0, 3).tolist() == [3, 5]
    assert picks.first_ordinals().tolist() == [3, 5, 5]
