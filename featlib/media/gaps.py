"""When frames are shown whose packets do not say it: between those that do, where there is room for them."""

import numpy as np

from featlib.media.times import NO_PTS, Int64s

# How far frames change places between decoding and presentation; more is a broken or spliced time line.
MOST_DELAYED = 64  # a frame waits while those that refer to it come; encoders make at most 16 of them in a row
_MOST_HELD = 16  # H.264 and HEVC let a decoder hold no more frames back for one that is shown before them

_HOLE = 1.5  # frame times: in a gap as wide as that a frame is missing


def is_wild(ticks: Int64s) -> bool:
    """Whether frames that are decoded in this order cannot be one stream."""
    moved = _ranks(ticks) - np.arange(len(ticks))
    return bool(moved.max() > MOST_DELAYED or moved.min() < -_MOST_HELD)


def filled(pts: Int64s) -> Int64s | None:
    """Times for all frames; those that are known stay as they are.

    A missing frame lies between the known ones that are decoded around it. Where pictures are reordered that leaves
    several gaps: it goes to the first in which a frame is missing by its width, or else to the widest. For a lone one
    that is its place; of several near each other, which is in which gap is a guess. Pictures are none the worse:
    the decoder gives them out in the order of presentation, and each takes the next time.

    Args:
        pts: (num_frames,) ticks in decode order, ``NO_PTS`` where not known.

    Returns:
        (num_frames,) distinct ticks; None where fewer than two are known, some are alike, the order is wild, or there
            is no room.
    """
    known = np.flatnonzero(pts != NO_PTS)
    ticks = np.sort(pts[known])
    if len(known) < 2 or (np.diff(ticks) == 0).any() or is_wild(pts[known]):
        return None
    frame_ticks = _frame_ticks(known, pts[known])
    slots = _slots(pts, known, np.diff(ticks), frame_ticks)
    out = pts.copy()
    order = np.argsort(slots, kind="stable")[len(known) :]
    for frames in np.split(order, np.flatnonzero(np.diff(slots[order])) + 1):
        out[frames] = _times(ticks, int(slots[frames[0]]), len(frames), frame_ticks)
    return out if len(np.unique(out)) == len(out) else None


def _ranks(ticks: Int64s) -> Int64s:
    """For each frame, how many are shown before it."""
    ranks: Int64s = np.argsort(np.argsort(ticks, kind="stable"))
    return ranks


def _frame_ticks(known: Int64s, ticks: Int64s) -> float:
    """The usual time between two frames; where most are missing, no two known ones may be neighbours."""
    if (np.diff(ticks) > 0).all():
        return float(np.median(np.diff(ticks) / np.diff(known)))
    usual, mean = float(np.median(np.diff(np.sort(ticks)))), float(np.ptp(ticks)) / int(known[-1] - known[0])
    return mean if _HOLE * mean < usual else usual


def _slots(pts: Int64s, known: Int64s, gaps: Int64s, frame_ticks: float) -> Int64s:
    """For each missing frame, how many of the known ones are shown before it; -1 for known ones."""
    rank = _ranks(pts[known])
    moved = int(np.abs(rank - np.arange(len(known))).max())
    slots = np.full(len(pts), -1, dtype=np.int64)
    missing = np.flatnonzero(pts == NO_PTS)
    slots[missing] = np.searchsorted(known, missing)
    if not moved:
        return slots
    reach = 2 * moved + 1  # a missing one may have moved further than any that is known
    inside = np.zeros(len(gaps), dtype=np.int64)
    for frame, following in zip(missing.tolist(), slots[missing].tolist(), strict=True):
        around = rank[max(following - 1 - reach, 0) : following + 1 + reach]
        low, high = int(around.min()), int(around.max())
        holes = np.flatnonzero(gaps[low:high] > (inside[low:high] + _HOLE) * frame_ticks)
        if frame == 0 or (following == 0 and not len(holes)):
            slots[frame] = 0
        elif not len(holes) and following + reach >= len(known):
            slots[frame] = len(known)
        else:
            gap = low + int(holes[0] if len(holes) else np.argmax(gaps[low:high] / (inside[low:high] + 1)))
            slots[frame] = gap + 1
            inside[gap] += 1
    return slots


def _times(ticks: Int64s, slot: int, count: int, frame_ticks: float) -> Int64s:
    """(count,) evenly in one gap, or a frame's time apart at either end."""
    if slot == 0:
        low, step = float(ticks[0]) - (count + 1) * frame_ticks, frame_ticks
    else:
        low = float(ticks[slot - 1])
        step = frame_ticks if slot == len(ticks) else (float(ticks[slot]) - low) / (count + 1)
    times: Int64s = np.rint(low + step * np.arange(1, count + 1)).astype(np.int64)
    return times
