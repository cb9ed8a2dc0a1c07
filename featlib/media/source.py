"""A media object as FFmpeg may see it: nameless bytes, with every failure of the store kept for the caller."""

import io
import os
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from featlib.errors import FeatlibError

SLURP_BYTES = 32 << 20
READ_AT_ONCE_BYTES = 1 << 20  # one block of a store; a smaller part would save no time
_STEP_BYTES = 8 << 20  # as much as a store is asked for in one request


class MediaFile(Protocol):
    """What the storage layer opens: a seekable binary file that knows its object's size and etag."""

    @property
    def size(self) -> int | None: ...
    @property
    def etag(self) -> str | None: ...
    def read(self, size: int = -1, /) -> bytes: ...
    def seek(self, offset: int, whence: int = 0, /) -> int: ...
    def tell(self) -> int: ...
    def close(self) -> None: ...


@runtime_checkable
class FetchesAhead(Protocol):
    """A file far away that wants to know beforehand."""

    def expect(self, ranges: Sequence[tuple[int, int]], /) -> None: ...


class SourceReader:
    """The read side handed to FFmpeg; it has no ``name``, since FFmpeg would act on one (playlists, protocols).

    FFmpeg turns an exception of ``read`` into an end of file in places; ``failure`` keeps the first one. An end before
    the object's size is as quiet; ``ended_at`` keeps where it was.

    It keeps its own position, so that others may look at the same file in between.

    Args:
        source: What is read.
        progress: Called at each read.
    """

    def __init__(self, source: "Source", progress: Callable[[], None]) -> None:
        self._file = source.file
        self._size = source.size
        self._ends = source.ends
        self._progress = progress
        self._position = 0
        self.failure: FeatlibError | None = None
        self.ended_at: int | None = None

    def read(self, size: int = -1) -> bytes:
        self._progress()
        try:
            self._file.seek(self._position)
            data = self._file.read(self._without_unannounced(size))
        except FeatlibError as error:
            self.failure = self.failure or error
            raise
        self._position += len(data)
        if not data and size and self._size is not None and self._position < self._size:
            self.ended_at = self._position
        return data

    def _without_unannounced(self, size: int) -> int:
        """FFmpeg fills its buffer beyond what is needed; that is not fetched for it."""
        after = bisect_right(self._ends, self._position)
        return min(size, self._ends[after] - self._position) if size > 0 and after < len(self._ends) else size

    def seek(self, offset: int, whence: int = 0) -> int:
        if whence == os.SEEK_CUR:
            offset, whence = self._position + offset, os.SEEK_SET
        self._position = self._file.seek(offset, whence)
        return self._position

    def tell(self) -> int:
        return self._position

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True


@dataclass(frozen=True)
class Source:
    """One opened media object.

    Args:
        file: In memory when the object is small, since it is read twice: for the packet times and for the pixels.
        size: Bytes, as the store says, or as read.
        etag: Of the store.
        ends: Of the ranges that were announced, ascending.
    """

    file: io.BytesIO | MediaFile
    size: int | None
    etag: str | None
    ends: list[int] = field(default_factory=list)

    def expect(self, ranges: list[tuple[int, int]]) -> None:
        """Says what will be read next, in this order, so that a store can fetch it beforehand and not more."""
        self.ends[:] = sorted(stop for _, stop in ranges)
        if isinstance(self.file, FetchesAhead):
            self.file.expect(ranges)

    def head(self, size: int) -> bytes:
        """The first bytes of the object."""
        return self.at(0, size)

    def at(self, offset: int, size: int) -> bytes:
        """Up to ``size`` bytes from ``offset``."""
        self.file.seek(offset)
        return self.file.read(size)

    def reader(self, progress: Callable[[], None]) -> SourceReader:
        """A fresh reader at the start."""
        return SourceReader(self, progress)


def read_whole(file: io.BytesIO | MediaFile, most: int, progress: Callable[[], None]) -> io.BytesIO:
    """Up to ``most`` bytes from where the file stands, at its start; ``progress`` is called after each request."""
    data = io.BytesIO()
    while part := file.read(min(_STEP_BYTES, most - data.tell())):
        data.write(part)
        progress()
    data.seek(0)
    return data


def load(file: MediaFile, progress: Callable[[], None] = lambda: None) -> Source:
    """Takes small objects into memory, leaves large ones where they are.

    Of an MP4 often only a part is needed, which its tables tell once it is open: from ``READ_AT_ONCE_BYTES`` on it
    stays where it is.
    """
    if file.size is not None and file.size > SLURP_BYTES:
        return Source(file, file.size, file.etag)
    if isinstance(file, FetchesAhead) and (file.size or 0) > READ_AT_ONCE_BYTES:
        in_place = Source(file, file.size, file.etag)
        if in_place.head(8)[4:] == b"ftyp":
            return in_place
        file.seek(0)
    data = read_whole(file, SLURP_BYTES + 1, progress)
    size = data.getbuffer().nbytes
    if size > SLURP_BYTES:
        return Source(file, file.size, file.etag)
    return Source(data, size if file.size is None else file.size, file.etag)
