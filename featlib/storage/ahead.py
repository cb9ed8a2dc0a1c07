"""Ranges of a remote object that are known beforehand: one request each, under way while the one before is used."""

from bisect import bisect_right
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from operator import itemgetter

from featlib.storage.blocks import BlockCache

PIECE_BYTES = 8 << 20
PIECES_AHEAD = 2


class AnnouncedReads:
    """Reads of what was announced come from its own requests, all others through a ``BlockCache``.

    Args:
        fetch: Gives the bytes ``[start, stop)``; called from other threads too. What it raises, ``read`` raises.
        size: Of the object, in bytes.
    """

    def __init__(self, fetch: Callable[[int, int], bytes], size: int) -> None:
        self._fetch = fetch
        self._blocks = BlockCache(fetch, size)
        self._pieces: list[tuple[int, int]] = []
        self._fetched: dict[int, Future[bytes]] = {}
        self._threads: ThreadPoolExecutor | None = None

    def expect(self, ranges: Sequence[tuple[int, int]]) -> None:
        """Begins to fetch the first of ``ranges``, which are half open, ascending and apart; forgets earlier ones."""
        self._forget()
        self._pieces = [
            (start, min(start + PIECE_BYTES, stop))
            for first, stop in ranges
            for start in range(first, stop, PIECE_BYTES)
        ]
        self._order(0)

    def read(self, start: int, stop: int) -> bytes:
        """The bytes ``[start, stop)``, which must lie within the object."""
        parts: list[bytes] = []
        while start < stop:
            at = bisect_right(self._pieces, start, key=itemgetter(0)) - 1
            if at < 0 or start >= self._pieces[at][1]:
                return b"".join([*parts, self._blocks.read(start, stop)])
            first, end = self._pieces[at]
            part = self._piece(at)[start - first : min(stop, end) - first]
            parts.append(part)
            start += len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _piece(self, at: int) -> bytes:
        self._order(at)
        try:
            return self._fetched[at].result()
        except BaseException:
            del self._fetched[at]
            raise

    def _order(self, at: int) -> None:
        """Asks for piece ``at`` and those behind it; those before are not kept."""
        for old in [piece for piece in self._fetched if not at <= piece <= at + PIECES_AHEAD]:
            self._fetched.pop(old).cancel()
        for piece in range(at, min(at + 1 + PIECES_AHEAD, len(self._pieces))):
            if piece not in self._fetched:
                self._threads = self._threads or ThreadPoolExecutor(PIECES_AHEAD, "read-ahead")
                self._fetched[piece] = self._threads.submit(self._fetch, *self._pieces[piece])

    def _forget(self) -> None:
        for future in self._fetched.values():
            future.cancel()
        self._fetched.clear()

    def close(self) -> None:
        """Waits for no request that is under way."""
        self._forget()
        if self._threads is not None:
            self._threads.shutdown(wait=False, cancel_futures=True)
