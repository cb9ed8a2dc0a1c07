"""Every medium is decoded once, into one file of uint8 pictures that training reads again and again."""

import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from featlib.errors import ConfigError, StoppedError
from featlib.media import DecodeProcess
from featlib.progress import Reporter
from featlib.redaction import redact
from featlib.spec import Clip, Decoded, MediaItem, Segment, Want

UInt8 = npt.NDArray[np.uint8]
Indices = npt.NDArray[np.int64]

MAX_ATTEMPTS = 3
_KEPT_FREE = 256 << 20  # bytes of the disk that others may need meanwhile


@dataclass(frozen=True)
class LeftOut:
    """A medium that is not trained on, and why."""

    media_id: str
    uri: str
    error_class: str
    error_message: str


@dataclass(frozen=True)
class Pictures:
    """The decoded frames of all media, and the clips cut from them (a frame is a clip of one).

    Args:
        frames: uint8 (num_frames, height, width, 3) in RGB, on disk.
        frame_idx: (num_clips, frames in a clip), rows of ``frames``.
        place: (num_clips,), which of the media a clip is of.
        left_out: By place.
    """

    frames: UInt8
    frame_idx: Indices
    place: Indices
    left_out: dict[int, LeftOut]


class PictureFile:
    """Pictures of one size, one behind the other, in a file that has no name any more when this is closed."""

    def __init__(self, path: Path, size: tuple[int, int], most_bytes: int) -> None:
        self._path = path
        self._shape = (*size, 3)
        self._picture_bytes = int(np.prod(self._shape))
        self._file = path.open("w+b")
        self._most_bytes = most_bytes
        self.count = 0

    @property
    def nbytes(self) -> int:
        return self.count * self._picture_bytes

    def append(self, frames: UInt8) -> int:
        """Writes (num_frames, height, width, 3) behind the others; gives the row of the first.

        Raises:
            StoppedError: There is no room for them.
        """
        first = self.count
        if self.nbytes + frames.nbytes > self._most_bytes:
            raise self._full()
        try:
            self._file.seek(self.nbytes)
            self._file.write(np.ascontiguousarray(frames).data)
            self._file.flush()
        except OSError as error:
            raise self._full(f" ({error.strerror})") from None
        self.count += len(frames)
        return first

    def keep(self, first: int, rows: Indices) -> None:
        """Of the pictures from ``first`` on, keeps those at ``rows`` (ascending) and moves them together."""
        if self.count > first + len(rows):
            frames = self.frames(writeable=True)
            for place, row in enumerate(rows, start=first):
                frames[place] = frames[row]
        self.count = first + len(rows)

    def frames(self, *, writeable: bool = False) -> UInt8:
        """All pictures, (num_frames, height, width, 3), mapped from the file."""
        shape = (self.count, *self._shape)
        return (
            np.memmap(self._path, np.uint8, "r+" if writeable else "r", shape=shape)
            if self.count
            else np.empty(shape, np.uint8)
        )

    def close(self) -> None:
        """Closes the file; arrays that were mapped stay valid."""
        self._file.close()

    def _full(self, why: str = "") -> StoppedError:
        return StoppedError(
            f"the decoded pictures take more than the {self._most_bytes >> 20} MB that there are for them in "
            f"{self._path.parent}{why}; raise cache_mb, set TMPDIR to a larger disk, or take fewer (frames_per_video)"
        )


@contextmanager
def picture_file(size: tuple[int, int], cache_mb: int) -> Iterator[PictureFile]:
    """A picture file in a temporary folder, of at most ``cache_mb`` and what the disk has to spare.

    Raises:
        ConfigError: The disk has nothing to spare.
    """
    with tempfile.TemporaryDirectory(prefix="featlib-finetune-") as folder:
        spare = shutil.disk_usage(folder).free - _KEPT_FREE
        if spare <= 0:
            raise ConfigError(f"{os.path.dirname(folder)}: the disk is full; set TMPDIR to a folder with room")
        file = PictureFile(Path(folder) / "pictures.uint8", size, min(cache_mb << 20, spare))
        try:
            yield file
        finally:
            file.close()


@dataclass
class _Gathered:
    frame_idx: list[Indices] = field(default_factory=list)
    place: list[int] = field(default_factory=list)
    left_out: dict[int, LeftOut] = field(default_factory=dict)


def decode_all(
    items: Sequence[MediaItem],
    want: Want,
    process: DecodeProcess,
    file: PictureFile,
    reporter: Reporter,
    *,
    max_failed: float,
    clips_per_item: int | None = None,
) -> Pictures:
    """Decodes ``items`` into ``file``, each once; memory is bounded by one segment of one item.

    Args:
        clips_per_item: Most clips of an item, evenly spread.

    Raises:
        StoppedError: More than ``max_failed`` of the items are unusable, or there is no room for the pictures.
    """
    gathered = _Gathered()
    reporter.begin(len(items))
    for place, item in enumerate(items):
        found = _decode_item(item, want, process, file, clips_per_item)
        if isinstance(found, LeftOut):
            gathered.left_out[place] = found
            _check_failed(gathered.left_out, len(items), max_failed)
        else:
            gathered.frame_idx.append(found)
            gathered.place += [place] * len(found)
        reporter.advance(1, 0 if isinstance(found, LeftOut) else len(found), int(isinstance(found, LeftOut)))
    if not gathered.place:
        raise StoppedError(f"none of {len(items)} media can be used; the first: {_said(gathered.left_out[0])}")
    frame_idx = np.concatenate(gathered.frame_idx)
    return Pictures(file.frames(), frame_idx, np.array(gathered.place, dtype=np.int64), gathered.left_out)


def _check_failed(left_out: dict[int, LeftOut], total: int, max_failed: float) -> None:
    if len(left_out) > max_failed * total:
        raise StoppedError(
            f"{len(left_out)} of {total} media cannot be used, more than max_failed {max_failed:g}; the first: "
            f"{_said(next(iter(left_out.values())))}"
        )


def _said(left_out: LeftOut) -> str:
    return f"{redact(left_out.uri)}: {left_out.error_class}: {left_out.error_message}"


def _decode_item(
    item: MediaItem, want: Want, process: DecodeProcess, file: PictureFile, most_clips: int | None
) -> Indices | LeftOut:
    """(num_clips, frames in a clip) rows of the file; nothing of the item stays there when it is left out."""
    first = file.count
    clips: list[Indices] = []
    segment = Segment()
    while segment.n == 0 or segment.k < segment.n:
        decoded = _decode_segment(item, want, process, segment)
        if decoded.status != "ok":
            file.keep(first, np.empty(0, np.int64))
            return LeftOut(item.media_id, item.uri, decoded.error_class or "", decoded.error_message or "")
        clips += _stored(decoded, want, file)
        segment = replace(decoded.segment, k=decoded.segment.k + 1)
    if not clips:
        file.keep(first, np.empty(0, np.int64))
        why = decoded.label_errors.get(want.label, ("no_frames", "the sampling takes no frame of it"))
        return LeftOut(item.media_id, item.uri, *why)
    return _spread(np.stack(clips), first, file, most_clips)


def _decode_segment(item: MediaItem, want: Want, process: DecodeProcess, segment: Segment) -> Decoded:
    for _ in range(MAX_ATTEMPTS):
        decoded = process.decode(item, (want,), segment)
        if not (decoded.status == "failed" and decoded.retryable):
            break
    return decoded


def _stored(decoded: Decoded, want: Want, file: PictureFile) -> list[Indices]:
    clips: tuple[Clip, ...] = decoded.clips.get(want.label, ())
    if not clips:
        return []
    first = file.append(decoded.frames[want.pixels.key])
    return [np.array(clip.frame_idx, dtype=np.int64) + first for clip in clips]


def _spread(frame_idx: Indices, first: int, file: PictureFile, most: int | None) -> Indices:
    """At most ``most`` of an item's clips, evenly spread, with the pictures of the others given up."""
    total = len(frame_idx)
    if most is None or total <= most:
        return frame_idx
    chosen = frame_idx[(2 * np.arange(most) + 1) * total // (2 * most)]
    rows = np.unique(chosen)
    file.keep(first, rows)
    return first + np.searchsorted(rows, chosen)
