"""A network as machine code of this processor: compiled once a machine, held against the plain one, and kept.

What is kept is found by what it is made of: the operations of the exported graph, every number in it, the shape it
reads, the processor and torch. A network whose code or weights changed is another one.
"""

import hashlib
import json
import math
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor, fx, nn

from featlib.errors import FeatlibError
from featlib.inference import compiler
from featlib.inference.kept import BUILDING, Kept, NotKeptError

FORMAT = 1
"""Raised when what is compiled, or how, changes."""
DEADLINE_S = 900.0
"""A compiler that takes longer is given up."""
FASTER = 1.03
"""Least ratio of the plain network's CPU time to the compiled one's that is worth keeping it."""

_ROUNDS = 2
_FAILED_S = 900.0
"""For so long a failure of the compiler, or of what it made, is believed without trying."""
_SLOW_S = 86_400.0
"""For so long a measurement of its speed, which other work on the machine may have spoilt."""


class NotCompiledError(FeatlibError):
    """A network stays as it is; the message says why."""


@dataclass(frozen=True)
class Candidate:
    """A network that may be compiled.

    Args:
        module: What is compiled: reads ``example`` and gives a tuple of tensors.
        example: A batch as it will come: its shape, strides and type are compiled in.
        plain: The network as it is run otherwise, on the same pictures.
        strays: Relative L2 of a tuple of outputs from the true ones, and how much is allowed.
        threads: CPU threads that it will run on.
        must_pay: Whether it is refused where it is no faster than the plain one.
    """

    module: nn.Module
    example: Tensor
    plain: Callable[[], object]
    strays: Callable[[Sequence[Tensor]], tuple[float, float]]
    threads: int
    must_pay: bool = True


class CompiledNetwork(nn.Module):
    """Machine code that reads batches of one shape; others than that are made to fit or refused."""

    def __init__(self, run: Callable[[Tensor], Sequence[Tensor]], example: Tensor) -> None:
        super().__init__()
        self._run, self._dtype = run, example.dtype
        self._shape, self._stride = example.shape, example.stride()

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        if x.shape != self._shape:
            raise ValueError(f"compiled for {tuple(self._shape)}, called with {tuple(x.shape)}")
        if x.dtype != self._dtype or x.stride() != self._stride:  # the code takes the strides for granted
            x = torch.empty_strided(self._shape, self._stride, dtype=self._dtype).copy_(x)
        return tuple(self._run(x))


def compiled(candidate: Candidate, kept: Kept | None = None) -> CompiledNetwork:
    """The candidate as machine code: what is kept of it, else made now; of several processes one makes it.

    Raises:
        NotCompiledError: It cannot be, or is not worth it.
    """
    try:
        kept = kept or Kept()
        program = _exported(candidate)
        key = _key(program, candidate)
        with kept.locked(key):
            found = kept.find(key)
            if found is not None and found.path is None and not (found.is_slow and not candidate.must_pay):
                raise NotCompiledError(found.refused)
            if found is not None and found.path is not None:
                with suppress(NotCompiledError):  # of a machine whose libraries have changed since: it is made anew
                    return CompiledNetwork(_loaded(found.path), candidate.example)
            return CompiledNetwork(_made(candidate, program, kept, key), candidate.example)
    except (NotKeptError, OSError) as error:
        raise NotCompiledError(" ".join(str(error).split())[:300]) from error


def _exported(candidate: Candidate) -> torch.export.ExportedProgram:
    try:
        with torch.no_grad():
            return torch.export.export(candidate.module, (candidate.example,))
    except Exception as error:  # a network's code may fail in any way where it is traced
        raise NotCompiledError(f"its graph cannot be exported ({_short(error)})") from error


def _key(program: torch.export.ExportedProgram, candidate: Candidate) -> str:
    """SHA-256 of everything that the machine code depends on."""
    graphs = [m.code for m in program.graph_module.modules() if isinstance(m, fx.GraphModule)]
    x = candidate.example
    made_of = [FORMAT, graphs, str(program.graph_signature), list(x.shape), list(x.stride()), str(x.dtype)]
    digest = hashlib.sha256(json.dumps([*made_of, candidate.threads, *_machine()]).encode())
    for name, value in sorted({**program.state_dict, **program.constants}.items()):
        if isinstance(value, Tensor):
            digest.update(f"{name} {value.dtype} {tuple(value.shape)} {value.stride()}".encode())
            digest.update(value.detach().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _machine() -> list[str]:
    """Torch, and what a compiler that compiles for the processor at hand looks at."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8", errors="replace").splitlines() if info.exists() else []
    wanted = ("vendor_id", "cpu family", "model", "flags", "Features", "CPU implementer", "CPU part")
    described = sorted({" ".join(line.split()) for line in lines if line.startswith(wanted)})
    return [torch.__version__, platform.machine(), torch.backends.cpu.get_cpu_capability(), *described]


def _made(
    candidate: Candidate, program: torch.export.ExportedProgram, kept: Kept, key: str
) -> Callable[[Tensor], Sequence[Tensor]]:
    """Compiles the network and keeps it if it is right and worth it, else the reason why not."""
    building = kept.folder / f"{key}{BUILDING}"
    shutil.rmtree(building, ignore_errors=True)  # of a process that was killed over it
    building.mkdir(mode=0o700)
    try:
        try:
            with _compilers_folder(kept, building) as inductor:
                package = _compiled_package(program, building, inductor, candidate.threads)
            run = _loaded(package)
            reason, is_slow = _why_not(candidate, run)
        except NotCompiledError as error:  # whoever waits for the lock would try the same now
            kept.refuse(key, str(error), for_s=_FAILED_S)
            raise
        if reason:
            kept.refuse(key, reason, is_slow=is_slow, for_s=_SLOW_S if is_slow else math.inf)
            raise NotCompiledError(reason)
        kept.keep(key, package)
        return run
    finally:
        shutil.rmtree(building, ignore_errors=True)


@contextmanager
def _compilers_folder(kept: Kept, building: Path) -> Iterator[Path]:
    """A folder for the compiler, with what it found out about this processor before: 10 s of its time."""
    found_out = kept.folder / f"probes-{hashlib.sha256(json.dumps(_machine()).encode()).hexdigest()[:16]}"
    inductor = building / "inductor"
    if found_out.is_dir():
        shutil.copytree(found_out, inductor)
    yield inductor
    if not found_out.is_dir() and inductor.is_dir():
        probes = building / "probes"
        probes.mkdir()
        for folder in (f for f in inductor.iterdir() if f.is_dir() and len(f.name) == 2):  # the others are networks
            shutil.copytree(folder, probes / folder.name)
        with suppress(OSError):  # another process was first
            probes.rename(found_out)


def _compiled_package(program: torch.export.ExportedProgram, building: Path, inductor: Path, threads: int) -> Path:
    """Has another process compile the program.

    Raises:
        NotCompiledError: It failed, for instance because there is no C++ compiler.
    """
    exported, package = building / "exported.pt2", building / "compiled.pt2"
    torch.export.save(program, exported)
    own = {"TORCHINDUCTOR_CACHE_DIR": str(inductor), "TMPDIR": str(building)}
    command = [sys.executable, "-P", str(compiler.__file__), str(exported), str(package), str(threads)]
    try:
        done = subprocess.run(
            [*command, str(os.getpid())],
            env={**os.environ, **own},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=DEADLINE_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise NotCompiledError(f"compiling took more than {DEADLINE_S:g} s") from error
    if done.returncode or not package.exists():
        raise NotCompiledError(_complaint(done.stderr, done.returncode))
    return package


def _complaint(text: str, status: int) -> str:
    """The line of a traceback that says what was wrong."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    named = [line for line in lines if not line.startswith(("File ", "Traceback", "^")) and "Error" in line]
    if any("InvalidCxxCompiler" in line or "No working C++ compiler" in line for line in lines):
        return "there is no C++ compiler; install g++"
    said = (named or lines or [""])[-1][:200]
    if status < 0:  # what it said before is another story
        said = f"ended by {_signal_name(-status)}" + f"; it said last: {said}" * bool(said)
    return f"compiling failed ({said or f'exit status {status}'})"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


@contextmanager
def _temporary_files_in(folder: str) -> Iterator[None]:
    before = os.environ.get("TMPDIR")
    os.environ["TMPDIR"] = folder
    try:
        yield
    finally:
        if before is None:
            del os.environ["TMPDIR"]
        else:
            os.environ["TMPDIR"] = before


def _loaded(package: Path) -> Callable[[Tensor], Sequence[Tensor]]:
    """The machine code, mapped into this process.

    Loading unpacks it into a temporary folder that torch removes when the process ends well. Here it goes at once:
    what is mapped stays, and a killed process leaves nothing behind.
    """
    import torch._inductor

    try:
        with TemporaryDirectory(prefix="featlib-compiled-") as folder, _temporary_files_in(folder):
            run: Callable[[Tensor], Sequence[Tensor]] = torch._inductor.aoti_load_package(str(package))
            return run
    except Exception as error:  # torch and the loader of shared libraries raise what they like
        raise NotCompiledError(f"what was compiled cannot be loaded ({_short(error)})") from error


def _why_not(candidate: Candidate, run: Callable[[Tensor], Sequence[Tensor]]) -> tuple[str, bool]:
    """Why machine code is not to be used, and whether only because it is slow; empty when it is right and worth it.

    Raises:
        NotCompiledError: It could not be tried.
    """
    try:
        with torch.inference_mode():
            figure, allowed = candidate.strays(run(candidate.example))
            if not figure <= allowed:
                return f"compiled it strays by {figure:.1e} from the plain network, {allowed:.1e} is allowed", False
            ratio = _cpu_s(candidate.plain) / _cpu_s(lambda: run(candidate.example))
    except Exception as error:  # an operation that has no kernel may raise anything
        raise NotCompiledError(f"compiled it fails ({_short(error)})") from error
    is_slow = ratio < FASTER and candidate.must_pay
    return f"compiled it is no faster ({ratio:.2f} times as fast)" * is_slow, is_slow


def _cpu_s(forward: Callable[[], object]) -> float:
    """CPU seconds of a forward pass, the less of two: what else the machine does makes it no shorter."""
    taken = []
    for _ in range(_ROUNDS):
        started = time.process_time()
        forward()
        taken.append(time.process_time() - started)
    return max(min(taken), 1e-9)


def _short(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
