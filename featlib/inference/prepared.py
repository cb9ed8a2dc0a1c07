"""A network made ready to run: on its device, in the memory format and the arithmetic that suit it."""

import hashlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from featlib.config import Precision
from featlib.extractors.layers import Cut
from featlib.extractors.resolve import ResolvedModel
from featlib.inference.compiled import Candidate, NotCompiledError, compiled
from featlib.inference.folding import fold_batch_norm
from featlib.inference.kept import Kept, NotKeptError
from featlib.spec import FP32_TOLERANCE, InputSpec

_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}
_CONVOLUTIONAL = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
# The batch that is tried is noise; features of real clips were seen to stray further.
_MARGIN = 4.0
_HALF_ALLOWANCE = 2.0  # as in the conformance test


@dataclass(frozen=True)
class Prepared:
    """A module that reads normalised float32 batches.

    Args:
        precision: What it is run under; ``fp32`` also where half precision is built in.
        note: Why it is not compiled though it was to be; empty when all is as asked.
    """

    module: nn.Module
    precision: Precision
    note: str = ""


def exact_arithmetic(device: torch.device) -> AbstractContextManager[object]:
    """fp32 means fp32: cuDNN would otherwise round the inputs of convolutions to 10 bits (TF32)."""
    if device.type != "cuda":
        return nullcontext()
    return torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)


def autocast(precision: Precision, device: torch.device) -> AbstractContextManager[object]:
    """Half precision where the model asks for it."""
    dtype = _AUTOCAST.get(precision)
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype=dtype)


def in_best_format(module: nn.Module, reads: InputSpec, device: torch.device) -> nn.Module:
    """``module`` on its device, in the memory format that suits it."""
    module = module.to(device)
    # Measured: 1.26 times as fast for ResNet-50 on a CPU; nothing, or slower, for networks of clips.
    return module.to(memory_format=torch.channels_last) if reads.is_flat else module


def prepared(
    model: ResolvedModel,
    build: Callable[[], Cut],
    example: Callable[[], Tensor],
    device: torch.device,
    *,
    is_trial: bool = False,
) -> Prepared:
    """The network of ``model``, compiled where that is asked for and can be had.

    Args:
        build: Makes the plain network, anew each time.
        example: Makes a normalised batch of fixed pictures, of the shape and strides of all batches.
        is_trial: Whether a network of half precision may fall back, as one of fp32 always may.

    Raises:
        NotCompiledError: The partition's other rows are of a compiled network of half precision, and here it cannot
            be compiled: rows of another arithmetic would not equal them.
    """
    cut = build()
    plain, layers = in_best_format(cut, model.input, device), cut.layers
    if model.arithmetic == "plain" or model.input.crop is None:
        return Prepared(plain, model.precision)
    if device.type != "cpu":
        _check_may_fall_back(model, "it runs on a GPU", is_trial=is_trial)
        return Prepared(plain, model.precision, f"{model.label}: not compiled: it runs on a GPU")
    batch = example()
    try:
        module = _candidate(model, build())
        cast = batch if model.precision == "fp32" else batch.to(torch.bfloat16)
        run, strays = _plain_run(model, plain, batch), _strays(model, plain, batch)
        must_pay = is_trial or model.precision == "fp32"
        made = compiled(Candidate(module, cast, run, strays, torch.get_num_threads(), must_pay))
        with suppress(NotKeptError, OSError):
            Kept().mark(mark(model, layers, len(batch), torch.get_num_threads()))
        return Prepared(made, "fp32")
    except Exception as error:  # noqa: BLE001 - a network's own code is traced and torch raises what it likes
        reason = str(error) if isinstance(error, NotCompiledError) else f"{type(error).__name__}: {error}"
        reason = " ".join(reason.split())[:300]
        _check_may_fall_back(model, reason, is_trial=is_trial)
        return Prepared(plain, model.precision, f"{model.label}: not compiled: {reason}")


def mark(model: ResolvedModel, layers: Sequence[str], batch_size: int, threads: int) -> str:
    """A name for what is compiled, of what can be told without building it."""
    made_of = (model.network, model.weights_sha256, model.settings, model.precision, model.frames, model.input.crop)
    run_as = (tuple(layers), batch_size, threads, torch.__version__)
    return hashlib.sha256(repr((made_of, run_as)).encode()).hexdigest()


def _check_may_fall_back(model: ResolvedModel, reason: str, *, is_trial: bool) -> None:
    if model.precision != "fp32" and not is_trial:
        raise NotCompiledError(
            f"model={model.label}: its partition is of the network compiled in {model.precision} for a CPU, and here "
            f"it cannot be ({reason}); use another label with --compile off"
        )


def _candidate(model: ResolvedModel, module: Cut) -> nn.Module:
    """The network as it is compiled: batch norm folded, in half precision throughout where that is asked for."""
    fold_batch_norm(module)
    if model.precision == "fp16":
        raise NotCompiledError("a CPU has no fast fp16")
    if model.precision == "bf16" and not _is_convolutional(module):
        raise NotCompiledError("in bf16 only networks of convolutions are, others would stray further from fp32")
    dtype = torch.float32 if model.precision == "fp32" else torch.bfloat16
    return in_best_format(module.to(dtype), model.input, torch.device("cpu"))


def _is_convolutional(module: nn.Module) -> bool:
    """Whether all that was learned is in convolutions and linear layers: other layers lose more in bf16 than torch's
    autocast, which leaves them in fp32."""
    return all(
        isinstance(m, _CONVOLUTIONAL) for m in module.modules() if next(m.parameters(recurse=False), None) is not None
    )


def _plain_run(model: ResolvedModel, plain: nn.Module, batch: Tensor) -> Callable[[], Sequence[Tensor]]:
    def run() -> Sequence[Tensor]:
        with torch.inference_mode(), autocast(model.precision, batch.device):
            outputs: tuple[Tensor, ...] = plain(batch)
            return outputs

    return run


def _strays(model: ResolvedModel, plain: nn.Module, batch: Tensor) -> Callable[[Sequence[Tensor]], tuple[float, float]]:
    """How far outputs are from those of the plain network in fp32, and how far they may be."""

    def strays(outputs: Sequence[Tensor]) -> tuple[float, float]:
        with torch.inference_mode():
            true: tuple[Tensor, ...] = plain(batch)
        if model.precision == "fp32":
            return relative_l2(outputs, true), FP32_TOLERANCE / _MARGIN
        return relative_l2(outputs, true), _HALF_ALLOWANCE * relative_l2(_plain_run(model, plain, batch)(), true)

    return strays


def relative_l2(outputs: Sequence[Tensor], true: Sequence[Tensor]) -> float:
    """|output - true| / |true| of the row, of all layers, where it is largest; NaN where a value is."""
    worst = [torch.zeros((), dtype=torch.float64)]
    for mine, theirs in zip(outputs, true, strict=True):
        right = theirs.double().flatten(1)
        difference = (mine.double().flatten(1) - right).norm(dim=1)
        worst.append(torch.where(difference == 0, 0.0, difference / right.norm(dim=1)).max())
    return float(torch.stack(worst).max())
