"""Ids of media items, and the search for one that occurs twice."""

import hashlib
import re
from collections.abc import Iterable

import numpy as np

ID_RULE = "a letter or digit followed by up to 127 of A-Z a-z 0-9 . _ -"
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


def is_media_id(text: str) -> bool:
    return _ID.fullmatch(text) is not None


def media_id(uri: str, start_s: float | None = None, end_s: float | None = None) -> str:
    """The id of an item whose manifest gives none: 32 hex digits.

    They are the first 32 of the SHA-256 of these bytes: the absolute URI in UTF-8, a zero byte, ``repr`` of
    ``start_s`` as a float in ASCII or nothing when it is None, a zero byte, and the same of ``end_s``.
    """
    start = "" if start_s is None else repr(float(start_s))
    end = "" if end_s is None else repr(float(end_s))
    return hashlib.sha256(f"{uri}\0{start}\0{end}".encode()).hexdigest()[:32]


class DuplicateSearch:
    """Collects ids at 16 bytes each; equal digests of different ids do not occur in practice (128 bits)."""

    def __init__(self) -> None:
        self._digests: list[bytes] = []

    def add(self, ids: Iterable[str]) -> None:
        self._digests.append(b"".join(hashlib.blake2b(i.encode(), digest_size=16).digest() for i in ids))

    def first_pair(self) -> tuple[int, int] | None:
        """Positions of the first id that is there again, counted from 0 over everything added; None without one."""
        joined = b"".join(self._digests)
        whole = np.sort(np.frombuffer(joined, dtype="S16"))
        if not (whole[1:] == whole[:-1]).any():  # S16 leaves trailing zeros out: it finds all pairs, and rarely more
            return None
        halves = np.frombuffer(joined, dtype=np.uint64).reshape(-1, 2)
        order = np.lexsort((halves[:, 1], halves[:, 0]))
        ordered = halves[order]
        again = np.flatnonzero((ordered[1:] == ordered[:-1]).all(axis=1))
        if not len(again):
            return None
        first = again[np.argmin(order[again + 1])]
        return int(order[first]), int(order[first + 1])
