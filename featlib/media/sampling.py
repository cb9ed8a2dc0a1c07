"""Which frames and clips a model sees: times and counts in, frame ordinals out, no decoder near it."""

import hashlib
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from featlib.errors import MediaError
from featlib.media.times import FrameTimes, Int64s
from featlib.sampling import ClipSampling, FrameSampling, Sampling

MAX_PICKS = 6_000_000  # by time; a day at 60 a second is 5,184,000
_MAX_REPEATS = 1000  # times that each frame is picked, on average over the frames that are picked at all
_FREE_CLIPS = 100_000  # of one item, however often they repeat its frames; a day at 1 a second is 86,400


@dataclass(frozen=True)
class TimeRange:
    """``[start_s, end_s)`` of a media item; None is the media's own start or end."""

    start_s: Fraction | None = None
    end_s: Fraction | None = None

    @classmethod
    def of(cls, start_s: float | None, end_s: float | None) -> "TimeRange":
        """Takes the numbers as they are written in a manifest: 0.1 is one tenth, not the float next to it."""
        return cls(_decimal(start_s), _decimal(end_s))

    def __str__(self) -> str:
        start = "start" if self.start_s is None else f"{float(self.start_s):g} s"
        end = "end" if self.end_s is None else f"{float(self.end_s):g} s"
        return f"from {start} to {end}"


@dataclass(frozen=True)
class Picks:
    """Clips as positions into a list of picked frames; a frame model's clips hold one frame.

    Args:
        ordinals: (num_picked,) frame ordinals, ascending; a frame occurs twice when time asks for it twice.
        starts: (num_clips,) position in ``ordinals`` of each clip's first frame, ascending.
        frames: In one clip.
        stride: Between neighbouring frames of a clip, in picked frames.
    """

    ordinals: Int64s
    starts: Int64s
    frames: int = 1
    stride: int = 1

    def __len__(self) -> int:
        return len(self.starts)

    def first_ordinals(self) -> Int64s:
        """(num_clips,) ordinal of each clip's first frame."""
        return self.ordinals[self.starts]

    def used_frames(self, first: int, last: int) -> Int64s:
        """(last - first,) how many frames clips ``[first, last)`` take before padding begins."""
        left = len(self.ordinals) - self.starts[first:last]
        return np.minimum(self.frames, -(-left // self.stride))

    def clip_ordinals(self, first: int, last: int) -> Int64s:
        """(last - first, frames) frame ordinals of clips ``[first, last)``, the last one repeated as padding."""
        steps = np.minimum(np.arange(self.frames), self.used_frames(first, last)[:, None] - 1)
        ordinals: Int64s = self.ordinals[self.starts[first:last, None] + steps * self.stride]
        return ordinals

    def unique_ordinals(self, first: int, last: int) -> Int64s:
        """Every frame that clips ``[first, last)`` use, once, ascending."""
        starts, used = self.starts[first:last], self.used_frames(first, last)
        needed = np.zeros(len(self.ordinals), dtype=np.bool_)
        for step in range(self.frames):
            needed[starts[used > step] + step * self.stride] = True
        return np.unique(self.ordinals[needed])


def pick(times: FrameTimes, sampling: Sampling, media_id: str, time_range: TimeRange) -> Picks:
    """The frames and clips that ``sampling`` takes from a video.

    Raises:
        MediaError: ``empty_range`` when the range holds no frame, ``too_large`` when there are more than
            ``MAX_PICKS`` frames to pick by time, or very many clips of very few frames.
    """
    if isinstance(sampling, ClipSampling):
        ordinals = _clip_frames(times, sampling.fps, time_range)
        picks = Picks(ordinals, clip_starts(len(ordinals), sampling), sampling.frames, sampling.stride)
    else:
        ordinals = _frames(times, sampling, media_id, time_range)
        picks = Picks(ordinals, np.arange(len(ordinals)))
    _check_repeats(picks)
    return picks


def _check_repeats(picks: Picks) -> None:
    """A file of a few frames that are said to be shown for weeks must not become millions of clips."""
    distinct = 1 + int(np.count_nonzero(np.diff(picks.ordinals)))
    repeats = len(picks.ordinals) // distinct
    if len(picks) > _FREE_CLIPS and repeats > _MAX_REPEATS:
        raise MediaError(
            "too_large",
            f"{len(picks)} clips of {distinct} frames, each taken {repeats} times; an item of more than {_FREE_CLIPS} "
            f"clips may take a frame {_MAX_REPEATS} times on average, use a lower rate or a shorter range",
        )


def frame_span(times: FrameTimes, time_range: TimeRange) -> tuple[int, int]:
    """Ordinals ``[low, high)`` that any sampling of the range can touch: segments are cut from these."""
    low = 0 if time_range.start_s is None else max(times.shown_at(time_range.start_s), 0)
    high = len(times) if time_range.end_s is None else times.first_at_or_after(time_range.end_s)
    return (low, high) if low < high else (0, 0)


def clip_starts(num_picked: int, sampling: ClipSampling) -> Int64s:
    """Positions at which clips begin among ``num_picked`` frames; too few for one clip give one, to be padded."""
    if num_picked < sampling.span:
        return np.zeros(1, dtype=np.int64)
    starts = np.arange(0, num_picked - sampling.span + 1, sampling.hop, dtype=np.int64)
    following = int(starts[-1]) + sampling.hop
    is_covered = int(starts[-1]) + sampling.span >= num_picked or following >= num_picked
    if sampling.tail == "drop" or is_covered:
        return starts
    return np.append(starts, following if sampling.tail == "pad" else num_picked - sampling.span)


def _frames(times: FrameTimes, sampling: FrameSampling, media_id: str, time_range: TimeRange) -> Int64s:
    if sampling.policy == "fps":
        return _by_time(times, _value(sampling), time_range)
    low, high = _counted(times, time_range)
    if sampling.policy == "keyframes":
        keys = low + np.flatnonzero(times.is_keyframe[low:high])
        if not len(keys):
            raise MediaError("empty_range", f"no keyframe {time_range}; use another frame sampling or range")
        return keys
    if sampling.policy == "every":
        return np.arange(low, high, min(int(_value(sampling)), high - low))
    if sampling.policy == "uniform":
        return low + uniform(high - low, int(_value(sampling)))
    if sampling.policy == "random":
        return low + seeded_choice(high - low, int(_value(sampling)), media_id)
    return np.arange(low, high)


def _clip_frames(times: FrameTimes, fps: Fraction | None, time_range: TimeRange) -> Int64s:
    if fps is not None:
        return _by_time(times, fps, time_range)
    return np.arange(*_counted(times, time_range))


def uniform(num_frames: int, count: int) -> Int64s:
    """floor((i + 1/2) n / K) for i below K; every frame once when there are fewer than K."""
    if num_frames <= count:
        return np.arange(num_frames)
    return (2 * np.arange(count, dtype=np.int64) + 1) * num_frames // (2 * count)


def seeded_choice(num_frames: int, count: int, seed: str) -> Int64s:
    """``count`` distinct ordinals below ``num_frames``, ascending, decided by the SHA-256 of ``seed`` alone."""
    if num_frames <= count:
        return np.arange(num_frames)
    start = np.uint64(int.from_bytes(hashlib.sha256(seed.encode()).digest()[:8], "little"))
    keys = _mixed(np.arange(num_frames, dtype=np.uint64), start)
    return np.sort(np.argsort(keys, kind="stable")[:count])


def _mixed(counter: npt.NDArray[np.uint64], start: np.uint64) -> npt.NDArray[np.uint64]:
    """SplitMix64 (Steele, Lea and Flood, OOPSLA 2014): integers only, so the same in every numpy."""
    state = start + (counter + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))


def _counted(times: FrameTimes, time_range: TimeRange) -> tuple[int, int]:
    low = 0 if time_range.start_s is None else times.first_at_or_after(time_range.start_s)
    high = len(times) if time_range.end_s is None else times.first_at_or_after(time_range.end_s)
    if low >= high:
        raise _empty(times, time_range)
    return low, high


def _by_time(times: FrameTimes, fps: Fraction, time_range: TimeRange) -> Int64s:
    if not len(times):
        raise _empty(times, time_range)
    start_s, end_s = int(times.pts[0]) * times.time_base, times.end_pts * times.time_base
    if time_range.start_s is not None:
        start_s = max(start_s, time_range.start_s)
    if time_range.end_s is not None:
        end_s = min(end_s, time_range.end_s)
    count = ((end_s - start_s) * fps).__ceil__()
    if count <= 0:
        raise _empty(times, time_range)
    if count > MAX_PICKS:
        raise MediaError(
            "too_large",
            f"{count} frames to pick at {float(fps):g} a second; the limit is {MAX_PICKS}, use a lower rate",
        )
    return times.shown_every(start_s, 1 / fps, count)


def _empty(times: FrameTimes, time_range: TimeRange) -> MediaError:
    if not len(times):
        return MediaError("no_frames", "the file holds no frame")
    first_s, last_s = times.starts_s(np.array([0, len(times) - 1]))
    return MediaError("empty_range", f"no frame {time_range}; the frames lie at {first_s:g} s to {last_s:g} s")


def _value(sampling: FrameSampling) -> Fraction:
    if sampling.value is None:
        raise ValueError(f"frame sampling {sampling.policy!r} needs a value; write {sampling.policy}:N")
    return sampling.value


def _decimal(value: float | None) -> Fraction | None:
    return None if value is None else Fraction(repr(float(value)))
