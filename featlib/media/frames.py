"""Decoding one stretch of a video: frames in presentation order, each told by its ordinal, none of them guessed."""

import errno
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from featlib.errors import MediaError
from featlib.media.bitstream import can_skip_unreferred
from featlib.media.index import PacketIndex
from featlib.media.open import AV_ERRORS, said
from featlib.media.plan import Run
from featlib.media.reading import VideoReader
from featlib.media.times import NO_PTS, Bools, Int64s

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
        num_wanted: Of these, that were wanted and sound; counted by who reads them.
        damaged: Packet spans ``[first, stop)`` whose frames are lost or show wrong pixels; apart, in order.
        message: About the first damage.
        reached_end: The stream was read to its end.
    """

    num_frames: int = 0
    num_wanted: int = 0
    damaged: list[tuple[int, int]] = field(default_factory=list)
    message: str | None = None
    reached_end: bool = False

    def lose(self, first: int, stop: int) -> None:
        """Adds a span; none ends before those that are known."""
        while self.damaged and first <= self.damaged[-1][1]:
            first = min(first, self.damaged.pop()[0])
        self.damaged.append((first, stop))

    def is_lost(self, packet_of: Int64s) -> npt.NDArray[np.bool_]:
        """For frames that came from these packets: whether their pixels are not to be trusted."""
        firsts, stops = np.array([(-1, -1), *self.damaged]).T
        lost: npt.NDArray[np.bool_] = packet_of < stops[np.searchsorted(firsts, packet_of, "right") - 1]
        return lost


class NoKeyframeError(Exception):
    """A run began at a packet that is said to be a keyframe and is none: its frames may look like anything."""


def decode_run(
    reader: VideoReader, index: PacketIndex, run: Run, report: DecodeReport, is_wanted: Bools | None = None
) -> "Iterator[tuple[int, VideoFrame]]":
    """Yields (ordinal, frame) for every sound frame that is decoded from the run's keyframe to its last frame.

    Args:
        is_wanted: By packet, whether its frame must come; what no other frame needs is then not decoded. None for all.

    Raises:
        MediaError: As ``open_video``.
        TablesDifferError: The index is not that of the packets.
        NoKeyframeError: The run begins in the middle of a group of pictures.
        FeatlibError: What the store raised.
    """
    packets = reader.packets_from(index, run.start_packet)
    if is_wanted is not None and not can_skip_unreferred(
        index.packets.codec, reader.video.stream.codec_context.extradata
    ):
        is_wanted = None
    yield from _RunDecoder(reader, index, run, report, is_wanted).frames(packets)


class _RunDecoder:
    """Feeds packets, maps frames to ordinals, and after damage leaves out frames until a keyframe decodes cleanly."""

    def __init__(
        self, reader: VideoReader, index: PacketIndex, run: Run, report: DecodeReport, is_wanted: Bools | None
    ) -> None:
        self._video = reader.video
        self._max_pixels = reader.max_pixels
        self._context = self._video.stream.codec_context
        self._index = index
        self._run = run
        self._report = report
        self._is_wanted = is_wanted
        self._is_unreferred_skipped = False
        # Where the container alone says what a keyframe is, it may be wrong.
        starts_late = run.start_packet > 0 and not index.is_counted
        self._first_pts = int(index.packets.pts[run.start_packet]) if starts_late else NO_PTS  # until it was looked at
        self._floor_pts = NO_PTS  # frames shown before it refer to frames that were not decoded
        self._is_skipping = False
        self._num_counted = 0
        self._is_filled = index.is_filled
        self._next_ordinal = len(index.times) if starts_late else 0  # nearly always the frame that comes

    def frames(self, packets: "NumberedPackets") -> "Iterator[tuple[int, VideoFrame]]":
        if self._context.is_open:  # an earlier run may have drained it
            self._context.flush_buffers()
        self._context.skip_frame = "DEFAULT"
        position = -1
        for position, packet in self._readable(packets):
            if not self._accepts(position):
                continue
            self._skip_unless(self._is_wanted is None or bool(self._is_wanted[position]))
            for ordinal, frame in self._decoded(position, packet):
                yield ordinal, frame
                if ordinal + 1 >= self._run.stop_frame:
                    return
        if not self._is_skipping:
            self._skip_unless(True)
            yield from self._decoded(position, None)
        if self._first_pts != NO_PTS:
            raise NoKeyframeError

    def _skip_unless(self, is_wanted: bool) -> None:
        """A picture that no other refers to is not decoded where nobody wants it: the others come out the same."""
        if is_wanted == self._is_unreferred_skipped:
            self._is_unreferred_skipped = not is_wanted
            self._context.skip_frame = "DEFAULT" if is_wanted else "NONREF"

    def _readable(self, packets: "NumberedPackets") -> "NumberedPackets":
        is_first = True
        try:
            for position, packet in packets:
                if position < self._run.start_packet:
                    continue
                if is_first and position:
                    self._floor_pts = int(self._index.packets.pts[position])
                is_first = False
                yield position, packet
                if position + 1 >= self._run.stop_packet:
                    break
            self._report.reached_end = True
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
            self._check_begin(frame)
            ordinal = self._ordinal(frame)
            if ordinal is None:
                continue
            if frame.is_corrupt:
                self._give_up(int(self._index.packet_of[ordinal]), position, "the decoder met damaged data")
                return
            yield ordinal, frame

    def _check_begin(self, frame: "VideoFrame") -> None:
        """Of the frames that are shown from the first packet on, its own must come first, and be a keyframe.

        In a stream that is refreshed bit by bit (x264's ``intra-refresh``) FFmpeg holds it back, with all frames up to
        the one that the encoder says is whole again, and that one need not be.
        """
        if self._first_pts == NO_PTS or frame.pts is None or frame.pts < self._first_pts:
            return
        if frame.pts > self._first_pts or not frame.key_frame:
            raise NoKeyframeError
        self._first_pts = NO_PTS

    def _check_refused(self, error: BaseException) -> None:
        """A decoder answers EINVAL to a frame over ``max_pixels``; then no size was ever learned."""
        if getattr(error, "errno", None) == errno.EINVAL and not self._context.width:
            raise MediaError("too_large", f"frames of more pixels than the limit of {self._max_pixels}") from error

    def _ordinal(self, frame: "VideoFrame") -> int | None:
        pts = self._index.times.pts
        if self._index.is_counted:
            self._num_counted += 1
            return self._num_counted - 1 if self._num_counted <= len(pts) else None
        ordinal = self._next_ordinal
        if frame.pts is None:
            is_next = ordinal < len(pts) and bool(self._is_filled[ordinal])
            self._next_ordinal += is_next
            return ordinal if is_next else None
        if frame.pts < self._floor_pts:
            return None
        if ordinal >= len(pts) or pts[ordinal] != frame.pts:
            ordinal = int(np.searchsorted(pts, frame.pts))
        is_known = ordinal < len(pts) and bool(pts[ordinal] == frame.pts)
        self._next_ordinal = ordinal + is_known
        return ordinal if is_known else None

    def _give_up(self, first: int, position: int, why: str) -> None:
        """Everything from packet ``first`` to the next keyframe behind ``position`` is lost."""
        if not self._index.is_counted:
            self._report.lose(first, self._index.key_after(position))
        if self._report.message is None:
            self._report.message = f"decoding broke off at {self._time_s(first):g} s ({why})"
        self._is_skipping, self._first_pts = True, NO_PTS
        self._next_ordinal = len(self._index.times)
        self._context.flush_buffers()

    def _time_s(self, packet: int) -> float:
        times = self._index.times
        if self._index.is_counted:
            ordinal = min(self._num_counted, len(times) - 1)
            return float(int(times.pts[ordinal]) * times.time_base)
        packet_of = self._index.packet_of
        ordinal = int(np.argmax(np.where(packet_of <= packet, packet_of, -1)))  # a packet may have no time of its own
        return float(int(times.pts[ordinal]) * times.time_base)
