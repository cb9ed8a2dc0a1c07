"""The machine that figures are of: without it they mean nothing."""

import importlib.metadata
import os
import platform
from dataclasses import dataclass
from pathlib import Path

_BUSY_LOAD = 0.5
_BF16_FLAGS = ("avx512_bf16", "amx_bf16", "bf16")


@dataclass(frozen=True)
class Machine:
    """What ran the benchmark.

    Args:
        cores: That this process may use.
        bf16: The flags of the processor that make bf16 worth while; empty when it has none.
        load: Of the minute before the start.
    """

    cpu: str
    cores: int
    memory_gb: float
    gpu: str
    bf16: tuple[str, ...]
    versions: dict[str, str]
    load: float

    @property
    def warning(self) -> str:
        """A line when other work went on; empty otherwise."""
        if self.load <= _BUSY_LOAD:
            return ""
        return f"WARNING: the load of this machine was {self.load:.1f} at the start; figures of a busy machine mislead"

    def text(self) -> str:
        versions = ", ".join(f"{name} {version}" for name, version in self.versions.items())
        flags = ", ".join(self.bf16) or "no bf16"
        return (f"{self.cpu}, {self.cores} cores ({flags}), {self.memory_gb:.0f} GB, GPU: {self.gpu}\n"
                f"Python {platform.python_version()}, {versions}")  # fmt: skip


def this_machine() -> Machine:
    """The machine this process is on."""
    pages = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Machine(
        cpu=_cpu_line("model name") or platform.processor() or platform.machine(),
        cores=len(os.sched_getaffinity(0)),
        memory_gb=pages / 1e9,
        gpu=_gpu(),
        bf16=tuple(flag for flag in _BF16_FLAGS if flag in _cpu_line("flags", "Features").split()),
        versions={name: _version(name) for name in ("torch", "ray", "av", "daft", "torchcodec", "decord")},
        load=os.getloadavg()[0],
    )


def _cpu_line(*names: str) -> str:
    """What the kernel says of the first core under one of ``names``."""
    path = Path("/proc/cpuinfo")
    for line in path.read_text().splitlines() if path.exists() else ():
        name, _, value = line.partition(":")
        if name.strip() in names:
            return value.strip()
    return ""


def _gpu() -> str:
    import torch

    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else "none"


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "absent"
