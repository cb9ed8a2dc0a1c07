"""What the documentation of Ray Data leads to: map_batches(decode) -> map_batches(model actors) -> write_parquet."""

import logging
import os
import time
from typing import Any

import numpy as np
import ray

from benchmarks.jobs import Job, run

Batch = dict[str, Any]


def decode(batch: Batch, job: Job) -> Batch:
    """Rows of one video."""
    from benchmarks.peers import plain

    preset = plain.preset(job.network)
    inputs = [plain.preprocessed(preset, p).numpy() for path in batch["path"] for p in plain.pictures(job, path)]
    return {"media_id": np.repeat(batch["media_id"], len(inputs)), "clip_index": np.arange(len(inputs)),
            "x": np.stack(inputs)}  # fmt: skip


class Model:
    def __init__(self, name: str) -> None:
        import torch

        from benchmarks.peers import plain

        torch.set_num_threads(len(os.sched_getaffinity(0)))  # Ray's own number is the CPUs of the actor: 1
        self._module = plain.network(name)

    def __call__(self, batch: Batch) -> Batch:
        import torch

        with torch.inference_mode():
            batch["feature"] = self._module(torch.from_numpy(np.array(batch.pop("x")))).numpy()
        return batch


def work(job: Job) -> dict[str, Any]:
    ray.init(logging_level=logging.ERROR, log_to_driver=False, **_alone())
    ray.data.DataContext.get_current().enable_progress_bars = False
    started = time.time()
    videos = [{"media_id": name, "path": path} for name, path in job.clips]
    (
        ray.data.from_items(videos, override_num_blocks=len(videos))
        .map_batches(decode, fn_kwargs={"job": job}, batch_size=1)
        .map_batches(
            Model,
            fn_constructor_args=(job.network,),
            batch_size=job.batch,
            compute=ray.data.ActorPoolStrategy(size=1),
        )
        .write_parquet(job.output)
    )
    return {"started": started}


def _alone() -> dict[str, Any]:
    """A Ray of its own, unless the environment names one."""
    return {} if os.environ.get("RAY_ADDRESS") else {"include_dashboard": False}


if __name__ == "__main__":
    run(work)
