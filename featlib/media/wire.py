"""Messages between a decoding process and its parent: pickles and file descriptors over a Unix stream socket."""

import array
import mmap
import os
import pickle
import socket
import struct
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


class SharedPixels:
    """Arrays in one anonymous memory file, which another process can map without a copy."""

    def __init__(self) -> None:
        self._descriptor: int | None = None
        self._base = 0
        self._size = 0

    def allocate(self, shapes: dict[str, tuple[int, int, int, int]]) -> dict[str, UInt8]:
        """Fresh arrays in a new memory file; those of an earlier call are given up."""
        self.close()
        layout, self._size = _layout(shapes)
        self._descriptor = os.memfd_create("featlib-pixels", os.MFD_CLOEXEC)
        os.ftruncate(self._descriptor, self._size)
        arrays = _views(self._descriptor, self._size, layout)
        self._base = _address(next(iter(arrays.values()))) - layout[next(iter(layout))][0]
        return arrays

    def hand_over(self, arrays: dict[str, UInt8]) -> tuple[int, int, Layout]:
        """Descriptor, size and layout of ``arrays``; those from elsewhere are copied into a memory file first."""
        if self._descriptor is None or not all(self._holds(a) for a in arrays.values()):
            copies = self.allocate({key: (a.shape[0], *a.shape[1:]) for key, a in arrays.items()})
            for key, source in arrays.items():
                copies[key][...] = source
            arrays = copies
        layout = {key: (_address(a) - self._base, a.shape) for key, a in arrays.items()}
        if self._descriptor is None:
            raise ValueError("shared pixels: there are no arrays to hand over")
        return self._descriptor, self._size, layout

    def _holds(self, pixels: UInt8) -> bool:
        offset = _address(pixels) - self._base
        return pixels.flags.c_contiguous and offset >= 0 and offset + pixels.nbytes <= self._size

    def close(self) -> None:
        """Closes the descriptor; mapped arrays stay valid."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def mapped(descriptor: int, size: int, layout: Layout) -> dict[str, UInt8]:
    """The arrays of a memory file that came over the socket; takes the descriptor."""
    try:
        return _views(descriptor, size, layout)
    finally:
        os.close(descriptor)


def _layout(shapes: dict[str, tuple[int, int, int, int]]) -> tuple[Layout, int]:
    layout: Layout = {}
    offset = 0
    for key, shape in shapes.items():
        layout[key] = offset, shape
        offset += -(-int(np.prod(shape, dtype=np.int64)) // _ALIGNMENT) * _ALIGNMENT
    return layout, max(offset, 1)


def _views(descriptor: int, size: int, layout: Layout) -> dict[str, UInt8]:
    memory = mmap.mmap(descriptor, size)
    return {
        key: np.frombuffer(memory, np.uint8, int(np.prod(shape, dtype=np.int64)), offset).reshape(shape)
        for key, (offset, shape) in layout.items()
    }


def _address(pixels: UInt8) -> int:
    return int(pixels.__array_interface__["data"][0])
