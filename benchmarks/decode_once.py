"""Three networks over 1080p in one pass: does each further network make decoding dearer?"""

from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import pyarrow.dataset as ds

from benchmarks.clips import write
from benchmarks.figures import Figure, Outcome, Setting, Target, interleaved
from benchmarks.jobs import Job
from benchmarks.programs import FEATLIB, run
from benchmarks.progress import say

TITLE = "1080p, decoding"
_CLIPS = {"clip_sampling": "frames=16,stride=1,hop=16,tail=drop"}
_RESNET50 = {"network": "resnet50", "frame_sampling": "every:8"}
_R3D_18 = {"network": "r3d_18", **_CLIPS}
_R2PLUS1D_18 = {"network": "r2plus1d_18", **_CLIPS}
_JOBS = {
    "ResNet-50 alone": (_RESNET50,),
    "r3d_18 alone": (_R3D_18,),
    "ResNet-50 + r3d_18 + r2plus1d_18": (_RESNET50, _R3D_18, _R2PLUS1D_18),
}
_SMALL_JOBS = {
    "r3d_18 alone": (_R3D_18,),
    "ResNet-50 + r3d_18 + r2plus1d_18": ({"network": "resnet18", "frame_sampling": "every:8"}, _R3D_18),
}
_MOST_DEARER = 1.15


def three_models(setting: Setting) -> Outcome:
    """CPU seconds in decoding, of one network's job and of the job of all three.

    The baseline is the network whose own decoding is the dearest: the three need at least that.
    """
    size, num_frames = ((320, 240), 16) if setting.is_small else ((1920, 1080), 160)
    clip = write(setting.scratch / "generated-1080p.mp4", "libx264", size, num_frames)
    jobs = _SMALL_JOBS if setting.is_small else _JOBS
    calls = [(name, partial(_decode_s, setting, clip, name, models, num_frames)) for name, models in jobs.items()]
    measured = interleaved(calls, setting.rounds)
    *alone, together = [Figure(TITLE, name, "CPU s", rounds) for name, rounds in measured.items()]
    dearest = max(median(f.rounds) for f in alone)
    target = Target(
        TITLE, f"one network's over the three's, 1/{_MOST_DEARER}", dearest / together.value, 1 / _MOST_DEARER
    )
    checks = (f"{TITLE}: {num_frames} frames decoded once for all networks of a job, fewer for ResNet-50 alone",)
    return Outcome((*alone, together), (target,), checks)


def _decode_s(setting: Setting, clip: Path, name: str, models: tuple[dict[str, Any], ...], num_frames: int) -> float:
    """CPU seconds that decoding took in one job.

    Raises:
        RuntimeError: The job decoded frames twice, or fewer than a network of clips reads.
    """
    chosen = tuple({**model, "weights": "random:0"} for model in models)
    sizes = {key: int(value) for key, value in setting.options.items() if key.endswith(("_workers", "_threads"))}
    output = setting.scratch / "decode-once"
    ran = run(FEATLIB, Job("", (("clip", str(clip)),), str(output), models=chosen, settings=sizes), reads_rows=False)
    decoded = int(ran.told["frames_decoded"])
    if decoded > num_frames or (decoded < num_frames and any("clip_sampling" in model for model in models)):
        raise RuntimeError(f"{name}: {decoded} frames were decoded, the clip has {num_frames}")
    seconds = _outcome_s(output)
    say(f"  {name}: decoding {seconds:.2f} CPU s")
    return seconds


def _outcome_s(output: Path) -> float:
    """Decoding is written beside each model's outcome; it was done once."""
    files = [str(path) for path in (output / "outcomes").rglob("*.parquet")]
    return float(max(ds.dataset(files, format="parquet").to_table(columns=["decode_s"])["decode_s"].to_pylist()))
