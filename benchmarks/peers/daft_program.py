"""Daft: a function decodes a video into rows, a class embeds them in batches; Daft schedules and writes Parquet."""

import os
import time
from typing import Any

import daft
import numpy as np
from daft import DataType

from benchmarks.jobs import Job, run

_ROW = DataType.struct({"clip_index": DataType.int64(), "x": DataType.tensor(DataType.float32())})


def work(job: Job) -> dict[str, Any]:
    started = time.time()

    @daft.func(return_dtype=DataType.list(_ROW))
    def decode(path: str) -> list[dict[str, Any]]:
        from benchmarks.peers import plain

        preset = plain.preset(job.network)
        return [
            {"clip_index": i, "x": plain.preprocessed(preset, p).numpy()}
            for i, p in enumerate(plain.pictures(job, path))
        ]

    @daft.cls(max_concurrency=1)
    class Model:
        def __init__(self) -> None:
            from benchmarks.peers import plain

            self._module = plain.network(job.network)

        @daft.method.batch(return_dtype=DataType.list(DataType.float32()), batch_size=job.batch)
        def embed(self, x: daft.Series) -> list[Any]:
            import torch

            # Daft may call this from any thread of the process, and each has a number of its own.
            torch.set_num_threads(len(os.sched_getaffinity(0)))
            inputs = torch.from_numpy(np.stack([np.asarray(v) for v in x.to_pylist()]))
            with torch.inference_mode():
                return list(self._module(inputs).numpy())

    names, paths = zip(*job.clips, strict=True)
    videos = daft.from_pydict({"media_id": list(names), "path": list(paths)}).into_partitions(len(paths))
    rows = videos.with_column("row", decode(videos["path"])).explode("row")
    rows = rows.select("media_id", rows["row"].get("clip_index"), rows["row"].get("x"))
    model = Model()
    rows.with_column("feature", model.embed(rows["x"])).exclude("x").write_parquet(job.output)
    return {"started": started}


if __name__ == "__main__":
    run(work)
