"""Where the CPU seconds of one whole job go: by process, and within decoding by step."""

import json
import shutil
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar
from unittest import mock

import torch

from benchmarks.clips import Clip, choose, inspected, repeated
from benchmarks.decoders import Arena
from benchmarks.figures import Figure, Outcome, Setting
from benchmarks.jobs import Job
from benchmarks.processes import Spent, watched
from benchmarks.programs import FEATLIB, environment
from featlib.media import Limits, decode_item
from featlib.media.decode import PixelStore
from featlib.media.nursery import keep_freed_memory
from featlib.sampling import FrameSampling
from featlib.spec import MediaItem, PixelSpec, Segment, Want
from featlib.storage import StoreOptions

T = TypeVar("T")

TITLE = "one job, CPU seconds"
_TIMES = 4
_PRESET = PixelSpec((232,), (224, 224))


def whole_job(setting: Setting) -> Outcome:
    """ResNet-50 in fp32, compiled, over one frame in 8 of the clips four times."""
    clips = _clips(setting)
    settings = {"compile": "off" if setting.is_small else "on"}
    network = "squeezenet1_1" if setting.is_small else "resnet50"
    times = 1 if setting.is_small else _TIMES
    job = Job(network, repeated(clips, times), str(setting.scratch / "job"), settings=settings)
    if not setting.is_small:
        _spent(job, setting)  # compiles, and keeps it
    spent, told = _spent(job, setting)
    with ProcessPoolExecutor(1, get_context("spawn")) as alone:
        steps = alone.submit(_decoding_steps, clips).result()
    figures = [Figure(TITLE, role, "s", (seconds,), is_part=True) for role, seconds in _largest_first(spent.cpu_s)]
    figures += [
        Figure(f"{TITLE}: within decoding", step, "s", (times * seconds,), "of a decoding apart", is_part=True)
        for step, seconds in _largest_first(steps)
    ]
    wall = f"{sum(spent.cpu_s.values()):.1f} CPU seconds in {spent.wall_s:.1f} s from command to exit"
    stages = ", ".join(f"{name} {s:.1f} s" for name, s in told["busy_s"].items())
    return Outcome(tuple(figures), (), (f"{TITLE}: {wall}; busy by the clock: {stages}",))


def _clips(setting: Setting) -> tuple[Clip, ...]:
    if not setting.is_small:
        return choose(setting.clips)
    return tuple(clip for path in sorted(setting.clips.iterdir()) if (clip := inspected(path)))[:2]


def _spent(job: Job, setting: Setting) -> tuple[Spent, dict[str, Any]]:
    output = Path(job.output)
    shutil.rmtree(output, ignore_errors=True)
    output.mkdir(parents=True)
    command = [sys.executable, "-m", FEATLIB.module, str(job.save(output.with_suffix(".json")))]
    cache = Path(setting.options.get("cache") or setting.scratch / "cache")
    spent = watched(command, environment(cache))
    if spent.returncode:
        raise RuntimeError(f"featlib ended with {spent.returncode}")
    return spent, json.loads(spent.stdout.splitlines()[-1])


def _largest_first(seconds: dict[str, float]) -> list[tuple[str, float]]:
    return sorted(seconds.items(), key=lambda pair: -pair[1])


def _decoding_steps(clips: tuple[Clip, ...]) -> dict[str, float]:
    """CPU seconds of decoding the clips once, in this process, which is made what a decoding process is."""
    torch.set_num_threads(1)
    keep_freed_memory()
    memory = Arena()
    steps: dict[str, float] = defaultdict(float)
    want = Want("model", FrameSampling.parse("every:8"), _PRESET)
    started = time.process_time()
    with _timed(steps):
        for clip in clips:
            item = MediaItem(clip.path.name, str(clip.path), None, None)
            decode_item(
                item, (want,), Segment(0, 1), store_options=StoreOptions(), limits=Limits(), allocate=memory.allocate
            )
    rest = time.process_time() - started - sum(steps.values())
    return {**steps, "opening, reading, decoding": rest}


@contextmanager
def _timed(steps: dict[str, float]) -> Iterator[None]:
    """Adds up what conversion and resizing take while it is open."""
    from featlib.media import decode

    def timed(step: str, call: Callable[..., T]) -> Callable[..., T]:
        def measured(*args: Any) -> T:
            started = time.process_time()
            try:
                return call(*args)
            finally:
                steps[step] += time.process_time() - started

        return measured

    with (
        mock.patch.object(decode.UprightRgb, "__call__", timed("to RGB", decode.UprightRgb.__call__)),
        mock.patch.object(PixelStore, "put", timed("resize, crop and store", PixelStore.put)),
    ):
        yield
