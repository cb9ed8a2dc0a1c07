"""Announced ranges: fetched once, beforehand, and never a byte wrong."""

import random
import threading

import pytest

from featlib.storage import RangeFile
from featlib.storage import ahead as ahead_module
from featlib.storage.ahead import AnnouncedReads
from featlib.storage.blocks import BLOCK_BYTES

SIZE = 6 * BLOCK_BYTES + 77
DATA = random.Random(0).randbytes(SIZE)


class Counting:
    """A store; ``broken`` answers fail first."""

    def __init__(self, broken: int = 0) -> None:
        self.ranges: list[tuple[int, int]] = []
        self.broken = broken

    def __call__(self, start: int, stop: int) -> bytes:
        self.ranges.append((start, stop))
        if self.broken:
            self.broken -= 1
            raise ConnectionResetError
        return DATA[start:stop]


def test_each_announced_range_is_one_request_and_none_is_made_twice() -> None:
    store = Counting()
    reads = AnnouncedReads(store, SIZE)
    ranges = [(100, 5000), (70_000, 70_001), (2_000_000, 2_500_000), (3_000_000, 3_000_100)]
    reads.expect(ranges)
    for start, stop in ranges:
        for first in range(start, stop, 1000):
            last = min(first + 1000, stop)
            assert reads.read(first, last) == DATA[first:last]
    reads.close()
    assert sorted(store.ranges) == ranges


def test_what_comes_next_is_fetched_while_the_first_is_used() -> None:
    asked = threading.Event()

    def fetch(start: int, stop: int) -> bytes:
        if start == 500_000:
            asked.set()
        return DATA[start:stop]

    reads = AnnouncedReads(fetch, SIZE)
    reads.expect([(0, 10), (500_000, 500_010)])
    assert reads.read(0, 5) == DATA[:5]
    assert asked.wait(60)
    reads.close()


def test_no_more_than_two_pieces_are_fetched_ahead_and_none_behind_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ahead_module, "PIECE_BYTES", 1000)
    store = Counting()
    reads = AnnouncedReads(store, SIZE)
    pieces = [(start, start + 1000) for start in range(0, 10_000, 1000)]
    reads.expect([(0, 10_000)])
    for at in (0, 3, 4, 9):
        assert reads.read(pieces[at][0], pieces[at][1]) == DATA[slice(*pieces[at])]
        held = dict(reads._fetched)
        assert sorted(held) == [i for i in (at, at + 1, at + 2) if i < 10]
        for future in held.values():
            future.result(60)  # now nothing is under way
        assert max(store.ranges) == pieces[max(held)]
    reads.close()


class Held:
    """A store whose answers wait until they are let go."""

    def __init__(self) -> None:
        self.asked, self.answered, self.may_answer = list[int](), list[int](), threading.Event()
        self.both_asked = threading.Semaphore(0)

    def __call__(self, start: int, stop: int) -> bytes:
        self.asked.append(start)
        self.both_asked.release()
        self.may_answer.wait(60)
        self.answered.append(start)
        return DATA[start:stop]


@pytest.mark.parametrize("how", ["expect", "close"])
def test_what_nobody_waits_for_any_more_is_not_fetched(how: str) -> None:
    store = Held()
    reads = AnnouncedReads(store, SIZE)
    reads.expect([(0, 10), (100_000, 100_010), (200_000, 200_010)])  # two under way, one behind them
    threads = reads._threads
    assert threads is not None
    for _ in range(ahead_module.PIECES_AHEAD):
        assert store.both_asked.acquire(timeout=60)
    if how == "expect":
        reads.expect([(300_000, 300_010)])
    else:
        reads.close()
    assert store.answered == [], "it does not wait for what is under way"
    store.may_answer.set()
    if how == "expect":
        assert reads.read(300_000, 300_010) == DATA[300_000:300_010]
    threads.shutdown(wait=True)
    assert sorted(store.asked) == [0, 100_000] + [300_000] * (how == "expect")


def test_reads_across_and_outside_of_the_ranges_agree_with_the_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ahead_module, "PIECE_BYTES", 50_000)
    reads = AnnouncedReads(Counting(), SIZE)
    chooser = random.Random(1)
    for _ in range(4):
        edges = sorted(chooser.sample(range(SIZE), 8))
        reads.expect(list(zip(edges[::2], edges[1::2], strict=True)))
        for _ in range(50):
            start = chooser.choice([*edges, chooser.randrange(SIZE)])
            stop = min(SIZE, start + chooser.choice((0, 1, 100, 60_000, BLOCK_BYTES)))
            assert reads.read(start, stop) == DATA[start:stop]
    reads.close()


def test_a_failed_fetch_is_raised_where_it_is_read_and_tried_again() -> None:
    reads = AnnouncedReads(Counting(broken=1), SIZE)
    reads.expect([(10, 20)])
    with pytest.raises(ConnectionResetError):
        reads.read(10, 20)
    assert reads.read(10, 20) == DATA[10:20]
    reads.close()


def test_a_file_passes_on_what_is_announced_and_ignores_it_where_it_is_near() -> None:
    reads = AnnouncedReads(Counting(), SIZE)
    far = RangeFile(reads.read, SIZE, None, reads.close, reads.expect)
    near = RangeFile(lambda start, stop: DATA[start:stop], SIZE, None)
    for file in (far, near):
        file.expect([(30, 40)])
        file.seek(25)
        assert file.read(20) == DATA[25:45]
        file.close()
