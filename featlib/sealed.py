"""Parquet objects that hold their own SHA-256: a flipped bit anywhere in one is seen when it is read.

Page checksums cover the pages alone. The seal covers every byte: it is the digest of the whole object, reckoned with
the seal itself as zeros, and stands in the key-value metadata under ``featlib.seal``.
"""

import hashlib
import io
import mmap
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import BinaryIO, TypeVar, cast

import pyarrow as pa
import pyarrow.parquet as pq

from featlib.errors import DamagedError, StoppedError
from featlib.storage import Store

T = TypeVar("T")

_MARK = b"featlib-seal:"
_BLANK = b"0" * 64
_READS = 4
_READ_WHOLE = 32 << 20
_COPIED = 8 << 20
_UNSEALED = "has no seal: an earlier featlib wrote it, or something else did"


def sealable(schema: pa.Schema) -> pa.Schema:
    """The schema with room for a seal in its metadata, for ``seal_file``."""
    return schema.with_metadata({**(schema.metadata or {}), b"featlib.seal": _MARK + _BLANK})


def seal_file(path: str | os.PathLike[str]) -> None:
    """Writes the seal into a closed Parquet file that was written with a ``sealable`` schema."""
    with open(path, "r+b") as file, mmap.mmap(file.fileno(), 0) as data:
        at = _place(data)
        data[at : at + len(_BLANK)] = hashlib.sha256(data).hexdigest().encode()


def sealed(table: pa.Table) -> bytes:
    """The bytes of one Parquet object with the rows and the metadata of ``table``."""
    sink = io.BytesIO()
    pq.write_table(
        table.replace_schema_metadata(sealable(table.schema).metadata),
        sink,
        compression="zstd",
        write_page_checksum=True,
    )
    data = bytearray(sink.getbuffer())
    at = _place(data)
    data[at : at + len(_BLANK)] = hashlib.sha256(data).hexdigest().encode()
    return bytes(data)


def _place(data: bytearray | mmap.mmap) -> int:
    """Where the seal stands: the key-value metadata lie behind all that comes from rows."""
    at = data.rfind(_MARK + _BLANK)
    if at < 0:
        raise ValueError("the schema was not sealable")
    return at + len(_MARK)


def check_seal(data: bytes | mmap.mmap, key: str) -> None:
    """Makes sure that these are the bytes that were sealed.

    Raises:
        DamagedError: They are not.
    """
    at = data.rfind(_MARK) + len(_MARK)
    if at < len(_MARK):
        raise DamagedError(key, _UNSEALED)
    with memoryview(data) as view:
        whole = hashlib.sha256(view[:at])
        whole.update(_BLANK)
        whole.update(view[at + len(_BLANK) :])
    if data[at : at + len(_BLANK)] != whole.hexdigest().encode():
        raise DamagedError(key)


def read_sealed(data: bytes, key: str, columns: Sequence[str] | None = None) -> pa.Table:
    """The rows of a sealed object, or only ``columns`` of them.

    Raises:
        DamagedError: Its bytes are not those that were sealed.
    """
    check_seal(data, key)
    # pq.read_table takes four times as long for an object as small as outcomes are.
    return pq.ParquetFile(io.BytesIO(data)).read(None if columns is None else list(columns), use_threads=False)


def open_sealed(store: Store, key: str) -> BinaryIO:
    """A sealed object as a seekable file, all of it checked; a large one lies in a temporary file meanwhile.

    Raises:
        DamagedError: Its bytes are not those that were sealed.
        FileNotFoundError: There is no such object.
    """
    if not _is_large(store, key):
        data = store.get(key)
        check_seal(data, key)
        return io.BytesIO(data)
    file = cast(BinaryIO, tempfile.TemporaryFile(prefix="featlib-"))  # noqa: SIM115 - the caller closes it
    try:
        with store.open(key) as source:
            _copy(source, file, key)
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as whole:
            check_seal(whole, key)
    except BaseException:
        file.close()
        raise
    file.seek(0)
    return file


def _copy(source: BinaryIO, file: BinaryIO, key: str) -> None:
    while data := source.read(_COPIED):
        try:
            file.write(data)
            file.flush()
        except OSError as error:
            where = f"the folder for temporary files ({tempfile.gettempdir()}) does not take a copy of {key}"
            raise StoppedError(f"{where}: {error.strerror}; make room there, or set TMPDIR") from error


def open_part(store: Store, key: str) -> BinaryIO:
    """As ``open_sealed``, but a large object is read in ranges, unchecked: by who can tell whether a part is right."""
    return store.open(key) if _is_large(store, key) else open_sealed(store, key)


def _is_large(store: Store, key: str) -> bool:
    info = store.stat(key)
    return info is not None and info.size > _READ_WHOLE


def reread(key: str, read: Callable[[], T]) -> T:
    """What ``read`` makes of an object that is read in ranges; again when a bit was flipped on the way.

    Raises:
        DamagedError: It cannot be read, however often it is tried.
    """
    for _ in range(_READS - 1):
        try:
            with told_as_damage(key):
                return read()
        except DamagedError:
            continue
    with told_as_damage(key):
        return read()


@contextmanager
def told_as_damage(key: str) -> Iterator[None]:
    """Says in one line that an object cannot be read as Parquet; what a disk or a store refuses passes as it is.

    Raises:
        DamagedError: In place of what pyarrow raises.
    """
    try:
        yield
    except (pa.ArrowMemoryError, pa.ArrowCancelled):
        raise
    except (pa.ArrowException, KeyError, ValueError) as error:
        raise DamagedError(key) from error
    except OSError as error:  # so pyarrow calls metadata that it cannot read, without a number
        if error.errno is not None or type(error) is not OSError:
            raise
        raise DamagedError(key) from error
