"""What to read of a video so that every model gets its frames and each frame is decoded once a segment."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from featlib.errors import MediaError
from featlib.media.bitstream import STEPPED_OVER
from featlib.media.index import PacketIndex
from featlib.media.limits import Limits
from featlib.media.sampling import Picks, TimeRange, frame_span, pick
from featlib.media.times import NO_PTS, FrameTimes, Int64s
from featlib.spec import MediaItem, PixelSpec, Segment, Want

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class LabelClips:
    """The clips ``[first, last)`` of one model that belong to this segment; numbers count over the whole item."""

    picks: Picks
    pixel_key: str
    first: int
    last: int


@dataclass(frozen=True)
class Run:
    """One stretch of decoding: packets ``[start_packet, stop_packet)``, until all frames below ``stop_frame`` came.

    The first packet is a keyframe or the first of the stream.
    """

    start_packet: int
    stop_packet: int
    stop_frame: int


@dataclass(frozen=True)
class ReadPlan:
    """One segment of one item.

    Args:
        segment: With ``n`` decided.
        low: First frame of the segment.
        high: Frame behind its last. A frame that is shown for long may make clips in segments before its own, too.
        clips: By model label; a label without frames in the range is missing.
        frames: By pixel spec key, the frame ordinals needed, ascending.
        wanted: All ordinals needed, ascending.
        runs: In order; empty when the segment needs no frame.
        whole: The one run over all frames of the segment, wanted or not.
        empty: Why labels are missing from ``clips``, by label.
    """

    segment: Segment
    low: int
    high: int
    clips: dict[str, LabelClips]
    frames: dict[str, Int64s]
    wanted: Int64s
    runs: tuple[Run, ...]
    whole: Run
    empty: dict[str, MediaError]

    def packet_spans(self, index: PacketIndex) -> list[tuple[int, int]]:
        """The packets ``[start, stop)`` that the runs need."""
        if self.runs != (self.whole,):
            return [(run.start_packet, run.stop_packet) for run in self.runs]
        start = self.whole.start_packet
        shown = index.packet_of[: self.whole.stop_frame]
        return [(start, int(shown.max()) + 1)]


@dataclass(frozen=True)
class Picked:
    """Sampling of all models over the whole item, before it is cut into segments.

    Args:
        low: First frame that any sampling can touch.
        high: Frame behind the last one.
        shares: (high - low + 1,) how much of the item lies before each frame, from 0 to 1.
    """

    low: int
    high: int
    shares: Floats
    picks: dict[str, Picks]
    empty: dict[str, MediaError]


def pick_all(index: PacketIndex, item: MediaItem, wants: tuple[Want, ...]) -> Picked:
    """Samples for every model.

    Raises:
        MediaError: No model gets a frame.
    """
    time_range = TimeRange.of(item.start_s, item.end_s)
    picks: dict[str, Picks] = {}
    empty: dict[str, MediaError] = {}
    for want in wants:
        try:
            picks[want.label] = pick(index.times, want.sampling, item.media_id, time_range)
        except MediaError as error:
            empty[want.label] = error
    if empty and not picks:
        raise next(iter(empty.values()))
    low, high = frame_span(index.times, time_range)
    return Picked(low, high, _shares(index.times, low, high, time_range), picks, empty)


def _shares(times: FrameTimes, low: int, high: int, time_range: TimeRange) -> Floats:
    """A third of an item are its frames, one its time and one its keyframes, so that no segment gets much more than its
    share of any.

    What is picked frame by frame, by time or by keyframes is so divided alike, whatever a model wants.
    """
    first = int(times.pts[low])
    end = int(times.pts[high]) if high < len(times) else times.end_pts
    if time_range.start_s is not None:
        first = max(first, times.tick_at(time_range.start_s))
    if time_range.end_s is not None:
        end = min(end, times.tick_at(time_range.end_s))
    ticks = np.append(times.pts[low:high].astype(np.float64), float(end))
    in_time = (np.clip(ticks, first, end) - float(first)) / max(end - first, 1)
    sums = np.arange(high - low + 1) / (high - low) + in_time + _shares_of_keyframes(times, low, high)
    shares: Floats = sums / sums[-1]
    return shares


def _shares_of_keyframes(times: FrameTimes, low: int, high: int) -> Floats:
    """A keyframe's share is divided among the frames up to the next: where they come evenly, as the frames' own."""
    keys = np.append(np.flatnonzero(times.is_keyframe), len(times))
    groups = np.interp(np.arange(low, high + 1), keys, np.arange(len(keys)))
    shares: Floats = (groups - groups[0]) / ((groups[-1] - groups[0]) or 1.0)
    return shares


def num_segments(
    index: PacketIndex, picked: Picked, wants: tuple[Want, ...], frame_bytes: dict[str, int], limits: Limits
) -> int:
    """How many segments keep the pixels of each below ``unit_bytes`` on average and below twice that in every one, but
    for what clips take beyond its last frame, and its clips within ``unit_clips``.

    Args:
        frame_bytes: By pixel spec key, bytes of one finished frame.
    """
    frames = _frames_by_key(wants, {label: LabelClips(p, "", 0, len(p)) for label, p in picked.picks.items()})
    total = sum(len(ordinals) * frame_bytes[key] for key, ordinals in frames.items())
    num_clips, num_frames = sum(map(len, picked.picks.values())), picked.high - picked.low
    n = max(min(-(-total // limits.unit_bytes), num_frames), -(-num_clips // limits.unit_clips), 1)
    while n < max(num_clips, num_frames):
        seams = [_seam(index, picked, k, n) for k in range(n + 1)]
        is_heavy = n < num_frames and _most_bytes(frames, frame_bytes, seams) > 2 * limits.unit_bytes
        is_long = n < num_clips and _most_clips(picked, seams) > limits.unit_clips
        if not is_heavy and not is_long:
            break
        n *= 2
    return n


def _most_clips(picked: Picked, seams: Sequence["_Seam"]) -> int:
    """In one segment, of all models together."""
    return int(np.diff(sum(_clips_before(picks, seams) for picks in picked.picks.values())).max())


def _most_bytes(frames: dict[str, Int64s], frame_bytes: dict[str, int], seams: Sequence["_Seam"]) -> int:
    """Of the frames that lie in one segment, in all preprocessings together."""
    ends = [seam.frame for seam in seams]
    before = sum(np.searchsorted(ordinals, ends) * frame_bytes[key] for key, ordinals in frames.items())
    return int(np.diff(before).max())


def read_plan(index: PacketIndex, picked: Picked, wants: tuple[Want, ...], segment: Segment) -> ReadPlan:
    """Cuts one segment out of the item and finds where to start decoding."""
    seams = [_seam(index, picked, k, segment.n) for k in (segment.k, segment.k + 1)]
    low, high = (seam.frame for seam in seams)
    clips = {}
    for want in wants:
        if want.label in picked.picks:
            picks = picked.picks[want.label]
            first, last = _clips_before(picks, seams)
            clips[want.label] = LabelClips(picks, want.pixels.key, int(first), int(last))
    frames = _frames_by_key(wants, clips)
    wanted = np.unique(np.concatenate([np.empty(0, dtype=np.int64), *frames.values()]))
    first, stop = (min(int(wanted[0]), low), max(int(wanted[-1]) + 1, high)) if len(wanted) else (low, high)
    whole = Run(start_packet(index, first) if stop > first else 0, len(index.packets.pts), stop)
    runs = _runs(index, wanted) if len(wanted) < stop - first and _can_step_over(index) else (whole,) * (stop > first)
    return ReadPlan(segment, low, high, clips, frames, wanted, runs, whole, picked.empty)


@dataclass(frozen=True)
class _Seam:
    """Where a segment begins.

    Args:
        frame: Its first frame.
        part: Of the clips that begin with this frame, how many belong to segments before, from 0 to 1.
    """

    frame: int
    part: float


def _seam(index: PacketIndex, picked: Picked, k: int, n: int) -> _Seam:
    """Where segment ``k`` begins: a keyframe near the place that would give all the same share, if there is one.

    Decoding can only begin at a keyframe, so a seam elsewhere makes frames be decoded twice. It must not depend on what
    models want: segments that were staged for some of them are joined with what is done later.
    """
    if k in (0, n):
        return _Seam(picked.high if k else picked.low, 0.0)
    shares, place = picked.shares, k / n
    if not index.is_counted:
        reach = 1 / (4 * n)  # less than half a segment: seams never meet, no segment is half as long again
        start, stop = np.searchsorted(shares[:-1], [place - reach, place + reach])
        keys = start + np.flatnonzero(index.times.is_keyframe[picked.low + start : picked.low + stop])
        if len(keys):
            return _Seam(picked.low + int(keys[np.argmin(np.abs(shares[keys] - place))]), 0.0)
    frame = int(np.searchsorted(shares, place, "right")) - 1
    part = (place - shares[frame]) / (shares[frame + 1] - shares[frame])
    return _Seam(picked.low + frame, float(part))


def _clips_before(picks: Picks, seams: Sequence[_Seam]) -> Int64s:
    """(num_seams,) how many clips of a model belong to segments before each seam."""
    first, frames = picks.first_ordinals(), [seam.frame for seam in seams]
    before = np.searchsorted(first, frames)
    with_frame = np.searchsorted(first, frames, "right") - before
    clips: Int64s = before + (with_frame * np.array([seam.part for seam in seams])).astype(np.int64)
    return clips


def _can_step_over(index: PacketIndex) -> bool:
    """Whether frames that nobody wants may stay undecoded.

    Not where frames are told apart by counting or by the frame before them, and not where the container shows damage
    or a cut: the outcome of such a file must not depend on the sampling. Damage that shows in the decoder alone is met,
    and the segment then read whole, where a wanted frame's group of pictures holds it; in the others nobody looks.
    """
    packets = index.packets
    is_sound = index.cut is None and packets.failure is None and not packets.is_damaged.any()
    is_told_alone = not index.is_counted and not index.is_filled.any()
    return is_sound and is_told_alone and packets.codec in STEPPED_OVER


def _runs(index: PacketIndex, wanted: Int64s) -> tuple[Run, ...]:
    """The stretches that hold all wanted frames, each from its keyframe to its last wanted packet."""
    starts, stops = start_packets(index, wanted), index.packets.stop_of(index.packet_of[wanted])
    runs: list[Run] = []
    for start in np.unique(starts).tolist():
        of_start = starts == start
        stop, stop_frame = int(stops[of_start].max()), int(wanted[of_start].max()) + 1
        if runs and start <= runs[-1].stop_packet:
            last = runs.pop()
            start, stop, stop_frame = last.start_packet, max(last.stop_packet, stop), max(last.stop_frame, stop_frame)
        runs.append(Run(start, stop, stop_frame))
    return tuple(runs)


def start_packet(index: PacketIndex, frame: int) -> int:
    """The last keyframe packet from which ``frame`` can be decoded."""
    return int(start_packets(index, np.array([frame]))[0])


def start_packets(index: PacketIndex, frames: Int64s) -> Int64s:
    """For each frame, the last keyframe packet from which it can be decoded; packet 0 where there is none.

    A frame that is decoded behind a keyframe but shown before it (open GOP) needs the keyframe before that one.
    """
    packets = index.packets
    keys = np.flatnonzero(packets.is_key & (packets.pts != NO_PTS))
    if index.is_counted or not len(keys):
        return np.zeros(len(frames), dtype=np.int64)
    behind, pts = index.packet_of[frames], index.times.pts[frames]
    num_before, key_pts = np.searchsorted(keys, behind, "right"), packets.pts[keys]
    if (np.diff(key_pts) > 0).all():
        last = np.minimum(num_before, np.searchsorted(key_pts, pts, "right")) - 1
    else:
        last = _last_at_most(key_pts, num_before, pts)
    return np.where(last >= 0, keys[np.maximum(last, 0)], 0)


def _last_at_most(values: Int64s, stops: Int64s, limits: Int64s) -> Int64s:
    """For each stop and limit, the last position below the stop whose value is at most the limit; -1 where none is.

    Looked for from the stop backwards over blocks of 1, 2, 4... values whose least is known, and then inside the first
    block that holds one: one after the other, a long file where two keyframes change places would take hours.
    """
    size = 1 << max(len(values) - 1, 1).bit_length()
    least = [np.append(values, np.full(size - len(values), np.iinfo(np.int64).max))]
    while len(least[-1]) > 1:
        least.append(least[-1].reshape(-1, 2).min(axis=1))
    ends, found_at = stops.copy(), np.full(len(stops), -1)
    for height, level in enumerate(least):
        rising = np.flatnonzero(found_at < 0)
        is_found = (ends[rising] % 2 == 1) & (level[ends[rising] - 1] <= limits[rising])
        found_at[rising[is_found]] = height
        ends[rising[~is_found]] //= 2
    for height in reversed(range(len(least) - 1)):
        inside = np.flatnonzero(found_at > height)
        ends[inside] *= 2
        ends[inside] -= least[height][ends[inside] - 1] > limits[inside]
    return ends - 1


def pixel_specs(wants: tuple[Want, ...]) -> dict[str, PixelSpec]:
    """The distinct preprocessings, by key."""
    return {want.pixels.key: want.pixels for want in wants}


def _frames_by_key(wants: tuple[Want, ...], clips: dict[str, LabelClips]) -> dict[str, Int64s]:
    by_key: dict[str, list[Int64s]] = {}
    for want in wants:
        if want.label in clips:
            part = clips[want.label]
            by_key.setdefault(want.pixels.key, []).append(part.picks.unique_ordinals(part.first, part.last))
    return {key: np.unique(np.concatenate(parts)) for key, parts in by_key.items()}
