"""H.264 pictures that come in two packets, a field each (PAFF): which packet holds the second one.

Transport streams of cameras and broadcasts have such pictures, and so have the files that they are copied into. The
parameter sets and slice headers say so: ITU-T H.264 sections 7.3.2.1.1, 7.3.2.2 and 7.3.3.
"""

from collections.abc import Iterator
from dataclasses import dataclass

_START = b"\x00\x00\x01"
_SLICES, _SPS, _PPS = (1, 2, 5), 7, 8  # table 7-1, nal_unit_type
_SETS = (_SPS, _PPS)
_SLICE_HEAD_BYTES = 41  # with that of the NAL unit
_SET_BYTES = 4096  # of a parameter set: more than lies before what slice headers need of the longest sound one
_RECORD_HEAD_BYTES = 6
_WITH_CHROMA_FORMAT = frozenset({100, 110, 122, 244, 44, 83, 86, 118, 128, 138, 139, 134, 135})
_MOST_ZEROS = 32
_MOST_OFFSETS = 255  # section 7.4.2.1.1, num_ref_frames_in_pic_order_cnt_cycle
_BITS_OF = [f"{byte:08b}" for byte in range(256)]


class SecondFields:
    """Tells second fields in the packets of one stream, which must come one after the other.

    Args:
        extradata: Of the stream: an AVCDecoderConfigurationRecord, after which NAL units stand behind their lengths, or
            Annex B. Parameter sets may come with the packets, too.
    """

    def __init__(self, extradata: bytes | None) -> None:
        self._sequences: dict[int, _Sequence] = {}
        self._sequence_of: dict[int, int] = {}  # by picture parameter set
        self._first: tuple[int, int] | None = None
        data = bytes(extradata or b"")
        self._length_bytes = (data[4] & 3) + 1 if len(data) >= _RECORD_HEAD_BYTES and data[0] == 1 else 0
        self._field(_sets_of_record(data) if self._length_bytes else _annex_b(data))

    @property
    def may_occur(self) -> bool:
        """Whether the parameter sets that came so far allow fields; without any, nobody knows."""
        return not self._sequences or any(sequence.has_fields for sequence in self._sequences.values())

    def is_second(self, packet: bytes) -> bool:
        """Whether a packet completes the picture that the one before it began."""
        units = _behind_lengths(packet, self._length_bytes) if self._length_bytes else _annex_b(packet)
        field, first = self._field(units), self._first
        is_second = field is not None and first is not None and field == (first[0], 1 - first[1])
        self._first = None if is_second else field
        return is_second

    def _field(self, units: Iterator[bytes]) -> tuple[int, int] | None:
        """Frame number and parity of the field that is here; None for a whole frame, both fields, or nothing sound."""
        found: tuple[int, int] | None = None
        try:
            for unit in units:
                kind = unit[0] & 31
                if kind in _SLICES:
                    field = self._of_slice(_Bits(unit[1:]))
                    if field is None or (found is not None and field != found):
                        return None
                    found = field
                elif kind in _SETS:
                    self._learn(kind, _Bits(unit[1:]))
        except (ValueError, KeyError):
            return found
        return found

    def _learn(self, kind: int, bits: "_Bits") -> None:
        if kind == _SPS:
            number, sequence = _sequence(bits)
            self._sequences[number] = sequence
        else:
            number = bits.unsigned()
            self._sequence_of[number] = bits.unsigned()

    def _of_slice(self, bits: "_Bits") -> tuple[int, int] | None:
        bits.unsigned()  # first_mb_in_slice
        bits.unsigned()  # slice_type
        sequence = self._sequences[self._sequence_of[bits.unsigned()]]
        if not sequence.has_fields:
            return None
        if sequence.has_planes:
            bits.read(2)
        frame_num = bits.read(sequence.frame_num_bits)
        return (frame_num, bits.read(1)) if bits.read(1) else None


def _sets_of_record(data: bytes) -> Iterator[bytes]:
    """The parameter sets of an AVCDecoderConfigurationRecord: ISO/IEC 14496-15 section 5.3.3.1."""
    at = _RECORD_HEAD_BYTES - 1
    for mask in (31, 255):  # sequence parameter sets, then picture parameter sets
        count, at = (data[at] & mask if at < len(data) else 0), at + 1
        for _ in range(count):
            size, at = int.from_bytes(data[at : at + 2], "big"), at + 2
            if size and at < len(data):
                yield data[at : at + _looked_at(data[at], size)]
            at += size


def _behind_lengths(data: bytes, length_bytes: int) -> Iterator[bytes]:
    """Of each NAL unit as much as is looked at."""
    at = 0
    while at + length_bytes < len(data):
        size, at = int.from_bytes(data[at : at + length_bytes], "big"), at + length_bytes
        if not size:
            return
        yield data[at : at + _looked_at(data[at], size)]
        at += size


def _annex_b(data: bytes) -> Iterator[bytes]:
    """The same behind start codes."""
    at = data.find(_START) + len(_START)
    while len(_START) <= at < len(data):
        stop = data.find(_START, at) if data[at] & 31 in _SETS else -1
        yield data[at : at + _looked_at(data[at], (stop if stop > 0 else len(data)) - at)]
        at = data.find(_START, at) + len(_START)


def _looked_at(head: int, size: int) -> int:
    return min(size, _SET_BYTES if head & 31 in _SETS else _SLICE_HEAD_BYTES)


@dataclass(frozen=True)
class _Sequence:
    """What slice headers need of a sequence parameter set."""

    frame_num_bits: int
    has_fields: bool
    has_planes: bool


def _sequence(bits: "_Bits") -> tuple[int, _Sequence]:
    """Its number, and what it says."""
    profile = bits.read(8)
    bits.read(16)
    number, has_planes = bits.unsigned(), False
    if profile in _WITH_CHROMA_FORMAT:
        chroma_format = bits.unsigned()
        has_planes = chroma_format == 3 and bits.read(1) == 1
        bits.unsigned()
        bits.unsigned()
        bits.read(1)
        if bits.read(1):
            for i in range(12 if chroma_format == 3 else 8):
                if bits.read(1):
                    _skip_scaling_list(bits, 16 if i < 6 else 64)
    frame_num_bits = bits.unsigned() + 4
    order = bits.unsigned()
    if order == 0:
        bits.unsigned()
    elif order == 1:
        bits.read(1)
        bits.signed()
        bits.signed()
        offsets = bits.unsigned()
        if offsets > _MOST_OFFSETS:
            raise ValueError("no cycle has so many offsets")
        for _ in range(offsets):
            bits.signed()
    bits.unsigned()
    bits.read(1)
    bits.unsigned()
    bits.unsigned()
    return number, _Sequence(frame_num_bits, bits.read(1) == 0, has_planes)


def _skip_scaling_list(bits: "_Bits", size: int) -> None:
    last = next_ = 8
    for _ in range(size):
        if next_:
            next_ = (last + bits.signed()) % 256
        last = next_ or last


class _Bits:
    """Reads a NAL unit bit by bit; ValueError at its end."""

    def __init__(self, data: bytes) -> None:
        payload = data.replace(b"\x00\x00\x03", b"\x00\x00")  # emulation prevention
        self._text, self._at = "".join(map(_BITS_OF.__getitem__, payload)), 0

    def read(self, count: int) -> int:
        start, self._at = self._at, self._at + count
        if self._at > len(self._text):
            raise ValueError("the NAL unit ends")
        return int(self._text[start : self._at] or "0", 2)

    def unsigned(self) -> int:
        """ue(v)"""
        zeros = self._text.find("1", self._at, self._at + _MOST_ZEROS + 1) - self._at
        if zeros < 0:
            raise ValueError("no number has so many zeros")
        self._at += zeros
        return self.read(zeros + 1) - 1

    def signed(self) -> int:
        """se(v)"""
        code = self.unsigned()
        return (code + 1) // 2 if code % 2 else -(code // 2)
