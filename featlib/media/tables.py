"""The packets of an MP4 or MOV from its own tables: exact times of all frames without reading one of them."""

from typing import TYPE_CHECKING

import numpy as np

from featlib.media.boxes import MAX_SAMPLES, SampleTable, sample_table
from featlib.media.envelope import missing_bytes
from featlib.media.fields import SecondFields
from featlib.media.index import PacketIndex, Packets, timed
from featlib.media.open import OpenVideo
from featlib.media.source import Source
from featlib.media.times import Int64s

if TYPE_CHECKING:
    from av.packet import Packet
    from av.video.stream import VideoStream

# Their packets are the container's samples one by one; for others FFmpeg may split samples or move times.
_CODECS = frozenset({"h264", "hevc", "av1", "mpeg4", "mjpeg", "prores", "dnxhd"})
_KEYFRAME, _DISCARD = 1, 2  # AVIndexEntry.flags: AVINDEX_KEYFRAME, AVINDEX_DISCARD_FRAME


def table_index(video: OpenVideo, source: Source, first: "Packet[VideoStream]") -> PacketIndex | None:
    """The index of a whole and plain file, or None where only reading the packets can tell.

    FFmpeg's own entries say when each sample is decoded, after edit lists; the file's table adds how much later it is
    shown. The first packet must confirm both.

    Args:
        first: The first packet of the stream.
    """
    if not video.format.startswith("mov,") or video.codec not in _CODECS or source.size is None:
        return None
    if video.codec == "h264" and SecondFields(video.stream.codec_context.extradata).may_occur:
        return None  # only a sample's bytes tell whether it is a frame or a field
    entries = video.stream.index_entries
    if not 0 < len(entries) <= MAX_SAMPLES:
        return None
    rows = [(entry.timestamp, entry.size, entry.flags, entry.pos) for entry in entries]
    dts, size, flags, offset = np.array(rows, dtype=np.int64).T.copy()
    is_whole = bool((size > 0).all() and (offset >= 0).all() and (offset + size <= source.size).all())
    if not is_whole or (flags & _DISCARD).any() or (np.diff(dts) < 0).any() or missing_bytes(source):
        return None
    table = sample_table(source, video.stream.id)
    if table is None or len(table.offsets) != len(dts):
        return None
    packets = _packets(video.codec, dts, size, (flags & _KEYFRAME) != 0, offset, table)
    if not is_packet(packets, 0, first) or first.duration != packets.duration[0]:
        return None
    index = timed(video, packets, None)
    return None if index.is_counted else PacketIndex(index.times, packets, index.packet_of, False, None, True)


def _packets(codec: str, dts: Int64s, size: Int64s, is_key: np.ndarray, offset: Int64s, table: SampleTable) -> Packets:
    shift = max(-int(table.offsets.min()), 0)  # as FFmpeg's mov.c, so that no frame is shown before it is decoded
    return Packets(
        pts=dts + table.offsets + shift,
        dts=dts,
        size=size,
        duration=table.durations,
        is_key=is_key,
        is_damaged=np.zeros(len(dts), dtype=np.bool_),
        num_frames=np.ones(len(dts), dtype=np.int64),
        offset=offset,
        codec=codec,
        vop_types="",
        failure=None,
    )


def is_packet(packets: Packets, position: int, packet: "Packet[VideoStream]") -> bool:
    """Whether the packet that was read is the one that the index has at ``position``.

    A packet may be a keyframe that the tables do not flag. The other way round, decoding could not begin at it.
    """
    return position < len(packets.pts) and bool(
        (packet.is_keyframe or not packets.is_key[position])
        and packet.pts == packets.pts[position]
        and packet.dts == packets.dts[position]
        and packet.size == packets.size[position]
    )
