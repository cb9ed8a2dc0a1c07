"""Small videos with known content and times, written with PyAV."""

import io
import struct
from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt
from PIL import Image

METADATA: dict[str, Any] = {"metadata_errors": "replace"} if av.__version__ < "19" else {}


def picture(i: int, width: int = 160, height: int = 96) -> npt.NDArray[np.uint8]:
    """A gradient with a white bar that moves with ``i`` and a block that counts ``i`` in grey."""
    y, x = np.mgrid[0:height, 0:width]
    frame = np.stack([x * 255 // width, y * 255 // height, np.full_like(x, 60)], axis=-1).astype(np.uint8)
    at = (i * 7) % (width - 8)
    frame[:, at : at + 8] = 255
    frame[: height // 4, : width // 4] = i * 3 % 256
    return frame


def write_video(
    path: Path,
    *,
    codec: str = "libx264",
    frames: int = 40,
    rate: Fraction = Fraction(20),
    pts: Sequence[int] | None = None,
    size: tuple[int, int] = (160, 96),
    gop: int = 10,
    b_frames: int = 0,
    options: dict[str, str] | None = None,
    container_options: dict[str, str] | None = None,
    start: int = 0,
    audio: bool = False,
    pixel_format: str = "yuv420p",
    shows: Callable[[int], int] = lambda i: i,
) -> Path:
    """Writes ``picture(shows(0))`` … ``picture(shows(frames - 1))``; ``pts`` count in ``1 / rate``."""
    with av.open(str(path), "w", container_options=container_options or {}) as container:
        stream = container.add_stream(codec, rate=rate, options=options or {})
        stream.width, stream.height, stream.pix_fmt = *size, pixel_format
        stream.codec_context.gop_size = gop
        stream.codec_context.max_b_frames = b_frames
        stream.codec_context.time_base = 1 / rate
        stream.codec_context.thread_count = 1
        if audio:
            _add_tone(container, frames / rate)
        for i in range(frames):
            frame = av.VideoFrame.from_ndarray(picture(shows(i), *size), format="rgb24")
            frame.pts = start + (i if pts is None else pts[i])
            frame.time_base = 1 / rate
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def _add_tone(container: "av.container.OutputContainer", seconds: Fraction) -> None:
    stream = container.add_stream("mp2", rate=44100)
    for i in range(int(seconds * 44100) // 1152):
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 2304), np.int16), format="s16", layout="stereo")
        frame.pts, frame.rate, frame.time_base = i * 1152, 44100, Fraction(1, 44100)
        container.mux(stream.encode(frame))


def with_sound(path: Path, to: Path, seconds: Fraction) -> Path:
    """The packets of a video as they are, with sound beside them."""
    with av.open(str(path)) as source, av.open(str(to), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        _add_tone(target, seconds)
        for packet in source.demux(source.streams.video[0]):
            if packet.size:
                packet.stream = stream
                target.mux(packet)
    return to


def write_audio(path: Path) -> Path:
    """A file with sound and no picture."""
    with av.open(str(path), "w") as container:
        _add_tone(container, Fraction(1))
    return path


def write_still(path: Path, image: Image.Image) -> Path:
    """A MOV whose one frame is a PNG."""
    still = io.BytesIO()
    image.save(still, "PNG", compress_level=1)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("png", rate=1)
        stream.width, stream.height, stream.pix_fmt = *image.size, "rgb24"
        packet = av.Packet(still.getvalue())
        packet.stream, packet.pts, packet.dts, packet.time_base = stream, 0, 0, Fraction(1)
        container.mux(packet)
    return path


def with_matrix(path: Path, matrix: tuple[int, int, int, int], to: Path) -> Path:
    """A copy of an MP4 whose picture at (x, y) is to be shown at (a x + c y, b x + d y): ISO/IEC 14496-12, tkhd."""
    data = bytearray(path.read_bytes())
    a, b, c, d = (value << 16 for value in matrix)
    at = data.index(b"tkhd") + 4 + 40
    data[at : at + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    to.write_bytes(data)
    return to


def as_avi_in_matroska(avi: Path, to: Path, shown: Sequence[int] | None = None) -> Path:
    """The packets of an AVI in a Matroska track as tools take it over: BITMAPINFOHEADER, times in decode order.

    Args:
        shown: When each packet is decoded, counted in frames.
    """
    with av.open(str(avi)) as container:
        stream = container.streams.video[0]
        width, height, rate = stream.width, stream.height, stream.average_rate or Fraction(20)
        found = [(bytes(p), p.is_keyframe) for p in container.demux(stream) if p.size]
    header = struct.pack("<IiiHH4sIiiII", 40, width, height, 1, 24, b"XVID", width * height * 3, 0, 0, 0, 0)
    track = _ebml(0xD7, b"\1") + _ebml(0x73C5, b"\1") + _ebml(0x83, b"\1") + _ebml(0x86, b"V_MS/VFW/FOURCC")
    track += _ebml(0x63A2, header) + _ebml(0x23E383, int(10**9 / rate).to_bytes(4, "big"))
    track += _ebml(0xE0, _ebml(0xB0, width.to_bytes(2, "big")) + _ebml(0xBA, height.to_bytes(2, "big")))
    blocks = b""
    for i, (data, is_key) in enumerate(found):
        time_ms = round(1000 * (i if shown is None else shown[i]) / rate)
        block = b"\x81" + struct.pack(">hB", time_ms, 0x80 * is_key) + data
        blocks += _ebml(0xA3, block)
    to.write_bytes(_matroska(track, blocks))
    return to


def write_matroska(
    path: Path,
    shown: Sequence[int],
    *,
    first: int = 0,
    tick_ns: int = 10**6,
    frame_ns: int = 50_000_000,
    duration: int | None = None,
) -> Path:
    """JPEGs under any times.

    Args:
        shown: Ticks behind ``first``, one a frame.
        duration: Of each frame in ticks.
    """
    with av.open(
        str(write_video(path.with_suffix(".avi"), codec="mjpeg", frames=1, size=(32, 32), pixel_format="yuvj420p"))
    ) as container:
        data = next(bytes(packet) for packet in container.demux(container.streams.video[0]))
    track = _ebml(0xD7, b"\1") + _ebml(0x73C5, b"\1") + _ebml(0x83, b"\1") + _ebml(0x86, b"V_MJPEG")
    track += _ebml(0x23E383, frame_ns.to_bytes(8, "big")) + _ebml(0xE0, _ebml(0xB0, b"\x20") + _ebml(0xBA, b"\x20"))
    length = b"" if duration is None else _ebml(0x9B, duration.to_bytes(8, "big"))
    blocks = b"".join(_ebml(0xA0, _ebml(0xA1, b"\x81" + struct.pack(">hB", at, 0) + data) + length) for at in shown)
    path.write_bytes(_matroska(track, blocks, first, tick_ns))
    return path


def _matroska(track: bytes, blocks: bytes, first: int = 0, tick_ns: int = 10**6) -> bytes:
    """A file with one track and one cluster; RFC 9559."""
    info = _ebml(0x1549A966, _ebml(0x2AD7B1, tick_ns.to_bytes(4, "big")))
    cluster = _ebml(0x1F43B675, _ebml(0xE7, first.to_bytes(8, "big")) + blocks)
    kind = _ebml(0x4282, b"matroska") + _ebml(0x4287, b"\4") + _ebml(0x4285, b"\2")
    tracks = _ebml(0x1654AE6B, _ebml(0xAE, track))
    return _ebml(0x1A45DFA3, kind) + _ebml(0x18538067, info + tracks + cluster)


def _ebml(name: int, data: bytes) -> bytes:
    """An element with its length in eight bytes; RFC 8794."""
    return name.to_bytes((name.bit_length() + 7) // 8, "big") + b"\x01" + len(data).to_bytes(7, "big") + data


def decoded(path: Path) -> list[npt.NDArray[np.uint8]]:
    """All frames as plain PyAV gives them, before any error; upright."""
    frames = []
    with av.open(str(path), **METADATA) as container:
        stream = container.streams.video[0]
        stream.thread_type = "NONE"
        try:
            for frame in container.decode(stream):
                turned = np.rot90(frame.to_ndarray(format="rgb24"), frame.rotation // 90)
                frames.append(np.ascontiguousarray(turned))
        except av.FFmpegError:
            pass
    return frames


def packets(path: Path) -> list[tuple[int | None, int, bool, int]]:
    """(pts, size, is keyframe, byte position) of the video packets, in decode order."""
    with av.open(str(path), **METADATA) as container:
        demuxed = container.demux(container.streams.video[0])
        return [(p.pts, p.size, p.is_keyframe, p.pos or 0) for p in demuxed if p.size]


def without_pts(path: Path, is_chosen: Callable[[int], bool], to: Path) -> Path:
    """A copy of a transport stream in which the i-th PES packet has no time, as MPEG-2 allows up to 0.7 s long."""
    data, i = bytearray(path.read_bytes()), -1
    for at in range(0, len(data), 188):
        start = at + 4 + (1 + data[at + 4] if data[at + 3] & 0x20 else 0)
        if not data[at + 1] & 0x40 or data[start : start + 3] != b"\0\0\1" or data[start + 3] >> 4 != 0xE:
            continue
        i += 1
        if is_chosen(i):
            data[start + 7] &= 0x3F  # ISO/IEC 13818-1 section 2.4.3.6: PTS_DTS_flags
            size = data[start + 8]
            data[start + 9 : start + 9 + size] = b"\xff" * size
    to.write_bytes(data)
    return to


def damaged(path: Path, spans: Iterable[tuple[int, int]], to: Path, fill: int = 0) -> Path:
    """A copy of ``path`` in which the bytes of the half-open ``spans`` are ``fill``."""
    data = bytearray(path.read_bytes())
    for start, stop in spans:
        data[start:stop] = bytes([fill]) * (stop - start)
    to.write_bytes(data)
    return to


def places_of(data: bytes, part: bytes) -> list[int]:
    """Where ``part`` begins in ``data``, each time."""
    found, at = [], data.find(part)
    while at >= 0:
        found.append(at)
        at = data.find(part, at + 1)
    return found
