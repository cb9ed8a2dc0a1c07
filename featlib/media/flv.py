"""How long an FLV says it is (Adobe Flash Video File Format Specification, annex E)."""

import struct

from featlib.media.source import Source

FLV = b"FLV"
_MOST_BYTES = 1 << 62  # a size beyond it is none


def flv_end(head: bytes) -> int:
    """End of the file, where its metadata say it."""
    size = _number(head, b"filesize")
    return int(size) if 0 < size < _MOST_BYTES else 0


def flv_s(head: bytes, source: Source) -> float:
    """The duration in its metadata; 0 where they say the size too and all of it is there."""
    is_whole = 0 < flv_end(head) <= (source.size or 0)
    return 0.0 if is_whole else _number(head, b"duration")


def _number(head: bytes, name: bytes) -> float:
    """Of ``onMetaData`` (section E.5)."""
    key = struct.pack(">H", len(name)) + name + b"\0"
    at = head.find(key)
    data = head[at + len(key) :][:8]
    return 0.0 if at < 0 or len(data) < 8 else float(struct.unpack(">d", data)[0])
