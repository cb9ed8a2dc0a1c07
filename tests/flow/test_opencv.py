"""OpenCV's sources on motion that is known."""

from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np
import pytest

from featlib.flow.build import open_estimator
from featlib.flow.opencv import OpenCVFlow
from featlib.flow.sources import DIS_SETTINGS, FARNEBACK_SETTINGS, OPENCV_SOURCES, TVL1_SETTINGS
from tests.flow.textures import Shift, is_flow_of, moving

SHIFTS: list[Shift] = [(3, -2), (1.5, 0.5), (-0.5, 2.25), (6, 4)]
ONE_PAIR = np.array([[0, 1]])


@pytest.fixture(autouse=True)
def threads_as_they_were() -> Iterator[None]:
    before = cv2.getNumThreads()
    yield
    cv2.setNumThreads(before)


@pytest.mark.parametrize("shift", SHIFTS)
@pytest.mark.parametrize("name", OPENCV_SOURCES)
def test_known_motion_is_found_within_half_a_pixel(name: str, shift: Shift) -> None:
    flow = open_estimator(name).flows(moving((0, 0), shift), ONE_PAIR)
    assert flow.shape == (1, 96, 128, 2)
    assert flow.dtype == np.float32
    assert is_flow_of(shift, flow[0])


@pytest.mark.parametrize("shift", SHIFTS)
@pytest.mark.parametrize("name", OPENCV_SOURCES)
def test_swapped_axes_reversed_sign_and_reversed_time_are_not_that_motion(name: str, shift: Shift) -> None:
    estimator, frames = open_estimator(name), moving((0, 0), shift)
    forward, backward = estimator.flows(frames, np.array([[0, 1], [1, 0]]))
    assert is_flow_of((-shift[0], -shift[1]), backward)
    for wrong in (forward[..., ::-1], -forward, -forward[..., ::-1], backward, np.zeros_like(forward)):
        assert not is_flow_of(shift, wrong)


def test_the_check_of_motion_refuses_a_tenth_of_wrong_pixels_and_a_shift_of_half_a_pixel() -> None:
    flow = np.broadcast_to(np.float32([3, -2]), (96, 128, 2)).copy()
    assert is_flow_of((3, -2), flow)
    assert not is_flow_of((3, -2), flow + np.float32([0.5, 0]))
    flow[16:24, 16:-16] = 0  # an eighth of the interior
    assert not is_flow_of((3, -2), flow)


@pytest.mark.parametrize("name", OPENCV_SOURCES)
def test_pairs_pick_their_frames_and_a_frame_with_itself_is_exactly_still(name: str) -> None:
    frames = moving((0, 0), (2, 0), (2, 3))
    pairs = np.array([[0, 1], [1, 1], [1, 2], [2, 0], [2, 2]])
    flows = open_estimator(name).flows(frames, pairs)
    assert is_flow_of((2, 0), flows[0])
    assert is_flow_of((0, 3), flows[2])
    assert is_flow_of((-2, -3), flows[3])
    assert not flows[[1, 4]].any()


@pytest.mark.parametrize("name", OPENCV_SOURCES)
def test_a_pair_does_not_depend_on_those_before_it(name: str) -> None:
    """OpenCV's objects keep buffers from call to call; no flow may be taken up as the start of the next."""
    frames = moving((0, 0), (4, -3), (1, 1))
    used = open_estimator(name)
    together = used.flows(frames, np.array([[0, 1], [1, 2]]))
    again = used.flows(frames, np.array([[1, 2]]))
    alone = open_estimator(name).flows(frames, np.array([[1, 2]]))
    assert np.array_equal(together[1], alone[0])
    assert np.array_equal(again[0], alone[0])


@pytest.mark.parametrize("name", OPENCV_SOURCES)
def test_equals_opencv_called_by_hand_with_its_own_defaults(name: str) -> None:
    frames = moving((0, 0), (2.5, 1))
    # Luma of ITU-R BT.601 from R, G, B in this order.
    first, second = (np.rint(f @ [0.299, 0.587, 0.114]).astype(np.uint8) for f in frames)
    expected: Any
    if name == "tvl1":
        expected = cv2.optflow.DualTVL1OpticalFlow_create().calc(first, second, None)
    elif name == "dis":
        expected = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM).calc(first, second, None)
    else:
        expected = cv2.calcOpticalFlowFarneback(first, second, None, 0.5, 3, 15, 3, 5, 1.2, 0)
    flow = open_estimator(name).flows(frames, ONE_PAIR)[0]
    wrong_order = open_estimator(name).flows(np.ascontiguousarray(frames[..., ::-1]), ONE_PAIR)[0]
    # Luma by hand rounds a few pixels differently.
    assert np.abs(flow - expected).mean() < 1e-3
    assert np.abs(wrong_order - expected).mean() > 5e-3


def test_settings_are_all_that_opencv_has_at_its_published_values() -> None:
    tvl1 = cv2.optflow.DualTVL1OpticalFlow_create()
    assert getters(tvl1) == TVL1_SETTINGS
    medium = getters(cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM))
    assert medium.pop("CoarsestScale") == -1  # chosen by the size of the frames
    assert {k: round(v, 6) if isinstance(v, float) else v for k, v in medium.items()} == DIS_SETTINGS
    assert list(FARNEBACK_SETTINGS.values()) == [0.5, 3, 15, 3, 5, 1.2, 0]


def getters(algorithm: Any) -> dict[str, Any]:
    names = [n.removeprefix("get") for n in dir(algorithm) if n.startswith("get") and n != "getDefaultName"]
    return {name: getattr(algorithm, f"get{name}")() for name in names}


@pytest.mark.parametrize("threads", [1, 2])
def test_threads_are_set_on_purpose_and_do_not_change_values(threads: int) -> None:
    frames = moving((0, 0), (3, -2))
    for name in OPENCV_SOURCES:
        reference = OpenCVFlow(name, threads=1).flows(frames, ONE_PAIR)
        estimator = OpenCVFlow(name, threads=threads)
        assert cv2.getNumThreads() == threads
        assert np.allclose(estimator.flows(frames, ONE_PAIR), reference, rtol=0, atol=1e-4)


def test_wrong_arrays_are_refused() -> None:
    estimator, frames = open_estimator("dis"), moving((0, 0), (1, 0))
    with pytest.raises(ValueError, match=r"frames are float32 \(2, 96, 128, 3\), not uint8"):
        estimator.flows(frames.astype(np.float32), ONE_PAIR)
    with pytest.raises(ValueError, match="not uint8"):
        estimator.flows(frames[..., :2], ONE_PAIR)
    for wrong in (np.array([0, 1]), np.array([[0, 1, 1]]), np.array([[0.0, 1.0]])):
        with pytest.raises(ValueError, match="not whole numbers"):
            estimator.flows(frames, wrong)
    for wrong in (np.array([[0, 2]]), np.array([[-1, 0]])):
        with pytest.raises(ValueError, match="but there are 2 frames"):
            estimator.flows(frames, wrong)
    with pytest.raises(ValueError, match="frames of 128x15 are too small"):
        estimator.flows(frames[:, :15], ONE_PAIR)
    assert estimator.flows(frames, np.zeros((0, 2), np.int64)).shape == (0, 96, 128, 2)
