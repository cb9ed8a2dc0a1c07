"""How long a container says it is: FFmpeg ends quietly when most of them were cut.

A transport stream says nothing but the length of its packets, a program stream nothing at all, a fragmented MP4 without
``sidx`` or ``mehd`` not how many fragments there are, Matroska as a stream not how many blocks, FLV as one not how many
tags: where these were cut between two of them, nobody can tell.
"""

import io
import math
import re
import struct

from featlib.media.flv import FLV, ends_with_tag, flv_end, flv_s
from featlib.media.matroska import EBML, matroska_end, matroska_s
from featlib.media.source import Source

_HEAD_BYTES = 4096
_TS_SYNC = 0x47
# Where the first sync byte stands and how far apart they are: ISO/IEC 13818-1 section 2.4.3.2, and as discs and
# camcorders have it, with four bytes of time before each packet.
_TS_PACKETS = ((0, 188), (4, 192))
_MOST_SYNCS = 4  # that are looked at; there may be fewer packets
_MAX_BOXES, _MAX_BOXES_IN_MEMORY = 64, 1 << 16  # elsewhere each may be a request
_MAX_SIDX_BYTES = 1 << 20
_BOX_HEADER_BYTES = 8
_TOP_BOXES = frozenset(
    b"ftyp styp moov moof mdat imda free skip wide pnot udta uuid meta meco mfra sidx ssix prft emsg pdin".split()
)
_ASF_HEADER, _ASF_DATA = (
    bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c"),
    bytes.fromhex("3626b2758e66cf11a6d900aa0062ce6c"),
)
_ASF_PROPERTIES = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")
_ASF_FLAGS_AT, _ASF_BROADCAST = 88, 1
_OGG_PAGE_BYTES = 27 + 255 * 256  # RFC 3533 section 6: the most in one
_OGG_LAST = 4
_GIFS = b"GIF87a", b"GIF89a"
_GIF_HEADER_BYTES, _GIF_EXTENSION, _GIF_IMAGE, _GIF_TRAILER = 13, 0x21, 0x2C, 0x3B  # GIF89a specification, appendix B


def missing_bytes(source: Source) -> int:
    """How many bytes the container promises beyond the object's end; 0 when it is whole or does not say."""
    if source.size is None:
        return 0
    head = source.head(_HEAD_BYTES)
    end = _promised_end(head, source)
    return max(end - source.size, 0)


def promised_s(source: Source) -> float:
    """How long the container says that it plays; 0 where it does not say, or where its bytes show that it is whole.

    Only what the writer put there: FFmpeg reckons a duration where there is none.
    """
    head = source.head(_HEAD_BYTES)
    if head[:3] == FLV:
        seconds = flv_s(head, source)
    elif head[:4] == EBML:
        seconds = matroska_s(head)
    else:
        seconds = _fragments_s(head) if head[4:8] == b"ftyp" else 0.0
    return seconds if 0 < seconds < math.inf else 0.0


def lacking_end(source: Source) -> str | None:
    """What a container without a length should end with, where the object ends before it; None where it does not."""
    head = source.head(_HEAD_BYTES)
    if source.size is None:
        return None
    if head[:4] == b"OggS" and not _is_last_page_marked(source):
        return "the page that is marked as its last"
    if head[:6] in _GIFS and not _has_gif_trailer(source):
        return "its trailer"
    if head[:3] == FLV and not ends_with_tag(head, source):
        return "the end of its last tag"
    return None


def _promised_end(head: bytes, source: Source) -> int:
    if head[:4] == b"RIFF" and head[8:11] == b"AVI":
        return _riff_end(head, source)
    if head[:4] == EBML:
        return matroska_end(head, source)
    if head[:3] == FLV:
        return flv_end(head)
    if head[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip"):
        return _boxes_end(source)
    if head[:16] == _ASF_HEADER:
        return _asf_end(head, source)
    if head[:4] == b"OggS":
        return _last_ogg_page(source)[2]
    return 0 if head[:6] in _GIFS else _ts_end(head, source)  # their G is a sync byte


def _ts_end(head: bytes, source: Source) -> int:
    """End of the last packet of a transport stream."""
    for first, length in _TS_PACKETS:
        syncs = head[first::length][:_MOST_SYNCS]
        if len(syncs) > 1 and set(syncs) == {_TS_SYNC}:
            return -(-(source.size or 0) // length) * length
    return 0


def _riff_end(head: bytes, source: Source) -> int:
    """End of the first list, or of the last of those that continue it in files of gigabytes (OpenDML)."""
    end = 0
    for _ in range(_MAX_BOXES):
        size = int.from_bytes(head[4:8], "little")
        if size >= 0x7FFFFFFF:  # writers that cannot seek back leave a maximum or 0
            return 0
        end += size + 8
        head = source.at(end, 12) if end < (source.size or 0) else b""
        if head[:4] + head[8:] != b"RIFFAVIX":
            break
    return end


def _fragments_s(head: bytes) -> float:
    """By ``mehd`` (ISO/IEC 14496-12 section 8.8.2), in the ticks of ``mvhd``."""
    mvhd, mehd = head.find(b"mvhd") + 4, head.find(b"mvex") + 12
    if mvhd < 4 or mehd < 12 or head[mehd - 4 : mehd] != b"mehd" or len(head) < mehd + 12:
        return 0.0
    ticks_a_s = int.from_bytes(head[mvhd + (20 if head[mvhd] else 12) :][:4], "big")
    stored = head[mehd + 4 :][: 8 if head[mehd] else 4]
    is_known = bool(ticks_a_s) and stored.strip(b"\xff") != b""  # as of mvhd, whose duration may be all ones
    return int.from_bytes(stored, "big") / ticks_a_s if is_known else 0.0


def _asf_end(head: bytes, source: Source) -> int:
    """End of the packets; indexes may follow (Advanced Systems Format Specification, section 5.1).

    What is marked as broadcast has no size that is valid (section 3.2).
    """
    properties = head.find(_ASF_PROPERTIES)
    flags = head[properties + _ASF_FLAGS_AT :][:4] if properties >= 0 else b""
    if int.from_bytes(flags, "little") & _ASF_BROADCAST:
        return 0
    start = int.from_bytes(head[16:24], "little")
    data = source.at(start, 24) if start < (source.size or 0) else b""
    return start + int.from_bytes(data[16:24], "little") if data[:16] == _ASF_DATA else 0


def _last_ogg_page(source: Source) -> tuple[bytes, int, int]:
    """The file's last bytes, where in them a page begins last (-1: nowhere), and where that page ends in the file."""
    first = max((source.size or 0) - _OGG_PAGE_BYTES, 0)
    tail = source.at(first, _OGG_PAGE_BYTES)
    at = tail.rfind(b"OggS\0")
    count = tail[at + 26] if 0 <= at < len(tail) - 26 else 0
    return tail, at, first + at + 27 + count + sum(tail[at + 27 :][:count])


def _is_last_page_marked(source: Source) -> bool:
    """True also where something else follows the page."""
    tail, at, end = _last_ogg_page(source)
    return at < 0 or end != source.size or bool(tail[at + 5] & _OGG_LAST)


def _has_gif_trailer(source: Source) -> bool:
    """By its blocks in memory, elsewhere by the last bytes that are not zero."""
    if isinstance(source.file, io.BytesIO):
        return _gif_reaches_trailer(source.file.getvalue())
    tail = source.at(max((source.size or 0) - _HEAD_BYTES, 0), _HEAD_BYTES).rstrip(b"\0")
    return tail[-1:] in (b"", bytes([_GIF_TRAILER]))


def _gif_reaches_trailer(data: bytes) -> bool:
    """True also where what follows is no block: that is damage, and something may be appended to a trailer."""
    at, not_zero = _GIF_HEADER_BYTES + _gif_colours_bytes(data, _GIF_HEADER_BYTES - 3), re.compile(rb"[^\0]")
    while block := not_zero.search(data, at):
        at = block.start()
        if data[at] not in (_GIF_EXTENSION, _GIF_IMAGE):
            return True
        at += 2 if data[at] == _GIF_EXTENSION else 11 + _gif_colours_bytes(data, at + 9)
        while at < len(data) and data[at]:  # parts of up to 255 bytes
            at += 1 + data[at]
        at += 1
    return False


def _gif_colours_bytes(data: bytes, flags_at: int) -> int:
    flags = data[flags_at] if flags_at < len(data) else 0
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0


def _boxes_end(source: Source) -> int:
    """End of the last top-level box of an MP4 (ISO/IEC 14496-12 section 4.2), or of what a segment index counts.

    A fragmented file may have too many boxes to look at them all. What reaches beyond the end under a name that no box
    has there is something else, which a tool has appended.
    """
    offset, end, promised, seen = 0, source.size or 0, 0, [b""]
    for _ in range(_MAX_BOXES_IN_MEMORY if isinstance(source.file, io.BytesIO) else _MAX_BOXES):
        header = source.at(offset, 16) if offset < end else b""  # by a size of up to 2^64: no place to look at
        if len(header) < _BOX_HEADER_BYTES:
            lacks_one = seen[-1] == b"moof" or (b"moof" in seen and _begins_box(header))
            return max(offset + _BOX_HEADER_BYTES * lacks_one, promised)
        size, name = int.from_bytes(header[:4], "big"), header[4:8]
        if size == 1 and len(header) == 16:
            (size,) = struct.unpack(">Q", header[8:16])
        if size < _BOX_HEADER_BYTES or (name not in _TOP_BOXES and offset + size > end):  # 0: up to the end of the file
            return promised
        if name == b"sidx" and size <= _MAX_SIDX_BYTES:
            promised = max(promised, offset + size + _indexed_bytes(source.at(offset + 8, size - 8)))
        offset += size
        seen.append(name)
    return promised


def _begins_box(start: bytes) -> bool:
    """Whether these bytes, fewer than a box's size and name, are no padding and no text."""
    is_size = any(start) and start[0] < ord("\t")
    return is_size and any(name.startswith(start[4:]) for name in _TOP_BOXES)


def _indexed_bytes(sidx: bytes) -> int:
    """How many bytes behind a segment index it counts; ISO/IEC 14496-12 section 8.16.3."""
    width = 8 if sidx[:1] == b"\1" else 4
    at = 12 + 2 * width  # behind version, id, timescale, a time and an offset
    before, count = int.from_bytes(sidx[at - width : at], "big"), int.from_bytes(sidx[at + 2 : at + 4], "big")
    entries = sidx[at + 4 :][: 12 * count]
    sizes = struct.iter_unpack(">I8x", entries[: len(entries) // 12 * 12])
    return before + sum(int(size) & 0x7FFFFFFF for (size,) in sizes)
