"""Which frames, clips and boxes a model sees, as users write it."""

from dataclasses import dataclass
from fractions import Fraction
from typing import Literal, cast

FramePolicy = Literal["all", "every", "fps", "uniform", "random", "keyframes"]
Tail = Literal["drop", "pad", "shift"]
RegionPolicy = Literal["top", "fixed"]

FRAME_POLICIES: tuple[FramePolicy, ...] = ("all", "every", "fps", "uniform", "random", "keyframes")
_NEEDS_VALUE: dict[str, str] = {"every": "N", "fps": "F", "uniform": "K", "random": "K"}


@dataclass(frozen=True)
class FrameSampling:
    """Which frames of a video a frame model sees.

    Args:
        policy: ``all``; ``every`` N-th; ``fps``: the frame shown at start + i/F; ``uniform``: frame
            floor((i + 1/2) n / K); ``random``: K frames seeded by the media id; ``keyframes``.
        value: N, F or K of the policy; None for ``all`` and ``keyframes``.
    """

    policy: FramePolicy
    value: Fraction | None = None

    @classmethod
    def parse(cls, text: str) -> "FrameSampling":
        """Reads ``all``, ``every:8``, ``fps:1``, ``fps:30000/1001``, ``uniform:16``, ``random:16``, ``keyframes``.

        Raises:
            ValueError: The text is none of these; the message says which are.
        """
        name, _, value = text.strip().partition(":")
        if name not in FRAME_POLICIES:
            raise ValueError(
                f"frame sampling {text!r} is not known; use all, every:N, fps:F, uniform:K, random:K or keyframes"
            )
        letter = _NEEDS_VALUE.get(name)
        if letter is None:
            if value:
                raise ValueError(f"frame sampling {text!r} takes no value; write {name}")
            return cls(name)
        number = _positive(value, f"frame sampling {text!r}: {letter}")
        if name != "fps" and number.denominator != 1:
            raise ValueError(f"frame sampling {text!r}: {letter} must be a whole number")
        return cls(name, number)

    def __str__(self) -> str:
        return self.policy if self.value is None else f"{self.policy}:{_number(self.value)}"


@dataclass(frozen=True)
class ClipSampling:
    """How a video is cut into clips for a clip model.

    Args:
        frames: Frames in one clip.
        stride: Distance between neighbouring frames of a clip, in frames.
        hop: Distance between the first frames of neighbouring clips, in frames.
        tail: ``drop`` an incomplete last clip, ``pad`` it by repeating the last frame, or ``shift`` it back so
            that it ends at the last frame.
        fps: When given, frames are first picked by time at this rate (the frame shown at start + i/fps) and
            ``stride`` and ``hop`` count in picked frames.
    """

    frames: int
    stride: int = 1
    hop: int = 0
    tail: Tail = "drop"
    fps: Fraction | None = None

    def __post_init__(self) -> None:
        if self.hop == 0:
            object.__setattr__(self, "hop", self.frames * self.stride)
        for name in ("frames", "stride", "hop"):
            if getattr(self, name) < 1:
                raise ValueError(f"clip sampling: {name} ({getattr(self, name)}) must be at least 1")
        if self.tail not in ("drop", "pad", "shift"):
            raise ValueError(f"clip sampling: tail ({self.tail!r}) must be drop, pad or shift")

    @property
    def span(self) -> int:
        """Frames from the first to the last frame of a clip, both counted."""
        return (self.frames - 1) * self.stride + 1

    def __str__(self) -> str:
        text = f"frames={self.frames},stride={self.stride},hop={self.hop},tail={self.tail}"
        return text if self.fps is None else f"{text},fps={_number(self.fps)}"


Sampling = FrameSampling | ClipSampling

CLIP_KEYS = ("frames", "stride", "hop", "tail", "fps")


def parse_clip_keys(text: str) -> dict[str, str]:
    """Splits ``frames=16,stride=1`` into its keys; what is absent is left to the network's own clip sampling.

    Raises:
        ValueError: A key is unknown, given twice, or has no value.
    """
    keys: dict[str, str] = {}
    for part in filter(None, (p.strip() for p in text.split(","))):
        name, equals, value = part.partition("=")
        if name not in CLIP_KEYS or not equals or not value:
            raise ValueError(f"clip sampling {text!r}: {part!r} is not one of {', '.join(k + '=' for k in CLIP_KEYS)}")
        if name in keys:
            raise ValueError(f"clip sampling {text!r}: {name} is given twice")
        keys[name] = value
    return keys


def clip_sampling(text: str, default: ClipSampling) -> ClipSampling:
    """The clip sampling that ``text`` asks for, with the network's own values for what it leaves out.

    A given ``frames`` or ``stride`` without a ``hop`` makes clips that follow one another as the network's own do:
    without overlap, or in one shared frame (clips of optical flow, so that no flow is left out); else its hop stays.

    Raises:
        ValueError: A value is not a number or out of range.
    """
    keys = parse_clip_keys(text)
    numbers: dict[str, int] = {}
    for name in ("frames", "stride", "hop"):
        if name in keys:
            number = _positive(keys[name], f"clip sampling {text!r}: {name}")
            if number.denominator != 1:
                raise ValueError(f"clip sampling {text!r}: {name} must be a whole number")
            numbers[name] = int(number)
    frames, stride = numbers.get("frames", default.frames), numbers.get("stride", default.stride)
    overlap = default.frames - default.hop // default.stride
    follows = default.hop == (default.frames - overlap) * default.stride and overlap in (0, 1)
    hop = numbers.get("hop", max(1, frames - overlap) * stride if follows else default.hop)
    tail = keys.get("tail", default.tail)
    if tail not in ("drop", "pad", "shift"):
        raise ValueError(f"clip sampling {text!r}: tail must be drop, pad or shift")
    fps = _positive(keys["fps"], f"clip sampling {text!r}: fps") if "fps" in keys else default.fps
    return ClipSampling(frames, stride, hop, cast(Tail, tail), fps)


@dataclass(frozen=True)
class RegionChoice:
    """Which of the boxes that a detector finds in a frame are kept.

    Args:
        policy: ``top``: those over the detector's published score threshold, at most ``count``. ``fixed``: the best
            ``count`` whatever their score; fewer only when the detector has no more.
        count: Boxes a frame.
    """

    policy: RegionPolicy
    count: int

    @classmethod
    def parse(cls, text: str) -> "RegionChoice":
        """Reads ``top:100`` and ``fixed:36``.

        Raises:
            ValueError: The text is neither.
        """
        name, _, value = text.strip().partition(":")
        if name not in ("top", "fixed"):
            raise ValueError(f"regions {text!r} is not known; use top:K or fixed:K")
        number = _positive(value, f"regions {text!r}: K")
        if number.denominator != 1:
            raise ValueError(f"regions {text!r}: K must be a whole number")
        return cls(cast(RegionPolicy, name), int(number))

    def __str__(self) -> str:
        return f"{self.policy}:{self.count}"


def _positive(text: str, what: str) -> Fraction:
    try:
        number = Fraction(text)
    except (ValueError, ZeroDivisionError):
        raise ValueError(f"{what} ({text!r}) is not a number") from None
    if number <= 0:
        raise ValueError(f"{what} ({text}) must be above 0")
    return number


def _number(value: Fraction) -> str:
    if value.denominator == 1:
        return str(value.numerator)
    text = repr(float(value))
    return text if Fraction(text) == value else f"{value.numerator}/{value.denominator}"
