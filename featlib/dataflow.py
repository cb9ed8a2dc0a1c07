"""The Ray Data graph: plan -> decode -> extract -> stage. The only file that knows ray.data.

    UnitsReader -> one row a block -> DecodeWorker (CPU actors) -> [FlowWorker] -> ExtractWorker (a pool or two)
    -> StageWorker

One unit is one row, one block and one task at every stage. A task gives its one block at its end, because Ray matches
the blocks of a replayed task by position.
"""

import logging
import os
import secrets
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from itertools import pairwise
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

from featlib.errors import ConfigError, FeatlibError, StoppedError, TransientError
from featlib.plan import UNITS_A_GROUP
from featlib.pools import FlowPool, Machine, Pools, Sizes, plan_pools
from featlib.spec import FlowSpec, Kind, Want
from featlib.storage import Store, StoreOptions
from featlib.workers import (
    DECODE,
    RESULT,
    DecodeWorker,
    ExtractSpec,
    ExtractWorker,
    StageWorker,
    UnitsReader,
    unreached,
)

if TYPE_CHECKING:
    import pyarrow as pa

    from featlib.extractors.resolve import ResolvedModel
    from featlib.flow_worker import FlowPoolSpec
    from featlib.media import Limits

_MB = 1 << 20
_TASK_CPUS = 0.25
_READ_TASKS = 64
_LOOK_S = 20.0
_TOKEN = secrets.token_hex(32)
_LOOPBACK = ("127.0.0.1", "localhost")


@dataclass(frozen=True)
class Flow:
    """Everything the graph is built from.

    Args:
        weights: By label, where ``ship`` put the weights.
        fingerprints: By label.
        flow_weights: By kind of optical flow, where ``ship`` put the weights of its method.
        decode: ``module:function`` that decodes an item.
    """

    output: str
    store_options: StoreOptions
    dataset: str
    run: str
    models: tuple["ResolvedModel", ...]
    weights: Mapping[str, Any]
    fingerprints: Mapping[str, str]
    wants: tuple[Want, ...]
    limits: "Limits"
    flow_weights: Mapping[FlowSpec, Any] = field(default_factory=dict)
    decode: str = DECODE


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


def start_local_ray(*, num_cpus: float, object_store_mb: int, num_gpus: int | None = None) -> str:
    """Starts Ray on this machine for this process; gives the address.

    It listens on loopback alone and asks for a token that only this process and those it starts know: whoever reaches
    an open Ray runs code on it (CVE-2023-48022).
    """
    _quiet_environment()
    # Ray's own processes tell the terminal of every actor that it may not be restartable (ray#53727); what fails
    # comes back as an exception all the same.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    import ray

    with _token_of_its_own(), _on_loopback():
        context = ray.init(
            address="local",
            _node_ip_address=_LOOPBACK[0],
            num_cpus=int(-(-num_cpus // 1)),
            num_gpus=num_gpus,
            object_store_memory=object_store_mb * _MB,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            configure_logging=True,
        )
    return str(context.address_info["gcs_address"])


@contextmanager
def _token_of_its_own() -> Iterator[None]:
    """While Ray starts: its processes inherit a token that is written nowhere; what the user set stands.

    Ray switches the asking for tokens on by itself, and keeps the first token it sees in a process.
    """
    if os.environ.keys() & {"RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"}:
        yield
        return
    os.environ["RAY_AUTH_TOKEN"] = _TOKEN
    try:
        yield
    finally:
        for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_MODE"):
            os.environ.pop(name, None)


@contextmanager
def _on_loopback() -> Iterator[None]:
    """While Ray starts on this machine, or joins one there: it takes 127.0.0.1 as it is said.

    By itself it looks for an address that others reach, and listens on all of them. Ray 2.60 has but a constant for
    this, which is false on systems where it makes no clusters.
    """
    from ray._private import ray_constants

    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


def is_connected() -> bool:
    """Whether this process has joined a Ray."""
    import ray

    return bool(ray.is_initialized())


def connect_ray(address: str) -> None:
    """Joins a running Ray.

    Raises:
        StoppedError: Nobody answers there.
    """
    _quiet_environment()
    import ray

    if ray.is_initialized():
        return
    is_here = address.rpartition(":")[0] in _LOOPBACK
    try:
        with _on_loopback() if is_here else nullcontext():
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise StoppedError(f"--ray-address {address}: no Ray cluster answers there ({reason})") from None


def _quiet_environment() -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_DATA_PARQUET_FOOTER_NUM_ACTORS", "1")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")


def cluster() -> tuple[Machine, int]:
    """What the connected Ray has, and its number of nodes."""
    import ray

    resources = ray.cluster_resources()
    nodes = [n for n in ray.nodes() if n["Alive"]]
    cores = max((int(n["Resources"].get("CPU", 0)) for n in nodes), default=1)
    memory_mb = min((n["Resources"].get("memory", 0) / _MB for n in nodes), default=0) or None
    machine = Machine(max(1, cores), float(resources.get("CPU", 0)), int(resources.get("GPU", 0)), memory_mb)
    return machine, len(nodes)


def join_or_start(
    address: str | None,
    sizes: Sizes,
    kinds: Mapping[str, Kind],
    flow: Literal["none", "opencv", "network"] = "none",
    *,
    local_output: str | None,
    object_store_mb: int | None,
    network_mb: Mapping[str, float] = MappingProxyType({}),
) -> Pools:
    """Joins the named Ray, or the one this job was submitted to, or starts one on this machine; sizes the pools.

    Args:
        local_output: The output when it is a local path: several nodes would not all see it.

    Raises:
        ConfigError: The layout cannot fit, or a local path cannot be seen by all nodes.
    """
    import ray

    address = address or os.environ.get("RAY_ADDRESS")
    if not ray.is_initialized() and (not address or address == "local"):
        cores = len(os.sched_getaffinity(0))
        gpus = _local_gpus() if sizes.device != "cpu" else 0
        pools = plan_pools(Machine(cores, gpus=gpus, memory_mb=_memory_mb()), sizes, kinds, flow, network_mb)
        start_local_ray(num_cpus=pools.total_cpus, object_store_mb=object_store_mb or _object_store_mb())
        return pools
    connect_ray(address or "auto")
    machine, nodes = cluster()
    if nodes > 1 and local_output is not None:
        raise ConfigError(
            f"--output {local_output}: a local path is not seen by all {nodes} nodes of the Ray cluster; "
            "use a URL like s3://bucket/folder"
        )
    return plan_pools(machine, sizes, kinds, flow, network_mb)


def _local_gpus() -> int:
    import torch

    return torch.cuda.device_count()


def _memory_mb() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // _MB


def _object_store_mb() -> int:
    """An eighth of the memory, within what a few units in flight need and what they can use."""
    return min(max(512, _memory_mb() // 8), 8192)


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
        raise StoppedError(f"Ray stopped the job: {_cause(error)}; run the same command again to go on") from error


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
        **_pool(min(pools.decode_workers, num_units), pools.decode_cpus),
    )
    if pools.flow is not None:
        dataset = dataset.map_batches(
            _FlowActor,
            fn_constructor_kwargs={"spec": _flow_spec(flow, pools.flow), "payload_refs": flow.flow_weights},
            **_pool(min(pools.flow.workers, num_units), pools.flow.num_cpus, pools.flow.num_gpus),
        )
    for spec, pool in _extract_specs(flow, pools):
        payload_refs = {model.label: flow.weights[model.label] for model in spec.models}
        dataset = dataset.map_batches(
            _ExtractActor,
            fn_constructor_kwargs={"spec": spec, "payload_refs": payload_refs},
            **_pool(min(pool.workers, num_units), pool.num_cpus, pool.num_gpus),
        )
    stage = StageWorker(flow.output, flow.store_options, flow.dataset, flow.run, flow.fingerprints)
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


def check_nodes(flow: Flow, key: str) -> None:
    """Makes sure that the workers of every node reach the object ``key`` of the output.

    Raises:
        StoppedError: Those of a node do not; says which and why.
    """
    import ray
    from ray.exceptions import RayError, RayTaskError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    look = ray.remote(num_cpus=0)(_look)
    options = replace(flow.store_options, deadline_s=_LOOK_S)
    nodes = [n for n in ray.nodes() if n["Alive"] and (n["Resources"].get("CPU") or n["Resources"].get("GPU"))]
    places = [NodeAffinitySchedulingStrategy(node["NodeID"], soft=False) for node in nodes]
    answers = [look.options(scheduling_strategy=place).remote(flow.output, options, key) for place in places]
    for node, answer in zip(nodes, answers, strict=True):
        try:
            reason = ray.get(answer, timeout=3 * _LOOK_S)
        except RayTaskError as error:
            reason = _cause(error)
        except RayError:  # the node went away meanwhile, or is too busy to answer: nothing is known of it
            continue
        if reason:
            raise StoppedError(unreached(node["NodeManagerHostname"], reason))


def _look(output: str, options: StoreOptions, key: str) -> str:
    """What keeps this process from an object for good; empty when nothing does, or only for now."""
    try:
        return "" if Store(output, options).stat(key) is not None else f"there is no {key} in {output}"
    except TransientError:
        return ""
    except FeatlibError as error:
        return str(error)


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


def _pool(workers: int, num_cpus: float, num_gpus: float = 0.0) -> dict[str, Any]:
    from ray.data import ActorPoolStrategy

    return {
        "compute": ActorPoolStrategy(size=workers),
        "batch_size": 1 if num_gpus else None,
        "batch_format": "pyarrow",
        "zero_copy_batch": True,
        "num_cpus": num_cpus,
        **({"num_gpus": num_gpus} if num_gpus else {}),
        "max_task_retries": 1,
        "max_restarts": -1,
    }


def _cause(error: BaseException) -> str:
    """The innermost reason that is put in words, on one line; Ray's own innermost exception may be empty."""
    reasons = [error]
    while (cause := reasons[-1].__cause__) is not None:
        reasons.append(cause)
    error = next((e for e in reversed(reasons) if str(e).strip()), reasons[-1])
    lines = [line for line in str(error).splitlines() if line.strip()]
    return " ".join((lines[-1] if lines else type(error).__name__).split())[:300]
