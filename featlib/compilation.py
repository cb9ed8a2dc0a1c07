"""Whether a network is compiled: by the work that a job has for it, before anything is decoded."""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

import numpy as np

from featlib.config import Compile, ExtractConfig
from featlib.items import PlanItem
from featlib.ledger import Rows
from featlib.manifest import IMAGE_ENDINGS
from featlib.plan import Plan, PlanItems
from featlib.sampling import ClipSampling, Sampling
from featlib.spec import FP32_TOLERANCE, Arithmetic
from featlib.storage import StoreOptions

if TYPE_CHECKING:
    from featlib.extractors.resolve import ResolvedModel

COMPILING_S = 60.0
"""Seconds that a worker waits for its network where nothing is kept of it yet; 20 to 45 were measured."""
LOADING_S = 3.0
"""The same where this machine has compiled the network before."""
WORTH = 3.0
"""So many times its cost compiling must save."""
SHARE_SAVED = 0.15
"""Of the time of a plain forward; 0.1 to 0.45 were measured."""
FLOPS_PER_CORE = {"fp32": 8e10, "bf16": 2e11, "fp16": 8e9}
"""A second on one core, run plainly: ResNet-50 and R3D-18 with AVX-512."""
CLUSTER_CORES = 64
"""Taken for the cores of a Ray cluster, which is asked only later."""

_SAMPLE = 8  # shards
_BYTES_PER_S = 125_000  # a megabit: small web video; the frames of a larger one cost no more to the network
_UNKNOWN_S = 10.0
_FRAMES_PER_S = 25.0
_SHARE_OF_KEYFRAMES = 0.02


@dataclass(frozen=True)
class Work:
    """What a job has for one network.

    Args:
        rows: Frames or clips, as far as the plan lets one guess.
        flops: Of one row.
        cores: That run it.
        is_kept: Whether this machine has probably compiled it before, for as many threads.
    """

    rows: float
    flops: float
    cores: int
    is_kept: bool = False

    def forward_s(self, precision: str) -> float:
        """Seconds of forward passes on one core, run plainly."""
        return self.rows * self.flops / FLOPS_PER_CORE[precision]


NOTHING = Work(0.0, 0.0, 1)


@dataclass(frozen=True)
class Decision:
    """Whether a network is compiled, and a line for a person."""

    arithmetic: Arithmetic
    says: str


def decide(asked: Compile, work: Work, precision: str) -> Decision:
    """Compiled where asked for, or where compiling saves each core ``WORTH`` times the wait for it."""
    if asked != "auto":
        return Decision("compiled" if asked == "on" else "plain", f"--compile {asked}")
    seconds = work.forward_s(precision)
    about = f"about {_duration(seconds)} of forward passes"
    pays = seconds * SHARE_SAVED / work.cores > WORTH * (LOADING_S if work.is_kept else COMPILING_S)
    return Decision("compiled" if pays else "plain", about if pays else f"{about}: too few to compile for")


def expected_rows(item: PlanItem, sampling: Sampling) -> float:
    """Frames or clips of an item, from its range, else its size, else a typical length."""
    if PurePosixPath(item.uri).suffix.lower() in IMAGE_ENDINGS:
        return 0.0 if isinstance(sampling, ClipSampling) else 1.0
    seconds = _seconds(item)
    if isinstance(sampling, ClipSampling):
        frames = seconds * float(sampling.fps or _FRAMES_PER_S)
        return max(0.0, (frames - sampling.span) // sampling.hop + 1)
    value = float(sampling.value or 1)
    by_policy = {
        "all": seconds * _FRAMES_PER_S,
        "every": seconds * _FRAMES_PER_S / value,
        "fps": seconds * value,
        "uniform": value,
        "random": value,
        "keyframes": seconds * _FRAMES_PER_S * _SHARE_OF_KEYFRAMES,
    }
    return max(1.0, by_policy[sampling.policy])


def _seconds(item: PlanItem) -> float:
    if item.end_s is not None:
        return max(0.0, item.end_s - (item.start_s or 0.0))
    return _UNKNOWN_S if item.size is None else item.size / _BYTES_PER_S


def mean_rows(items: Iterable[PlanItem], sampling: Sampling) -> float:
    """Of the items of a sample."""
    rows = [expected_rows(item, sampling) for item in items]
    return sum(rows) / len(rows) if rows else 0.0


def works(
    models: "Sequence[ResolvedModel]",
    needs: Mapping[str, Rows],
    plan: Plan,
    items: PlanItems,
    num_cores: int,
    threads: Mapping[str, int],
) -> dict[str, Work]:
    """By label, what open items mean for each network; a sample of the plan's shards stands for all.

    Args:
        threads: By label, those of an actor; empty where the actors run elsewhere: what is kept there, nobody knows.
    """
    from featlib.extractors import probe, registry
    from featlib.inference import is_probably_kept

    found = {}
    sharing = _by_trunk([replace(model, arithmetic="compiled") for model in models])
    is_kept = {
        model.label: is_probably_kept(group, threads[model.label])
        for group in sharing.values()
        for model in group
        if model.label in threads
    }
    for model in models:
        if model.regions is not None or model.input.crop is None:
            found[model.label] = NOTHING
            continue
        shards = np.unique(plan.shards[needs[model.label]])
        sample = shards[:: max(1, len(shards) // _SAMPLE)][:_SAMPLE]
        rows = mean_rows((item for shard in sample for item in items.shard(int(shard))), model.sampling)
        shape = probe.input_shape(model.input, model.frames)
        flops = probe.probe_and_count(registry.network(model.network), model.settings, shape, model.layer)[1]
        total = rows * int(needs[model.label].sum())
        found[model.label] = Work(total, float(flops), num_cores, is_kept.get(model.label, False))
    return found


def _by_trunk(models: "Iterable[ResolvedModel]") -> "dict[tuple[object, ...], list[ResolvedModel]]":
    """Models that share a forward pass, together."""
    groups: dict[tuple[object, ...], list[ResolvedModel]] = {}
    for model in models:
        groups.setdefault(model.trunk, []).append(model)
    return groups


def is_local(ray_address: str | None) -> bool:
    """Whether the job runs on this machine alone."""
    return (ray_address or os.environ.get("RAY_ADDRESS")) in (None, "", "local")


def cores(ray_address: str | None) -> int:
    """Cores of this machine where the job runs on it, else a guess."""
    return len(os.sched_getaffinity(0)) if is_local(ray_address) else CLUSTER_CORES


@dataclass(frozen=True)
class Asked:
    """What the command says, for this machine or cluster.

    Args:
        half: For models of half precision, whose partitions are bound to one arithmetic.
        reason: Why it is ``off`` where the command does not say so.
    """

    fp32: Compile
    half: Compile
    reason: str = ""


def asked(config: ExtractConfig) -> Asked:
    """What ``--compile`` comes to where there may be GPUs: they do not run compiled networks."""
    as_said = Asked(config.compile, config.compile)
    if config.device == "cpu" or config.compile == "off":
        return as_said
    on_gpus = Asked("off", "off", "it runs on a GPU")
    if config.device == "cuda":
        return on_gpus
    if not is_local(config.ray_address):  # which is asked for its GPUs only later
        return replace(as_said, half="off", reason="the cluster may have GPUs; --device cpu where it has none")
    import torch

    return on_gpus if torch.cuda.is_available() else as_said


def settled(
    models: "Sequence[ResolvedModel]",
    asked: Asked,
    registered: Mapping[str, Mapping[str, str] | None],
    work: Mapping[str, Work],
) -> "tuple[tuple[ResolvedModel, ...], dict[str, str]]":
    """The models with their arithmetic, and by label what decided it.

    Models that share a forward pass share the decision, by the work of all. In half precision, where compiled and plain
    round differently, a partition stays with what it was begun with unless the command says otherwise.

    Args:
        registered: By label, the settings that a partition was made with; None for a new one.
        work: By label.
    """
    chosen: list[ResolvedModel] = []
    says: dict[str, str] = {}
    sharing = _by_trunk(models)
    for model in models:
        shared = _together([work.get(m.label, NOTHING) for m in sharing[model.trunk]])
        decision = _decision(model, asked, registered.get(model.label), shared)
        chosen.append(replace(model, arithmetic=decision.arithmetic))
        says[model.label] = decision.says
    return tuple(chosen), says


def _together(works: Sequence[Work]) -> Work:
    """Of one forward pass for several labels: it runs for each row that one of them lacks, to the deepest layer."""
    most = max(works, key=lambda work: work.rows)
    return replace(most, flops=max(work.flops for work in works))


def _decision(model: "ResolvedModel", said: Asked, before: Mapping[str, str] | None, work: Work) -> Decision:
    if model.regions is not None or model.input.crop is None:
        return Decision("plain", "pictures of varying size")
    asked = said.fp32 if model.precision == "fp32" else said.half
    if asked == "off" and said.reason:
        return Decision("plain", said.reason)
    if asked == "auto" and model.precision != "fp32" and before is not None:
        arithmetic: Arithmetic = "compiled" if before.get("arithmetic") == "compiled" else "plain"
        return Decision(arithmetic, "as its partition was begun")
    if model.precision == "fp16":
        return Decision("plain", "fp16 is not compiled on a CPU")
    return decide(asked, work, model.precision)


def checked(
    models: "Sequence[ResolvedModel]",
    says: Mapping[str, str],
    registered: Mapping[str, Mapping[str, str] | None],
    options: StoreOptions,
    threads: Mapping[str, int],
) -> "tuple[tuple[ResolvedModel, ...], dict[str, str]]":
    """The models of half precision that are to be compiled for a new partition only where this machine can do so:
    the partition is bound to it from its first row on.

    Args:
        threads: By label, those of an actor as far as they can be told before the units are cut: with the same, it
            finds kept what was compiled here. torch's own where nothing is known.
    """
    from featlib.extractors.weights import payload

    plain: set[str] = set()
    lines = dict(says)
    for group in _by_trunk(models).values():
        first = group[0]
        new = [m for m in group if (registered.get(m.label) or {}).get("arithmetic") != "compiled"]
        if first.precision == "fp32" or first.arithmetic == "plain" or not new:
            continue
        reason = _why_not(group, payload(first, options), threads.get(first.label))
        if reason:
            plain |= {m.label for m in new}
            lines |= {m.label: reason for m in new}
    return tuple(replace(m, arithmetic="plain") if m.label in plain else m for m in models), lines


def _why_not(models: "Sequence[ResolvedModel]", payload: bytes, threads: int | None) -> str:
    """Why models that share a forward pass cannot be compiled here; empty when they can."""
    import torch

    from featlib.inference import Engine

    before = torch.get_num_threads()
    try:
        notes = Engine(models, payload, threads=threads, is_trial=True).notes
    finally:
        torch.set_num_threads(before)
    return notes[0].partition(": ")[2] if notes else ""


def lines(models: "Sequence[ResolvedModel]", says: Mapping[str, str]) -> tuple[str, ...]:
    """What was decided, a line a model, for a person."""
    return tuple(f"{model.label}: {model.arithmetic} ({says[model.label]})" for model in models)


def bf16_hint(models: "Sequence[ResolvedModel]", asked: Asked, cpuinfo: str) -> tuple[str, ...]:
    """A line for who asks for bf16 of an x86 processor that has no instructions for it.

    Args:
        cpuinfo: The text of ``/proc/cpuinfo``; empty where there is none.
    """
    labels = [model.label for model in models if model.precision == "bf16"]
    flags = next((line for line in cpuinfo.splitlines() if line.startswith("flags")), "")
    if not labels or not flags or asked.half == "off" or "avx512_bf16" in flags or "amx_bf16" in flags:
        return ()
    return (f"{', '.join(labels)}: this CPU has no instructions for bf16; fp32 is probably as fast",)


def described(model: "ResolvedModel") -> str:
    """The arithmetic for the record of a partition."""
    if model.precision == "fp32":
        return (
            f"{model.arithmetic}; compiled code is allowed a relative L2 of {FP32_TOLERANCE:g} from plain fp32, "
            "and a quarter of that on the fixed batch on which it is tried"
        )
    if model.arithmetic == "plain":
        return f"plain, torch's autocast to {model.precision}"
    return f"compiled in {model.precision}, batch norm folded; at most twice as far from fp32 as torch's autocast"


def _duration(seconds: float) -> str:
    for size, unit in ((3600.0, "h"), (60.0, "min")):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.2g} s"
