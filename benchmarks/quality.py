"""What bf16 costs: the classes that a network with real weights finds, in fp32 and in bf16, on the same frames."""

import os
from pathlib import Path

import numpy as np
import pyarrow.dataset as ds

from benchmarks.clips import choose, repeated
from benchmarks.features import UnequalError, read_rows, relative_l2
from benchmarks.figures import Figure, Outcome, Setting, Target
from benchmarks.jobs import Job
from benchmarks.machine import this_machine
from benchmarks.programs import FEATLIB, run

TITLE = "SqueezeNet 1.1, real weights, bf16"
FILE = "squeezenet1_1-imagenet.pth"
_SURE = 0.1
"""Between the two best classes' probabilities; below that, rounding may decide."""
_SAME = 0.99


def bf16_classes(setting: Setting) -> Outcome:
    """Top-1 of fp32 and bf16 over one frame in 8 of the clips; FEATLIB_TEST_WEIGHTS is the folder of the weights.

    Raises:
        UnequalError: A frame whose class fp32 is sure of has another one in bf16.
    """
    weights = Path(os.environ.get("FEATLIB_TEST_WEIGHTS", "")) / FILE
    if setting.is_small or not weights.is_file() or not this_machine().bf16:
        why = "no bf16 in this processor" if weights.is_file() else f"no {FILE} in FEATLIB_TEST_WEIGHTS"
        return Outcome((Figure(TITLE, "same top-1", "share", (), why),))
    output = setting.scratch / "quality"
    job = Job("", repeated(choose(setting.clips), 1), str(output), models=_models(weights), settings={"compile": "on"})
    cache = Path(setting.options.get("cache") or setting.scratch / "cache")
    forward = run(FEATLIB, job, reads_rows=False, cache=cache).told["forward"]
    if any(not line.split(": ")[1].startswith("compiled") for line in forward):
        raise RuntimeError(f"{TITLE}: not the arithmetic that the rates are of: {'; '.join(forward)}")
    fp32, bf16 = (read_rows(_partition(output, p)) for p in ("fp32", "bf16"))
    if fp32.keys != bf16.keys:
        raise UnequalError(f"{TITLE}: fp32 and bf16 are of other frames")
    same, margins = _same_classes(output)
    sure = margins >= _SURE
    if not same[sure].all():
        raise UnequalError(f"{TITLE}: {np.sum(~same[sure])} frames of a sure class have another one")
    off = relative_l2(bf16.features, fp32.features)
    figure = Figure(
        TITLE, "same top-1", "share", (float(same.mean()),), f"{np.sum(~same)} of {len(same)} frames differ"
    )
    check = (
        f"{TITLE}: frames whose two best classes are {_SURE} apart keep their class ({sure.sum()} of {len(same)}); "
        f"features: relative L2 {np.median(off):.2g} median, {off.max():.2g} worst"
    )
    return Outcome((figure,), (Target(TITLE, "frames of the same top-1", float(same.mean()), _SAME),), (check,))


def _models(weights: Path) -> tuple[dict[str, object], ...]:
    shared = {"network": "squeezenet1_1", "weights": str(weights), "frame_sampling": "every:8", "top_k": 2}
    return tuple({**shared, "label": p, "precision": p} for p in ("fp32", "bf16"))


def _partition(output: Path, label: str) -> Path:
    return output / "features" / "dataset=bench" / f"model={label}"


def _same_classes(output: Path) -> tuple[np.ndarray, np.ndarray]:
    """Of each frame, whether its class is the same, and by how much fp32 preferred it to the second."""
    columns = ["media_id", "clip_index", "labels", "probabilities"]
    tables = []
    for label in ("fp32", "bf16"):
        files = [str(path) for path in _partition(output, label).rglob("*.parquet")]
        table = ds.dataset(files, format="parquet").to_table(columns=columns)
        tables.append(table.sort_by([("media_id", "ascending"), ("clip_index", "ascending")]).to_pydict())
    first = [[labels[0] for labels in table["labels"]] for table in tables]
    same = np.array([a == b for a, b in zip(*first, strict=True)])
    return same, np.array([p[0] - p[1] for p in tables[0]["probabilities"]])
