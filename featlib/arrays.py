"""What passes between workers as arrays: frames of one or several sizes, optical flow, what a network made of them."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa

UInt8 = npt.NDArray[np.uint8]
Ints = npt.NDArray[np.integer]
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Stretches:
    """Frames numbered through, in stretches of one size: one stretch where a crop makes them equal.

    Args:
        arrays: uint8 (num_frames, height, width, 3) each, RGB.
    """

    arrays: tuple[UInt8, ...]

    def __len__(self) -> int:
        return sum(map(len, self.arrays))

    @property
    def single(self) -> UInt8:
        """All frames as one array.

        Raises:
            ValueError: They are not of one size.
        """
        if len(self.arrays) != 1:
            raise ValueError(f"frames have {len(self.arrays)} sizes; this network reads one")
        return self.arrays[0]

    def stretch_of(self, rows: Ints) -> Ints:
        """The stretch in which each of ``rows`` lies."""
        return np.searchsorted(np.cumsum([len(a) for a in self.arrays]), rows, side="right")

    def frame(self, row: int) -> UInt8:
        """One frame, (height, width, 3)."""
        stretch = int(self.stretch_of(np.array([row]))[0])
        pixels: UInt8 = self.arrays[stretch][row - self.first(stretch)]
        return pixels

    def first(self, stretch: int) -> int:
        """Number of the first frame of a stretch."""
        return sum(len(a) for a in self.arrays[:stretch])


@dataclass(frozen=True)
class Flow:
    """Optical flow between pairs of frames.

    Args:
        pairs: (num_pairs, 2) rows of the frames, ascending, each once.
        values: float32 (num_pairs, height, width, 2): x, then y, in pixels.
        missing: Why pairs are not here; empty when all are.
    """

    pairs: Ints
    values: Floats
    missing: str = ""

    def rows(self, pairs: Ints) -> Ints:
        """(n,) row of ``values`` for each of the ``pairs`` (n, 2); -1 where there is none."""
        if not len(self.pairs):
            return np.full(len(pairs), -1)
        base = max(int(self.pairs.max()), int(pairs.max(initial=0))) + 1
        known, asked = (p[:, 0].astype(np.int64) * base + p[:, 1] for p in (self.pairs, pairs))
        found = np.minimum(np.searchsorted(known, asked), len(known) - 1)
        return np.where(known[found] == asked, found, -1)


@dataclass(frozen=True)
class Extracted:
    """What a network made of the clips of a unit.

    Args:
        features: float32 (num_rows, prod(shape)).
        shape: Of one feature; empty where rows have none.
        errors: By clip, why the network failed on it.
        clips: (num_rows,) the clip of each row; None: row i is clip i, and stands empty where that clip failed.
        beside: Columns of the features schema that go with the rows: region_index, box, score, labels, probabilities.
    """

    features: Floats
    shape: tuple[int, ...]
    errors: Mapping[int, str] = field(default_factory=dict)
    clips: Ints | None = None
    beside: Mapping[str, pa.Array] = field(default_factory=dict)

    @classmethod
    def nothing(cls, shape: tuple[int, ...]) -> "Extracted":
        """Of a unit without clips."""
        return cls(np.empty((0, int(np.prod(shape))), np.float32), shape)

    def parts(self, most_values: int) -> "Iterator[Extracted]":
        """The rows in parts of at most so many values each, at least one row."""
        step = max(1, most_values // max(1, self.features.shape[1]))
        for start in range(0, len(self.features), step):
            rows = slice(start, start + step)
            beside = {name: column.slice(start, step) for name, column in self.beside.items()}
            clips = None if self.clips is None else self.clips[rows]
            yield Extracted(self.features[rows], self.shape, self.errors, clips, beside)

    def sound(self, num_clips: int) -> "Extracted":
        """The rows of clips on which the network did not fail, each with its clip."""
        clips = np.arange(num_clips) if self.clips is None else self.clips
        keep = np.flatnonzero(~np.isin(clips, list(self.errors)))
        beside = {name: column.take(pa.array(keep)) for name, column in self.beside.items()}
        return Extracted(self.features[keep], self.shape, self.errors, clips[keep], beside)
