"""How long a container says it is: FFmpeg ends quietly when a Matroska, AVI or transport stream was cut."""

import struct

from featlib.media.source import Source

_HEAD_BYTES = 4096
_EBML, _SEGMENT = 0x1A45DFA3, 0x18538067  # RFC 8794 section 11.2.1, RFC 9559 section 5.1
_TS_SYNC, _TS_PACKET_BYTES = 0x47, 188  # ISO/IEC 13818-1 section 2.4.3.2
_MAX_BOXES = 64


def missing_bytes(source: Source) -> int:
    """How many bytes the container promises beyond the object's end; 0 when it is whole or does not say."""
    if source.size is None:
        return 0
    head = source.head(_HEAD_BYTES)
    end = _promised_end(head, source)
    return max(end - source.size, 0)


def _promised_end(head: bytes, source: Source) -> int:
    if head[:4] == b"RIFF" and head[8:11] == b"AVI":
        return _riff_end(head)
    if head[:4] == _EBML.to_bytes(4, "big"):
        return _matroska_end(head)
    if head[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip"):
        return _boxes_end(source)
    if len(head) > _TS_PACKET_BYTES and head[0] == head[_TS_PACKET_BYTES] == _TS_SYNC:
        return -(-(source.size or 0) // _TS_PACKET_BYTES) * _TS_PACKET_BYTES
    return 0


def _riff_end(head: bytes) -> int:
    size = int.from_bytes(head[4:8], "little")
    return 0 if size >= 0x7FFFFFFF else size + 8  # writers that cannot seek back leave a maximum or 0


def _matroska_end(head: bytes) -> int:
    header_size, offset = _ebml_size(head, 4)
    if header_size is None:
        return 0
    offset += header_size
    if head[offset : offset + 4] != _SEGMENT.to_bytes(4, "big"):
        return 0
    segment_size, offset = _ebml_size(head, offset + 4)
    return 0 if segment_size is None else offset + segment_size


def _ebml_size(data: bytes, offset: int) -> tuple[int | None, int]:
    """An EBML length and where it ends; None for unknown, which live streams write (all ones)."""
    if offset >= len(data) or data[offset] == 0:
        return None, offset
    length = 9 - data[offset].bit_length()
    value = int.from_bytes(data[offset : offset + length], "big") & ((1 << 7 * length) - 1)
    return (None if value == (1 << 7 * length) - 1 else value), offset + length


def _boxes_end(source: Source) -> int:
    """End of the last top-level box of an MP4 (ISO/IEC 14496-12 section 4.2); a fragmented file has too many."""
    offset, end = 0, source.size or 0
    for _ in range(_MAX_BOXES):
        if offset >= end:  # by a size of up to 2^64: no place to look at
            return offset
        header = source.at(offset, 16)
        if len(header) < 8:
            return offset
        size = int.from_bytes(header[:4], "big")
        if size == 1 and len(header) == 16:
            (size,) = struct.unpack(">Q", header[8:16])
        if size < 8:  # 0: up to the end of the file
            return 0
        offset += size
    return 0
