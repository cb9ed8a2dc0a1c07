"""What decoding one item, or one segment of it, may cost."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Bounds of decoding; every one of them must be above 0.

    Args:
        unit_bytes: Most bytes of pixels that one segment hands on; longer items are cut into segments.
        unit_clips: Most clips, of all models together, that one segment hands on, and so rows of features: frames that
            are shown for long make many clips of few pixels.
        max_pixels: Most pixels in one source frame.
        memory_bytes: What a decoding process may take beyond its own size at the start.
        stall_s: Seconds without progress after which an item is given up.
        deadline_s: Seconds after which an item is given up whatever it does.
    """

    unit_bytes: int = 48 << 20
    unit_clips: int = 4096
    max_pixels: int = 8192 * 8192
    memory_bytes: int = 2048 << 20
    stall_s: float = 90.0
    deadline_s: float = 1800.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value <= 0:
                raise ValueError(f"decode limits: {name} ({value}) must be above 0")
