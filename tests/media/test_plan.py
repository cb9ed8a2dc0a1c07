"""Where decoding begins and what is cut into how many segments, reckoned from packets alone."""

import tracemalloc
from fractions import Fraction

import numpy as np
import pytest

from featlib.media.index import PacketIndex, Packets
from featlib.media.limits import Limits
from featlib.media.plan import num_segments, pick_all, read_plan, start_packets
from featlib.media.times import NO_PTS, Bools, FrameTimes, Int64s
from featlib.spec import MediaItem, Segment
from tests.media.conftest import WHOLE, want


def _index(pts: Int64s, is_key: Bools) -> PacketIndex:
    """Of packets at these ticks, in decode order; those without one hold no frame."""
    n = len(pts)
    none, ones = np.zeros(n, dtype=np.int64), np.ones(n, dtype=np.int64)
    packets = Packets(pts, pts, ones, ones, is_key, none > 0, ones, none, "h264", "", None)
    order = np.argsort(pts, kind="stable")[np.count_nonzero(pts == NO_PTS) :]
    times = FrameTimes(pts[order], int(pts[order[-1]]) + 1, is_key[order], Fraction(1, 1000))
    return PacketIndex(times, packets, order, False, None)


@pytest.mark.parametrize("seed", range(40))
def test_decoding_begins_at_the_last_keyframe_that_is_decoded_and_shown_no_later(seed: int) -> None:
    random = np.random.default_rng(seed)
    n = int(random.integers(1, 60))
    pts = np.argsort(np.argsort(np.arange(n) + random.uniform(0, random.choice([0, 1, 4, 60]), n)))
    pts[random.random(n) < random.choice([0, 0.1])] = NO_PTS
    pts[0] = max(pts[0], 0)
    index = _index(pts, random.random(n) < random.choice([0, 0.2, 0.6, 1]))
    keys = [key for key in range(n) if index.packets.is_key[key] and pts[key] != NO_PTS]
    frames = random.permutation(len(index.times))[: int(random.integers(1, n + 1))]
    expected = []
    for frame in frames:
        packet, tick = index.packet_of[frame], index.times.pts[frame]
        expected.append(max((key for key in keys if key <= packet and pts[key] <= tick), default=0))
    assert start_packets(index, frames).tolist() == expected


def test_two_keyframes_that_change_places_do_not_make_all_be_looked_through_for_each_frame() -> None:
    pts = np.arange(5000)
    pts[[10, 11]] = pts[[11, 10]]
    index = _index(pts, pts >= 0)
    tracemalloc.start()
    starts = start_packets(index, np.arange(len(pts)))
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert np.array_equal(starts, index.packet_of)
    assert peak_bytes < 100 * pts.nbytes


@pytest.mark.parametrize("first", [0, 10_000, 19_600])
def test_keyframes_that_lie_close_together_do_not_make_thousands_of_empty_segments(first: int) -> None:
    """400 of 20,000 frames, 10 a segment: by frames and time alone, they would lie in one segment in 50."""
    pts = np.arange(20_000)
    index = _index(pts, (first <= pts) & (pts < first + 400))
    wants = (want("keyframes"),)
    picked = pick_all(index, MediaItem("id", "a.mkv"), wants)
    n = num_segments(index, picked, wants, {WHOLE.key: 100}, Limits(unit_bytes=1000))
    num_frames = [len(read_plan(index, picked, wants, Segment(k, n)).wanted) for k in range(n)]
    assert sum(num_frames) == 400
    assert max(num_frames) <= 20
    assert n <= 160
