"""One core's share of the limit: nothing but decoding, and nothing but the forward pass.

Started once a core; each line it reads is an order (``decode plain``, ``decode featlib``, ``forward fp32``), each
line it prints the answer in JSON. Orders go to all of these processes at once, so that every core is busy.
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch._inductor.config
from torch import Tensor, nn

from benchmarks.decoders import Arena
from benchmarks.jobs import Job
from benchmarks.peers import plain
from featlib.config import ModelConfig
from featlib.extractors.resolve import resolve
from featlib.media import Limits
from featlib.media.decode import decode_item
from featlib.media.nursery import keep_freed_memory
from featlib.spec import MediaItem, Segment
from featlib.storage import StoreOptions

FORWARD_S = 4.0
"""Long enough for a rate, short enough for three rounds."""


class Worker:
    """Decoding and forward passes of one job.

    Args:
        threads: CPU threads of this process.
        compiles: False leaves the network as it is, where there is no compiler or no time for it.
    """

    def __init__(self, job: Job, *, threads: int = 1, compiles: bool = True) -> None:
        torch.set_num_threads(threads)
        keep_freed_memory()  # as a decoding process does; here it serves both decoders
        self._memory = Arena()
        self._job, self._compiles = job, compiles
        self._want = resolve(_model(job), StoreOptions()).want
        self._forwards: dict[str, tuple[nn.Module, Tensor]] = {}

    def decode(self, how: str) -> dict[str, float]:
        """CPU seconds from the files to uint8 pixels of the network's size, and the rows that came out."""
        started = time.process_time()
        rows = sum(self._decoders[how](name, path) for name, path in self._job.clips)
        return {"seconds": time.process_time() - started, "rows": rows}

    @property
    def _decoders(self) -> dict[str, Callable[[str, str], int]]:
        return {"plain": self._decode_plain, "featlib": self._decode_featlib}

    def _decode_plain(self, name: str, path: str) -> int:
        preset = plain.preset(self._job.network)
        return sum(_resized(preset, p) is not None for p in plain.pictures(self._job, path, threads="NONE"))

    def _decode_featlib(self, name: str, path: str) -> int:
        decoded = decode_item(
            MediaItem(name, path), (self._want,), Segment(0, 1), store_options=StoreOptions(), limits=Limits(),
            allocate=self._memory.allocate,
        )  # fmt: skip
        return len(decoded.clips[self._want.label])

    def prepare(self, precision: str) -> dict[str, float]:
        """Builds and compiles the network; gives the seconds that took."""
        started = time.perf_counter()
        module = plain.network(self._job.network)
        x = torch.rand(self._shape(), generator=torch.Generator().manual_seed(0))
        if not self._job.clip_frames:
            module, x = module.to(memory_format=torch.channels_last), x.contiguous(memory_format=torch.channels_last)
        if precision == "bf16":
            module, x = module.bfloat16(), x.bfloat16()
        if self._compiles:
            torch._inductor.config.freezing = True
            module = torch.compile(module)
        self._forwards[precision] = module, x
        with torch.no_grad():  # inference_mode hides parameters from freezing
            module(x), module(x)
        return {"seconds": time.perf_counter() - started}

    def forward(self, precision: str) -> dict[str, float]:
        """Seconds of forward passes over inputs that lie in memory, and their rows."""
        module, x = self._forwards[precision]
        rows, started = 0, time.perf_counter()
        with torch.no_grad():
            while not rows or time.perf_counter() - started < FORWARD_S:
                module(x)
                rows += len(x)
        return {"seconds": time.perf_counter() - started, "rows": rows}

    def _shape(self) -> tuple[int, ...]:
        preset = plain.preset(self._job.network)
        side = preset.crop_size[0]
        return (2, 3, self._job.clip_frames, side, side) if self._job.clip_frames else (16, 3, side, side)


def _resized(preset: Any, picture: Tensor) -> Tensor:
    """uint8 pixels as the network reads them, without the normalisation, which is the forward pass's affair."""
    from torchvision.transforms.functional import center_crop, resize

    antialias = getattr(preset, "antialias", False)  # torchvision's preset for video has none
    scaled = resize(picture, list(preset.resize_size), preset.interpolation, antialias=antialias)
    return center_crop(scaled, preset.crop_size)


def _model(job: Job) -> ModelConfig:
    sampling = (
        {"clip_sampling": f"frames={job.clip_frames},stride=1,hop={job.clip_frames}"}
        if job.clip_frames
        else {"frame_sampling": f"every:{job.every}"}
    )
    return ModelConfig(network=job.network, weights="random:0", **sampling)


def main() -> None:
    job, threads, compiles = Job.load(Path(sys.argv[1])), int(sys.argv[2]), sys.argv[3] == "compiled"
    worker = Worker(job, threads=threads, compiles=compiles)
    orders = {"decode": worker.decode, "prepare": worker.prepare, "forward": worker.forward}
    print(json.dumps({"seconds": 0.0}), flush=True)
    for line in sys.stdin:
        verb, what = line.split()
        print(json.dumps(orders[verb](what)), flush=True)


if __name__ == "__main__":
    main()
