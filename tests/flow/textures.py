"""Pictures whose motion is known exactly: sums of waves, evaluated at shifted positions, nothing interpolated."""

import numpy as np
import numpy.typing as npt

UInt8 = npt.NDArray[np.uint8]
Shift = tuple[float, float]


def texture(shift: Shift, *, height: int = 96, width: int = 128, seed: int = 0) -> UInt8:
    """A smooth random colour picture, (height, width, 3), moved by ``shift`` pixels to the right and down."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width].astype(float)
    x, y = x - shift[0], y - shift[1]
    count = 60
    values = np.zeros((height, width, 3))
    for channel in range(3):
        wavelength, direction, phase = rng.uniform((10, 0, 0), (60, 2 * np.pi, 2 * np.pi), (count, 3)).T
        along = np.cos(direction)[:, None, None] * x + np.sin(direction)[:, None, None] * y
        values[..., channel] = np.cos(2 * np.pi * along / wavelength[:, None, None] + phase[:, None, None]).sum(axis=0)
    return np.clip(np.rint(127.5 + values * 127.5 / (3 * np.sqrt(count / 2))), 0, 255).astype(np.uint8)


def moving(*shifts: Shift, height: int = 96, width: int = 128, seed: int = 0) -> UInt8:
    """Frames (num_frames, height, width, 3) of one texture at these shifts."""
    return np.stack([texture(shift, height=height, width=width, seed=seed) for shift in shifts])


def is_flow_of(shift: Shift, flow: npt.NDArray[np.float32], *, border: int = 16) -> bool:
    """Whether half of the interior, and at least 90 % of it, is within half a pixel of ``shift``."""
    inside = flow[border:-border, border:-border]
    error = np.hypot(inside[..., 0] - shift[0], inside[..., 1] - shift[1])
    return bool(np.median(error) < 0.5 and (error < 0.5).mean() >= 0.9)
