"""The configuration of a job: frozen, validated, the same whether it comes from flags, a YAML file or Python."""

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from featlib.errors import ConfigError
from featlib.spec import FrameSampling, parse_clip_keys

Device = Literal["auto", "cpu", "cuda"]
Layout = Literal["auto", "together", "separate"]
Precision = Literal["fp32", "bf16", "fp16"]
Pool = Literal["mean", "max", "mean_std"]
Fuse = Literal["concat", "mean"]

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9._-]{0,127}")
_HIVE_WORDS = {"true", "false", "null", "nan", "inf", "infinity"}


def check_name(name: str) -> str:
    """A dataset or label that every Hive reader gives back as the same string.

    Raises:
        ValueError: The name breaks the rule, which the message states.
    """
    if not _NAME.fullmatch(name):
        raise ValueError(
            f"{name!r} must be a letter followed by up to 127 of A-Z a-z 0-9 . _ - "
            "(Hive readers turn names like 001 or 2024-01-01 into other types)"
        )
    if name.lower() in _HIVE_WORDS:
        raise ValueError(f"{name!r} is read by Hive readers as a value, not as a name; choose another")
    return name


def _frame_sampling(text: str) -> str:
    return str(FrameSampling.parse(text))


def _clip_sampling(text: str) -> str:
    parse_clip_keys(text)
    return text


def _one_or_many(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


def _endpoint(url: str) -> str:
    if not url.startswith(("http://", "https://")):
        raise ValueError("must begin with http:// or https://")
    return url


Name = Annotated[str, AfterValidator(check_name)]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ModelConfig(_Frozen):
    """One ``--model``: a network and the settings that decide its features.

    Settings left at None are the network's own. The label is the ``model=`` partition.
    """

    network: Annotated[str, Field(min_length=1)]
    label: Name
    weights: Annotated[str, Field(min_length=1)] = "default"
    layer: Annotated[str, Field(min_length=1)] | None = None
    preprocess: str | None = None
    precision: Precision = "fp32"
    frame_sampling: Annotated[str, AfterValidator(_frame_sampling)] | None = None
    clip_sampling: Annotated[str, AfterValidator(_clip_sampling)] | None = None
    batch_size: Annotated[int, Field(ge=1, le=4096)] | None = None

    @model_validator(mode="before")
    @classmethod
    def _label_is_network(cls, data: Any) -> Any:
        if isinstance(data, Mapping) and data.get("label") is None and "network" in data:
            return {**data, "label": data["network"]}
        return data


class ExtractConfig(_Frozen):
    """Everything that ``featlib extract`` can be told; the keys of a YAML job file are these fields.

    ``None`` for a size means: derived from the machine or the cluster.

    Args:
        manifest: Manifests, media files, folders or prefixes, globs.
        output: Folder or URL under which ``features/``, ``outcomes/`` and ``_featlib/`` lie.
        dataset: The ``dataset=`` partition.
        models: The networks; all share one decode of each video.
        max_failed: Share of media, 0 to 1, that may be failed or partial before the exit code is 3.
        layout: ``together``: one pool holds all networks; ``separate``: image and clip networks in a pool each.
        extract_threads: CPU threads of one extractor worker.
        shard_items: Media items in one shard of the plan; fixed when an item is first planned.
        unit_mb: Most megabytes of pixels that one decode task hands on.
        decode_memory_mb: Memory that decoding one item may take beyond the worker's own.
        decode_stall_s: Seconds without progress after which decoding an item is given up.
        decode_deadline_s: Seconds after which decoding an item is given up whatever it does.
        object_store_mb: Ray's shared memory when featlib starts Ray itself.
    """

    manifest: Annotated[tuple[str, ...], BeforeValidator(_one_or_many), Field(min_length=1)]
    output: Annotated[str, Field(min_length=1)]
    dataset: Name
    models: Annotated[tuple[ModelConfig, ...], Field(min_length=1)]
    uri_column: str = "uri"
    limit: Annotated[int, Field(ge=1)] | None = None
    max_failed: Annotated[float, Field(ge=0, le=1)] = 0.05
    retry_failed: bool = False
    changed: bool = False
    device: Device = "auto"
    ray_address: str | None = None
    endpoint_url: Annotated[str, AfterValidator(_endpoint)] | None = None
    anon: bool = False
    layout: Layout = "auto"
    decode_workers: Annotated[int, Field(ge=1)] | None = None
    extract_workers: Annotated[int, Field(ge=1)] | None = None
    extract_threads: Annotated[int, Field(ge=1)] | None = None
    shard_items: Annotated[int, Field(ge=1, le=100_000)] = 256
    shard_mb: Annotated[int, Field(ge=1, le=4096)] = 512
    unit_mb: Annotated[int, Field(ge=1, le=1024)] = 48
    unit_items: Annotated[int, Field(ge=1, le=1024)] = 64
    decode_memory_mb: Annotated[int, Field(ge=64)] = 2048
    decode_stall_s: Annotated[float, Field(gt=0)] = 90.0
    decode_deadline_s: Annotated[float, Field(gt=0)] = 1800.0
    object_store_mb: Annotated[int, Field(ge=80)] | None = None

    @model_validator(mode="after")
    def _labels_differ(self) -> "ExtractConfig":
        seen: set[str] = set()
        for label in self.labels:
            if label in seen:
                raise ValueError(
                    f"models: label {label!r} is used twice; give one of them another, --model LABEL=NETWORK"
                )
            seen.add(label)
        return self

    @property
    def labels(self) -> tuple[str, ...]:
        return tuple(m.label for m in self.models)


class AggregateConfig(_Frozen):
    """Everything that ``featlib aggregate`` can be told: features of frames or clips become one vector a video.

    Args:
        output: Where ``featlib extract`` wrote to; the vectors go beside what they are made of.
        features: Labels of the partitions to read; several are fused.
        label: The partition to write; None: the names of what it is made of, ``resnet50.mean``.
        pool: Over the rows of a video.
        fuse: How the vectors of several partitions become one.
        normalize: Scale the result to length 1.
    """

    output: Annotated[str, Field(min_length=1)]
    dataset: Name
    features: Annotated[tuple[Name, ...], BeforeValidator(_one_or_many), Field(min_length=1)]
    label: Name = ""
    pool: Pool = "mean"
    fuse: Fuse = "concat"
    normalize: bool = False
    max_failed: Annotated[float, Field(ge=0, le=1)] = 0.05
    shard_mb: Annotated[int, Field(ge=1, le=4096)] = 512
    endpoint_url: Annotated[str, AfterValidator(_endpoint)] | None = None
    anon: bool = False

    @model_validator(mode="before")
    @classmethod
    def _label_says_what_it_is(cls, data: Any) -> Any:
        if not isinstance(data, Mapping) or data.get("label") or not data.get("features"):
            return data
        features = _one_or_many(data["features"])
        if not isinstance(features, list | tuple):
            return data
        return {**data, "label": f"{'-'.join(map(str, features))}.{data.get('pool') or 'mean'}"}

    @model_validator(mode="after")
    def _reads_and_writes_differ(self) -> "AggregateConfig":
        if len(set(self.features)) < len(self.features):
            raise ValueError("features: a label is given twice; name each partition once")
        if self.label in self.features:
            raise ValueError(f"label: {self.label!r} is one of the partitions to read; give another")
        return self


def _unfreeze(text: str) -> str:
    if not re.fullmatch(r"all|last:[1-9][0-9]{0,5}", text):
        raise ValueError("must be all or last:N with N at least 1, like last:1 for the last learned layer alone")
    return text


class FinetuneConfig(_Frozen):
    """Everything that ``featlib train --backbone`` can be told: a network is trained further on labelled media.

    Args:
        manifest: As of ``ExtractConfig``; every row has a ``label``, and a ``split`` column is obeyed.
        backbone: A network of frames or clips.
        weights: What it starts from, as ``--weights`` of ``featlib extract``.
        out: Folder to write; it must not be there, or be empty.
        unfreeze: ``all``, or ``last:N``: the last N learned layers (modules with parameters of their own, in the order
            in which they run) are trained; the others stay as they are, statistics of batch normalisation included.
        loss: ``cross_entropy`` gives a classifier with a new last layer; ``contrastive`` and ``triplet`` give an
            embedding, the unit vector of what goes into the last layer, which itself stays as it is.
        optimizer: ``adam`` has decoupled weight decay (AdamW; Loshchilov and Hutter, ICLR 2019).
        momentum: Of ``sgd``.
        batch_size: Frames or clips in a batch; pairs and triplets are those of a batch.
        patience: Epochs without a better validation loss after which training ends.
        validation_share: Of the videos of each class, when no row's split is ``validation``.
        frames_per_video: Most frames (clips, for a network of clips) of a video, evenly spread; None: all sampled.
        flip: Mirror each frame or clip left to right in half of the cases; for classes that have no left and right.
        max_failed: Share of media, 0 to 1, that may be unusable before training is not begun.
        cache_mb: Most megabytes of decoded pictures, which lie in the folder for temporary files while it trains.
    """

    manifest: Annotated[tuple[str, ...], BeforeValidator(_one_or_many), Field(min_length=1)]
    backbone: Annotated[str, Field(min_length=1)]
    out: Annotated[str, Field(min_length=1)]
    weights: Annotated[str, Field(min_length=1)] = "default"
    unfreeze: Annotated[str, AfterValidator(_unfreeze)] = "all"
    loss: Literal["cross_entropy", "contrastive", "triplet"] = "cross_entropy"
    optimizer: Literal["sgd", "adam"] = "sgd"
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    weight_decay: Annotated[float, Field(ge=0)] = 1e-4
    epochs: Annotated[int, Field(ge=1)] = 20
    batch_size: Annotated[int, Field(ge=2, le=4096)] = 16
    patience: Annotated[int, Field(ge=1)] = 5
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    validation_share: Annotated[float, Field(gt=0, lt=1)] = 0.2
    preprocess: str | None = None
    frame_sampling: Annotated[str, AfterValidator(_frame_sampling)] | None = None
    clip_sampling: Annotated[str, AfterValidator(_clip_sampling)] | None = None
    frames_per_video: Annotated[int, Field(ge=1)] | None = None
    flip: bool = False
    max_failed: Annotated[float, Field(ge=0, le=1)] = 0.05
    cache_mb: Annotated[int, Field(ge=1)] = 16_384
    device: Device = "auto"
    uri_column: str = "uri"
    limit: Annotated[int, Field(ge=1)] | None = None
    endpoint_url: Annotated[str, AfterValidator(_endpoint)] | None = None
    anon: bool = False


Config = TypeVar("Config", bound=_Frozen)


def extract_config(values: Mapping[str, Any]) -> ExtractConfig:
    """Validates the values of ``featlib extract``; raises as ``validated``."""
    return validated(ExtractConfig, values)


def validated(kind: type[Config], values: Mapping[str, Any]) -> Config:
    """``values`` as a configuration.

    Raises:
        ConfigError: One line that names every wrong key, its value and the rule.
    """
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise ConfigError(_one_line(error)) from None


def read_job_file(path: str, kind: type[BaseModel] = ExtractConfig) -> dict[str, Any]:
    """The mapping in a YAML job file, whose keys are the fields of ``kind``.

    Raises:
        ConfigError: The file cannot be read, is not YAML, or is not a mapping.
    """
    try:
        data = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--config {path}: cannot be read ({error})") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"--config {path}: not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(data, dict):
        raise ConfigError(f"--config {path}: must hold a mapping of options, like `dataset: mine`")
    unknown = [str(k) for k in data if k not in kind.model_fields]
    if unknown:
        known = ", ".join(kind.model_fields)
        raise ConfigError(f"--config {path}: unknown key {', '.join(unknown)}; known are {known}")
    return data


def fingerprint(semantics: Mapping[str, str]) -> str:
    """SHA-256 over everything that changes a feature's value, as 64 hex digits."""
    text = json.dumps(dict(semantics), sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _one_line(error: ValidationError) -> str:
    parts = []
    for detail in error.errors(include_url=False):
        where = ".".join(str(p) for p in detail["loc"])
        message = detail["msg"].removeprefix("Value error, ")
        given = detail.get("input")
        shown = f" (got {given!r})" if isinstance(given, str | int | float | bool) else ""
        if detail["type"] == "missing":
            parts.append(f"{where}: is required")
        elif detail["type"] == "extra_forbidden":
            parts.append(f"{where}: unknown setting")
        else:
            parts.append(f"{where}: {message}{shown}" if where else message)
    return "; ".join(" ".join(p.split()) for p in parts)
