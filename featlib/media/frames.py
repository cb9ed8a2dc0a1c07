"""Decoding one stretch of a video: frames in presentation order, each told by its ordinal, none of them guessed."""

import errno
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from featlib.errors import MediaError
from featlib.media.index import NO_PTS, PacketIndex
from featlib.media.open import AV_ERRORS, OpenVideo, open_video, said
from featlib.media.plan import Run
from featlib.media.source import Source
from featlib.media.times import Int64s

if TYPE_CHECKING:
    from av.packet import Packet
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

    NumberedPackets = Iterator[tuple[int, Packet[VideoStream]]]


@dataclass
class DecodeReport:
    """What happened while a run was decoded.

    Args:
        num_frames: That came out of the decoder.
        damaged: Packet spans ``[first, stop)`` whose frames are lost or show wrong pixels.
        message: About the first damage.
        reached_end: The stream was read to its end.
    """

    num_frames: int = 0
    damaged: list[tuple[int, int]] = field(default_factory=list)
    message: str | None = None
    reached_end: bool = False

    def is_lost(self, packet_of: Int64s) -> npt.NDArray[np.bool_]:
        """For frames that came from these packets: whether their pixels are not to be trusted."""
        lost = np.zeros(len(packet_of), dtype=np.bool_)
        for first, stop in self.damaged:
            lost |= (packet_of >= first) & (packet_of < stop)
        return lost


def decode_run(
    source: Source,
    index: PacketIndex,
    run: Run,
    max_pixels: int,
    report: DecodeReport,
    progress: Callable[[], None],
) -> "Iterator[tuple[int, VideoFrame]]":
    """Yields (ordinal, frame) for every sound frame from the run's keyframe to its last frame.

    Raises:
        MediaError: As ``open_video``.
        FeatlibError: What the store raised.
    """
    if run.start_packet:
        with open_video(source, max_pixels, progress) as video:
            packets = _landed(video, index, run.start_packet)
            if packets is not None:
                yield from _RunDecoder(video, index, run, max_pixels, report).frames(packets)
                return
    with open_video(source, max_pixels, progress) as video:
        packets = _numbered(video.container.demux(video.stream), 0)
        yield from _RunDecoder(video, index, run, max_pixels, report).frames(packets)


class _RunDecoder:
    """Feeds packets, maps frames to ordinals, and after damage leaves out frames until a keyframe decodes cleanly."""

    def __init__(self, video: OpenVideo, index: PacketIndex, run: Run, max_pixels: int, report: DecodeReport) -> None:
        self._video = video
        self._max_pixels = max_pixels
        self._context = video.stream.codec_context
        self._index = index
        self._run = run
        self._report = report
        self._floor_pts = NO_PTS  # frames shown before it refer to frames that were not decoded
        self._is_skipping = False
        self._num_counted = 0

    def frames(self, packets: "NumberedPackets") -> "Iterator[tuple[int, VideoFrame]]":
        position = -1
        for position, packet in self._readable(packets):
            if not self._accepts(position):
                continue
            for ordinal, frame in self._decoded(position, packet):
                yield ordinal, frame
                if ordinal + 1 >= self._run.stop_frame:
                    return
        self._report.reached_end = True
        if not self._is_skipping:
            yield from self._decoded(position, None)

    def _readable(self, packets: "NumberedPackets") -> "NumberedPackets":
        is_first = True
        try:
            for position, packet in packets:
                if position >= len(self._index.packets.pts):
                    break
                if is_first and position:
                    self._floor_pts = int(self._index.packets.pts[position])
                is_first = False
                yield position, packet
        except MemoryError:
            raise
        except AV_ERRORS as error:
            if self._index.packets.failure is None:
                self._report.message = self._report.message or f"reading broke off ({said(error)})"
        if self._video.reader.failure is not None:
            raise self._video.reader.failure

    def _accepts(self, position: int) -> bool:
        packets = self._index.packets
        if self._is_skipping:
            if self._index.is_counted or not packets.is_key[position]:
                return False
            self._is_skipping, self._floor_pts = False, int(packets.pts[position])
        if packets.is_damaged[position]:
            self._give_up(position, position, "bytes are missing")
            return False
        return True

    def _decoded(self, position: int, packet: "Packet[VideoStream] | None") -> "Iterator[tuple[int, VideoFrame]]":
        try:
            frames = self._context.decode(packet)
        except MemoryError:
            raise
        except AV_ERRORS as error:
            self._check_refused(error)
            self._give_up(position, position, said(error))
            return
        for frame in frames:
            self._report.num_frames += 1
            ordinal = self._ordinal(frame)
            if ordinal is None:
                continue
            if frame.is_corrupt:
                self._give_up(int(self._index.packet_of[ordinal]), position, "the decoder met damaged data")
                return
            yield ordinal, frame

    def _check_refused(self, error: BaseException) -> None:
        """A decoder answers EINVAL to a frame over ``max_pixels``; then no size was ever learned."""
        if getattr(error, "errno", None) == errno.EINVAL and not self._context.width:
            raise MediaError("too_large", f"frames of more pixels than the limit of {self._max_pixels}") from error

    def _ordinal(self, frame: "VideoFrame") -> int | None:
        pts = self._index.times.pts
        if self._index.is_counted:
            self._num_counted += 1
            return self._num_counted - 1 if self._num_counted <= len(pts) else None
        if frame.pts is None or frame.pts < self._floor_pts:
            return None
        ordinal = int(np.searchsorted(pts, frame.pts))
        return ordinal if ordinal < len(pts) and pts[ordinal] == frame.pts else None

    def _give_up(self, first: int, position: int, why: str) -> None:
        """Everything from packet ``first`` to the next keyframe behind ``position`` is lost."""
        if not self._index.is_counted:
            self._report.damaged.append((first, self._index.key_after(position)))
        if self._report.message is None:
            self._report.message = f"decoding broke off at {self._time_s(first):g} s ({why})"
        self._is_skipping = True
        self._context.flush_buffers()

    def _time_s(self, packet: int) -> float:
        times = self._index.times
        if self._index.is_counted:
            ordinal = min(self._num_counted, len(times) - 1)
            return float(int(times.pts[ordinal]) * times.time_base)
        return float(int(self._index.packets.pts[packet]) * times.time_base)


def _landed(video: OpenVideo, index: PacketIndex, target: int) -> "NumberedPackets | None":
    """Packets from a keyframe at or before ``target``, or None when seeking does not get there.

    Seeking goes by decode time in some containers and by presentation time in others, and a damaged index leads
    anywhere: the packet that comes is looked up by its times and size.
    """
    packets = index.packets
    earlier = np.flatnonzero(packets.is_key[:target])
    ticks = [int(packets.pts[target]), int(packets.dts[target])]
    if len(earlier):
        ticks.append(int(packets.dts[earlier[-1]]))
    for tick in ticks:
        if tick == NO_PTS:
            continue
        try:
            video.container.seek(tick, stream=video.stream)
            demuxed = video.container.demux(video.stream)
            packet = next(p for p in demuxed if p.size)
        except MemoryError:
            raise
        except (*AV_ERRORS, StopIteration):
            continue
        position = _position(index, packet)
        if position is not None and position <= target and packets.is_key[position]:
            return _numbered(chain([packet], demuxed), position)
    return None


def _position(index: PacketIndex, packet: "Packet[VideoStream]") -> int | None:
    packets = index.packets
    same = (packets.pts == (NO_PTS if packet.pts is None else packet.pts)) & (packets.size == packet.size)
    if packet.dts is not None:  # unknown behind a jump in Matroska
        same &= packets.dts == packet.dts
    found = np.flatnonzero(same)
    return int(found[0]) if len(found) == 1 else None


def _numbered(packets: "Iterable[Packet[VideoStream]]", first: int) -> "NumberedPackets":
    return enumerate((packet for packet in packets if packet.size), first)
