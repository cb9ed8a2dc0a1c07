"""The configurations of ``featlib train``: of a head, and of a network."""

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, cast

from pydantic import AfterValidator, Field, model_validator

from featlib.config import (
    MOST_TCN_BLOCKS,
    ClipSamplingText,
    Device,
    Digest,
    Endpoint,
    FrameSamplingText,
    Frozen,
    Fuse,
    Head,
    Loss,
    Name,
    Names,
    Text,
    Texts,
    check_given_once,
)

_HIDDEN: dict[Head, int] = {
    "rnn": 256,
    "lstm": 256,
    "gru": 256,
    "tcn": 256,
    "attention": 128,
    "hard_attention": 128,
    "embedding": 256,
}

_LAYERS: dict[Head, int] = {"rnn": 1, "lstm": 1, "gru": 1, "tcn": 4}

_ATTENTION: tuple[Head, ...] = ("attention", "hard_attention")


class TrainConfig(Frozen):
    """Everything that ``featlib train`` can be told about a head on features that were extracted before.

    Args:
        output: Where ``featlib extract`` wrote to.
        features: Labels of the partitions to read; several are fused.
        fuse: How the features of several partitions become one.
        head: ``linear`` is softmax regression on the mean of a video; ``embedding`` a metric embedding of it.
        gated: The gated form of attention.
        loss: When none is given, ``triplet`` for an embedding, ``cross_entropy`` for the others.
        labels: CSV, JSON Lines or Parquet with ``media_id`` or ``uri``, ``label`` and, if wanted, ``split``; None: what
            the manifest said.
        out: Folder or URL for the head and what is to be said of it.
        hidden: Width of the head; None: the kind's own.
        layers: Of a recurrent head, or blocks of a TCN; None: the kind's own.
        embedding_size: Of an embedding's vector.
        validation: Share of each class that is held out when no split says which media are.
        patience: Epochs without a better validation loss after which training ends.
        memory_mb: Most megabytes of features to hold, all labelled videos together; None: half of the machine's.
    """

    output: Text
    dataset: Name
    features: Names
    fuse: Fuse = "concat"
    head: Head
    gated: bool = False
    loss: Loss = "cross_entropy"
    labels: Text | None = None
    out: Text
    hidden: Annotated[int, Field(ge=1, le=65_536)] | None = None
    layers: Annotated[int, Field(ge=1, le=64)] | None = None
    embedding_size: Annotated[int, Field(ge=1, le=65_536)] | None = None
    epochs: Annotated[int, Field(ge=1)] = 100
    batch_size: Annotated[int, Field(ge=1)] = 32
    learning_rate: Annotated[float, Field(gt=0, le=1000)] = 1e-3
    weight_decay: Annotated[float, Field(ge=0, le=1000)] = 1e-4
    patience: Annotated[int, Field(ge=1)] = 10
    seed: Annotated[int, Field(ge=0, lt=1 << 63)] = 0
    validation: Annotated[float, Field(gt=0, lt=1)] = 0.2
    memory_mb: Annotated[int, Field(ge=1)] | None = None
    endpoint_url: Endpoint | None = None
    anon: bool = False

    @model_validator(mode="before")
    @classmethod
    def _kinds_own(cls, data: Any) -> Any:
        """Fills in what the kind of head decides."""
        if not isinstance(data, Mapping) or not isinstance(kind := data.get("head"), str):
            return data
        is_embedding = kind == "embedding"
        own = {
            "loss": "triplet" if is_embedding else "cross_entropy",
            "hidden": _HIDDEN.get(cast(Head, kind)),
            "layers": _LAYERS.get(cast(Head, kind)),
            "embedding_size": 64 if is_embedding else None,
        }
        return {**data, **{name: value for name, value in own.items() if data.get(name) is None}}

    @model_validator(mode="after")
    def _settings_fit_the_kind(self) -> "TrainConfig":
        check_given_once(self.features)
        if (self.head == "embedding") == (self.loss == "cross_entropy"):
            fitting = "contrastive or triplet" if self.head == "embedding" else "cross_entropy"
            raise ValueError(f"loss: {self.head} learns from {fitting}, not from {self.loss}")
        wrong = {
            "gated": self.gated and self.head not in _ATTENTION,
            "hidden": self.hidden is not None and self.head not in _HIDDEN,
            "layers": self.layers is not None and self.head not in _LAYERS,
            "embedding_size": self.embedding_size is not None and self.head != "embedding",
        }
        for name in (name for name, is_wrong in wrong.items() if is_wrong):
            raise ValueError(f"{name}: is no setting of {self.head}; leave it out")
        if self.head == "tcn" and (self.layers or 0) > MOST_TCN_BLOCKS:
            raise ValueError(f"layers: a tcn has at most {MOST_TCN_BLOCKS} blocks")
        return self


def _unfreeze(text: str) -> str:
    if not re.fullmatch(r"all|last:[1-9][0-9]{0,5}", text):
        raise ValueError("must be all or last:N with N at least 1, like last:1 for the last learned layer alone")
    return text


class FinetuneConfig(Frozen):
    """Everything that ``featlib train --backbone`` can be told: a network is trained further on labelled media.

    Args:
        manifest: As of ``ExtractConfig``; every row has a ``label``, and a ``split`` column is obeyed.
        backbone: A network of frames or clips.
        weights: What it starts from, as ``--weights`` of ``featlib extract``.
        weights_sha256: Of the file of ``weights``, 64 hex digits.
        out: Folder to write; it must not be there, or be empty.
        unfreeze: ``all``, or ``last:N``: the last N learned layers (modules with parameters of their own, in the order
            in which they run) are trained; the others stay as they are, statistics of batch normalisation included.
        loss: ``cross_entropy`` gives a classifier with a new last layer; ``contrastive`` and ``triplet`` give an
            embedding, the unit vector of what goes into the last layer, which itself stays as it is.
        optimizer: ``adam`` has decoupled weight decay (AdamW; Loshchilov and Hutter, ICLR 2019).
        momentum: Of ``sgd``.
        batch_size: Frames or clips in a batch; pairs and triplets are those of a batch.
        patience: Epochs without a better validation loss after which training ends.
        validation: Of the videos of each class, when no row's split is ``validation``.
        frames_per_video: Most frames (clips, for a network of clips) of a video, evenly spread; None: all sampled.
        flip: Mirror each frame or clip left to right in half of the cases; for classes that have no left and right.
        max_failed: Share of media, 0 to 1, that may be unusable before training is not begun.
        cache_mb: Most megabytes of decoded pictures, which lie in the folder for temporary files while it trains.
        local_media: A manifest in an object store may name local paths.
    """

    manifest: Texts
    backbone: Text
    out: Text
    weights: Text = "default"
    weights_sha256: Digest | None = None
    unfreeze: Annotated[str, AfterValidator(_unfreeze)] = "all"
    loss: Loss = "cross_entropy"
    optimizer: Literal["sgd", "adam"] = "sgd"
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    weight_decay: Annotated[float, Field(ge=0)] = 1e-4
    epochs: Annotated[int, Field(ge=1)] = 20
    batch_size: Annotated[int, Field(ge=2, le=4096)] = 16
    patience: Annotated[int, Field(ge=1)] = 5
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    validation: Annotated[float, Field(gt=0, lt=1)] = 0.2
    preprocess: str | None = None
    frame_sampling: FrameSamplingText | None = None
    clip_sampling: ClipSamplingText | None = None
    frames_per_video: Annotated[int, Field(ge=1)] | None = None
    flip: bool = False
    max_failed: Annotated[float, Field(ge=0, le=1)] = 0.05
    cache_mb: Annotated[int, Field(ge=1)] = 16_384
    device: Device = "auto"
    uri_column: str = "uri"
    limit: Annotated[int, Field(ge=1)] | None = None
    local_media: bool = False
    endpoint_url: Endpoint | None = None
    anon: bool = False
