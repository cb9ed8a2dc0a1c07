"""The Ray that a job runs on: joined, or started on this machine; and whether its nodes reach the output."""

import logging
import os
import secrets
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal

from featlib.errors import ConfigError, FeatlibError, StoppedError, TransientError
from featlib.pools import Machine, Pools, Sizes, plan_pools
from featlib.redaction import redact
from featlib.spec import Kind
from featlib.storage import Store, StoreOptions
from featlib.workers import unreached

if TYPE_CHECKING:
    from ray.job_config import JobConfig

_MB = 1 << 20

_LOOK_S = 20.0

_TOKEN = secrets.token_hex(32)

_LOOPBACK = ("127.0.0.1", "localhost")


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
            job_config=_job_config(),
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


class _Importable(list[str]):
    """Where workers look for modules, besides what is installed: of the folders that Ray adds, only those in which this
    process looks itself. Ray adds the current one, where media may lie beside files that pass for modules."""

    def extend(self, folders: Iterable[str]) -> None:
        known = {os.path.abspath(folder) for folder in sys.path}
        super().extend(folder for folder in folders if folder in known)


def _job_config() -> "JobConfig":
    from ray.job_config import JobConfig

    config = JobConfig()
    config._py_driver_sys_path = _Importable()
    return config


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
            ray.init(address=address, job_config=_job_config(), log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ValueError) as error:
        reason = redact(" ".join(str(error).split()))[:200]
        raise StoppedError(f"--ray-address {redact(address)}: no Ray cluster answers there ({reason})") from None


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
        pools = plan_pools(this_machine(sizes), sizes, kinds, flow, network_mb)
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


def this_machine(sizes: Sizes) -> Machine:
    """What a Ray of this machine alone has."""
    gpus = _local_gpus() if sizes.device != "cpu" else 0
    return Machine(len(os.sched_getaffinity(0)), gpus=gpus, memory_mb=_memory_mb())


def _local_gpus() -> int:
    import torch

    return torch.cuda.device_count()


def _memory_mb() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // _MB


def _object_store_mb() -> int:
    """An eighth of the memory, within what a few units in flight need and what they can use."""
    return min(max(512, _memory_mb() // 8), 8192)


def check_nodes(output: str, options: StoreOptions, key: str) -> None:
    """Makes sure that the workers of every node reach the object ``key`` of the output.

    Raises:
        StoppedError: Those of a node do not; says which and why.
    """
    import ray
    from ray.exceptions import RayError, RayTaskError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    look = ray.remote(num_cpus=0)(_look)
    options = replace(options, deadline_s=_LOOK_S)
    nodes = [n for n in ray.nodes() if n["Alive"] and (n["Resources"].get("CPU") or n["Resources"].get("GPU"))]
    places = [NodeAffinitySchedulingStrategy(node["NodeID"], soft=False) for node in nodes]
    answers = [look.options(scheduling_strategy=place).remote(output, options, key) for place in places]
    for node, answer in zip(nodes, answers, strict=True):
        try:
            reason = ray.get(answer, timeout=3 * _LOOK_S)
        except RayTaskError as error:
            reason = cause(error)
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


def cause(error: BaseException) -> str:
    """The innermost reason that is put in words, on one line; Ray's own innermost exception may be empty."""
    reasons = [error]
    while (cause := reasons[-1].__cause__) is not None:
        reasons.append(cause)
    error = next((e for e in reversed(reasons) if str(e).strip()), reasons[-1])
    lines = [line for line in str(error).splitlines() if line.strip()]
    return redact(" ".join((lines[-1] if lines else type(error).__name__).split()))[:300]
