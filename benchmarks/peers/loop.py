"""What a careful person writes without a framework: one process, PyAV, torchvision's preset, batches, all cores."""

import time
from typing import Any

import torch
from torch import Tensor

from benchmarks.jobs import Job, run
from benchmarks.peers import plain


def work(job: Job) -> dict[str, Any]:
    module, preset = plain.network(job.network), plain.preset(job.network)
    rows: list[tuple[str, int]] = []
    waiting: list[Tensor] = []
    features: list[Tensor] = []
    started = time.time()
    for name, path in job.clips:
        for i, picture in enumerate(plain.pictures(job, path)):
            rows.append((name, i))
            waiting.append(plain.preprocessed(preset, picture))
            if len(waiting) == job.batch:
                features.append(_forward(module, waiting))
                waiting = []
    if waiting:
        features.append(_forward(module, waiting))
    plain.write(job, rows, features)
    return {"started": started}


def _forward(module: torch.nn.Module, inputs: list[Tensor]) -> Tensor:
    with torch.inference_mode():
        return module(torch.stack(inputs))


if __name__ == "__main__":
    run(work)
