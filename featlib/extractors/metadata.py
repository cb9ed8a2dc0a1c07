"""What a file of weights says of itself: a JSON object under ``featlib`` in the metadata of a ``.safetensors`` file."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from featlib.errors import ConfigError

_KEY = "featlib"
_LENGTH_BYTES = 8  # of the header that comes first, little endian
MOST_HEADER_BYTES = 10_000_000  # of thousands of layers and classes; read as JSON it takes some twenty times as much


@dataclass(frozen=True)
class WeightsMetadata:
    """What goes with the weights of a network that featlib trained.

    Args:
        network: The name in the registry.
        classes: Their names in the order of the network's outputs; empty when the outputs mean nothing.
        preprocess: Full enum name of the preset that the network was trained with.
        layer: What was trained to be the feature; empty, and absent in older files: nothing says it.
        settings: How it was trained, for the record.
    """

    network: str
    classes: tuple[str, ...]
    preprocess: str
    layer: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)

    def to_safetensors(self) -> dict[str, str]:
        """The metadata argument of ``safetensors.torch.save``."""
        return {_KEY: json.dumps(asdict(self), sort_keys=True)}


def read_metadata(data: bytes, source: str) -> WeightsMetadata | None:
    """The metadata in the bytes of a file; None when it is no ``.safetensors`` file, a damaged one or has none.

    Raises:
        ConfigError: There is metadata of featlib in it, but not as featlib writes it.
    """
    text = _text(data)
    if text is None:
        return None
    try:
        found = json.loads(text)
        classes = tuple(found["classes"])
        named = (found["network"], classes, found["preprocess"], found.get("layer", ""))
        metadata = WeightsMetadata(*named, found.get("settings", {}))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise _error(source) from None
    if not all(isinstance(t, str) for t in (metadata.network, metadata.preprocess, metadata.layer, *classes)):
        raise _error(source)
    return metadata


def is_safetensors(data: bytes) -> bool:
    """Whether the bytes begin as a length and JSON do."""
    return data[_LENGTH_BYTES : _LENGTH_BYTES + 1] == b"{"


def header_text(data: bytes) -> bytes:
    """The JSON in the bytes of a ``.safetensors`` file.

    Raises:
        ValueError: It is said to be longer than any that is read.
    """
    length = int.from_bytes(data[:_LENGTH_BYTES], "little")
    if length > MOST_HEADER_BYTES:
        raise ValueError(f"its header has {length} bytes, at most {MOST_HEADER_BYTES} are read")
    return data[_LENGTH_BYTES : _LENGTH_BYTES + length]


def _text(data: bytes) -> str | None:
    if not is_safetensors(data):
        return None
    try:
        header = json.loads(header_text(data))
    except (ValueError, RecursionError):  # reading the tensors says so
        return None
    metadata = header.get("__metadata__")
    text = metadata.get(_KEY) if isinstance(metadata, dict) else None
    return text if isinstance(text, str) else None


def _error(source: str) -> ConfigError:
    return ConfigError(
        f"--weights {source}: its metadata under {_KEY!r} must be JSON with network, classes (names) and preprocess; "
        "save the file without that key or train it again"
    )
