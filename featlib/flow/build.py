"""A source's name becomes an estimator: what an actor does once, before its first pair."""

from featlib.flow.estimate import FlowEstimator
from featlib.flow.sources import OPENCV_SOURCES, check_source


def open_estimator(name: str, *, payload: bytes = b"", device: str = "cpu", threads: int = 1) -> FlowEstimator:
    """The estimator of the source called ``name``; only its own library is loaded.

    Args:
        payload: RAFT's weights, from ``featlib.flow.weights``; OpenCV's sources have none.
        device: ``cpu``, ``cuda`` or ``cuda:N`` for RAFT; OpenCV's sources run on the CPU.
        threads: CPU threads in this process.

    Raises:
        ConfigError: There is no such source here.
    """
    check_source(name)
    if name in OPENCV_SOURCES:
        from featlib.flow.opencv import OpenCVFlow

        return OpenCVFlow(name, threads=threads)
    from featlib.flow.raft import RaftFlow

    return RaftFlow(name, payload, device=device, threads=threads)
