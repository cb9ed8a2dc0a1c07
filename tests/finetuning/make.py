"""Labelled pictures and short videos whose classes can be learned, and a manifest of them."""

import csv
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt
from PIL import Image
from torch import Tensor, nn

import featlib

Picture = npt.NDArray[np.uint8]


_DISCS = ((220, 60, 40), (40, 160, 60), (60, 80, 220))


def disc(label: int, random: np.random.Generator, side: int = 96) -> Picture:
    """A disc whose colour is the class, somewhere over large loud patches whose colours are chance."""
    picture = np.kron(random.uniform(60, 200, (3, 3, 3)), np.ones((side // 3, side // 3, 1)))
    y, x = np.mgrid[0:side, 0:side] - random.uniform(0.25, 0.75, 2)[:, None, None] * side
    picture[x**2 + y**2 < (0.2 * side) ** 2] = _DISCS[label]
    return np.clip(picture + random.normal(0, 10, picture.shape), 0, 255).astype(np.uint8)


def write_pictures(folder: Path, count: int, classes: Sequence[str], seed: int) -> list[dict[str, str]]:
    """``count`` PNGs of ``disc`` for each class, as manifest rows."""
    random = np.random.default_rng(seed)
    rows = []
    for label, name in enumerate(classes):
        for i in range(count):
            path = folder / f"{name}-{i}.png"
            Image.fromarray(disc(label, random)).save(path)
            rows.append({"uri": str(path), "label": name})
    return rows


def write_video(path: Path, pictures: Sequence[Picture]) -> Path:
    """The pictures as an MJPEG video of 10 frames a second."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mjpeg", rate=10, options={"qscale": "2"})
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt = "yuvj420p"
        stream.codec_context.time_base = Fraction(1, 10)
        stream.codec_context.thread_count = 1
        for i, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = i, Fraction(1, 10)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def moving_bar(rightwards: bool, random: np.random.Generator, frames: int = 8) -> list[Picture]:
    """A bright bar that wanders by 8 pixels a frame; the two classes show the same frames in opposite order."""
    places = (int(random.integers(0, 128)) + 8 * np.arange(frames)) % 128
    pictures = []
    for place in places if rightwards else places[::-1]:
        picture = np.full((96, 128, 3), 40, np.uint8)
        picture[:, (place + np.arange(24)) % 128] = 220
        pictures.append(picture)
    return pictures


class Bars(nn.Module):
    """A small network of frames that has three outputs, whatever it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.early = nn.Conv2d(3, 4, 5, stride=4)
        self.late = nn.Conv2d(4, 6, 3)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.late(self.early(x).relu()).relu().mean(dim=(2, 3)))
        return out


bars = featlib.own_network(
    "bars",
    Bars,
    featlib.InputSpec("frame", featlib.PixelSpec(resize=(32,), crop=(32, 32)), mean=(0.4,) * 3, std=(0.2,) * 3),
    layer="early",
)


def write_manifest(path: Path, rows: Sequence[Mapping[str, str]]) -> str:
    """The rows as CSV; gives its path."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(k for row in rows for k in row)))
        writer.writeheader()
        writer.writerows(rows)
    return str(path)
