"""What gives the frames of a video as RGB arrays, each with one thread: featlib, and what people use instead."""

import importlib.util
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

import av
import numpy as np
import numpy.typing as npt

from featlib.media import Limits, decode_item
from featlib.media import decode as decode_module
from featlib.media.nursery import keep_freed_memory
from featlib.sampling import FrameSampling
from featlib.spec import MediaItem, PixelSpec, Segment, Want
from featlib.storage import StoreOptions

Frames = Iterable[npt.NDArray[np.uint8]]
Decoder = Callable[[str, str, int], Frames]
"""Takes a path or URL, a frame sampling of featlib and the video's frame count; gives the frames in order, as one array
or each in memory that may be overwritten once the next ones are asked for."""

_AT_ONCE = 16  # frames that torchcodec and decord are asked for: enough for their speed, not too many for memory
_LIMITS = Limits(unit_bytes=1 << 40)
_WHOLE = PixelSpec((), None)


class Arena:
    """Memory that serves call after call, as the memory file of a decoding process does."""

    def __init__(self) -> None:
        self._memory = np.zeros(0, np.uint8)

    def allocate(self, shapes: dict[str, tuple[int, ...]]) -> dict[str, npt.NDArray[np.uint8]]:
        """For one preprocessing."""
        ((key, shape),) = shapes.items()
        if self._memory.size < np.prod(shape):
            self._memory = np.zeros(int(np.prod(shape)), np.uint8)
        return {key: self._memory[: int(np.prod(shape))].reshape(shape)}


_arena = Arena()


def sampled(sampling: str, num_frames: int) -> list[int]:
    """The ordinals that ``every:N`` and ``uniform:K`` of featlib take, said independently."""
    policy, _, value = sampling.partition(":")
    if policy == "every":
        return list(range(0, num_frames, int(value)))
    return [(2 * i + 1) * num_frames // (2 * int(value)) for i in range(int(value))]


def featlib(uri: str, sampling: str, num_frames: int, options: StoreOptions | None = None) -> Frames:
    """As a job decodes an item, in this process: into memory that is used again; nothing else is kept between calls."""
    decode_module._recent.clear()
    want = Want("model", FrameSampling.parse(sampling), _WHOLE)
    decoded = decode_item(
        MediaItem("id", uri, None, None),
        (want,),
        Segment(0, 1),
        store_options=options or StoreOptions(),
        limits=_LIMITS,
        allocate=_arena.allocate,
    )
    if decoded.status != "ok":
        raise ValueError(f"{uri}: {decoded.status}: {decoded.error_message}")
    return decoded.frames[_WHOLE.key]


def gathered(frames: Frames, count: int) -> npt.NDArray[np.uint8]:
    """Frames in one array, (count, height, width, 3), as networks take them; what is one already stays where it is."""
    if isinstance(frames, np.ndarray):
        return frames
    array = np.zeros((0, 0, 0, 3), np.uint8)
    for i, frame in enumerate(frames):
        if not i:
            array = _arena.allocate({"": (count, *frame.shape)})[""]
        array[i] = frame
    return array


def pyav(uri: str, sampling: str, num_frames: int) -> Frames:
    """The plain loop: decode all, convert what is wanted."""
    wanted = set(sampled(sampling, num_frames))
    with av.open(uri) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        stream.thread_type = "NONE"
        yield from (f.to_ndarray(format="rgb24") for i, f in enumerate(container.decode(stream)) if i in wanted)


def torchcodec(uri: str, sampling: str, num_frames: int) -> Frames:
    """It brings no FFmpeg: ``LD_LIBRARY_PATH`` must lead to ``libavcodec.so.62`` and the others of one.

    Links of these names to the libraries in PyAV's wheel (``av.libs``) serve, and are the fairest.
    """
    from torchcodec.decoders import VideoDecoder

    decoder = VideoDecoder(uri, dimension_order="NHWC", num_ffmpeg_threads=1)
    for ordinals in batched(sampled(sampling, num_frames)):
        yield from decoder.get_frames_at(ordinals).data.numpy()


def decord(uri: str, sampling: str, num_frames: int) -> Frames:
    from decord import VideoReader

    reader = VideoReader(uri, num_threads=1)
    for ordinals in batched(sampled(sampling, num_frames)):
        yield from reader.get_batch(ordinals).asnumpy()


def opencv(uri: str, sampling: str, num_frames: int) -> Frames:
    import cv2

    cv2.setNumThreads(1)
    wanted = set(sampled(sampling, num_frames))
    video = cv2.VideoCapture(uri, cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1])
    for i in range(num_frames):
        if not video.grab():
            break
        if i in wanted:
            yield cv2.cvtColor(video.retrieve()[1], cv2.COLOR_BGR2RGB)
    video.release()


def available() -> tuple[dict[str, Decoder], list[str]]:
    """By name, the decoders that can be loaded here, and the names of those that cannot."""
    keep_freed_memory()  # as a decoding process does; here it serves all alike
    os.environ["OPENCV_FFMPEG_CAPTURE_OPTIONS"] = "threads;1"
    found: dict[str, Decoder] = {"featlib": featlib, "PyAV loop": pyav}
    missing = []
    peers: tuple[tuple[str, str, Decoder], ...] = (
        ("torchcodec", "torchcodec", torchcodec),
        ("decord", "decord", decord),
        ("cv2", "OpenCV", opencv),
    )
    for module, name, decoder in peers:
        if importlib.util.find_spec(module) is None:
            missing.append(name)
        else:
            found[name] = decoder
    return found, missing


def batched(ordinals: list[int]) -> Iterator[list[int]]:
    """``_AT_ONCE`` at a time."""
    return (ordinals[i : i + _AT_ONCE] for i in range(0, len(ordinals), _AT_ONCE))


def difference(decoded: Frames, other: Frames) -> str:
    """Empty when the frames are the same to the bit, else how they differ."""
    frames, expected = list(decoded), list(other)
    if len(frames) != len(expected):
        return f"{len(frames)} frames for {len(expected)}"
    wrong = [
        i for i, (ours, theirs) in enumerate(zip(frames, expected, strict=True)) if not np.array_equal(ours, theirs)
    ]
    if not wrong:
        return ""
    most = max(int(np.abs(frames[i].astype(int) - expected[i]).max()) for i in wrong[:3])
    return f"{len(wrong)} of {len(expected)} frames differ, by up to {most} of 255"


def featlib_in_segments(uri: str, sampling: str, options: StoreOptions | None = None) -> int:
    """As a job decodes a long item: in parts of 48 MiB of pixels. Gives the number of frames."""
    decode_module._recent.clear()
    want = Want("model", FrameSampling.parse(sampling), _WHOLE)
    item, segment, num_frames = MediaItem("id", uri, None, None), Segment(0, 0), 0
    while True:
        part = decode_item(
            item, (want,), segment, store_options=options or StoreOptions(), limits=Limits(),
            allocate=_arena.allocate,
        )  # fmt: skip
        if part.status != "ok":
            raise ValueError(f"{uri}: {part.status}: {part.error_message}")
        num_frames += len(part.clips["model"])
        if part.segment.k + 1 >= part.segment.n:
            return num_frames
        segment = replace(part.segment, k=part.segment.k + 1)
