"""``--preprocess MEAN.npy``: the mean of each pixel of a clip, which C3D was trained with, instead of one a channel."""

import hashlib
import io
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
        volume = np.asarray(np.lib.format.read_array(io.BytesIO(data), allow_pickle=False))
    except (MediaError, OSError, ValueError, EOFError) as error:
        raise ConfigError(f"{what}: cannot be read ({' '.join(str(error).split())[:200]})") from None
    tensor = _fitted(volume, reads, frames, what)
    digest = hashlib.sha256(data).hexdigest()
    return replace(loaded, reads=replace(reads, mean_volume=digest), state={**loaded.state, MEAN_VOLUME: tensor})


def _fitted(volume: np.ndarray, reads: InputSpec, frames: int, what: str) -> Tensor:
    crop, resized = reads.pixels.crop or (0, 0), reads.pixels.resize
    allowed = [(3, frames, *size) for size in (resized, crop) if len(size) == 2]
    if volume.shape not in allowed or not np.issubdtype(volume.dtype, np.floating):
        shapes = " or ".join(map(str, allowed))
        raise ConfigError(f"{what}: is {volume.dtype} {volume.shape}, but must be floats {shapes}")
    if not np.isfinite(volume).all():
        raise ConfigError(f"{what}: holds NaN or infinite values; use another file")
    (height, width), (high, wide) = volume.shape[2:], crop
    top, left = round((height - high) / 2), round((width - wide) / 2)
    return torch.from_numpy(volume[:, :, top : top + high, left : left + wide].astype(np.float32).copy())
