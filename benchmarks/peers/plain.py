"""What all peers share, with nothing of featlib in it: decoding with PyAV, torchvision's preset, the bare network."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor, nn
from torchvision.models import get_model, get_model_weights

from benchmarks.jobs import Job

Preset = Any  # of torchvision, which has no name for what all of them are


def network(name: str) -> nn.Module:
    """Random weights of seed 0; what the last linear layer reads is the feature."""
    torch.manual_seed(0)
    module = get_model(name, weights=None).eval()
    module.fc = nn.Identity()
    return module


def preset(name: str) -> Preset:
    """The preprocessing that is published with the network's weights."""
    return get_model_weights(name).DEFAULT.transforms()


def preprocessed(preset: Preset, picture: Tensor) -> Tensor:
    """float32, as the network reads it; clips by one thread.

    torch's resize without antialiasing gives other last bits with two, and all programs are to read the same pixels.
    """
    if picture.ndim == 3:
        return preset(picture)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return preset(picture)
    finally:
        torch.set_num_threads(threads)


def frames(path: str, threads: str = "AUTO") -> Iterator[av.VideoFrame]:
    """Every frame of a video."""
    with av.open(path, metadata_errors="replace") as container:
        stream = container.streams.video[0]
        stream.thread_type = threads
        yield from container.decode(stream)


def rgb(frame: av.VideoFrame) -> Tensor:
    """uint8 (3, height, width)."""
    return torch.from_numpy(frame.to_ndarray(format="rgb24")).permute(2, 0, 1)


def pictures(job: Job, path: str, threads: str = "AUTO") -> Iterator[Tensor]:
    """uint8 (3, H, W) of each frame, or (frames, 3, H, W) of each clip, that the job wants of a video, in order."""
    window: list[Tensor] = []
    for i, frame in enumerate(frames(path, threads)):
        if not job.clip_frames:
            if i % job.every == 0:
                yield rgb(frame)
            continue
        window.append(rgb(frame))
        if len(window) == job.clip_frames:
            yield torch.stack(window)
            window = []


def write(job: Job, rows: list[tuple[str, int]], features: list[Tensor]) -> None:
    """One Parquet file in the job's output."""
    names, indices = zip(*rows, strict=True)
    values = pa.array(list(torch.cat(features).numpy()), pa.list_(pa.float32()))
    table = pa.table({"media_id": names, "clip_index": indices, "feature": values})
    pq.write_table(table, Path(job.output) / "features.parquet")
