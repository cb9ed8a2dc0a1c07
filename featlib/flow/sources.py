"""Optical flow sources by name: which there are, what changes their values, whether this machine has them."""

from collections.abc import Mapping
from importlib import import_module
from operator import attrgetter
from typing import Any

from featlib.errors import ConfigError
from featlib.extractors.registry import near

# Named as the setters of cv2.optflow.DualTVL1OpticalFlow; the values are what its create() takes when told nothing.
# Lambda is meant for grey values of 0 to 255.
TVL1_SETTINGS: Mapping[str, Any] = {
    "Tau": 0.25,
    "Lambda": 0.15,
    "Theta": 0.3,
    "ScalesNumber": 5,
    "WarpingsNumber": 5,
    "Epsilon": 0.01,
    "InnerIterations": 30,
    "OuterIterations": 10,
    "ScaleStep": 0.8,
    "Gamma": 0.0,
    "MedianFiltering": 5,
    "UseInitialFlow": False,
}

# Arguments of cv2.calcOpticalFlowFarneback: those of OpenCV's own dense flow example, the usual choice.
FARNEBACK_SETTINGS: Mapping[str, Any] = {
    "pyr_scale": 0.5,
    "levels": 3,
    "winsize": 15,
    "iterations": 3,
    "poly_n": 5,
    "poly_sigma": 1.2,
    "flags": 0,
}

# Named as the setters of cv2.DISOpticalFlow; the values are those of its preset MEDIUM, the only one that matches
# patches down to half the resolution (the others stop at a quarter).
DIS_SETTINGS: Mapping[str, Any] = {
    "FinestScale": 1,
    "PatchSize": 8,
    "PatchStride": 3,
    "GradientDescentIterations": 25,
    "VariationalRefinementIterations": 5,
    "VariationalRefinementAlpha": 20.0,
    "VariationalRefinementDelta": 5.0,
    "VariationalRefinementGamma": 10.0,
    "VariationalRefinementEpsilon": 0.01,
    "UseMeanNormalization": True,
    "UseSpatialPropagation": True,
}

RAFT_UPDATES = 12
RAFT_SIDE_STEP = 8  # RAFT works at an eighth of the resolution
RAFT_LEAST_SIDE = 128  # under it the coarsest of its four correlation maps has a side of one

_OPENCV_SETTINGS = {"tvl1": TVL1_SETTINGS, "farneback": FARNEBACK_SETTINGS, "dis": DIS_SETTINGS}
_OPENCV_CALLS = {
    "tvl1": "optflow.DualTVL1OpticalFlow_create",
    "farneback": "calcOpticalFlowFarneback",
    "dis": "DISOpticalFlow_create",
}

OPENCV_SOURCES: tuple[str, ...] = tuple(_OPENCV_SETTINGS)
RAFT_SOURCES: tuple[str, ...] = ("raft_large", "raft_small")
SOURCES: tuple[str, ...] = OPENCV_SOURCES + RAFT_SOURCES

# Of featlib's own part in the values; raised for a source when they change.
_VERSIONS = dict.fromkeys(SOURCES, "1")


def check_source(name: str) -> None:
    """Whether flow can be had from the source called ``name`` in this environment; loads OpenCV for its sources.

    Raises:
        ConfigError: There is no such source, it needs CUDA, or OpenCV lacks it; one line says what to do.
    """
    if name.lower() == "brox":
        raise ConfigError(
            "--flow brox: OpenCV has Brox's flow only for CUDA, in no package that pip installs; "
            "use tvl1, the other classical variational method"
        )
    _check_name(name)
    if name in OPENCV_SOURCES:
        _check_opencv(name)


def describe_source(name: str) -> str:
    """Everything that changes a source's values, its version included, except RAFT's weights (their SHA-256 tells).

    OpenCV's and torchvision's own versions are for the record and not part of it.

    Raises:
        ConfigError: There is no such source.
    """
    _check_name(name)
    if name in OPENCV_SOURCES:
        settings = ",".join(f"{key}={value}" for key, value in _OPENCV_SETTINGS[name].items())
        return f"opencv/{name}/{_VERSIONS[name]}(grey=BT.601,{settings})"
    return (
        f"torchvision/{name}/{_VERSIONS[name]}(updates={RAFT_UPDATES},range=[-1,1],"
        f"pad=replicate:centred:step={RAFT_SIDE_STEP}:least={RAFT_LEAST_SIDE},fp32)"
    )


def _check_name(name: str) -> None:
    if name not in SOURCES:
        hint = near(name.lower(), SOURCES, listing=f"there are {', '.join(SOURCES)}")
        raise ConfigError(f"--flow {name}: no such source of optical flow; {hint}")


def _check_opencv(name: str) -> None:
    try:
        cv2 = import_module("cv2")
    except ImportError as error:
        reason = " ".join(str(error).split())[:120]
        raise ConfigError(
            f"--flow {name}: OpenCV cannot be imported ({reason}); pip install 'featlib[flow]', "
            "or use raft_large or raft_small"
        ) from None
    try:
        attrgetter(_OPENCV_CALLS[name])(cv2)
    except AttributeError:
        raise ConfigError(
            f"--flow {name}: this OpenCV lacks cv2.{_OPENCV_CALLS[name]}, it is a build without the contrib modules; "
            "uninstall it and pip install 'featlib[flow]', or use farneback or dis"
        ) from None
