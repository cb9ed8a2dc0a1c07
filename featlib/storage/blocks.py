"""Read-ahead over ranges of a remote object: one pass costs few requests, a jump costs a small one."""

from collections import OrderedDict
from collections.abc import Callable

BLOCK_BYTES = 1 << 20
MAX_AHEAD_BLOCKS = 8
KEPT_BLOCKS = 24


class BlockCache:
    """Keeps the blocks used last; a miss right behind the one before doubles what is fetched, up to 8 MiB.

    Args:
        fetch: Gives the bytes ``[start, stop)``; may raise, which leaves the cache as it was.
        size: Of the object, in bytes.
    """

    def __init__(self, fetch: Callable[[int, int], bytes], size: int) -> None:
        self._fetch = fetch
        self._size = size
        self._blocks: OrderedDict[int, bytes] = OrderedDict()
        self._next_block = 0
        self._ahead = 1

    def read(self, start: int, stop: int) -> bytes:
        """The bytes ``[start, stop)``, which must lie within the object."""
        if stop <= start:
            return b""
        parts = []
        for index in range(start // BLOCK_BYTES, (stop - 1) // BLOCK_BYTES + 1):
            block = self._block(index, (stop - 1) // BLOCK_BYTES)
            low = max(start - index * BLOCK_BYTES, 0)
            parts.append(block[low : stop - index * BLOCK_BYTES])
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _block(self, index: int, last_needed: int) -> bytes:
        if index in self._blocks:
            self._blocks.move_to_end(index)
            return self._blocks[index]
        ahead = min(2 * self._ahead, MAX_AHEAD_BLOCKS) if index == self._next_block else 1
        count = max(ahead, min(last_needed - index + 1, MAX_AHEAD_BLOCKS))
        first = index * BLOCK_BYTES
        data = self._fetch(first, min(first + count * BLOCK_BYTES, self._size))
        for offset in range(0, len(data), BLOCK_BYTES):
            self._blocks[index + offset // BLOCK_BYTES] = data[offset : offset + BLOCK_BYTES]
        self._next_block, self._ahead = index + count, ahead
        while len(self._blocks) > KEPT_BLOCKS:
            self._blocks.popitem(last=False)
        return self._blocks[index]
