"""Pixels that cross from one process to another: one memory file for many items, and what was received stays."""

import os

import numpy as np
import pytest

from featlib.media.wire import ReceivedPixels, Shared, SharedPixels

KEPT_BYTES = 1 << 20


def _send(ours: SharedPixels, theirs: ReceivedPixels, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    shared, descriptors = ours.hand_over(arrays)
    received = theirs.arrays(shared, [os.dup(d) for d in descriptors])
    ours.release()
    return received


def _item(ours: SharedPixels, value: int, count: int = 2, side: int = 8) -> dict[str, np.ndarray]:
    arrays = ours.allocate({"a": (count, side, side, 3), "b": (1, 2, 2, 3)})
    for key, array in arrays.items():
        array[...] = value + (key == "b")
    return arrays


@pytest.mark.parametrize("kept_bytes", [0, KEPT_BYTES])
def test_what_was_received_stays_while_later_items_come(kept_bytes: int) -> None:
    ours, theirs = SharedPixels(kept_bytes), ReceivedPixels()
    sizes = [(2, 8), (1, 4), (40, 100), (3, 8)]
    received = [_send(ours, theirs, _item(ours, 10 * i, *size)) for i, size in enumerate(sizes)]
    ours.close()
    theirs.close()
    for i, (count, side) in enumerate(sizes):
        assert received[i]["a"].shape == (count, side, side, 3)
        assert (received[i]["a"] == 10 * i).all()
        assert (received[i]["b"] == 10 * i + 1).all()


def test_a_file_is_sent_once_and_serves_again_until_it_is_too_large() -> None:
    ours = SharedPixels(KEPT_BYTES)
    first, descriptors = ours.hand_over(_item(ours, 1))
    second, none = ours.hand_over(_item(ours, 2, count=1))
    assert (len(descriptors), none, first.is_kept, second.is_kept) == (1, (), True, True)
    assert second.size == first.size
    large, _ = ours.hand_over(_item(ours, 3, count=40, side=100))
    assert not large.is_kept
    ours.release()
    _, descriptors = ours.hand_over(_item(ours, 4))
    assert len(descriptors) == 1
    ours.close()


def test_rows_that_were_left_out_and_arrays_from_elsewhere() -> None:
    ours, theirs = SharedPixels(KEPT_BYTES), ReceivedPixels()
    arrays = _item(ours, 7)
    part = _send(ours, theirs, {"a": arrays["a"][:1]})
    assert part["a"].shape == (1, 8, 8, 3)
    elsewhere = _send(ours, theirs, {"a": arrays["a"][::-1], "c": np.full((1, 3, 3, 3), 9, np.uint8)})
    assert (elsewhere["a"] == 7).all()
    assert (elsewhere["c"] == 9).all()


def test_pixels_without_a_file_are_a_fault_of_the_sender() -> None:
    with pytest.raises(ValueError, match="no memory file"):
        ReceivedPixels().arrays(Shared(1, {}, is_kept=True), [])
