"""featlib, as a library call that does what ``featlib extract`` does, and when each step of it was reached."""

import time
from pathlib import Path
from typing import Any

from benchmarks.jobs import Job, run
from featlib import ExtractConfig, ModelConfig, extract
from featlib.progress import SilentReporter

DATASET = "bench"


class Clock(SilentReporter):
    """Notes when the job turned to something else, and when results came."""

    def __init__(self) -> None:
        self.moments: list[tuple[str, float]] = []

    def stage(self, text: str) -> None:
        self.moments.append((text, time.time()))

    def advance(self, items: int, clips: int, failed: int) -> None:
        self.moments.append(("result", time.time()))


def work(job: Job) -> dict[str, Any]:
    clock = Clock()
    started = time.time()
    summary = extract(_config(job), reporter=clock)
    if summary.exit_code or summary.bad:
        raise RuntimeError(summary.text())
    return {"started": started, "moments": clock.moments, "extracted": time.time(), **summary.to_dict()}


def _config(job: Job) -> ExtractConfig:
    manifest = Path(job.output).with_suffix(".csv")
    manifest.write_text("".join(f"{name},{path}\n" for name, path in (("media_id", "uri"), *job.clips)))
    models = tuple(ModelConfig(**model) for model in job.models or (_model(job),))
    return ExtractConfig(manifest=str(manifest), output=job.output, dataset=DATASET, models=models, **job.sizes)


def _model(job: Job) -> dict[str, str]:
    model = {"network": job.network, "weights": "random:0", "precision": job.precision}
    if job.clip_frames:
        return {**model, "clip_sampling": f"frames={job.clip_frames},stride=1,hop={job.clip_frames},tail=drop"}
    return {**model, "frame_sampling": f"every:{job.every}"}


if __name__ == "__main__":
    run(work)
