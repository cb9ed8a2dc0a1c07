"""How long an FLV says it is (Adobe Flash Video File Format Specification, annex E)."""

import struct

from featlib.media.source import Source

FLV = b"FLV"
_MOST_BYTES = 1 << 62  # a size beyond it is none
_ENCODER = b"\0\7encoder\2"  # a string: its length and its letters follow
_TAG_HEADER_BYTES, _SIZE_BYTES = 11, 4
_TAIL_BYTES = 4096


def flv_end(head: bytes) -> int:
    """End of the file, where its metadata say it."""
    size = _number(head, b"filesize")
    return int(size) if 0 < size < _MOST_BYTES else 0


def flv_s(head: bytes, source: Source) -> float:
    """The duration in its metadata; 0 where they say the size too and all of it is there.

    FFmpeg completes both or neither: what it leaves without a size is a guess made at the beginning.
    """
    is_whole = 0 < flv_end(head) <= (source.size or 0)
    is_guess = not flv_end(head) and head.partition(_ENCODER)[2][2:].startswith(b"Lavf")
    return 0.0 if is_whole or is_guess else _number(head, b"duration")


def ends_with_tag(head: bytes, source: Source) -> bool:
    """Whether the file ends with the size of the tag before it; zeros may follow.

    True also where nothing can be told: the metadata say the size, the last bytes are all zeros, or the writer leaves
    other numbers there, as the first tag shows.
    """
    first = int.from_bytes(head[5:9], "big") + _SIZE_BYTES
    behind = first + _TAG_HEADER_BYTES + int.from_bytes(head[first + 1 : first + 4], "big")
    if flv_end(head) or not _is_tag_before(source, behind + _SIZE_BYTES):
        return True
    start = max((source.size or 0) - _TAIL_BYTES, 0)
    tail = source.at(start, _TAIL_BYTES)
    used = len(tail.rstrip(b"\0"))
    ends = range(used, min(used + _SIZE_BYTES, len(tail) + 1))  # the size itself may end with zeros
    return not used or any(_is_tag_before(source, start + end) for end in ends)


def _is_tag_before(source: Source, end: int) -> bool:
    """Whether the four bytes before ``end`` are the size of a tag that ends there (section E.3)."""
    stored = source.at(end - _SIZE_BYTES, _SIZE_BYTES) if _SIZE_BYTES <= end <= (source.size or 0) else b""
    size = int.from_bytes(stored, "big")
    start = end - _SIZE_BYTES - size
    if len(stored) < _SIZE_BYTES or size < _TAG_HEADER_BYTES or start < 0:
        return False
    return int.from_bytes(source.at(start + 1, 3), "big") == size - _TAG_HEADER_BYTES


def _number(head: bytes, name: bytes) -> float:
    """Of ``onMetaData`` (section E.5)."""
    key = struct.pack(">H", len(name)) + name + b"\0"
    at = head.find(key)
    data = head[at + len(key) :][:8]
    return 0.0 if at < 0 or len(data) < 8 else float(struct.unpack(">d", data)[0])
