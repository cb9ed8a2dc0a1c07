"""The sample tables of an MP4 or MOV (ISO/IEC 14496-12): what each frame's time is, without its bytes.

Only plain files are read: one ``moov``, no fragments, one sample description, at most one edit that shows anything.
Nothing in here trusts a count or a size of the file; whatever is unusual gives None, and the packets are read instead.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from featlib.media.source import Source
from featlib.media.times import Int64s

_MAX_TOP_BOXES = 64
_MAX_BOXES = 4096  # in one box; far above what any writer makes
_MAX_MOOV_BYTES = 64 << 20
MAX_SAMPLES = 4_000_000  # 18 hours at 60 frames a second
_NORMAL_RATE = 0x0001_0000


@dataclass(frozen=True)
class SampleTable:
    """Of one track, in decode order.

    Args:
        durations: (num_samples,) ticks from the sample's decoding time to the next one's.
        offsets: (num_samples,) ticks from its decoding time to its presentation, before any shift.
    """

    durations: Int64s
    offsets: Int64s


def sample_table(source: Source, track_id: int) -> SampleTable | None:
    """The table of a track, or None when the file is not a plain one."""
    moov = _moov(source)
    if moov is None:
        return None
    try:
        inside = list(_children(moov))
        if any(kind == b"mvex" for kind, _ in inside):  # more samples come in fragments
            return None
        tracks = [body for kind, body in inside if kind == b"trak" and _track_id(body) == track_id]
        return _table(tracks[0]) if len(tracks) == 1 else None
    except (struct.error, ValueError, IndexError):  # boxes that are shorter than their kind
        return None


def _moov(source: Source) -> memoryview | None:
    found, offset = None, 0
    for _ in range(_MAX_TOP_BOXES):
        if offset >= (source.size or 0):
            return None if found is None else memoryview(source.at(*found))
        header = source.at(offset, 16)
        if len(header) < 8:
            return None
        size, kind, start = int.from_bytes(header[:4], "big"), header[4:8], 8
        if size == 1 and len(header) == 16:
            (size,), start = struct.unpack(">Q", header[8:16]), 16
        if size < start or kind == b"moof" or (kind == b"moov" and (found or size > _MAX_MOOV_BYTES)):
            return None
        if kind == b"moov":
            found = offset + start, size - start
        offset += size
    return None


def _children(data: memoryview) -> Iterator[tuple[bytes, memoryview]]:
    """Raises ValueError when the boxes do not fill ``data``."""
    offset = 0
    for _ in range(_MAX_BOXES):
        if len(data) - offset < 8:  # QuickTime ends some lists with four zeros
            return
        (size,) = struct.unpack_from(">I", data, offset)
        if size == 0 and not any(data[offset:]):
            return
        if size < 8 or offset + size > len(data):
            raise ValueError("a box reaches out of the one around it")
        yield bytes(data[offset + 4 : offset + 8]), data[offset + 8 : offset + size]
        offset += size
    raise ValueError("too many boxes")


def _child(data: memoryview, *path: bytes) -> memoryview | None:
    for kind in path:
        bodies = [body for name, body in _children(data) if name == kind]
        if len(bodies) > 1:
            raise ValueError(f"{kind!r} occurs more than once")
        if not bodies:
            return None
        data = bodies[0]
    return data


def _track_id(trak: memoryview) -> int | None:
    header = _child(trak, b"tkhd")
    if header is None:
        return None
    (track_id,) = struct.unpack_from(">I", header, 20 if header[0] == 1 else 12)
    return int(track_id)


def _table(trak: memoryview) -> SampleTable | None:
    tables = _child(trak, b"mdia", b"minf", b"stbl")
    if tables is None or not _is_simple_edit(_child(trak, b"edts", b"elst")):
        return None
    parts = {kind: _child(tables, kind) for kind in (b"stsd", b"stsz", b"stts", b"ctts")}
    descriptions, sizes, times, offsets = parts.values()
    if descriptions is None or sizes is None or times is None or _count(descriptions) != 1:
        return None
    num_samples = int(struct.unpack_from(">I", sizes, 8)[0])
    if not 0 < num_samples <= MAX_SAMPLES:
        return None
    durations = _runs(times, num_samples)
    composition = np.zeros(num_samples, np.int64) if offsets is None else _runs(offsets, num_samples)
    if durations is None or composition is None or durations.min() <= 0:
        return None
    return SampleTable(durations, composition)


def _count(body: memoryview) -> int:
    return int(struct.unpack_from(">I", body, 4)[0])


def _runs(body: memoryview, num_samples: int) -> Int64s | None:
    """(num_samples,) values of a run-length table of (count, signed value), or None when it has more or fewer."""
    count = _count(body)
    if 8 + 8 * count > len(body):
        raise ValueError("a table is longer than its box")
    lengths = np.frombuffer(body, ">u4", 2 * count, 8)[::2].astype(np.int64)
    values = np.frombuffer(body, ">i4", 2 * count, 8)[1::2].astype(np.int64)
    return np.repeat(values, lengths) if int(lengths.sum()) == num_samples else None


def _is_simple_edit(edits: memoryview | None) -> bool:
    """Whether nothing is left out, repeated, slowed down or stopped: at most a late start and one shown stretch."""
    if edits is None:
        return True
    count, is_long = _count(edits), edits[0] == 1
    if count > 2:
        return False
    row = struct.Struct(">Qqi" if is_long else ">Iii")
    rows = [row.unpack_from(edits, 8 + row.size * i) for i in range(count)]
    shown = [rate for _, media_time, rate in rows if media_time >= 0]
    is_late_first = all(media_time == -1 for _, media_time, _ in rows[:-1])
    return is_late_first and shown == [_NORMAL_RATE]
