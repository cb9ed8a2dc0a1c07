"""Small videos and images to try featlib on: moving shapes, made on the spot, the same bytes with the same encoders."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Literal

import av
import numpy as np
import numpy.typing as npt
from av.codec.context import Flags
from av.video.stream import VideoStream
from PIL import Image

Rgb = tuple[int, int, int]
Shape = Literal["disc", "square", "stripes"]

_H264 = {"preset": "veryfast", "x264-params": "mbtree=0"}  # with mbtree the bytes differ from call to call
_VPX = {"deadline": "good", "cpu-used": "5", "crf": "40", "b": "200k"}  # "realtime" heeds the clock
_EXIF_ORIENTATION = 0x0112
_TURN_CLOCKWISE = 6


@dataclass(frozen=True)
class Scene:
    """A shape that moves over a shaded background.

    Args:
        turns: How often the shape goes around within the video.
        size: Half the height of the shape, as a share of the picture's height.
    """

    shape: Shape
    colour: Rgb
    background: Rgb
    turns: float = 1.0
    size: float = 0.2

    def draw(self, width: int, height: int, phase: float) -> npt.NDArray[np.uint8]:
        """The picture at ``phase`` (0 to 1 of the video), uint8 (height, width, 3)."""
        light = np.linspace(0.6, 1.0, width)
        row = np.outer(light, self.background).round().astype(np.uint8)
        picture = np.repeat(row[None], height, axis=0)
        picture[self._covers(width, height, phase)] = self.colour
        return picture

    def _covers(self, width: int, height: int, phase: float) -> npt.NDArray[np.bool_]:
        """The pixels of the shape, (height, width)."""
        angle = 2 * math.pi * self.turns * phase
        dx = np.arange(width)[None, :] - width * (0.5 + 0.3 * math.cos(angle))
        dy = np.arange(height)[:, None] - height * (0.5 + 0.25 * math.sin(angle))
        reach = self.size * height
        if self.shape == "disc":
            inside = dx**2 + dy**2 < reach**2
        elif self.shape == "square":
            inside = np.maximum(abs(dx), abs(dy)) < reach
        else:
            inside = (dx * math.cos(angle) + dy * math.sin(angle)) % (2 * reach) < reach
        return np.asarray(inside, np.bool_)


@dataclass(frozen=True)
class SampleVideo:
    """One video to write; its coded size is ``width`` x ``height``, before ``rotation``.

    Args:
        rotation: Degrees counter-clockwise that a player turns the picture by.
    """

    name: str
    codec: str
    scene: Scene
    width: int = 320
    height: int = 240
    frames_per_second: int = 25
    num_frames: int = 60
    rotation: int = 0
    gop_frames: int = 15
    b_frames: int = 0
    options: dict[str, str] = field(default_factory=dict)


SAMPLE_VIDEOS = (
    SampleVideo("disc_h264.mp4", "libx264", Scene("disc", (230, 60, 40), (40, 60, 110)), b_frames=2, options=_H264),
    SampleVideo("square_mpeg4.avi", "mpeg4", Scene("square", (240, 200, 60), (40, 90, 60)), frames_per_second=24),
    SampleVideo(
        "stripes_vp9.webm",
        "libvpx-vp9",
        Scene("stripes", (250, 250, 250), (120, 40, 120), turns=0.5, size=0.12),
        frames_per_second=30,
        num_frames=75,
        options=_VPX,
    ),
    SampleVideo(
        "disc_vp8.webm",
        "libvpx",
        Scene("disc", (70, 200, 220), (110, 70, 40), turns=2, size=0.3),
        options=_VPX,
    ),
    SampleVideo(
        "square_rotated.mp4",
        "libx264",
        Scene("square", (60, 220, 90), (90, 90, 100), turns=0.5),
        frames_per_second=30,
        rotation=90,
        b_frames=2,
        options=_H264,
    ),
)


def make_samples(folder: Path) -> list[Path]:
    """Writes five videos of 2 to 3 s and two images into ``folder``; gives their paths.

    h264, mpeg4, vp9 and vp8 in mp4, avi and webm, with several GOPs, B-frames and a rotation among them; a JPEG that
    is upright only by its EXIF orientation, and a PNG. Together they take about 200 KB.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for video in SAMPLE_VIDEOS:
        paths.append(folder / video.name)
        write_video(paths[-1], video)
    paths += [folder / "stripes_exif.jpg", folder / "disc.png"]
    exif = Image.Exif()
    exif[_EXIF_ORIENTATION] = _TURN_CLOCKWISE
    stripes = Image.fromarray(Scene("stripes", (250, 180, 60), (50, 50, 90)).draw(360, 240, 0.1))
    stripes.save(paths[-2], quality=90, exif=exif)
    Image.fromarray(Scene("disc", (230, 60, 40), (40, 60, 110)).draw(320, 240, 0.3)).save(paths[-1])
    return paths


def write_video(path: Path, video: SampleVideo) -> None:
    """Encodes ``video`` into ``path`` with one thread and without dates or random ids, so that bytes repeat."""
    with av.open(str(path), "w", options={"fflags": "+bitexact"}) as container:
        stream = container.add_stream(video.codec, rate=video.frames_per_second, options=video.options)
        if not isinstance(stream, VideoStream):
            raise TypeError(f"{video.name}: {video.codec} is not a video codec")
        stream.width, stream.height, stream.pix_fmt = video.width, video.height, "yuv420p"
        codec = stream.codec_context
        codec.thread_count = 1
        codec.gop_size, codec.max_b_frames = video.gop_frames, video.b_frames
        codec.time_base = Fraction(1, video.frames_per_second)
        codec.flags |= Flags.bitexact
        if video.rotation:
            stream.set_display_rotation(video.rotation)
        for frame in _frames(video):
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def _frames(video: SampleVideo) -> Iterator[av.VideoFrame]:
    for i in range(video.num_frames):
        picture = video.scene.draw(video.width, video.height, i / video.num_frames)
        frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
        frame.pts = i
        frame.time_base = Fraction(1, video.frames_per_second)
        yield frame
