"""How many workers of which kind: arithmetic on what a cluster has. A layout that cannot fit is refused."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Literal

from featlib.errors import ConfigError
from featlib.spec import Kind

TASKS_CPUS = 1.5
"""Logical CPUs left free for reading the plan, cutting it into tasks, and staging; without them the graph starves."""

_MOST_ACTORS = 8  # of one pool on a node without GPUs
_ACTOR_MB = 1000.0  # torch and what a batch takes
_COPIES = 4  # of the weights: shipped, plain, compiled, and while one becomes the other
_UNITS_EACH = 3
_OVERSUBSCRIPTION = 4
_CORES_FOR_SEPARATE = 16


@dataclass(frozen=True)
class Machine:
    """What Ray may use.

    Args:
        cpus: Logical CPUs of the cluster; None when featlib starts Ray itself and names the number.
        cores: Cores of one node.
        memory_mb: Of one node; None where nobody knows.
    """

    cores: int
    cpus: float | None = None
    gpus: int = 0
    memory_mb: float | None = None

    @property
    def nodes(self) -> int:
        """Nodes of this size that the cluster's CPUs amount to."""
        return 1 if self.cpus is None else max(1, round(self.cpus / self.cores))


@dataclass(frozen=True)
class Sizes:
    """What the user fixed; None is derived."""

    decode_workers: int | None = None
    extract_workers: int | None = None
    extract_threads: int | None = None
    layout: Literal["auto", "together", "separate"] = "auto"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    flow_workers: int | None = None


@dataclass(frozen=True)
class FlowPool:
    """The actors that compute optical flow."""

    workers: int
    device: Literal["cpu", "cuda"]
    threads: int
    num_cpus: float
    num_gpus: float


@dataclass(frozen=True)
class ExtractPool:
    """One pool of extractor actors, each holding the networks of ``labels``.

    Args:
        most_threads: That an actor may be given where there are few units; ``threads`` where the user fixed them.
    """

    labels: tuple[str, ...]
    workers: int
    device: Literal["cpu", "cuda"]
    threads: int
    num_cpus: float
    num_gpus: float
    most_threads: int = 1

    def for_units(self, num_units: int, threads: int | None = None) -> "ExtractPool":
        """For few units fewer actors of more threads: each takes seconds to start, and a unit is one actor's work.

        Args:
            threads: Of an actor, where an earlier pass has settled them.
        """
        if threads is not None:
            return self._with(max(1, self.workers * self.threads // threads), threads)
        workers = max(1, num_units // _UNITS_EACH)
        if workers >= self.workers:
            return self
        threads = min(max(self.threads, self.most_threads), self.threads * self.workers // workers)
        return self if threads == self.threads else self._with(workers, threads)

    def _with(self, workers: int, threads: int) -> "ExtractPool":
        return replace(self, workers=workers, threads=threads, num_cpus=self.num_cpus * threads / self.threads)


@dataclass(frozen=True)
class Pools:
    """The actors of one job.

    Args:
        total_cpus: Logical CPUs that Ray needs for all of them and for its tasks.
        flow: None when no network reads optical flow.
    """

    decode_workers: int
    decode_cpus: float
    extract: tuple[ExtractPool, ...]
    total_cpus: float
    flow: FlowPool | None = None

    def for_units(self, num_units: int, threads: Mapping[str, int] = MappingProxyType({})) -> "Pools":
        """For a pass over so many units.

        Args:
            threads: By label, those of an actor where an earlier pass has settled them.
        """
        pools = (pool.for_units(num_units, threads.get(pool.labels[0])) for pool in self.extract)
        return replace(self, extract=tuple(pools))

    def threads(self, labels: Collection[str]) -> dict[str, int]:
        """By label, the threads of an actor of each pool that holds one of ``labels``."""
        held = (pool for pool in self.extract if not set(labels).isdisjoint(pool.labels))
        return {label: pool.threads for pool in held for label in pool.labels}

    def __str__(self) -> str:
        pools = ", ".join(
            f"{p.workers} x [{' '.join(p.labels)}] on {p.device}" + (f" ({p.threads} threads)" * (p.device == "cpu"))
            for p in self.extract
        )
        flow = "" if self.flow is None else f"{self.flow.workers} flow on {self.flow.device}, "
        return f"{self.decode_workers} decode, {flow}{pools}"


def plan_pools(
    machine: Machine,
    sizes: Sizes,
    kinds: Mapping[str, Kind],
    flow: Literal["none", "opencv", "network"] = "none",
    network_mb: Mapping[str, float] = MappingProxyType({}),
) -> Pools:
    """Divides a machine or cluster among decoding, optical flow and the networks.

    Args:
        kinds: By label in the order of the job, whether the model reads frames or clips.
        flow: What computes optical flow; only a network can use a GPU.
        network_mb: By label, the size of the weights; each actor has its own.

    Raises:
        ConfigError: What the user fixed cannot run on this machine or cluster.
    """
    device = _device(machine, sizes)
    groups = _groups(machine, sizes, kinds, device)
    threads = sizes.extract_threads or (1 if device == "cuda" else _threads(machine, sizes, groups, network_mb))
    is_fixed = device == "cuda" or sizes.extract_threads is not None or sizes.extract_workers is not None
    most_threads = threads if is_fixed else max(threads, machine.cores // len(groups))
    workers = _workers(machine, sizes, device, len(groups), threads)
    cpus_each = 1.0 if device == "cuda" else float(threads)
    extract_cpus = sum(workers) * cpus_each
    decode = sizes.decode_workers or _decode_workers(machine, device, extract_cpus)
    if machine.cpus is not None and cpus_each > machine.cores:
        raise ConfigError(
            f"extract_threads ({threads}) must not exceed the {machine.cores} CPUs of the largest node of the Ray "
            "cluster; lower it"
        )
    flow_pool = _flow_pool(machine, sizes, device, flow)
    flow_cpus = flow_pool.workers * flow_pool.num_cpus if flow_pool else 0.0
    wanted = extract_cpus + decode + flow_cpus
    scale = _scale(machine, wanted, _others(decode, flow_pool), sum(workers))
    shared = flow_pool is not None and flow_pool.num_gpus > 0 and machine.gpus < sum(workers) + flow_pool.workers
    gpus_each = 0.0 if device == "cpu" else 0.5 if shared else 1.0
    _check_gpus(machine, flow_pool, sum(workers), gpus_each)
    pools = tuple(
        ExtractPool(labels, n, device, threads, _round(cpus_each * scale), gpus_each, most_threads)
        for labels, n in zip(groups, workers, strict=True)
    )
    if flow_pool is not None:
        gpus = 0.0 if not flow_pool.num_gpus else 0.5 if shared else 1.0
        flow_pool = replace(flow_pool, num_cpus=_round(flow_pool.num_cpus * scale), num_gpus=gpus)
    return Pools(decode, _round(scale), pools, wanted * scale + TASKS_CPUS, flow_pool)


def _check_gpus(machine: Machine, flow: FlowPool | None, extract: int, gpus_each: float) -> None:
    wanted = 0.0 if flow is None or not flow.num_gpus else (extract + flow.workers) * gpus_each
    if wanted > machine.gpus:
        raise ConfigError(
            f"flow_workers ({flow.workers if flow else 0}) and extract_workers ({extract}) want {wanted:g} GPUs; "
            f"the Ray cluster has {machine.gpus}; lower flow_workers"
        )


def _others(decode: int, flow: FlowPool | None) -> str:
    return f"{decode} decode" if flow is None else f"{decode} decode, {flow.workers} flow"


def _flow_pool(
    machine: Machine,
    sizes: Sizes,
    device: Literal["cpu", "cuda"],
    flow: Literal["none", "opencv", "network"],
) -> FlowPool | None:
    """Flow costs more than all else together, so it gets a core less than there are; a network shares the GPUs."""
    if flow == "none":
        return None
    if flow == "network" and device == "cuda":
        return FlowPool(sizes.flow_workers or machine.gpus, "cuda", 1, 1.0, 1.0)
    workers = sizes.flow_workers or machine.nodes * max(1, machine.cores - 1)
    return FlowPool(workers, "cpu", 1, 1.0, 0.0)


def _device(machine: Machine, sizes: Sizes) -> Literal["cpu", "cuda"]:
    if sizes.device == "cuda" and not machine.gpus:
        raise ConfigError("--device cuda: the Ray cluster has no GPU; use --device auto or cpu")
    if sizes.device == "auto":
        return "cuda" if machine.gpus else "cpu"
    return sizes.device


def _groups(
    machine: Machine, sizes: Sizes, kinds: Mapping[str, Kind], device: Literal["cpu", "cuda"]
) -> tuple[tuple[str, ...], ...]:
    """The labels of each pool. Clip models come first: their frames are the biggest column, and so go first."""
    by_kind = [tuple(label for label, kind in kinds.items() if kind == k) for k in ("clip", "frame")]
    groups = tuple(group for group in by_kind if group)
    room = machine.gpus >= 2 if device == "cuda" else machine.cores >= _CORES_FOR_SEPARATE
    separate = sizes.layout == "separate" or (sizes.layout == "auto" and room)
    if not separate or len(groups) == 1:
        return (tuple(kinds),)
    if device == "cuda" and machine.gpus < len(groups):
        raise ConfigError(
            f"layout separate needs {len(groups)} GPUs, one a pool; the Ray cluster has {machine.gpus}; "
            "use layout together"
        )
    return groups


def _threads(
    machine: Machine, sizes: Sizes, groups: tuple[tuple[str, ...], ...], network_mb: Mapping[str, float]
) -> int:
    """One for each actor, as long as these are not too many: measured, two actors of one thread got through a tenth
    more than one of two threads, which wait for each other after every layer."""
    cores = machine.cores // len(groups)
    if sizes.extract_workers:
        return max(1, cores // -(-sizes.extract_workers // machine.nodes))
    # All actors together get half of the memory; the rest is for decoding, Ray's object store and other programs.
    mb_each = sum(_ACTOR_MB + _COPIES * sum(network_mb.get(label, 0.0) for label in labels) for labels in groups)
    fitting = _MOST_ACTORS if machine.memory_mb is None else int(machine.memory_mb / 2 / mb_each)
    return max(1, -(-cores // max(1, min(_MOST_ACTORS, fitting))))


def _workers(machine: Machine, sizes: Sizes, device: Literal["cpu", "cuda"], pools: int, threads: int) -> list[int]:
    total = machine.gpus if device == "cuda" else machine.nodes * max(1, machine.cores // threads)
    if sizes.extract_workers is not None:
        if device == "cuda" and sizes.extract_workers * pools > machine.gpus:
            raise ConfigError(
                f"extract_workers ({sizes.extract_workers} in each of {pools} pools) must not exceed the "
                f"{machine.gpus} GPUs of the Ray cluster; lower it"
            )
        return [sizes.extract_workers] * pools
    return [max(1, total // pools + (i < total % pools)) for i in range(pools)]


def _decode_workers(machine: Machine, device: Literal["cpu", "cuda"], extract_cpus: float) -> int:
    if device == "cpu":
        return machine.nodes * max(1, machine.cores // 2)
    have = machine.cpus if machine.cpus is not None else machine.cores
    return max(1, int(have - extract_cpus - TASKS_CPUS))


def _scale(machine: Machine, wanted: float, others: str, extract: int) -> float:
    """What an actor's logical CPU is worth so that all fit: Ray's CPUs are an accounting, not a partition."""
    if machine.cpus is None:
        return 1.0
    room = machine.cpus - TASKS_CPUS
    if room <= 0 or wanted > room * _OVERSUBSCRIPTION + _OVERSUBSCRIPTION:
        raise ConfigError(
            f"{others} and {extract} extract workers want {wanted + TASKS_CPUS:g} logical CPUs; the Ray cluster "
            f"has {machine.cpus:g}; lower decode_workers, extract_workers or extract_threads, or add nodes"
        )
    return min(1.0, room / wanted)


def _round(cpus: float) -> float:
    return max(0.01, int(cpus * 100) / 100)
