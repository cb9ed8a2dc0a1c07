"""When each frame of a video is shown, in the stream's own ticks; no floating point until a value is handed out."""

from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import numpy.typing as npt

Int64s = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

NO_PTS = np.iinfo(np.int64).min  # in place of a tick that nobody knows
_EXACT_FLOAT = 1 << 53


@dataclass(frozen=True)
class FrameTimes:
    """The frames of a video in presentation order.

    Args:
        pts: (num_frames,) first tick of each frame, ascending.
        end_pts: Tick after the last frame's presentation.
        is_keyframe: (num_frames,) whether decoding can begin here.
        time_base: Seconds a tick.
    """

    pts: Int64s
    end_pts: int
    is_keyframe: Bools
    time_base: Fraction

    def __post_init__(self) -> None:
        if self.pts.shape != self.is_keyframe.shape or self.pts.ndim != 1:
            raise ValueError(f"frame times: {self.pts.shape} times and {self.is_keyframe.shape} key flags must match")
        if self.time_base <= 0:
            raise ValueError(f"frame times: time_base ({self.time_base}) must be above 0")

    def __len__(self) -> int:
        return len(self.pts)

    def starts_s(self, ordinals: Int64s) -> list[float]:
        """Seconds at which the frames are first shown, correctly rounded."""
        return seconds(self.pts[ordinals], self.time_base)

    def ends_s(self, ordinals: Int64s) -> list[float]:
        """Seconds at which the next frame is shown, or the presentation ends."""
        following = np.append(self.pts[1:], np.int64(self.end_pts))
        return seconds(following[ordinals], self.time_base)

    @property
    def duration_s(self) -> float:
        """From the first frame's start to the last frame's end."""
        return float((self.end_pts - int(self.pts[0])) * self.time_base) if len(self.pts) else 0.0

    def first_at_or_after(self, time_s: Fraction) -> int:
        """Ordinal of the first frame whose time is not before ``time_s``; the frame count when there is none."""
        return int(np.searchsorted(self.pts, _clamp(_ceil(time_s / self.time_base)), side="left"))

    def shown_at(self, time_s: Fraction) -> int:
        """Ordinal of the frame on the screen at ``time_s``; -1 before the first."""
        return int(np.searchsorted(self.pts, self.tick_at(time_s), side="right")) - 1

    def tick_at(self, time_s: Fraction) -> int:
        """The last tick that is not behind ``time_s``, within 64 bits."""
        return _clamp((time_s / self.time_base).__floor__())

    def shown_every(self, start_s: Fraction, step_s: Fraction, count: int) -> Int64s:
        """Ordinals of the frames shown at ``start_s + i * step_s`` for i below ``count``, exactly."""
        ticks = _floors(start_s / self.time_base, step_s / self.time_base, count)
        return np.searchsorted(self.pts, ticks, side="right").astype(np.int64) - 1


def seconds(ticks: Int64s, time_base: Fraction) -> list[float]:
    """Ticks as seconds, each the float nearest to the exact value."""
    most = int(np.abs(ticks).max()) if len(ticks) else 0
    if most * time_base.numerator < _EXACT_FLOAT and time_base.denominator < _EXACT_FLOAT:
        values: list[float] = ((ticks * time_base.numerator) / time_base.denominator).tolist()
        return values
    return [float(int(tick) * time_base) for tick in ticks]


def _floors(first: Fraction, step: Fraction, count: int) -> Int64s:
    """floor(first + i * step) for i below ``count``; in 64 bits where that is exact, else in Python's integers."""
    scale = first.denominator * step.denominator
    whole, rest = divmod(first.numerator * step.denominator, scale)
    whole_step, rest_step = divmod(step.numerator * first.denominator, scale)
    fits = scale * (count + 1) < 1 << 62 and abs(whole) + whole_step * count < 1 << 62
    i = np.arange(count, dtype=np.int64 if fits else object)
    return np.asarray(whole + i * whole_step + (rest + i * rest_step) // scale, dtype=np.int64)


def _ceil(value: Fraction) -> int:
    return value.__ceil__()


def _clamp(tick: int) -> int:
    limits = np.iinfo(np.int64)
    return max(min(tick, limits.max), limits.min)
