"""The packets of one video wherever a stretch of it begins, with few openings and jumps and no second reading."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import chain, islice
from types import TracebackType
from typing import TYPE_CHECKING, Self

import numpy as np

from featlib.media.index import PacketIndex
from featlib.media.open import AV_ERRORS, OpenVideo, open_video
from featlib.media.source import Source
from featlib.media.tables import is_packet, table_index
from featlib.media.times import NO_PTS

if TYPE_CHECKING:
    from av.packet import Packet
    from av.video.stream import VideoStream

    NumberedPackets = Iterator[tuple[int, Packet[VideoStream]]]

KEPT_BYTES = 32 << 20  # of packets that are not read a second time
NEAR_BYTES = 64 << 10  # over a gap up to this one reads on rather than jump


class TablesDifferError(Exception):
    """The file holds other packets than its own tables say; only reading them tells which."""


class VideoReader:
    """One video, opened when first needed.

    Args:
        source: Read through this object alone.
        max_pixels: Most pixels in one frame.
        progress: Called at each read.
    """

    def __init__(self, source: Source, max_pixels: int, progress: Callable[[], None]) -> None:
        self.source = source
        self.max_pixels = max_pixels
        self.progress = progress
        self._opened = ExitStack()
        self._video: OpenVideo | None = None
        self._demuxed: Iterator[Packet[VideoStream]] = iter(())
        self._next: int | None = None  # which packet the next one of ``_demuxed`` is
        self._kept: list[Packet[VideoStream]] = []

    @property
    def video(self) -> OpenVideo:
        """Raises what ``open_video`` raises."""
        return self._video or self._open()

    def _open(self) -> OpenVideo:
        self._opened.close()
        self._video = self._opened.enter_context(open_video(self.source, self.max_pixels, self.progress))
        self._demuxed, self._next = self._video.container.demux(self._video.stream), 0
        return self._video

    def table_index(self) -> PacketIndex | None:
        """What the container's tables say, where they can be trusted."""
        video = self.video
        try:
            first = next((packet for packet in self._demuxed if packet.size), None)
        except MemoryError:
            raise
        except AV_ERRORS:
            first = None
        if video.reader.failure is not None:
            raise video.reader.failure
        if first is None:
            self._open()
            return None
        self._demuxed = chain([first], self._demuxed)
        return table_index(video, self.source, first)

    def all_packets(self) -> "Iterator[Packet[VideoStream]]":
        """The packets from the first on, for the index; kept while they are few, so that small files are read once."""
        if self._next != 0:
            self._open()
        self._next, num_bytes = None, 0
        for packet in self._demuxed:
            num_bytes += packet.size
            if packet.size and num_bytes <= KEPT_BYTES:
                self._kept.append(packet)
            elif packet.size:
                self._kept.clear()
            yield packet

    def expect(self, index: PacketIndex, spans: list[tuple[int, int]]) -> None:
        """Says which packets ``[start, stop)`` will be read, so that the store can fetch them beforehand.

        Only where the tables say where they lie; elsewhere there is one stream.
        """
        if not index.is_from_tables:
            return
        offset, size = index.packets.offset, index.packets.size
        ranges: list[tuple[int, int]] = []
        for first, stop in sorted((int(offset[a:b].min()), int((offset + size)[a:b].max())) for a, b in spans if a < b):
            if ranges and first <= ranges[-1][1] + NEAR_BYTES:
                first, stop = ranges[-1][0], max(ranges.pop()[1], stop)
            ranges.append((first, stop))
        self.source.expect(ranges)

    def packets_from(self, index: PacketIndex, start: int) -> "NumberedPackets":
        """(number, packet) in decode order, the first one at or before ``start``.

        Raises:
            TablesDifferError: While packets are taken, when they are not those of ``index``.
        """
        if self._kept:
            return enumerate(islice(self._kept, start, None), start)
        if self._next is None or not self._is_near(index, start):
            self._jump(index, start)
        return self._numbered(index)

    def _is_near(self, index: PacketIndex, start: int) -> bool:
        if self._next is None or self._next > start:
            return False
        if not 0 < self._next < start:
            return self._next == start
        offset, size = index.packets.offset, index.packets.size
        gap_bytes = int(offset[start] - offset[self._next - 1] - size[self._next - 1])
        return not index.is_from_tables or gap_bytes <= NEAR_BYTES

    def _jump(self, index: PacketIndex, start: int) -> None:
        """To the keyframe at ``start``; a container without tables is opened afresh, since it may lose its way."""
        self._demuxed = iter(())
        video = self.video if index.is_from_tables and self._next is not None else self._open()
        landed = _landed(video, index, start) if start or self._next != 0 else None
        if landed is not None:
            self._demuxed, self._next = landed
        elif start or self._next != 0:
            self._open()

    def _numbered(self, index: PacketIndex) -> "NumberedPackets":
        for packet in self._demuxed:
            if not packet.size:
                continue
            position = self._next or 0
            self._next = position + 1
            if index.is_from_tables and not is_packet(index.packets, position, packet):
                raise TablesDifferError
            yield position, packet

    def close(self) -> None:
        """Also before a fresh start: what is asked for next opens the video again."""
        self._kept.clear()
        self._demuxed, self._next, self._video = iter(()), None, None
        self._opened.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _landed(video: OpenVideo, index: PacketIndex, target: int) -> "tuple[Iterator[Packet[VideoStream]], int] | None":
    """Packets from a keyframe at or before ``target`` and its number, or None when seeking does not get there.

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
            return chain([packet], demuxed), position
    return None


def _position(index: PacketIndex, packet: "Packet[VideoStream]") -> int | None:
    packets = index.packets
    same = (packets.pts == (NO_PTS if packet.pts is None else packet.pts)) & (packets.size == packet.size)
    if packet.dts is not None:  # unknown behind a jump in Matroska
        same &= packets.dts == packet.dts
    found = np.flatnonzero(same)
    return int(found[0]) if len(found) == 1 else None
