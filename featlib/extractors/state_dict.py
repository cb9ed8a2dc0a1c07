"""State dicts: read from bytes without running anything in them, freed of wrappers, fitted to a network."""

import hashlib
import re
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from featlib.errors import ConfigError
from featlib.extractors import probe
from featlib.extractors.metadata import header_text, is_safetensors
from featlib.extractors.network import Network, Settings, StateDict
from featlib.extractors.torch_file import read_torch_file
from featlib.extractors.torch_pickle import StoredTensor, TorchFileError, Unread

_WRAPPERS = ("state_dict", "model_state_dict", "model")
_PREFIXES = ("module.", "model.", "_orig_mod.")
_MOST_WRAPPED = 4
_MOST_PREFIXES = 8
_LONGEST_NAME = 1000
_SHOWN = 3  # keys of each kind that an error names
_SHOWN_NAME = 80  # characters of each
_FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64)  # whose values are the weights themselves


@dataclass(frozen=True)
class RawState:
    """A state dict as it was stored, without wrappers and prefixes.

    Args:
        versions: torch's ``_metadata``: the version of each module when it was saved; empty when the file says none.
    """

    tensors: dict[str, Tensor]
    versions: dict[str, Any]


def read_state_dict(data: bytes, source: str) -> RawState:
    """The state dict in the bytes of a ``.pth``, ``.pt`` or ``.safetensors`` file; its content decides which.

    Raises:
        ConfigError: The bytes are neither, are damaged, or hold anything but tensors.
    """
    if is_safetensors(data):
        state = _unwrapped(_safetensors(data, source), source)
        return _without_prefixes(RawState(_checked_tensors(state, len(data), source), {}))
    try:
        file = read_torch_file(data)
        state = _unwrapped(file.content, source)
        stored = _checked_tensors(state, len(data), source)
        tensors = {name: file.tensor(tensor) for name, tensor in stored.items()}
    except TorchFileError as error:
        raise ConfigError(f"--weights {source}: {error}") from None
    return _without_prefixes(RawState(tensors, _versions(getattr(state, "_metadata", None))))


def _safetensors(data: bytes, source: str) -> Mapping[object, object]:
    try:
        header_text(data)  # safetensors itself reads a much longer one
        return safetensors.torch.load(data)  # type: ignore[no-any-return]
    except Exception as error:  # noqa: BLE001 - its own error, or what its Python side makes of types it lacks
        raise ConfigError(f"--weights {source}: damaged .safetensors file ({_line(error)})") from None


def _unwrapped(loaded: object, source: str) -> Mapping[object, object]:
    """The state dict itself, out of what it was saved in.

    Raises:
        ConfigError: There is none.
    """
    for _ in range(_MOST_WRAPPED):
        wrapped = loaded if isinstance(loaded, Mapping) else {}
        loaded = next((wrapped[k] for k in _WRAPPERS if isinstance(wrapped.get(k), Mapping)), loaded)
    if not isinstance(loaded, Mapping) or not loaded:
        raise ConfigError(f"--weights {source}: holds no state dict; save model.state_dict()")
    return loaded


def _checked_tensors(state: Mapping[object, object], size: int, source: str) -> dict[str, Any]:
    """``state``, all of whose values are tensors that the file has room for.

    Args:
        size: Of the file in bytes.

    Raises:
        ConfigError: It holds something that is no plain tensor of the file.
    """
    for name, tensor in state.items():
        if isinstance(tensor, Unread) and tensor.is_tensor:
            raise ConfigError(
                f"--weights {source}: {_shown(name)} is no plain tensor on the CPU; save model.cpu().state_dict()"
            )
        if not (isinstance(name, str) and isinstance(tensor, Tensor | StoredTensor)):
            raise ConfigError(f"--weights {source}: '{_shown(name)}' is not a tensor; save model.state_dict() alone")
        if len(name) > _LONGEST_NAME:
            raise ConfigError(
                f"--weights {source}: {_shown(name)} has {len(name)} characters, a layer's name at most {_LONGEST_NAME}"
            )
        if max(tensor.nbytes, *tensor.shape, 0) > size:  # without numbers it may be as wide as it likes
            raise ConfigError(
                f"--weights {source}: {_shown(name)} claims {tensor.nbytes} bytes, the file has {size}; "
                "save it contiguous"
            )
    return dict(state)  # type: ignore[arg-type]


def _versions(metadata: object) -> dict[str, Any]:
    """Of each module, where the file says it as torch does."""
    if not isinstance(metadata, Mapping):
        return {}
    return {
        k: v for k, v in metadata.items() if isinstance(k, str) and len(k) <= _LONGEST_NAME and isinstance(v, Mapping)
    }


def _without_prefixes(state: RawState) -> RawState:
    tensors, versions = state.tensors, state.versions
    for _ in range(_MOST_PREFIXES):
        prefix = next((p for p in _PREFIXES if all(k.startswith(p) for k in tensors)), None)
        if prefix is None:
            break
        tensors = {k.removeprefix(prefix): v for k, v in tensors.items()}
        versions = {
            f"{k}.".removeprefix(prefix).rstrip("."): v for k, v in versions.items() if f"{k}.".startswith(prefix)
        }
    return RawState(tensors, versions)


def usable(network: Network, state: RawState, source: str) -> RawState:
    """``state`` without the keys that inference has no use for, old names replaced by today's.

    Raises:
        ConfigError: They cannot be those of this network, or two are old and new name of one.
    """
    tensors: dict[str, Tensor] = {}
    for old, tensor in state.tensors.items():
        if old.startswith(network.unused):
            continue
        key = old
        for pattern, replacement in network.renames:
            key = re.sub(pattern, replacement, key)
        if key in tensors:
            raise ConfigError(
                f"--weights {source}: holds {_shown(key)} of {network.name} twice, once as {_shown(old)}; "
                "remove the one that is not meant"
            )
        tensors[key] = tensor
    try:
        return RawState(dict(network.adapt(tensors)), state.versions)
    except Exception as error:  # noqa: BLE001 - arithmetic on tensors of any type and shape
        raise ConfigError(f"--weights {source}: do not fit {network.name}: {_line(error)}") from None


def num_classes(state: RawState, last_layer: str) -> int | None:
    """Classes that the weights of ``last_layer`` tell apart; None when they are missing."""
    weight = state.tensors.get(f"{last_layer}.weight")
    return None if weight is None or weight.ndim < 2 else weight.shape[0]


@dataclass(frozen=True)
class Fitted:
    """The complete state dict of a network.

    Args:
        absent: Keys of optional layers that the file lacks; their values are zeros that nothing may use.
    """

    tensors: dict[str, Tensor]
    absent: frozenset[str]


def fit(network: Network, settings: Settings, state: RawState, source: str) -> Fitted:
    """The complete state dict of the network, from ``state``, with float32 weights.

    The network's own loading does the work, so that torchvision's conversions of old files apply.

    Raises:
        ConfigError: Keys are missing, unknown or of another shape; the first few are named.
    """
    module = probe.skeleton(network, settings)
    own = module.state_dict()
    _check_shapes(network, state.tensors, own, source)
    _check_types(network, state.tensors, own, source)
    tensors = {k: _as_stored(v, own.get(k)) for k, v in state.tensors.items()}
    absent = frozenset(k for k in own if k not in tensors and k.startswith(network.optional))
    tensors |= {k: torch.zeros(own[k].shape, dtype=own[k].dtype) for k in absent}
    try:
        missing, unexpected = assign(module, tensors, state.versions)
    except Exception as error:  # noqa: BLE001 - modules convert old files by what these say of themselves
        raise ConfigError(f"--weights {source}: do not fit {network.name} ({_line(error)})") from None
    problems = [*_problem("missing", missing), *_problem("unknown", [_shown(k) for k in unexpected])]
    if problems:
        raise ConfigError(
            f"--weights {source}: do not fit {network.name}: {'; '.join(problems)}; give the weights of this network"
        )
    return Fitted(complete(module), absent)


def assign(
    module: nn.Module, tensors: StateDict, versions: Mapping[str, Any] | None = None
) -> tuple[list[str], list[str]]:
    """Makes ``tensors`` the parameters and buffers of ``module``, without copying; gives missing and unknown keys.

    Without ``versions`` that of the root module is assumed: torchvision's mnasnet refuses to load when none is told.
    """
    told = OrderedDict(tensors)
    root = getattr(module.state_dict(), "_metadata", {}).get("", {})
    told._metadata = versions or {"": root}  # type: ignore[attr-defined]
    missing, unexpected = module.load_state_dict(told, strict=False, assign=True)
    return missing, unexpected


def complete(module: nn.Module) -> dict[str, Tensor]:
    """State dict of ``module``, each tensor alone in its memory and contiguous."""
    return {name: _alone(tensor.detach()) for name, tensor in module.state_dict().items()}


def _alone(tensor: Tensor) -> Tensor:
    if tensor.is_contiguous() and tensor.untyped_storage().nbytes() == tensor.nbytes:
        return tensor
    return tensor.clone(memory_format=torch.contiguous_format)


def _as_stored(tensor: Tensor, own: Tensor | None) -> Tensor:
    return tensor.to(own.dtype) if own is not None and own.is_floating_point() else tensor


def _check_shapes(network: Network, given: StateDict, own: StateDict, source: str) -> None:
    wrong = [
        f"{k} is {tuple(given[k].shape)}, not {tuple(own[k].shape)}"
        for k in given
        if k in own and given[k].shape != own[k].shape
    ]
    if wrong:
        raise ConfigError(f"--weights {source}: do not fit {network.name}: {'; '.join(_problem('other shape', wrong))}")


def _check_types(network: Network, given: StateDict, own: StateDict, source: str) -> None:
    """Others become numbers, too, but not those that were learned: int8 lacks its scale, complex loses a part."""
    wrong = [
        f"{_shown(k)} is {v.dtype}"
        for k, v in given.items()
        if v.dtype not in _FLOATING
        and (own[k].is_floating_point() if k in own else v.is_floating_point() or v.is_complex())
    ]
    if wrong:
        raise ConfigError(
            f"--weights {source}: do not fit {network.name}: {'; '.join(_problem('other type', wrong))}; "
            "save them in float32, float16 or bfloat16"
        )


def _problem(what: str, keys: list[str]) -> list[str]:
    if not keys:
        return []
    more = f" and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else ""
    return [f"{what} {', '.join(keys[:_SHOWN])}{more}"]


def _shown(name: object) -> str:
    """A name from a file, as a message can hold it."""
    text = name if isinstance(name, str) else name.name if isinstance(name, Unread) else repr(name)
    text = text if text.isprintable() else ascii(text)[1:-1]
    return text if len(text) <= _SHOWN_NAME else f"{text[:_SHOWN_NAME]}…"


def random_state(network: Network, seed: int, settings: Settings) -> dict[str, Tensor]:
    """What the bare constructor gives right after ``torch.manual_seed(seed)``; the global generator is left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        tensors = complete(network.construct(settings))
    return {k: v for k, v in tensors.items() if not k.startswith(network.unused)}


def content_sha256(state: StateDict) -> str:
    """SHA-256 over names, types, shapes and bytes of all tensors, in the order of their names."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].contiguous()
        digest.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _line(error: Exception) -> str:
    line = " ".join(str(error).split())[:200]
    return line if line.isprintable() else ascii(line)[1:-1]


def is_finite(tensor: Tensor) -> bool:
    """Whether it holds neither NaN nor infinite values, without the copies that ``Tensor.isfinite`` makes."""
    if not tensor.is_floating_point() or not tensor.numel():
        return True
    lowest, highest = tensor.aminmax()  # NaN when one value is
    return bool(lowest.isfinite() & highest.isfinite())


def check_finite(state: StateDict, used: frozenset[str], what: str) -> None:
    """Refuses weights on which a feature depends and which are no numbers.

    Raises:
        ConfigError: The first of them is named.
    """
    for name in sorted(used & state.keys()):
        if not is_finite(state[name]):
            raise ConfigError(
                f"{what} depends on {name}, which holds NaN or infinite values; choose other weights or a layer"
            )
