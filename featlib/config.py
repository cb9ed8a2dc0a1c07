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
from featlib.sampling import FrameSampling, parse_clip_keys
from featlib.storage.urls import check_endpoint

Device = Literal["auto", "cpu", "cuda"]
Layout = Literal["auto", "together", "separate"]
Compile = Literal["auto", "on", "off"]
Precision = Literal["fp32", "bf16", "fp16"]
Pool = Literal["mean", "max", "mean_std"]
Fuse = Literal["concat", "mean"]
Head = Literal["linear", "rnn", "lstm", "gru", "tcn", "attention", "hard_attention", "embedding"]
Loss = Literal["cross_entropy", "contrastive", "triplet"]

POOLED_HEADS: tuple[Head, ...] = ("linear", "embedding")
"""Heads that read the mean of a video; the others read its steps."""


MOST_TCN_BLOCKS = 16
"""Each block looks twice as far back as the one before, and pads what it reads by that."""

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


def _digest(text: str) -> str:
    if not re.fullmatch(r"[0-9a-f]{64}", text.lower()):
        raise ValueError(f"{text!r} must be the 64 hex digits that sha256sum prints of the file")
    return text.lower()


def _digests(text: str) -> str:
    first, plus, second = text.partition("+")
    return f"{_digest(first)}+{_digest(second)}" if plus else _digest(text)


def _one_or_many(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


def _yaml_word(value: Any) -> Any:
    """YAML reads ``on`` and ``off`` as true and false."""
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else value


Name = Annotated[str, AfterValidator(check_name)]
Text = Annotated[str, Field(min_length=1)]
Names = Annotated[tuple[Name, ...], BeforeValidator(_one_or_many), Field(min_length=1)]
Texts = Annotated[tuple[str, ...], BeforeValidator(_one_or_many), Field(min_length=1)]
Digest = Annotated[str, AfterValidator(_digest)]
Endpoint = Annotated[str, AfterValidator(check_endpoint)]
FrameSamplingText = Annotated[str, AfterValidator(_frame_sampling)]
ClipSamplingText = Annotated[str, AfterValidator(_clip_sampling)]


def default_label(network: str) -> str:
    """The label of a model that was given none: the network's name; of ``module:object`` the part behind the colon.

    That part may hold characters that no label has; they become ``_``, the ``+`` of ``crop:A+B`` a ``-``.
    """
    _, colon, name = network.partition(":")
    return re.sub(r"[^A-Za-z0-9._-]", "_", name.replace("+", "-")).lstrip("0123456789._-") if colon else network


class Frozen(BaseModel):
    """What every configuration is: immutable, and without keys that nobody knows."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ModelConfig(Frozen):
    """One ``--model``: a network and the settings that decide its features.

    Settings left at None are the network's own. The label is the ``model=`` partition.

    Args:
        weights_sha256: Of the file of ``weights``, 64 hex digits; of a ``crop:`` model two, joined by ``+``.
        layer: In a job's models also several, separated by commas: each becomes a partition ``LABEL.LAYER``, from one
            forward pass.
        top_k: So many of the most probable classes stand beside each feature; 0 for none.
        categories: Names of the classes: a weights enum name whose names they are, or a text file with one a line.
        flow: How optical flow is computed, for networks that read it.
        flow_weights: Of a flow that is a network (RAFT); as ``weights``.
        flow_weights_sha256: Of the file of ``flow_weights``, 64 hex digits.
        fusion: How the streams of a two-stream network become one: ``concat``, ``mean``, or weights like ``1:1.5``.
        regions: Which boxes of a detector: ``top:K`` or ``fixed:K``.
    """

    network: Text
    label: Name
    weights: Text = "default"
    weights_sha256: Annotated[str, AfterValidator(_digests)] | None = None
    layer: Text | None = None
    preprocess: str | None = None
    precision: Precision = "fp32"
    frame_sampling: FrameSamplingText | None = None
    clip_sampling: ClipSamplingText | None = None
    batch_size: Annotated[int, Field(ge=1, le=4096)] | None = None
    top_k: Annotated[int, Field(ge=0, le=1000)] = 0
    categories: Text | None = None
    flow: Text | None = None
    flow_weights: Text | None = None
    flow_weights_sha256: Digest | None = None
    fusion: Text | None = None
    regions: Text | None = None

    @model_validator(mode="before")
    @classmethod
    def _label_is_network(cls, data: Any) -> Any:
        if isinstance(data, Mapping) and data.get("label") is None and "network" in data:
            return {**data, "label": default_label(str(data["network"]))}
        return data


def _by_layer(model: Any) -> list[Any]:
    """A model of several layers as one model a layer."""
    values = model.model_dump(exclude_unset=True) if isinstance(model, ModelConfig) else model
    if not isinstance(values, Mapping):
        return [model]
    layers = values.get("layer")
    names = layers.split(",") if isinstance(layers, str) else layers
    if not isinstance(names, list | tuple):
        return [model]
    if len(names) == 1:
        return [{**values, "layer": names[0]}]
    label = values.get("label") or default_label(str(values.get("network")))
    return [{**values, "label": f"{label}.{name}", "layer": name} for name in names]


class ExtractConfig(Frozen):
    """Everything that ``featlib extract`` can be told; the keys of a YAML job file are these fields.

    ``None`` for a size means: derived from the machine or the cluster.

    Args:
        manifest: Manifests, media files, folders or prefixes, globs.
        output: Folder or URL under which ``features/``, ``outcomes/`` and ``_featlib/`` lie.
        dataset: The ``dataset=`` partition.
        models: The networks; all share one decode of each video.
        local_media: A manifest in an object store may name local paths, which every node must then see.
        max_failed: Share of media, 0 to 1, that may be failed or partial before the exit code is 3.
        layout: ``together``: one pool holds all networks; ``separate``: image and clip networks in a pool each.
        extract_threads: CPU threads of one extractor worker.
        compile: Whether networks run as compiled code on CPUs; ``auto``: where that saves more than it costs.
        shard_items: Media items in one shard of the plan; fixed when an item is first planned.
        unit_mb: Most megabytes of pixels that one decode task hands on.
        unit_items: Most small items that one decode task takes; derived: 64, in jobs of very many items up to 256.
        decode_memory_mb: Memory that decoding one item may take beyond the worker's own.
        decode_stall_s: Seconds without progress after which decoding an item is given up.
        decode_deadline_s: Seconds after which decoding an item is given up whatever it does.
        object_store_mb: Ray's shared memory when featlib starts Ray itself.
    """

    manifest: Texts
    output: Text
    dataset: Name
    models: Annotated[tuple[ModelConfig, ...], Field(min_length=1)]
    uri_column: str = "uri"
    limit: Annotated[int, Field(ge=1)] | None = None
    local_media: bool = False
    max_failed: Annotated[float, Field(ge=0, le=1)] = 0.05
    retry_failed: bool = False
    changed: bool = False
    device: Device = "auto"
    ray_address: str | None = None
    endpoint_url: Endpoint | None = None
    anon: bool = False
    layout: Layout = "auto"
    compile: Annotated[Compile, BeforeValidator(_yaml_word)] = "auto"
    decode_workers: Annotated[int, Field(ge=1)] | None = None
    extract_workers: Annotated[int, Field(ge=1)] | None = None
    extract_threads: Annotated[int, Field(ge=1)] | None = None
    flow_workers: Annotated[int, Field(ge=1)] | None = None
    shard_items: Annotated[int, Field(ge=1, le=100_000)] = 256
    shard_mb: Annotated[int, Field(ge=1, le=4096)] = 512
    unit_mb: Annotated[int, Field(ge=1, le=1024)] = 48
    unit_items: Annotated[int, Field(ge=1, le=1024)] | None = None
    decode_memory_mb: Annotated[int, Field(ge=64)] = 2048
    decode_stall_s: Annotated[float, Field(gt=0)] = 90.0
    decode_deadline_s: Annotated[float, Field(gt=0)] = 1800.0
    object_store_mb: Annotated[int, Field(ge=80)] | None = None

    @model_validator(mode="before")
    @classmethod
    def _one_partition_a_layer(cls, data: Any) -> Any:
        if not isinstance(data, Mapping) or not isinstance(data.get("models"), list | tuple):
            return data
        return {**data, "models": [m for model in data["models"] for m in _by_layer(model)]}

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


class AggregateConfig(Frozen):
    """Everything that ``featlib aggregate`` can be told: features of frames or clips become one vector a video.

    Args:
        output: Where ``featlib extract`` wrote to; the vectors go beside what they are made of.
        features: Labels of the partitions to read; several are fused.
        label: The partition to write; empty: the names of what it is made of, ``resnet50.mean`` or ``resnet50.lstm``
            (with a head, known when the head has been read).
        pool: Over the rows of a video.
        fuse: How the vectors of several partitions become one.
        head: What ``featlib train`` wrote, its folder or the file in it; instead of ``pool`` and ``fuse``.
        top_k: How many of its best classes a classifier writes.
        normalize: Scale the result to length 1.
    """

    output: Text
    dataset: Name
    features: Names
    label: Name = ""
    pool: Pool = "mean"
    fuse: Fuse = "concat"
    head: Text | None = None
    top_k: Annotated[int, Field(ge=1)] = 1
    normalize: bool = False
    max_failed: Annotated[float, Field(ge=0, le=1)] = 0.05
    shard_mb: Annotated[int, Field(ge=1, le=4096)] = 512
    endpoint_url: Endpoint | None = None
    anon: bool = False

    @model_validator(mode="before")
    @classmethod
    def _label_says_what_it_is(cls, data: Any) -> Any:
        if not isinstance(data, Mapping) or data.get("label") or data.get("head") or not data.get("features"):
            return data
        features = _one_or_many(data["features"])
        if not isinstance(features, list | tuple):
            return data
        return {**data, "label": f"{'-'.join(map(str, features))}.{data.get('pool') or 'mean'}"}

    @model_validator(mode="after")
    def _settings_fit(self) -> "AggregateConfig":
        check_given_once(self.features)
        if self.label in self.features:
            raise ValueError(f"label: {self.label!r} is one of the partitions to read; give another")
        if self.head is not None and (own := self.model_fields_set & {"pool", "fuse"}):
            raise ValueError(f"head: pools and fuses as it was trained to; leave out {' and '.join(sorted(own))}")
        if self.head is None and "top_k" in self.model_fields_set:
            raise ValueError("top_k: needs a head that is a classifier; give head")
        return self

    def labelled(self, kind: Head) -> "AggregateConfig":
        """With the name of the partition that a head of this kind writes, when none was given."""
        label = self.label or f"{'-'.join(self.features)}.{kind}"
        return validated(AggregateConfig, {**self.model_dump(exclude_unset=True), "label": label})


def check_given_once(features: tuple[str, ...]) -> None:
    """Makes sure that no partition is named twice.

    Raises:
        ValueError: One is.
    """
    if len(set(features)) < len(features):
        raise ValueError("features: a label is given twice; name each partition once")


Config = TypeVar("Config", bound=BaseModel)


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
        ConfigError: As ``job_file``, or a key is not known.
    """
    data = job_file(path)
    unknown = [str(k) for k in data if k not in kind.model_fields]
    if unknown:
        known = ", ".join(kind.model_fields)
        raise ConfigError(f"--config {path}: unknown key {', '.join(unknown)}; known are {known}")
    return data


def job_file(path: str) -> dict[str, Any]:
    """The mapping in a YAML job file, whatever its keys.

    Raises:
        ConfigError: The file cannot be read, is not YAML, or is not a mapping.
    """
    try:
        data = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--config {path}: cannot be read ({error})") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"--config {path}: not YAML: {_place(error)}") from None
    except RecursionError:
        raise ConfigError(f"--config {path}: is nested too deep; a job file is a flat mapping of options") from None
    except (ValueError, LookupError, AttributeError):  # PyYAML's, of such and of what a tag calls one
        raise ConfigError(f"--config {path}: not YAML: holds what looks like a date or a number and is none") from None
    if not isinstance(data, dict):
        raise ConfigError(f"--config {path}: must hold a mapping of options, like `dataset: mine`")
    return data


def _place(error: yaml.YAMLError) -> str:
    """What is wrong where, without a word of the file, which may hold a key."""
    if not isinstance(error, yaml.MarkedYAMLError) or error.problem_mark is None:
        return f"{getattr(error, 'reason', 'unreadable')}, at character {getattr(error, 'position', 0) + 1}"
    problem = re.sub(r"""(?s)\b(alias|anchor|handle|tag) ['"].*""", r"\1 ...", error.problem or "unreadable")
    return f"line {error.problem_mark.line + 1}, column {error.problem_mark.column + 1}: {problem}"


def fingerprint(semantics: Mapping[str, str]) -> str:
    """SHA-256 over everything that changes a feature's value, as 64 hex digits."""
    text = json.dumps(dict(semantics), sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _one_line(error: ValidationError) -> str:
    from featlib.redaction import redact

    parts = []
    for detail in error.errors(include_url=False):
        where = ".".join(str(p) for p in detail["loc"])
        message = detail["msg"].removeprefix("Value error, ")
        given = detail.get("input")
        given = redact(given) if isinstance(given, str) else given
        is_shown = isinstance(given, str | int | float | bool) and "endpoint_url" not in detail["loc"]
        shown = f" (got {given!r})" if is_shown else ""  # not of what may hold a key in a shape of its own
        if detail["type"] == "missing":
            parts.append(f"{where}: is required")
        elif detail["type"] == "extra_forbidden":
            parts.append(f"{where}: unknown setting")
        else:
            parts.append(f"{where}: {message}{shown}" if where else message)
    return "; ".join(" ".join(p.split()) for p in parts)
