"""A trained head as one file: its weights, and in the file's metadata all that is needed to use it again.

The file is a safetensors file; its metadata has one entry, ``featlib.head``, a ``HeadSpec`` as JSON.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Literal

import safetensors.torch
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from torch import Tensor, nn

from featlib.config import MOST_TCN_BLOCKS, POOLED_HEADS, Fuse, Head, Loss
from featlib.errors import ConfigError, MediaError
from featlib.extractors.metadata import header_text
from featlib.heads.modules import TCN, Attention, Classifier, Embedding, Mean, Recurrent
from featlib.heads.pooling import Floats
from featlib.heads.training import padded
from featlib.redaction import redact
from featlib.storage import StoreOptions, read_bytes

HEAD_FILE = "head.safetensors"
_ENTRY = "featlib.head"
_MANY = 65_536
_MOST_CHANNELS = 1 << 24  # with these bounds no weight of a head has more values than a tensor can count
_MOST_STREAMS = 1024

Count = Annotated[int, Field(ge=1, le=_MANY)]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Stream(_Frozen):
    """The features of one partition that a head reads.

    Args:
        label: Of the partition it was trained on; another partition of the same fingerprint is as good.
        fingerprint: Of the partition.
        shape: Of one row.
        size: Channels of one step.
    """

    label: str
    fingerprint: str
    shape: tuple[int, ...]
    size: Annotated[int, Field(ge=1, le=_MOST_CHANNELS)]


class HeadSpec(_Frozen):
    """Everything about a head but its weights.

    Args:
        features: What it reads, in the order of fusion.
        classes: Names of the classes; those of an embedding are what it was trained on.
        hidden: And ``layers``, ``embedding_size``: None where the kind has none.
        settings: Of its training, for the record.
        featlib: Version that made it.
    """

    format: Literal[1] = 1
    head: Head
    gated: bool = False
    hidden: Count | None = None
    layers: Annotated[int, Field(ge=1, le=64)] | None = None
    embedding_size: Count | None = None
    features: Annotated[tuple[Stream, ...], Field(min_length=1, max_length=_MOST_STREAMS)]
    fuse: Fuse
    classes: Annotated[tuple[str, ...], Field(min_length=1)]
    loss: Loss
    seed: int
    settings: dict[str, int | float | str]
    featlib: str

    @model_validator(mode="after")
    def _sizes_can_be_fused(self) -> "HeadSpec":
        if self.fuse == "mean" and len({s.size for s in self.features}) > 1:
            raise ValueError("the mean needs features of one size")
        if self.head == "tcn" and (self.layers or 0) > MOST_TCN_BLOCKS:
            raise ValueError(f"a tcn has at most {MOST_TCN_BLOCKS} layers")
        return self

    @property
    def size_in(self) -> int:
        """Channels of one step, fused."""
        return sum(s.size for s in self.features) if self.fuse == "concat" else self.features[0].size

    @property
    def pooled(self) -> bool:
        """Whether it reads the mean of a video rather than its steps."""
        return self.head in POOLED_HEADS

    @property
    def is_classifier(self) -> bool:
        return self.head != "embedding"


def _recurrent(spec: HeadSpec) -> nn.Module:
    return Recurrent(spec.size_in, spec.head, spec.hidden or 1, spec.layers or 1)


def _attention(spec: HeadSpec) -> nn.Module:
    return Attention(spec.size_in, spec.hidden or 1, gated=spec.gated, hard=spec.head == "hard_attention")


_BUILDERS: dict[Head, Callable[[HeadSpec], nn.Module]] = {
    "linear": lambda spec: Mean(spec.size_in),
    "rnn": _recurrent,
    "lstm": _recurrent,
    "gru": _recurrent,
    "tcn": lambda spec: TCN(spec.size_in, spec.hidden or 1, spec.layers or 1),
    "attention": _attention,
    "hard_attention": _attention,
    "embedding": lambda spec: Embedding(spec.size_in, spec.hidden or 1, spec.embedding_size or 1),
}


def build(spec: HeadSpec) -> nn.Module:
    """The module of a head with weights drawn from torch's global generator: a ``Classifier``, or an ``Embedding``."""
    head = _BUILDERS[spec.head](spec)
    return Classifier(head, len(spec.classes)) if spec.is_classifier else head


@dataclass(frozen=True)
class HeadResult:
    """What a head makes of one video.

    Args:
        vector: (size,).
        probabilities: (num_classes,) of a classifier.
        weights: (num_steps,) of a head that weighs its steps.
    """

    vector: Floats
    probabilities: Floats | None
    weights: Floats | None


@dataclass(frozen=True)
class TrainedHead:
    """A head and its weights.

    Args:
        source: Where it was read from, for messages.
        sha256: Of the file.
    """

    spec: HeadSpec
    module: nn.Module
    source: str
    sha256: str

    def __call__(self, steps: Floats) -> HeadResult:
        """Applies it to one video: its steps (T, size_in), one step where it reads the mean."""
        with torch.inference_mode():
            output = self._head(*padded([steps]))
            scores = self.module.fc(output.vector) if isinstance(self.module, Classifier) else None
        weights = None if output.weights is None else output.weights[0].numpy()
        return HeadResult(output.vector[0].numpy(), None if scores is None else scores.softmax(1)[0].numpy(), weights)

    @cached_property
    def _head(self) -> nn.Module:
        return self.module.eval().head if isinstance(self.module, Classifier) else self.module.eval()


def to_bytes(spec: HeadSpec, module: nn.Module) -> bytes:
    """The file; equal heads give equal bytes."""
    tensors = {name: tensor.detach().clone().contiguous() for name, tensor in module.state_dict().items()}
    text = json.dumps(spec.model_dump(mode="json"), sort_keys=True, ensure_ascii=False)
    data: bytes = safetensors.torch.save(tensors, {_ENTRY: text})
    return data


def read_head(path: str, options: StoreOptions) -> TrainedHead:
    """The head in a folder that ``featlib train`` wrote, or in the file in it.

    Args:
        path: Local path or URL.

    Raises:
        ConfigError: It is not there, or is not the file of a head.
        TransientError: The store did not answer within the deadline.
    """
    url = path if path.endswith(".safetensors") else f"{path.rstrip('/')}/{HEAD_FILE}"
    try:
        data = read_bytes(url, options)
    except MediaError as error:
        raise ConfigError(f"--head {redact(path)}: {error.error_class}: {error.message}") from error
    return from_bytes(data, redact(path))


def from_bytes(data: bytes, source: str) -> TrainedHead:
    """The head in the bytes of a file; nothing in them is run.

    Raises:
        ConfigError: They are not those of a head, or the weights do not fit what the metadata say.
    """
    spec = _read_spec(data, source)
    try:
        tensors = safetensors.torch.load(data)
    except Exception as error:  # noqa: BLE001 - its own error, or what its Python side makes of types it lacks
        raise _broken(source, error) from None
    with torch.device("meta"):
        module = build(spec)
    _check_shapes(tensors, module, source)
    module.load_state_dict(tensors, assign=True)
    return TrainedHead(spec, module.eval().requires_grad_(False), source, hashlib.sha256(data).hexdigest())


def _read_spec(data: bytes, source: str) -> HeadSpec:
    try:
        header = json.loads(header_text(data))
        text = header.get("__metadata__", {}).get(_ENTRY)
        if text is None:
            raise ConfigError(f"--head {source}: is no head that featlib train wrote; give its folder or {HEAD_FILE}")
        return HeadSpec.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "metadata"
        raise ConfigError(f"--head {source}: {where}: {first['msg']}; train it again with this featlib") from None
    except (ValueError, AttributeError, RecursionError) as error:
        raise _broken(source, error) from None


def _check_shapes(tensors: dict[str, Tensor], module: nn.Module, source: str) -> None:
    own = {name: (tuple(t.shape), t.dtype) for name, t in module.state_dict().items()}
    found = {name: (tuple(t.shape), t.dtype) for name, t in tensors.items()}
    wrong = sorted(name for name in own.keys() | found.keys() if own.get(name) != found.get(name))
    if wrong:
        raise ConfigError(
            f"--head {source}: {wrong[0]} is {_shown(found.get(wrong[0]))}, its configuration wants "
            f"{_shown(own.get(wrong[0]))}; the file was changed, train the head again"
        )


def _shown(tensor: tuple[tuple[int, ...], torch.dtype] | None) -> str:
    return "absent" if tensor is None else f"{list(tensor[0])} {str(tensor[1]).removeprefix('torch.')}"


def _broken(source: str, error: Exception) -> ConfigError:
    return ConfigError(f"--head {source}: damaged file ({' '.join(str(error).split())[:120]}); train the head again")
