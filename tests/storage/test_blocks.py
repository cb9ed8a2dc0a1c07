"""The read-ahead cache against a source that counts its requests."""

import random

import pytest

from featlib.storage.blocks import BLOCK_BYTES, KEPT_BLOCKS, MAX_AHEAD_BLOCKS, BlockCache

SIZE = 40 * BLOCK_BYTES + 1234
DATA = random.Random(0).randbytes(SIZE)


class Counting:
    def __init__(self) -> None:
        self.ranges: list[tuple[int, int]] = []

    def __call__(self, start: int, stop: int) -> bytes:
        self.ranges.append((start, stop))
        return DATA[start:stop]


def test_one_pass_fetches_every_byte_once_in_few_requests() -> None:
    source = Counting()
    cache = BlockCache(source, SIZE)
    step = 32768
    for start in range(0, SIZE, step):
        stop = min(start + step, SIZE)
        assert cache.read(start, stop) == DATA[start:stop]
    assert sum(stop - start for start, stop in source.ranges) == SIZE
    assert len(source.ranges) <= 4 + 40 // MAX_AHEAD_BLOCKS


def test_a_jump_fetches_one_block() -> None:
    source = Counting()
    cache = BlockCache(source, SIZE)
    for block in (30, 10, 20, 5):
        cache.read(block * BLOCK_BYTES + 7, block * BLOCK_BYTES + 9)
    assert [stop - start for start, stop in source.ranges] == [BLOCK_BYTES] * 4


def test_random_reads_agree_with_the_bytes() -> None:
    cache = BlockCache(Counting(), SIZE)
    chooser = random.Random(1)
    for _ in range(300):
        start = chooser.randrange(SIZE)
        stop = min(SIZE, start + chooser.choice((0, 1, 100, BLOCK_BYTES, 30 * BLOCK_BYTES)))
        assert cache.read(start, stop) == DATA[start:stop]
        assert len(cache._blocks) <= KEPT_BLOCKS


def test_a_failed_fetch_leaves_the_cache_usable() -> None:
    source = Counting()
    broken = [True]

    def fetch(start: int, stop: int) -> bytes:
        if broken[0]:
            raise ConnectionResetError
        return source(start, stop)

    cache = BlockCache(fetch, SIZE)
    with pytest.raises(ConnectionResetError):
        cache.read(0, 10)
    broken[0] = False
    assert cache.read(0, 10) == DATA[:10]
