"""The Ray Data graph: plan -> decode -> extract -> stage. The only file that knows ray.data.

    UnitsReader -> one row a block -> DecodeWorker (CPU actors) -> [FlowWorker] -> ExtractWorker (a pool or two)
    -> StageWorker

One unit is one row, one block and one task at every stage. A task gives its one block at its end, because Ray matches
the blocks of a replayed task by position.
"""

import logging
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from featlib.errors import StoppedError
from featlib.nodes import cause
from featlib.pools import FlowPool, Pools
from featlib.spec import FlowSpec, Want
from featlib.storage import StoreOptions
from featlib.work import UNITS_A_GROUP
from featlib.workers import (
    DECODE,
    RESULT,
    DecodeWorker,
    ExtractSpec,
    ExtractWorker,
    StageWorker,
    UnitsReader,
)

if TYPE_CHECKING:
    import pyarrow as pa

    from featlib.extractors.resolve import ResolvedModel
    from featlib.flow_worker import FlowPoolSpec
    from featlib.media import Limits

_TASK_CPUS = 0.25
_READ_TASKS = 64


@dataclass(frozen=True)
class Flow:
    """Everything the graph is built from.

    Args:
        weights: By label, where ``ship`` put the weights.
        fingerprints: By label.
        rounds: By label and shard, how often it has been committed.
        flow_weights: By kind of optical flow, where ``ship`` put the weights of its method.
        decode: ``module:function`` that decodes an item.
        is_apart: An actor holds one unit at a time. Else the next one waits in it already, and dies with it.
    """

    output: str
    store_options: StoreOptions
    dataset: str
    run: str
    models: tuple["ResolvedModel", ...]
    weights: Mapping[str, Any]
    fingerprints: Mapping[str, str]
    rounds: Mapping[str, Mapping[int, int]]
    wants: tuple[Want, ...]
    limits: "Limits"
    flow_weights: Mapping[FlowSpec, Any] = field(default_factory=dict)
    decode: str = DECODE
    is_apart: bool = False


class _DecodeActor(DecodeWorker):
    """``DecodeWorker`` as Ray calls it."""


class _FlowActor:
    """``FlowWorker`` with its weights fetched from the object store; its libraries are loaded in the actor alone."""

    def __init__(self, spec: "FlowPoolSpec", payload_refs: Mapping[FlowSpec, Any]) -> None:
        import ray

        from featlib.flow_worker import FlowWorker

        self._worker = FlowWorker(spec, {kind: ray.get(ref) for kind, ref in payload_refs.items()})

    def __call__(self, row: "pa.Table") -> "pa.Table":
        return self._worker(row)


class _ExtractActor(ExtractWorker):
    """``ExtractWorker`` with its weights fetched from the object store, where they lie once a node."""

    def __init__(self, spec: ExtractSpec, payload_refs: Mapping[str, Any]) -> None:
        import ray

        super().__init__(spec, {label: ray.get(ref) for label, ref in payload_refs.items()})


def ship(payload: bytes) -> Any:
    """Puts weights into Ray's object store, from where every node fetches them once; gives the reference."""
    import ray

    return ray.put(payload)


def results(flow: Flow, pools: Pools, units_key: str, num_units: int) -> Iterator[dict[str, Any]]:
    """Runs one pass over the ``num_units`` units in ``units_key``; gives a ``RESULT`` for each that came through.

    A unit that was lost (its worker died twice) gives nothing: the caller knows what is missing.

    Raises:
        StoppedError: Ray cannot go on, for instance because a network could not be built.
    """
    import ray
    from ray.exceptions import RayError

    context = ray.data.DataContext.get_current()
    context.max_errored_blocks = -1
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.execution_options.preserve_order = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    # Ray 2.60 has no other way to bound the retries of an actor's task than the arguments it warns of.
    warnings.filterwarnings("ignore", message="`ray_remote_args` is deprecated")
    dataset = _graph(flow, pools, units_key, num_units)
    try:
        for batch in dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
            yield from batch.select(RESULT.names).to_pylist()
    except RayError as error:
        raise StoppedError(f"Ray stopped the job: {cause(error)}; run the same command again to go on") from error


def _graph(flow: Flow, pools: Pools, units_key: str, num_units: int) -> Any:
    import ray

    read = UnitsReader(flow.output, flow.store_options, units_key)
    dataset = ray.data.from_arrow(_groups(num_units)).map_batches(
        read.__call__,
        batch_size=None,
        batch_format="pyarrow",
        num_cpus=_TASK_CPUS,
        max_retries=2,
    )
    dataset = dataset.repartition(target_num_rows_per_block=1)
    dataset = dataset.map_batches(
        _DecodeActor,
        fn_constructor_kwargs={
            "wants": flow.wants,
            "limits": flow.limits,
            "store_options": flow.store_options,
            "decode": flow.decode,
        },
        **_pool(flow, min(pools.decode_workers, num_units), pools.decode_cpus),
    )
    if pools.flow is not None:
        dataset = dataset.map_batches(
            _FlowActor,
            fn_constructor_kwargs={"spec": _flow_spec(flow, pools.flow), "payload_refs": flow.flow_weights},
            **_pool(flow, min(pools.flow.workers, num_units), pools.flow.num_cpus, pools.flow.num_gpus),
        )
    for spec, pool in _extract_specs(flow, pools):
        payload_refs = {model.label: flow.weights[model.label] for model in spec.models}
        dataset = dataset.map_batches(
            _ExtractActor,
            fn_constructor_kwargs={"spec": spec, "payload_refs": payload_refs},
            **_pool(flow, min(pool.workers, num_units), pool.num_cpus, pool.num_gpus),
        )
    stage = StageWorker(
        flow.output, flow.store_options, flow.dataset, flow.run, flow.fingerprints, flow.rounds, units_key
    )
    return dataset.map_batches(
        stage.__call__,
        batch_size=None,
        batch_format="pyarrow",
        zero_copy_batch=True,
        num_cpus=_TASK_CPUS,
        max_retries=2,
    )


def _groups(num_units: int) -> "list[pa.Table]":
    """The row groups that hold ``num_units`` units, shared among a few tasks."""
    import pyarrow as pa

    num_groups = -(-num_units // UNITS_A_GROUP)
    tasks = min(num_groups, _READ_TASKS)
    bounds = [num_groups * i // tasks for i in range(tasks + 1)]
    return [pa.table({"group": range(*pair)}) for pair in pairwise(bounds)]


def _extract_specs(flow: Flow, pools: Pools) -> Iterator[tuple[ExtractSpec, Any]]:
    """Each pool with the frames and flow that nobody after it reads: the last consumer drops them."""
    models = {m.label: m for m in flow.models}
    for i, pool in enumerate(pools.extract):
        chosen = tuple(models[label] for label in pool.labels)
        mine = {key for m in chosen for key in _read_by(m)}
        after = {key for p in pools.extract[i + 1 :] for label in p.labels for key in _read_by(models[label])}
        yield ExtractSpec(chosen, pool.device, pool.threads, tuple(sorted(mine - after))), pool


def _read_by(model: "ResolvedModel") -> Iterator[str]:
    """Keys of the frames and the flow that a network reads; one that reads flow alone has no use for frames."""
    reads = model.input
    if reads.flow is None or reads.flow.with_rgb:
        yield reads.pixels.key
    if reads.flow_spec is not None:
        yield reads.flow_spec.key


def _flow_spec(flow: Flow, pool: FlowPool) -> "FlowPoolSpec":
    from featlib.flow_worker import FlowPoolSpec

    labels: dict[FlowSpec, tuple[str, ...]] = {}
    for model in flow.models:
        kind = model.input.flow_spec
        if kind is not None:
            labels[kind] = (*labels.get(kind, ()), model.label)
    read_later = {key for model in flow.models for key in _read_by(model)}
    drop = {kind.pixels.key for kind in labels} - read_later
    return FlowPoolSpec(labels, pool.device, pool.threads, tuple(sorted(drop)))


def _pool(flow: Flow, workers: int, num_cpus: float, num_gpus: float = 0.0) -> dict[str, Any]:
    from ray.data import ActorPoolStrategy

    return {
        "compute": ActorPoolStrategy(size=workers, max_tasks_in_flight_per_actor=1 if flow.is_apart else None),
        "batch_size": 1 if num_gpus else None,
        "batch_format": "pyarrow",
        "zero_copy_batch": True,
        "num_cpus": num_cpus,
        **({"num_gpus": num_gpus} if num_gpus else {}),
        "max_task_retries": 1,
        "max_restarts": -1,
    }
