"""The real job with Ray's graph replaced by a loop in this process: everything that touches the output, nothing else.

Manifest, plan, claim, records, units, staging, publishing and cleaning are the job's own; what is replaced are the
start of Ray and ``featlib.dataflow.results``.
"""

import io
import json
import os
import time
from collections.abc import Collection, Iterator
from contextlib import ExitStack
from random import Random
from typing import Any
from unittest import mock

import pyarrow.parquet as pq

from featlib import dataflow, drivers, run, start
from featlib.config import ExtractConfig
from featlib.dataflow import Flow
from featlib.job import extract
from featlib.layout import Keys
from featlib.media import Limits
from featlib.pools import ExtractPool, Pools
from featlib.run import Task
from featlib.shards.staging import rounds_of, stage
from featlib.storage import Store
from featlib.summary import Summary
from featlib.work import unit_from_row, unit_row
from featlib.workers import STOP, finished_entry, unreached
from tests.torture.story import Story, done

_POOLS = Pools(1, 1.0, (ExtractPool(("a", "b"), 1, "cpu", 1, 1.0, 0.0),), 3.5)
_ALONE_S = 0.05
_PART_BYTES = 300  # of a features object, so that a shard has several
_TIMES = {"BEAT_S": 0.5, "LOOK_S": 0.2, "GUARDED_S": 1.0, "LEASE_S": 6.0}


def run_story(
    story: Story, log: str, *, is_alone: bool = True, hold_s: float = 0.0, deadly: Collection[str] = ()
) -> Summary:
    """Runs the job of a story; each staged item is written to the file ``log`` as a line, when it is staged.

    Args:
        is_alone: No other driver competes, so that a claim need not settle: a thousand times 1.5 s is half an hour.
            Drivers that compete beat, look and give each other up more quickly than real ones.
        hold_s: It works for so long before its first result, in which others meet it.
        deadly: Names of files; the worker of a unit with one of them dies, so that nothing comes back of the unit.
    """

    def results(flow: Flow, pools: Pools, units_key: str, num_units: int) -> Iterator[dict[str, Any]]:
        store, keys = Store(flow.output, flow.store_options), Keys(flow.dataset)
        time.sleep(hold_s)
        try:
            rows = pq.read_table(io.BytesIO(store.get(units_key))).to_pylist()
        except FileNotFoundError:
            yield _gone(units_key)
            return
        Random(story.seed).shuffle(rows)
        for row in rows:
            unit = unit_from_row(row)
            if any(os.path.basename(item.uri) in deadly for item in unit.items):
                continue
            made = done(unit)
            name = f"{flow.run}-{row['seq']:08d}"
            if store.stat(units_key) is None:
                yield _gone(units_key)
                return
            stage(store, keys, shard=unit.shard, unit=name, rows=made.tables, reports=made.reports,
                  fingerprints=flow.fingerprints, rounds=rounds_of(flow.rounds, unit.shard))  # fmt: skip
            _say(log, made.reports)
            yield {
                "seq": row["seq"],
                "shard": unit.shard,
                "finished": json.dumps([finished_entry(r) for r in made.reports]),
                "later": json.dumps([unit_row(u) for u in made.later]),
                "stats": json.dumps({"frames_decoded": 4 * len(made.reports)}),
            }

    with ExitStack() as stack:
        for where, name, what in (
            (dataflow, "results", results),
            (run, "_flow", _flow),
            (start.RayStart, "begin", lambda self: None),
            (start.RayStart, "pools", lambda self: (_POOLS, 0.0)),
            (run, "_MB", _PART_BYTES),
            *([(drivers, "SETTLE_S", _ALONE_S)] if is_alone else [(drivers, *each) for each in _TIMES.items()]),
        ):
            stack.enter_context(mock.patch.object(where, name, what))
        return extract(ExtractConfig.model_validate(story.config()))


def _gone(units_key: str) -> dict[str, Any]:
    fatal = json.dumps({"fatal": unreached("here", f"{units_key} is gone")})
    return {"seq": STOP, "shard": 0, "finished": "[]", "later": "[]", "stats": fatal}


def _flow(task: Task, name: str) -> Flow:
    return Flow(
        task.store.url,
        task.store.options,
        task.config.dataset,
        name,
        task.models,
        {},
        task.fingerprints,
        task.backlog.rounds,
        (),
        Limits(),
    )


def _say(log: str, reports: list[Any]) -> None:
    lines = "".join(f"{r.media_id} {r.segment.k}\n" for r in reports)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(descriptor, lines.encode())
    os.close(descriptor)
