"""H.264 pictures that come in two packets, a field each (PAFF): which packet holds the second one.

Transport streams of cameras and broadcasts have such pictures. The parameter sets and slice headers say so: ITU-T
H.264 sections 7.3.2.1.1, 7.3.2.2 and 7.3.3.
"""

from dataclasses import dataclass

_START = b"\x00\x00\x01"
_SLICES, _SPS, _PPS = (1, 2, 5), 7, 8  # table 7-1, nal_unit_type
_SLICE_HEAD_BYTES = 40
_WITH_CHROMA_FORMAT = frozenset({100, 110, 122, 244, 44, 83, 86, 118, 128, 138, 139, 134, 135})
_MOST_ZEROS = 32


class SecondFields:
    """Tells second fields in the packets of one stream (Annex B), which must come one after the other.

    Args:
        extradata: Of the stream; parameter sets may come with the packets, too.
    """

    def __init__(self, extradata: bytes | None) -> None:
        self._sequences: dict[int, _Sequence] = {}
        self._sequence_of: dict[int, int] = {}  # by picture parameter set
        self._first: tuple[int, int] | None = None
        self._field(bytes(extradata or b""))

    def is_second(self, packet: bytes) -> bool:
        """Whether a packet completes the picture that the one before it began."""
        field, first = self._field(packet), self._first
        is_second = field is not None and first is not None and field == (first[0], 1 - first[1])
        self._first = None if is_second else field
        return is_second

    def _field(self, data: bytes) -> tuple[int, int] | None:
        """Frame number and parity of the field that begins here; None where a whole frame does, or nothing sound."""
        at = data.find(_START) + len(_START)
        while len(_START) <= at < len(data):
            kind = data[at] & 31
            try:
                if kind in _SLICES:
                    return self._of_slice(_Bits(data[at + 1 : at + 1 + _SLICE_HEAD_BYTES]))
                if kind in (_SPS, _PPS):
                    stop = data.find(_START, at)
                    self._learn(kind, _Bits(data[at + 1 : stop if stop > 0 else len(data)]))
            except (ValueError, KeyError):
                return None
            at = data.find(_START, at) + len(_START)
        return None

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
        for _ in range(bits.unsigned()):
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
        self._value, self._left = int.from_bytes(payload, "big"), 8 * len(payload)

    def read(self, count: int) -> int:
        if count > self._left:
            raise ValueError("the NAL unit ends")
        self._left -= count
        return self._value >> self._left & ((1 << count) - 1)

    def unsigned(self) -> int:
        """ue(v)"""
        zeros = 0
        while not self.read(1):
            zeros += 1
            if zeros > _MOST_ZEROS:
                raise ValueError("no number has so many zeros")
        return (1 << zeros) - 1 + self.read(zeros)

    def signed(self) -> int:
        """se(v)"""
        code = self.unsigned()
        return (code + 1) // 2 if code % 2 else -(code // 2)
