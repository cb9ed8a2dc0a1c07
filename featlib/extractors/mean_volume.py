"""``--preprocess MEAN.npy``: the mean of each pixel of a clip, which C3D was trained with, instead of one a channel."""

import hashlib
import io
import math
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from featlib.errors import ConfigError, MediaError
from featlib.extractors.weights import MEAN_VOLUME, LoadedWeights
from featlib.redaction import redact
from featlib.spec import InputSpec
from featlib.storage import StoreOptions, read_bytes

ENDING = ".npy"

_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}  # by version


def with_mean_volume(loaded: LoadedWeights, url: str, frames: int, options: StoreOptions) -> LoadedWeights:
    """``loaded`` with the mean in the file at ``url``, a numpy array (3, T, H, W) of values in 0..255.

    Its channels are in the network's order (BGR for networks of Caffe); H and W are those of the resized frames, of
    which the centre is cut as of the frames, or of the crop itself.

    Raises:
        ConfigError: The file cannot be read, or the array does not fit the network's clips.
    """
    what = f"--preprocess {redact(url)}"
    reads = loaded.reads
    if reads.kind != "clip" or reads.flow is not None:
        raise ConfigError(f"{what}: the mean of a clip's pixels is for networks of RGB clips, like c3d; leave it out")
    try:
        data = read_bytes(url, options)
    except (MediaError, OSError) as error:
        raise ConfigError(f"{what}: cannot be read ({_line(error)})") from None
    tensor = _fitted(_volume(data, reads, frames, what), reads, what)
    digest = hashlib.sha256(data).hexdigest()
    return replace(loaded, reads=replace(reads, mean_volume=digest), state={**loaded.state, MEAN_VOLUME: tensor})


def _volume(data: bytes, reads: InputSpec, frames: int, what: str) -> np.ndarray:
    """The array in a file, once its header says that it is one that fits."""
    try:
        dtype, shape, begin = _header(data)
    except Exception as error:  # noqa: BLE001 - a header is a Python literal of anything
        raise ConfigError(f"{what}: cannot be read ({_line(error)})") from None
    sizes = (reads.pixels.resize, reads.pixels.crop or (0, 0))
    allowed = [(3, frames, *size) for size in sizes if len(size) == 2]
    if shape not in allowed or not np.issubdtype(dtype, np.floating):
        shapes = " or ".join(map(str, allowed))
        raise ConfigError(f"{what}: is {f'{dtype} {shape}':.200}, but must be floats {shapes}")
    claimed, held = math.prod(shape) * dtype.itemsize, len(data) - begin
    if claimed != held:
        raise ConfigError(f"{what}: claims {claimed} bytes of numbers and holds {held}; use another file")
    return np.asarray(np.lib.format.read_array(io.BytesIO(data), allow_pickle=False))


def _header(data: bytes) -> tuple[np.dtype, tuple[int, ...], int]:
    """Type and shape that a ``.npy`` file claims, and where its numbers begin."""
    stream = io.BytesIO(data)
    version = np.lib.format.read_magic(stream)
    shape, _, dtype = _HEADERS[version](stream)
    return dtype, shape, stream.tell()


def _fitted(volume: np.ndarray, reads: InputSpec, what: str) -> Tensor:
    crop = reads.pixels.crop or (0, 0)
    if not np.isfinite(volume).all():
        raise ConfigError(f"{what}: holds NaN or infinite values; use another file")
    (height, width), (high, wide) = volume.shape[2:], crop
    top, left = round((height - high) / 2), round((width - wide) / 2)
    return torch.from_numpy(volume[:, :, top : top + high, left : left + wide].astype(np.float32).copy())


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
