"""Small videos for the jobs of these tests: each its own moving pattern, some keyframes, nothing random."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np


def write_clip(path: Path, *, seed: int, frames: int = 30, size: tuple[int, int] = (96, 64), fps: int = 15) -> Path:
    """An H.264 clip; ``size`` is (width, height)."""
    width, height = size
    y, x = np.mgrid[0:height, 0:width]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(fps), options={"g": "8", "bf": "2", "threads": "1"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for i in range(frames):
            wave = np.sin((x * (1 + seed % 3) + y * (1 + seed % 5) + 9 * i + 31 * seed) / 11.0)
            rgb = np.stack([127 + 120 * wave, 127 + 120 * np.roll(wave, i, 1), 127 - 90 * wave], axis=-1)
            picture = av.VideoFrame.from_ndarray(rgb.astype(np.uint8), format="rgb24")
            for packet in stream.encode(picture):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return path


def write_clips(folder: Path, count: int, **kwargs: int) -> list[Path]:
    """``clip00.mp4`` … of slightly different lengths."""
    folder.mkdir(parents=True, exist_ok=True)
    return [
        write_clip(folder / f"clip{i:02d}.mp4", seed=i, frames=kwargs.get("frames", 20) + 5 * (i % 4))
        for i in range(count)
    ]
