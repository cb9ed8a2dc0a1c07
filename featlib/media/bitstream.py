"""What must be read in the coded bytes themselves, because containers do not say it."""

from dataclasses import dataclass

VOP_START = b"\x00\x00\x01\xb6"  # ISO/IEC 14496-2 section 6.2.1, vop_start_code
# A VOP with vop_coded = 0 takes 7 or 8 bytes; the smallest P picture of 80 macroblocks takes more, a bit for each. A B
# picture where nothing moves takes no more than its header.
NOT_CODED_BYTES = 10


@dataclass(frozen=True)
class Vops:
    """The MPEG-4 part 2 pictures of one packet: packed AVI streams put two in one and an empty one behind.

    Args:
        types: One letter a coded picture: I, P, B or S.
    """

    types: str

    @property
    def count(self) -> int:
        return len(self.types)


def coded_vops(data: bytes) -> Vops:
    """The coded pictures of an MPEG-4 part 2 packet; none in a placeholder packet."""
    types, at = "", data.find(VOP_START)
    while 0 <= at < len(data) - len(VOP_START):
        types += "IPBS"[data[at + len(VOP_START)] >> 6]
        at = data.find(VOP_START, at + len(VOP_START))
    return Vops(types if types == "B" or len(data) > NOT_CODED_BYTES else "")


def display_order(types: str) -> list[int]:
    """For pictures in decode order, where each stands on the screen: a B stands before the one it came after."""
    position = [0] * len(types)
    shown, held = 0, None
    for decoded, kind in enumerate(types):
        if kind == "B":
            position[decoded], shown = shown, shown + 1
            continue
        if held is not None:
            position[held], shown = shown, shown + 1
        held = decoded
    if held is not None:
        position[held] = shown
    return position


def vp8_is_shown(first_byte: int) -> bool:
    """The show_frame bit of a VP8 frame tag (RFC 6386 section 9.1); alternate reference frames have it at 0."""
    return bool(first_byte & 0x10)


_MARK_UNREFERRED = frozenset({"h264", "mpeg1video", "mpeg2video", "mpeg4"})  # measured; VP8, VP9 and AV1 gain nothing
_HVCC_LAYERS = 21  # ISO/IEC 14496-15 section 8.3.2.1.2: the byte with numTemporalLayers


def can_skip_unreferred(codec: str, extradata: bytes | None) -> bool:
    """Whether pictures that say that no other refers to them can be left out without changing another.

    In HEVC they say so only for their own temporal layer, so there may be no second one.
    """
    if codec == "hevc":
        head = bytes(extradata or b"")[: _HVCC_LAYERS + 1]
        return len(head) > _HVCC_LAYERS and head[0] == 1 and head[_HVCC_LAYERS] >> 3 & 7 == 1
    return codec in _MARK_UNREFERRED


# A keyframe of theirs needs nothing before it, so frames that nobody needs can be stepped over up to the next one.
STEPPED_OVER = _MARK_UNREFERRED | {"hevc", "vp8", "vp9", "av1", "mjpeg", "prores", "dnxhd"}
