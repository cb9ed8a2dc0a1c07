"""Opening a container so that neither its name, its content nor its size can make FFmpeg do anything else."""

import errno
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import av
from av.codec.codec import UnknownCodecError
from av.stream import Discard, Disposition

from featlib.errors import MediaError
from featlib.media.source import Source, SourceReader

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.stream import VideoStream

FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,gif,flv,asf,ogg"
# fmt: off
CODECS = frozenset(
    {
        "h264", "hevc", "av1", "vp8", "vp9", "mpeg1video", "mpeg2video", "mpeg4", "msmpeg4v1",
        "msmpeg4v2", "msmpeg4v3", "wmv1", "wmv2", "wmv3", "vc1", "h263", "h263p", "h263i", "flv1",
        "vp6", "vp6f", "theora", "mjpeg", "gif", "prores", "dnxhd", "dvvideo", "ffv1", "huffyuv",
        "ffvhuff", "rawvideo", "cinepak", "svq1", "svq3", "indeo3", "indeo5", "rv40", "utvideo",
    }
)
# fmt: on
# Sound that only a decoder can describe: without it FFmpeg reads on, in a transport stream for megabytes.
PROBED_SOUND = frozenset({"aac", "aac_latm", "eac3", "mp2", "mp3"})
_BUFFER_BYTES = 256 << 10
_TIMEOUT_S = 300.0  # of FFmpeg's own waiting; the store has its deadline, the process its stall limit
_ALIGNED = 2  # FFmpeg counts rows and columns that it adds for alignment; the exact check is check_pixels
# Before PyAV 19 metadata that are not UTF-8 raise when a file is opened; 19 has no such argument any more.
_METADATA: dict[str, Any] = {"metadata_errors": "replace"} if int(av.__version__.split(".")[0]) < 19 else {}
# Whatever av raises on damaged files besides av.FFmpegError (which is not an OSError or ValueError in all cases).
AV_ERRORS = (av.FFmpegError, UnicodeDecodeError, AttributeError, IndexError, AssertionError, ValueError, OSError)


def _decoders() -> Iterator[str]:
    """Every decoder of FFmpeg that may be opened, by its own name (``libdav1d``), by which FFmpeg compares."""
    for name in sorted(av.codecs_available):
        try:
            decoder = av.Codec(name, "r")
        except UnknownCodecError:
            continue  # an encoder
        if decoder.canonical_name in CODECS | PROBED_SOUND:
            yield decoder.name


# While a container is opened, FFmpeg tries its streams on its own, before their codecs can be looked at.
DECODERS = ",".join(_decoders())


@dataclass(frozen=True)
class OpenVideo:
    """An open container and the stream of it that is decoded."""

    container: "InputContainer"
    stream: "VideoStream"
    reader: SourceReader

    @property
    def codec(self) -> str:
        return self.stream.codec_context.codec.canonical_name

    @property
    def format(self) -> str:
        return self.container.format.name


@contextmanager
def open_video(source: Source, max_pixels: int, progress: Callable[[], None]) -> Iterator[OpenVideo]:
    """Opens the first real video stream for single-threaded decoding.

    Raises:
        MediaError: ``unknown_format``, ``no_video_stream``, ``unsupported_codec``, ``too_large`` or ``out_of_memory``.
        FeatlibError: What the store raised while it was read.
    """
    reader = source.reader(progress)
    with _container(reader, max_pixels) as container:
        try:
            stream = _video_stream(container)
            _check_stream(stream, max_pixels)
            _leave_out_others(container, stream)
        except AV_ERRORS as error:
            raise reader.failure or MediaError(
                "corrupt", f"the video stream cannot be set up ({said(error)})"
            ) from error
        yield OpenVideo(container, stream, reader)


@contextmanager
def _container(reader: SourceReader, max_pixels: int) -> "Iterator[InputContainer]":
    try:
        container = av.open(
            reader,
            mode="r",
            options={"max_pixels": str(_ALIGNED * max_pixels)},
            container_options={
                "protocol_whitelist": "none",
                "format_whitelist": FORMATS,
                "codec_whitelist": DECODERS,
            },
            buffer_size=_BUFFER_BYTES,
            timeout=(_TIMEOUT_S, _TIMEOUT_S),
            **_METADATA,
        )
    except MemoryError as error:
        raise MediaError("out_of_memory", "opening the container went over the memory limit", retryable=True) from error
    except AV_ERRORS as error:
        raise reader.failure or _open_error(error) from error
    with container:
        yield container


def _video_stream(container: "InputContainer") -> "VideoStream":
    for stream in container.streams.video:
        if not stream.disposition & Disposition.attached_pic:
            return stream
    kinds = sorted({str(s.type) for s in container.streams}) or ["nothing"]
    raise MediaError("no_video_stream", f"the file holds no video, only: {', '.join(kinds)}")


def _check_stream(stream: "VideoStream", max_pixels: int) -> None:
    context = stream.codec_context
    if context is None:
        raise MediaError("unsupported_codec", "there is no decoder for the video stream; convert it to H.264 first")
    codec = context.codec.canonical_name
    if codec not in CODECS:
        raise MediaError("unsupported_codec", f"codec {codec!r} is not opened; convert the file to H.264 first")
    check_pixels(context.width, context.height, max_pixels)
    context.thread_count = 1
    context.thread_type = "NONE"  # frame threads give different pixels in different runs on damaged streams
    context.options = {"max_pixels": str(_ALIGNED * max_pixels)}


def _leave_out_others(container: "InputContainer", stream: "VideoStream") -> None:
    """Sound is not even read where the container tells how far to step over it."""
    for other in container.streams:
        if other is not stream:
            other.discard = Discard.all


def last_end_s(video: OpenVideo, source: Source, progress: Callable[[], None]) -> float:
    """When the last packet of any stream ends; infinity where that cannot be read.

    Raises:
        FeatlibError: What the store raised.
    """
    context, reader, end_s = video.stream.codec_context, source.reader(progress), 0.0
    try:
        with _container(reader, context.width * context.height) as container:
            for packet in container.demux():
                if packet.pts is not None and packet.time_base:
                    end_s = max(end_s, float((packet.pts + (packet.duration or 0)) * packet.time_base))
    except (MediaError, *AV_ERRORS):
        end_s = math.inf
    if reader.failure is not None:
        raise reader.failure
    return end_s


def check_pixels(width: int, height: int, max_pixels: int) -> None:
    """Raises MediaError ``too_large`` for a frame of more pixels than allowed."""
    if width * height > max_pixels:
        raise MediaError("too_large", f"frames of {width} x {height} pixels; the limit is {max_pixels} pixels")


def _open_error(error: BaseException) -> MediaError:
    if isinstance(error, av.error.ExitError):
        return MediaError("timeout", f"the file did not open within {_TIMEOUT_S:g} s", retryable=True)
    if isinstance(error, av.FFmpegError) and error.errno == errno.ENOSYS:
        return MediaError("unsupported_codec", f"the file uses a feature that no decoder knows ({said(error)})")
    return MediaError(
        "unknown_format", f"this is not a media file, or not one of the formats that are opened ({said(error)})"
    )


def said(error: BaseException) -> str:
    """What FFmpeg or av said, without its numbers."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(str(text).split())
