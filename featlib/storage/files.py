"""Files as decoders and Parquet readers want them: seekable, read in ranges, without a name."""

import io
import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from featlib.storage import s3
from featlib.storage.ahead import AnnouncedReads
from featlib.storage.objects import ObjectInfo, StoreOptions
from featlib.storage.retry import retrying

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer


class RangeFile(io.RawIOBase):
    """A read-only file over a function that gives the bytes ``[start, stop)``.

    It has no ``name``: FFmpeg goes by the ending of one and opens what the content then names.

    Args:
        read_range: May give fewer bytes only where the file ends early.
        size: Bytes.
        etag: Of the content that is read.
        on_close: Called once.
        on_expect: Told the ranges that will be read next.
    """

    def __init__(
        self,
        read_range: Callable[[int, int], bytes],
        size: int,
        etag: str | None,
        on_close: Callable[[], None] | None = None,
        on_expect: Callable[[Sequence[tuple[int, int]]], None] | None = None,
    ) -> None:
        super().__init__()
        self.size = size
        self.etag = etag
        self._read_range = read_range
        self._position = 0
        self._on_close = on_close
        self._on_expect = on_expect

    def expect(self, ranges: Sequence[tuple[int, int]]) -> None:
        """Says that these ``[start, stop)``, ascending and apart, will be read next, in this order."""
        if self._on_expect is not None:
            self._on_expect(ranges)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        starts = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self.size}
        if whence not in starts or starts[whence] + offset < 0:
            raise ValueError(f"cannot seek to {offset} from {whence}")
        self._position = starts[whence] + offset
        return self._position

    def read(self, size: int | None = -1) -> bytes:
        if self.closed:
            raise ValueError("the file is closed")
        left = max(self.size - self._position, 0)
        wanted = left if size is None or size < 0 else min(size, left)
        data = self._read_range(self._position, self._position + wanted) if wanted else b""
        self._position += len(data)
        return data

    def readall(self) -> bytes:
        return self.read(-1)

    def readinto(self, buffer: "WriteableBuffer") -> int:
        view = memoryview(buffer).cast("B")
        data = self.read(len(view))
        view[: len(data)] = data
        return len(data)

    def close(self) -> None:
        if not self.closed and self._on_close is not None:
            self._on_close()
        super().close()


def remote_file(info: ObjectInfo, options: StoreOptions) -> RangeFile:
    """The S3 object that ``info`` describes, under its URL; every range comes from that version of it."""

    def fetch(start: int, stop: int) -> bytes:
        return s3.get(info.key, options, (start, stop), info.etag)

    reads = AnnouncedReads(fetch, info.size)
    return RangeFile(reads.read, info.size, info.etag, reads.close, reads.expect)


def local_file(descriptor: int, info: ObjectInfo, options: StoreOptions) -> RangeFile:
    """The open regular file ``descriptor``, which is closed with the result."""

    def read(start: int, stop: int) -> bytes:
        return retrying(f"read {info.key}", partial(_pread, descriptor, start, stop), deadline_s=options.deadline_s)

    return RangeFile(read, info.size, info.etag, partial(os.close, descriptor))


def _pread(descriptor: int, start: int, stop: int) -> bytes:
    """The bytes ``[start, stop)``, fewer only at the end of the file: Linux gives at most 2 GiB at once."""
    parts = [os.pread(descriptor, stop - start, start)]
    start += len(parts[0])
    while parts[-1] and start < stop:
        parts.append(os.pread(descriptor, stop - start, start))
        start += len(parts[-1])
    return b"".join(parts) if len(parts) > 1 else parts[0]
