"""TV-L1, Farneback and DIS flow by OpenCV on the CPU."""

from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from typing import Any

import numpy as np

from featlib.flow.estimate import FlowEstimator, Flows, Pairs, UInt8Frames
from featlib.flow.sources import DIS_SETTINGS, FARNEBACK_SETTINGS, TVL1_SETTINGS

cv2: Any = import_module("cv2")  # an extra; its type stubs know neither optflow nor DIS

_LEAST_SIDE = 16  # DIS refuses frames under 12; smaller ones have no motion to speak of


class OpenCVFlow(FlowEstimator):
    """One of OpenCV's methods, on grey frames.

    Args:
        name: ``tvl1``, ``farneback`` or ``dis``.
        threads: CPU threads that OpenCV uses in this process; its own default would be all there are.
    """

    def __init__(self, name: str, *, threads: int = 1) -> None:
        super().__init__(name)
        cv2.setNumThreads(threads)
        self._flow = _METHODS[name]()

    def _computed(self, frames: UInt8Frames, pairs: Pairs) -> Iterator[Flows]:
        height, width = frames.shape[1:3]
        if min(height, width) < _LEAST_SIDE:
            raise ValueError(f"{self.name}: frames of {width}x{height} are too small, it needs sides of {_LEAST_SIDE}")
        grey = {i: cv2.cvtColor(frames[i], cv2.COLOR_RGB2GRAY) for i in np.unique(pairs).tolist()}
        for first, second in pairs.tolist():
            yield self._flow(grey[first], grey[second])


_Method = Callable[[Any, Any], Any]


def _tvl1() -> _Method:
    return _dense(cv2.optflow.DualTVL1OpticalFlow_create(), TVL1_SETTINGS)


def _dis() -> _Method:
    return _dense(cv2.DISOpticalFlow_create(), DIS_SETTINGS)


def _dense(algorithm: Any, settings: Mapping[str, Any]) -> _Method:
    for name, value in settings.items():
        getattr(algorithm, f"set{name}")(value)
    return lambda first, second: algorithm.calc(first, second, None)


def _farneback() -> _Method:
    return lambda first, second: cv2.calcOpticalFlowFarneback(first, second, None, **FARNEBACK_SETTINGS)


_METHODS: Mapping[str, Callable[[], _Method]] = {"tvl1": _tvl1, "farneback": _farneback, "dis": _dis}
