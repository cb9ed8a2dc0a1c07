"""The clips of the benchmarks: real ones chosen by what they are, or generated ones of the same kind."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt

CODECS = ("h264", "mpeg4")
LINES = (240, 360)
COUNT = 8
_KINDS = (
    ("libx264", "mp4", 426, 240),
    ("mpeg4", "avi", 320, 240),
    ("libx264", "mp4", 340, 256),
    ("libx264", "mp4", 640, 360),
)


@dataclass(frozen=True)
class Clip:
    """One video, and how many frames come out of it."""

    path: Path
    codec: str
    width: int
    height: int
    num_frames: int


def choose(folder: Path, count: int = COUNT) -> tuple[Clip, ...]:
    """The ``count`` longest whole, upright h264 or mpeg4 videos of 240 to 360 lines, longest first.

    Raises:
        ValueError: There are not so many.
    """
    found = (inspected(path) for path in sorted(folder.iterdir()) if path.is_file())
    fitting = [c for c in found if c and c.codec in CODECS and LINES[0] <= c.height <= LINES[1]]
    if len(fitting) < count:
        raise ValueError(f"{folder}: {len(fitting)} clips in {' or '.join(CODECS)} of {LINES[0]} to {LINES[1]} lines, "
                         f"{count} are needed")  # fmt: skip
    return tuple(sorted(fitting, key=lambda c: (-c.num_frames, c.path.name))[:count])


def inspected(path: Path) -> Clip | None:
    """What a video is; None when it is none, is turned, or does not decode to its end."""
    try:
        with av.open(str(path), metadata_errors="replace") as container:
            if not container.streams.video:
                return None
            stream = container.streams.video[0]
            turned = False
            count = 0
            for frame in container.decode(stream):
                count += 1
                turned = turned or bool(frame.rotation)
            context = stream.codec_context
            return None if turned or not count else Clip(path, context.name, context.width, context.height, count)
    except av.FFmpegError:
        return None


def make_clips(folder: Path, count: int = COUNT, num_frames: int = 260, small: bool = False) -> Path:
    """Writes clips of the kind that ``choose`` looks for: something moves, and there is grain. Gives the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        codec, ending, width, height = _KINDS[1 if small else i % len(_KINDS)]
        write(folder / f"generated{i:02d}.{ending}", codec, (width, height), num_frames + 8 * (i % 3), seed=i)
    return folder


def write(path: Path, codec: str, size: tuple[int, int], num_frames: int, seed: int = 0) -> Path:
    """Encodes a moving, grainy picture as ``codec``'s own defaults do; ``size`` is (width, height)."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, options={"crf": "26"} if codec == "libx264" else {})
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        if codec != "libx264":
            stream.bit_rate = 900_000
        for i, picture in enumerate(_pictures(size, num_frames, seed)):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = i, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def _pictures(size: tuple[int, int], num_frames: int, seed: int) -> Iterator[npt.NDArray[np.uint8]]:
    """uint8 (height, width, 3): waves that travel, under grain."""
    width, height = size
    random = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    grains = random.normal(0, 6, (8, height, width, 1)).astype(np.float32)
    for i in range(num_frames):
        wave = np.sin((x * (1 + seed % 3) + y * (1 + seed % 5) + 5 * i) / np.float32(23))
        picture = np.stack([127 + 90 * wave, 127 + 90 * np.roll(wave, 3 * i, 1), 127 - 70 * wave], axis=-1)
        yield np.clip(picture + grains[i % len(grains)], 0, 255).astype(np.uint8)


def repeated(clips: Sequence[Clip], times: int) -> tuple[tuple[str, str], ...]:
    """(media id, path) of every clip, ``times`` times over under ids of their own; the first round's are the same."""
    return tuple((f"r{k}-clip{i:02d}", str(clip.path.absolute())) for k in range(times) for i, clip in enumerate(clips))
