"""A manifest of a million rows through stubs: what the machinery around decoding and networks costs.

    large(Setting(clips, scratch, options={"rows": "1000000"}))

Planning, and a resume that finds everything published, are measured over all of the rows. The job itself runs over a
tenth, a half and all of 100,000 rows, each in a process of its own, and beside each the Ray Data program that one
writes first; a million of them would take about an hour on two cores.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq

from benchmarks.figures import Figure, Outcome, Setting, Target, interleaved
from benchmarks.scale_points import DATASET, Costs, config

_ROWS, _PLANNED_ROWS = 100_000, 1_000_000
_SMALL_ROWS = 2_000
_MOST_S = 3 * 3600
_BATCH = 65_536


def large(setting: Setting) -> Outcome:
    """Options: ``rows`` (100,000), of which runs take a tenth, a half and all; ``planned`` (1,000,000)."""
    rows = int(setting.options.get("rows", _SMALL_ROWS if setting.is_small else _ROWS))
    planned = int(setting.options.get("planned", _SMALL_ROWS if setting.is_small else _PLANNED_ROWS))
    sizes = (rows,) if setting.is_small else (rows // 10, rows // 2, rows)
    points = _Points(setting.scratch)
    subjects = [(f"{name} {size}", partial(points.run, name, size)) for size in sizes for name in ("obvious", "run")]
    subjects += [(f"{name} {planned}", partial(points.run, name, planned)) for name in ("plan", "resume")]
    interleaved([(key, _wall(measure)) for key, measure in subjects], 1 if setting.is_small else setting.rounds)
    outputs = {size: zip(points.outputs("run", size), points.outputs("obvious", size), strict=True) for size in sizes}
    checks = [[_same_rows(ours, theirs, size) for ours, theirs in both][-1] for size, both in outputs.items()]
    return Outcome(tuple(_figures(points.costs)), tuple(_targets(points.costs, sizes, planned)), tuple(checks))


def _wall(measure: Callable[[], Costs]) -> Callable[[], float]:
    return lambda: measure()["wall_s"]


class _Points:
    """Runs points in processes of their own and keeps what each took.

    Args:
        folder: For manifests and outputs.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._count = 0
        self.costs: dict[tuple[str, int], list[Costs]] = {}

    def outputs(self, name: str, rows: int) -> list[Path]:
        """Of every run of a subject."""
        return [self._folder / f"{name}-{rows}-{i + 1}" for i in range(len(self.costs[name, rows]))]

    def run(self, name: str, rows: int) -> Costs:
        """Measures a subject once, over an output of its own."""
        mine = self.costs.setdefault((name, rows), [])
        output = self._folder / f"{name}-{rows}-{len(mine) + 1}"
        manifest = self._manifest(rows)
        if name == "resume":
            _publish_all(manifest, output)
        mine.append(_point("run" if name == "resume" else name, manifest, output))
        return mine[-1]

    def _manifest(self, rows: int) -> Path:
        path = self._folder / f"{rows}.parquet"
        if not path.exists():
            uris = [f"s3://made-up/pictures/{i // 1000:06d}/{i:09d}.jpg" for i in range(rows)]
            pq.write_table(pa.table({"uri": uris}), path, row_group_size=_BATCH)
        return path


def _point(subject: str, manifest: Path, output: Path) -> Costs:
    command = [sys.executable, "-m", "benchmarks.scale_points", subject, str(manifest), str(output)]
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    started = time.perf_counter()
    done = subprocess.run(
        command, cwd=Path(__file__).parents[1], env=environment, capture_output=True, text=True, timeout=_MOST_S
    )
    wall_s = time.perf_counter() - started
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: exit {done.returncode}: {done.stderr[-2000:]}")
    costs: Costs = json.loads(done.stdout.splitlines()[-1])
    return {**costs, "wall_s": wall_s}


def _publish_all(manifest: Path, output: Path) -> None:
    """Plans the job and commits an outcome for every item, as publishing would have left them."""
    from featlib.extractors.resolve import resolve
    from featlib.layout import Keys
    from featlib.manifest import read_manifest
    from featlib.partition import provenance, register
    from featlib.plan import PlanItems, empty_plan, grow
    from featlib.shards.commit import Committed, put_committed
    from featlib.shards.schema import OUTCOMES
    from featlib.storage import Store, StoreOptions

    job = config(str(manifest), str(output))
    store, keys = Store(str(output)), Keys(DATASET)
    plan, _ = grow(store, keys, empty_plan(), read_manifest(job.manifest), job.shard_items)
    made_by = provenance(DATASET, resolve(job.models[0], StoreOptions()))
    register(store, keys, {made_by.label: made_by})
    items = PlanItems(store, plan)
    for shard in range(plan.next_shard):
        done = {"status": "ok", "retryable": False, "attempts": 1, "num_rows": 1}
        rows = [{"media_id": i.media_id, "uri": i.uri, **done} for i in items.shard(shard)]
        stands = Committed(pa.Table.from_pylist(rows, schema=OUTCOMES), {}, 1)
        put_committed(store, keys, made_by.label, shard, stands, made_by)


def _same_rows(ours: Path, theirs: Path, rows: int) -> str:
    """Every row of the manifest stands once in both outputs, with the same feature."""
    mine = _features(ours / "features")
    other = _features(theirs)
    if not len(mine[0]) == len(set(mine[0])) == rows or mine[0] != other[0]:
        raise RuntimeError(f"{rows} rows: featlib gave {len(mine[0])}, the other program {len(other[0])}")
    worst = float(np.abs(mine[1] - other[1]).max())
    if not worst <= 1e-6:  # NaN, too
        raise RuntimeError(f"{rows} rows: features differ by {worst:g}")
    return f"{rows:,} rows: each once, features of both within {worst:.1g}"


def _features(folder: Path) -> tuple[list[str], "np.ndarray[Any, np.dtype[np.float32]]"]:
    """URIs in order, and their features (rows, 3)."""
    table = pads.dataset(folder, format="parquet").to_table(columns=["uri", "feature"]).sort_by("uri")
    column = table["feature"].combine_chunks()
    values = getattr(column, "storage", column).flatten()  # a list, or Ray's tensor type where Ray is imported
    return table["uri"].to_pylist(), values.to_numpy().reshape(table.num_rows, -1)


def _figures(costs: Mapping[tuple[str, int], list[Costs]]) -> list[Figure]:
    names = {"run": "featlib", "obvious": "obvious Ray Data", "plan": "featlib, plan", "resume": "featlib, resume"}
    found = []
    for (name, rows), points in costs.items():
        workload, subject = f"{rows:,} stub rows", names[name]
        found.append(Figure(workload, subject, "s", tuple(p["wall_s"] for p in points), _note(points)))
        if "extract_s" in points[0]:
            rates = tuple(rows / p["extract_s"] for p in points)
            found.append(Figure(workload, subject, "items/s", rates, "from the first unit to the last shard"))
        found.append(Figure(workload, subject, "MB, driver", tuple(p["peak_mb"] for p in points)))
    return found


def _note(points: list[Costs]) -> str:
    mine, below = (median(p[name] for p in points) for name in ("driver_cpu_s", "workers_cpu_s"))
    busy = ", ".join(f"{k[5:-2]} {v:.0f} s" for k, v in points[-1].items() if k.startswith("busy_"))
    return f"CPU: driver {mine:.0f} s, workers {below:.0f} s" + (f"; busy: {busy}" if busy else "")


def _targets(costs: Mapping[tuple[str, int], list[Costs]], sizes: tuple[int, ...], planned: int) -> list[Target]:
    def value(name: str, rows: int, cost: str) -> float:
        return median(p[cost] for p in costs[name, rows])

    workload = f"{planned:,} stub rows"
    resume_s = value("resume", planned, "wall_s")
    found = [
        Target(workload, "60 s over the plan's seconds", 60 / value("plan", planned, "wall_s"), 1.0),
        Target(workload, "1 GB over the plan's memory", 1024 / value("plan", planned, "peak_mb"), 1.0),
        Target(workload, "60 s over the seconds of a resume with nothing to do", 60 / resume_s, 1.0),
    ]
    workload = f"{sizes[-1]:,} stub rows"
    for half, whole in list(pairwise(sizes))[-1:]:
        ratio = value("run", whole, "extract_s") / value("run", half, "extract_s")
        found.append(Target(workload, f"2.1 over the cost of {whole:,} rows in that of {half:,}", 2.1 / ratio, 1.0))
        grown = value("run", whole, "peak_mb") / value("run", sizes[0], "peak_mb")
        says = f"1.2 over the driver's memory at {whole:,} rows in that at {sizes[0]:,}"
        found.append(Target(workload, says, 1.2 / grown, 1.0))
    return found
