"""A decoder and a network that do next to nothing, so that what is left is the cost of the machinery around them."""

import zlib
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

import featlib
from featlib.spec import Clip, Decoded, MediaFacts, MediaItem, Segment, Want

SIDE = 8
NETWORK = "benchmarks.stubs:network"
DECODE = "benchmarks.stubs:decode"


def picture(uri: str) -> npt.NDArray[np.uint8]:
    """uint8 (8, 8, 3), of one colour that follows from the URI."""
    colour = zlib.crc32(uri.encode()).to_bytes(4, "big")[:3]
    return np.broadcast_to(np.frombuffer(colour, np.uint8), (SIDE, SIDE, 3))


def decode(item: MediaItem, wants: tuple[Want, ...], segment: Segment, **_: Any) -> Decoded:
    """Stands for ``featlib.media.decode.decode_item``: one picture an item, without reading anything."""
    clips = {want.label: (Clip(0, 0.0, None, (0.0,), 0, (0,)),) for want in wants}
    frames = {want.pixels.key: picture(item.uri)[None] for want in wants}
    return Decoded(Segment(0, 1), "ok", MediaFacts(frames_decoded=1), frames=frames, clips=clips)


class MeanColour(nn.Module):
    """float32 (N, 3, H, W) to the mean of each channel, (N, 3), and two classes that nobody asks for."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        classes: Tensor = self.head(self.body(x))
        return classes


network = featlib.own_network(
    "stub",
    MeanColour,
    featlib.InputSpec("frame", featlib.PixelSpec(resize=(SIDE,), crop=(SIDE, SIDE)), mean=(0, 0, 0), std=(1, 1, 1)),
)
