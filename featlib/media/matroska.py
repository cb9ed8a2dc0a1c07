"""How long a Matroska or WebM file is: by its segment, by the elements that stand in it, or by its duration."""

import struct
from collections.abc import Iterator

from featlib.media.source import Source

EBML = bytes.fromhex("1a45dfa3")  # RFC 8794 section 11.2.1
_SEGMENT, _CLUSTER = bytes.fromhex("18538067"), bytes.fromhex("1f43b675")  # RFC 9559 section 5.1
_INFO, _TIMESTAMP_SCALE, _DURATION = bytes.fromhex("1549a966"), bytes.fromhex("2ad7b1"), bytes.fromhex("4489")
_WRITERS = bytes.fromhex("4d80"), bytes.fromhex("5741")  # MuxingApp, WritingApp
_TIMESTAMP, _VOID, _CRC_32 = b"\xe7", b"\xec", b"\xbf"
_IN_SEGMENT = ("114d9b74", "1654ae6b", "1c53bb6b", "1941a469", "1043a770", "1254c367")
_IN_CLUSTER = ("5854", "a7", "ab", "a3", "a0", "af")  # which is looked into where its length is unknown too
_KNOWN = frozenset(
    (EBML, _SEGMENT, _CLUSTER, _INFO, _TIMESTAMP, _VOID, _CRC_32, *map(bytes.fromhex, _IN_SEGMENT + _IN_CLUSTER))
)
_TAIL_BYTES = (1 << 20, 8 << 20)  # of what is larger: clusters seldom have more than 5 MB


def matroska_end(head: bytes, source: Source) -> int:
    """End of the segment; where it does not say its length, of the last element that does.

    That element is come to from the last bytes alone, by one read or two: 0 where no cluster begins in them.
    """
    length, first = _segment(head)
    if length is not None:
        return first + length
    size = source.size or 0
    for most in _TAIL_BYTES if first else ():
        start = max(first, size - most)
        data = source.at(start, size - start)
        at = 0 if start == first else _first_cluster(data)
        if at >= 0:
            return start + _elements_end(data, at)
    return 0


def matroska_s(head: bytes) -> float:
    """The duration of a segment whose length is unknown, as live streams write it and others complete it.

    FFmpeg completes both or neither: what it leaves beside an unknown length is a guess made at the beginning, such as
    the duration of the longer file that a part was copied out of.
    """
    length, first = _segment(head)
    info = dict(_elements(head[first:] if first and length is None else b"")).get(_INFO, b"")
    found = dict(_elements(info))
    data = found.get(_DURATION, b"")
    if len(data) not in (4, 8) or any(found.get(name, b"").startswith(b"Lavf") for name in _WRITERS):
        return 0.0
    (duration,) = struct.unpack(">f" if len(data) == 4 else ">d", data)
    scale = int.from_bytes(found.get(_TIMESTAMP_SCALE, b"")[:8], "big") or 1_000_000
    return float(duration) * scale / 1e9


def _segment(head: bytes) -> tuple[int | None, int]:
    """The segment's length, None where it is unknown, and where its content begins: 0 where there is no segment."""
    header_size, offset = _ebml_size(head, len(EBML))
    if header_size is None:
        return None, 0
    offset += header_size
    if head[offset : offset + 4] != _SEGMENT:
        return None, 0
    return _ebml_size(head, offset + 4)


def _ebml_size(data: bytes, offset: int) -> tuple[int | None, int]:
    """An EBML length and where it ends; None for unknown, which live streams write (all ones)."""
    if offset >= len(data) or data[offset] == 0:
        return None, offset
    length = 9 - data[offset].bit_length()
    value = int.from_bytes(data[offset : offset + length], "big") & ((1 << 7 * length) - 1)
    return (None if value == (1 << 7 * length) - 1 else value), offset + length


def _elements(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Names and contents of EBML elements one behind the other; one of unknown length takes all that is left."""
    at = 0
    while at < len(data) and data[at]:
        start = at + 9 - data[at].bit_length()
        size, content = _ebml_size(data, start)
        stop = len(data) if size is None else content + size
        yield data[at:start], data[content:stop]
        at = stop


def _first_cluster(data: bytes) -> int:
    """Where a cluster begins first, -1 where none does; RFC 9559 says what it has to begin with."""
    at = data.find(_CLUSTER)
    while at >= 0:
        content = _ebml_size(data, at + len(_CLUSTER))[1]
        if data[content : content + 1] in (_TIMESTAMP, _VOID, _CRC_32):
            return at
        at = data.find(_CLUSTER, at + 1)
    return -1


def _elements_end(data: bytes, at: int) -> int:
    """Where the last of the elements from ``at`` on ends, beyond ``data`` where it is cut; nothing else is believed.

    Those of unknown length are stepped into.
    """
    while at < len(data) and data[at]:
        start = at + 9 - data[at].bit_length()
        name = data[at:start]
        if name not in _KNOWN:
            is_cut = start > len(data) and any(known.startswith(name) for known in _KNOWN)
            return start if is_cut else at
        if start == len(data):
            return start + 1
        size, content = _ebml_size(data, start)
        if content > len(data):
            return content
        at = content + (size or 0)
    return at
