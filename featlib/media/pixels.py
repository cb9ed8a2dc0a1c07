"""The finished frames of a segment: one array a preprocessing, written as frames come, never held twice."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from featlib.media.plan import LabelClips
from featlib.media.times import FrameTimes, Int64s
from featlib.resize import fitted, output_size, resized
from featlib.spec import Clip, PixelSpec

UInt8 = npt.NDArray[np.uint8]
Shapes = dict[str, tuple[int, int, int, int]]
Allocate = Callable[[Shapes], dict[str, UInt8]]


def allocate_arrays(shapes: Shapes) -> dict[str, UInt8]:
    """Fresh arrays in this process."""
    return {key: np.empty(shape, dtype=np.uint8) for key, shape in shapes.items()}


class PixelStore:
    """Arrays of finished frames by pixel spec key, and which of their rows are there.

    Args:
        frames: By key, the frame ordinals that are needed, ascending: one row each.
        specs: By key.
        allocate: Called once, when the size of frames is known.
    """

    def __init__(self, frames: dict[str, Int64s], specs: dict[str, PixelSpec], allocate: Allocate) -> None:
        self._frames = {key: ordinals for key, ordinals in frames.items() if len(ordinals)}
        self._specs = specs
        self._allocate = allocate
        self._arrays: dict[str, UInt8] | None = None
        self._is_there = {key: np.zeros(len(ordinals), dtype=np.bool_) for key, ordinals in self._frames.items()}
        self._next_row = dict.fromkeys(self._frames, 0)  # nearly always the row of the frame that comes

    @property
    def awaits_size(self) -> bool:
        """Whether no frame came yet, and the size of finished ones follows from that of the source."""
        specs = (self._specs[key] for key in self._frames)
        return self._arrays is None and any(spec.crop is None and len(spec.resize) < 2 for spec in specs)

    def begin(self, height: int, width: int) -> None:
        """Makes place for frames of this size; those of another are fitted to it."""
        self._arrays = self._allocate({key: self._shape(key, height, width) for key in self._frames})

    def put(self, ordinal: int, rgb: UInt8) -> None:
        """Finishes one frame for every preprocessing that needs it; the first begins, where nobody did."""
        if self._arrays is None:
            self.begin(*rgb.shape[:2])
        assert self._arrays is not None
        for key, ordinals in self._frames.items():
            row = self._row(key, ordinals, ordinal)
            if row < len(ordinals) and ordinals[row] == ordinal:
                array, finished = self._arrays[key], resized(rgb, self._specs[key])
                is_fit = finished.shape == array.shape[1:]
                array[row] = finished if is_fit else fitted(finished, array.shape[1], array.shape[2])
                self._is_there[key][row] = True
                self._next_row[key] = row + 1

    def _row(self, key: str, ordinals: Int64s, ordinal: int) -> int:
        """Where the frame goes, or would go."""
        row = self._next_row[key]
        is_next = row < len(ordinals) and ordinals[row] >= ordinal and (row == 0 or ordinals[row - 1] < ordinal)
        return row if is_next else int(np.searchsorted(ordinals, ordinal))

    def _shape(self, key: str, height: int, width: int) -> tuple[int, int, int, int]:
        return len(self._frames[key]), *output_size(self._specs[key], height, width), 3

    def forget(self, is_lost: Callable[[Int64s], npt.NDArray[np.bool_]]) -> int:
        """Takes out rows whose ordinals are lost and moves the others up; returns how many rows are missing now."""
        missing = 0
        for key, ordinals in self._frames.items():
            keep = np.flatnonzero(self._is_there[key] & ~is_lost(ordinals))
            missing += len(ordinals) - len(keep)
            if self._arrays is not None and len(keep) < len(ordinals):
                array = self._arrays[key]
                for to_row, from_row in enumerate(keep):
                    array[to_row] = array[from_row]
                self._arrays[key] = array[: len(keep)]
            self._frames[key] = ordinals[keep]
        return missing

    @property
    def arrays(self) -> dict[str, UInt8]:
        return {key: array for key, array in (self._arrays or {}).items() if len(array)}

    def clips(self, part: LabelClips, times: FrameTimes) -> tuple[Clip, ...]:
        """The clips of one model all of whose frames are there."""
        ordinals = part.picks.clip_ordinals(part.first, part.last)
        used = part.picks.used_frames(part.first, part.last)
        have = self._frames.get(part.pixel_key, np.empty(0, dtype=np.int64))
        rows = np.searchsorted(have, ordinals)
        whole = np.flatnonzero(np.isin(ordinals, have).all(axis=1))
        return _clips(part.first + whole, times, ordinals[whole], used[whole], rows[whole])


def _clips(indices: Int64s, times: FrameTimes, ordinals: Int64s, used: Int64s, rows: Int64s) -> tuple[Clip, ...]:
    """Clips of (num_clips, frames in a clip) ``ordinals``, which lie in ``rows``; all times are looked up at once."""
    if not len(indices):
        return ()
    width = ordinals.shape[1]
    starts_s = times.starts_s(ordinals.reshape(-1))
    ends_s = times.ends_s(ordinals[np.arange(len(used)), used - 1])
    made = []
    for i, (index, end_s, count, places) in enumerate(
        zip(indices.tolist(), ends_s, used.tolist(), rows.tolist(), strict=True)
    ):
        frame_s = tuple(starts_s[i * width : i * width + count])
        made.append(Clip(index, frame_s[0], end_s, frame_s, width - count, tuple(places)))
    return tuple(made)
