"""Files of ``torch.save``: an archive, or, as before torch 1.6, pickles and numbers one behind the other."""

import io
import math
import struct
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from featlib.extractors.torch_pickle import StoredStorage, StoredTensor, TorchFileError, TorchPickle

_ZIP = b"PK\x03\x04"  # by these torch tells its formats apart
_SEE_ZIP64 = 0xFFFFFFFF
_SHOWN = 40  # characters of what stands in a file, in a message
_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # the first two pickles of the older format


@dataclass(frozen=True)
class TorchFile:
    """What ``torch.save`` was given.

    Args:
        content: Lists, tuples, dicts, numbers, strings, None, and in place of all else ``StoredTensor`` or ``Unread``.
        record: The bytes behind a key of ``StoredStorage``.
        is_swapped: The file was written by a machine of the other byte order.
    """

    content: object
    record: Callable[[str], bytes | memoryview]
    is_swapped: bool = False
    _loaded: dict[str, torch.UntypedStorage] = field(default_factory=dict)

    def tensor(self, stored: StoredTensor) -> Tensor:
        """Reads a tensor; those of one storage share memory.

        Raises:
            TorchFileError: It reaches beyond what the file holds.
        """
        storage = stored.storage
        end = stored.offset + sum((n - 1) * stride for n, stride in zip(stored.shape, stored.strides, strict=True)) + 1
        reach = end * stored.dtype.itemsize if math.prod(stored.shape) else 0
        try:
            loaded = self._loaded[storage.key] if storage.key in self._loaded else self._load(storage)
            size = storage.dtype.itemsize
            if reach > storage.length * size or (storage.start + storage.length) * size > loaded.nbytes():
                raise TorchFileError("is damaged: a tensor is longer than what is stored of it; get it anew")
            at = storage.start * size // stored.dtype.itemsize + stored.offset
            return torch.empty(0, dtype=stored.dtype).set_(loaded, at if reach else 0, stored.shape, stored.strides)
        except TorchFileError:
            raise
        except Exception as error:  # noqa: BLE001 - there is no such record, or torch has no such tensors
            raise _unreadable(error) from None

    def _load(self, storage: StoredStorage) -> torch.UntypedStorage:
        data = bytearray(self.record(storage.key))
        numbers = torch.frombuffer(data, dtype=torch.uint8) if data else torch.empty(0, dtype=torch.uint8)
        read = numbers.untyped_storage()
        if self.is_swapped:
            read.byteswap(storage.dtype)  # type: ignore[no-untyped-call]
        self._loaded[storage.key] = read
        return read


def read_torch_file(data: bytes) -> TorchFile:
    """What is in the bytes of a ``.pth`` or ``.pt`` file, of today's format (an archive) or of the one before 1.6.

    Raises:
        TorchFileError: It is damaged, or is no state dict or checkpoint.
    """
    try:
        return _archive(data) if data.startswith(_ZIP) else _row_of_pickles(data)
    except TorchFileError:
        raise
    except Exception as error:  # noqa: BLE001 - bytes that are no pickle may raise anything
        raise _unreadable(error) from None


def _unreadable(error: Exception) -> TorchFileError:
    return TorchFileError(f"not a readable state dict ({_line(error)})")


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def _archive(data: bytes) -> TorchFile:
    try:
        archive = zipfile.ZipFile(io.BytesIO(data))
        members = {info.filename: info for info in archive.infolist()}
        if archive.start_dir != _told_directory(data):  # other readers would find other members
            raise zipfile.BadZipFile("its directory is not where it says")
        unpacked = sum(info.file_size for info in archive.infolist())
    except Exception as error:  # noqa: BLE001 - bytes that are no archive may raise anything
        raise TorchFileError(f"damaged archive ({_line(error)}); get it anew") from None
    if unpacked > len(data) or any(info.compress_type != zipfile.ZIP_STORED for info in members.values()):
        raise TorchFileError(f"unpacks to {unpacked} bytes of {len(data)}; torch.save packs nothing, get it anew")

    def read(name: str) -> bytes:
        info = members[name]
        if not info.CRC:
            info.CRC = None  # type: ignore[assignment]  # torch.save can be told to write none, which is 0
        try:
            return archive.read(info)
        except zipfile.BadZipFile as error:
            raise TorchFileError(f"damaged archive ({_line(error)}); get it anew") from None

    pickles = [name for name in members if name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise TorchFileError(f"damaged archive ({len(pickles)} members are called data.pkl); get it anew")
    folder = pickles[0].removesuffix("data.pkl")
    content = TorchPickle(io.BytesIO(read(pickles[0]))).run()
    order = read(f"{folder}byteorder") if f"{folder}byteorder" in members else b"little"
    if order not in (b"little", b"big"):
        raise TorchFileError(f"damaged archive (its byte order is {ascii(order)[1:_SHOWN]}); get it anew")
    return TorchFile(content, lambda key: read(f"{folder}data/{key}"), order == b"big")


def _told_directory(data: bytes) -> int:
    """Where the end of an archive says that its directory begins."""
    end = data.rindex(b"PK\x05\x06")
    (told,) = struct.unpack_from("<I", data, end + 16)
    if told == _SEE_ZIP64:
        (told,) = struct.unpack_from("<Q", data, data.rindex(b"PK\x06\x06", 0, end) + 48)
    return int(told)


def _row_of_pickles(data: bytes) -> TorchFile:
    """Magic number, protocol, the writer's machine, the object and the keys of its storages, then these."""
    stream = io.BytesIO(data)
    if TorchPickle(stream).run() != _MAGIC or TorchPickle(stream).run() != _PROTOCOL:
        raise TorchFileError("not a readable state dict (torch.save did not write it)")
    TorchPickle(stream).run()
    program = TorchPickle(stream)
    content, keys = program.run(), TorchPickle(stream).run()
    if not isinstance(keys, list):
        raise TorchFileError("not a readable state dict (it lacks the list of its storages)")
    at, view, records = stream.tell(), memoryview(data), {}
    for key in keys:
        (length,) = struct.unpack_from("<q", data, at)
        start = at + struct.calcsize("<q")
        at = start + length * program.storages[key].itemsize
        if not start <= at <= len(data):
            raise TorchFileError("is damaged: it ends too early; get it anew")
        records[key] = view[start:at]
    return TorchFile(content, records.__getitem__)
