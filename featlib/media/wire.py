"""Messages between a decoding process and its parent: pickles and file descriptors over a Unix stream socket."""

import array
import mmap
import os
import pickle
import socket
import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

UInt8 = npt.NDArray[np.uint8]
Layout = dict[str, tuple[int, tuple[int, ...]]]

_LENGTH = struct.Struct("<Q")
_MAX_DESCRIPTORS = 4
_ALIGNMENT = 64


def send(sock: socket.socket, message: Any, descriptors: tuple[int, ...] = ()) -> None:
    """Sends one message whole.

    Raises:
        OSError: The other side is gone.
    """
    payload = pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)
    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
    header = _LENGTH.pack(len(payload))
    sent = sock.sendmsg([header], ancillary)
    sock.sendall(header[sent:] + payload)


def receive(sock: socket.socket) -> tuple[Any, list[int]]:
    """Receives one message and the file descriptors that came with it.

    Raises:
        EOFError: The other side is gone.
        OSError: The same.
    """
    header, descriptors = b"", []
    while len(header) < _LENGTH.size:
        data, received, _, _ = socket.recv_fds(sock, _LENGTH.size - len(header), _MAX_DESCRIPTORS)
        if not data:
            raise EOFError("the other side closed the connection")
        header += data
        descriptors += received
    payload = bytearray(_LENGTH.unpack(header)[0])
    view = memoryview(payload)
    while view:
        count = sock.recv_into(view)
        if not count:
            raise EOFError("the other side closed the connection in the middle of a message")
        view = view[count:]
    return pickle.loads(payload), descriptors  # noqa: S301 - from our own child


@dataclass(frozen=True)
class Shared:
    """Where the arrays of one item lie.

    Args:
        size: Bytes of the memory file.
        layout: By key, where an array begins, and its shape.
        is_kept: The file is written again for the next item; else it is the receiver's alone.
    """

    size: int
    layout: Layout
    is_kept: bool


class SharedPixels:
    """Arrays in one anonymous memory file, which another process can map.

    The file serves one item after the other: the first touch of a fresh page costs more than decoding what is on it.

    Args:
        kept_bytes: A larger file is given up behind its item.
    """

    def __init__(self, kept_bytes: int) -> None:
        self._kept_bytes = kept_bytes
        self._descriptor: int | None = None
        self._memory: mmap.mmap | None = None
        self._is_sent = False

    def allocate(self, shapes: dict[str, tuple[int, int, int, int]]) -> dict[str, UInt8]:
        """Arrays of any content; those of an earlier call are given up."""
        layout, size = _layout(shapes)
        if self._descriptor is None:
            self._descriptor = os.memfd_create("featlib-pixels", os.MFD_CLOEXEC)
        if self._memory is None or len(self._memory) < size:
            self._memory = None  # before there are two of them
            os.ftruncate(self._descriptor, size)
            self._memory = mmap.mmap(self._descriptor, size)
        return _views(self._memory, layout)

    def hand_over(self, arrays: dict[str, UInt8]) -> tuple[Shared, tuple[int, ...]]:
        """Where ``arrays`` are, and the descriptor when it is new; arrays from elsewhere are copied into a file."""
        if self._memory is None or not all(self._holds(self._memory, a) for a in arrays.values()):
            self.close()
            copies = self.allocate({key: (a.shape[0], *a.shape[1:]) for key, a in arrays.items()})
            for key, source in arrays.items():
                copies[key][...] = source
            arrays = copies
        if self._memory is None or self._descriptor is None:
            raise ValueError("shared pixels: there are no arrays to hand over")
        base = _address(np.frombuffer(self._memory, np.uint8))
        layout = {key: (_address(a) - base, a.shape) for key, a in arrays.items()}
        descriptors = () if self._is_sent else (self._descriptor,)
        self._is_sent = True
        return Shared(len(self._memory), layout, self._is_kept(self._memory)), descriptors

    def _is_kept(self, memory: mmap.mmap) -> bool:
        return len(memory) <= self._kept_bytes

    def _holds(self, memory: mmap.mmap, pixels: UInt8) -> bool:
        offset = _address(pixels) - _address(np.frombuffer(memory, np.uint8))
        return pixels.flags.c_contiguous and offset >= 0 and offset + pixels.nbytes <= len(memory)

    def release(self) -> None:
        """Behind an item: gives up a file that is larger than what is kept."""
        if self._memory is not None and not self._is_kept(self._memory):
            self.close()

    def close(self) -> None:
        """Gives up the file; its arrays stay valid as long as somebody has them."""
        if self._descriptor is not None:
            os.close(self._descriptor)
        self._descriptor, self._memory, self._is_sent = None, None, False


class ReceivedPixels:
    """The other side of ``SharedPixels``."""

    def __init__(self) -> None:
        self._descriptor: int | None = None
        self._memory: mmap.mmap | None = None

    def arrays(self, shared: Shared, descriptors: list[int]) -> dict[str, UInt8]:
        """The arrays of an item, for good: copied out of a file that serves again, else mapped."""
        if descriptors:
            self.close()
            (self._descriptor,) = descriptors
        if self._descriptor is None:
            raise ValueError("received pixels: no memory file came")
        if self._memory is None or len(self._memory) < shared.size:
            self._memory = mmap.mmap(self._descriptor, shared.size)
        views = _views(self._memory, shared.layout)
        if shared.is_kept:
            return {key: view.copy() for key, view in views.items()}
        self.close()
        return views

    def close(self) -> None:
        """Gives up the file; arrays stay valid."""
        if self._descriptor is not None:
            os.close(self._descriptor)
        self._descriptor, self._memory = None, None


def _layout(shapes: dict[str, tuple[int, int, int, int]]) -> tuple[Layout, int]:
    layout: Layout = {}
    offset = 0
    for key, shape in shapes.items():
        layout[key] = offset, shape
        offset += -(-int(np.prod(shape, dtype=np.int64)) // _ALIGNMENT) * _ALIGNMENT
    return layout, max(offset, 1)


def _views(memory: mmap.mmap, layout: Layout) -> dict[str, UInt8]:
    return {
        key: np.frombuffer(memory, np.uint8, int(np.prod(shape, dtype=np.int64)), offset).reshape(shape)
        for key, (offset, shape) in layout.items()
    }


def _address(pixels: UInt8) -> int:
    return int(pixels.__array_interface__["data"][0])
