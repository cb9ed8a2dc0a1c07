"""The packets of a video stream, read without decoding: which frames there are, when, and where decoding can begin."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import numpy.typing as npt

from featlib.errors import MediaError
from featlib.media.bitstream import coded_vops, display_order, vp8_is_shown
from featlib.media.envelope import lacking_end, missing_bytes, promised_s
from featlib.media.fields import SecondFields
from featlib.media.gaps import MOST_DELAYED, filled, is_wild
from featlib.media.open import AV_ERRORS, OpenVideo, last_end_s, said
from featlib.media.source import Source
from featlib.media.times import NO_PTS, Bools, FrameTimes, Int64s

if TYPE_CHECKING:
    from av.packet import Packet
    from av.video.stream import VideoStream

Scalar = TypeVar("Scalar", bound=np.generic)

_MOST_TICKS = 1 << 62
_MOST_SLACK_S, _MOST_SLACK_FRAMES = 1.0, 2


@dataclass(frozen=True)
class Packets:
    """All packets of the stream in decode order, as arrays of one length.

    Args:
        pts: Presentation ticks; ``NO_PTS`` where the packet has none.
        dts: Decoding ticks; the same.
        size: Bytes.
        duration: Ticks; 0 where the packet does not say.
        is_key: Flagged as a keyframe.
        is_damaged: The container says that bytes are missing in it.
        num_frames: Frames that the packet adds to the presentation: 0 for hidden, discarded and placeholder packets
            and for second fields.
        offset: Of the first byte in the file; -1 where the container does not say.
        codec: FFmpeg's canonical name.
        vop_types: The coded pictures, for MPEG-4 part 2 in AVI, or as AVI has it, only; else empty.
        failure: What stopped reading before the end, if anything did.
        is_second: The second field of the picture that the packet before it began; None where there are no such.
    """

    pts: Int64s
    dts: Int64s
    size: Int64s
    duration: Int64s
    is_key: Bools
    is_damaged: Bools
    num_frames: Int64s
    offset: Int64s
    codec: str
    vop_types: str
    failure: str | None
    is_second: Bools | None = None

    @cached_property
    def keys(self) -> Int64s:
        """Positions of the keyframes."""
        return np.flatnonzero(self.is_key)

    def stop_of(self, packets: Int64s) -> Int64s:
        """For pictures that begin in these packets, the packet behind their last one."""
        if self.is_second is None:
            return packets + 1
        behind: Int64s = np.append(self.is_second[1:], False)[packets] + (packets + 1)
        return behind


@dataclass(frozen=True)
class PacketIndex:
    """What is known of a video before a pixel is decoded.

    Args:
        times: The frames in presentation order.
        packets: In decode order.
        packet_of: (num_frames,) position in ``packets`` of each frame; approximate when ``is_counted`` and near
            packets without pts.
        is_counted: The decoder's frames are told apart by counting them, since their pts cannot be trusted; then
            decoding always begins at the first packet.
        cut: Why the file is known to be incomplete; None when nothing is missing.
        is_from_tables: Read from the container's tables and not from the packets; then those that are read later are
            compared with it, and packets that only their bytes show to be keyframes are not flagged.
    """

    times: FrameTimes
    packets: Packets
    packet_of: Int64s
    is_counted: bool
    cut: str | None
    is_from_tables: bool = False

    @property
    def is_filled(self) -> Bools:
        """(num_frames,) whether the frame's packet has no pts: then it is told by the frame before it."""
        missing: Bools = self.packets.pts[self.packet_of] == NO_PTS
        return missing

    def key_after(self, packet: int) -> int:
        """Position of the first keyframe packet behind ``packet``; the packet count when there is none."""
        keys = self.packets.keys
        following = int(np.searchsorted(keys, packet, "right"))
        return int(keys[following]) if following < len(keys) else len(self.packets.is_key)

    def first(self, num_frames: int) -> "PacketIndex":
        """The same with only the first ``num_frames`` frames."""
        end_pts = int(self.times.pts[num_frames]) if num_frames < len(self.times) else self.times.end_pts
        times = replace(
            self.times,
            pts=self.times.pts[:num_frames],
            end_pts=end_pts,
            is_keyframe=self.times.is_keyframe[:num_frames],
        )
        return replace(self, times=times, packet_of=self.packet_of[:num_frames])


def read_index(
    video: OpenVideo, source: Source, demuxed: "Iterable[Packet[VideoStream]]", progress: Callable[[], None]
) -> PacketIndex:
    """Reads all packets once.

    Args:
        demuxed: The packets, from the first on.

    Raises:
        MediaError: ``no_frames`` when the stream holds no packet that could be shown.
        FeatlibError: What the store raised.
    """
    packets = _read_packets(video, demuxed, progress)
    if not packets.num_frames.any():
        raise MediaError("no_frames", f"the file opens, but holds no frame ({packets.failure or 'no packets'})")
    cut = _cut(video, source, packets, progress)
    if cut is not None and video.codec == "gif":
        packets.is_damaged[-1] = True  # FFmpeg draws what there is of it and does not say so
    if is_timed_by_decoding(video) and _has_b_frames(video, packets):
        return _timed_by_decoding(video, packets, cut)
    return timed(video, packets, cut)


def is_timed_by_decoding(video: OpenVideo) -> bool:
    """Whether packets are timed in the order in which they are decoded: in AVI, and in Matroska for the tracks that
    it takes over from AVI (V_MS/VFW/FOURCC), which alone have a codec tag there."""
    if not video.format.startswith("matroska"):
        return video.format == "avi"
    try:
        return video.stream.codec_context.codec_tag.strip("\0") != ""
    except UnicodeDecodeError:
        return True


def _read_packets(video: OpenVideo, demuxed: "Iterable[Packet[VideoStream]]", progress: Callable[[], None]) -> Packets:
    rows: list[tuple[int, ...]] = []
    types: list[str] = []
    failure = None
    codec, is_avi = video.codec, is_timed_by_decoding(video)
    fields = _fields(video)
    try:
        for packet in demuxed:
            if not packet.size:
                continue
            num_frames = 0 if packet.is_discard else 1
            completes = fields is not None and fields.is_second(bytes(packet))
            if completes:
                num_frames = 0
            if codec == "mpeg4" and is_avi:
                types.append(coded_vops(bytes(packet)).types)
                num_frames = len(types[-1])
            elif codec == "vp8" and not vp8_is_shown(memoryview(packet)[0]):
                num_frames = 0
            rows.append(
                (
                    NO_PTS if packet.pts is None else packet.pts,
                    NO_PTS if packet.dts is None else packet.dts,
                    packet.size,
                    packet.duration or 0,
                    packet.is_keyframe,
                    packet.is_corrupt,
                    num_frames,
                    -1 if packet.pos is None else packet.pos,
                    completes,
                )
            )
            progress()
    except MemoryError:
        raise
    except AV_ERRORS as error:
        failure = said(error)
    if video.reader.failure is not None:
        raise video.reader.failure
    columns = np.array(rows, dtype=np.int64).reshape(-1, 9).T.copy()
    pts, dts, size, duration, is_key, is_damaged, frames, offset, is_second = columns
    if types and len(types[-1]) > 1:  # the second picture of a packed packet comes out with the packet behind it
        types[-1], frames[-1] = types[-1][:1], 1
    is_key &= 1 - is_second
    duration[:-1] *= 1 - is_second[1:]  # of a field, or of both: FFmpeg says now this, now that
    flags = is_key.astype(np.bool_), is_damaged.astype(np.bool_)
    seconds = is_second.astype(np.bool_) if is_second.any() else None
    return Packets(pts, dts, size, duration, *flags, frames, offset, codec, "".join(types), failure, seconds)


def _fields(video: OpenVideo) -> SecondFields | None:
    """None where all pictures are frames: said once for the whole file, but in streams that may be put together."""
    if video.codec != "h264":
        return None
    fields = SecondFields(video.stream.codec_context.extradata)
    return fields if fields.may_occur or video.format in ("mpegts", "mpeg") else None


def _cut(video: OpenVideo, source: Source, packets: Packets, progress: Callable[[], None]) -> str | None:
    if video.reader.ended_at is not None:
        return f"the store gave {video.reader.ended_at} of {source.size} bytes"
    missing = missing_bytes(source)
    if missing:
        return f"the file is {missing} bytes shorter than it says"
    if packets.failure is not None:
        return f"reading broke off ({packets.failure})"
    lacking = lacking_end(source)
    if lacking is not None:
        return f"the file ends before {lacking}"
    return _cut_by_time(video, source, packets, progress)


def _cut_by_time(video: OpenVideo, source: Source, packets: Packets, progress: Callable[[], None]) -> str | None:
    """What was promised may be rounded, hold the last frame for long, or be that of longer sound, which is looked at
    where frames alone do not reach it."""
    promise_s, ticks = promised_s(source), np.sort(packets.pts[packets.pts != NO_PTS])
    if not promise_s or not len(ticks):
        return None
    last = int(np.argmax(packets.pts))
    end_s = float(ticks[-1] + max(int(packets.duration[last]), 0)) * float(_time_base(video))
    slack_s = max(min(_MOST_SLACK_S, promise_s / 20), _MOST_SLACK_FRAMES * _shown_s(video, packets, ticks))
    if end_s + slack_s < promise_s and len(video.container.streams) > 1:
        end_s = max(end_s, last_end_s(video, source, progress))
    is_cut = end_s + slack_s < promise_s
    return f"the file ends after {end_s:.2f} of the {promise_s:.2f} s that it says" if is_cut else None


def _shown_s(video: OpenVideo, packets: Packets, ticks: Int64s) -> float:
    """How long the last frame may be shown: as the usual one, or as the one before it; longer pauses say nothing."""
    if len(ticks) < 2:
        return float(max(int(packets.duration.max()) * _time_base(video), _frame_s(video, packets)))
    apart = np.diff(ticks)
    return max(float(np.median(apart)), float(apart[-1])) * float(_time_base(video))


def _has_b_frames(video: OpenVideo, packets: Packets) -> bool:
    return "B" in packets.vop_types or (not packets.vop_types and bool(video.stream.codec_context.has_b_frames))


def timed(video: OpenVideo, packets: Packets, cut: str | None) -> PacketIndex:
    """Frames told apart by pts; falls back to counting where these are repeated, wild, or fewer than two are known."""
    shown = _without_leading(packets, np.flatnonzero(packets.num_frames > 0))
    if not len(shown):
        raise MediaError("no_frames", "the file opens, but none of its frames lies behind a keyframe")
    known = packets.pts[shown]
    ticks = filled(known) if (known == NO_PTS).any() else known
    if ticks is None:
        return _counted_at_rate(video, packets, packets.pts, cut)
    place = np.argsort(ticks, kind="stable")
    order, pts = shown[place], ticks[place]
    if (np.diff(pts) <= 0).any() or is_wild(ticks) or _begins_again(packets):
        return _counted_at_rate(video, packets, packets.pts, cut)
    end_pts = _end_pts(video, packets, pts, int(packets.duration[order[-1]]))
    times = _told_apart(pts, end_pts, packets.is_key[order], _time_base(video))
    return PacketIndex(times, packets, order, False, cut)


def _time_base(video: OpenVideo) -> Fraction:
    return video.stream.time_base or Fraction(1, 25)


def _timed_by_decoding(video: OpenVideo, packets: Packets, cut: str | None) -> PacketIndex:
    """Frame i is shown when the i-th packet is decoded; at the rate where packets hold other than one frame each."""
    shown = packets.num_frames > 0
    is_one_each = (shown if packets.is_second is None else shown | packets.is_second).all()
    ticks = np.sort(packets.dts[shown])
    if is_one_each and packets.num_frames.max() == 1 and ticks[0] != NO_PTS and (np.diff(ticks) > 0).all():
        last = int(np.argmax(np.where(shown, packets.dts, NO_PTS)))
        end_pts = _end_pts(video, packets, ticks, int(packets.duration[last]))
        return _counted(packets, ticks, end_pts, _time_base(video), cut)
    if video.format == "avi":
        return _counted_evenly(packets, _time_base(video), Fraction(0), cut)
    return _counted_at_rate(video, packets, packets.dts, cut)


def _counted_at_rate(video: OpenVideo, packets: Packets, ticks: Int64s, cut: str | None) -> PacketIndex:
    """From the first of ``ticks`` on that is known."""
    known = ticks[ticks != NO_PTS]
    start_s = (int(known[0]) if len(known) else 0) * _time_base(video)
    return _counted_evenly(packets, _frame_s(video, packets), start_s, cut)


def _frame_s(video: OpenVideo, packets: Packets) -> Fraction:
    """By the stream's rate; of fields in packets of their own that is the rate of fields, so their pts say it."""
    if packets.is_second is not None:
        second = np.flatnonzero(packets.is_second)
        both = packets.pts[[second - 1, second]]
        apart = np.abs(np.diff(both[:, (both != NO_PTS).all(axis=0)], axis=0))
        usual = float(np.median(apart)) if apart.size else 0.0
        if usual > 0:
            return 2 * Fraction(usual) * _time_base(video)
    rates = video.stream.average_rate, video.stream.guessed_rate
    return 1 / next((rate for rate in rates if rate is not None and rate > 0), Fraction(25))  # FLV says any number


def _without_leading(packets: Packets, shown: Int64s) -> Int64s:
    """Leaves out what no decoder can show: frames before the first keyframe of a stream cut out of a longer one.

    Of those that are decoded behind it only the next few: what comes later and is shown before belongs to a time line
    that jumps back. A keyframe that an edit leaves out has none.
    """
    keys = packets.keys
    if not len(keys):
        return shown
    first, stop = int(keys[0]), int(np.append(keys, len(packets.pts))[1])
    shown = shown[shown >= first]
    if packets.pts[first] == NO_PTS or not packets.num_frames[first]:
        return shown
    pts = packets.pts[shown]
    is_behind = shown >= min(stop, first + MOST_DELAYED)
    kept: Int64s = shown[is_behind | (pts >= packets.pts[first]) | (pts == NO_PTS)]
    return kept


def _begins_again(packets: Packets) -> bool:
    """Whether a keyframe is both decoded and shown before the one before it, as where recordings are joined."""
    keys = np.flatnonzero(packets.is_key & (packets.pts != NO_PTS) & (packets.dts != NO_PTS))
    return bool(((np.diff(packets.pts[keys]) < 0) & (np.diff(packets.dts[keys]) < 0)).any())


def _end_pts(video: OpenVideo, packets: Packets, pts: Int64s, duration: int) -> int:
    if duration <= 0 and len(pts) > 1:
        duration = int(np.median(np.diff(pts)))
    if duration <= 0:
        duration = max(round(_frame_s(video, packets) / _time_base(video)), 1)
    return int(pts[-1]) + duration


def _counted_evenly(packets: Packets, frame_s: Fraction, start_s: Fraction, cut: str | None) -> PacketIndex:
    """Frame i is shown at start + i * frame_s."""
    tick_s = Fraction(1, math.lcm(start_s.denominator, frame_s.denominator))
    first, step = int(start_s / tick_s), int(frame_s / tick_s)
    count = int(packets.num_frames.sum())
    _check_ticks(first, first + step * count, step, tick_s)
    pts = first + step * np.arange(count + 1, dtype=np.int64)
    return _counted(packets, pts[:-1], int(pts[-1]), tick_s, cut)


def _counted(packets: Packets, pts: Int64s, end_pts: int, time_base: Fraction, cut: str | None) -> PacketIndex:
    """Frame i is shown at ``pts[i]``, in the order in which the decoder gives them out."""
    packet_of = np.repeat(np.arange(len(packets.num_frames)), packets.num_frames)
    is_key = packets.is_key[packet_of]
    if packets.vop_types:
        is_key = np.array([kind == "I" for kind in packets.vop_types])
        position = np.array(display_order(packets.vop_types))
        is_key, packet_of = _placed(is_key, position), _placed(packet_of, position)
    times = _told_apart(pts, end_pts, is_key, time_base)
    return PacketIndex(times, packets, packet_of, True, cut)


def _told_apart(pts: Int64s, end_pts: int, is_key: Bools, time_base: Fraction) -> FrameTimes:
    """Raises MediaError where ``_check_ticks`` does."""
    least = min(end_pts - int(pts[-1]), int(np.diff(pts).min(initial=_MOST_TICKS)))
    _check_ticks(int(pts[0]), end_pts, least, time_base)
    return FrameTimes(pts, end_pts, is_key, time_base)


def _check_ticks(first: int, end: int, least: int, time_base: Fraction) -> None:
    """Raises MediaError where times ``least`` apart may be one as floats of seconds, or ticks overflow."""
    most = max(abs(first), abs(end))
    if most >= _MOST_TICKS or most >= least << 52:
        say = f"frames lie at {float(first * time_base):g} s to {float(end * time_base):g} s"
        raise MediaError("corrupt", f"{say}: too far from 0 for exact times")


def _placed(values: npt.NDArray[Scalar], position: Int64s) -> npt.NDArray[Scalar]:
    out = np.empty_like(values)
    out[position] = values
    return out
