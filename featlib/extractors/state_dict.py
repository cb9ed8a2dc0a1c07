"""State dicts: read from bytes without running anything in them, freed of wrappers, fitted to a network."""

import hashlib
import io
import pickle
import pickletools
import re
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from featlib.errors import ConfigError
from featlib.extractors import probe
from featlib.extractors.network import Network, Settings, StateDict

_WRAPPERS = ("state_dict", "model_state_dict", "model")
_PREFIXES = ("module.", "model.", "_orig_mod.")
_MOST_WRAPPED = 4
_SHOWN = 3  # keys of each kind that an error names
_ZIP = b"PK\x03\x04"  # by these torch tells its formats apart
_SEE_ZIP64 = 0xFFFFFFFF
_LEGACY_PICKLES = 5  # magic number, protocol, system, the object, keys of its storages
_ALLOCATES = re.compile(r"(\S+ )?(bytearray|_codecs encode)")
"""What torch lets a pickle call that fills memory of a size of its choice; no state dict needs it.

Tensors and storages of any size can be asked for, too, but nobody writes into them, so they cost no memory.
"""


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
    return _without_prefixes(_unwrap(_deserialize(data, source), len(data), source))


def _deserialize(data: bytes, source: str) -> object:
    if data[8:9] == b"{":  # safetensors: eight bytes of length, then JSON
        try:
            return safetensors.torch.load(data)
        except Exception as error:  # noqa: BLE001 - its own error, or what its Python side makes of types it lacks
            raise ConfigError(f"--weights {source}: damaged .safetensors file ({_line(error)})") from None
    _check_pickles(_checked_archive(data, source) if data.startswith(_ZIP) else [data], source)
    try:
        # Written out: only tensors and plain containers are unpickled; code in the file is never run.
        return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise ConfigError(
            f"--weights {source}: holds other things than tensors or is damaged; save model.state_dict() alone"
        ) from None
    except Exception as error:  # noqa: BLE001 - bytes that are no pickle may raise anything
        raise ConfigError(f"--weights {source}: not a readable state dict ({_line(error)})") from None


def _checked_archive(data: bytes, source: str) -> list[bytes]:
    """The pickles in an archive. torch packs nothing: one that unpacks to more than it is long fills the memory."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = archive.infolist()
            if archive.start_dir != _told_directory(data):  # torch's reader would find other members
                raise zipfile.BadZipFile("its directory is not where it says")
            unpacked = sum(info.file_size for info in members)
            if unpacked <= len(data):
                return [_member(archive, info) for info in members if info.filename.lower().endswith(".pkl")]
    except Exception as error:  # noqa: BLE001 - bytes that are no archive may raise anything
        raise ConfigError(f"--weights {source}: damaged archive ({_line(error)}); get it anew") from None
    raise ConfigError(
        f"--weights {source}: unpacks to {unpacked} bytes of {len(data)}; torch.save packs nothing, get it anew"
    )


def _told_directory(data: bytes) -> int:
    """Where the end of an archive says that its directory begins."""
    end = data.rindex(b"PK\x05\x06")
    (told,) = struct.unpack_from("<I", data, end + 16)
    if told == _SEE_ZIP64:
        (told,) = struct.unpack_from("<Q", data, data.rindex(b"PK\x06\x06", 0, end) + 48)
    return int(told)


def _member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    info.CRC = None  # type: ignore[assignment]  # torch.save can be told to write none
    return archive.read(info)


def _check_pickles(pickles: list[bytes], source: str) -> None:
    """Refuses pickles that ask for memory by themselves; nothing in them is run here."""
    for word in (word for data in pickles for word in _words(data)):
        found = _ALLOCATES.fullmatch(word)
        if found is not None:
            raise ConfigError(
                f"--weights {source}: holds a {found[2]}, which no state dict has; save model.state_dict() alone"
            )


def _words(data: bytes) -> Iterator[str]:
    """All strings and names in the pickles that stand one behind the other; those of keys and of classes alike."""
    stream = io.BytesIO(data)
    try:
        for _ in range(_LEGACY_PICKLES):
            yield from (str(argument) for _, argument, _ in pickletools.genops(stream) if isinstance(argument, str))
    except Exception:  # noqa: BLE001 - behind the last pickle, or in none: torch says what is wrong
        return


def _unwrap(loaded: object, size: int, source: str) -> RawState:
    """The state dict itself, out of what it was saved in.

    Args:
        size: Of the file in bytes: no tensor in it can be larger.

    Raises:
        ConfigError: There is none, or it holds something that is no plain tensor of the file.
    """
    for _ in range(_MOST_WRAPPED):
        wrapped = loaded if isinstance(loaded, Mapping) else {}
        loaded = next((wrapped[k] for k in _WRAPPERS if isinstance(wrapped.get(k), Mapping)), loaded)
    if not isinstance(loaded, Mapping) or not loaded:
        raise ConfigError(f"--weights {source}: holds no state dict; save model.state_dict()")
    for name, tensor in loaded.items():
        if not (isinstance(name, str) and isinstance(tensor, Tensor)):
            raise ConfigError(f"--weights {source}: {name!r} is not a tensor; save model.state_dict() alone")
        if not _is_plain(tensor):
            raise ConfigError(
                f"--weights {source}: {name} is no plain tensor on the CPU; save model.cpu().state_dict()"
            )
        if tensor.nbytes > size:
            raise ConfigError(
                f"--weights {source}: {name} claims {tensor.nbytes} bytes, the file has {size}; save it contiguous"
            )
    return RawState(dict(loaded), _versions(getattr(loaded, "_metadata", None)))


def _is_plain(tensor: Tensor) -> bool:
    is_dense = tensor.layout == torch.strided and not tensor.is_quantized and not tensor.is_nested
    return is_dense and tensor.device.type == "cpu"


def _versions(metadata: object) -> dict[str, Any]:
    """Of each module, where the file says it as torch does."""
    if not isinstance(metadata, Mapping):
        return {}
    return {k: v for k, v in metadata.items() if isinstance(k, str) and isinstance(v, Mapping)}


def _without_prefixes(state: RawState) -> RawState:
    tensors, versions = state.tensors, state.versions
    while prefix := next((p for p in _PREFIXES if all(k.startswith(p) for k in tensors)), None):
        tensors = {k.removeprefix(prefix): v for k, v in tensors.items()}
        versions = {
            f"{k}.".removeprefix(prefix).rstrip("."): v for k, v in versions.items() if f"{k}.".startswith(prefix)
        }
    return RawState(tensors, versions)


def usable(network: Network, state: RawState) -> RawState:
    """``state`` without the keys that inference has no use for, old names replaced by today's."""
    tensors: dict[str, Tensor] = {}
    for key, tensor in state.tensors.items():
        if key.startswith(network.unused):
            continue
        for pattern, replacement in network.renames:
            key = re.sub(pattern, replacement, key)
        tensors[key] = tensor
    return RawState(dict(network.adapt(tensors)), state.versions)


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
    tensors = {k: _as_stored(v, own.get(k)) for k, v in state.tensors.items()}
    absent = frozenset(k for k in own if k not in tensors and k.startswith(network.optional))
    tensors |= {k: torch.zeros(own[k].shape, dtype=own[k].dtype) for k in absent}
    try:
        missing, unexpected = assign(module, tensors, state.versions)
    except Exception as error:  # noqa: BLE001 - modules convert old files by what these say of themselves
        raise ConfigError(f"--weights {source}: do not fit {network.name} ({_line(error)})") from None
    problems = [*_problem("missing", missing), *_problem("unknown", unexpected)]
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


def _problem(what: str, keys: list[str]) -> list[str]:
    if not keys:
        return []
    more = f" and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else ""
    return [f"{what} {', '.join(keys[:_SHOWN])}{more}"]


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
    return " ".join(str(error).split())[:200]


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
