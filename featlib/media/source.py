"""A media object as FFmpeg may see it: nameless bytes, with every failure of the store kept for the caller."""

import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from featlib.errors import FeatlibError

SLURP_BYTES = 32 << 20


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


class SourceReader:
    """The read side handed to FFmpeg; it has no ``name``, since FFmpeg would act on one (playlists, protocols).

    FFmpeg turns an exception of ``read`` into an end of file in places; ``failure`` keeps the first one. An end before
    the object's size is as quiet; ``ended_at`` keeps where it was.

    Args:
        file: Read through this object alone.
        size: Of the object, in bytes.
        progress: Called at each read.
    """

    def __init__(self, file: io.BytesIO | MediaFile, size: int | None, progress: Callable[[], None]) -> None:
        self._file = file
        self._size = size
        self._progress = progress
        self.failure: FeatlibError | None = None
        self.ended_at: int | None = None

    def read(self, size: int = -1) -> bytes:
        self._progress()
        try:
            data = self._file.read(size)
        except FeatlibError as error:
            self.failure = self.failure or error
            raise
        if not data and size and self._size is not None and self._file.tell() < self._size:
            self.ended_at = self._file.tell()
        return data

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

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
    """

    file: io.BytesIO | MediaFile
    size: int | None
    etag: str | None

    def head(self, size: int) -> bytes:
        """The first bytes of the object."""
        return self.at(0, size)

    def at(self, offset: int, size: int) -> bytes:
        """Up to ``size`` bytes from ``offset``."""
        self.file.seek(offset)
        return self.file.read(size)

    def reader(self, progress: Callable[[], None]) -> SourceReader:
        """A fresh reader at the start; only the latest one may be in use."""
        self.file.seek(0)
        return SourceReader(self.file, self.size, progress)


def load(file: MediaFile) -> Source:
    """Takes small objects into memory, leaves large ones where they are."""
    if file.size is not None and file.size > SLURP_BYTES:
        return Source(file, file.size, file.etag)
    data = file.read(SLURP_BYTES + 1)
    if len(data) > SLURP_BYTES:
        return Source(file, file.size, file.etag)
    return Source(io.BytesIO(data), len(data) if file.size is None else file.size, file.etag)
